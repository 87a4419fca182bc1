"""Samples of tar files: neighbours among the members that share what stands before the first dot.

`KEY.FIELD` gives the record a column. JSON files give their keys as columns; texts are captions; pictures,
sounds and clips are `image`, `audio` and `video`, or called after what stands before their ending:
`0001.chosen.png` and `0001.rejected.png` are the columns chosen and rejected. Nothing is unpacked to a disk.
"""

import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from mmalign.data.kinds import AUDIO_ENDINGS, VIDEO_ENDINGS
from mmalign.data.streaming_files import Damage, SteadyFile
from mmalign.errors import RowError

__all__ = ["is_tar", "tar_parts"]

_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm"})
_KINDS = {
    **dict.fromkeys(_IMAGES, "image"),
    **dict.fromkeys((ending.removeprefix(".") for ending in AUDIO_ENDINGS), "audio"),
    **dict.fromkeys((ending.removeprefix(".") for ending in VIDEO_ENDINGS), "video"),
}
_BUFFER = 2**20


class _Member(tarfile.TarInfo):
    """A member whose header is there and sound, or an error.

    By itself `tarfile` takes a broken header, and a file that ends before the zeros which end an archive, for
    the end: what follows would be lost without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        """The next member. Raises tarfile.ReadError where none can be read."""
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # not in the stubs
                raise  # zeros: the end
            message = f"no sound header at byte {archive.offset}, and not the end of the archive: {error}"
            raise tarfile.ReadError(message) from error


def is_tar(name: str) -> bool:
    """Whether a file's name is that of a tar file."""
    return name.lower().endswith(_ENDINGS)


def _name_parts(name: str) -> tuple[str, str]:
    """(key with its folders, field): split at the first dot of the file's name."""
    path = PurePosixPath(name)
    stem, _, field = path.name.partition(".")
    return str(path.with_name(stem)) if stem else "", field.lower()


def _put(record: dict[str, Any], field: str, data: bytes) -> None:
    """Add one member to the record.

    Raises:
        ValueError: text or JSON that is none.
    """
    role, _, ending = field.rpartition(".")
    if ending == "json":
        value = json.loads(data)
        if role or not isinstance(value, dict):
            record[role or "json"] = value
        else:
            record.update({name: cell for name, cell in value.items() if name not in record})
    elif ending in ("txt", "text", "caption"):
        record[role or "caption"] = data.decode("utf-8")
    elif ending in ("cls", "cls2"):
        record[role or "label"] = int(data.decode("utf-8"))
    else:
        record[(role or _KINDS.get(ending) or ending) if ending in _KINDS else field] = data


class _Sample:
    """The members of one key, until the next begins."""

    def __init__(self, key: str) -> None:
        self.key, self.error = key, ""
        self.record: dict[str, Any] = {}

    def add(self, field: str, data: bytes) -> None:
        try:
            _put(self.record, field, data)
        except ValueError as error:
            self.error = f"{self.key}.{field}: {error}"

    def finished(self, where: str) -> dict[str, Any] | RowError:
        if self.error:
            message = f"{where}: got a member that cannot be read ({self.error})."
            return RowError(message, reason="malformed_record")
        return {"key": self.key, **self.record}


def _samples(file: Any, name: str, start: int, stop: int | None) -> Iterator[dict[str, Any] | RowError]:
    """Samples from number `start` to the one before `stop`; earlier ones are passed by."""
    number, current = -1, None
    # As a stream: no member is looked up twice, so an address without random access will do.
    with tarfile.open(fileobj=file, mode="r|*", bufsize=_BUFFER, tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            # The library keeps what it has seen, of a whole shard.
            archive.members.clear()  # type: ignore[attr-defined]  # not in its stubs
            key, field = _name_parts(member.name)
            if not member.isreg() or not key or not field:
                continue
            if current is None or key != current.key:
                if current is not None and number >= start:
                    yield current.finished(f"{name}:{number}")
                number, current = number + 1, _Sample(key)
                if number == stop:
                    return
            if number >= start:
                found = archive.extractfile(member)
                current.add(field, found.read() if found is not None else b"")
    if current is not None and number >= start:
        yield current.finished(f"{name}:{number}")


def tar_parts(url: str, name: str, *, start: int, stop: int | None, part: int) -> Iterator[Any]:
    """Parts of a tar file: (number of the first sample, samples), or what is broken.

    A broken place ends the file: nobody can tell where the next member begins.

    Args:
        url: its address.
        name: as messages call it.
        start: first sample.
        stop: the sample behind the last; None goes to the end.
        part: samples at a time.
    """
    first, held = start, list[Any]()
    with SteadyFile(url) as file:
        try:
            for sample in _samples(file, name, start, stop):
                held.append(sample)
                if len(held) == part:
                    yield first, held
                    first, held = first + len(held), []
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            if held:
                yield first, held
            at = first + len(held)
            yield Damage(f"{name}:{at}", f"{url}: broken at sample {at}; what follows is lost ({error}).")
            return
        if held:
            yield first, held

"""Candidates that lie in parquet or tar shards: read in blocks, each scored once and written once.

A block is a fixed piece of a shard. What a block's scores are stored under is a hash of what they depend on:
a block that is scored again, by a retry, another worker or another run, writes the same file with the same
bytes. That is all there is to exactly-once; no process needs to know of another.
"""

import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.data.media import image_ending, read_media, safe_path
from mmalign.errors import CheckpointError, ConfigError, RowError, explain

__all__ = [
    "Block",
    "ShardSample",
    "blocks_of",
    "content_name",
    "read_block",
    "read_sample",
    "write_part",
]

_PROMPTS = ("prompt", "caption", "text")
_IDS = ("id", "__key__", "key")
_IMAGES = ("image", "jpg", "png", "webp", "jpeg")
_MAX_BYTES = 2**28


@dataclass(frozen=True)
class Block:
    """Some neighbouring samples of one shard.

    Args:
        shard: the file.
        group: row group of a parquet file, byte offset of a tar file.
        first: of the group's rows; 0 for tar files.
        count: samples.
    """

    shard: str
    group: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """What the block is called, whatever folder its shard lies in."""
        return f"{Path(self.shard).name}@{self.group}+{self.first}:{self.count}"


@dataclass(frozen=True)
class ShardSample:
    """One candidate.

    Args:
        id: its name in the shard, with the shard's name before it.
        prompt: text it was made for.
        model: what made it; "" where the shard does not tell.
        image: encoded bytes.
        extras: plain further columns.
        error: why it cannot be used.
    """

    id: str
    prompt: str
    model: str
    image: bytes
    extras: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def ending(self) -> str:
        """Of a file that holds the picture."""
        return image_ending(self.image) if self.image else ".png"


def blocks_of(source: str | Path, *, rows: int = 256) -> list[Block]:
    """Blocks of all shards, in the order of their names; reads no picture.

    Args:
        source: a .parquet or .tar file, or a folder of them (one kind).
        rows: most samples of a block.

    Raises:
        ConfigError: nothing there, or files of both kinds.
        CheckpointError: a shard cannot be read.
    """
    path = Path(source)
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("*.tar")])
    kinds = {file.suffix for file in files}
    if len(kinds) != 1 or not kinds <= {".parquet", ".tar"}:
        got = f"[{', '.join(sorted(kinds)) or 'nothing'}] in {path}"
        raise ConfigError(explain("--candidates", got=got, expected="parquet shards, or tar shards"))
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise ConfigError(explain("--candidates", got="two shards of one name", expected="different names"))
    split = _parquet_blocks if kinds == {".parquet"} else _tar_blocks
    return [block for file in files for block in split(file, rows)]


def read_block(block: Block) -> list[ShardSample]:
    """The samples of a block; one that cannot be used has its error.

    Raises:
        CheckpointError: the shard cannot be read.
    """
    return list(_read_parquet(block) if block.shard.endswith(".parquet") else _read_tar(block))


@functools.lru_cache(maxsize=2)
def _held(block: Block) -> tuple[ShardSample, ...]:
    return tuple(read_block(block))


def read_sample(block: Block, index: int) -> bytes:
    """The picture of one sample; neighbours are held, since they are asked for next."""
    return _held(block)[index].image


# ------------------------------------------------------------------------------------------------ parquet


def _opened(file: str | Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        message = f"{file}: cannot be read as parquet ({error}). Was it copied completely?"
        raise CheckpointError(message) from error


def _parquet_blocks(file: Path, rows: int) -> Iterator[Block]:
    metadata = _opened(file).metadata
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        for first in range(0, count, rows):
            yield Block(str(file), group, first, min(rows, count - first))


def _read_parquet(block: Block) -> Iterator[ShardSample]:
    import pyarrow as pa

    try:
        batches = _opened(block.shard).iter_batches(
            batch_size=block.first or block.count, row_groups=[block.group]
        )
        held: list[dict[str, Any]] = []
        passed = 0
        for batch in batches:
            low, high = max(0, block.first - passed), block.first + block.count - passed
            if high > 0:
                held += batch.slice(low, max(0, high - low)).to_pylist()
            passed += len(batch)
            if len(held) >= block.count:
                break
    except (pa.ArrowException, OSError) as error:
        message = f"{block.shard}: cannot be read ({error}). Was it copied completely?"
        raise CheckpointError(message) from error
    for place, row in enumerate(held):
        number = f"{block.group}-{block.first + place}"
        yield _sample(row, Path(block.shard), number)


# ------------------------------------------------------------------------------------------------ tar


def _tar_blocks(file: Path, rows: int) -> Iterator[Block]:
    """Neighbouring members with one key are one sample, as in WebDataset."""
    try:
        with tarfile.open(file, "r:") as archive:
            starts: list[int] = []
            last = None
            for member in archive:
                key = _key(member.name)
                if member.isfile() and key != last:
                    starts.append(member.offset)
                    last = key
    except (tarfile.TarError, OSError) as error:
        message = f"{file}: cannot be read as a tar file ({error}). Was it copied completely?"
        raise CheckpointError(message) from error
    for first in range(0, len(starts), rows):
        yield Block(str(file), starts[first], 0, min(rows, len(starts) - first))


def _key(name: str) -> str:
    """A member's name without what follows the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _read_tar(block: Block) -> Iterator[ShardSample]:
    """Samples from the block's offset on."""
    try:
        with open(block.shard, "rb") as file:
            file.seek(block.group)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                found: dict[str, dict[str, Any]] = {}
                for member in archive:
                    if not member.isfile():
                        continue
                    key = _key(member.name)
                    if key not in found and len(found) == block.count:
                        break
                    content = archive.extractfile(member)
                    data = b"" if content is None else content.read(_MAX_BYTES + 1)
                    found.setdefault(key, {})[member.name.rpartition("/")[2].partition(".")[2].lower()] = data
    except (tarfile.TarError, OSError) as error:
        message = f"{block.shard}: cannot be read ({error}). Was it copied completely?"
        raise CheckpointError(message) from error
    for key, parts in found.items():
        yield _sample(_tar_row(parts), Path(block.shard), key.lstrip("/"))


def _tar_row(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """Columns of a WebDataset sample: its .json, its caption in .txt, its picture."""
    row: dict[str, Any] = {}
    try:
        described = json.loads(parts["json"]) if "json" in parts else {}
        row |= described if isinstance(described, dict) else {}
        if "txt" in parts:
            row["prompt"] = parts["txt"].decode()
    except ValueError as error:
        row["error"] = f"its .json or .txt cannot be read ({error})"
    return row | {name: parts[name] for name in _IMAGES if name in parts}


# ------------------------------------------------------------------------------------------------ samples


def _sample(row: Mapping[str, Any], shard: Path, number: str) -> ShardSample:
    """A row as a sample, or as one with an error."""
    known = next((str(row[name]) for name in _IDS if row.get(name) not in (None, "")), number)
    name = f"{shard.stem}/{known}"
    prompt = next((row[column] for column in _PROMPTS if isinstance(row.get(column), str)), "")
    media = next((row[column] for column in _IMAGES if row.get(column) is not None), None)
    error = row.get("error")
    data = b""
    try:
        data = _bytes(media, shard.parent, name)
        if not prompt.strip():
            error = error or f"{name}: no text under {', '.join(_PROMPTS)}"
    except RowError as problem:
        error = error or str(problem)
    used = {*_PROMPTS, *_IDS, *_IMAGES, "error", "model"}
    extras = {
        column: value
        for column, value in row.items()
        if column not in used and isinstance(value, str | int | float | bool | list | dict)
    }
    # As they come back from the store: the key of a score must not hang on the order of a dictionary.
    plain = json.loads(json.dumps(extras, sort_keys=True, default=str))
    return ShardSample(name, prompt, str(row.get("model") or ""), data, plain, error)


def _bytes(media: Any, root: Path, where: str) -> bytes:
    """Encoded bytes of a cell.

    Raises:
        RowError: there are none.
    """
    if isinstance(media, Mapping):  # the stored form of a `datasets` Image
        media = media.get("bytes") or media.get("path")
    if isinstance(media, bytes) and media:
        return media
    if isinstance(media, str):
        path = safe_path(media, root=root, where=where)
        return read_media(path, where=where, max_bytes=_MAX_BYTES)
    expected = f"a picture under {', '.join(_IMAGES)}"
    raise RowError(explain(where, got=type(media).__name__, expected=expected), reason="missing_image")


# ------------------------------------------------------------------------------------------------ parts


def write_part(folder: Path, name: str, table: Any) -> Path:
    """Write a parquet file under a name that says what is in it, whole or not at all.

    Raises:
        CheckpointError: the disk refused.
    """
    import pyarrow.parquet as pq

    from mmalign.files import atomic_write

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    try:
        return atomic_write(folder / name, buffer.getvalue())
    except OSError as error:
        message = f"{folder}: results could not be written ({error.strerror or error}). Free some space."
        raise CheckpointError(message) from error


def content_name(parts: Sequence[str]) -> str:
    """Name of a part file by what its rows depend on."""
    text = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return f"part-{hashlib.sha256(text).hexdigest()[:40]}.parquet"

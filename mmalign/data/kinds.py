"""What kind of media some records hold, by a look at one value; and lists of scored samples taken apart."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data.audio_codecs import audio_ending
from mmalign.data.config import Media, SourceConfig
from mmalign.data.layouts import Match
from mmalign.data.media import image_ending
from mmalign.data.records import ParquetRecords, Records
from mmalign.data.video_structure import ENDINGS, file_kind
from mmalign.errors import RowError

__all__ = [
    "AUDIO_ENDINGS",
    "VIDEO_ENDINGS",
    "ScoredSamples",
    "first_value",
    "recognised_media",
    "taken_apart",
]

AUDIO_ENDINGS = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma"}
)
"""File endings that mean sound and nothing else."""

VIDEO_ENDINGS = frozenset(
    {
        *ENDINGS["mp4"],
        *ENDINGS["webm"],
        *ENDINGS["avi"],
        *ENDINGS["flv"],
        *ENDINGS["mpeg"],
        *(".wmv", ".ogv", ".mts", ".m2ts"),
    }
    - AUDIO_ENDINGS
    - {".mka"}
)
"""File endings that mean clips; animated pictures are clips where their column's name says so."""

_SURE = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au"})
"""First bytes that mean sound; those of mp4 and webm may be a video's."""

_ROLES = ("chosen", "a", "candidate", "candidates")


def first_value(records: Records, column: str) -> Any:
    """The first value of a column among the first records that is not null; None if there is none.

    Of parquet files, a page is read and not a whole group of rows.
    """
    if isinstance(records, ParquetRecords):
        return records.first(column)
    for number in islice(range(len(records)), 16):
        try:
            value = records.read(number, (column,))[column]
        except RowError:
            continue
        if value is not None and value != [] and value != "":
            return value
    return None


def recognised_media(records: Records, match: Match, source: SourceConfig) -> Media:
    """The source's kind of media; where its settings leave that open, sound and clips are.

    By the ending of a path, the first bytes of a file, the form {array, sampling_rate}, or the word "video"
    in the name of the column; a folder is a clip of its frames.
    """
    role = next((role for role in _ROLES if role in match.columns), None)
    if "media" in source.model_fields_set or role is None:
        return source.media
    column = match.columns[role]
    value = first_value(records, column)
    if _is_audio(value):
        return "audio"
    return "video" if _is_video(value, column, records.root) else source.media


def _is_video(value: Any, column: str, root: Path) -> bool:
    if isinstance(value, list):
        return bool(value) and _is_video(value[0], column, root)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    named = "video" in column.lower() and not isinstance(value, bytes)
    if isinstance(value, str):
        ending = Path(value).suffix.lower()
        if ending in VIDEO_ENDINGS or (named and ending not in AUDIO_ENDINGS):
            return True
        return 0 < len(value) < 1024 and "\0" not in value and (root / value).is_dir()
    if isinstance(value, bytes):
        kind = file_kind(value[:512])
        if kind == "mp4":
            return b"vide" in value
        return kind == "avi" or (kind == "webm" and b"V_" in value[:65_536])
    return False


def _is_audio(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _is_audio(value[0])
    if isinstance(value, Mapping):
        if "array" in value and "sampling_rate" in value:
            return True
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return Path(value).suffix.lower() in AUDIO_ENDINGS
    if isinstance(value, bytes):
        return image_ending(value) == ".img" and audio_ending(value) in _SURE
    return False


# ------------------------------------------------------------------------------------------------ samples

_SAMPLES = ("samples", "candidates", "generations")
_MEDIA = ("audio", "image", "video", "path", "file", "file_name")
_SCORES = ("score", "reward", "clap", "clap_score", "rating")


class ScoredSamples:
    """Records whose `samples` are lists of {audio, score, ...}, seen as lists beside each other.

    The columns `candidates` and `scores` take the place of `samples`; what else a sample says becomes a list
    of its own, `sample_NAME`.

    Args:
        records: the records.
        column: of the lists.
        media: key of the medium inside a sample.
        score: key of its score.
        others: further keys of a sample.
    """

    def __init__(
        self, records: Records, column: str, media: str, score: str, others: Sequence[str] = ()
    ) -> None:
        self._records, self._column = records, column
        self._keys = {"candidates": media, "scores": score} | {f"sample_{key}": key for key in others}
        self.description, self.root = f"{records.description}, scored samples", records.root
        self.columns = (*(name for name in records.columns if name != column), *self._keys)

    def over(self, records: Records) -> "ScoredSamples":
        """Other records of the same data set, seen alike."""
        other = [key for name, key in self._keys.items() if name not in ("candidates", "scores")]
        return ScoredSamples(records, self._column, self._keys["candidates"], self._keys["scores"], other)

    def __len__(self) -> int:
        return len(self._records)

    def _apart(self, samples: Any, name: str) -> list[Any] | None:
        if not isinstance(samples, list):
            return None
        return [one.get(self._keys[name]) if isinstance(one, Mapping) else None for one in samples]

    def column(self, name: str) -> NDArray[Any]:
        """All values of one column."""
        if name not in self._keys:
            return self._records.column(name)
        found = np.empty(len(self), dtype=object)
        found[:] = [self._apart(value, name) for value in self._records.column(self._column)]
        return found

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one record."""
        plain = [name for name in columns if name not in self._keys]
        values = self._records.read(number, [*plain, self._column])
        samples = values.pop(self._column)
        return {name: self._apart(samples, name) if name in self._keys else values[name] for name in columns}

    def where(self, number: int) -> str:
        """`file:row` of a record."""
        return self._records.where(number)

    def heavy(self) -> frozenset[str]:
        """Columns whose values are large."""
        return self._records.heavy()

    def holds_lists(self, name: str) -> bool:
        """Whether a column holds a list per record."""
        return name in self._keys or self._records.holds_lists(name)


def taken_apart(records: Records) -> Records:
    """The records, with scored samples as lists where a column holds them as objects.

    Columns with media inside the rows stay as they are: looking for scores would read them all.
    """
    for name in _SAMPLES:
        if name not in records.columns or name in records.heavy() or not records.holds_lists(name):
            continue
        if (name != "candidates" and "candidates" in records.columns) or "scores" in records.columns:
            continue
        value = first_value(records, name)
        sample = value[0] if isinstance(value, list) and value else None
        if not isinstance(sample, Mapping):
            continue
        media = next((key for key in _MEDIA if key in sample), None)
        score = next((key for key in _SCORES if key in sample), None)
        if media is not None and score is not None:
            others = [key for key in sample if key not in (media, score)]
            return ScoredSamples(records, name, media, score, others)
    return records

"""What tells the media of a row apart, as JSON values that stages keep beside their records."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.batch import Candidate, Media, PreferenceRow
from mmalign.data.video_stills import frame_files

__all__ = ["named_pictures", "names_of", "rate_of"]


def names_of(candidates: Sequence[Candidate]) -> list[Any]:
    """What tells clips apart, as JSON values: bytes by their hash, a file by its name, size and time.

    A folder of frames is known by its frames, each as a file: what is in one may change, and the folder's
    own time does not.
    """
    return [_name_of(candidate.video) for candidate in candidates]


def named_pictures(row: PreferenceRow) -> list[Any]:
    """What tells the pictures of a row apart, likewise."""
    return [_name_of(image) for image in row.images]


def rate_of(row: PreferenceRow, candidates: Sequence[Candidate]) -> list[float]:
    """The row's own frames per second, where clips lie as images and it decides how they are shown."""
    told = row.extras.get("fps")
    images = any(
        isinstance(one.video, tuple) or (isinstance(one.video, str) and Path(one.video).is_dir())
        for one in candidates
    )
    return [float(told)] if images and isinstance(told, int | float) else []


def _name_of(media: Media | None) -> Any:
    if isinstance(media, bytes):
        return hashlib.blake2b(media, digest_size=12).hexdigest()
    if isinstance(media, tuple):
        return [_name_of(frame) for frame in media]
    if isinstance(media, str) and Path(media).is_dir():
        return [media, [_name_of(frame) for frame in frame_files(media)]]
    if isinstance(media, str) and Path(media).exists():
        facts = Path(media).stat()
        return [media, facts.st_size, facts.st_mtime_ns]
    return str(media)

"""Media of dialogues as rows name them: encoded bytes, base64, paths, frames; nothing is decoded here."""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.batch import Media
from mmalign.data.dialogues.fields import is_missing
from mmalign.data.media import safe_path
from mmalign.data.rows import FieldError
from mmalign.data.video_stills import FRAME_ENDINGS, frame_files
from mmalign.errors import explain

__all__ = ["FirstOf", "MediaRoot", "as_list", "as_videos", "video_frames"]

_LONGEST_PATH = 4096
"""Longer texts are no paths on any system: they hold the file itself."""


@dataclass(frozen=True, slots=True)
class FirstOf:
    """Paths at which a medium may lie, the likeliest first; the first that is there is meant."""

    paths: tuple[str, ...]


def as_list(value: object) -> list[Any]:
    """A cell of media as a list: one alone counts as a list of one, null as none."""
    if is_missing(value):
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [item for item in value if not is_missing(item)]
    return [value]


def as_videos(value: object) -> list[Any]:
    """A cell of videos as a list; a list of images alone is one video of these frames."""
    found = as_list(value)
    frames = [item for item in found if isinstance(item, str) and item.lower().endswith(FRAME_ENDINGS)]
    return [tuple(found)] if found and len(frames) == len(found) else found


@dataclass(frozen=True)
class MediaRoot:
    """Where a source's media lie.

    Args:
        root: folder of relative paths.
        allow_outside: accept paths that leave it.
    """

    root: Path
    allow_outside: bool = False

    def image(self, value: object, where: str) -> bytes | str:
        """Encoded bytes or the checked path of an image.

        Raises:
            RowError: reason `missing_image`, `empty_file`, `bad_media`, or those of `safe_path`.
        """
        return self._file(value, where, kind="image")

    def video(self, value: object, where: str) -> Media:
        """Encoded bytes, the checked path of a file or a folder of frames, or the frames in order.

        Raises:
            RowError: reason `missing_video`, `empty_file`, `bad_media`, or those of `safe_path`.
        """
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return tuple(self._file(frame, where, kind="video") for frame in value)
        return self._file(value, where, kind="video")

    def _file(self, value: object, where: str, *, kind: str) -> bytes | str:
        column = where.rpartition(" ")[2]
        if isinstance(value, Mapping):  # the stored form of a `datasets` Image or Video
            value = next(
                (value[key] for key in ("bytes", "path", "url") if not is_missing(value.get(key))), None
            )
        if value is None:
            message = explain(where, got=None, expected=f"{'an' if kind == 'image' else 'a'} {kind}")
            raise FieldError(message, f"missing_{kind}", column)
        if isinstance(value, FirstOf):
            return self._first(value, where)
        if isinstance(value, str) and (value.startswith("data:") or len(value) > _LONGEST_PATH):
            value = _decoded(value, where)
        if isinstance(value, bytes | bytearray | memoryview):
            if not len(value):
                raise FieldError(
                    explain(where, got="0 bytes", expected=f"an encoded {kind}"), "empty_file", column
                )
            return bytes(value)
        if isinstance(value, str):
            path = value.removeprefix("file://")
            return safe_path(path, root=self.root, where=where, allow_outside=self.allow_outside)
        message = explain(where, got=type(value).__name__, expected="encoded bytes or a path")
        raise FieldError(message, "bad_media", column)

    def _first(self, value: FirstOf, where: str) -> str:
        paths = [
            safe_path(path, root=self.root, where=where, allow_outside=self.allow_outside)
            for path in value.paths
        ]
        return next((path for path in paths if os.path.exists(path)), paths[0])


def _decoded(text: str, where: str) -> bytes:
    """The bytes of a base64 text, with or without a `data:` address around it."""
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        message = (
            f"{where}: got {len(text)} characters that are no base64 ({error}), expected an encoded file."
        )
        raise FieldError(message, "bad_media", where.rpartition(" ")[2]) from error


def video_frames(media: Media, *, where: str) -> tuple[bytes | str, ...]:
    """The frames of a video that lies as images, in order; () for a file that has to be decoded.

    Frames in a folder are ordered by the numbers in their names (`frame_2` before `frame_10`).

    Args:
        media: as a row has it.
        where: file, row and field, for messages.

    Raises:
        RowError: reason `missing_file` (nothing there), `no_frames` (a folder without images).
    """
    if isinstance(media, tuple):
        return media
    if isinstance(media, bytes) or os.path.isfile(media):
        return ()
    if not os.path.isdir(media):
        message = f"{where}: no such video: {media}. Is it relative to another folder? Set root."
        raise FieldError(message, "missing_file", where.rpartition(" ")[2])
    frames = frame_files(media)
    if not frames:
        message = f"{where}: got the folder {media} without images, expected the frames of a video."
        raise FieldError(message, "no_frames", where.rpartition(" ")[2])
    return frames

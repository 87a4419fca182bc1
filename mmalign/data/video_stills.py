"""Clips that are pictures: animated GIF, WebP and PNG (read by Pillow), folders and lists of frames."""

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from PIL import Image

from mmalign.batch import Media
from mmalign.data.config import ImageLimits
from mmalign.data.media import check_bytes, damage_reported, decode_image, read_media, to_rgb
from mmalign.data.video_codecs import Head, Picture
from mmalign.data.video_structure import video_ending
from mmalign.data.video_timeline import Timeline, even_timeline, held_timeline
from mmalign.errors import RowError, explain

__all__ = [
    "FRAME_ENDINGS",
    "AnimatedClip",
    "FramesClip",
    "check_clip_files",
    "clip_contents",
    "clip_ending",
    "copy_clip",
    "frame_files",
]

FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Endings of files that count as frames in a folder."""

_UNSAID_MILLISECONDS = 100
"""How long browsers show a picture of an animation that says 0."""


def frame_files(folder: str) -> tuple[str, ...]:
    """Paths of the frames in a folder, ordered by the numbers in their names (`frame_2` before `frame_10`).

    Raises:
        OSError: the folder cannot be read.
    """
    names = [name for name in os.listdir(folder) if name.lower().endswith(FRAME_ENDINGS)]
    return tuple(os.path.join(folder, name) for name in sorted(names, key=_natural))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers inside names by value."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part
    ]


def check_clip_files(media: Media, *, where: str, max_bytes: int) -> None:
    """Refuse a clip whose files are not all there, without reading them.

    Raises:
        RowError: reason `no_frames`, or those of `mmalign.data.media.check_bytes`.
    """
    if isinstance(media, str) and os.path.isdir(media):
        media = frame_files(media)
    if not media and isinstance(media, tuple):
        message = explain(where, got="[a folder without images]", expected="frames of a clip")
        raise RowError(message, reason="no_frames")
    for part in media if isinstance(media, tuple) else (media,):
        check_bytes(part, where=where, max_bytes=max_bytes, kind="video")


def clip_contents(media: Media) -> Iterator[bytes]:
    """Everything that tells one clip from another, in pieces; each file behind its length.

    Raises:
        OSError: a file cannot be read.
    """
    if isinstance(media, bytes):
        yield len(media).to_bytes(8, "little")
        yield media
    elif isinstance(media, str) and not os.path.isdir(media):
        yield os.stat(media).st_size.to_bytes(8, "little")
        with open(media, "rb") as file:
            while piece := file.read(2**20):
                yield piece
    else:
        for part in frame_files(media) if isinstance(media, str) else media:
            yield from clip_contents(part)


def clip_ending(media: bytes | str) -> str:
    """The ending of a clip's file; "" for a folder of frames."""
    if isinstance(media, bytes):
        return video_ending(media)
    return "" if os.path.isdir(media) else Path(media).suffix.lower()


def copy_clip(media: bytes | str, path: Path) -> None:
    """Write a clip's file, or a folder of its frames in order.

    Raises:
        OSError: it cannot be read or written.
    """
    if isinstance(media, bytes):
        path.write_bytes(media)
    elif os.path.isdir(media):
        path.mkdir()
        for place, frame in enumerate(frame_files(media)):
            shutil.copyfile(frame, path / f"{place:06d}{Path(frame).suffix.lower()}")
    else:
        shutil.copyfile(media, path)


class AnimatedClip:
    """A GIF, WebP or PNG that moves.

    Args:
        file: its bytes.
        where: file, row and field, for messages.
        max_pixels: of a picture.
    """

    def __init__(self, file: BufferedIOBase, *, where: str, max_pixels: int) -> None:
        self._file, self._where, self._max_pixels = file, where, max_pixels
        self.notes: set[str] = set()
        with self._opened() as image:
            self.head = Head(str(image.format), str(image.format), image.height, image.width)
            self._count = int(getattr(image, "n_frames", 1))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        self._file.seek(0)
        try:
            with (
                damage_reported(self._where, "a file that is no animation"),
                Image.open(cast(IO[bytes], self._file), formats=("GIF", "WEBP", "PNG")) as image,
            ):
                if image.width * image.height > self._max_pixels:
                    message = explain(
                        self._where,
                        got=f"[{image.width} x {image.height} pixels]",
                        expected=f"at most {self._max_pixels} in a frame",
                        do="Raise data.video.max_pixels if the clip is real.",
                    )
                    raise RowError(message, reason="too_many_pixels")
                yield image
        except RowError as error:
            reason = _REASONS.get(error.reason)
            if reason is None:
                raise
            raise RowError(str(error), reason=reason) from error

    def timeline(self) -> Timeline:
        """When its pictures are shown; one that says 0 milliseconds is shown for 100, as browsers do.

        Raises:
            RowError: reason `damaged_video`.
        """
        lasting = []
        with self._opened() as image:
            for place in range(self._count):
                image.seek(place)
                image.load()  # WebP says how long a picture lasts when it decodes it
                lasting.append(round(float(image.info.get("duration", 0)) * 1_000))
        if not all(time > 0 for time in lasting):
            self.notes.add("no_timestamps")
        lasting = [time if time > 0 else 1_000 * _UNSAID_MILLISECONDS for time in lasting]
        # GIF counts hundredths of a second, the others thousandths.
        tick = 10_000 if self.head.container == "GIF" else 1_000
        if any(time % tick for time in lasting):
            tick = 1
        return held_timeline([time // tick for time in lasting], Fraction(tick, 1_000_000))

    def pictures(self, keys: Collection[int] | None = None) -> Iterator[Picture]:
        """Its pictures in order, of some places only or all.

        Raises:
            RowError: reason `damaged_video` or `truncated_video`.
        """
        last = self._count - 1 if keys is None else max(keys, default=-1)
        with self._opened() as image:
            for place in range(last + 1):
                image.seek(place)
                image.load()
                if keys is None or place in keys:
                    clear = _is_transparent(image)
                    yield Picture(place, np.asarray(to_rgb(image)), clear)


_REASONS = {
    "not_an_image": "no_video_stream",
    "damaged_image": "damaged_video",
    "truncated_image": "truncated_video",
}
"""Reasons of images to those of clips."""


def _is_transparent(image: Image.Image) -> bool:
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return False
    return bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


class FramesClip:
    """Frames as images of their own, all of one size.

    Args:
        frames: encoded bytes or paths, in order.
        where: file, row and field, for messages.
        limits: of each.
        fps: frames per second; None where nobody says.
    """

    def __init__(
        self, frames: Sequence[bytes | str], *, where: str, limits: ImageLimits, fps: Fraction | None
    ) -> None:
        self._frames, self._where, self._limits = frames, where, limits
        self._fps = fps
        self.notes: set[str] = set() if fps is not None else {"no_timestamps"}
        if not frames:
            message = explain(where, got="[no frames]", expected="images of a clip, in order")
            raise RowError(message, reason="no_frames")
        first = self._decoded(0).values
        self.head = Head("frames", "images", *first.shape[:2])

    def _decoded(self, place: int) -> Picture:
        where = f"{self._where} frame {place}"
        data = read_media(self._frames[place], where=where, max_bytes=self._limits.max_bytes)
        try:
            image = decode_image(data, where=where, limits=self._limits).image
        except RowError as error:
            raise RowError(str(error), reason=_REASONS.get(error.reason, error.reason)) from error
        return Picture(place, np.asarray(image))

    def timeline(self) -> Timeline:
        """Evenly spaced frames."""
        return even_timeline(len(self._frames), self._fps or UNSAID_FPS)

    def pictures(self, keys: Collection[int] | None = None) -> Iterator[Picture]:
        """Frames in order, of some places only or all.

        Raises:
            RowError: reason `mixed_sizes`, or what `decode_image` says is wrong with a frame.
        """
        size = (self.head.height, self.head.width)
        for place in range(len(self._frames)) if keys is None else sorted(keys):
            picture = self._decoded(place)
            if picture.values.shape[:2] != size:
                message = explain(
                    f"{self._where} frame {place}",
                    got=f"[{picture.values.shape[:2]} pixels]",
                    expected=f"{size} as of frame 0",
                )
                raise RowError(message, reason="mixed_sizes")
            yield picture


UNSAID_FPS = Fraction(8)
"""Of frames, where neither the row, nor the settings, nor who asks for them says."""

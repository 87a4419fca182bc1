"""Clips opened and looked at, before their frames are taken; every check that needs no decoding.

Everything that makes a clip unusable ends in a `RowError` with a reason: missing, empty, damaged and cut-off
files, files without moving pictures, clips too long, too short or too large. What is only suspicious (a
varying frame rate, a rotation mark, transparency) is dealt with, and noted for whoever counts.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path

from mmalign.batch import Media
from mmalign.data.config import ImageLimits, VideoLimits
from mmalign.data.media import check_bytes
from mmalign.data.video_codecs import FFmpegClip, Picture
from mmalign.data.video_stills import AnimatedClip, FramesClip, frame_files
from mmalign.data.video_structure import ENDINGS, cut_off, file_kind
from mmalign.data.video_timeline import Timeline, fraction_of
from mmalign.errors import RowError, explain

__all__ = [
    "VIDEO_NOTES",
    "ClipFile",
    "ShownClip",
    "check_clip_size",
    "describe_clip",
    "noted",
    "nothing_decodable",
    "open_clip",
]

VIDEO_NOTES: dict[str, str] = {
    "variable_fps": "frames are shown for different times: the nearest in time are taken",
    "no_timestamps": "no times in the file: frames count as evenly spaced",
    "rotated": "a rotation mark, as of phones; it is applied",
    "tilted": "a rotation mark of no quarter turn; it is not applied",
    "not_square": "pixels that are not square; the picture is stretched as players do",
    "transparent": "parts one can see through; white is laid under them",
    "interlaced": "two half pictures in each frame: combs at moving edges",
    "wide_range": "high dynamic range, which looks pale as 8 bits",
    "several_streams": "several video streams; the first is taken",
    "wrong_ending": "the file's ending is that of another format",
    "odd_size": "an odd number of pixels in a row or column: many codecs cut one off",
    "repeated_frames": "fewer frames per second than are wanted: some are taken twice",
    "lost_frames": "some of its frames cannot be decoded",
    "still": "nothing moves: all frames that were looked at are equal",
}
"""Notes and what they mean."""


@dataclass(frozen=True)
class ShownClip:
    """What there is to see in a clip.

    Args:
        seconds: its length.
        num_frames: of the file.
        fps: frames per second, in the mean where they vary.
        height: pixels, as players show it.
        width: pixels, as players show it.
        container: format of the file, as its decoder calls it.
        coding: of the pictures in it.
        notes: what is suspicious about it, names of `VIDEO_NOTES`.
    """

    seconds: float
    num_frames: int
    fps: float
    height: int
    width: int
    container: str
    coding: str
    notes: tuple[str, ...] = ()


ClipFile = FFmpegClip | AnimatedClip | FramesClip
"""An opened clip: its `head`, its `timeline()`, its `pictures(keys)`, and `notes` of what was noticed."""


@contextlib.contextmanager
def open_clip(
    media: Media, *, where: str, limits: VideoLimits, stored_fps: float | None = None
) -> Iterator[tuple[ClipFile, Timeline]]:
    """An opened clip and its timeline, if `limits` allow it; nothing but what that takes is decoded.

    Args:
        media: encoded bytes, the path of a file or of a folder of frames, or the frames in order.
        where: file, row and field, for messages.
        limits: what is refused.
        stored_fps: of frames that lie as images; None takes `limits.frames_fps`.

    Raises:
        MissingExtraError: PyAV is needed and not installed.
        RowError: reasons of `mmalign.data.media.read_media`; `no_video_stream`, `damaged_video`,
            `truncated_video`, `no_frames`, `mixed_sizes`, `bad_frame_rate`, `too_long`, `too_short`,
            `too_many_frames`, `too_many_pixels`, `too_small` or `extreme_aspect`.
    """
    with contextlib.ExitStack() as stack:
        clip = _opened(media, where, limits, stored_fps, stack)
        check_clip_size(clip.head.height, clip.head.width, where, limits)
        timeline = clip.timeline()
        _check_times(timeline, where, limits)
        if not timeline.steady:
            clip.notes.add("variable_fps")
        yield clip, timeline


def _opened(
    media: Media,
    where: str,
    limits: VideoLimits,
    stored_fps: float | None,
    stack: contextlib.ExitStack,
) -> ClipFile:
    """The reader for a medium; its file is closed with the stack."""
    if isinstance(media, str) and os.path.isdir(media):
        media = frame_files(media)
    if isinstance(media, tuple):
        if len(media) > limits.max_frames:
            raise _too_many_frames(len(media), where, limits)
        sizes = ImageLimits(
            max_pixels=limits.max_pixels,
            min_side=limits.min_side,
            max_aspect_ratio=limits.max_aspect_ratio,
            max_bytes=limits.max_bytes,
        )
        told = stored_fps if stored_fps is not None else limits.frames_fps
        rate = None if told is None else fraction_of(told)
        return FramesClip(media, where=where, limits=sizes, fps=rate)
    size = check_bytes(media, where=where, max_bytes=limits.max_bytes, kind="video")
    file: BufferedIOBase = stack.enter_context(
        BytesIO(media) if isinstance(media, bytes) else _file(media, where)
    )
    kind = file_kind(file.read(512))
    missing = cut_off(file, kind, size)
    if missing:
        message = f"{where}: the clip is cut off: it lacks {missing}. Copy or download it again."
        raise RowError(message, reason="truncated_video")
    animated = kind in ("gif", "webp", "png")
    reader: type[AnimatedClip | FFmpegClip] = AnimatedClip if animated else FFmpegClip
    try:
        clip = reader(file, where=where, max_pixels=limits.max_pixels)
    except RowError as error:
        if kind or error.reason != "damaged_video":
            raise
        file.seek(0)
        got = f"[a file that starts with {file.read(8)!r}]"
        message = explain(where, got=got, expected="a clip (mp4, webm, gif, frames ...)")
        raise RowError(message, reason="no_video_stream") from error
    ending = Path(media).suffix.lower() if isinstance(media, str) else ""
    if kind and ending and ending not in ENDINGS[kind]:
        clip.notes.add("wrong_ending")
    return clip


def _file(path: str, where: str) -> BufferedIOBase:
    try:
        return open(path, "rb")
    except OSError as error:
        message = f"{where}: {path} cannot be read ({error.strerror or error})."
        raise RowError(message, reason="unreadable_file") from error


def check_clip_size(height: int, width: int, where: str, limits: VideoLimits) -> None:
    """Refuse frames that are too large, too small, or slivers.

    Raises:
        RowError: reason `too_many_pixels`, `too_small` or `extreme_aspect`.
    """
    shown = f"[{width} x {height} pixels]"
    if width * height > limits.max_pixels:
        message = explain(
            where,
            got=shown,
            expected=f"at most {limits.max_pixels} in a frame",
            do="Raise data.video.max_pixels if the clip is real.",
        )
        raise RowError(message, reason="too_many_pixels")
    if min(height, width) < limits.min_side:
        message = explain(where, got=shown, expected=f"at least {limits.min_side} on the shorter side")
        raise RowError(message, reason="too_small")
    if max(height, width) > limits.max_aspect_ratio * min(height, width):
        message = explain(
            where,
            got=shown,
            expected=f"a longer side of at most {limits.max_aspect_ratio:g} times the shorter one",
            do="Raise data.video.max_aspect_ratio to accept it.",
        )
        raise RowError(message, reason="extreme_aspect")


def _too_many_frames(count: int, where: str, limits: VideoLimits) -> RowError:
    message = explain(
        where,
        got=f"[{count} frames]",
        expected=f"at most {limits.max_frames}",
        do="Raise data.video.max_frames if the clip is real.",
    )
    return RowError(message, reason="too_many_frames")


def _check_times(timeline: Timeline, where: str, limits: VideoLimits) -> None:
    seconds, count = float(timeline.seconds), len(timeline)
    if count < limits.min_frames:
        message = explain(
            where, got=f"[{count} frame{'s' * (count != 1)}]", expected=f"at least {limits.min_frames}"
        )
        raise RowError(message, reason="too_short")
    if count > limits.max_frames:
        raise _too_many_frames(count, where, limits)
    if timeline.fps > limits.max_fps:
        message = explain(
            where,
            got=f"[{float(timeline.fps):.4g} frames per second]",
            expected=f"at most {limits.max_fps:g}",
            do="The head of the file is damaged.",
        )
        raise RowError(message, reason="bad_frame_rate")
    if seconds > limits.max_seconds:
        message = explain(
            where,
            got=f"[{seconds:.4g} seconds]",
            expected=f"at most {limits.max_seconds:g}",
            do="Raise data.video.max_seconds if the clip is real.",
        )
        raise RowError(message, reason="too_long")
    if seconds < limits.min_seconds:
        message = explain(
            where,
            got=f"[{seconds:.3g} seconds]",
            expected=f"at least {limits.min_seconds:g}",
            do="Lower data.video.min_seconds if this is no accident.",
        )
        raise RowError(message, reason="too_short")


def describe_clip(
    media: Media, *, where: str, limits: VideoLimits, stored_fps: float | None = None
) -> ShownClip:
    """Length, rate and size of a clip; its first frame is decoded, the others are not.

    Args:
        media: as `open_clip`.
        where: file, row and field, for messages.
        limits: what is refused.
        stored_fps: of frames that lie as images.

    Raises:
        MissingExtraError: as `open_clip`.
        RowError: as `open_clip`.
    """
    with open_clip(media, where=where, limits=limits, stored_fps=stored_fps) as (clip, timeline):
        first = next(clip.pictures({timeline.keys[0]}), None) or next(clip.pictures(), None)
        if first is None:
            raise nothing_decodable(where)
        height, width = first.values.shape[:2]
        check_clip_size(height, width, where, limits)
        return ShownClip(
            seconds=float(timeline.seconds),
            num_frames=len(timeline),
            fps=float(timeline.fps),
            height=height,
            width=width,
            container=clip.head.container,
            coding=clip.head.coding,
            notes=noted(clip, first),
        )


def nothing_decodable(where: str) -> RowError:
    """The error of a clip whose every frame is lost."""
    message = explain(where, got="[no frame that can be decoded]", expected="a clip")
    return RowError(message, reason="no_frames")


def noted(clip: ClipFile, first: Picture | None) -> tuple[str, ...]:
    """What was noticed about a clip, with its first picture, in the order of `VIDEO_NOTES`."""
    found = set(clip.notes)
    if first is not None:
        found |= {"odd_size"} if any(side % 2 for side in first.values.shape[:2]) else set()
        found |= {"transparent"} if first.transparent else set()
    return tuple(name for name in VIDEO_NOTES if name in found)

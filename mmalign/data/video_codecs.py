"""Video files opened by FFmpeg (PyAV, the extra `video`): time stamps first, then the wanted pictures.

Nothing is decoded to learn the times, and only wanted pictures are turned to RGB. What is acceptable is
decided in `video_media`.
"""

import contextlib
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedIOBase
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data.video_timeline import Timeline, even_timeline, timeline_of
from mmalign.errors import MissingExtraError, RowError, explain

__all__ = ["FFmpegClip", "Head", "Picture", "opened_video", "video_library"]

ALONE = {"protocol_whitelist": "none"}
"""No protocol has this name: a playlist or manifest cannot open the files or addresses it lists."""

_CONTAINERS = frozenset(
    {
        *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "asf", "ogg", "gif"),
        *(
            "apng",
            "mpeg",
            "mpegts",
            "mpegvideo",
            "h264",
            "hevc",
            "av1",
            "obu",
            "ivf",
            "nut",
            "mxf",
            "dv",
            "m4v",
        ),
        *("yuv4mpegpipe", "wtv", "rm", "swf"),
    }
)
"""FFmpeg's names of formats that hold clips; its others make clips of texts, playlists and pictures."""

_WIDE_RANGE = frozenset({16, 18})
"""FFmpeg's numbers of the transfer curves PQ and HLG."""

_DAMAGE = (ValueError, IndexError, KeyError, MemoryError, OverflowError, ArithmeticError, struct.error)
"""What damaged files make PyAV raise besides its own errors."""


@dataclass(frozen=True)
class Head:
    """What a clip's file says of itself.

    Args:
        container: format of the file, as its decoder calls it.
        coding: of the pictures in it.
        height: pixels, as stored.
        width: pixels, as stored.
    """

    container: str
    coding: str
    height: int
    width: int


@dataclass(frozen=True)
class Picture:
    """A decoded frame: upright, RGB, square pixels.

    Args:
        key: what the timeline calls it.
        values: its pixels.
        transparent: whether something showed through, and became white.
    """

    key: int
    values: NDArray[np.uint8]
    transparent: bool = False


def video_library() -> Any:
    """PyAV.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        message = explain(
            "video files",
            got="[PyAV is not installed]",
            expected="it, or the frames of the clip as images",
            do="pip install 'mmalign[video]'",
        )
        raise MissingExtraError(message) from error
    return av


class NoVideoError(ValueError):
    """The file has no pictures that move, or none that can be decoded.

    Args:
        message: why, in words.
        reason: name under which such rows are counted.
    """

    def __init__(self, message: str, reason: str = "no_video_stream") -> None:
        super().__init__(message)
        self.reason = reason


@contextlib.contextmanager
def opened_video(file: BufferedIOBase, *, max_pixels: int | None = None) -> Iterator[tuple[Any, Any]]:
    """(Container, first stream of moving pictures) of a file, and of nothing but its bytes.

    Args:
        file: read from its beginning.
        max_pixels: of a picture; FFmpeg makes no larger ones.

    Raises:
        MissingExtraError: PyAV is not installed.
        NoVideoError: a format or a coding that is no video.
        av.FFmpegError: damage.
    """
    av = video_library()
    file.seek(0)
    with av.open(file, options=ALONE, metadata_errors="replace") as container:
        if not set(container.format.name.split(",")) & _CONTAINERS:
            message = f"no format of clips: {container.format.name}"
            raise NoVideoError(message)
        pictures = av.stream.Disposition.attached_pic
        streams = [one for one in container.streams.video if not one.disposition & pictures]
        if not streams:
            message = "no video stream" + (", sound alone" if container.streams.audio else "")
            raise NoVideoError(message)
        stream = streams[0]
        if stream.codec_context is None:
            message = f"no decoder for its pictures (stream {stream.index})"
            raise NoVideoError(message, "unsupported_coding")
        if max_pixels is not None:
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
        stream.thread_type = "AUTO"
        yield container, stream


class FFmpegClip:
    """One video file.

    Args:
        file: its bytes.
        where: file, row and field, for messages.
        max_pixels: of a picture.

    `notes` grows while pictures are decoded.
    """

    def __init__(self, file: BufferedIOBase, *, where: str, max_pixels: int) -> None:
        self._file, self._where, self._max_pixels = file, where, max_pixels
        self._by_place = (
            False  # whether pictures are counted, because their time stamps do not tell them apart
        )
        self.notes: set[str] = set()
        with self._opened() as (container, stream):
            context = stream.codec_context
            self.head = Head(container.format.name, context.name, int(context.height), int(context.width))
            given = (stream.average_rate, stream.guessed_rate, context.framerate)
            self._rates = tuple(dict.fromkeys(Fraction(rate) for rate in given if rate and rate > 0))
            self._told_frames = int(stream.frames or 0)
            self._tick = Fraction(stream.time_base) if stream.time_base else Fraction(0)
            if int(context.color_trc or 0) in _WIDE_RANGE:
                self.notes.add("wide_range")
            if len(container.streams.video) > 1:
                self.notes.add("several_streams")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The file, with every kind of damage as a `RowError`."""
        av = video_library()
        try:
            with opened_video(self._file, max_pixels=self._max_pixels) as found:
                yield found
        except RowError:
            raise
        except NoVideoError as error:
            message = explain(self._where, got=f"[{error}]", expected="a clip (mp4, webm, gif, frames ...)")
            raise RowError(message, reason=error.reason) from error
        except (av.FFmpegError, *_DAMAGE) as error:
            reason = str(getattr(error, "strerror", None) or error).rpartition("] ")[2]
            raise self.damaged(reason or type(error).__name__) from error

    def damaged(self, reason: str) -> RowError:
        """The error of a clip that cannot be decoded as it should."""
        message = f"{self._where}: the clip is damaged ({reason.rstrip('.')}). Copy or download it again."
        return RowError(message, reason="damaged_video")

    def timeline(self) -> Timeline:
        """When its frames are shown, by the time stamps of its packets where those are of any use.

        Raises:
            RowError: reason `damaged_video` or `no_frames`.
        """
        if not self._by_place:
            stamps: list[int | None] = []
            last = (-1, 0)
            with self._opened() as (container, stream):
                for packet in container.demux(stream):
                    if packet.size and not packet.is_discard:
                        stamps.append(packet.pts)
                        last = max(last, (-1 if packet.pts is None else packet.pts, packet.duration or 0))
            self._require(len(stamps))
            given = [stamp for stamp in stamps if stamp is not None]
            if len(set(given)) == len(stamps) and self._tick:
                return timeline_of(sorted(given), self._tick, last=last[1], rates=self._rates)
        return self._counted()

    def _require(self, count: int) -> None:
        if not count:
            message = explain(self._where, got="[no frames]", expected="a clip", do="Write the file again.")
            raise RowError(message, reason="no_frames")
        if count < 0.9 * self._told_frames - 1:
            reason = f"{count} of {self._told_frames} frames are there"
            raise self.damaged(reason)

    def _counted(self) -> Timeline:
        """The timeline of all frames that can be decoded, called by their numbers."""
        self._by_place = True
        stamps = []
        with self._opened() as (container, stream):
            for frame in container.decode(stream):
                stamps.append(frame.pts)
                last = frame.duration or 0
        self._require(len(stamps))
        places = range(len(stamps))
        increasing = None not in stamps and all(a < b for a, b in pairwise(stamps))
        if increasing and self._tick:
            found = timeline_of(stamps, self._tick, last=last, rates=self._rates)
            return Timeline(tuple(places), found.moments, found.seconds, found.steady)
        self.notes.add("no_timestamps")
        if not self._rates:
            message = explain(self._where, got="[no frame rate]", expected="time stamps or a rate")
            raise RowError(message, reason="bad_frame_rate")
        return even_timeline(len(stamps), self._rates[0])

    def pictures(self, keys: Collection[int] | None = None) -> Iterator[Picture]:
        """Decoded frames in the order in which they are shown; those of some keys only, or all.

        Raises:
            RowError: reason `damaged_video` or `mixed_sizes`.
        """
        left = None if keys is None else set(keys)
        first: tuple[int, int] | None = None
        with self._opened() as (container, stream):
            for place, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    reason = f"frame {place} is corrupt"
                    raise self.damaged(reason)
                size = (int(frame.height), int(frame.width))
                first = first or size
                if size != first:
                    message = explain(
                        self._where, got=f"[frames of {first} and {size} pixels]", expected="one size"
                    )
                    raise RowError(message, reason="mixed_sizes")
                key = place if self._by_place or frame.pts is None else int(frame.pts)
                if left is None or key in left:
                    yield self._picture(key, frame, stream)
                    if left is not None:
                        left.discard(key)
                        if not left:
                            return

    def _picture(self, key: int, frame: Any, stream: Any) -> Picture:
        alpha = any(component.is_alpha for component in frame.format.components)
        if frame.interlaced_frame:
            self.notes.add("interlaced")
        ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        wide, matrix = frame.width, frame.side_data.get("DISPLAYMATRIX")
        if ratio and ratio != 1 and ratio > 0:
            self.notes.add("not_square")
            # Two steps: an unreasonable shape is refused by its size, not by the scaler.
            wide = max(1, min(round(frame.width * Fraction(ratio)), 64 * frame.width))
            if wide * frame.height > self._max_pixels:
                reason = f"pixels of shape {ratio}"
                raise self.damaged(reason)
        if wide != frame.width:
            frame = frame.reformat(width=wide, height=frame.height)
        values = frame.to_ndarray(format="rgba" if alpha else "rgb24")
        transparent = False
        if alpha:
            values, transparent = over_white(values)
        return Picture(key, values if matrix is None else self._turned(values, bytes(matrix)), transparent)

    def _turned(self, values: NDArray[np.uint8], matrix: bytes) -> NDArray[np.uint8]:
        """The picture as players show it: by the matrix that phones write into their clips."""
        numbers = struct.unpack("=9i", matrix[:36])
        signs = tuple((value > 2**15) - (value < -(2**15)) for value in (*numbers[:2], *numbers[3:5]))
        if signs == (1, 0, 0, 1):
            return values
        turn = _TURNS.get(signs)
        if turn is None:
            self.notes.add("tilted")
            return values
        self.notes.add("rotated")
        swap, down, right = turn
        values = values.transpose(1, 0, 2) if swap else values
        return np.ascontiguousarray(values[:: -1 if down else 1, :: -1 if right else 1])


# (a, b, c, d) of x' = a x + c y, y' = b x + d y, with y downwards: (transposed, flipped down, flipped right).
_TURNS = {
    (1, 0, 0, -1): (False, True, False),
    (-1, 0, 0, 1): (False, False, True),
    (-1, 0, 0, -1): (False, True, True),
    (0, 1, 1, 0): (True, False, False),
    (0, 1, -1, 0): (True, False, True),
    (0, -1, 1, 0): (True, True, False),
    (0, -1, -1, 0): (True, True, True),
}


def over_white(values: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
    """(RGB over white, whether anything was transparent) of RGBA."""
    alpha = values[..., 3:].astype(np.float32) / 255.0
    if bool((alpha == 1.0).all()):
        return np.ascontiguousarray(values[..., :3]), False
    mixed = values[..., :3].astype(np.float32) * alpha + 255.0 * (1.0 - alpha)
    return np.rint(mixed).astype(np.uint8), True

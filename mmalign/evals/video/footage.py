"""A clip under evaluation: all of its frames, as they are in the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from mmalign.data.config import VideoLimits
from mmalign.data.video_media import decode_clip
from mmalign.errors import ConfigError, explain

__all__ = ["FRAMES_FPS", "Footage", "file_of", "read_footage"]

_LIMITS = VideoLimits(min_seconds=0.0, min_side=1, max_aspect_ratio=64.0)
FRAMES_FPS = 8.0
"""Of folders of frames: VBench takes them for thinned already."""


@dataclass(frozen=True)
class Footage:
    """A decoded clip.

    Args:
        frames: RGB, upright.
        fps: frames per second.
    """

    frames: UInt8[Tensor, "frame 3 height width"]
    fps: float

    def thinned(self, step: int) -> "Footage":
        """Every so many frames one, from the first on."""
        return Footage(self.frames[::step], self.fps / step)


def read_footage(media: str | Path | bytes) -> Footage:
    """Every frame of a clip.

    Args:
        media: a file, a folder of frames, or the bytes of a file.

    Raises:
        MissingExtraError: PyAV is needed, and not installed.
        RowError: it cannot be read, or has fewer than two frames.
    """
    where = "a clip" if isinstance(media, bytes) else str(media)
    given = media if isinstance(media, bytes) else str(media)
    clip = decode_clip(given, where=where, limits=_LIMITS, stored_fps=FRAMES_FPS)
    return Footage(clip.frames, clip.fps)


def file_of(media: Sequence[object]) -> str | Path | bytes:
    """The file or the bytes of an answer's clip.

    Raises:
        ConfigError: it is something else.
    """
    found = media[0] if media else None
    if not isinstance(found, str | Path | bytes):
        got = type(found).__name__
        raise ConfigError(explain("answer", got=got, expected="the file or the bytes of a clip"))
    return found

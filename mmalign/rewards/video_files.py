"""Chosen frames of a video file, decoded by PyAV (the extra `video`)."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.data.video_codecs import opened_video, video_library
from mmalign.errors import RowError, explain
from mmalign.rewards.frames import even_frames, num_frames

__all__ = ["read_frames", "sampled_frames"]

Choose = Callable[[int, float], Sequence[int]]
"""(number of frames, frames per second) to the indices of those that are read."""


def sampled_frames(path: str | Path, fps: float = 2.0) -> UInt8[Tensor, "frame 3 height width"]:
    """Frames at `fps` as Qwen2-VL's reader takes them: at least 4, an even number, at even distances.

    Raises:
        MissingExtraError: PyAV is not installed.
        RowError: see `read_frames`; `too_few_frames`, the clip has one frame.
    """
    return read_frames(path, lambda total, rate: even_frames(total, num_frames(total, rate, fps)).tolist())


def read_frames(path: str | Path, choose: Choose) -> UInt8[Tensor, "frame 3 height width"]:
    """The chosen frames of a file's first video stream in RGB, in the order they were chosen.

    Only chosen frames are kept in memory. A file says how many frames it has; where it says nothing, or is
    wrong, it is decoded a second time with the number that was found. Rotation marks of phones are not
    applied, as in the readers that video rewards were trained with.

    Args:
        path: the file. Nothing but its bytes is read: a playlist in it cannot name other files or addresses.
        choose: which frames.

    Raises:
        MissingExtraError: PyAV is not installed.
        RowError: no such file (`missing_file`), or it cannot be decoded (`unreadable_file`).
    """
    path = Path(path)
    if not path.is_file():
        message = explain(str(path), got="[no such file]", expected="a video file")
        raise RowError(message, reason="missing_file")
    told, rate = _described(path)
    places = list(choose(told, rate)) if told > 1 else []
    kept, total = _decoded(path, frozenset(places))
    if not places or total != told:
        places = list(choose(total, rate))
        kept, total = _decoded(path, frozenset(places))
    return torch.from_numpy(np.stack([kept[place] for place in places])).permute(0, 3, 1, 2).contiguous()


def _described(path: Path) -> tuple[int, float]:
    """How many frames the file says it has (0 = it does not say), and how many a second."""
    with _opened(path) as (_, stream):
        rate: Fraction | None = stream.average_rate or stream.guessed_rate
        told = int(stream.frames)
    if not rate:
        raise _unreadable(path, "no frame rate")
    return told, float(rate)


def _decoded(path: Path, wanted: frozenset[int]) -> tuple[dict[int, np.ndarray], int]:
    """Wanted frames by index, [height, width, 3], and how many frames there are."""
    kept: dict[int, np.ndarray] = {}
    total = 0
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            if total in wanted:
                kept[total] = frame.to_ndarray(format="rgb24")
            total += 1
    if not total:
        raise _unreadable(path, "no frames")
    if len({frame.shape for frame in kept.values()}) > 1:
        raise _unreadable(path, "frames of several sizes")
    return kept, total


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(Container, video stream) of a file; damage is a `RowError`."""
    av = video_library()
    try:
        with path.open("rb") as file, opened_video(file) as found:
            yield found
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, RowError):
            raise
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, got: str) -> RowError:
    return RowError(explain(str(path), got=f"[{got}]", expected="a video file"), reason="unreadable_file")

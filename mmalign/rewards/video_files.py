"""Chosen frames of a video file, decoded by PyAV (the extra `video`)."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.errors import MissingExtraError, RowError, explain
from mmalign.rewards.frames import even_frames, num_frames

__all__ = ["read_frames", "sampled_frames"]

Choose = Callable[[int, float], Sequence[int]]
"""(number of frames, frames per second) to the indices of those that are read."""

_ALONE = {"protocol_whitelist": "none"}
"""No protocol has this name: a playlist or manifest cannot open the files or addresses it lists."""


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
    av = _library()
    try:
        with path.open("rb") as file, av.open(file, options=_ALONE) as container:
            stream = _stream(container, path)
            rate: Fraction | None = stream.average_rate or stream.guessed_rate
            told = int(stream.frames)
    except (av.FFmpegError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not rate:
        raise _unreadable(path, "no frame rate")
    return told, float(rate)


def _decoded(path: Path, wanted: frozenset[int]) -> tuple[dict[int, np.ndarray], int]:
    """Wanted frames by index, [height, width, 3], and how many frames there are."""
    av = _library()
    kept: dict[int, np.ndarray] = {}
    total = 0
    try:
        with path.open("rb") as file, av.open(file, options=_ALONE) as container:
            stream = _stream(container, path)
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if total in wanted:
                    kept[total] = frame.to_ndarray(format="rgb24")
                total += 1
    except (av.FFmpegError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not total:
        raise _unreadable(path, "no frames")
    if len({frame.shape for frame in kept.values()}) > 1:
        raise _unreadable(path, "frames of several sizes")
    return kept, total


def _stream(container: Any, path: Path) -> Any:
    streams = container.streams.video
    if not streams:
        raise _unreadable(path, "no video stream")
    return streams[0]


def _unreadable(path: Path, got: str) -> RowError:
    return RowError(explain(str(path), got=f"[{got}]", expected="a video file"), reason="unreadable_file")


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        message = explain(
            "video files",
            got="[PyAV is not installed]",
            expected="it, or the clip's frames in Sample.frames",
            do="pip install 'mmalign[video]'",
        )
        raise MissingExtraError(message) from error
    return av

"""Scores of clips that need no network, as scorers: `mmalign.video.pair_making.exact:motion`, and so on.

They read frames alone, and none of them knows what a clip shows: a still picture is smooth, noise moves.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import RowError, explain
from mmalign.rewards.sample import Sample, to_pixels

__all__ = ["motion", "sharpness", "smoothness", "steadiness"]

_STEP = 1 / 8


def _clip(sample: Sample) -> Float[Tensor, "frame 3 height width"]:
    if not sample.frames:
        message = explain("Sample.frames", got="[none]", expected="the pictures of a clip, in order")
        raise RowError(message, reason="missing_media")
    return torch.stack([to_pixels(frame) for frame in sample.frames])


def _rate(sample: Sample) -> float:
    found: Any = sample.extras.get("fps")
    return float(found) if found else 1 / _STEP


def motion(samples: Sequence[Sample]) -> list[float]:
    """Mean change of a pixel within an eighth of a second, of 1 for black to white; 0 of one frame."""
    found = []
    for sample in samples:
        clip = _clip(sample)
        step = max(1, round(_rate(sample) * _STEP))
        moved = (clip[step:] - clip[:-step]).abs().mean() if len(clip) > step else clip.new_zeros(())
        found.append(float(moved))
    return found


def steadiness(samples: Sequence[Sample]) -> list[float]:
    """1 minus the mean change from frame to frame: VBench's temporal flickering, which a still clip wins."""
    found = []
    for sample in samples:
        clip = _clip(sample)
        found.append(1.0 - float((clip[1:] - clip[:-1]).abs().mean()) if len(clip) > 1 else 1.0)
    return found


def smoothness(samples: Sequence[Sample]) -> list[float]:
    """1 minus the mean distance of a frame from the mean of its neighbours; 1 of fewer than three frames."""
    found = []
    for sample in samples:
        clip = _clip(sample)
        off = (clip[1:-1] - (clip[:-2] + clip[2:]) / 2).abs().mean() if len(clip) > 2 else clip.new_zeros(())
        found.append(1.0 - float(off))
    return found


def sharpness(samples: Sequence[Sample]) -> list[float]:
    """Mean difference of neighbouring pixels, along both sides, over all frames."""
    found = []
    for sample in samples:
        clip = _clip(sample)
        across, down = clip.diff(dim=-1).abs().mean(), clip.diff(dim=-2).abs().mean()
        found.append(float(across + down) / 2)
    return found

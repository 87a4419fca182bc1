"""Picture sizes and frames of rewards built on Qwen2-VL: sides in whole patches, frames at even distances."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.errors import RowError, explain

__all__ = ["even_frames", "num_frames", "smart_resize"]

PATCH = 28
"""Pixels of a Qwen2-VL token's side: patches of 14, merged two by two."""

_LARGEST_RATIO = 200


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int = PATCH,
    min_pixels: int = 4 * PATCH * PATCH,
    max_pixels: int = 16384 * PATCH * PATCH,
) -> tuple[int, int]:
    """(height, width) near the picture's aspect ratio, both multiples of `factor`, area within the limits.

    Sides are rounded to the nearest multiple. If the area is then too large, both are scaled by
    sqrt(max_pixels / area) and rounded down; if too small, by sqrt(min_pixels / area) and rounded up. HPSv3
    uses min = max = 200 704, VideoReward 100 352 to 200 704 per frame.

    Raises:
        RowError: reason `bad_aspect_ratio`, one side is more than 200 times the other.

    Source: KwaiVGI/VideoAlign `vision_process.py`, as Qwen2-VL's processor.
    """
    if max(height, width) > _LARGEST_RATIO * min(height, width):
        message = explain(
            "picture",
            got=f"[{height} x {width}]",
            expected=f"a longer side of at most {_LARGEST_RATIO} times",
        )
        raise RowError(message, reason="bad_aspect_ratio")
    tall, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return tall, wide


def num_frames(
    total: int,
    video_fps: float,
    fps: float = 2.0,
    *,
    multiple: int = 2,
    smallest: int = 4,
    largest: int = 768,
) -> int:
    """How many frames of a clip are read at `fps`, a multiple of `multiple`.

    total / video_fps * fps, kept between `smallest` and `largest` and the clip's own length, then rounded to
    the nearest multiple.

    Raises:
        RowError: reason `too_few_frames`, the clip is shorter than `multiple` frames.

    Source: KwaiVGI/VideoAlign `vision_process.py`, `smart_nframes`.
    """
    if total < multiple:
        expected = f"at least {multiple}"
        raise RowError(explain("clip", got=f"[{total} frames]", expected=expected), reason="too_few_frames")
    lower = math.ceil(smallest / multiple) * multiple
    upper = math.floor(min(largest, total) / multiple) * multiple
    wanted = min(max(total / video_fps * fps, lower), upper)
    return round(wanted / multiple) * multiple


def even_frames(total: int, count: int) -> Int[Tensor, " frame"]:
    """Indices of `count` frames from the first to the last, at even distances, halves rounded to even.

    The distances are float32, as in the published code: near halves, float64 would pick other frames.

    Source: KwaiVGI/VideoAlign `vision_process.py`.
    """
    return torch.linspace(0, total - 1, count).round().long()

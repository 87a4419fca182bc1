"""A clip on a page: a small animation of it and its facts; or what is wrong with it."""

import base64
import html

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mmalign.batch import Media
from mmalign.data.config import VideoLimits
from mmalign.data.video_media import decode_clip, describe_clip
from mmalign.data.video_writers import encode_clip
from mmalign.errors import RowError

__all__ = ["moving_picture"]

_SIDE = 192
"""Longer side of the animation in pixels."""

_FPS = 8.0
_SECONDS = 5.0
"""Of the animation."""


def moving_picture(media: Media, where: str, limits: VideoLimits) -> str:
    """HTML of a clip: an animation of its first five seconds, its facts; or the problem."""
    try:
        shown = describe_clip(media, where=where, limits=limits)
        rate = min(_FPS, shown.fps)
        clip = decode_clip(media, where=where, limits=limits, fps=rate, seconds=_SECONDS, each=_small)
    except RowError as error:
        return f'<div class="problem">{html.escape(str(error))}</div>'
    encoded = base64.b64encode(encode_clip(clip.frames, clip.fps, container="webp", quality=20)).decode()
    facts = " · ".join(
        [
            f"{shown.seconds:.2f} s",
            f"{shown.num_frames} frames at {shown.fps:.4g} fps",
            f"{shown.width} x {shown.height}",
            *shown.notes,
        ]
    )
    return (
        f'<img alt="clip" loading="lazy" src="data:image/webp;base64,{encoded}">'
        f'<div class="facts">{html.escape(facts)}</div>'
    )


def _small(frame: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 smaller_height smaller_width"]:
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

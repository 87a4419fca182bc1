"""Base against aligned in the toy world of video, and its clips as pictures of a page."""

import base64

from jaxtyping import Float
from torch import Tensor

from mmalign.data.video_writers import clip_strip, encode_clip
from mmalign.toy.comparison import Paired
from mmalign.toy.report import png_base64
from mmalign.toy.video_reward import Score
from mmalign.toy.video_scenes import FPS

__all__ = ["AXES", "MotionComparison", "moving", "strip"]

AXES: tuple[tuple[str, str, str], ...] = (
    ("total", "total reward", "direction twice, then smoothness, identity and motion once"),
    ("direction", "direction", "cosine between the way gone and the way asked for, 0 below 0, per segment"),
    ("smoothness", "smoothness", "share of steps that neither leap nor jerk"),
    ("identity", "identity", "share of frames with the caption's shape and colour"),
    ("motion", "motion", "amount of motion against the caption's speed, the smaller by the larger"),
    ("right_ways", "right ways", "share of segments that go where the caption says"),
    ("pixels", "pixels per frame", "mean length of a step, whatever was asked for: 0 in a still clip"),
)
"""Numbers of a `Score`: name, title, meaning."""


class MotionComparison(Paired[Tensor, Score]):
    """Both models' clips of the same captions and their exact scores."""


def moving(clip: Float[Tensor, "frame 3 height width"]) -> str:
    """The clip as the text of a data address: an animated WebP, which browsers play as a picture."""
    return base64.b64encode(encode_clip(clip, FPS, container="webp", quality=5)).decode("ascii")


def strip(clip: Float[Tensor, "frame 3 height width"]) -> str:
    """Five frames from the first to the last, as the text of a data address of a PNG."""
    return png_base64(clip_strip(clip, count=5))

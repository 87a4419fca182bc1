"""What VBench measures of a clip once flows or features are there, and what needs neither."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.errors import ShapeError, explain

__all__ = [
    "Motion",
    "frame_interval",
    "frame_similarities",
    "judge_motion",
    "temporal_flickering",
    "top_flow",
]


def frame_interval(fps: float | int, target: float = 8.0) -> int:
    """Every how many frames one is kept, so that about `target` a second remain; at least 1.

    Halves are rounded to the even neighbour (20 frames a second: every second one), as released.
    """
    return max(1, round(fps / target))


def top_flow(flow: Float[Tensor, "2 height width"], share: float = 0.05) -> float:
    """Mean length of the longest vectors of an optical flow, in pixels.

    Args:
        flow: displacement (x, y) of each pixel.
        share: of the pixels that are averaged, rounded down.

    Raises:
        ShapeError: fewer pixels than make one of that share.
    """
    lengths = torch.hypot(flow[0].double(), flow[1].double()).flatten()
    count = int(lengths.numel() * share)
    if count < 1:
        got = f"[{', '.join(map(str, flow.shape))}]"
        raise ShapeError(explain("top_flow", got=got, expected=f"at least {math.ceil(1 / share)} pixels"))
    return float(lengths.topk(count).values.mean())


@dataclass(frozen=True)
class Motion:
    """Whether a clip moves.

    Args:
        dynamic: enough pairs of frames move. The benchmark's score is the share of such clips.
        threshold: flow in pixels beyond which a pair moves.
        needed: pairs that must move.
        moving: pairs that do.
        mean_flow: mean over pairs, in pixels; unlike `dynamic` it does not saturate.
    """

    dynamic: bool
    threshold: float
    needed: int
    moving: int
    mean_flow: float


def judge_motion(flows: Sequence[float], *, height: int, width: int, num_frames: int) -> Motion:
    """Whether a clip is dynamic.

    A pair of frames moves when its `top_flow` exceeds `6 * min(height, width) / 256` pixels; a clip is
    dynamic when at least `round(4 * num_frames / 16)` pairs move (halves to the even neighbour). A clip of
    one frame never is; one of two frames always, as released, because none of its pairs is needed.

    Args:
        flows: `top_flow` of each pair of neighbouring frames, after thinning to about 8 frames a second.
        height: of the frames.
        width: of the frames.
        num_frames: after thinning.

    Source: Vchitect/VBench, vbench/dynamic_degree.py.
    """
    threshold = 6.0 * min(height, width) / 256.0
    needed = round(4 * num_frames / 16.0)
    moving = sum(flow > threshold for flow in flows)
    dynamic = moving >= needed and len(flows) > 0
    average = math.fsum(flows) / len(flows) if flows else math.nan
    return Motion(dynamic, threshold, needed, moving, average)


def temporal_flickering(frames: Shaped[Tensor, "frame height width channel"]) -> float:
    """`(255 - mean |next frame - frame|) / 255` over 8-bit frames, in [0, 1]; 1 is a still picture.

    Meant for clips of static scenes, where every change is flicker.

    Raises:
        ShapeError: fewer than two frames, or values that are not 8 bits wide.

    Source: Vchitect/VBench, vbench/temporal_flickering.py.
    """
    if frames.shape[0] < 2 or frames.dtype != torch.uint8:
        got = f"[{frames.shape[0]} frames of {frames.dtype}]"
        message = explain("temporal_flickering", got=got, expected="two frames or more of uint8")
        raise ShapeError(message)
    changes = [(after.double() - before.double()).abs().mean() for before, after in pairwise(frames)]
    return float((255.0 - torch.stack(changes).mean()) / 255.0)


def frame_similarities(features: Float[Tensor, "frame feature"]) -> Float[Tensor, " pair"]:
    """Consistency of each frame from the second on: half its cosine with the first, half with the one before.

    Negative cosines count as 0. VBench's subject consistency (DINO features) and background consistency (CLIP
    features) are the mean over all frames of all clips, so that long clips weigh more. A still clip scores 1:
    print a measure of motion beside it.

    Source: Vchitect/VBench, vbench/subject_consistency.py.
    """
    normed = torch.nn.functional.normalize(features, dim=-1)
    before = (normed[1:] * normed[:-1]).sum(-1).clamp(min=0.0)
    first = (normed[1:] * normed[:1]).sum(-1).clamp(min=0.0)
    return (before + first) / 2

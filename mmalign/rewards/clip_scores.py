"""Scores of CLIP embeddings: PickScore, HPS, CLIPScore and RefCLIPScore, each in its own unit."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import unknown_name

__all__ = [
    "CLIPSCORE_WEIGHT",
    "candidate_probabilities",
    "clip_score",
    "cosine",
    "mean_clip_score",
    "percent",
    "pick_score",
    "pick_score_as",
    "reference_clip_score",
]

CLIPSCORE_WEIGHT = 2.5

PickScoreUnit = Literal["readme", "cosine", "per_26", "smpo"]

_SMPO_RANGE = (0.11543526500463486, 0.28201571106910706)


def cosine(
    image: Float[Tensor, "#sample feature"], text: Float[Tensor, "#sample feature"]
) -> Float[Tensor, " sample"]:
    """cos(image, text) in [-1, 1], row by row; a single row stands for all. Computed in float32 or float64.

    HPSv2's score is this number.
    """
    wide = image.dtype if image.dtype == torch.float64 else torch.float32
    image, text = image.to(wide), text.to(wide)
    image, text = image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
    return torch.sum(image * text, dim=-1)


def pick_score(cosines: Float[Tensor, " sample"], log_scale: float) -> Float[Tensor, " sample"]:
    """exp(log_scale) * cos: about 100 cos, typically 18 to 24.

    Args:
        cosines: of image and text.
        log_scale: the checkpoint's `logit_scale`.

    Source: yuvalkirstain/PickScore README, `calc_probs`.
    """
    return math.exp(log_scale) * cosines


def candidate_probabilities(scores: Float[Tensor, " candidate"]) -> Float[Tensor, " candidate"]:
    """softmax(scores): how likely each picture of one prompt is the preferred one, by PickScore's model."""
    return scores.softmax(dim=-1)


def pick_score_as(
    scores: Float[Tensor, " sample"], unit: PickScoreUnit, *, log_scale: float
) -> Float[Tensor, " sample"]:
    """PickScores in the unit another paper's number has.

    Args:
        scores: in the unit of the README, as `rewards.load("pickscore_v1")` gives them.
        unit: "readme" leaves them; "cosine" divides by exp(log_scale) (Diffusion-DPO's scoring functions);
            "per_26" divides by 26 (flow_grpo); "smpo" maps the cosine's range in SmPO's data,
            0.11543526500463486 to 0.28201571106910706, to [0, 1].
        log_scale: the checkpoint's `logit_scale`.

    Raises:
        UnknownNameError: no such unit.
    """
    if unit == "readme":
        return scores
    if unit == "per_26":
        return scores / 26.0
    cosines = scores / math.exp(log_scale)
    if unit == "cosine":
        return cosines
    if unit == "smpo":
        lowest, highest = _SMPO_RANGE
        return (cosines - lowest) / (highest - lowest)
    raise unknown_name("PickScore unit", unit, ("readme", "cosine", "per_26", "smpo"))


def percent(cosines: Float[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """100 cos: what the HPDv2 benchmark prints, and torchmetrics' CLIP score of one pair (not clamped)."""
    return 100.0 * cosines


def mean_clip_score(cosines: Float[Tensor, " sample"]) -> Float[Tensor, ""]:
    """max(mean(100 cos), 0): torchmetrics' CLIP score of a data set, which clamps the mean and no pair."""
    return percent(cosines).mean().clamp(min=0.0)


def clip_score(cosines: Float[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """2.5 * max(cos, 0), clamped pair by pair.

    Source: jmhessel/clipscore `get_clip_score` (arXiv:2104.08718).
    """
    return CLIPSCORE_WEIGHT * cosines.clamp(min=0.0)


def reference_clip_score(
    scores: Float[Tensor, " sample"], references: Float[Tensor, "sample reference"]
) -> Float[Tensor, " sample"]:
    """2 a b / (a + b): a = CLIPScore, b = the largest cosine of the caption with a reference caption.

    As in the official code, b is neither clamped nor weighted; a picture with a = 0 has 0.

    Args:
        scores: CLIPScores.
        references: cosines of the caption's embedding with those of its references; -inf where a sample has
            fewer than others.

    Source: jmhessel/clipscore `clipscore.py`, RefCLIPScore.
    """
    best = references.amax(dim=-1)
    harmonic = 2.0 * scores * best / (scores + best)
    return torch.where(scores > 0, harmonic, torch.zeros_like(harmonic))

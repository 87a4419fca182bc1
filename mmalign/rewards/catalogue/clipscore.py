"""CLIPScore: how well a text describes a picture, with the backbone and the formula in its name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mmalign.errors import unknown_name
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card
from mmalign.rewards.clip_backbones import BACKBONES, backbone_weights, load_backbone
from mmalign.rewards.clip_rewards import ClipReward
from mmalign.rewards.clip_scores import clip_score, percent
from mmalign.rewards.pixels import Crop

__all__ = ["CARD", "build"]


@dataclass(frozen=True)
class _Variant:
    score: Callable[[Tensor], Tensor]
    formula: str
    scale: str
    prefix: str
    crop: Crop


_VARIANTS = {
    "original": _Variant(
        clip_score,
        "2.5 * max(cosine, 0), per pair",
        "2.5 * max(cosine, 0): 0 to 2.5, typically 0.6 to 0.9",
        "A photo depicts ",
        "even",
    ),
    "torchmetrics": _Variant(
        percent, "100 * cosine", "100 * cosine, typically 15 to 35; no pair is clamped", "", "floor"
    ),
    "cosine": _Variant(
        lambda cosines: cosines, "cosine", "cosine in [-1, 1], typically 0.15 to 0.35", "", "even"
    ),
}

CARD = Card(
    name="clipscore",
    title="CLIPScore: cosine of picture and caption; the loaded reward's name says backbone and variant",
    modality="image",
    scale=_VARIANTS["original"].scale,
    weights=(BACKBONES["vit-b-32"],),
    paper="2104.08718",
    official_code="jmhessel/clipscore",
    licence="MIT",
    differentiable=True,
    text_limit=77,
    pixels="shorter side at the backbone's size, bicubic by Pillow, centre crop",
    options={
        "backbone": f"{', '.join(BACKBONES)} (default vit-b-32), or a hub id of a CLIP or SigLIP model.",
        "variant": "'original' (default): prefix 'A photo depicts', 2.5 * max(cosine, 0). 'torchmetrics': no "
        "prefix, 100 * cosine. 'cosine': no prefix.",
    },
    departures=(
        "Long captions are cut before the end token; some code cuts it off, which moves scores (26 to 17).",
        "torchmetrics clamps the mean over a data set at 0: mmalign.rewards.clip_scores.mean_clip_score.",
        "The official code computes in float16 on a GPU; float32 by default here.",
        "Captions are not passed through ftfy, and names of CLIP's special tokens in them are read as text.",
    ),
)


def build(
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    backbone: str = "vit-b-32",
    variant: str = "original",
) -> Reward:
    """CLIPScore with a backbone and a variant."""
    chosen = _VARIANTS.get(variant)
    if chosen is None:
        raise unknown_name("CLIPScore variant", variant, _VARIANTS)
    card = replace(
        CARD,
        name=f"clipscore[{backbone}, {variant}]",
        scale=chosen.scale,
        weights=(backbone_weights(backbone),),
    )
    encoder = load_backbone(
        backbone, weights=weights, reward=card.name, device=device, dtype=dtype, crop=chosen.crop
    )
    return ClipReward(
        replace(card, text_limit=encoder.text_limit),
        encoder,
        score=chosen.score,
        formula=chosen.formula,
        prefix=chosen.prefix,
        device=device,
        dtype=dtype,
    )

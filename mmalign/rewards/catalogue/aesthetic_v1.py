"""LAION aesthetic predictor v1: one linear layer on CLIP's image embedding."""

from dataclasses import replace
from pathlib import Path

import torch

from mmalign.errors import unknown_name
from mmalign.rewards.aesthetic import AestheticReward
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card, Weights
from mmalign.rewards.clip_backbones import BACKBONES, load_backbone
from mmalign.rewards.weights import resolve

__all__ = ["CARD", "build"]


def _head(file: str) -> Weights:
    return Weights(
        "LAION-AI/aesthetic-predictor",
        (file,),
        revision="6d122adad522ab246644d9dc1c6d7a3810ee255f",
        role="head",
        bytes=4_071,
        host="github",
    )


_FILES = {
    "vit-l-14": "sa_0_4_vit_l_14_linear.pth",
    "vit-b-32": "sa_0_4_vit_b_32_linear.pth",
    "vit-b-16": "sa_0_4_vit_b_16_linear.pth",
}

CARD = Card(
    name="aesthetic_v1",
    title="LAION aesthetic predictor v1: how much people would like the picture; the prompt is not read",
    modality="image",
    scale="about 1 to 10, typically 4 to 7; not the scale of v2",
    weights=(BACKBONES["vit-l-14"], _head(_FILES["vit-l-14"])),
    official_code="LAION-AI/aesthetic-predictor",
    licence="MIT",
    differentiable=True,
    pixels="shorter side 224, bicubic by Pillow, centre crop",
    options={"backbone": "vit-l-14 (default), vit-b-32 or vit-b-16: each has its own head."},
    departures=("A zero embedding stays zero; the notebook divides it by zero.",),
)


def build(
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    backbone: str = "vit-l-14",
) -> Reward:
    """The linear predictor of a backbone."""
    if backbone not in _FILES:
        raise unknown_name("aesthetic_v1 backbone", backbone, _FILES)
    head = _head(_FILES[backbone])
    name = CARD.name if backbone == "vit-l-14" else f"{CARD.name}[{backbone}]"
    card = replace(CARD, name=name, weights=(BACKBONES[backbone], head))
    folder = resolve(head, folder=weights, reward=card.name)
    encoder = load_backbone(
        backbone, weights=weights, reward=card.name, device=device, dtype=dtype, text=False
    )
    return AestheticReward(card, encoder, folder / head.files[0], device=device, dtype=dtype)

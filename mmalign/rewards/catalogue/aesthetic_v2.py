"""LAION aesthetic predictor v2: five linear layers on CLIP ViT-L/14's image embedding."""

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

_DEFAULT = "sac+logos+ava1-l14-linearMSE"
_HASHES = {_DEFAULT: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"}
_HEADS = {
    head: Weights(
        "christophschuhmann/improved-aesthetic-predictor",
        (f"{head}.pth",),
        revision="6934dd81792f086e613a121dbce43082cb8be85e",
        role="head",
        bytes=3_714_759,
        sha256={f"{head}.pth": _HASHES[head]} if head in _HASHES else {},
        host="github",
    )
    for head in (_DEFAULT, "ava+logos-l14-linearMSE", "ava+logos-l14-reluMSE")
}

CARD = Card(
    name="aesthetic_v2",
    title="LAION aesthetic predictor v2: how much people would like the picture; the prompt is not read",
    modality="image",
    scale="about 1 to 10, typically 4 to 7",
    weights=(BACKBONES["vit-l-14"], _HEADS[_DEFAULT]),
    official_code="christophschuhmann/improved-aesthetic-predictor",
    licence="Apache-2.0",
    differentiable=True,
    pixels="shorter side 224, bicubic by Pillow, centre crop",
    options={"head": f"{', '.join(_HEADS)} (default {_DEFAULT}, which papers report)."},
    departures=(
        "The tower is Hugging Face's copy of OpenAI's ViT-L/14: the same embedding up to rounding.",
        "The tower is float32 by default; the official code runs it in float16 on a GPU.",
    ),
)


def build(
    *, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype, head: str = _DEFAULT
) -> Reward:
    """The predictor with one of its published heads."""
    if head not in _HEADS:
        raise unknown_name("aesthetic_v2 head", head, _HEADS)
    name = CARD.name if head == _DEFAULT else f"{CARD.name}[{head}]"
    card = replace(CARD, name=name, weights=(BACKBONES["vit-l-14"], _HEADS[head]))
    folder = resolve(_HEADS[head], folder=weights, reward=card.name)
    encoder = load_backbone(
        "vit-l-14", weights=weights, reward=card.name, device=device, dtype=dtype, text=False
    )
    return AestheticReward(card, encoder, folder / f"{head}.pth", device=device, dtype=dtype)

"""RefCLIPScore: CLIPScore together with how near the caption is to reference captions."""

from dataclasses import replace
from pathlib import Path

import torch

from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card
from mmalign.rewards.clip_backbones import BACKBONES, backbone_weights, load_backbone
from mmalign.rewards.clip_rewards import ReferenceClipReward

__all__ = ["CARD", "build"]

CARD = Card(
    name="refclipscore",
    title="RefCLIPScore: CLIPScore and the nearest reference caption; the loaded name says the backbone",
    modality="image",
    scale="harmonic mean of 2.5 * max(cosine, 0) and the best caption-reference cosine, typically 0.6 to 0.9",
    weights=(BACKBONES["vit-b-32"],),
    paper="2104.08718",
    official_code="jmhessel/clipscore",
    licence="MIT",
    text_limit=77,
    pixels="shorter side at the backbone's size, bicubic by Pillow, centre crop",
    needs=("references",),
    options={
        "backbone": f"{', '.join(BACKBONES)} (default vit-b-32), or a hub id of a CLIP or SigLIP model."
    },
    departures=(
        "As the official code and unlike the paper's formula, the best reference cosine is not clamped at 0.",
        "A picture whose CLIPScore is 0 has 0; the official code divides 0 by 0 where the cosine is 0 too.",
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
) -> Reward:
    """RefCLIPScore with a backbone."""
    card = replace(CARD, name=f"refclipscore[{backbone}]", weights=(backbone_weights(backbone),))
    encoder = load_backbone(backbone, weights=weights, reward=card.name, device=device, dtype=dtype)
    return ReferenceClipReward(
        replace(card, text_limit=encoder.text_limit),
        encoder,
        formula="harmonic mean of 2.5 * max(cosine, 0) and max reference cosine",
        prefix="A photo depicts ",
        device=device,
        dtype=dtype,
    )

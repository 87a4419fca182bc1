"""HPS v2.1: CLIP ViT-H/14 tuned on human rankings of generated pictures."""

from pathlib import Path
from typing import Any

import torch

from mmalign.rewards.base import Reward
from mmalign.rewards.hps import build_hps, hps_card

__all__ = ["CARD", "build"]

CARD = hps_card(
    "hpsv21",
    "HPS_v2.1_compressed.pt",
    "HPS v2.1: human preference, trained on HPD v2 and newer data of higher quality",
)


def build(
    *, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype, **options: Any
) -> Reward:
    """HPS v2.1 from `xswu/HPSv2` or a folder that holds its file."""
    return build_hps(CARD, weights=weights, device=device, dtype=dtype, **options)

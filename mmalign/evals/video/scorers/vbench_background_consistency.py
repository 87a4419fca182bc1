"""VBench's background consistency as a reward of clips."""

from pathlib import Path
from statistics import fmean

import torch

from mmalign.evals.video.consistency import load_background
from mmalign.evals.video.watched_reward import WatchedReward
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card
from mmalign.rewards.clip_backbones import BACKBONES

__all__ = ["CARD", "build"]

CARD = Card(
    name="vbench_background_consistency",
    title="VBench's background consistency: how alike frames are to CLIP; still clips score 1, the prompt is "
    "not read",
    modality="video",
    outputs=("score", "neighbours"),
    scale="0 to 1, mean over frames; VBench's least and greatest: 0.2615 and 1",
    weights=(BACKBONES["vit-b-32"],),
    paper="2311.17982",
    official_code="Vchitect/VBench",
    licence="MIT",
    pixels="shorter side 224, bicubic, not antialiased, centre",
    departures=("One value per clip: VBench's dimension is the mean over all frames of all clips.",),
)


def build(*, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype) -> Reward:
    """Half the cosine with the first frame, half with the one before; and the mean cosine of neighbours."""
    watcher = load_background(weights=weights, device=device, dtype=dtype)
    return WatchedReward(CARD, watcher, lambda seen: (fmean(seen["consistency"]), seen["neighbours"]))

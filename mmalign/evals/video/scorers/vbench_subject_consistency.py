"""VBench's subject consistency as a reward of clips."""

from pathlib import Path
from statistics import fmean

import torch

from mmalign.evals.video.consistency import DINO, load_subject
from mmalign.evals.video.watched_reward import WatchedReward
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card

__all__ = ["CARD", "build"]

CARD = Card(
    name="vbench_subject_consistency",
    title="VBench's subject consistency: how alike frames are to DINO; still clips score 1, the prompt is "
    "not read",
    modality="video",
    outputs=("score", "neighbours"),
    scale="0 to 1, mean over frames; VBench's least and greatest: 0.1462 and 1",
    weights=(DINO,),
    paper="2311.17982",
    official_code="Vchitect/VBench",
    licence="Apache-2.0",
    pixels="shorter side 224, bilinear, not antialiased, whole frame",
    departures=(
        "One value per clip: VBench's dimension is the mean over all frames of all clips.",
        "Position embeddings are brought to other frame shapes by transformers' interpolation.",
    ),
)


def build(*, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype) -> Reward:
    """Half the cosine with the first frame, half with the one before; and the mean cosine of neighbours."""
    watcher = load_subject(weights=weights, device=device, dtype=dtype)
    return WatchedReward(CARD, watcher, lambda seen: (fmean(seen["consistency"]), seen["neighbours"]))

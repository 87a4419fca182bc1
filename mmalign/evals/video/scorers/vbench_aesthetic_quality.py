"""VBench's aesthetic quality as a reward of clips."""

from pathlib import Path

import torch

from mmalign.evals.video.aesthetic import load_aesthetic
from mmalign.evals.video.watched_reward import WatchedReward
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card
from mmalign.rewards.loading import card

__all__ = ["CARD", "build"]

CARD = Card(
    name="vbench_aesthetic_quality",
    title="VBench's aesthetic quality: a tenth of LAION's first predictor, mean over all frames",
    modality="video",
    scale="about 0.1 to 1",
    weights=card("aesthetic_v1").weights,
    paper="2311.17982",
    official_code="Vchitect/VBench",
    licence=card("aesthetic_v1").licence,
    pixels="shorter side 224, bicubic, not antialiased, centre",
)


def build(*, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype) -> Reward:
    """A tenth of the mean score of all frames."""
    watcher = load_aesthetic(weights=weights, device=device, dtype=dtype)
    return WatchedReward(CARD, watcher, lambda seen: (seen["aesthetic"],))

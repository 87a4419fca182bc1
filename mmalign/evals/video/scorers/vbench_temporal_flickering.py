"""VBench's temporal flickering as a reward of clips."""

from pathlib import Path

import torch

from mmalign.evals.video.pixels import load_pixels
from mmalign.evals.video.watched_reward import WatchedReward
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card

__all__ = ["CARD", "build"]

CARD = Card(
    name="vbench_temporal_flickering",
    title="VBench's temporal flickering: how little pixels change from frame to frame; still clips score 1",
    modality="video",
    outputs=("score", "difference"),
    scale="0 to 1; VBench's least and greatest: 0.6293 and 1; difference: 8-bit values per frame",
    paper="2311.17982",
    official_code="Vchitect/VBench",
    licence="no weights",
    departures=("VBench measures it on clips of static scenes alone.",),
)


def build(*, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype) -> Reward:
    """1 less the mean change of a pixel, of 255; and that change. It has no network."""
    del weights, device, dtype
    return WatchedReward(CARD, load_pixels(), lambda seen: (seen["flickering"], seen["difference"]))

"""VBench's dynamic degree, and the flow behind it, as a reward of clips."""

from pathlib import Path

import torch

from mmalign.evals.video.flow import RAFT, load_flow
from mmalign.evals.video.watched_reward import WatchedReward
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card

__all__ = ["CARD", "build"]

CARD = Card(
    name="vbench_dynamic_degree",
    title="VBench's dynamic degree: whether a clip moves, by optical flow, and how far pixels do",
    modality="video",
    outputs=("score", "mean_flow", "top_flow"),
    scale="0 or 1; mean_flow and top_flow: pixels between frames about 1/8 s apart, which order clips, too",
    weights=(RAFT,),
    paper="2311.17982",
    official_code="Vchitect/VBench",
    licence="BSD-3-Clause",
    pixels="frames as they are, of about 8 a second; sides of 128 pixels or more",
    departures=("RAFT's weights are torchvision's port of the authors' (C_T_V1).",),
)


def build(*, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype) -> Reward:
    """1 where enough pairs of frames move; mean flow of all pixels, and of the fastest 5 %."""
    watcher = load_flow(weights=weights, device=device, dtype=dtype)
    return WatchedReward(CARD, watcher, lambda seen: (float(seen["dynamic"]), seen["mean"], seen["top"]))

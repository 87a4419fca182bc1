"""VisionReward-Video's checklist as a reward by name."""

from pathlib import Path

import torch

from mmalign.evals.video.vision_reward import CARD, load_vision_reward
from mmalign.rewards.base import Reward

__all__ = ["CARD", "build"]


def build(*, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype) -> Reward:
    """The checklist from a folder: the publisher's questions and weights beside a chat model."""
    return load_vision_reward(weights, device=device, dtype=dtype)

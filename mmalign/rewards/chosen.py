"""A reward by the settings that a plan of pairs gives it."""

import torch

from mmalign.data.pair_making.sections import RewardChoice
from mmalign.rewards.base import Reward

__all__ = ["chosen_reward"]


def chosen_reward(choice: RewardChoice, *, device: torch.device) -> Reward:
    """A function of the user's own (`module:function`), else a registered reward on the device.

    Raises:
        ConfigError: it is not there.
    """
    from mmalign.rewards import load

    if ":" in choice.name:
        return load(choice.name, **choice.options)
    return load(choice.name, weights=choice.weights, device=device, dtype=choice.dtype, **choice.options)

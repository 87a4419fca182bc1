"""A reward of your own: what `mmalign train` of a reward row wrote."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mmalign.rewards.card import Card
from mmalign.rewards.training.trained_reward import TrainedReward, load_trained

__all__ = ["CARD", "build"]

CARD = Card(
    name="trained",
    title="a head you trained on preference pairs, over the backbone it was trained on",
    modality="image",
    scale="calibrated logits: sigmoid of a difference is the probability that the first is better; the zero "
    "means nothing",
    licence="yours; the backbone has its own",
    differentiable=True,
    pixels="as the backbone takes them",
    options={
        "backbone": "folder with the backbone's files, if neither beside the head nor in the cache",
        "user": "reward_pal: of samples that name neither user nor mixture",
        "mixture": "reward_pal: of the same, K numbers that sum to 1",
        "context": "reward_context: of samples that bring none",
    },
    departures=(
        "Trained by mmalign.rewards.training: the loaded reward's card says name, outputs and limits; its "
        "folder's reward.json what it was trained on and how well it is calibrated.",
    ),
)


def build(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype,
    backbone: str | Path | None = None,
    user: str | None = None,
    mixture: Sequence[float] | None = None,
    context: str | None = None,
) -> TrainedReward:
    """The reward, ready to score.

    Args:
        weights: folder of the trained reward.
        device: where the networks stand.
        dtype: of the backbone.
        backbone: see the card's options.
        user: see the card's options.
        mixture: see the card's options.
        context: see the card's options.

    Raises:
        ConfigError: no folder, or an option the head has no use for.
        CheckpointError: files are missing or do not fit.
        UnknownNameError: no such user.
    """
    return load_trained(
        CARD,
        weights=weights,
        device=device,
        dtype=dtype,
        backbone=backbone,
        user=user,
        mixture=mixture,
        context=context,
    )

"""PAL, model A: rewards for one user, who is a mixture of prototypes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from mmalign.rewards.card import Card
from mmalign.rewards.ideal_point_reward import PICKSCORE_CLIP, PalReward, load_pal_reward

__all__ = ["CARD", "build", "build_for"]

CARD = Card(
    name="pal_a",
    title="PAL, model A: minus the distance of a picture to a user's ideal point, a mixture of prototypes",
    modality="image",
    scale="minus a distance in the head's space: 0 at the ideal point, lower elsewhere; differences matter",
    weights=(PICKSCORE_CLIP,),
    paper="2406.08469",
    official_code="https://github.com/RamyaLab/pluralistic-alignment",
    licence="Apache-2.0 (code); your head is yours, PickScore's backbone is MIT",
    differentiable=True,
    pixels="shorter side 224 bicubic (Pillow), centre crop 224 (odd margins rounded down)",
    needs=("user",),
    options={
        "backbone": "whose embeddings the head was trained on: pickscore, a CLIP by name (vit-h-14, ...), or "
        "none, where samples bring theirs in extras image_embedding and prompt_embedding",
        "user": "of samples that name neither user nor mixture",
        "mixture": "of the same: K numbers that sum to 1, for a standard reward model",
    },
    departures=(
        "No head for pictures is published: train one (mmalign.rewards.ideal_point_training) and give its "
        "folder.",
        "The official wrapper for a fixed mixture takes its numbers as they are in one place and through a "
        "softmax in another; here a mixture is the weights themselves and has to sum to 1.",
        "The official option dist_logistic has the sign turned round; here a larger distance is a lower "
        "reward.",
    ),
)


def build_for(
    card: Card,
    model: Literal["a", "b"],
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype,
    backbone: str = "pickscore",
    user: str | None = None,
    mixture: Sequence[float] | None = None,
) -> PalReward:
    """The reward, ready to score.

    Args:
        card: what it is.
        model: which of the two.
        weights: folder that `PalHead.save` wrote.
        device: where the networks stand.
        dtype: of the backbone.
        backbone: see the card's options.
        user: see the card's options.
        mixture: see the card's options.

    Raises:
        ConfigError: no folder, or an option that does not exist.
        CheckpointError: files are missing or do not fit.
        UnknownNameError: no such user or backbone.
    """
    return load_pal_reward(
        card,
        model,
        weights=weights,
        device=device,
        dtype=dtype,
        backbone=backbone,
        user=user,
        mixture=mixture,
    )


build = partial(build_for, CARD, "a")

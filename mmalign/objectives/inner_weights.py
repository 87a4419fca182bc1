"""Weights of the positions of a response: its tail, its beginning."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.objectives.base import Computed, Context, per_candidate, require
from mmalign.objectives.readings import length_of

__all__ = [
    "position_decay",
    "tail_weights",
]


def tail_weights(factor: float) -> Computed:
    """1 up to the length of the shortest candidate of the prompt, `factor` after it (LD-DPO).

    Args:
        factor: in [0, 1]; 1 is the plain sum.
    """
    require("tail_weights factor", factor, 0 <= factor <= 1, "a number in [0, 1]")

    def compute(context: Context) -> Tensor:
        position = _position(context)
        shortest = length_of(context, "tail weights").amin(1, keepdim=True).unsqueeze(2)
        return torch.where(position <= shortest, 1.0, factor).to(context.policy.dtype)

    return Computed(compute, f"(1 up to the shorter length, then {factor:g})")


def position_decay(factor: float) -> Computed:
    """factor^k at the k-th position that counts, k from 1 (D2PO).

    Args:
        factor: in (0, 1].
    """
    require("position_decay factor", factor, 0 < factor <= 1, "a number in (0, 1]")

    def compute(context: Context) -> Tensor:
        return torch.pow(factor, _position(context))

    return Computed(compute, f"{factor:g}^position")


def _position(context: Context) -> Float[Tensor, "prompt candidate inner"]:
    """1, 2, ... along the unmasked positions of each candidate."""
    scores = context.scores
    kept = torch.ones_like(scores.policy) if scores.mask is None else (scores.mask != 0)
    return per_candidate(kept.to(context.policy.dtype).cumsum(-1))  # type: ignore[return-value]

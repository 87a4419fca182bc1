"""Part A: one score per candidate from scores along its inner axis (tokens, segments, frames, timesteps).

Policy and reference are reduced alike unless a method says otherwise. Values at masked positions are never
looked at, not even if they are NaN.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives.base import Computed, Context, Scores, needs_of, resolve, wide

__all__ = ["Reduced", "Reduction", "ReductionName", "reduce_inner"]

ReductionName = Literal["sum", "mean"]


def reduce_inner(
    values: Float[Tensor, "prompt candidate inner"],
    mask: Shaped[Tensor, "prompt candidate inner"] | None,
    how: ReductionName,
    weights: Float[Tensor, "prompt candidate inner"] | None = None,
) -> Float[Tensor, "prompt candidate"]:
    """Sum, or mean over the unmasked positions, of `weights * values`.

    The mean divides by the sum of the mask, not of the weights; a candidate without any position gets 0.

    Args:
        values: score of each position, float32 or float64.
        mask: 1 where a position counts; None counts all.
        how: "sum" or "mean".
        weights: factor of each position.
    """
    if mask is None:
        kept = values if weights is None else values * weights
        return kept.sum(-1) if how == "sum" else kept.mean(-1)
    share = mask.to(values.dtype)
    kept = torch.where(share != 0, values, 0.0) * share
    if weights is not None:
        kept = kept * torch.where(share != 0, weights, 0.0)
    if how == "sum":
        return kept.sum(-1)
    count = share.sum(-1)
    return kept.sum(-1) / torch.where(count == 0, 1.0, count)


@dataclass(frozen=True)
class Reduced:
    """Scores without their inner axis."""

    policy: Float[Tensor, "prompt candidate"]
    reference: Float[Tensor, "prompt candidate"] | None


@dataclass(frozen=True)
class Reduction:
    """How the inner axis is reduced.

    Args:
        how: "sum" (the log-likelihood of the whole response) or "mean" (per position).
        weights: factor of each position, [prompt, candidate, inner], or None.
        weighs_reference: whether the reference gets the same weights (LD-DPO exists in both forms), or
            weights of its own (SamPO's release draws its positions anew for the reference).
        clamp: bounds of the log-ratio of each position (humanline methods); needs a reference.

    Raises:
        HyperparameterError: unknown `how`, or clamp bounds that are not low < high.
    """

    how: ReductionName = "sum"
    weights: Computed | None = None
    weighs_reference: bool | Computed = True
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.how not in ("sum", "mean"):
            raise HyperparameterError(explain("reduction", got=self.how, expected="'sum' or 'mean'"))
        if self.clamp is not None and not self.clamp[0] < self.clamp[1]:
            raise HyperparameterError(
                explain("reduction clamp", got=self.clamp, expected="(low, high), low < high")
            )

    @property
    def needs(self) -> frozenset[str]:
        """What the reduction reads besides the scores."""
        own = needs_of(self.weights, self.weighs_reference)
        return own | {"reference"} if self.clamp else own

    @property
    def formula(self) -> str:
        """Plain text."""
        weighted = "" if self.weights is None else f"{self.weights.formula} * "
        return f"{self.how} over positions of {weighted}score"

    def __call__(self, scores: Scores, context: Context) -> Reduced:
        """Policy and reference as [prompt, candidate]; scores without an inner axis come back as they are."""
        policy = wide(scores.policy)
        reference = None if scores.reference is None else wide(scores.reference.detach())
        if policy.ndim == 2:
            return Reduced(policy, reference)
        factor = _resolved(self.weights, context, policy)
        if self.clamp is not None and reference is not None:
            # Written on the policy's side, so that p - r is the sum of the clamped differences.
            policy = reference + (policy - reference).clamp(*self.clamp)
        reduced = reduce_inner(policy, scores.mask, self.how, factor)
        if reference is None:
            return Reduced(reduced, None)
        if isinstance(self.weighs_reference, Computed):
            factor = _resolved(self.weighs_reference, context, policy)
        elif not self.weighs_reference:
            factor = None
        return Reduced(reduced, reduce_inner(reference, scores.mask, self.how, factor))


def _resolved(weights: Computed | None, context: Context, like: Tensor) -> Tensor | None:
    """Weights of every position, [prompt, candidate, inner]."""
    value = None if weights is None else resolve(weights, context)
    return value.to(like.dtype).expand_as(like) if isinstance(value, Tensor) else None

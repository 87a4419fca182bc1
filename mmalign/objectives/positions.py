"""What the catalogues inside a response share: inputs and weights per position.

Inputs per position are entries of `Scores.extras` of the shape of the scores, [prompt, candidate, inner].
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ShapeError, explain
from mmalign.objectives.base import Computed, Context, require, wide
from mmalign.objectives.objective import Objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "WEIGHTED",
    "given_positions",
    "position_weights",
    "require_finite",
    "weighted_dpo",
]


# The reason of those that pass no check of the inner axis.
WEIGHTED = "a reduced score has its weights in it already"


def require_finite(where: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise `HyperparameterError` unless the value is finite and in [low, high]."""
    bounds = "a finite number" if low == -math.inf else f"a number in [{low:g}, {high:g}]"
    if high == math.inf and low > -math.inf:
        bounds = f"a number >= {low:g}"
    require(where, value, math.isfinite(value) and low <= value <= high, bounds)


def given_positions(context: Context, name: str, wanted_by: str) -> Float[Tensor, "prompt candidate inner"]:
    """`extras[name]` of the shape of the scores, 0 where a position or a candidate does not count.

    Raises:
        ShapeError: another shape: nothing broadcasts over tokens by accident.
    """
    value, policy = wide(context.scores.extra(name, wanted_by)), context.scores.policy
    if value.shape != policy.shape:
        message = explain(
            f"Scores.extras[{name!r}], needed by {wanted_by}",
            got=f"shape {list(value.shape)}",
            expected=f"one number per position like the scores, {list(policy.shape)}",
        )
        raise ShapeError(message)
    kept = (
        torch.ones_like(value, dtype=torch.bool) if context.scores.mask is None else context.scores.mask != 0
    )
    if context.valid is not None:
        kept = kept & context.valid.unsqueeze(2)
    return torch.where(kept, value, 0.0)


def position_weights(
    name: str,
    wanted_by: str,
    weight: Callable[[Tensor, Context], Tensor] | None = None,
    *,
    formula: str = "",
    needs: frozenset[str] = frozenset(),
    attached: bool = False,
) -> Computed:
    """Weights of positions from one input per position."""

    def compute(context: Context) -> Tensor:
        value = given_positions(context, name, wanted_by)
        return value if weight is None else weight(value, context)

    return Computed(compute, formula or name, frozenset({name}) | needs, attached=attached)


def weighted_dpo(name: str, beta: float, reduction: Reduction) -> Objective:
    """DPO on scores reduced like this: one that says how positions weigh."""
    positive_beta(name, beta)
    return Objective(name, (Term(Pair(), Score(reduction), beta=beta),))

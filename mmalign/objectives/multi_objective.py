"""The catalogue of several objectives in one policy: the rewards of the others as a margin.

u is the log-ratio, z and s as everywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.errors import ShapeError, explain
from mmalign.objectives import links, modifiers
from mmalign.objectives.base import Computed, Context, require
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "modpo",
    "modpo_hinge",
]


def _other_objectives(beta: float, weights: tuple[float, ...]) -> Computed:
    """-(weights . margin_rewards) / beta for every candidate."""

    def compute(context: Context) -> Tensor:
        rewards = modifiers.of_pairs(context, "margin_rewards", "modpo")
        rewards = rewards.unsqueeze(2) if rewards.ndim == 2 else rewards
        if rewards.ndim != 3 or rewards.shape[2] != len(weights):
            message = explain(
                "extras['margin_rewards'] of modpo",
                got=f"shape {list(rewards.shape)}",
                expected=f"[prompt, candidate, {len(weights)}], one reward per other objective",
            )
            raise ShapeError(message)
        # Python numbers, not a tensor of weights: nothing is copied to the device in the step.
        total = torch.zeros_like(rewards[..., 0])
        for number, weight in enumerate(weights):
            total = total + weight * rewards[..., number]
        return -total / beta

    shown = ", -".join(f"{weight:g}" for weight in weights)
    return Computed(compute, f"(-{shown}) . margin_rewards / {beta:g}", frozenset({"margin_rewards"}))


def _modpo(
    name: str, beta: float, weight: float, other_weights: Sequence[float] | None, link: Link
) -> Objective:
    positive_beta(name, beta)
    require(f"{name} weight", weight, 0 < weight < float("inf"), "a number > 0, usually at most 1")
    if other_weights is None:
        require(f"{name} weight", weight, weight <= 1, "a number in (0, 1], or other_weights")
        other_weights = (1.0 - weight,)
    require(
        f"{name} number of other_weights", float(len(other_weights)), len(other_weights) > 0, "at least 1"
    )
    for other in other_weights:
        require(f"{name} other_weights", other, 0 <= other < float("inf"), "numbers >= 0")
    score = Score(bonus=_other_objectives(beta, tuple(float(other) for other in other_weights)))
    return Objective(name, (Term(Pair(), score, beta=beta / weight, link=link),))


_MODPO = "Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization"


@objective(
    "modpo",
    fixes="objectives",
    title=_MODPO,
    paper="2310.03708",
    year=2023,
    sample={"beta": 0.1, "weight": 0.5},
    parity=("text_modpo",),
    official_code="ZHZisZZ/modpo 2e2df20",
    status="parity",
    published={"beta": (0.1, "code"), "weight": (0.5, "code", "0.1 to 0.9 make the front")},
    departures=("weights need not add up to 1 when all are given (nor does the official code ask for it)",),
    allows={"logit": "the rewards of the other objectives are a margin"},
)
def modpo(*, beta: float, weight: float, other_weights: Sequence[float] | None = None) -> Objective:
    """DPO on one objective's pairs, with the rewards of the other objectives as a margin.

    z = (beta * (u of chosen - u of rejected) - other_weights . (R of chosen - R of rejected)) / weight
    loss = -log sigmoid(z)

    R is extras["margin_rewards"], [prompt, candidate, objective], or [prompt, candidate] for one other
    objective. The metrics' rewards are beta / weight * u, without R (the official code logs them with R).

    Args:
        beta: > 0, per unit of score.
        weight: > 0, of the objective whose pairs these are; 1 is DPO.
        other_weights: >= 0, one per other objective; None means 1 - weight on a single one.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2310.03708; ZHZisZZ/modpo `modpo_loss`.
    """
    return _modpo("modpo", beta, weight, other_weights, links.logistic())


@objective(
    "modpo_hinge",
    fixes="objectives",
    title=_MODPO,
    paper="2310.03708",
    year=2023,
    sample={"beta": 0.1, "weight": 0.5},
    parity=("text_modpo_hinge",),
    official_code="ZHZisZZ/modpo 2e2df20",
    status="parity",
    published={"beta": (0.1, "code"), "weight": (0.5, "code")},
    allows={"logit": "the rewards of the other objectives are a margin"},
    departures=("the hinge ends at z = 1 after the margin of the other objectives is taken off",),
)
def modpo_hinge(*, beta: float, weight: float, other_weights: Sequence[float] | None = None) -> Objective:
    """MODPO with a hinge: loss = max(0, 1 - z), z as in `modpo`.

    Args:
        beta: > 0, per unit of score.
        weight: > 0, of the objective whose pairs these are.
        other_weights: >= 0, one per other objective; None means 1 - weight on a single one.

    Raises:
        HyperparameterError: out of range.

    Source: ZHZisZZ/modpo `modpo_loss`, loss type "hinge".
    """
    return _modpo("modpo_hinge", beta, weight, other_weights, links.hinge())

"""The catalogue of methods that learn a value of every state beside the policy: OREO.

u is the log-ratio of a response, u_t that of a position.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.methods.row import Taxonomy
from mmalign.objectives.base import Context, wide
from mmalign.objectives.extras import Extra
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.positions import given_positions, require_finite

__all__ = [
    "oreo",
]


def _per_state(value: Tensor) -> Float[Tensor, "prompt candidate inner"]:
    """With an inner axis: a reduced score is one state whose action is the whole response."""
    return value if value.ndim == 3 else value.unsqueeze(2)


def _bellman(context: Context, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Value of every state minus the reward, beta * u of its action, of all later ones, states that count).

    Raises:
        ConfigError: an input is missing.
    """
    scores = context.scores
    if scores.reference is None or scores.reward is None:
        missing = "reference" if scores.reference is None else "reward"
        raise ConfigError(
            explain(f"Scores.{missing}, needed by OREO", got=None, expected="one value per response")
        )
    counts = torch.ones_like(_per_state(scores.policy), dtype=torch.bool)
    if scores.mask is not None and scores.policy.ndim == 3:
        counts = scores.mask != 0
    if context.valid is not None:
        counts = counts & context.valid.unsqueeze(2)
    action = _per_state(wide(scores.policy)) - _per_state(wide(scores.reference.detach()))
    action = beta * torch.where(counts, action, 0.0)
    later = action.flip(-1).cumsum(-1).flip(-1) - action
    value = _per_state(
        given_positions(context, "value", "OREO") if scores.policy.ndim == 3 else _value(context)
    )
    surplus = torch.where(counts, value - wide(scores.reward).detach().unsqueeze(2), 0.0)
    return surplus, action, later, counts


def _value(context: Context) -> Tensor:
    return wide(context.scores.extra("value", "OREO"))


def _mean_over_states(values: Tensor, counts: Tensor) -> Float[Tensor, " prompt"]:
    share = counts.to(values.dtype)
    return (values * share).sum((1, 2)) / share.sum((1, 2)).clamp(min=1.0)


@objective(
    "oreo",
    data="unpaired",
    fixes="credit",
    on_errors="axis",
    title="Offline Reinforcement Learning for LLM Multi-Step Reasoning",
    paper="2412.16145",
    year=2024,
    sample={"beta": 0.03, "alpha": 0.01},
    official_code="jwhj/OREO 6f7403b",
    status="formula",
    published={"beta": (0.03, "code", "the released scripts; 0.01 as default"), "alpha": (0.01, "code")},
    taxonomy=Taxonomy(
        data="pointwise, token", framework="offline", constraint="reverse KL", model_property="alignment"
    ),
    departures=(
        "one loss for both models: the gradients of policy and value function do not meet, so that one "
        "optimiser with two parameter groups stands for the official two",
        "the value loss reads the log-probabilities of this step's policy, detached; the release computes "
        "them in a pass of their own, on request under an average of past weights",
        "positions that count are those of actions; the release masks states and actions apart",
    ),
    allows={
        "gradient signs": "each response is regressed on its reward, whatever the label says",
    },
)
def oreo(*, beta: float, alpha: float) -> Objective:
    """Offline reasoning optimisation: policy and value function solve the soft Bellman equation together.

    a_t = beta * u_t, A_t = sum over later positions of a
    policy loss = mean over t of (stop-gradient(V_t) - R + a_t + stop-gradient(A_t))^2
    value loss = mean over t of (V_t - R + stop-gradient(a_t + A_t))^2
    loss = policy loss + value loss + alpha * mean over t of KL(policy || reference)

    V_t is `extras["value"]`, with gradient, the value of the state before position t; R is `Scores.reward`,
    the outcome of the response (1 or 0). Positions are tokens or steps; with one position it is the
    response-level variant. `Scores.kl` holds `vocabulary_kl(..., direction="policy_from_reference")` of
    `likelihood`; it is read for alpha > 0 only.

    Args:
        beta: > 0, temperature per nat (0.03 released).
        alpha: >= 0, weight of the divergence (0.01 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2412.16145; jwhj/OREO `pcl_trainer.py`, `loss` and `dro_loss`.
    """
    positive_beta("oreo", beta)
    require_finite("oreo alpha", alpha, 0.0)

    def policy(context: Context) -> Tensor:
        surplus, action, later, counts = _bellman(context, beta)
        return _mean_over_states((surplus.detach() + action + later.detach()).square(), counts)

    def value(context: Context) -> Tensor:
        surplus, action, later, counts = _bellman(context, beta)
        return _mean_over_states((surplus + (action + later).detach()).square(), counts)

    def divergence(context: Context) -> Tensor:
        kl, counts = context.scores.kl, _bellman(context, beta)[3]
        if kl is None:
            raise ConfigError(explain("Scores.kl, needed by OREO", got=None, expected="one per position"))
        if kl.ndim == 2:
            return wide(kl).sum(1)
        return _mean_over_states(torch.where(counts, wide(kl), 0.0), counts)

    needs = frozenset({"reference", "reward", "value"})
    terms = (
        Extra(
            "policy", policy, f"mean of (sg(value) - reward + {beta:g} * (u + sg(later u)))^2", needs=needs
        ),
        Extra("value", value, f"mean of (value - reward + sg({beta:g} * (u + later u)))^2", needs=needs),
    )
    penalty = Extra(
        "divergence",
        divergence,
        "mean of kl",
        alpha,
        needs=frozenset({"kl"}),
        tokens_only="a divergence over a vocabulary; for denoisers pass the squared distance of "
        "the predictions as a linear term",
    )
    return Objective("oreo", extras=(*terms, penalty) if alpha else terms)

"""The catalogue of regressions: every score is drawn towards a target of its own.

The absolute level of a score matters here, as in `pointwise.py`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.objectives import labels, links
from mmalign.objectives.base import Computed, Context, require, wide
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Target
from mmalign.objectives.terms import Term

__all__ = ["a2po_regression", "optimal_value", "sppo", "sppo_hard", "sppo_single"]

_SPPO = "Self-Play Preference Optimization for Language Model Alignment"


@dataclass(frozen=True)
class _JudgedTarget(Target):
    """A `Target` whose targets hold the pair's probability already: no average over its two orders."""

    swaps: ClassVar[bool] = False


def _judged(context: Context) -> Float[Tensor, " prompt"]:
    probability = context.labels.probability
    if probability is None:
        message = explain(
            "Labels.probability, needed by sppo_single",
            got=None,
            expected="the judged probability that candidate 0 wins, one per pair",
            do="Build the labels with Labels(probability=...).",
        )
        raise ConfigError(message)
    return probability.to(context.policy.dtype)


@objective(
    "sppo",
    fixes="exploration",
    on_errors="pointwise",
    title=_SPPO,
    paper="2405.00675",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_sppo", "text_sppo_single"),
    departures=(
        "half the sum of both squares, as in the official code; TRL's sppo_hard has no 1/2",
        "the official sppo_single, whose second probability is 1 - q, is the row sppo_single",
        "SPPO is self-play preference optimisation here; a step-wise method uses the same letters",
    ),
    official_code="uclaml/SPPO 5e61c4e",
    status="parity",
    published={"beta": (0.001, "code", "1 / eta; targets up to 500 nats")},
    rollout="several answers of the current policy, each with its win rate against the others",
    allows={"gradient signs": "the judged win probabilities say which candidate rises"},
)
def sppo(*, beta: float) -> Objective:
    """Regression of each log-ratio on the answer's judged win probability (not SPPO of self-paced methods).

    loss = 1/2 * sum over candidates of (u - (q - 1/2) / beta)^2

    q is the probability that the candidate beats an answer of the policy, `extras["win_probability"]`,
    [prompt, candidate]. Both candidates may win more often than not: neither label nor order matters.

    Args:
        beta: > 0, 1 / eta of the paper (0.001 released: targets up to +-500 in units of the score, so that
            learning rate and clipping carry the regularisation). 0.1 to 1 for targets a score can reach.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2405.00675, section 4; uclaml/SPPO, loss type "sppo". Parity: text_sppo.
    """
    positive_beta("sppo", beta)

    def compute(context: Context) -> Tensor:
        return (wide(context.scores.extra("win_probability", "sppo")) - 0.5) / beta

    target = Computed(compute, f"(win_probability - 1/2) / {beta:g}", frozenset({"win_probability"}))
    term = Term(
        Target(), link=links.square(0.0), labels=labels.Targets(target, target), coefficient=0.5, name="sppo"
    )
    return Objective("sppo", (term,))


@objective(
    "sppo_single",
    fixes="exploration",
    on_errors="pointwise",
    title=_SPPO,
    paper="2405.00675",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_sppo_single",),
    departures=("q is the label's own probability, so that an uncertain pair moves its targets only",),
    official_code="uclaml/SPPO 5e61c4e",
    status="parity",
    published={"beta": (0.001, "code", "1 / eta; targets up to 500 nats")},
    rollout="two answers of the current policy, judged against each other",
)
def sppo_single(*, beta: float) -> Objective:
    """SPPO with one judgement per pair: the two candidates were compared with each other only.

    loss = 1/2 * [(u of chosen - (q - 1/2) / beta)^2 + (u of rejected + (q - 1/2) / beta)^2]

    q is `Labels.probability`; a tie draws both log-ratios to 0. With q = 1 it is half of `sppo_hard`.

    Args:
        beta: > 0, 1 / eta of the paper (0.001 released).

    Raises:
        HyperparameterError: beta <= 0.

    Source: uclaml/SPPO, loss type "sppo_single". Parity: text_sppo_single.
    """
    positive_beta("sppo_single", beta)
    chosen = Computed(lambda context: (_judged(context) - 0.5) / beta, f"(q - 1/2) / {beta:g}")
    rejected = Computed(lambda context: (0.5 - _judged(context)) / beta, f"(1/2 - q) / {beta:g}")
    targets = labels.Targets(chosen, rejected)
    term = Term(_JudgedTarget(), link=links.square(0.0), labels=targets, coefficient=0.5, name="sppo")
    return Objective("sppo_single", (term,))


@objective(
    "sppo_hard",
    fixes="exploration",
    on_errors="pointwise",
    title=_SPPO,
    paper="2405.00675",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_sppo_hard",),
    departures=("no factor 1/2, as in TRL (official code has it)",),
    official_code="trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code", "TRL default; 0.001 in the official code")},
)
def sppo_hard(*, beta: float) -> Objective:
    """Regression of both log-ratios on fixed targets.

    loss = (u of chosen - 1 / (2 beta))^2 + (u of rejected + 1 / (2 beta))^2

    Args:
        beta: > 0; the targets are +-1 / (2 beta) in units of the score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2405.00675; trl 1.16.0, loss type "sppo_hard".
    """
    positive_beta("sppo_hard", beta)
    targets = labels.Targets(1.0 / (2.0 * beta), -1.0 / (2.0 * beta))
    return Objective("sppo_hard", (Term(Target(), link=links.square(0.0), labels=targets),))


@objective(
    "a2po_regression",
    fixes="exploration",
    on_errors="pointwise",
    title="Accelerating RL for LLM Reasoning with Optimal Advantage Regression",
    paper="2505.20686",
    year=2025,
    sample={"beta": 0.1},
    data="unpaired",
    parity=("text_a2po_regression",),
    departures=(
        "V* comes in with the scores: `regression.optimal_value` estimates it from the reference's rewards, "
        "with a log-mean-exp that cannot overflow",
    ),
    official_code="trl 1.16.0, trl/experimental/a2po",
    status="parity",
    published={"beta": (0.001, "code", "beta2 in TRL; its beta1 of V* is 0.5")},
    rollout="one answer of the current policy per prompt, with its reward",
    allows={"gradient signs": "the reward says which way an answer moves, not a label"},
)
def a2po_regression(*, beta: float) -> Objective:
    """Regression of the scaled log-ratio on the advantage of the answer: A*-PO.

    loss = (beta * u - (reward - V*))^2

    The reward is `Scores.reward`; V*, the prompt's optimal value, is `extras["optimal_value"]` with the
    reward's shape, computed once before training (`optimal_value`). Labels are not looked at.

    Args:
        beta: > 0, per unit of score (0.001 in TRL, whose scores are sums over tokens).

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2505.20686; trl 1.16.0, `A2POTrainer`. Parity: text_a2po_regression.
    """
    positive_beta("a2po_regression", beta)

    def compute(context: Context) -> Tensor:
        reward = context.scores.reward
        if reward is None:
            message = explain(
                "Scores.reward, needed by a2po_regression", got=None, expected="one reward per answer"
            )
            raise ConfigError(message)
        return wide(reward) - wide(context.scores.extra("optimal_value", "a2po_regression"))

    target = Computed(compute, "(reward - optimal_value)", frozenset({"reward", "optimal_value"}))
    regressed = labels.Targets(target, target)
    term = Term(Target(), beta=beta, link=links.square(0.0), labels=regressed, name="regression")
    return Objective("a2po_regression", (term,))


def optimal_value(reward: Float[Tensor, "prompt sample"], *, beta: float) -> Float[Tensor, " prompt"]:
    """V* of every prompt: beta * log mean over the reference's samples of exp(reward / beta).

    Between the mean reward (large beta) and the highest one (small beta).

    Args:
        reward: of several answers of the reference to each prompt.
        beta: > 0, in units of the reward (0.5 in TRL, there called beta1).

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2505.20686; trl 1.16.0, `A2POTrainer`.
    """
    require("optimal_value beta", beta, beta > 0, "a number > 0")
    scaled = wide(reward) / beta
    return beta * (torch.logsumexp(scaled, dim=1) - math.log(reward.shape[1]))

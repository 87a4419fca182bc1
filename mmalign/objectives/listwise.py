"""The catalogue of target distributions over several candidates per prompt.

u is the log-ratio of a candidate. Each row compares softmax(beta u) over the candidates of a prompt with a
target: rewards, or one best candidate. Rows that learn from an order stand in `rankings`.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, HyperparameterError, explain
from mmalign.objectives import labels
from mmalign.objectives.base import Context, require, wide
from mmalign.objectives.labels import Distribution
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import BestVsRest, ListForward, ListReverse, best_candidate
from mmalign.objectives.terms import Term

__all__ = [
    "adpo_listwise",
    "dmpo_recommendation",
    "dpo_rw",
    "exo_listwise",
    "exo_pair",
    "exo_pref_official",
    "s_dpo",
]

_EXO = "Towards Efficient Exact Optimization of Language Model Alignment"
_EXO_CODE = "haozheji/exact-optimization a8ab360"


@objective(
    "exo_pair",
    fixes="baseline",
    title=_EXO,
    paper="2402.00856",
    year=2024,
    sample={"beta": 0.1, "label_smoothing": 0.001},
    parity=("text_exo_pair",),
    official_code="trl 1.16.0",
    status="parity",
    published={
        "beta": (0.5, "code", "the authors' temperature of the policy; TRL leaves it at 0.1"),
        "label_smoothing": (0.001, "code", "TRL; the authors' e^-10 is exo_pref_official"),
    },
    departures=(
        "the target is normalised, [1 - e, e], as in TRL; the authors' code has [1, e^-10], which is the row "
        "exo_pref_official",
        "a label probability becomes the soft target (not the average over the two orders)",
    ),
)
def exo_pair(*, beta: float, label_smoothing: float) -> Objective:
    """Reverse KL of the softmax over the pair from [1 - e, e]: seeks the mode where DPO covers.

    loss = sum of P (log P - log q), P = softmax(beta u), q = [1 - e, e], e = label_smoothing

    Args:
        beta: > 0, per unit of score.
        label_smoothing: in (0, 0.5); its logarithm is in the loss (0.001 in TRL: the gradient at the start is
            3.45 times DPO's).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.00856; trl 1.16.0, loss type "exo_pair".
    """
    positive_beta("exo_pair", beta)
    require("exo_pair label_smoothing", label_smoothing, 0 < label_smoothing < 0.5, "a number in (0, 0.5)")
    target = labels.best_first(label_smoothing)
    return Objective("exo_pair", (Term(ListReverse(), beta=beta, labels=target, name="exo"),))


def _log_epsilon_target(log_epsilon: float) -> Distribution:
    """1 at the best candidate and e^log_epsilon at every other one, not normalised."""

    def log_weights(context: Context) -> Tensor:
        policy, labelled = context.policy, context.labels
        liked = F.one_hot(best_candidate(context), policy.shape[1]).to(policy.dtype)
        if labelled.relevance is None and labelled.probability is not None and policy.shape[1] == 2:
            q = labelled.probability.to(policy.dtype)
            liked = torch.stack([q, 1.0 - q], dim=1)
        target = (liked + (1.0 - liked) * math.exp(log_epsilon)).log()
        return torch.where(context.real(), target, torch.finfo(policy.dtype).min)

    return Distribution(log_weights, f"(1 at the best, exp({log_epsilon:g}) elsewhere)")


@objective(
    "exo_pref_official",
    fixes="baseline",
    title=_EXO,
    paper="2402.00856",
    year=2024,
    sample={"beta": 0.5, "log_epsilon": -10.0},
    parity=("text_exo_pref_official",),
    official_code=_EXO_CODE,
    status="parity",
    published={"beta": (0.5, "code"), "log_epsilon": (-10.0, "code")},
    departures=(
        "none: the authors' target [1, e^-10] is not normalised, which shifts the loss by 4.5e-5 and no "
        "gradient; TRL normalises it (exo_pair)",
        "a label probability becomes the soft target (not the average over the two orders)",
    ),
)
def exo_pref_official(*, beta: float, log_epsilon: float = -10.0) -> Objective:
    """EXO on pairs as its authors released it: reverse KL from the weights [1, e^log_epsilon].

    loss = sum of P (log P - log q), P = softmax(beta u), log q = [0, log_epsilon]

    Args:
        beta: > 0, per unit of score (0.5 released).
        log_epsilon: < 0, the logarithm of the rejected candidate's weight (-10 released).

    Raises:
        HyperparameterError: out of range.

    Source: haozheji/exact-optimization, `exact_loss`, loss type "exo-pref".
    """
    positive_beta("exo_pref_official", beta)
    require("exo_pref_official log_epsilon", log_epsilon, -math.inf < log_epsilon < 0, "a finite number < 0")
    target = _log_epsilon_target(log_epsilon)
    return Objective("exo_pref_official", (Term(ListReverse(), beta=beta, labels=target, name="exo"),))


@objective(
    "exo_listwise",
    fixes="lists",
    title=_EXO,
    paper="2402.00856",
    year=2024,
    sample={"beta": 0.5, "temperature": 0.5},
    data="lists",
    parity=("text_exo_rw_listwise",),
    official_code=_EXO_CODE,
    status="parity",
    published={
        "beta": (0.5, "code", "0.1 on IMDB"),
        "temperature": (0.5, "code", "0.1 on IMDB"),
    },
    departures=(
        "an answer's target is log softmax(reward / temperature) of the list: KL(policy's distribution "
        "|| target)",
    ),
)
def exo_listwise(*, beta: float, temperature: float) -> Objective:
    """Reverse KL of softmax(beta u) from softmax(reward / temperature) over a list.

    loss = sum over candidates of P (log P - log q)

    Args:
        beta: > 0, per unit of score (0.5 released).
        temperature: > 0, in units of the reward (0.5 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.00856; haozheji/exact-optimization, `exact_loss`, loss type "exo-rw".
    """
    positive_beta("exo_listwise", beta)
    target = labels.softmax_of("reward", temperature)
    return Objective("exo_listwise", (Term(ListReverse(), beta=beta, labels=target, name="exo"),))


@objective(
    "dpo_rw",
    fixes="lists",
    title=_EXO,
    paper="2402.00856",
    year=2024,
    sample={"beta": 0.5, "temperature": 0.5},
    data="lists",
    parity=("text_dpo_rw_listwise",),
    official_code=_EXO_CODE,
    status="parity",
    published={"beta": (0.5, "code", "0.1 on IMDB"), "temperature": (0.5, "code", "0.1 on IMDB")},
    departures=("the same loss as infonca, under the name and with the temperatures of the EXO paper",),
)
def dpo_rw(*, beta: float, temperature: float) -> Objective:
    """DPO on rewards: cross-entropy of softmax(reward / temperature) under softmax(beta u).

    Args:
        beta: > 0, per unit of score (0.5 released).
        temperature: > 0, in units of the reward (0.5 released).

    Raises:
        HyperparameterError: out of range.

    Source: haozheji/exact-optimization, `dpo_loss`, loss type "dpo-rw".
    """
    positive_beta("dpo_rw", beta)
    target = labels.softmax_of("reward", temperature)
    return Objective("dpo_rw", (Term(ListForward(), beta=beta, labels=target, name="dpo_rw"),))


def _standardised(temperature: float) -> Distribution:
    """Softmax of (reward - its mean) / (its unbiased deviation * temperature) over the real candidates."""

    def log_weights(context: Context) -> Tensor:
        reward = context.scores.reward
        if reward is None:
            message = explain("reward", got=None, expected="one number per candidate", do="Pass the reward.")
            raise ConfigError(message)
        real = context.real()
        value, count = wide(reward), real.sum(1, keepdim=True).to(wide(reward).dtype)
        gap = torch.where(real, value - (value * real).sum(1, keepdim=True) / count.clamp(min=1.0), 0.0)
        deviation = (gap.square().sum(1, keepdim=True) / (count - 1.0).clamp(min=1.0)).sqrt()
        logits = (gap / (deviation + 1e-8) / temperature).to(context.policy.dtype)
        low = torch.finfo(logits.dtype).min
        return torch.where(real, F.log_softmax(torch.where(real, logits, low), dim=1), low)

    return Distribution(log_weights, f"softmax(zscore(reward) / {temperature:g})", frozenset({"reward"}))


@objective(
    "adpo_listwise",
    fixes="lists",
    title="ADPO: Anchored Direct Preference Optimization",
    paper="2510.18913",
    year=2025,
    sample={"anchor_temperature": 0.8, "reward_temperature": 0.5, "rewards": "standardised"},
    data="lists",
    official_code="wk222/verlm 0429025",
    published={
        "anchor_temperature": (0.8, "code"),
        "reward_temperature": (0.5, "code"),
        "rewards": ("standardised", "code"),
    },
    departures=(
        "the code's adaptive temperature (from token entropy and success) and its optional penalty on the "
        "divergence from the anchor are left out; the pairwise form is dpo with Labels.probability and "
        "beta = 1 / anchor_temperature",
        "the anchor is whatever reference is given: frozen, or the policy of the last rollout as in the code",
    ),
)
def adpo_listwise(
    *, anchor_temperature: float, reward_temperature: float, rewards: Literal["raw", "standardised"]
) -> Objective:
    """Cross-entropy of a soft target under softmax((policy - anchor) / anchor_temperature).

    loss = -sum over candidates of q log softmax(u / anchor_temperature), q = softmax(r / reward_temperature)

    The gradient is (softmax - q) / anchor_temperature, the curvature falls as its square: a small temperature
    keeps the policy near the anchor.

    Args:
        anchor_temperature: > 0, in units of the score (0.8 released); 1 / beta of the other rows.
        reward_temperature: > 0, in units of r (0.5 released).
        rewards: r is the reward itself ("raw", then the loss is infonca's) or its z-score over the list
            ("standardised", the released code).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2510.18913; the author's wk222/verlm, `adpo_policy_loss`.
    """
    require("adpo_listwise anchor_temperature", anchor_temperature, anchor_temperature > 0, "a number > 0")
    require("adpo_listwise reward_temperature", reward_temperature, reward_temperature > 0, "a number > 0")
    if rewards not in ("raw", "standardised"):
        message = explain("adpo_listwise rewards", got=rewards, expected="'raw' or 'standardised'")
        raise HyperparameterError(message)
    raw = rewards == "raw"
    target = labels.softmax_of("reward", reward_temperature) if raw else _standardised(reward_temperature)
    term = Term(ListForward(), beta=1.0 / anchor_temperature, labels=target, name="adpo")
    return Objective("adpo_listwise", (term,))


@objective(
    "s_dpo",
    fixes="lists",
    title="On Softmax Direct Preference Optimization for Recommendation",
    paper="2406.09215",
    year=2024,
    sample={"beta": 1.0},
    data="lists",
    official_code="chenyuxin1999/S-DPO f6dd7e8",
    published={"beta": (1.0, "code")},
    departures=("computed as a log-softmax: the official sum of exponentials overflows",),
)
def s_dpo(*, beta: float) -> Objective:
    """One best candidate against several rejected ones at once: DPO with a softmax over the list.

    loss = -log sigmoid(-log sum over rejected j of exp(beta (u_j - u_best))) = -log softmax(beta u)[best]

    Hard negatives get the larger share of the gradient. With one rejected candidate it is DPO.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2406.09215; chenyuxin1999/S-DPO, `trainer/softmax_dpo_trainer.py`.
    """
    positive_beta("s_dpo", beta)
    return Objective("s_dpo", (Term(ListForward(), beta=beta, labels=labels.best_first(), name="s_dpo"),))


@objective(
    "dmpo_recommendation",
    fixes="lists",
    title="Finetuning Large Language Model for Personalized Ranking",
    paper="2405.16127",
    year=2024,
    sample={"beta": 1.0},
    data="lists",
    departures=("read in two public re-implementations: the authors released no code that could be found",),
)
def dmpo_recommendation(*, beta: float) -> Objective:
    """Multi-negative DPO: one best candidate against the mean of the rejected ones.

    z = beta * (u of the best - mean of u over the others), loss = -log sigmoid(z)

    Every rejected candidate gets the same share of the gradient (`s_dpo` weighs hard ones more).

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2405.16127 (DMPO; not the diffusion method of that name).
    """
    positive_beta("dmpo_recommendation", beta)
    return Objective("dmpo_recommendation", (Term(BestVsRest(rest="mean"), beta=beta, name="dmpo"),))

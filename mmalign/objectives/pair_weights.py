"""The catalogue of weights: how much a pair counts. The loss inside is DPO's.

u is the log-ratio; z = beta * (u of chosen - u of rejected) everywhere. Weights are detached and never
negative.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives import labels, modifiers
from mmalign.objectives.base import CHOSEN, Computed, Context, require
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Term

__all__ = ["gapo_gap_aware", "madpo", "sem_dpo", "wpo", "wpo_unclamped"]

_WPO = "WPO: Enhancing RLHF with Weighted Preference Optimization"


def _weighted(name: str, beta: float, weight: Computed, label_smoothing: float = 0.0) -> Objective:
    positive_beta(name, beta)
    require(f"{name} label_smoothing", label_smoothing, 0 <= label_smoothing <= 0.5, "a number in [0, 0.5]")
    smooth = labels.smoothed(label_smoothing)
    return Objective(name, (Term(Pair(), beta=beta, weight=weight, labels=smooth),))


@objective(
    "wpo",
    fixes="off_policy",
    title=_WPO,
    paper="2406.11827",
    year=2024,
    sample={"beta": 0.01},
    parity=("text_wpo",),
    official_code="wzhouad/WPO a104458",
    status="parity",
    published={"beta": (0.01, "code")},
    departures=(
        "weights are at most 1, as in the official code; TRL does not bound them (wpo_unclamped)",
        "open-instruct multiplies summed log-probabilities by a token mask and leaves its weights attached: "
        "neither is copied",
    ),
    allows={"common level": "the weight looks at how likely the policy finds its own tokens"},
)
def wpo(*, beta: float, label_smoothing: float = 0.0) -> Objective:
    """DPO on pairs weighted by how likely the policy itself would have drawn them.

    weight = min(1, e^(a of chosen + a of rejected)), a = mean over tokens of log p - log sum of p^2
    loss = weight * (-(1 - e) * log sigmoid(z) - e * log sigmoid(-z)), e = label_smoothing

    extras["log_sum_squares"] holds log sum over the vocabulary of p^2 of every position, under the policy
    (`mmalign.likelihood.token_statistics.log_sum_squares`). The weight carries no gradient.

    Args:
        beta: > 0, per unit of score; 0.01 released.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.11827; wzhouad/WPO `get_batch_logps`, `dpo_loss`.
    """
    return _weighted("wpo", beta, modifiers.on_policy_weight(1.0), label_smoothing)


@objective(
    "wpo_unclamped",
    fixes="off_policy",
    title=_WPO,
    paper="2406.11827",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_wpo_trl",),
    official_code="trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code", "TRL's default")},
    departures=("a chosen and a rejected answer more likely than the policy's typical one weigh above 1",),
    allows={"common level": "the weight looks at how likely the policy finds its own tokens"},
)
def wpo_unclamped(*, beta: float, label_smoothing: float = 0.0) -> Objective:
    """WPO without the bound of 1 on its weights, as in TRL: weight = e^(a of chosen + a of rejected).

    Args:
        beta: > 0, per unit of score.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: trl 1.16.0, `use_weighting`.
    """
    return _weighted("wpo_unclamped", beta, modifiers.on_policy_weight(None), label_smoothing)


def _margin_adaptive(low: float, high: float, steepness: float, threshold: float) -> Computed:
    """sigmoid(c * h) / sigmoid(h) of the reward gap h, 1 where h <= -threshold."""
    gap = modifiers.reward_gap(1.0)

    def compute(context: Context) -> Tensor:
        h = gap.compute(context)
        ratio = (high - 1.0) / (1.0 - low)
        factor = low + (high - low) / (1.0 + ratio * torch.exp(steepness * (h.abs() - threshold)))
        # A ratio of probabilities as a difference of logarithms: exact where both are tiny.
        weight = (F.logsigmoid(factor * h) - F.logsigmoid(h)).exp()
        return torch.where(h > -threshold, weight, 1.0)

    formula = f"sigmoid(c h) / sigmoid(h), h = {gap.formula}, c from {high:g} to {low:g}"
    return Computed(compute, f"({formula})", gap.needs)


@objective(
    "madpo",
    fixes="temperature",
    title="Margin Adaptive DPO: Leveraging Reward Model for Granular Control in Preference Optimization",
    paper="2510.05342",
    year=2025,
    sample={"beta": 0.1, "low": 0.5, "high": 2.0, "steepness": 1.0, "threshold": 6.9},
    official_code="sirano1004/Margin-Apative-Direct-Preference-Optimization 306779b",
    status="formula",
    published={
        "beta": (0.1, "code"),
        "high": (2.0, "code", "called c_max"),
        "low": (0.5, "code", "called c_min, 1 / c_max"),
        "steepness": (1.0, "code", "called lambda"),
        "threshold": (6.9068, "code", "log(0.999 / 0.001), called tau"),
    },
    departures=("the ratio of sigmoids is computed from logarithms (official: 0 / 0 far below 0)",),
)
def madpo(*, beta: float, low: float, high: float, steepness: float, threshold: float) -> Objective:
    """DPO weighted by a frozen reward model: pairs it finds hard count more, pairs it finds easy less.

    h = reward of chosen - reward of rejected
    c = low + (high - low) / (1 + (high - 1) / (1 - low) * e^(steepness * (|h| - threshold)))
    weight = sigmoid(c * h) / sigmoid(h), and 1 where h <= -threshold
    loss = weight * -log sigmoid(z)

    c is 1 at |h| = threshold, where the weight passes through 1; the weight is continuous there.

    Args:
        beta: > 0, per unit of score.
        low: in (0, 1), c of very clear pairs; 0.5 released.
        high: > 1, bounds c of unclear pairs; 2 released.
        steepness: > 0, per unit of reward.
        threshold: > 0, in units of reward: log(0.999 / 0.001) released.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2510.05342; its code, `MADPOLoss`.
    """
    require("madpo low", low, 0 < low < 1, "a number in (0, 1)")
    require("madpo high", high, 1 < high < float("inf"), "a number > 1")
    require("madpo steepness", steepness, 0 < steepness < float("inf"), "a number > 0")
    require("madpo threshold", threshold, 0 < threshold < float("inf"), "a number > 0")
    return _weighted("madpo", beta, _margin_adaptive(low, high, steepness, threshold))


def _semantic(alpha: float) -> Computed:
    def compute(context: Context) -> Tensor:
        distance = modifiers.of_pairs(context, "semantic_distance", "sem_dpo")[:, CHOSEN]
        return torch.exp(-alpha * distance.clamp(min=0.0))

    return Computed(compute, f"exp(-{alpha:g} * semantic_distance[chosen])", frozenset({"semantic_distance"}))


@objective(
    "sem_dpo",
    fixes="label_noise",
    title="Sem-DPO: Mitigating Semantic Inconsistency in Preference Optimization for Prompt Engineering",
    paper="2507.20133",
    year=2025,
    sample={"beta": 0.1, "alpha": 2.0},
    status="experimental",
    unverified="the value of alpha; the form is the abstract's, and a summary of the paper writes the same",
)
def sem_dpo(*, beta: float, alpha: float) -> Objective:
    """DPO for rewriters of prompts: a winner that drifts from what the user meant counts less.

    weight = e^(-alpha * d), d = extras["semantic_distance"] of the chosen candidate
    loss = weight * -log sigmoid(z)

    d is the cosine distance, 0 to 2, between embeddings of the original prompt and of each candidate,
    [prompt, candidate].

    Args:
        beta: > 0, per unit of score.
        alpha: >= 0, per unit of distance; 0 is DPO.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2507.20133.
    """
    require("sem_dpo alpha", alpha, 0 <= alpha < float("inf"), "a number >= 0")
    return _weighted("sem_dpo", beta, _semantic(alpha))


@objective(
    "gapo_gap_aware",
    fixes="strength",
    title="Aligning Anime Video Generation with Human Feedback",
    paper="2504.10044",
    year=2025,
    sample={"beta": 5000.0},
    parity=("gapo",),
    official_code="bilibili/Index-anisora 171fe63",
    status="parity",
    published={
        "beta": (5000.0, "code", "per unit of half the error"),
        "base": (2.0, "code", "3 stands in a comment"),
        "reward_scale": (100.0, "code"),
    },
    departures=(
        "each pair has its own weight (official: one number for the batch, which works for one pair only)",
        "a pair whose reward contradicts its label weighs 0 (official: a negative weight, unbounded below)",
    ),
)
def gapo_gap_aware(*, beta: float, base: float = 2.0, reward_scale: float = 100.0) -> Objective:
    """DPO weighted by the gap of the rewards, counted on an exponential scale (not the text method GaPO).

    weight = max(0, base^(reward of chosen / reward_scale) - base^(reward of rejected / reward_scale))
    loss = weight * -log sigmoid(z)

    Weights lie in [0, base - 1] for rewards between 0 and reward_scale: the learning rate of DPO is too small
    by about the mean weight.

    Args:
        beta: > 0, per unit of score; 5000 released for video.
        base: > 1; 2 released.
        reward_scale: > 0, the reward's full scale; 100 released.

    Raises:
        HyperparameterError: out of range.

    Source: bilibili/Index-anisora, `VideoDiffusionLoss`.
    """
    require("gapo_gap_aware base", base, 1 < base < float("inf"), "a number > 1")
    require("gapo_gap_aware reward_scale", reward_scale, 0 < reward_scale < float("inf"), "a number > 0")
    return _weighted("gapo_gap_aware", beta, modifiers.reward_power_gap(base, reward_scale))

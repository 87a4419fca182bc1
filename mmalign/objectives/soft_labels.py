"""The catalogue of labels that say how sure they are, and of targets for the rewards themselves.

u is the log-ratio; q the probability that the chosen candidate is better; z as everywhere. A probability in
the data (`Labels.probability`) works with every pairwise objective; these rows say where a method takes its
q from.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.base import CHOSEN, REJECTED, Computed, Context, require
from mmalign.objectives.extras import Extra
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import ListReverse, Pair, Target
from mmalign.objectives.terms import Term

__all__ = [
    "adpo_pair",
    "cal_dpo",
    "mcts_dpo",
    "nemo_rpo_bwd_kl",
    "nemo_rpo_fwd_kl",
    "nemo_rpo_sq",
    "osp",
]


def _require_reward_scale(where: str, reward_scale: float) -> None:
    require(f"{where} reward_scale", reward_scale, 0 < reward_scale < float("inf"), "a number > 0")


@objective(
    "osp",
    fixes="label_noise",
    title="Online Self-Preferring Language Models",
    paper="2405.14103",
    year=2024,
    sample={"beta": 0.1},
    status="experimental",
    unverified="whether the paper scales or clips the judged strength: abstract and summaries say soft "
    "cross-entropy, its equation was not read",
    rollout="ranked pairs of the policy's own answers, judged by itself",
    departures=("the judged strength is Labels.probability; with hard labels this is DPO",),
)
def osp(*, beta: float) -> Objective:
    """Cross-entropy of judged preference strengths: -q * log sigmoid(z) - (1 - q) * log sigmoid(-z).

    z = beta * (u of chosen - u of rejected); q is Labels.probability of the data, which makes every pairwise
    objective an expectation over both orders of the pair.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2405.14103 (soft-preference cross-entropy).
    """
    positive_beta("osp", beta)
    return Objective("osp", (Term(Pair(), beta=beta),))


@objective(
    "adpo_pair",
    fixes="label_noise",
    title="ADPO: Anchored Direct Preference Optimization",
    paper="2510.18913",
    year=2025,
    sample={"temperature": 0.8, "reward_scale": 1.0},
    status="experimental",
    unverified="the formula of the soft pairwise variant, read in abstracts only: the author's code for "
    "language models has hard pairwise and soft listwise variants",
)
def adpo_pair(*, temperature: float, reward_scale: float) -> Objective:
    """DPO with labels as soft as a reward says, anchored at the reference.

    q = sigmoid(reward_scale * (reward of chosen - reward of rejected))
    z = (u of chosen - u of rejected) / temperature
    loss = -q * log sigmoid(z) - (1 - q) * log sigmoid(-z)

    The anchor is whatever reference the run has: frozen for offline data and distillation, a moving one for
    noisy online data.

    Args:
        temperature: > 0, in units of score; 1 / beta of DPO.
        reward_scale: > 0, per unit of reward.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2510.18913.
    """
    require("adpo_pair temperature", temperature, 0 < temperature < float("inf"), "a number > 0")
    _require_reward_scale("adpo_pair", reward_scale)
    soft = labels.mixed(modifiers.reward_preference(reward_scale))
    return Objective("adpo_pair", (Term(Pair(), beta=1.0 / temperature, labels=soft),))


def _tree_confidence() -> Computed:
    """1 - min(1/2, 1 - confidence), confidence = 1 / (1 + visits of rejected / max(1, visits of chosen))."""

    def compute(context: Context) -> Tensor:
        visits = modifiers.of_pairs(context, "visits", "mcts_dpo")
        confidence = 1.0 / (1.0 + visits[:, REJECTED] / visits[:, CHOSEN].clamp(min=1.0))
        return confidence.clamp(min=0.5)

    formula = "max(1/2, 1 / (1 + visits[rejected] / max(1, visits[chosen])))"
    return Computed(compute, formula, frozenset({"visits"}))


@objective(
    "mcts_dpo",
    fixes="label_noise",
    title="Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning",
    paper="2405.00451",
    year=2024,
    sample={"beta": 0.1},
    official_code="YuxiXie/MCTS-DPO fb23437",
    status="formula",
    rollout="steps of a tree search of the policy",
    departures=(
        "which positions count is the mask's matter: the official code sums from the first position where "
        "the two sequences differ",
        "the official code's option to divide by a power of the length is left out",
    ),
)
def mcts_dpo(*, beta: float) -> Objective:
    """Conservative DPO whose label smoothing is set by how often a tree search visited the two sides.

    e = min(1 - c, 1/2), c = 1 / (1 + visits of rejected / max(1, visits of chosen))
    z = beta * (u of chosen - u of rejected)
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z)

    extras["visits"] holds the tree's value of each candidate, >= 0, [prompt, candidate].

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2405.00451; YuxiXie/MCTS-DPO, `conservative`.
    """
    positive_beta("mcts_dpo", beta)
    return Objective("mcts_dpo", (Term(Pair(), beta=beta, labels=labels.mixed(_tree_confidence())),))


_RPO = "Nemotron-4 340B Technical Report"
_RPO_LOSES = "the reward decides: a pair whose reward contradicts its label is learnt the reward's way"


def _target_entropy(reward_scale: float) -> Extra:
    """Minus the entropy of the target: makes a cross-entropy the divergence it differs from by a constant."""
    gap = modifiers.reward_gap(reward_scale)

    def value(context: Context) -> Tensor:
        d = gap.compute(context).detach()
        entropy = torch.sigmoid(d) * F.softplus(-d) + torch.sigmoid(-d) * F.softplus(d)
        return torch.where(context.real().all(1), -entropy, 0.0)

    return Extra("target_entropy", value, f"-entropy of sigmoid({gap.formula})", needs=gap.needs)


@objective(
    "nemo_rpo_bwd_kl",
    fixes="strength",
    title=_RPO,
    paper="2406.11704",
    year=2024,
    sample={"beta": 0.1, "reward_scale": 1.0},
    parity=("text_nemo_rpo_bwd_kl",),
    official_code="NVIDIA/NeMo-Aligner af2b3bd",
    status="parity",
    published={"beta": (0.1, "code"), "reward_scale": (1.0, "code", "called gt_reward_scale")},
    departures=(_RPO_LOSES,),
)
def nemo_rpo_bwd_kl(*, beta: float, reward_scale: float) -> Objective:
    """Reward-aware preference optimisation: KL from the policy's preference to the reward model's.

    q = sigmoid(reward_scale * (reward of chosen - reward of rejected)), z = beta * (gap of u)
    loss = q * (log q - log sigmoid(z)) + (1 - q) * (log(1 - q) - log sigmoid(-z))

    That is DPO with the soft label q, less the entropy of q, so that the optimum costs 0.

    Args:
        beta: > 0, per unit of score.
        reward_scale: > 0, per unit of reward.

    Raises:
        HyperparameterError: out of range.

    Source: NVIDIA/NeMo-Aligner `loss_func`, "rpo_bwd_kl"; also arXiv 2502.00203.
    """
    positive_beta("nemo_rpo_bwd_kl", beta)
    _require_reward_scale("nemo_rpo_bwd_kl", reward_scale)
    soft = labels.mixed(modifiers.reward_preference(reward_scale))
    term = Term(Pair(), beta=beta, labels=soft)
    return Objective("nemo_rpo_bwd_kl", (term,), (_target_entropy(reward_scale),))


@objective(
    "nemo_rpo_fwd_kl",
    fixes="strength",
    title=_RPO,
    paper="2406.11704",
    year=2024,
    sample={"beta": 0.1, "reward_scale": 1.0},
    parity=("text_nemo_rpo_fwd_kl",),
    official_code="NVIDIA/NeMo-Aligner af2b3bd",
    status="parity",
    published={"beta": (0.1, "code"), "reward_scale": (1.0, "code", "called gt_reward_scale")},
    departures=(_RPO_LOSES,),
)
def nemo_rpo_fwd_kl(*, beta: float, reward_scale: float) -> Objective:
    """Reward-aware preference optimisation the other way: EXO whose target is a reward model's preference.

    P = softmax(beta * u), q = softmax(reward_scale * reward) over the two candidates
    loss = sum of P * (log P - log q)

    Args:
        beta: > 0, per unit of score.
        reward_scale: > 0, per unit of reward.

    Raises:
        HyperparameterError: out of range.

    Source: NVIDIA/NeMo-Aligner `loss_func`, "rpo_fwd_kl".
    """
    positive_beta("nemo_rpo_fwd_kl", beta)
    _require_reward_scale("nemo_rpo_fwd_kl", reward_scale)
    target = labels.softmax_of("reward", 1.0 / reward_scale)
    return Objective("nemo_rpo_fwd_kl", (Term(ListReverse(), beta=beta, labels=target),))


@objective(
    "nemo_rpo_sq",
    fixes="strength",
    title=_RPO,
    paper="2406.11704",
    year=2024,
    sample={"beta": 0.1, "reward_scale": 1.0},
    parity=("text_nemo_rpo_sq",),
    official_code="NVIDIA/NeMo-Aligner af2b3bd",
    status="parity",
    published={"beta": (0.1, "code"), "reward_scale": (1.0, "code", "called gt_reward_scale")},
    departures=(_RPO_LOSES,),
    allows={"logit": "the reward gap is a margin"},
)
def nemo_rpo_sq(*, beta: float, reward_scale: float) -> Objective:
    """Regression of the implicit reward gap on a reward model's: reward-aware optimisation by squares.

    loss = (beta * (u of chosen - u of rejected) - reward_scale * (reward of chosen - reward of rejected))^2

    Args:
        beta: > 0, per unit of score.
        reward_scale: > 0, per unit of reward.

    Raises:
        HyperparameterError: out of range.

    Source: NVIDIA/NeMo-Aligner `loss_func`, "rpo_sq".
    """
    positive_beta("nemo_rpo_sq", beta)
    _require_reward_scale("nemo_rpo_sq", reward_scale)
    gap = modifiers.reward_gap(reward_scale)
    return Objective("nemo_rpo_sq", (Term(Pair(), beta=beta, margin=gap, link=links.square(0.0)),))


@objective(
    "cal_dpo",
    fixes="displacement",
    on_errors="pointwise",
    title="Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
    paper="2412.14516",
    year=2024,
    sample={"beta": 0.1, "calibration": 1.0},
    official_code="Cal-DPO/Cal-DPO 378427b (calibration 1); tengxiao1/Cal-DPO 7d16b46 (calibration 0.5)",
    status="formula",
    published={
        "beta": (0.1, "code", "Pythia; 0.001 for Zephyr"),
        "calibration": (1.0, "code", "0.5 in the Zephyr release"),
    },
    departures=(
        "the logistic term has no beta, as in both releases: beta only sets the targets",
        "the Zephyr release averages the squares over the batch before it adds them: the mean is the same",
    ),
)
def cal_dpo(*, beta: float, calibration: float) -> Objective:
    """DPO whose log-ratios are pulled to the level a reward of +-1/2 would give them.

    loss = -log sigmoid(u of chosen - u of rejected)
           + calibration * ((u of chosen - 1 / (2 beta))^2 + (u of rejected + 1 / (2 beta))^2)

    The chosen answer must become more likely than under the reference; the gap ends near 1 / beta.

    Args:
        beta: > 0; the targets are +-1 / (2 beta) in the unit of the score.
        calibration: >= 0, weight of the squares; 1 and 0.5 released, 0 is DPO with beta 1.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2412.14516; its two code releases.
    """
    positive_beta("cal_dpo", beta)
    require("cal_dpo calibration", calibration, 0 <= calibration < float("inf"), "a number >= 0")
    target = 1.0 / (2.0 * beta)
    level = Term(
        Target(),
        link=links.square(0.0),
        labels=labels.Targets(target, -target),
        coefficient=calibration,
        name="calibration",
    )
    return Objective("cal_dpo", (Term(Pair()), level))

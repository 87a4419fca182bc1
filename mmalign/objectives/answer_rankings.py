"""The catalogue of ranked answers without a reference: PRO, KnowPAT, and ranking losses of reward heads.

p is the score under the trained model alone. Answers stand best first, or `Labels.relevance` orders them.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import extras, modifiers
from mmalign.objectives.base import Computed, Context, require, wide
from mmalign.objectives.extras import Extra
from mmalign.objectives.labels import PointLabels
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import AllPairs, Plackett, Point, ranked_ahead
from mmalign.objectives.terms import Score, Term

__all__ = ["knowpat_align", "more_ranking", "pro", "reward_ranking"]


def _stages_squared(weight: float, supervised: str) -> Extra:
    """Weight * (K - 1)^2 * negative log-likelihood, summed over positions, of the best of K real answers."""
    best, given = extras.nll("sequence_sum"), supervised == "given"

    def value(context: Context) -> Tensor:
        stages = context.real().sum(1).to(context.policy.dtype) - 1.0
        if not given:
            return stages.square() * best.value(context)
        share = wide(context.scores.extra("supervised", "the supervised term of pro")).detach()
        return stages.square() * -torch.where(context.real(), share * context.policy, 0.0).sum(1)

    needs = frozenset({"supervised"}) if given else frozenset[str]()
    formula = f"(K - 1)^2 * -policy[{'supervised' if given else 'best'}]"
    return Extra("nll", value, formula, weight, needs=needs, swaps=True)


@objective(
    "pro",
    fixes="lists",
    on_errors="reference_free",
    title="Preference Ranking Optimization for Human Alignment",
    paper="2306.17492",
    year=2023,
    sample={"sft_weight": 0.05},
    data="lists",
    parity=("text_pro",),
    official_code="AlibabaResearch/DAMO-ConvAI 483554e, PRO",
    status="parity",
    published={"sft_weight": (0.05, "code")},
    departures=(
        "the released 1e-10 inside the logarithm is left out: it stops the gradient of stages whose "
        "temperature times score lies below -23",
        "the supervised term is on the best answer; the release names one per list, supervised='given'",
    ),
)
def pro(*, sft_weight: float, supervised: Literal["best", "given"] = "best") -> Objective:
    """Plackett-Luce over answers with rewards as temperatures, plus likelihood of the best.

    stage i: log(exp(T_i p_i) + sum over later j of exp(T_ij p_j)) - T_i p_i
    T_ij = reward_i - reward_j, T_i = max over later j of T_ij, p the mean over positions
    loss = sum over stages + sft_weight * (K - 1)^2 * -(sum over positions of the best answer's score)

    Rewards must fall along the ranking.

    Args:
        sft_weight: >= 0 (0.05 released).
        supervised: the supervised term learns the "best" answer, or the one `extras["supervised"]` [prompt,
            candidate] marks with 1 ("given").

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2306.17492; AlibabaResearch/DAMO-ConvAI, `PRO/train/utils/process_manager.py`.
    """
    require("pro sft_weight", sft_weight, 0 <= sft_weight < float("inf"), "a number >= 0")
    if supervised not in ("best", "given"):
        raise HyperparameterError(explain("pro supervised", got=supervised, expected="'best' or 'given'"))
    term = Term(
        Plackett(modifiers.reward_gap_temperature()), Score(Reduction("mean"), anchor=0.0), name="ranking"
    )
    return Objective("pro", (term,), (_stages_squared(sft_weight, supervised),))


def _after(context: Context) -> Bool[Tensor, "prompt first second"]:
    """Whether the second real candidate is ranked after the first."""
    later, valid = ranked_ahead(context), context.valid
    return later if valid is None else later & valid.unsqueeze(2) & valid.unsqueeze(1)


def _relative_score(context: Context) -> Float[Tensor, "prompt candidate"]:
    """(p - lowest p) / (highest p - lowest p) over the real candidates; 1 where all are equal."""
    real, p = context.real(), context.policy
    info = torch.finfo(p.dtype)
    high = torch.where(real, p, info.min).amax(1, keepdim=True)
    low = torch.where(real, p, info.max).amin(1, keepdim=True)
    spread = high - low
    some = spread > 0
    share = torch.where(some, (p - low) / torch.where(some, spread, 1.0), 1.0)
    return torch.where(real, share, 0.0)


def _as_positive(context: Context) -> Tensor:
    return torch.where(_after(context).any(2), _relative_score(context), 0.0)


def _as_negative(context: Context) -> Tensor:
    after = _after(context).to(context.policy.dtype)
    mean = after / after.sum(2, keepdim=True).clamp(min=1.0)
    return (_as_positive(context).unsqueeze(2) * mean).sum(1)


@objective(
    "knowpat_align",
    fixes="lists",
    on_errors="reference_free",
    title="Knowledgeable Preference Alignment for LLMs in Domain-specific Question Answering",
    paper="2311.06503",
    year=2023,
    sample={"divisor": 3.0},
    data="lists",
    parity=("text_knowpat_align",),
    official_code="zjukg/KnowPAT 85b0861",
    status="parity",
    published={"divisor": (3.0, "code", "whatever the number of answers")},
    departures=(
        "answers that score all the same weigh 1 (official: 0 / 0)",
        "the alignment term alone: the release adds it to the supervised loss, weighted 0.01 to 0.1 in its "
        "runs and 100 by its default: objectives.sft() + 0.01 * objectives.knowpat_align(divisor=3)",
    ),
)
def knowpat_align(*, divisor: float) -> Objective:
    """Every answer but the last pushed up, those after it pushed down, weighted by where it stands now.

    loss = sum over i < K of w_i (softplus(-p_i) + mean over j > i of softplus(p_j)) / divisor
    w_i = (p_i - lowest p) / (highest p - lowest p), no gradient, p the mean over positions

    Scores are log-probabilities, below 0: softplus(-p) never saturates.

    Args:
        divisor: > 0; 3 in the official code, whatever K is.

    Raises:
        HyperparameterError: divisor <= 0.

    Source: arXiv 2311.06503; zjukg/KnowPAT, `train.py`, `align_loss`.
    """
    require("knowpat_align divisor", divisor, 0 < divisor < float("inf"), "a number > 0")
    coefficients = (
        Computed(_as_positive, "w"),
        Computed(_as_negative, "sum over better answers i of w_i / (number worse than i)"),
    )
    term = Term(
        Point(),
        Score(Reduction("mean"), anchor=0.0),
        labels=PointLabels(coefficients, coefficients),
        coefficient=1.0 / divisor,
        name="align",
    )
    return Objective("knowpat_align", (term,))


def _ordered_pairs(context: Context) -> Float[Tensor, " prompt"]:
    """How many pairs of real candidates of each prompt differ in relevance."""
    real, grade = context.real(), context.labels.relevance
    both = real.unsqueeze(2) & real.unsqueeze(1)
    differs = _after(context) if grade is None else (grade.unsqueeze(2) > grade.unsqueeze(1)) & both
    return differs.sum((1, 2)).to(context.policy.dtype)


def _per_pair_of_the_batch(factor: Computed | None, tasks: float) -> Computed:
    """Rows of the batch / ordered pairs of the batch, over all ranks, times the row's task weight."""

    def compute(context: Context) -> Tensor:
        pairs = _ordered_pairs(context)
        rows = (context.real().sum(1) >= 2).to(pairs.dtype)
        total = context.sum_across(torch.stack([pairs.sum(), rows.sum()]))
        share = (total[1] / total[0].clamp(min=1.0)).expand_as(pairs)
        return share if factor is None else tasks * factor.compute(context) * share

    text = "rows / ordered pairs of the batch"
    shown = text if factor is None else f"{tasks:g} * {factor.formula} * {text}"
    return Computed(compute, shown, frozenset() if factor is None else factor.needs, couples_rows=True)


_ONLY_COUNTS = {"rows apart": "rows share the number of pairs, which the labels decide and no score moves"}
_MORE = "On Diversified Preferences of Large Language Model Alignment"


def _ranked_heads(name: str, weight: Computed) -> Objective:
    return Objective(name, (Term(AllPairs(), Score(anchor=0.0), weight=weight, name="ranking"),))


@objective(
    "reward_ranking",
    fixes="lists",
    on_errors="reference_free",
    title=_MORE,
    paper="2312.07401",
    year=2023,
    sample={},
    data="lists",
    parity=("text_more_ranking",),
    official_code="dunzeng/MORE 94c54e4",
    status="parity",
    departures=("padding is Labels.valid; the official code marks it with negative scores",),
    allows=_ONLY_COUNTS,
)
def reward_ranking() -> Objective:
    """Bradley-Terry loss of a reward head over all ordered pairs of the batch, each weighing the same.

    loss = mean over all pairs i better than j of the batch of -log sigmoid(r_i - r_j); ties and padding are
    no pairs. `Scores.policy` holds the rewards.

    Source: dunzeng/MORE, `ranking_loss`.
    """
    return _ranked_heads("reward_ranking", _per_pair_of_the_batch(None, 1.0))


@objective(
    "more_ranking",
    fixes="objectives",
    on_errors="reference_free",
    title=_MORE,
    paper="2312.07401",
    year=2023,
    sample={"tasks": 3.0},
    data="lists",
    parity=("text_more_ranking",),
    official_code="dunzeng/MORE 94c54e4",
    status="parity",
    departures=(
        "padding is Labels.valid; the official code marks it with negative scores",
        "the weights of the tasks come from outside: the release solves for the smallest norm of a convex "
        "combination of the tasks' gradients",
    ),
    allows=_ONLY_COUNTS,
)
def more_ranking(*, tasks: float) -> Objective:
    """`reward_ranking` with a weight for every row's task, `extras["task_weight"]` [prompt].

    loss = tasks * sum over rows of task_weight * sum over pairs of -log sigmoid(r_i - r_j) / pairs of the
    batch

    Args:
        tasks: number of tasks, >= 1; with task weights that add up to 1 equal weights change nothing.

    Raises:
        HyperparameterError: tasks < 1.

    Source: arXiv 2312.07401; dunzeng/MORE, `more_ranking_loss`.
    """
    require("more_ranking tasks", tasks, 1 <= tasks < float("inf"), "a number >= 1")
    return _ranked_heads("more_ranking", _per_pair_of_the_batch(modifiers.given("task_weight"), tasks))

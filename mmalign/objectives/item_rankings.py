"""The catalogue of rankings inside one answer, and of answers cut into steps.

u is the log-ratio of an item of one list, or of an answer whose steps are weighted.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.objectives import modifiers
from mmalign.objectives.base import Computed, Context, wide
from mmalign.objectives.extras import Extra
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.rankings import graded
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import AllPairs, BestVsRest
from mmalign.objectives.terms import Score, Term

__all__ = ["irpo_incontext_ranking", "irpo_incontext_ranking_official", "tree_po", "tree_po_rank"]

_IRPO = "In-context Ranking Preference Optimization"


def _in_context(name: str, beta: float, own: float | None) -> Objective:
    positive_beta(name, beta)
    structure = BestVsRest(modifiers.graded_gain(), "mean", own=own)
    return Objective(name, (Term(structure, beta=beta, name="in_context"),))


_IRPO_SUM = "a mean over the items and, by the loop, over the lists (released code: a sum over the lists)"
_IRPO_SIGN = (
    "graded gains follow the given ranks: a relevant item far down the list may weigh less than others"
)


@objective(
    "irpo_incontext_ranking",
    fixes="lists",
    on_errors="axis",
    title=_IRPO,
    paper="2504.15477",
    year=2025,
    sample={"beta": 1.0},
    data="lists",
    parity=("text_irpo_incontext_ranking",),
    status="parity",
    published={"beta": (1.0, "code")},
    departures=(
        "an item is left out of its own rest; the released code lowers it by 100 before beta, so that "
        "exp(-100 beta) stays (4.5e-5 at beta 0.1): irpo_incontext_ranking_official",
        _IRPO_SUM,
        "IRPO is also iterative reasoning preference optimisation, the row irpo_reasoning",
    ),
    allows={"gradient signs": _IRPO_SIGN},
)
def irpo_incontext_ranking(*, beta: float) -> Objective:
    """Items of one generated list, each against the others, weighted by graded relevance and position.

    z_i = beta u_i - log mean over j != i of exp(beta u_j)
    loss = mean over items of (2^relevance_i - 1) / log2(1 + rank_i) * -log sigmoid(z_i)

    Candidates are segments of one answer: u is the log-ratio of a segment, `extras["rank"]` its position in
    the answer (1 = first).

    Args:
        beta: > 0, per unit of score (1 released).

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2504.15477; the authors' `trainers.py`, `rdpo_loss`.
    """
    return _in_context("irpo_incontext_ranking", beta, None)


@objective(
    "irpo_incontext_ranking_official",
    fixes="lists",
    on_errors="axis",
    title=_IRPO,
    paper="2504.15477",
    year=2025,
    sample={"beta": 0.1},
    data="lists",
    parity=("text_irpo_incontext_ranking",),
    status="parity",
    published={"beta": (1.0, "code")},
    departures=(_IRPO_SUM,),
    allows={"gradient signs": _IRPO_SIGN},
)
def irpo_incontext_ranking_official(*, beta: float) -> Objective:
    """`irpo_incontext_ranking` as released: every item stays in its own rest with the factor exp(-100 beta).

    Args:
        beta: > 0, per unit of score (1 released; there the factor is 4e-44).

    Raises:
        HyperparameterError: beta <= 0.

    Source: the authors' `trainers.py`, `rdpo_loss`.
    """
    return _in_context("irpo_incontext_ranking_official", beta, 100.0 * beta)


def _count(context: Context) -> Float[Tensor, " prompt"]:
    return context.real().sum(1).to(context.policy.dtype)


def _share_of_pairs() -> Computed:
    """2 / (K (K - 1)) for K real candidates: every unordered pair counts in both orders, as released."""

    def compute(context: Context) -> Tensor:
        count = _count(context)
        return 2.0 / (count * (count - 1.0)).clamp(min=1.0)

    return Computed(compute, "2 / (K (K - 1))")


def _undecided_pairs() -> Extra:
    """Log 2 for every tie and for each candidate against itself, over K (K - 1): a released constant."""

    def value(context: Context) -> Tensor:
        grade, real, count = graded(context, "tree_po_rank"), context.real(), _count(context)
        both = real.unsqueeze(2) & real.unsqueeze(1)
        tied = ((grade.unsqueeze(2) == grade.unsqueeze(1)) & both).sum((1, 2)).to(count.dtype)
        constant = tied * math.log(2.0) / (count * (count - 1.0)).clamp(min=1.0)
        return torch.where(count > 1, constant, 0.0)

    return Extra("undecided", value, "log 2 * (K + ordered ties) / (K (K - 1))")


_TREE = "TPO: Aligning Large Language Models with Multi-branch & Multi-step Preference Trees"
_TREE_CODE = "MrBlankness/TPO ba87a23"
_TREE_WRAPPER = (
    "the released loss wraps this one as -log sigmoid(beta * L), which falls when L rises: its gradient "
    "points the wrong way. Here beta scales the scores and the gradient points the right way"
)


@objective(
    "tree_po_rank",
    fixes="lists",
    on_errors="axis",
    title=_TREE,
    paper="2410.12854",
    year=2024,
    sample={"beta": 0.1},
    data="lists",
    parity=("text_tree_po_rank",),
    official_code=_TREE_CODE,
    status="parity",
    departures=(
        _TREE_WRAPPER,
        "the steps are not weighted here: tree_po does it",
    ),
)
def tree_po_rank(*, beta: float) -> Objective:
    """Ranking loss over all pairs of a preference tree's answers.

    loss = sum over pairs in both orders of -log sigmoid(sign(y_i - y_j) * beta (u_i - u_j)) / (K (K - 1))

    Ties and each candidate against itself add the constant log 2, without gradient, as released.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2410.12854; MrBlankness/TPO, `lambda_rank_loss`.
    """
    positive_beta("tree_po_rank", beta)
    term = Term(AllPairs(), beta=beta, weight=_share_of_pairs(), name="rank")
    return Objective("tree_po_rank", (term,), (_undecided_pairs(),))


def _step_weights() -> Computed:
    """`extras["step_weight"]` per position, scaled so that a mean over positions is the weighted mean."""

    def compute(context: Context) -> Tensor:
        weight, mask = wide(context.scores.extra("step_weight", "tree_po")), context.scores.mask
        share = torch.ones_like(weight) if mask is None else mask.to(weight.dtype)
        weight = torch.where(share != 0, weight, 0.0)
        total = (weight * share).sum(-1, keepdim=True)
        scaled = weight * share.sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
        return torch.where(total > 0, scaled, 0.0)

    return Computed(compute, "step_weight / its mean", frozenset({"step_weight"}))


@objective(
    "tree_po",
    fixes="lists",
    on_errors="axis",
    title=_TREE,
    paper="2410.12854",
    year=2024,
    sample={"beta": 0.1},
    data="lists",
    official_code=_TREE_CODE,
    departures=(
        _TREE_WRAPPER,
        "the released code lacks the shift between logits and labels, and the DCG weights its name promises",
    ),
)
def tree_po(*, beta: float) -> Objective:
    """`tree_po_rank` on scores whose steps are weighted: steps that resemble the best answer's count more.

    u = sum over steps of step_weight * log-ratio of the step / sum of step_weight

    The inner axis of the scores is the steps, each the mean over its tokens; `extras["step_weight"]` [prompt,
    candidate, step] is the cosine of a step's embedding to that of the same step of the best answer, plus 1.

    Scores without an inner axis are taken as the weighted means already.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2410.12854; MrBlankness/TPO, `loss.py`.
    """
    positive_beta("tree_po", beta)
    score = Score(Reduction("mean", weights=_step_weights()))
    term = Term(AllPairs(), score, beta=beta, weight=_share_of_pairs(), name="rank")
    return Objective("tree_po", (term,), (_undecided_pairs(),))

"""The catalogue of training from easy to hard pairs: the stages of Curry-DPO.

u is the log-ratio of a candidate.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmalign.objectives.base import wide
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Term

__all__ = [
    "Curriculum",
    "curriculum",
    "curry_dpo",
]


@dataclass(frozen=True)
class Curriculum:
    """Pairs of each prompt from easy to hard; stage k is the k-th of every prompt.

    Args:
        chosen: candidate number of the better one.
        rejected: candidate number of the other one.
        gap: difference of their relevance, falling along the stages.
        valid: False where a prompt has no such pair (padding, or a tie with the best).
    """

    chosen: Int[Tensor, "prompt stage"]
    rejected: Int[Tensor, "prompt stage"]
    gap: Float[Tensor, "prompt stage"]
    valid: Bool[Tensor, "prompt stage"]


def curriculum(
    relevance: Float[Tensor, "prompt candidate"],
    valid: Bool[Tensor, "prompt candidate"] | None = None,
) -> Curriculum:
    """Best candidate against each other one, in order of falling relevance gap: the stages of Curry-DPO.

    Stage 0 of all prompts is trained first, then stage 1 with the model of stage 0 as reference, and so on.

    Args:
        relevance: higher is better.
        valid: which candidates are real.

    Source: arXiv 2403.07230 (for four answers: best against fourth, third, second).
    """
    grade = wide(relevance)
    real = torch.ones_like(grade, dtype=torch.bool) if valid is None else valid
    low = torch.finfo(grade.dtype).min
    best = torch.where(real, grade, low).argmax(1, keepdim=True)
    gap = torch.where(real, grade.gather(1, best) - grade, -1.0).scatter(1, best, -1.0)
    gap, rejected = gap.sort(dim=1, descending=True, stable=True)
    gap, rejected = gap[:, :-1], rejected[:, :-1]
    counts = gap > 0
    return Curriculum(best.expand_as(rejected), rejected, torch.where(counts, gap, 0.0), counts)


@objective(
    "curry_dpo",
    fixes="lists",
    on_errors="outside",
    title="Curry-DPO: Enhancing Alignment using Curriculum Learning & Ranked Preferences",
    paper="2403.07230",
    year=2024,
    sample={"beta": 0.1},
    departures=("the rule is the order of the data, `objectives.rankings.curriculum`: the loss is dpo",),
)
def curry_dpo(*, beta: float) -> Objective:
    """DPO on several pairs per prompt, from the largest quality gap to the smallest.

    z = beta * (u of chosen - u of rejected), loss = -log sigmoid(z)

    `curriculum` makes the stages: the best answer against the worst, then against better and better ones. The
    reference of a stage is the model that the stage before it ended with.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2403.07230.
    """
    positive_beta("curry_dpo", beta)
    return Objective("curry_dpo", (Term(Pair(), beta=beta),))

"""What structures are made of: their inputs and results, their protocol, and the steps they share.

A structure reports, besides the loss of a prompt, its z and the size of the link's slope: half the sum of
|d loss / d (beta s)| over the candidates (for a pair: |d loss / d z|; for one candidate: the whole).
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmalign.errors import ShapeError
from mmalign.objectives.base import Context, per_candidate, wide
from mmalign.objectives.links import Link

__all__ = [
    "Compared",
    "Inputs",
    "Structure",
    "Words",
    "against_rest",
    "ahead",
    "best_candidate",
    "both_ways",
    "by_columns",
    "half_size",
    "list_logit",
    "minus",
    "ranked_ahead",
    "ranking",
    "require_pair",
    "require_several",
    "times",
]


@dataclass(frozen=True)
class Inputs:
    """What a structure works on.

    Args:
        score: s of every candidate, with gradient.
        beta: temperature, a number or [prompt].
        margin: margin or zero point in units of z: a number, [], [prompt] or [prompt, candidate].
        link: the loss as a function of z; that of liked candidates where roles have their own.
        link_rejected: the link of the other role.
        labels: of the type the structure names.
        context: for computed numbers.
    """

    score: Float[Tensor, "prompt candidate"]
    beta: float | Tensor
    margin: float | Tensor
    link: Link
    link_rejected: Link
    labels: Any
    context: Context

    @property
    def scaled(self) -> Float[Tensor, "prompt candidate"]:
        """Beta * s."""
        return per_candidate(self.beta) * self.score

    def masked(self, values: Tensor) -> Tensor:
        """`values` with the lowest finite number at padding."""
        valid = self.context.valid
        return values if valid is None else torch.where(valid, values, torch.finfo(values.dtype).min)


@dataclass(frozen=True)
class Compared:
    """What a structure returns for every prompt."""

    loss: Float[Tensor, " prompt"]
    logit: Float[Tensor, " prompt"]
    slope: Float[Tensor, " prompt"]


@dataclass(frozen=True)
class Words:
    """The parts of a term as they stand in a printed formula; links are templates with `{z}`."""

    link: str
    link_rejected: str
    labels: Any
    beta: str
    margin: str


@runtime_checkable
class Structure(Protocol):
    """How candidates are compared."""

    @property
    def labels(self) -> type:
        """Type of the labels it takes."""
        ...

    @property
    def points(self) -> bool:
        """Candidates are not compared with each other: the partition function does not cancel."""
        ...

    @property
    def swaps(self) -> bool:
        """The loss of an uncertain pair is the average over its two orders."""
        ...

    @property
    def couples_rows(self) -> bool:
        """The loss of a row depends on its batch mates."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Scores` it reads."""
        ...

    def compare(self, inputs: Inputs) -> Compared:
        """Loss, logit and slope per prompt."""
        ...

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        ...


def require_pair(score: Tensor, structure: str) -> None:
    """Refuse anything but two candidates.

    Raises:
        ShapeError: another number.
    """
    if score.shape[1] != 2:
        message = (
            f"{structure}: got {score.shape[1]} candidates, expected 2 (chosen, rejected). Use a listwise "
            "objective for more, a pointwise one for single candidates."
        )
        raise ShapeError(message)


def require_several(score: Tensor, structure: str) -> None:
    """Refuse single candidates.

    Raises:
        ShapeError: fewer than two.
    """
    if score.shape[1] < 2:
        message = f"{structure}: got {score.shape[1]} candidate, expected at least 2 to compare."
        raise ShapeError(message)


def both_ways(
    z: Tensor, link: Link, agree: float | Tensor, disagree: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Agree * link(z) + disagree * link(-z), and its slope in z."""
    loss, slope = agree * link.function(z), agree * link.slope(z.detach())
    if isinstance(disagree, Tensor) or disagree != 0.0:
        loss = loss + disagree * link.function(-z)
        slope = slope - disagree * link.slope(-z.detach())
    return loss, slope


def half_size(gradient: Float[Tensor, "prompt candidate"]) -> Float[Tensor, " prompt"]:
    """Half the sum of absolute values; the whole for a single candidate."""
    return gradient.abs().sum(1) * (1.0 if gradient.shape[1] == 1 else 0.5)


def best_candidate(context: Context) -> Int[Tensor, " prompt"]:
    """The candidate with the highest relevance, or candidate 0 where the data say no more."""
    relevance = context.labels.relevance
    if relevance is None:
        return torch.zeros(context.policy.shape[0], dtype=torch.int64, device=context.policy.device)
    values = wide(relevance)
    if context.valid is not None:
        values = torch.where(context.valid, values, torch.finfo(values.dtype).min)
    return values.argmax(1)


def _rank_key(context: Context) -> Float[Tensor, "prompt candidate"]:
    """What candidates are ranked by, highest first: relevance, or their position; padding has the lowest."""
    relevance = context.labels.relevance
    count, like = context.policy.shape[1], context.policy
    if relevance is None:
        key = torch.arange(0, -count, -1, device=like.device).to(like.dtype).expand_as(like)
    else:
        key = wide(relevance)
    return key if context.valid is None else torch.where(context.valid, key, torch.finfo(key.dtype).min)


def ranking(context: Context) -> Int[Tensor, "prompt candidate"]:
    """Candidates from best to worst, padding last, ties in their given order."""
    return _rank_key(context).argsort(dim=1, descending=True, stable=True)


def by_columns(values: Shaped[Tensor, "prompt candidate"]) -> Shaped[Tensor, "prompt candidate"]:
    """The same values stored candidate after candidate.

    What pairs every two of them then runs along the prompts, not along two or three candidates: ten times as
    fast on a CPU.
    """
    return values.t().contiguous().t()


def ahead(key: Float[Tensor, "prompt candidate"]) -> Bool[Tensor, "prompt first second"]:
    """Whether the first candidate's key is higher, or as high and given earlier: a stable order, unsorted."""
    count, key = key.shape[1], by_columns(key)
    earlier = torch.ones(count, count, dtype=torch.bool, device=key.device).triu(1)
    first, second = key.unsqueeze(2), key.unsqueeze(1)
    return (first > second) | ((first == second) & earlier)


def ranked_ahead(context: Context) -> Bool[Tensor, "prompt first second"]:
    """Whether the first candidate comes before the second in `ranking`."""
    return ahead(_rank_key(context))


def against_rest(
    scaled: Tensor,
    valid: Bool[Tensor, "prompt candidate"] | None = None,
    rest: Literal["logmeanexp", "mean"] = "logmeanexp",
    own: float | None = None,
) -> Float[Tensor, "prompt candidate"]:
    """Each entry minus the (log-mean-exp or) mean of the other real ones; 0 where there are no others."""
    count = scaled.shape[1]
    if count == 2 and own is None:
        difference = scaled - scaled.flip(1)
        return difference if valid is None else torch.where(valid.all(1, keepdim=True), difference, 0.0)
    real = torch.ones_like(scaled, dtype=torch.bool) if valid is None else valid
    others = real.sum(1, keepdim=True) - 1
    number = others.clamp(min=1).to(scaled.dtype)
    if rest == "mean":
        kept = torch.where(real, scaled, 0.0)
        mean = (kept.sum(1, keepdim=True) - kept) / number
    else:
        itself = torch.eye(count, dtype=torch.bool, device=scaled.device)
        seen = ~itself if valid is None else valid.unsqueeze(1) & ~itself
        spread = torch.where(seen, scaled.unsqueeze(1), torch.finfo(scaled.dtype).min)
        if own is not None:
            spread = torch.where(itself, scaled.unsqueeze(2) - own, spread)
        if valid is not None:  # a row of nothing but the lowest number has no gradient
            spread = torch.where((others > 0).unsqueeze(2), spread, 0.0)
        mean = spread.logsumexp(2) - number.log()
    return scaled - mean if valid is None else torch.where((others > 0) & valid, scaled - mean, 0.0)


def list_logit(scaled: Tensor, context: Context) -> Float[Tensor, " prompt"]:
    """Z of the best candidate against the others; for two candidates beta * (s of chosen - s of rejected)."""
    values, valid = scaled.detach(), context.valid
    if context.labels.relevance is None and values.shape[1] == 2:
        difference = values[:, 0] - values[:, 1]
        return difference if valid is None else torch.where(valid.all(1), difference, 0.0)
    best = best_candidate(context).unsqueeze(1)
    others = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    others = others.scatter(1, best, False)
    number = others.sum(1).to(values.dtype)
    rest = torch.where(others, values, torch.finfo(values.dtype).min).logsumexp(1)
    logit = values.gather(1, best).squeeze(1) - (rest - number.clamp(min=1).log())
    return logit if valid is None else torch.where(number > 0, logit, 0.0)


def minus(left: str, right: str) -> str:
    """`left - right` as it is written; a zero is left out."""
    if right.startswith("-"):
        return f"{left} + {right[1:]}"
    return left if right == "0" else f"{left} - {right}"


def times(beta: str, score: str) -> str:
    """`beta * score` as it is written; a one is left out, and with it the brackets around a difference."""
    if beta != "1":
        return f"{beta} * {score}"
    bare = score[1:-1]
    return bare if score == f"({bare})" and not {"(", ")"} & set(bare) else score

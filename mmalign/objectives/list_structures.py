"""Structures of lists: every pair, a target distribution, stages of choice, each item against the others.

They take any number of candidates from two on, ordered by `Labels.relevance` or, without it, by position.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives.base import Computed, Context, Number, needs_of, per_candidate, resolve, shown
from mmalign.objectives.comparisons import (
    Compared,
    Inputs,
    Words,
    against_rest,
    best_candidate,
    both_ways,
    by_columns,
    half_size,
    list_logit,
    minus,
    ranking,
    require_several,
    times,
)
from mmalign.objectives.labels import Distribution, PairLabels, pair_coefficients

__all__ = [
    "AllPairs",
    "BestVsRest",
    "ListForward",
    "ListReverse",
    "Plackett",
]


def _better(context: Context) -> Bool[Tensor, "prompt first second"]:
    """Whether the first candidate is preferred to the second: by relevance, or by position (best first)."""
    relevance, valid = context.labels.relevance, context.valid
    if relevance is None:
        count = context.policy.shape[1]
        better = torch.ones(count, count, dtype=torch.bool, device=context.policy.device).triu(1)
        better = better.expand(context.policy.shape[0], -1, -1)
    else:
        grade = by_columns(relevance)
        better = grade.unsqueeze(2) > grade.unsqueeze(1)
    return better if valid is None else better & valid.unsqueeze(2) & valid.unsqueeze(1)


@dataclass(frozen=True)
class AllPairs:
    """Weighted sum over the ordered pairs of a list: every candidate against every less relevant one.

    Args:
        weight: weight of each pair, [prompt, first, second] (LambdaRank style), or a number.
        aggregate: "sum" over pairs, or "mean" (a prompt without an ordered pair gets 0).
    """

    weight: Number = 1.0
    aggregate: Literal["sum", "mean"] = "sum"
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """What the weights read."""
        return needs_of(self.weight)

    def compare(self, inputs: Inputs) -> Compared:
        """All comparisons of a prompt at once."""
        require_several(inputs.score, "all_pairs")
        context, scaled = inputs.context, inputs.scaled
        better = _better(context)
        stored = by_columns(scaled)
        z = stored.unsqueeze(2) - stored.unsqueeze(1)
        margin = inputs.margin
        if isinstance(margin, Tensor) and margin.ndim == 1:
            margin = margin.reshape(-1, 1, 1)
        z = torch.where(better, z - margin, 0.0)
        coefficients = pair_coefficients(inputs.labels, context)
        agree, disagree = (
            c.reshape(-1, 1, 1) if isinstance(c, Tensor) and c.ndim == 1 else c for c in coefficients
        )
        loss, slope = both_ways(z, inputs.link, agree, disagree)
        weight = resolve(self.weight, context)
        loss, slope = torch.where(better, weight * loss, 0.0), torch.where(better, weight * slope, 0.0)
        share = 1.0 if self.aggregate == "sum" else 1.0 / better.sum((1, 2)).clamp(min=1).to(loss.dtype)
        gradient = slope.sum(2) - slope.sum(1)
        return Compared(share * loss.sum((1, 2)), list_logit(scaled, context), share * half_size(gradient))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        weighted = times(shown(self.weight), words.labels.formula(words.link))
        return (
            f"{self.aggregate} over pairs i better than j of {weighted}",
            minus(times(words.beta, "(s[i] - s[j])"), words.margin),
        )


class _List:
    labels: ClassVar[type] = Distribution
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = False  # the target distribution already holds the pair's probability
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class ListForward(_List):
    """Cross-entropy of a target distribution under softmax(beta * s)."""

    def compare(self, inputs: Inputs) -> Compared:
        """-sum of q log softmax(beta s)."""
        require_several(inputs.score, "list_forward")
        context, scaled = inputs.context, inputs.scaled
        log_share = F.log_softmax(inputs.masked(scaled), dim=1)
        target = torch.where(context.real(), inputs.labels.log_weights(context).detach().exp(), 0.0)
        loss = -torch.where(context.real(), target * log_share, 0.0).sum(1)
        gradient = log_share.detach().exp() * target.sum(1, keepdim=True) - target
        return Compared(loss, list_logit(scaled, context), half_size(gradient))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return f"-sum over candidates of q log softmax(z), q = {words.labels.formula}", times(words.beta, "s")


@dataclass(frozen=True)
class ListReverse(_List):
    """KL of softmax(beta * s) from a target distribution; with two candidates EXO."""

    def compare(self, inputs: Inputs) -> Compared:
        """Sum of P (log P - log q), P = softmax(beta s)."""
        require_several(inputs.score, "list_reverse")
        context, scaled = inputs.context, inputs.scaled
        log_share = F.log_softmax(inputs.masked(scaled), dim=1)
        target = inputs.labels.log_weights(context).detach()
        gap = torch.where(context.real(), log_share - target, 0.0)
        share = log_share.exp()
        loss = (share * gap).sum(1)
        gradient = (share * (gap - loss.unsqueeze(1))).detach()
        return Compared(loss, list_logit(scaled, context), half_size(gradient))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return (
            f"sum over candidates of P (log P - log q), P = softmax(z), q = {words.labels.formula}",
            times(words.beta, "s"),
        )


@dataclass(frozen=True)
class Plackett:
    """Plackett-Luce: the best is chosen from all, the second from the rest, and so on.

    Args:
        temperature: factor of candidate j in the stage of candidate i, [prompt, i, j], or None for 1 (PRO
            uses reward gaps).
        aggregate: "sum" over the stages that have a choice, or their "mean".
    """

    temperature: Computed | None = None
    aggregate: Literal["sum", "mean"] = "sum"
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """What the temperatures read."""
        return needs_of(self.temperature)

    def compare(self, inputs: Inputs) -> Compared:
        """Sum over stages of logsumexp over the remaining candidates minus the chosen one."""
        require_several(inputs.score, "plackett")
        context, scaled = inputs.context, inputs.scaled
        order, count, valid = ranking(context), scaled.shape[1], context.valid
        ranked = scaled.gather(1, order)
        # The last has nothing left to be chosen from: one stage less than candidates.
        remaining = torch.ones(count - 1, count, dtype=torch.bool, device=scaled.device).triu()
        if valid is None:
            counts, kept = None, remaining
        else:
            kept = remaining & valid.gather(1, order).unsqueeze(1)
            counts = kept.diagonal(dim1=1, dim2=2) & (kept.sum(2) > 1)
        heat: float | Tensor = 1.0
        logits = ranked.unsqueeze(1).expand(-1, count - 1, -1)
        if self.temperature is not None:
            table = torch.as_tensor(resolve(self.temperature, context)).to(scaled)
            rows = table.gather(1, order[:, :-1].unsqueeze(2).expand(-1, -1, count))
            heat = rows.gather(2, order.unsqueeze(1).expand(-1, count - 1, -1))
            logits = logits * heat
        spread = torch.where(kept, logits, torch.finfo(scaled.dtype).min)
        own = logits.diagonal(dim1=1, dim2=2)
        if counts is not None:
            spread = torch.where(counts.unsqueeze(2), spread, 0.0)
            kept = kept & counts.unsqueeze(2)
        whole = spread.logsumexp(2)
        stages = whole - own if counts is None else torch.where(counts, whole - own, 0.0)
        share: float | Tensor = 1.0
        if self.aggregate == "mean":
            number = count - 1 if counts is None else counts.sum(1).clamp(min=1).to(scaled.dtype)
            share = 1.0 / number
        loss = share * stages.sum(1)
        chosen = torch.eye(count - 1, count, dtype=scaled.dtype, device=scaled.device)
        likely = (spread.detach() - whole.detach().unsqueeze(2)).exp()
        gradient = torch.where(kept, (likely - chosen) * heat, 0.0).sum(1)
        return Compared(loss, list_logit(scaled, context), share * half_size(gradient))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        heat = "" if self.temperature is None else f", z in stage i times {self.temperature.formula}"
        return (
            f"{self.aggregate} over stages i of logsumexp over j >= i of z[j] - z[i], best first{heat}",
            times(words.beta, "s"),
        )


@dataclass(frozen=True)
class BestVsRest:
    """Each item against the others: loss = sum of weight * link(z), z = beta * s - rest of the list.

    Args:
        weight: weight of each item, [prompt, candidate]; None weighs the best with 1 and the others with 0.
        aggregate: "sum" or "mean" over the real items.
        rest: what stands for the others: "logmeanexp" of their beta * s, or their "mean".
        own: None leaves an item out of its own rest; a number lets it in, lowered by so much in units of z
            (some released code removes it that way).
    """

    weight: Number | None = None
    aggregate: Literal["sum", "mean"] = "sum"
    rest: Literal["logmeanexp", "mean"] = "logmeanexp"
    own: float | None = None
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """What the weights read."""
        return needs_of(self.weight)

    def compare(self, inputs: Inputs) -> Compared:
        """One comparison per item."""
        require_several(inputs.score, "best_vs_rest")
        context, scaled = inputs.context, inputs.scaled
        z = against_rest(scaled, context.valid, self.rest, self.own) - per_candidate(inputs.margin)
        agree, disagree = (per_candidate(c) for c in pair_coefficients(inputs.labels, context))
        real = context.real()
        weight: float | Tensor
        if self.weight is None:
            best = best_candidate(context).unsqueeze(1)
            z, real = z.gather(1, best), real.gather(1, best)
            weight = 1.0
        else:
            weight = per_candidate(resolve(self.weight, context))
        loss, slope = both_ways(z, inputs.link, agree, disagree)
        counts = context.real().sum(1).clamp(min=1).to(scaled.dtype)
        share = 1.0 if self.aggregate == "sum" else 1.0 / counts
        loss = share * torch.where(real, weight * loss, 0.0).sum(1)
        slope = share * torch.where(real, weight * slope, 0.0).abs().sum(1)
        return Compared(loss, list_logit(scaled, context), slope)

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        kept = "" if self.own is None else f" and of itself - {self.own:g}"
        if self.weight is None:
            return words.labels.formula(words.link), minus(
                times(words.beta, f"(s[best] - {self.rest} of the others{kept})"), words.margin
            )
        weighted = times(shown(self.weight), words.labels.formula(words.link))
        return f"{self.aggregate} over items of {weighted}", minus(
            times(words.beta, f"(s - {self.rest} of the others{kept})"), words.margin
        )

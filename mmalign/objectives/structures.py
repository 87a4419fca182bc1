"""Part E: structures. A structure turns scaled scores into losses per prompt through a link and labels.

With two candidates and a hard label `pair`, `list_forward`, `plackett`, `all_pairs` and `best_vs_rest` are
the same loss (DPO), and `list_reverse` is EXO. Here stand those that compare two candidates, or a candidate
with a zero point; those of lists are in `list_structures`, what all share is in `comparisons`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mmalign.errors import HyperparameterError, ShapeError, explain
from mmalign.objectives.base import CHOSEN, REJECTED, per_candidate, per_prompt
from mmalign.objectives.comparisons import (
    Compared,
    Inputs,
    Structure,
    Words,
    ahead,
    best_candidate,
    both_ways,
    by_columns,
    half_size,
    list_logit,
    minus,
    ranked_ahead,
    require_pair,
    times,
)
from mmalign.objectives.labels import PairLabels, PointLabels, Targets, is_desirable, pair_coefficients
from mmalign.objectives.list_structures import AllPairs, BestVsRest, ListForward, ListReverse, Plackett

__all__ = [
    "AllPairs",
    "BestVsRest",
    "Compared",
    "Contrast",
    "Inputs",
    "ListForward",
    "ListReverse",
    "Matched",
    "Pair",
    "Plackett",
    "Point",
    "Structure",
    "Target",
    "Words",
    "ahead",
    "best_candidate",
    "by_columns",
    "ranked_ahead",
]


@dataclass(frozen=True)
class Pair:
    """loss = link(z), z = beta * (s of chosen - s of rejected) - margin."""

    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def compare(self, inputs: Inputs) -> Compared:
        """One comparison per prompt."""
        require_pair(inputs.score, "pair")
        difference = inputs.score[:, CHOSEN] - inputs.score[:, REJECTED]
        z = per_prompt(inputs.beta) * difference - per_prompt(inputs.margin)
        agree, disagree = pair_coefficients(inputs.labels, inputs.context)
        loss, slope = both_ways(z, inputs.link, agree, disagree)
        return Compared(loss, z, slope.abs())

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return words.labels.formula(words.link), minus(
            times(words.beta, "(s[chosen] - s[rejected])"), words.margin
        )


@dataclass(frozen=True)
class Contrast:
    """One comparison of several candidates: loss = link(z), z = beta * sum of coefficient * s - margin.

    `Contrast((1, -1))` is `Pair()`. The coefficients of one prompt should add up to 0, so that the partition
    function cancels.

    Args:
        coefficients: factor of every candidate, in their order.

    Raises:
        HyperparameterError: fewer than two coefficients, or one that is not finite.
    """

    coefficients: tuple[float, ...]
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if len(self.coefficients) < 2 or not all(abs(c) < float("inf") for c in self.coefficients):
            message = explain(
                "contrast coefficients", got=self.coefficients, expected="two or more finite numbers"
            )
            raise HyperparameterError(message)

    @property
    def at_least(self) -> int:
        """Real candidates that a prompt needs to count: all of them."""
        return len(self.coefficients)

    def compare(self, inputs: Inputs) -> Compared:
        """One comparison per prompt."""
        if inputs.score.shape[1] != len(self.coefficients):
            message = (
                f"contrast: got {inputs.score.shape[1]} candidates, expected {len(self.coefficients)}, one "
                "per coefficient."
            )
            raise ShapeError(message)
        combined = torch.stack([c * inputs.score[:, k] for k, c in enumerate(self.coefficients)]).sum(0)
        z = per_prompt(inputs.beta) * combined - per_prompt(inputs.margin)
        agree, disagree = pair_coefficients(inputs.labels, inputs.context)
        loss, slope = both_ways(z, inputs.link, agree, disagree)
        return Compared(loss, z, slope.abs())

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        kept = [(k, c) for k, c in enumerate(self.coefficients) if c != 0.0]
        text = " + ".join(f"s[{k}]" if c == 1.0 else f"{c:g} * s[{k}]" for k, c in kept)
        text = text.replace("+ -1 * ", "- ").replace("+ -", "- ")
        return words.labels.formula(words.link), minus(times(words.beta, f"({text})"), words.margin)


@dataclass(frozen=True)
class Point:
    """Every candidate against a zero point: loss = sum of each one's link of z = beta * s - zero."""

    labels: ClassVar[type] = PointLabels
    points: ClassVar[bool] = True
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def compare(self, inputs: Inputs) -> Compared:
        """One comparison per candidate, added up."""
        context = inputs.context
        desirable = is_desirable(context)
        z = inputs.scaled - per_candidate(inputs.margin)
        agree, disagree = inputs.labels.coefficients(desirable, z, context)
        if inputs.labels.opposed and inputs.link_rejected is inputs.link:
            # Each role has one side: the link is taken once, of z turned for those that are not liked.
            turned, size = torch.where(desirable, z, -z), torch.where(desirable, agree, disagree)
            loss, slope = size * inputs.link.function(turned), size * inputs.link.slope(turned.detach())
        else:
            loss, slope = both_ways(z, inputs.link, agree, disagree)
        if inputs.link_rejected is not inputs.link:
            other_loss, other_slope = both_ways(z, inputs.link_rejected, agree, disagree)
            loss, slope = torch.where(desirable, loss, other_loss), torch.where(desirable, slope, other_slope)
        if context.valid is not None:
            loss, slope = torch.where(context.valid, loss, 0.0), torch.where(context.valid, slope, 0.0)
        logit = torch.where(desirable, z, -z)[:, 0] if z.shape[1] == 1 else list_logit(z, context)
        return Compared(loss.sum(1), logit, half_size(slope))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return f"sum over candidates of {words.labels.formula(words.link, words.link_rejected)}", minus(
            times(words.beta, "s"), words.margin
        )


@dataclass(frozen=True)
class Target:
    """Regression: loss = sum of link(z), z = beta * s - target, usually with a square link at 0."""

    labels: ClassVar[type] = Targets
    points: ClassVar[bool] = True
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def compare(self, inputs: Inputs) -> Compared:
        """One regression per candidate, added up; the logit compares candidates, if there are several."""
        context, scaled = inputs.context, inputs.scaled
        single = scaled.shape[1] == 1 and context.labels.desirable is None
        desirable = context.real() if single else is_desirable(context)
        z = scaled - inputs.labels.values(desirable, scaled, context)
        loss, slope = inputs.link.function(z), inputs.link.slope(z.detach())
        if context.valid is not None:
            loss, slope = torch.where(context.valid, loss, 0.0), torch.where(context.valid, slope, 0.0)
        logit = (
            torch.where(desirable, scaled, -scaled)[:, 0]
            if scaled.shape[1] == 1
            else list_logit(scaled, context)
        )
        return Compared(loss.sum(1), logit, half_size(slope))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return (
            f"sum over candidates of {words.link.format(z='z')}",
            f"{times(words.beta, 's')} - {words.labels.formula()}",
        )


@dataclass(frozen=True)
class Matched:
    """Both sides sorted within the batch, then compared rank by rank (AOT).

    Sorting stays within the micro-batch of one rank: with one row it is the plain comparison.

    Args:
        sides: "candidates" sorts s of the chosen and s of the rejected candidates; "models" sorts the
            policy's and the reference's own gaps between chosen and rejected.
    """

    sides: Literal["candidates", "models"]
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.sides not in ("candidates", "models"):
            raise HyperparameterError(
                explain("matched sides", got=self.sides, expected="'candidates' or 'models'")
            )

    @property
    def needs(self) -> frozenset[str]:
        """Comparing models needs the reference itself."""
        return frozenset({"reference"}) if self.sides == "models" else frozenset()

    def compare(self, inputs: Inputs) -> Compared:
        """Losses in the order of the rows whose first side they come from."""
        require_pair(inputs.score, "matched")
        context = inputs.context
        if self.sides == "candidates":
            first, second = inputs.score[:, CHOSEN], inputs.score[:, REJECTED]
        else:
            reference = context.policy if context.reference is None else context.reference
            first = context.policy[:, CHOSEN] - context.policy[:, REJECTED]
            second = reference[:, CHOSEN] - reference[:, REJECTED]
        if context.valid is not None:
            # Rows that do not count meet each other at the end.
            high = torch.finfo(first.dtype).max
            whole = context.valid.all(1)
            first, second = torch.where(whole, first, high), torch.where(whole, second, high)
        first, order = first.sort(stable=True)
        second, _ = second.sort(stable=True)
        back = order.argsort()
        z = per_prompt(inputs.beta) * (first - second)[back] - per_prompt(inputs.margin)
        agree, disagree = pair_coefficients(inputs.labels, context)
        probability = context.labels.probability
        if probability is not None:
            # Sorting mixes the rows, so an uncertain label turns its row's comparison instead of its pair.
            q = probability.to(z.dtype)
            agree, disagree = q * agree + (1.0 - q) * disagree, q * disagree + (1.0 - q) * agree
        loss, slope = both_ways(z, inputs.link, agree, disagree)
        return Compared(loss, z, slope.abs())

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        sides = (
            "(sorted s[chosen] - sorted s[rejected])"
            if self.sides == "candidates"
            else "(sorted policy gaps - sorted reference gaps)"
        )
        return words.labels.formula(words.link), minus(times(words.beta, sides), words.margin)

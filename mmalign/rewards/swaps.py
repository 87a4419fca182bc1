"""Pairs judged in both orders: a win is a win in both, everything else is counted as what it is.

A judge that prefers whatever it sees first looks like a judge until the order is turned. So each pair is
asked twice; the same candidate both times wins, two different answers are an inconsistent tie, and a pair
with an answer that cannot be read is invalid: no win for anybody.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ShapeError, explain
from mmalign.rewards.verdicts import Choice

__all__ = [
    "DigitScores",
    "OrderLogOdds",
    "PositionRates",
    "Verdict",
    "both_orders",
    "digit_scores",
    "order_log_odds",
    "position_rates",
    "verdict_value",
]

Verdict = Literal["first", "second", "tie", "inconsistent", "invalid"]
"""What both orders together say about the candidates, whichever was shown first."""

Orders = tuple[Choice | None, Choice | None]
"""Choices of one pair: candidates in order, candidates swapped; None = the answer was invalid."""

_TURNED: dict[Choice, Choice] = {"one": "two", "two": "one", "tie": "tie"}


def both_orders(forward: Choice | None, swapped: Choice | None) -> Verdict:
    """The verdict on a pair from its two answers.

    Args:
        forward: the choice when the first candidate was shown first; None = invalid.
        swapped: the choice when it was shown second.
    """
    if forward is None or swapped is None:
        return "invalid"
    if forward != _TURNED[swapped]:
        return "inconsistent"
    return "tie" if forward == "tie" else "first" if forward == "one" else "second"


def verdict_value(verdict: Verdict) -> float:
    """What a verdict is worth to the first candidate: 1, 0, 0.5 for both kinds of tie, NaN for invalid."""
    return {"first": 1.0, "second": 0.0, "tie": 0.5, "inconsistent": 0.5, "invalid": math.nan}[verdict]


@dataclass(frozen=True)
class PositionRates:
    """How a judge treats positions.

    Args:
        num_pairs: pairs asked in both orders.
        num_valid: of them, with two answers that could be read.
        num_decided: of the valid ones, without a tie in either answer.
        num_inconsistent: of the valid ones, with different verdicts in the two orders.
        num_shown_first: answers of decided pairs that chose what was shown first, at most 2 * num_decided.
    """

    num_pairs: int
    num_valid: int
    num_decided: int
    num_inconsistent: int
    num_shown_first: int

    @property
    def consistency_rate(self) -> float:
        """Share of valid pairs whose two verdicts agree; NaN without any."""
        return 1.0 - self.num_inconsistent / self.num_valid if self.num_valid else math.nan

    @property
    def first_position_rate(self) -> float:
        """Share of answers that chose what was shown first, over decided pairs; 0.5 = no preference."""
        return self.num_shown_first / (2 * self.num_decided) if self.num_decided else math.nan

    @property
    def invalid_rate(self) -> float:
        """Share of pairs with an answer that could not be read."""
        return 1.0 - self.num_valid / self.num_pairs if self.num_pairs else math.nan

    def as_dict(self) -> dict[str, float | int | None]:
        """Counts and rates for JSON; a rate of nothing is None."""
        names = ("consistency_rate", "first_position_rate", "invalid_rate")
        rates = {name: float(getattr(self, name)) for name in names}
        return {**vars(self), **{name: None if math.isnan(rate) else rate for name, rate in rates.items()}}


def position_rates(pairs: Iterable[Orders]) -> PositionRates:
    """Counts over pairs of (choice in order, choice swapped)."""
    listed = list(pairs)
    valid = [pair for pair in listed if None not in pair]
    decided = [pair for pair in valid if "tie" not in pair]
    return PositionRates(
        num_pairs=len(listed),
        num_valid=len(valid),
        num_decided=len(decided),
        num_inconsistent=sum(both_orders(*pair) == "inconsistent" for pair in valid),
        num_shown_first=sum(choice == "one" for pair in decided for choice in pair),
    )


# -------------------------------------------------------------------------------- logit mode


@dataclass(frozen=True)
class DigitScores:
    """Expected scores read from next-token probabilities.

    Args:
        expected: sum_s s p(s), p renormalised over the scale's tokens.
        spread: standard deviation of the score under p; the judge's own doubt.
        mass: probability of all the scale's tokens together before renormalising; near 0 = the model was
            about to write something else, and the expectation means little.
    """

    expected: Float[Tensor, " sample"]
    spread: Float[Tensor, " sample"]
    mass: Float[Tensor, " sample"]


def digit_scores(log_probs: Float[Tensor, "sample score"], scale: Sequence[float | int]) -> DigitScores:
    """Expected score of every sample from the log-probabilities of the tokens of a scale.

    p(s) = exp(l_s) / sum_t exp(l_t),  expected = sum_s s p(s),  spread^2 = sum_s (s - expected)^2 p(s)

    Args:
        log_probs: log-probabilities over the whole vocabulary, at the scale's tokens.
        scale: the number each column stands for, for example 1 to 5.

    Raises:
        ShapeError: another number of columns than the scale has.
    """
    if log_probs.shape[1] != len(scale):
        got = f"[{log_probs.shape[0]}, {log_probs.shape[1]}]"
        raise ShapeError(explain("digit_scores log_probs", got=got, expected=f"[sample, {len(scale)}]"))
    values = log_probs.new_tensor(list(scale))
    share = log_probs.softmax(dim=1)
    expected = (share * values).sum(dim=1)
    spread = (share * (values - expected.unsqueeze(1)) ** 2).sum(dim=1).sqrt()
    return DigitScores(expected, spread, log_probs.logsumexp(dim=1).exp())


@dataclass(frozen=True)
class OrderLogOdds:
    """Log-odds of both orders, split into what follows the candidates and what follows the positions.

    Args:
        preference: log-odds that the first candidate is better, averaged over the orders.
        position: log-odds for what is shown first, whatever it is; 0 = the order plays no part.
    """

    preference: Float[Tensor, " pair"]
    position: Float[Tensor, " pair"]

    def probability(self) -> Float[Tensor, " pair"]:
        """Probability that the first candidate is better, sigmoid(preference)."""
        return torch.sigmoid(self.preference)

    def verdicts(self, *, margin: float = 0.0) -> list[Verdict]:
        """First or second where |preference| > margin, else a tie; invalid where it is no number."""
        found: list[Verdict] = []
        for value in self.preference.tolist():
            if math.isnan(value):
                found.append("invalid")
            else:
                found.append("tie" if abs(value) <= margin else "first" if value > 0 else "second")
        return found


def order_log_odds(
    forward: Float[Tensor, "pair position"], swapped: Float[Tensor, "pair position"]
) -> OrderLogOdds:
    """Preference and position bias of every pair from the log-probabilities of "1" and "2" in both orders.

    f = forward_1 - forward_2,  s = swapped_1 - swapped_2,  preference = (f - s) / 2,  position = (f + s) / 2

    Args:
        forward: log-probabilities of naming what is shown first and second; first candidate shown first.
        swapped: the same with the candidates swapped.

    Raises:
        ShapeError: not two columns each.
    """
    if forward.shape[1] != 2 or swapped.shape != forward.shape:
        got = f"[{list(forward.shape)} and {list(swapped.shape)}]"
        raise ShapeError(explain("order_log_odds", got=got, expected="[pair, 2] and the same"))
    in_order, turned = forward[:, 0] - forward[:, 1], swapped[:, 0] - swapped[:, 1]
    return OrderLogOdds((in_order - turned) / 2, (in_order + turned) / 2)

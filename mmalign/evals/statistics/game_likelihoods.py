"""Log-likelihoods of pairwise games with their derivatives, and where they are largest."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

__all__ = ["MODELS", "GameLikelihood", "maximum"]

_MAX_STEPS = 200
_HALVINGS = 60

Square = Float64[np.ndarray, "model model"]
Parameters = Float64[np.ndarray, " parameter"]
LogProbabilities = Callable[[Square, float], tuple["_Outcome", "_Outcome"]]


@dataclass(frozen=True)
class _Outcome:
    """Logarithm of the probability of an outcome for every ordered pair, with its derivatives.

    `gap` is a_i - a_j, `tie` the tie parameter's logarithm: value, first and second derivatives.
    """

    value: Square
    gap: Square
    tie: Square
    gap_gap: Square
    gap_tie: Square
    tie_tie: Square

    def weighted(self, counts: Square) -> "_Outcome":
        """Every entry times the number of such games."""
        names = ("value", "gap", "tie", "gap_gap", "gap_tie", "tie_tie")
        return _Outcome(*(getattr(self, name) * counts for name in names))

    def __add__(self, other: "_Outcome") -> "_Outcome":
        names = ("value", "gap", "tie", "gap_gap", "gap_tie", "tie_tie")
        return _Outcome(*(getattr(self, name) + getattr(other, name) for name in names))


def _log_sigmoid(value: Square) -> Square:
    return np.asarray(-np.logaddexp(0.0, -value))


def _bradley_terry_log(gap: Square, _: float) -> tuple[_Outcome, _Outcome]:
    value, none = _log_sigmoid(gap), np.zeros_like(gap)
    won = np.exp(value)
    return _Outcome(value, 1.0 - won, none, -won * (1.0 - won), none, none), _Outcome(*[none] * 6)


def _davidson_log(gap: Square, tie: float) -> tuple[_Outcome, _Outcome]:
    """`tie` = log nu; three outcomes with logits gap / 2, -gap / 2 and log nu."""
    half = 0.5 * gap
    total = np.logaddexp(np.logaddexp(half, -half), tie)
    won, lost, tied = np.exp(half - total), np.exp(-half - total), np.exp(tie - total)
    lead = 0.5 * (won - lost)  # derivative of `total` by gap; by tie it is `tied`
    second = (-(0.25 * (won + lost) - lead**2), lead * tied, -tied * (1.0 - tied))
    return (
        _Outcome(half - total, 0.5 - lead, -tied, *second),
        _Outcome(tie - total, -lead, 1.0 - tied, *second),
    )


def _rao_kupper_log(gap: Square, tie: float) -> tuple[_Outcome, _Outcome]:
    """`tie` = log k > 0; P(tie) = (k^2 - 1) P(i beats j) P(j beats i)."""
    value, other = _log_sigmoid(gap - tie), _log_sigmoid(-gap - tie)
    won, lost = np.exp(value), np.exp(other)
    bend, back = won * (1.0 - won), lost * (1.0 - lost)
    with np.errstate(divide="ignore", invalid="ignore"):  # tie <= 0 is outside: the step is halved
        width, left = np.log(np.expm1(2.0 * tie)), -np.expm1(-2.0 * tie)
    return (
        _Outcome(value, 1.0 - won, won - 1.0, -bend, bend, -bend),
        _Outcome(
            width + value + other,
            lost - won,
            2.0 / left + won + lost - 2.0,
            -bend - back,
            bend - back,
            -4.0 * (1.0 - left) / left**2 - bend - back,
        ),
    )


MODELS: dict[str, LogProbabilities] = {
    "bradley_terry": _bradley_terry_log,
    "davidson": _davidson_log,
    "rao_kupper": _rao_kupper_log,
}
"""Log-probabilities of a win and of a tie by model."""


@dataclass(frozen=True)
class GameLikelihood:
    """Log-likelihood of games with its gradient and information.

    Parameters are the strengths, then (`has_ties`) the tie parameter's logarithm.

    Args:
        log_of: log-probabilities of a win and of a tie.
        won: [i, j] = games that i won against j.
        ties: [i, j] = [j, i] = tied games.
        ridge: penalty ridge / 2 * |strengths|^2.
        has_ties: whether ties are outcomes of their own.
    """

    log_of: LogProbabilities
    won: Square
    ties: Square
    ridge: float
    has_ties: bool

    def outcomes(self, place: Parameters) -> tuple[_Outcome, _Outcome]:
        """Log-probabilities of a win and of a tie for every ordered pair."""
        strength = place[: len(self.won)]
        return self.log_of(strength[:, None] - strength[None], float(place[-1]) if self.has_ties else 0.0)

    def _pairs(self, place: Parameters) -> _Outcome:
        log_won, log_tied = self.outcomes(place)
        found = log_won.weighted(self.won)
        # A tie stands at [i, j] and at [j, i]: half of it each.
        return found + log_tied.weighted(0.5 * self.ties) if self.has_ties else found

    def value(self, place: Parameters) -> float:
        """Without the ridge."""
        return float(self._pairs(place).value.sum())

    def penalised(self, place: Parameters) -> float:
        """With the ridge: what is maximised."""
        return self.value(place) - 0.5 * self.ridge * float((place[: len(self.won)] ** 2).sum())

    def gradient(self, place: Parameters) -> Parameters:
        """Of the penalised log-likelihood."""
        pairs, strength = self._pairs(place), place[: len(self.won)]
        found = pairs.gap.sum(axis=1) - pairs.gap.sum(axis=0) - self.ridge * strength
        return np.append(found, pairs.tie.sum()) if self.has_ties else np.asarray(found)

    def information(self, place: Parameters) -> Square:
        """Minus the second derivatives of the penalised log-likelihood."""
        pairs, num = self._pairs(place), len(self.won)
        both = -(pairs.gap_gap + pairs.gap_gap.T)
        found = np.diag(both.sum(axis=1) + self.ridge) - both
        if not self.has_ties:
            return np.asarray(found)
        mixed = pairs.gap_tie.sum(axis=0) - pairs.gap_tie.sum(axis=1)
        whole = np.zeros((num + 1, num + 1))
        whole[:num, :num], whole[:num, num], whole[num, :num] = found, mixed, mixed
        whole[num, num] = -pairs.tie_tie.sum()
        return whole


def maximum(likelihood: GameLikelihood) -> Parameters:
    """Parameters of the largest penalised likelihood, strengths that sum to zero, by Newton's method."""
    num = len(likelihood.won)
    place = np.zeros(num + likelihood.has_ties)
    flat = np.zeros_like(place)
    flat[:num] = num**-0.5
    if likelihood.has_ties:
        place[-1] = math.log(2.0)
    value = likelihood.penalised(place)
    for _ in range(_MAX_STEPS):
        information = likelihood.information(place)
        # The flat direction gets a curvature of its own, so that the step has none of it.
        information += np.diag(information).max() * np.outer(flat, flat)
        step = np.linalg.solve(information, likelihood.gradient(place))
        reach, moved, found = 1.0, place, -math.inf
        for _ in range(_HALVINGS):
            moved = place + reach * step
            found = likelihood.penalised(moved)
            if found >= value:
                break
            reach *= 0.5
        if not found >= value:
            break  # rounding is all that is left to gain
        place, value = moved, found
        if reach * np.abs(step).max() < 1e-13 * max(1.0, np.abs(place).max()):
            break
    place[:num] -= place[:num].mean()
    return place

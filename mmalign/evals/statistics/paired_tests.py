"""Tests of paired differences without a distribution: sign test, Wilcoxon's signed ranks; effect size."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.inputs import Values, as_vector
from mmalign.evals.statistics.proportions import binomial_tail
from mmalign.evals.statistics.results import Result, shown_p

__all__ = ["PairedTest", "average_ranks", "effect_size", "sign_test", "signed_rank_test", "standard_error"]

_EXACT_UP_TO = 100
"""Differences up to which the signed-rank distribution is counted out: a few milliseconds."""


@dataclass(frozen=True)
class PairedTest(Result):
    """A two-sided test of "no difference".

    Args:
        name: which test.
        p_value: probability of a difference at least as large in either direction if there were none; 1 where
            every difference is zero.
        statistic: differences in favour of the first model (sign test), sum of their ranks (signed ranks).
        count: differences that took part.
        dropped: zero differences that did not.
        exact: whether the p-value is counted out or a normal approximation.
    """

    name: str
    p_value: float
    statistic: float
    count: int
    dropped: int
    exact: bool

    def describe(self) -> str:
        """`sign test: p = 0.031 over 24 differences (3 zeros dropped)`."""
        zeros = f" ({self.dropped} zeros dropped)" if self.dropped else ""
        return f"{self.name}: {shown_p(self.p_value)} over {self.count} differences{zeros}"


def sign_test(wins: int, losses: int, *, ties: int = 0) -> PairedTest:
    """Exact two-sided binomial test of wins against losses; ties take no part.

    p = min(1, 2 P(X >= max(wins, losses))), X binomial(wins + losses, 1/2)

    Args:
        wins: prompts on which the first model is better.
        losses: prompts on which the second is.
        ties: prompts dropped, for the record.

    Raises:
        ConfigError: negative counts.
    """
    if min(wins, losses, ties) < 0:
        got = f"{wins} wins, {losses} losses, {ties} ties"
        raise ConfigError(explain("sign_test", got=got, expected="counts >= 0"))
    count = wins + losses
    p_value = min(1.0, 2.0 * binomial_tail(max(wins, losses), count)) if count else 1.0
    return PairedTest("sign test", p_value, float(wins), count, ties, exact=True)


def average_ranks(values: Values) -> Float64[np.ndarray, " item"]:
    """Ranks from 1 (smallest) up; equal values share the mean of their ranks."""
    array = as_vector("average_ranks", values)
    _, places, sizes = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    middle = last - (sizes - 1) / 2.0
    return np.asarray(middle[places])


def signed_rank_test(differences: Values) -> PairedTest:
    """Wilcoxon's signed-rank test that differences are symmetric about zero.

    W = sum of the ranks of |d| over d > 0. Zeros are dropped. Up to 100 differences the distribution of W
    given the ranks (ties included) is counted out; beyond that it is normal with mean n (n + 1) / 4 and
    variance sum(rank^2) / 4, with a continuity correction of one half.

    Args:
        differences: one per prompt, first model minus second.

    Raises:
        ConfigError: no differences, or NaN.

    Source: Wilcoxon 1945, "Individual comparisons by ranking methods".
    """
    array = as_vector("signed_rank_test", differences)
    kept = array[array != 0]
    dropped = len(array) - len(kept)
    if len(kept) == 0:
        return PairedTest("signed-rank test", 1.0, 0.0, 0, dropped, exact=True)
    ranks = average_ranks(np.abs(kept))
    found = float(ranks[kept > 0].sum())
    exact = len(kept) <= _EXACT_UP_TO
    p_value = _counted_p(ranks, found) if exact else _normal_p(ranks, found)
    return PairedTest("signed-rank test", p_value, found, len(kept), dropped, exact=exact)


def _counted_p(ranks: Float64[np.ndarray, " item"], found: float) -> float:
    """Two-sided p-value from the distribution of W over all 2^n signs."""
    doubled = np.rint(2.0 * ranks).astype(np.int64)  # shared ranks end in a half
    total = int(doubled.sum())
    shares = np.zeros(total + 1)
    shares[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(shares)
        moved[rank:] = shares[: total + 1 - rank]
        shares = 0.5 * (shares + moved)
    place = round(2.0 * found)
    tail = min(shares[: place + 1].sum(), shares[place:].sum())
    return float(min(1.0, 2.0 * tail))


def _normal_p(ranks: Float64[np.ndarray, " item"], found: float) -> float:
    distance = abs(found - ranks.sum() / 2.0)
    z = max(distance - 0.5, 0.0) / math.sqrt(float((ranks**2).sum()) / 4.0)
    return math.erfc(z / math.sqrt(2.0))


def standard_error(values: Values) -> float:
    """Standard error of the mean: sample standard deviation / sqrt(n); NaN for one value."""
    array = as_vector("standard_error", values)
    return float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan


def effect_size(differences: Values) -> float:
    """Mean difference in units of the differences' sample standard deviation (Cohen's d of paired data).

    0.2 is usually called small, 0.5 medium, 0.8 large. NaN for one prompt; 0 where every difference is zero
    and infinite where all are equal and not zero.
    """
    array = as_vector("effect_size", differences)
    if len(array) < 2:
        return math.nan
    mean, spread = float(array.mean()), float(array.std(ddof=1))
    # Equal differences: what is left of the spread is rounding.
    if spread <= 1e-14 * abs(mean) or spread == 0.0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return mean / spread

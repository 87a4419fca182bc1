"""Shares and means of rows that come in clusters (pairs of one prompt), with 95 % intervals.

Pairs of one prompt are not independent: ten pairs of one prompt say little more than one. Intervals therefore
come from the spread between prompts. No resampling: a million rows take a fraction of a second, and the same
data give the same interval.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "mean_of", "share_of"]

_Z = 1.959963984540054
"""97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Args:
        value: the estimate.
        low: lower end of the 95 % interval; None when one cluster alone tells nothing about the spread.
        high: upper end.
        count: rows it was computed from.
        clusters: independent groups (prompts) among them.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    clusters: int

    def holds(self, value: float) -> bool:
        """Whether the interval contains a value, or there is no interval."""
        return self.low is None or self.high is None or self.low <= value <= self.high

    def describe(self, digits: int = 3) -> str:
        """`0.612 (0.580 to 0.643)`."""
        shown = f"{self.value:.{digits}f}"
        if self.low is None or self.high is None:
            return f"{shown} (one prompt: no interval)"
        return f"{shown} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def _between(values: NDArray[np.float64], clusters: Sequence[Hashable]) -> tuple[float, float, int]:
    """Mean, its variance from the spread between clusters, and the number of clusters."""
    numbers: dict[Hashable, int] = {}
    places = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
    count = len(numbers)
    mean = float(values.mean())
    sums = np.bincount(places, weights=values - mean, minlength=count)
    variance = float((sums**2).sum()) / len(values) ** 2 * count / (count - 1) if count > 1 else math.nan
    return mean, variance, count


def mean_of(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean with a normal interval from cluster-robust variance.

    variance = C / (C - 1) * sum over clusters (sum of deviations)^2 / n^2

    Args:
        values: one number per row, at least one.
        clusters: the row's group.
    """
    array = np.asarray(values, dtype=np.float64)
    mean, variance, count = _between(array, clusters)
    if count < 2:
        return Estimate(mean, None, None, len(array), count)
    half = _Z * math.sqrt(variance)
    return Estimate(mean, mean - half, mean + half, len(array), count)


def share_of(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Share with a Wilson interval at the effective number of rows.

    effective number = p (1 - p) / cluster-robust variance, between 1 and n; where the share is 0 or 1 the
    spread says nothing and the number of clusters stands in.

    Args:
        values: 1, 0, or 0.5 for an undecided row; at least one.
        clusters: the row's group.
    """
    array = np.asarray(values, dtype=np.float64)
    share, variance, count = _between(array, clusters)
    spread = share * (1.0 - share)
    effective = spread / variance if count > 1 and variance > 0 and spread > 0 else float(count)
    effective = min(max(effective, 1.0), float(len(array)))
    scale = 1.0 + _Z**2 / effective
    center = (share + _Z**2 / (2 * effective)) / scale
    half = _Z / scale * math.sqrt(spread / effective + _Z**2 / (4 * effective**2))
    return Estimate(share, max(0.0, center - half), min(1.0, center + half), len(array), count)

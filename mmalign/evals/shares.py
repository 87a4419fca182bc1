"""Shares and means of rows that come in clusters, as intervals of the harness.

Two orders of one pair, several transforms of one picture and several pairs of one prompt are not independent;
their intervals come from the spread between clusters (`mmalign.data.statistics`).
"""

import math
from collections.abc import Hashable, Sequence

from mmalign.data.statistics import Estimate, mean_of, share_of
from mmalign.errors import ShapeError, explain
from mmalign.evals.statistics.results import Interval

__all__ = ["clustered_mean", "clustered_share"]


def _counted(
    values: Sequence[float | int | bool], clusters: Sequence[Hashable]
) -> tuple[list[float], list[Hashable]]:
    """Values that are numbers, with their clusters."""
    if len(values) != len(clusters):
        message = explain("clusters", got=len(clusters), expected=f"one per value, {len(values)}")
        raise ShapeError(message)
    kept = [(float(v), cluster) for v, cluster in zip(values, clusters, strict=True) if not math.isnan(v)]
    return [value for value, _ in kept], [cluster for _, cluster in kept]


def _interval(estimate: Estimate, method: str) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high, 0.95, method)


def clustered_share(values: Sequence[float | int | bool], clusters: Sequence[Hashable]) -> Interval:
    """Share of ones with Wilson's interval at the effective number of rows; NaN values are left out.

    Args:
        values: 1, 0, NaN (failed: the caller counts them), or 0.5 for an undecided row.
        clusters: the group of each row.
    """
    kept, groups = _counted(values, clusters)
    if not kept:
        return Interval(math.nan, None, None, 0.95, "wilson, clustered")
    return _interval(share_of(kept, groups), "wilson, clustered")


def clustered_mean(values: Sequence[float | int | bool], clusters: Sequence[Hashable]) -> Interval:
    """Mean with a normal interval from cluster-robust variance; NaN values are left out.

    Args:
        values: any numbers; NaN = failed, which the caller counts.
        clusters: the group of each row.
    """
    kept, groups = _counted(values, clusters)
    if not kept:
        return Interval(math.nan, None, None, 0.95, "normal, clustered")
    return _interval(mean_of(kept, groups), "normal, clustered")


def paired_difference(
    first: Sequence[float | int | bool],
    second: Sequence[float | int | bool],
    clusters: Sequence[Hashable],
) -> Interval:
    """Share of ones in `first` less that in `second`, of the same rows, with Newcombe's hybrid interval.

    d = p - q,  low = d - sqrt(a^2 - 2 r a b + b^2), a = p - low_p, b = high_q - q,  high alike with the other
    ends; r = correlation of the two columns. Unlike a normal interval it keeps a width where no row differs.

    Args:
        first: 1 or 0; rows with NaN in either column are left out.
        second: the same rows under the other condition.
        clusters: the group of each row.

    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", method 10 without its continuity correction.
    """
    if len(first) != len(second):
        got = f"{len(first)} and {len(second)} rows"
        raise ShapeError(explain("paired_difference", got=got, expected="the same rows in both"))
    rows = [
        (float(a), float(b), cluster)
        for (a, cluster), b in zip(zip(first, clusters, strict=True), second, strict=True)
        if not (math.isnan(a) or math.isnan(b))
    ]
    kept = [cluster for _, _, cluster in rows]
    one, other = [a for a, _, _ in rows], [b for _, b, _ in rows]
    p, q = clustered_share(one, kept), clustered_share(other, kept)
    method = "newcombe, clustered"
    if p.low is None or p.high is None or q.low is None or q.high is None:
        return Interval(p.value - q.value, None, None, 0.95, method)
    spread = math.sqrt(p.value * (1 - p.value) * q.value * (1 - q.value))
    both = sum(a * b for a, b, _ in rows) / len(rows) - p.value * q.value
    r = max(-1.0, min(1.0, both / spread)) if spread > 0 else 0.0
    below, above = (p.value - p.low, q.high - q.value), (p.high - p.value, q.value - q.low)
    down, up = (math.sqrt(max(0.0, a * a - 2 * r * a * b + b * b)) for a, b in (below, above))
    d = p.value - q.value
    return Interval(d, max(-1.0, d - down), min(1.0, d + up), 0.95, method)

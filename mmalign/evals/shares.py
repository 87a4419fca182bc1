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

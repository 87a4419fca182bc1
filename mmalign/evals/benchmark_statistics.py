"""Metrics of benchmarks with intervals, and two models paired by item, wherever metrics have parts by item.

Items that are about the same picture are no independent trials, so intervals and tests draw pictures, with
all questions about them, where several items share one. An interval belongs to a metric only where the metric
is the mean of its parts by item; a ratio of sums (CHAIRi) is compared by its parts, and the result says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from mmalign.evals.base import Item, Metric
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling, bootstrap_of_means
from mmalign.evals.statistics.results import Interval, Result
from mmalign.evals.statistics.win_rates import win_rate

__all__ = ["Tested", "clusters_of", "compare_metric", "is_mean_of_items", "metric_interval"]


def clusters_of(items: Sequence[Item]) -> dict[str, str]:
    """Key of a metric's part to what it is drawn with: the picture, where items are about one."""
    clusters: dict[str, str] = {}
    for item in items:
        picture = item.media[0] if item.media else None
        about = f"media:{picture}" if isinstance(picture, str | Path) else item.id
        clusters[item.id] = about
        # Parts of pairs are named by the pair, which both of its questions carry.
        pair = item.expected.get("pair")
        if isinstance(pair, str):
            clusters.setdefault(pair, about)
    return clusters


def _gathered(
    values: Mapping[str, float], clusters: Mapping[str, str]
) -> Float64[np.ndarray, "cluster 2"] | None:
    """Sum and number of the values of each cluster; None where there is no value."""
    found: dict[str, list[float]] = {}
    for name, value in values.items():
        if not math.isnan(value):
            found.setdefault(clusters.get(name, name), []).append(value)
    if not found:
        return None
    return np.array([[math.fsum(part), float(len(part))] for part in found.values()])


def _mean_of_sums(means: Float64[np.ndarray, "resample column"]) -> Float64[np.ndarray, " resample"]:
    """The mean over items, from the clusters' mean sum and mean number."""
    return np.asarray(means[:, 0] / means[:, 1])


def is_mean_of_items(metric: Metric) -> bool:
    """Whether the metric is the mean of its parts by item, up to rounding."""
    present = [value for value in metric.per_item.values() if not math.isnan(value)]
    if not present or math.isnan(metric.value):
        return False
    return math.isclose(math.fsum(present) / len(present), metric.value, rel_tol=1e-9, abs_tol=1e-9)


def metric_interval(
    metric: Metric, clusters: Mapping[str, str], how: Resampling = DEFAULT
) -> Interval | None:
    """The metric with its bootstrap interval; None where it is no mean over items.

    Args:
        metric: with parts by item.
        clusters: name of a part to what is drawn together.
        how: number, seed, confidence and method.
    """
    table = _gathered(metric.per_item, clusters) if is_mean_of_items(metric) else None
    return None if table is None else bootstrap_of_means(table, _mean_of_sums, how)


@dataclass(frozen=True)
class Tested(Result):
    """One metric of two models, paired by item.

    Args:
        metric: its name.
        difference: mean over items of the second model's part minus the first's, with its interval.
        exact: whether this is also the difference of the metric itself.
        win_rate: share of clusters on which the second model is better, ties half; None for metrics without
            a better direction.
        wins: clusters won, tied, lost by the second model.
        items: items with both parts.
        left_out: items that lack one of them.
        clusters: independent trials among them; groups left out, where the metric was computed again.
        p_value: exact sign test over clusters; None without a direction.
        adjusted: the same after Holm's correction over all tests of the table.
    """

    metric: str
    difference: Interval
    exact: bool
    win_rate: Interval | None
    wins: tuple[int, int, int]
    items: int
    left_out: int
    clusters: int
    p_value: float | None
    adjusted: float | None = None

    def describe(self) -> str:
        """The difference and, where there is a direction, the share won."""
        won = "" if self.win_rate is None else f", won {self.win_rate.describe()}"
        return f"{self.metric}: {self.difference.describe()}{won} over {self.items} items"


def compare_metric(
    base: Metric, model: Metric, clusters: Mapping[str, str], how: Resampling = DEFAULT
) -> Tested | None:
    """`model` against `base` by one metric; None where no item has both parts.

    Args:
        base: of the first model.
        model: of the second, the same metric.
        clusters: name of a part to what is drawn together.
        how: number, seed, confidence and method of the bootstrap.
    """
    shared = [name for name in base.per_item if name in model.per_item]
    gaps = {name: model.per_item[name] - base.per_item[name] for name in shared}
    table = _gathered(gaps, clusters)
    if table is None:
        return None
    kept = [name for name, gap in gaps.items() if not math.isnan(gap)]
    rate, p_value, wins = None, None, (0, 0, 0)
    if base.higher_is_better is not None:
        # A cluster is won by its mean difference: equal signs in it are one trial, not many.
        means = table[:, 0] / table[:, 1]
        towards = means if base.higher_is_better else -means
        towards = np.where(np.abs(towards) < 1e-12, 0.0, towards)
        found = win_rate(towards, np.zeros_like(towards), how=how)
        rate, p_value, wins = found.rate, found.sign.p_value, (found.wins, found.ties, found.losses)
    lost = len(base.per_item.keys() | model.per_item.keys()) - len(kept)
    return Tested(
        metric=base.name,
        difference=bootstrap_of_means(table, _mean_of_sums, how),
        exact=is_mean_of_items(base) and is_mean_of_items(model) and not lost,
        win_rate=rate,
        wins=wins,
        items=len(kept),
        left_out=lost,
        clusters=len(table),
        p_value=p_value,
    )

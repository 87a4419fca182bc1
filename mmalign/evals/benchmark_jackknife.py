"""Intervals for metrics that are no mean over items: F1, ratios of sums, scores made of several numbers.

The benchmark's own rule is applied again with one group of pictures (and all answers about them) left out,
for each of a fixed number of groups. How much the metric moves says how much it would move over other
pictures of the kind; for two models the same groups are left out, so that their difference is paired.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Answer, Outcome
from mmalign.evals.statistics.proportions import normal_quantile
from mmalign.evals.statistics.results import Interval

__all__ = ["GROUPS", "group_numbers", "jackknife_interval", "replicates"]

GROUPS = 20
"""Groups that are left out in turn: the rule is applied so many times more."""


def group_numbers(clusters: Sequence[str], groups: int = GROUPS) -> dict[str, int]:
    """Cluster to its group, equal in size and decided by names alone; {} where there are too few clusters.

    Args:
        clusters: names of what is left out together.
        groups: at least 2; there must be twice as many clusters.
    """
    names = sorted(set(clusters), key=lambda name: hashlib.sha256(name.encode("utf-8", "replace")).digest())
    if groups < 2 or len(names) < 2 * groups:
        return {}
    return {name: place % groups for place, name in enumerate(names)}


def replicates(
    score: Callable[[Sequence[Answer]], Outcome],
    answers: Sequence[Answer],
    clusters: Mapping[str, str],
    groups: int = GROUPS,
) -> tuple[Mapping[str, float], ...]:
    """All metrics with each group left out in turn; () where there are too few clusters.

    Args:
        score: the benchmark's rule.
        answers: of one model.
        clusters: item id to what it is left out with, of all items: models then share groups.
        groups: how many.
    """
    of_cluster = group_numbers([clusters[answer.item.id] for answer in answers], groups)
    found = []
    for group in range(groups if of_cluster else 0):
        kept = [answer for answer in answers if of_cluster[clusters[answer.item.id]] != group]
        found.append({metric.name: metric.value for metric in score(kept).metrics})
    return tuple(found)


def jackknife_interval(
    value: float, left_out: Sequence[float], *, confidence: float = 0.95
) -> Interval | None:
    """The value with `value -/+ t sqrt((G - 1) / G sum_g (v_g - mean v)^2)`, t of G - 1 degrees of freedom.

    Args:
        value: over everything.
        left_out: the same without each group.
        confidence: of the interval, in (0, 1).

    Returns:
        None where the value, or one without a group, is not defined.

    Raises:
        ConfigError: fewer than two groups.

    Source: Kott 2001, "The delete-a-group jackknife".
    """
    count = len(left_out)
    if count < 2:
        raise ConfigError(explain("jackknife", got=f"[{count} groups]", expected="at least two"))
    if math.isnan(value) or any(math.isnan(one) for one in left_out):
        return None
    mean = math.fsum(left_out) / count
    error = math.sqrt((count - 1) / count * math.fsum((one - mean) ** 2 for one in left_out))
    half = student_quantile((1.0 + confidence) / 2.0, count - 1) * error
    return Interval(value, value - half, value + half, confidence, "delete-a-group jackknife")


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion around the normal, good to 0.001 from 10 degrees of freedom.

    Source: Abramowitz and Stegun 1964, 26.7.5.
    """
    z = normal_quantile(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))

"""Accuracy of rewards by groups of pairs, and of two rewards on the same pairs."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmalign.evals.shares import clustered_share
from mmalign.evals.statistics import (
    Interval,
    PairedTest,
    Resampling,
    Result,
    adjust,
    bootstrap_mean,
    quantile_buckets,
    sign_test,
)
from mmalign.evals.statistics.bootstrap import DEFAULT
from mmalign.evals.tie_rules import Credit, Labelled, prompt_sums, ratio_of_means

__all__ = ["BUCKETED", "Breakdown", "Comparison", "breakdowns", "compare_accuracies"]

_MOST_GROUPS = 12
_BUCKETS = 4
_FEW_GROUPS = 5  # fewer tell nothing about the spread between groups

BUCKETED = ("words of the prompt", "margin of the reward")
"""Groupings into quantiles, which are no sample of anything."""


@dataclass(frozen=True)
class Breakdown(Result):
    """Accuracy by groups of pairs.

    Args:
        by: what groups them.
        groups: group to accuracy and number of pairs; what is beyond the twelve largest stands together.
        mean: every group once, resampled by group; no interval for quantiles and for fewer than five groups.
        num_groups: all of them.
    """

    by: str
    groups: Mapping[str, tuple[Interval, int]]
    mean: Interval
    num_groups: int

    def describe(self) -> str:
        """One line per group."""
        lines = [f"  {name}: {found} over {count} pairs" for name, (found, count) in self.groups.items()]
        return "\n".join([f"by {self.by}, mean of {self.num_groups} groups {self.mean}", *lines])


def _groupings(test: Labelled, by: Sequence[str]) -> dict[str, list[str | None]]:
    """Kind of group to the group of every pair; None = in no group."""
    pairs, rows = test.pairs, test.rows
    words = [float(len(prompt.split())) for prompt in pairs.prompts]
    found: dict[str, list[str | None]] = {BUCKETED[0]: list(quantile_buckets(words, _BUCKETS))}
    gap = np.abs(test.difference)
    known = ~np.isnan(gap)
    margins: list[str | None] = [None] * len(gap)
    for place, bucket in zip(np.flatnonzero(known), quantile_buckets(gap[known], _BUCKETS), strict=True):
        margins[place] = bucket
    found[BUCKETED[1]] = margins
    made = [model for row in rows for model in row.models]
    couples: list[str | None] = []
    for one, other in zip(pairs.first, pairs.second, strict=True):
        names = made[one], made[other]
        couples.append(None if None in names else " and ".join(sorted(str(name) for name in names)))
    found["generators"] = couples
    for column in dict.fromkeys(("user_id", *by)):
        values = [rows[number].columns.get(column) for number in pairs.row]
        found[column] = [None if value is None else str(value) for value in values]
    return {kind: groups for kind, groups in found.items() if any(group is not None for group in groups)}


def breakdowns(
    test: Labelled, credit: Credit, by: Sequence[str] = (), how: Resampling = DEFAULT
) -> list[Breakdown]:
    """Accuracy by prompt length, the reward's margin, generators, user and the columns of `by`.

    Args:
        test: pairs with scores.
        credit: each pair's worth (`pair_credits`).
        by: further columns of the rows.
        how: the bootstrap of the mean over groups.
    """
    prompts = test.pairs.prompts
    found = []
    for kind, groups in _groupings(test, by).items():
        places: dict[str, list[int]] = {}
        for place, group in enumerate(groups):
            if group is not None and not np.isnan(credit[place]):
                places.setdefault(group, []).append(place)
        if not places or (len(places) == 1 and kind not in by):
            continue
        means = [float(credit[entry].mean()) for entry in places.values()]
        mean = bootstrap_mean(means, how)
        if len(places) < _FEW_GROUPS or kind in BUCKETED:
            mean = replace(mean, low=None, high=None)
        shown = {
            name: (_share(credit[entry], [prompts[place] for place in entry]), len(entry))
            for name, entry in _largest(places, kind).items()
        }
        found.append(Breakdown(kind, shown, mean, len(places)))
    return found


def _share(credit: Credit, prompts: Sequence[str]) -> Interval:
    return clustered_share(credit.tolist(), prompts)


def _edge(bucket: str) -> float:
    """The lower edge of a bucket, from its name."""
    return float(bucket[1:].split(",")[0])


def _largest(places: Mapping[str, list[int]], kind: str) -> dict[str, list[int]]:
    """The largest groups, buckets in their order; all others together."""
    if len(places) <= _MOST_GROUPS:
        key = _edge if kind in BUCKETED else (lambda name: -len(places[name]))
        return {name: places[name] for name in sorted(places, key=key)}
    names = sorted(places, key=lambda name: -len(places[name]))
    kept = {name: places[name] for name in names[: _MOST_GROUPS - 1]}
    rest = [place for name in names[_MOST_GROUPS - 1 :] for place in places[name]]
    return {**kept, f"{len(names) - _MOST_GROUPS + 1} others": rest}


# -------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Comparison(Result):
    """Two rewards on the same pairs.

    Args:
        first: name of one.
        second: name of the other.
        difference: accuracy of the first less that of the second, mean over prompts, prompts resampled.
        test: sign test over prompts; where every prompt has one pair this is McNemar's exact test.
        adjusted: its p-value after Holm's correction over all comparisons of the report.
        same: share of pairs on which both prefer the same candidate.
        pairs: pairs that count for both.
    """

    first: str
    second: str
    difference: Interval
    test: PairedTest
    adjusted: float
    same: float
    pairs: int

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.first} less {self.second}: {self.difference} over {self.pairs} pairs, "
            f"{self.test} (Holm {self.adjusted:.4f})"
        )


def compare_accuracies(
    credits: Mapping[str, Credit],
    differences: Mapping[str, Credit],
    prompts: Sequence[Hashable],
    how: Resampling = DEFAULT,
) -> list[Comparison]:
    """Every two rewards on the pairs that count for both, p-values corrected together.

    Args:
        credits: reward to the worth of each pair (`pair_credits`).
        differences: reward to its score difference of each pair.
        prompts: of each pair.
        how: the bootstrap over prompts.

    Returns:
        One entry per two rewards with a pair in common.
    """
    names = list(credits)
    found: dict[str, Comparison] = {}
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            gap = credits[first] - credits[second]
            known = ~np.isnan(gap)
            if not known.any():
                continue
            sums = prompt_sums([np.where(known, gap, 0.0), known.astype(np.float64)], prompts)
            means = ratio_of_means(sums[sums[:, 1] > 0])
            # Differences of equal sums may be off zero by rounding.
            means[np.abs(means) < 1e-12] = 0.0
            wins, losses = int((means > 0).sum()), int((means < 0).sum())
            same = np.sign(differences[first][known]) == np.sign(differences[second][known])
            found[f"{first}\0{second}"] = Comparison(
                first=first,
                second=second,
                difference=bootstrap_mean(means, how),
                test=sign_test(wins, losses, ties=len(means) - wins - losses),
                adjusted=float("nan"),
                same=float(same.mean()),
                pairs=int(known.sum()),
            )
    adjusted = adjust({key: entry.test.p_value for key, entry in found.items()})
    return [replace(entry, adjusted=adjusted[key]) for key, entry in found.items()]

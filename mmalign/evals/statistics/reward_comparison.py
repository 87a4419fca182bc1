"""Two models by several rewards: every win rate, their macro and micro averages, corrected p-values."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling, bootstrap_of_means, prompt_means
from mmalign.evals.statistics.corrections import adjust
from mmalign.evals.statistics.inputs import Values, group_numbers
from mmalign.evals.statistics.results import Interval, Result, shown_p
from mmalign.evals.statistics.win_rates import (
    MeanDifference,
    Prompts,
    WinRate,
    mean_difference,
    outcomes,
    win_rate,
)

__all__ = ["RewardComparison", "compare_rewards"]


@dataclass(frozen=True)
class RewardComparison(Result):
    """Two models by several rewards.

    Args:
        win_rates: by reward.
        differences: by reward, in the reward's own unit: never averaged over rewards.
        macro: mean of the rewards' win rates.
        micro: win rate of all comparisons of all rewards pooled; differs from macro where items failed.
        adjusted: Holm-adjusted p-value of each reward's sign test.
        significant: rewards whose adjusted p-value is at most alpha, in either direction.
        alpha: bound on the chance of any false claim.
    """

    win_rates: Mapping[str, WinRate]
    differences: Mapping[str, MeanDifference]
    macro: Interval
    micro: Interval
    adjusted: Mapping[str, float]
    significant: tuple[str, ...]
    alpha: float

    def describe(self) -> str:
        """One line per reward, then the averages."""
        width = max(len(name) for name in (*self.win_rates, "macro", "micro"))
        lines = [
            f"{name:<{width}}  {found.describe()} (Holm {shown_p(self.adjusted[name])})"
            for name, found in self.win_rates.items()
        ]
        lines += [
            f"{name:<{width}}  {value.describe()}"
            for name, value in (("macro", self.macro), ("micro", self.micro))
        ]
        return "\n".join(lines)


def compare_rewards(
    first: Mapping[str, Values],
    second: Mapping[str, Values],
    *,
    prompts: Prompts | None = None,
    tie_margins: Mapping[str, float | int] | None = None,
    how: Resampling = DEFAULT,
    alpha: float = 0.05,
) -> RewardComparison:
    """Compare two models by several rewards; all averages resample prompts, together for all rewards.

    Args:
        first: scores of the first model by reward, the same items in the same order for every reward.
        second: scores of the second.
        prompts: the prompt of each item, where prompts have several seeds.
        tie_margins: by reward, 0 where not named.
        how: number, seed and method of the bootstrap, confidence of every interval.
        alpha: level of `significant`, after Holm's correction over the rewards.

    Raises:
        ConfigError: no rewards, or other rewards for one model than for the other.
        ShapeError: rewards with different numbers of items.
    """
    margins = dict(tie_margins or {})
    _require_same_rewards(first, second, margins)
    found = {name: outcomes(first[name], second[name], tie_margin=margins.get(name, 0.0)) for name in first}
    sizes = {name: len(column) for name, column in found.items()}
    if len(set(sizes.values())) > 1:
        raise ShapeError(explain("compare_rewards", got=sizes, expected="one score per item and reward"))
    rates = {
        name: win_rate(first[name], second[name], prompts=prompts, tie_margin=margins.get(name, 0.0), how=how)
        for name in first
    }
    gaps = {name: mean_difference(first[name], second[name], prompts=prompts, how=how) for name in first}
    columns = _columns(list(found.values()), prompts)
    adjusted = adjust({name: rate.sign.p_value for name, rate in rates.items()})
    return RewardComparison(
        win_rates=rates,
        differences=gaps,
        macro=bootstrap_of_means(columns, _macro, how),
        micro=bootstrap_of_means(columns, _micro, how),
        adjusted=adjusted,
        significant=tuple(name for name, p_value in adjusted.items() if p_value <= alpha),
        alpha=alpha,
    )


def _require_same_rewards(
    first: Mapping[str, Values], second: Mapping[str, Values], margins: Mapping[str, float | int]
) -> None:
    if not first or set(first) != set(second) or not set(margins) <= set(first):
        message = explain(
            "compare_rewards",
            got=f"{sorted(first)} and {sorted(second)}, tie margins for {sorted(margins)}",
            expected="the same rewards for both models, at least one",
        )
        raise ConfigError(message)


def _columns(found: list[np.ndarray], prompts: Prompts | None) -> Float64[np.ndarray, "prompt column"]:
    """Per reward: the prompt's outcome, whether it has one, the sum of its comparisons, their number."""
    names = range(len(found[0])) if prompts is None else prompts
    places, groups = group_numbers(list(names))
    blocks = []
    for outcome in found:
        there = ~np.isnan(outcome)
        means = prompt_means(outcome, list(names))
        known = ~np.isnan(means)
        sums = np.bincount(places[there], weights=outcome[there], minlength=len(groups))
        count = np.bincount(places[there], minlength=len(groups))
        blocks += [np.where(known, means, 0.0), known.astype(np.float64), sums, count.astype(np.float64)]
    return np.stack(blocks, axis=1)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    share = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=share, where=bottom > 0)
    return share


def _macro(means: Float64[np.ndarray, "resample column"]) -> Float64[np.ndarray, " resample"]:
    return np.asarray(_ratio(means[:, 0::4], means[:, 1::4]).mean(axis=1))


def _micro(means: Float64[np.ndarray, "resample column"]) -> Float64[np.ndarray, " resample"]:
    return _ratio(means[:, 2::4].sum(axis=1), means[:, 3::4].sum(axis=1))

"""Two models on the same prompts from the same noise: win rates, differences, and all rewards together.

One definition, as papers differ: per prompt and seed a win is 1, a tie 1/2, a loss 0; the mean over the seeds
of a prompt is the prompt's outcome, the mean over prompts is the win rate. Rates that count ties as losses or
drop them stand beside it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.bootstrap import (
    DEFAULT,
    Resampling,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_of_means,
    prompt_means,
)
from mmalign.evals.statistics.inputs import Values, as_vector, require_same_length
from mmalign.evals.statistics.paired_tests import (
    PairedTest,
    effect_size,
    sign_test,
    signed_rank_test,
    standard_error,
)
from mmalign.evals.statistics.proportions import exact_interval, wilson_interval
from mmalign.evals.statistics.results import Interval, Result, shown, shown_p

__all__ = ["MeanDifference", "WinRate", "mean_difference", "outcomes", "win_rate"]

Prompts = Sequence[Hashable] | np.ndarray


@dataclass(frozen=True)
class WinRate(Result):
    """How often the first model beats the second.

    Args:
        wins: comparisons (prompt and seed) won.
        ties: comparisons within the tie margin.
        losses: comparisons lost.
        failed: comparisons left out because a score is missing (NaN).
        num_prompts: prompts with at least one comparison.
        failed_prompts: prompts without any.
        rate: ties half, bootstrap interval over prompts. The number to report.
        wilson: the same rate with Wilson's interval at `num_prompts` trials.
        strict: ties count as losses.
        dropped: ties left out; NaN where everything ties.
        exact: prompts won among prompts won or lost, with the exact interval; NaN where every prompt ties.
        sign: exact sign test of prompts won against prompts lost.
        tie_margin: differences up to this size are ties.
        how: the bootstrap.
    """

    wins: int
    ties: int
    losses: int
    failed: int
    num_prompts: int
    failed_prompts: int
    rate: Interval
    wilson: Interval
    strict: Interval
    dropped: Interval
    exact: Interval
    sign: PairedTest
    tie_margin: float
    how: Resampling

    def describe(self) -> str:
        """`won 0.612 (0.580 to 0.643) of 500 prompts: 300 won, 12 tied, 188 lost; sign test p = 0.0001`."""
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"won {self.rate.describe()} of {self.num_prompts} prompts: {self.wins} won, {self.ties} tied, "
            f"{self.losses} lost{failed}; sign test {shown_p(self.sign.p_value)}"
        )


def _paired(where: str, first: Values, second: Values) -> tuple[np.ndarray, np.ndarray]:
    one = as_vector(f"{where} first", first, missing_ok=True)
    other = as_vector(f"{where} second", second, missing_ok=True)
    require_same_length(f"{where} first", one, second=other)
    return one, other


def _require_some(where: str, values: np.ndarray) -> None:
    if np.isnan(values).all():
        message = explain(
            where,
            got=f"{len(values)} comparisons, all of them failed (NaN)",
            expected="at least one with both scores",
            do="The error texts of the scores say why.",
        )
        raise ConfigError(message)


def outcomes(first: Values, second: Values, *, tie_margin: float | int = 0.0) -> Float64[np.ndarray, " item"]:
    """1 where the first model is better, 0.5 for a tie, 0 where the second is, NaN where a score is missing.

    Args:
        first: scores of the first model, higher is better.
        second: scores of the second on the same prompts and seeds, in the same order.
        tie_margin: differences up to this size are ties, >= 0, in the reward's own unit.

    Raises:
        ShapeError: different numbers of scores.
        ConfigError: no scores, or a negative margin.
    """
    one, other = _paired("outcomes", first, second)
    if not 0.0 <= tie_margin < np.inf:
        raise ConfigError(explain("win rate tie_margin", got=tie_margin, expected="a number >= 0"))
    difference = one - other
    signs = np.where(np.abs(difference) <= tie_margin, 0.0, np.sign(difference))
    return np.asarray(0.5 * (signs + 1.0))


def win_rate(
    first: Values,
    second: Values,
    *,
    prompts: Prompts | None = None,
    tie_margin: float | int = 0.0,
    how: Resampling = DEFAULT,
) -> WinRate:
    """How often the first model's score is above the second's, with intervals over prompts.

    Args:
        first: scores of the first model; NaN = failed.
        second: scores of the second, same prompts, seeds and order.
        prompts: the prompt of each score, where prompts have several seeds; None: one score per prompt.
        tie_margin: differences up to this size are ties.
        how: number, seed and method of the bootstrap, confidence of every interval.

    Raises:
        ShapeError: different numbers of scores or prompts.
        ConfigError: no comparison with both scores.
    """
    found = outcomes(first, second, tie_margin=tie_margin)
    _require_some("win_rate", found)
    names = range(len(found)) if prompts is None else prompts
    kinds = [np.where(np.isnan(found), np.nan, found == kind) for kind in (1.0, 0.0)]
    won, lost = (prompt_means(kind, names) for kind in kinds)
    there = ~np.isnan(won)
    columns = np.stack([won[there], lost[there]], axis=1)

    rate = bootstrap_of_means(columns, _ties_half, how)
    num = len(columns)
    decided = columns[:, 0] - columns[:, 1]
    prompts_won, prompts_lost = int((decided > 0).sum()), int((decided < 0).sum())
    exact = Interval(float("nan"), None, None, how.confidence, "exact")
    if prompts_won + prompts_lost:
        exact = exact_interval(prompts_won, prompts_won + prompts_lost, confidence=how.confidence)
    return WinRate(
        wins=int((found == 1.0).sum()),
        ties=int((found == 0.5).sum()),
        losses=int((found == 0.0).sum()),
        failed=int(np.isnan(found).sum()),
        num_prompts=num,
        failed_prompts=int((~there).sum()),
        rate=rate,
        wilson=wilson_interval(min(rate.value * num, num), num, confidence=how.confidence),
        strict=bootstrap_of_means(columns, _ties_lost, how),
        dropped=bootstrap_of_means(columns, _ties_dropped, how),
        exact=exact,
        sign=sign_test(prompts_won, prompts_lost, ties=num - prompts_won - prompts_lost),
        tie_margin=float(tie_margin),
        how=how,
    )


def _ties_half(means: Float64[np.ndarray, "resample column"]) -> Float64[np.ndarray, " resample"]:
    return np.asarray(0.5 * (1.0 + means[:, 0] - means[:, 1]))


def _ties_lost(means: Float64[np.ndarray, "resample column"]) -> Float64[np.ndarray, " resample"]:
    return means[:, 0]


def _ties_dropped(means: Float64[np.ndarray, "resample column"]) -> Float64[np.ndarray, " resample"]:
    decided = means[:, 0] + means[:, 1]
    share = np.full(len(means), np.nan)
    np.divide(means[:, 0], decided, out=share, where=decided > 0)
    return share


@dataclass(frozen=True)
class MeanDifference(Result):
    """How much better the first model scores.

    Args:
        mean_first: mean over prompts of the first model's score, in the reward's unit.
        mean_second: of the second model's.
        median_first: median over prompts.
        median_second: median over prompts.
        difference: mean difference with its bootstrap interval over prompts.
        median_difference: median of the paired differences, likewise.
        standard_error: of the mean difference; NaN for one prompt.
        effect_size: mean difference / standard deviation of the differences; NaN for one prompt.
        signed_rank: Wilcoxon's test of the differences.
        num_prompts: prompts with both scores.
        failed: scores left out because one of the two is missing (NaN).
    """

    mean_first: float
    mean_second: float
    median_first: float
    median_second: float
    difference: Interval
    median_difference: Interval
    standard_error: float
    effect_size: float
    signed_rank: PairedTest
    num_prompts: int
    failed: int

    def describe(self) -> str:
        """Both means, the difference with its interval, effect size and p-value."""
        return (
            f"{self.mean_first:.4g} against {self.mean_second:.4g}, difference {self.difference.describe()} "
            f"over {self.num_prompts} prompts, effect size {shown(self.effect_size, 2)}, "
            f"signed-rank {shown_p(self.signed_rank.p_value)}"
        )


def mean_difference(
    first: Values,
    second: Values,
    *,
    prompts: Prompts | None = None,
    how: Resampling = DEFAULT,
) -> MeanDifference:
    """Mean and median score difference of two models on the same prompts, with intervals and tests.

    Only pairs with both scores count, in the models' own means too.

    Args:
        first: scores of the first model; NaN = failed.
        second: scores of the second, same prompts, seeds and order.
        prompts: the prompt of each score, where prompts have several seeds.
        how: number, seed and method of the bootstrap, confidence of every interval.

    Raises:
        ShapeError: different numbers of scores or prompts.
        ConfigError: no pair with both scores.
    """
    one, other = _paired("mean_difference", first, second)
    difference = one - other
    _require_some("mean_difference", difference)
    failed = np.isnan(difference)
    one[failed] = other[failed] = np.nan
    names = range(len(one)) if prompts is None else prompts
    ours, theirs, gaps = (prompt_means(value, names) for value in (one, other, difference))
    there = ~np.isnan(gaps)
    ours, theirs, gaps = ours[there], theirs[there], gaps[there]
    return MeanDifference(
        mean_first=float(ours.mean()),
        mean_second=float(theirs.mean()),
        median_first=float(np.median(ours)),
        median_second=float(np.median(theirs)),
        difference=bootstrap_mean(gaps, how),
        median_difference=bootstrap_median(gaps, how),
        standard_error=standard_error(gaps),
        effect_size=effect_size(gaps),
        signed_rank=signed_rank_test(gaps),
        num_prompts=len(gaps),
        failed=int(failed.sum()),
    )

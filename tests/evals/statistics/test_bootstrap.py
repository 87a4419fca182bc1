"""The bootstrap over prompts: coverage in simulation, order, memory, refusals."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats

from mmalign.errors import ConfigError, ShapeError, UnknownNameError
from mmalign.evals.statistics import (
    Resampling,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_of_means,
    percentile_interval,
    prompt_means,
    resampled_means,
)

SIMULATIONS = 1000


def share_covered(draw, truth: float, num: int, **settings) -> float:
    """How often the interval of the mean of `num` numbers holds the truth; a new seed each time."""
    generator = np.random.default_rng(0)
    found = [
        bootstrap_mean(draw(generator, num), Resampling(seed=place, **settings)).holds(truth)
        for place in range(SIMULATIONS)
    ]
    return float(np.mean(found))


def tolerance(confidence: float) -> float:
    """Three standard errors over the simulations, and what 83 prompts cost a percentile interval."""
    return 3.0 * math.sqrt(confidence * (1.0 - confidence) / SIMULATIONS) + 0.01


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("confidence", [pytest.param(0.8, marks=pytest.mark.slow), 0.95])
def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says(method, confidence):
    found = share_covered(
        lambda generator, num: generator.normal(0.3, 1.0, num),
        0.3,
        83,
        num_resamples=800,
        confidence=confidence,
        method=method,
    )
    assert found == pytest.approx(confidence, abs=tolerance(confidence))


def test_the_corrected_interval_covers_skewed_values_better_than_the_percentile_one():
    def draw(generator, num):
        return generator.exponential(1.0, num)

    plain, corrected = (
        share_covered(draw, 1.0, 23, num_resamples=400, method=method) for method in ("percentile", "bca")
    )
    assert plain < corrected < 0.96


def test_the_corrected_interval_is_that_of_scipy():
    values = np.random.default_rng(8).exponential(1.0, 23)
    found = bootstrap_mean(values, Resampling(num_resamples=40_000, method="bca"))
    generator = np.random.default_rng(9)
    expected = stats.bootstrap((values,), np.mean, n_resamples=40_000, method="BCa", rng=generator)
    # Three Monte Carlo errors of an end; without its corrections the interval lies clearly lower.
    ends = (expected.confidence_interval.low, expected.confidence_interval.high)
    assert (found.low, found.high) == pytest.approx(ends, abs=0.012)
    plain = bootstrap_mean(values, Resampling(num_resamples=40_000))
    assert found.low - plain.low > 0.02
    assert found.high - plain.high > 0.04


def test_prompts_are_resampled_not_images():
    # Seven seeds of one prompt say the same: the interval is that of the prompts, not of seven times as many.
    generator = np.random.default_rng(1)
    each = generator.normal(size=101)
    prompts = np.repeat(np.arange(101), 7)
    clustered = bootstrap_mean(np.repeat(each, 7), prompts=prompts)
    assert clustered == bootstrap_mean(each)
    pretended = bootstrap_mean(np.repeat(each, 7))
    assert clustered.high - clustered.low > 2.2 * (pretended.high - pretended.low)


def test_the_order_of_prompts_and_the_size_of_blocks_change_nothing(monkeypatch):
    values = np.random.default_rng(2).normal(size=(31, 3))
    shuffled = values[np.random.default_rng(3).permutation(31)]
    expected = resampled_means(values)
    assert np.array_equal(resampled_means(shuffled), expected)
    monkeypatch.setattr("mmalign.evals.statistics.bootstrap._BLOCK", 5 * 31)
    # Processors sum blocks of other sizes in other orders.
    np.testing.assert_allclose(resampled_means(values), expected, rtol=1e-12, atol=1e-14)
    assert bootstrap_median(values[:, 0]) == bootstrap_median(shuffled[:, 0])


def test_a_seed_decides_the_draw():
    values = np.random.default_rng(4).normal(size=31)
    assert bootstrap_mean(values, Resampling(seed=5)) == bootstrap_mean(values, Resampling(seed=5))
    assert bootstrap_mean(values, Resampling(seed=5)) != bootstrap_mean(values, Resampling(seed=7))


def test_given_picks_are_used_as_they_are():
    values = [2.0, 3.0, 5.0]
    how = Resampling(picks=np.array([[0, 0, 0], [1, 2, 2]]), confidence=0.5)
    assert resampled_means([[value] for value in values], how).ravel().tolist() == [2.0, 13 / 3]
    found = bootstrap_mean(values, how)
    assert (found.low, found.high) == pytest.approx((2 + 7 / 12, 2 + 7 / 4))  # a quarter from either end
    median = bootstrap_median(values, how)
    assert (median.value, median.low, median.high) == (3.0, 2.75, 4.25)


def test_an_interval_of_a_ratio_leaves_out_resamples_where_it_is_not_defined():
    # Of two prompts one is undecided: a quarter of the resamples have nothing to divide by.
    def ratio(means):
        with np.errstate(invalid="ignore"):
            return means[:, 0] / means[:, 1]

    found = bootstrap_of_means([[1.0, 1.0], [0.0, 0.0]], ratio)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_means_per_prompt_leave_failed_items_out():
    found = prompt_means([1.0, math.nan, 5.0, math.nan], ["b", "b", "a", "c"])
    assert found[:2].tolist() == [1.0, 5.0]
    assert math.isnan(found[2])


def test_one_prompt_has_no_interval():
    found = bootstrap_mean([2.0])
    assert (found.value, found.low, found.high) == (2.0, None, None)
    assert str(found) == "2.000 (no interval)"
    assert found.holds(1e9)


def test_tensors_lists_and_arrays_are_the_same_values():
    values = [0.5, 0.25, 1.0, 0.75, 0.0]
    expected = bootstrap_mean(values)
    assert bootstrap_mean(np.array(values)) == expected
    assert bootstrap_mean(torch.tensor(values, requires_grad=True)) == expected


def test_ten_thousand_prompts_need_little_memory():
    values = np.random.default_rng(6).normal(size=10_000)
    tracemalloc.start()
    bootstrap_mean(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # all resamples at once would be 160 MB of indices alone


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ([], ConfigError, "got 'nothing', expected at least one value"),
        ([1.0, math.nan, 2.0], ConfigError, r"1 NaN of 3, the first at \[1\]', expected finite numbers"),
        ([1.0, math.inf], ConfigError, "got 'inf', expected finite numbers. A failed item is NaN"),
        (np.zeros((2, 3)), ShapeError, r"got \[2, 3\], expected a list with one number per item"),
        (np.array(["a", "b"]), ShapeError, "all of them numbers"),
    ],
)
def test_values_that_are_no_numbers_are_refused(values, error, match):
    with pytest.raises(error, match=match):
        bootstrap_mean(values)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="num_resamples: got 0, expected at least 1"):
        Resampling(num_resamples=0)
    with pytest.raises(UnknownNameError, match="unknown bootstrap method 'normal'"):
        Resampling(method="normal")
    with pytest.raises(ConfigError, match=r"expected whole numbers in \[0, 2\)"):
        bootstrap_mean([1.0, 2.0], Resampling(picks=np.array([[0, 2]])))
    with pytest.raises(ConfigError, match="got 'NaN only'"):
        percentile_interval([math.nan, math.nan])
    with pytest.raises(ShapeError, match="expected 2, one per item"):
        prompt_means([1.0, 2.0], ["a"])


def test_settings_say_what_they_are():
    assert str(Resampling(seed=7)) == "2000 resamples of prompts, percentile, seed 7"
    assert (
        str(Resampling(picks=np.zeros((3, 2), dtype=np.int64))) == "3 resamples of prompts, percentile, given"
    )

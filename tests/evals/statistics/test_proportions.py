"""Shares: intervals against an independent library and against simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from mmalign.errors import ConfigError
from mmalign.evals.statistics import exact_interval, wilson_interval
from mmalign.evals.statistics.proportions import binomial_tail

COUNTS = [(0, 7), (7, 7), (2, 7), (13, 31), (499, 1000)]


@pytest.mark.parametrize(("successes", "num"), COUNTS)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_intervals_equal_those_of_scipy(successes, num, confidence):
    reference = stats.binomtest(successes, num)
    for method, found in (
        ("wilson", wilson_interval(successes, num, confidence=confidence)),
        ("exact", exact_interval(successes, num, confidence=confidence)),
    ):
        expected = reference.proportion_ci(confidence, method=method)
        assert found.value == successes / num
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-11)


def coverage(interval, share: float, num: int, confidence: float) -> float:
    """Exact probability that the interval holds the share: every outcome with its weight, no simulation."""
    outcomes = np.arange(num + 1)
    holds = [interval(int(k), num, confidence=confidence).holds(share) for k in outcomes]
    return float(stats.binom.pmf(outcomes, num, share)[holds].sum())


@pytest.mark.parametrize("share", [0.03, 0.31, 0.5, 0.77])
@pytest.mark.parametrize("num", [5, 23, 101])
def test_the_exact_interval_covers_at_least_as_often_as_it_says(share, num):
    assert coverage(exact_interval, share, num, 0.9) >= 0.9


def test_the_wilson_interval_covers_as_often_as_it_says_on_average():
    shares = np.linspace(0.05, 0.95, 37)
    found = np.mean([coverage(wilson_interval, float(share), 47, 0.95) for share in shares])
    assert found == pytest.approx(0.95, abs=0.008)


def test_half_successes_are_allowed_and_an_interval_keeps_its_width_at_the_ends():
    assert wilson_interval(3.5, 7).value == 0.5
    never = wilson_interval(0, 7)
    assert (never.low, never.high > 0.3) == (0.0, True)


def test_binomial_tails_equal_those_of_scipy_from_one_trial_to_many():
    for least, num, share in [
        (1, 1, 0.5),
        (3, 5, 0.2),
        (0, 5, 0.2),
        (5300, 10007, 0.5),
        (2, 3, 1.0),
        (1, 3, 0.0),
    ]:
        expected = stats.binom.sf(least - 1, num, share)
        assert binomial_tail(least, num, share) == pytest.approx(expected, rel=1e-8)
    assert math.isclose(binomial_tail(0, 0), 1.0)


def test_intervals_print_and_become_plain_values():
    found = wilson_interval(3, 5)
    assert str(found) == "0.600 (0.231 to 0.882)"
    assert found.as_dict() == {
        "value": 0.6,
        "low": found.low,
        "high": found.high,
        "confidence": 0.95,
        "method": "wilson",
    }


@pytest.mark.parametrize("interval", [wilson_interval, exact_interval])
def test_impossible_counts_are_refused(interval):
    with pytest.raises(ConfigError, match="got '0 of 0', expected 0 <= successes <= num"):
        interval(0, 0)
    with pytest.raises(ConfigError, match="got '4 of 3'"):
        interval(4, 3)
    with pytest.raises(ConfigError, match=r"got 1.0, expected a confidence in \(0, 1\)"):
        interval(2, 3, confidence=1.0)


def test_impossible_probabilities_are_refused():
    with pytest.raises(ConfigError, match=r"got 1\.5, expected a probability"):
        binomial_tail(1, 2, 1.5)

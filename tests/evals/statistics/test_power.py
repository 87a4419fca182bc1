"""Power: what a number of prompts can show."""

import math

import numpy as np
import pytest
from scipy import stats

from mmalign.errors import ConfigError
from mmalign.evals.statistics import (
    detectable_difference,
    detectable_win_rate,
    power_of,
    power_report,
    required_prompts,
    sign_test,
)


def test_five_hundred_prompts_tell_a_win_rate_of_0563_from_one_half():
    assert detectable_win_rate(500) == pytest.approx(0.5626, abs=5e-5)
    assert detectable_win_rate(500, tie_share=0.75) == pytest.approx(0.5313, abs=5e-5)
    assert detectable_win_rate(2) == 1.0


def test_the_three_questions_are_one_formula():
    difference = detectable_difference(2.0, 101)
    assert power_of(difference, 2.0, 101) == pytest.approx(0.8, abs=1e-4)
    assert required_prompts(difference, 2.0) == 101
    assert required_prompts(-difference * 0.999, 2.0) == 102


def test_the_stated_power_is_found_in_simulation():
    # The exact sign test is a little stricter than the normal formula, never by more than a few percent.
    rate = detectable_win_rate(500)
    wins = np.random.default_rng(0).binomial(500, rate, size=1000)
    found = np.mean([sign_test(int(won), 500 - int(won)).p_value <= 0.05 for won in wins])
    assert 0.74 < found < 0.84
    shift = detectable_difference(1.0, 101)
    draws = np.random.default_rng(1).normal(shift, 1.0, size=(1000, 101))
    rejected = stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05
    assert rejected.mean() == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 1000) + 0.01)


def test_a_report_says_what_the_prompts_could_have_shown():
    found = power_report([1.0, 3.0, 0.0, -2.0, 3.0])
    assert found.num_prompts == 5
    assert found.detectable_win_rate == detectable_win_rate(5, tie_share=0.2)
    assert found.prompts_for_observed == required_prompts(1.0, found.std)
    assert "5 prompts show a mean difference of" in str(found)
    assert "a true difference of 1.0000 as observed needs 36" in str(found)
    assert power_report([1.0, -1.0]).prompts_for_observed is None


def test_no_spread_leaves_nothing_to_chance():
    assert power_of(0.1, 0.0, 3) == 1.0
    assert power_of(0.0, 0.0, 3) == 0.05


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: detectable_difference(-1.0, 5), "got -1.0, expected a standard deviation >= 0"),
        (lambda: detectable_difference(1.0, 0), "got 0, expected at least one prompt"),
        (lambda: detectable_difference(1.0, 5, power=1.0), "power: got 1.0"),
        (lambda: detectable_win_rate(5, tie_share=2.0), "tie_share: got 2.0"),
        (lambda: required_prompts(0.0, 1.0), "expected a difference other than 0"),
        (lambda: power_report([1.0]), "at least two: one has no spread"),
    ],
)
def test_impossible_questions_are_refused(call, match):
    with pytest.raises(ConfigError, match=match):
        call()

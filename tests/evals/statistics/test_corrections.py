"""Corrections for many comparisons."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmalign.errors import ConfigError
from mmalign.evals.statistics import adjust, benjamini_hochberg, holm


def test_holm_is_the_worked_example():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, made monotone.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=23))
@settings(max_examples=100, deadline=None)
def test_benjamini_and_hochberg_is_that_of_scipy(p_values):
    assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values), abs=1e-12)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=23), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_corrections_only_raise_p_values_and_do_not_heed_order(p_values, random):
    order = list(range(len(p_values)))
    random.shuffle(order)
    for method in (holm, benjamini_hochberg):
        found = method(p_values)
        assert (found >= np.array(p_values)).all()
        assert method([p_values[place] for place in order]) == pytest.approx(found[order], abs=1e-15)
    assert (holm(p_values) >= benjamini_hochberg(p_values) - 1e-15).all()


def test_holm_bounds_the_chance_of_any_false_claim():
    generator = np.random.default_rng(0)
    claims = [(holm(generator.uniform(size=7)) <= 0.05).any() for _ in range(2000)]
    assert np.mean(claims) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_tests_that_could_not_be_made_do_not_count():
    found = holm([0.01, math.nan, 0.02])
    assert found[[0, 2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])


def test_names_keep_their_p_values():
    assert adjust({"hpsv21": 0.04, "pickscore": 0.01}) == pytest.approx({"hpsv21": 0.04, "pickscore": 0.02})
    assert adjust({}) == {}


def test_numbers_that_are_no_probabilities_are_refused():
    with pytest.raises(ConfigError, match="expected probabilities"):
        holm([0.5, 1.5])

"""Pairs by score and by length, by hand."""

import math

import pytest

from mmalign.errors import HyperparameterError
from mmalign.vlm.pair_making.selection import balance_lengths, best_and_worst, pairs_above


def test_all_ordered_pairs_that_differ_enough_are_found() -> None:
    assert pairs_above([0.0, -1.0, -3.0], limit=None) == [(0, 1), (0, 2), (1, 2)]
    assert pairs_above([0.0, -1.0, -3.0], difference=2.5, limit=None) == [(0, 2)]
    assert pairs_above([0.0, math.nan, -3.0], limit=None) == [(0, 2)]


def test_at_most_two_pairs_of_a_prompt_are_drawn() -> None:
    scores = [float(-number) for number in range(7)]
    drawn = [tuple(pairs_above(scores, seed=seed)) for seed in range(20)]
    assert {len(pairs) for pairs in drawn} == {2}
    assert len(set(drawn)) > 10
    assert drawn[3] == tuple(pairs_above(scores, seed=3))
    assert all(scores[better] - scores[worse] >= 1 for pairs in drawn for better, worse in pairs)


def test_a_difference_is_positive() -> None:
    with pytest.raises(HyperparameterError, match="a number > 0"):
        pairs_above([1.0], difference=0.0)


def test_the_best_stands_against_the_worst_unless_they_are_equal() -> None:
    assert best_and_worst([0.2, 0.7, math.nan, 0.1, 0.7]) == (1, 3)
    assert best_and_worst([0.5, 0.5 + 1e-9]) is None
    assert best_and_worst([0.5, 0.8], spread=0.3) is None or best_and_worst([0.5, 0.8], spread=0.4) is None
    assert best_and_worst([math.nan]) is None


def words(number: int) -> str:
    return " ".join(["w"] * number)


def test_lengths_are_balanced_at_the_ratio_with_the_smallest_gap() -> None:
    # Excess of the rejected answer over itself: 0.5, 0.1, -0.2.
    pairs = [(words(5), words(10)), (words(9), words(10)), (words(12), words(10))]
    balance = balance_lengths(pairs)
    # All: (26 - 30) / 30 = 0.133; without the first: (21 - 20) / 20 = 0.05; the last alone: 0.2.
    assert balance.kept == (False, True, True)
    assert balance.gap == pytest.approx(0.05)
    assert balance.ratio == pytest.approx(0.48)


def test_balancing_nothing_keeps_nothing() -> None:
    assert balance_lengths([]).kept == ()

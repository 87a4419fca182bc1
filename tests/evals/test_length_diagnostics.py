"""Length taken for quality, in numbers that can be checked by hand."""

import math

import numpy as np
import pytest

from mmalign.errors import ShapeError
from mmalign.evals.length_diagnostics import (
    length_bias_of_rewards,
    length_controlled_win_rate,
    pair_lengths,
)


def words(number: int) -> str:
    return " ".join(["w"] * number)


def test_lengths_of_both_sides_are_counted_in_words() -> None:
    found = pair_lengths([words(3), words(5), words(2)], [words(2), words(5), words(13)])
    assert (found.chosen, found.rejected) == pytest.approx((10 / 3, 20 / 3))
    assert found.chosen_longer == pytest.approx(0.5)
    assert found.ratio == pytest.approx(0.5)
    assert found.num_pairs == 3


def test_a_reward_that_is_the_length_is_found_out() -> None:
    answers = [words(number) for number in (2, 3, 5, 7)]
    found = length_bias_of_rewards(answers, [0.2, 0.3, 0.5, 0.7])
    assert found.correlation == pytest.approx(1.0)
    assert found.rank_correlation == pytest.approx(1.0)
    assert found.per_word == pytest.approx(0.1)
    bent = length_bias_of_rewards(answers, [math.exp(-number) for number in (2, 3, 5, 7)])
    assert bent.rank_correlation == pytest.approx(-1.0)
    assert bent.correlation > -0.95


def test_prompts_that_call_for_long_answers_do_not_count() -> None:
    # Between prompts longer is better, within a prompt it is worse.
    answers = [words(number) for number in (2, 3, 11, 13)]
    found = length_bias_of_rewards(answers, [1.0, 0.0, 9.0, 7.0], ["a", "a", "b", "b"])
    assert found.correlation > 0.8
    assert found.within_prompts == pytest.approx(-1.0)
    assert found.per_word == pytest.approx(-1.0)


def test_failed_rewards_are_left_out_and_constant_ones_say_nothing() -> None:
    found = length_bias_of_rewards([words(2), words(3), words(5)], [1.0, math.nan, 2.0])
    assert found.num_items == 2
    assert math.isnan(length_bias_of_rewards([words(2), words(3)], [1.0, 1.0]).correlation)
    with pytest.raises(ShapeError, match="at least 2 rewards"):
        length_bias_of_rewards([words(2), words(3)], [1.0, math.nan])


def test_a_win_rate_that_length_made_is_even_at_equal_lengths() -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    gap = generator.normal(30.0, 40.0, 4001)
    chance = 1 / (1 + np.exp(-2.0 * np.tanh(gap / gap.std())))
    wins = (generator.random(4001) < chance).astype(float)
    found = length_controlled_win_rate(wins.tolist(), (100 + gap.round()).astype(int).tolist(), [100] * 4001)
    assert found.raw > 0.65
    assert found.controlled == pytest.approx(0.5, abs=0.03)
    assert found.slope == pytest.approx(2.0, abs=0.2)


def test_without_differences_in_length_nothing_is_controlled() -> None:
    found = length_controlled_win_rate([1.0, 1.0, 0.5, 0.0, 1.0], [7] * 5, [7] * 5)
    assert (found.raw, found.controlled) == pytest.approx((0.7, 0.7))


def test_length_that_decides_every_game_gives_finite_numbers() -> None:
    found = length_controlled_win_rate([1.0, 1.0, 0.0, 0.0], [9, 8, 2, 1], [5, 5, 5, 5])
    assert found.controlled == pytest.approx(0.5)
    assert 2 < found.slope < 20


def test_lists_of_different_length_and_odd_preferences_are_refused() -> None:
    with pytest.raises(ShapeError, match="as many of both"):
        pair_lengths(["a"], [])
    with pytest.raises(ShapeError, match="outside 0 to 1"):
        length_controlled_win_rate([2.0], [1], [1])

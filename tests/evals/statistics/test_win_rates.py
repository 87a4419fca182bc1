"""Win rates and differences of two models on the same prompts."""

import json
import math

import numpy as np
import pytest

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.statistics import (
    Resampling,
    compare_rewards,
    exact_interval,
    mean_difference,
    outcomes,
    win_rate,
)


def test_seeds_are_averaged_within_prompts_before_prompts_are():
    # Prompt a: one win of three; prompt b: a win; prompt c: a tie. (1/3 + 1 + 1/2) / 3, not 2.5 of 5.
    found = win_rate([2, 1, 1, 5, 3], [1, 2, 2, 4, 3], prompts=["a", "a", "a", "b", "c"])
    assert found.rate.value == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert found.strict.value == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found.dropped.value == pytest.approx((4 / 3) / (4 / 3 + 2 / 3))
    assert (found.wins, found.ties, found.losses, found.num_prompts) == (2, 1, 2, 3)
    assert (found.sign.count, found.sign.dropped) == (2, 1)  # prompts, not images
    assert found.exact == exact_interval(1, 2)


def test_ties_are_half_lost_or_dropped_and_a_margin_makes_more_of_them():
    first, second = [3, 2, 2, 5, 7.0], [1, 2, 2.5, 4, 9.0]
    found = win_rate(first, second)
    assert (found.wins, found.ties, found.losses) == (2, 1, 2)
    values = (found.rate.value, found.strict.value, found.dropped.value)
    assert values == pytest.approx((2.5 / 5, 2 / 5, 2 / 4))
    assert win_rate(first, second, tie_margin=1).rate.value == pytest.approx((1 + 3 / 2) / 5)
    assert outcomes(first, second, tie_margin=0.5).tolist() == [1.0, 0.5, 0.5, 1.0, 0.0]


def test_failed_items_are_counted_and_never_averaged():
    first, second = [2.0, math.nan, 3.0, 1.0, 5.0], [1.0, 0.0, math.nan, 2.0, 1.0]
    found = win_rate(first, second, prompts=["a", "a", "b", "c", "d"])
    assert (found.failed, found.failed_prompts, found.num_prompts) == (2, 1, 3)
    assert found.rate.value == pytest.approx(2 / 3)
    assert "2 failed" in str(found)
    gap = mean_difference(first, second, prompts=["a", "a", "b", "c", "d"])
    assert (gap.failed, gap.num_prompts) == (2, 3)
    assert (gap.mean_first, gap.mean_second, gap.difference.value) == pytest.approx((8 / 3, 4 / 3, 4 / 3))


def test_swapping_the_models_mirrors_every_number():
    draws = np.random.default_rng(0).normal(size=(2, 53)).round(1)
    there, back = win_rate(draws[0], draws[1]), win_rate(draws[1], draws[0])
    assert back.rate.value == pytest.approx(1.0 - there.rate.value)
    assert (back.wilson.low, back.wilson.high) == pytest.approx((1 - there.wilson.high, 1 - there.wilson.low))
    assert (back.exact.low, back.exact.high) == pytest.approx((1 - there.exact.high, 1 - there.exact.low))
    assert back.sign.p_value == there.sign.p_value
    gap, other = mean_difference(draws[0], draws[1]), mean_difference(draws[1], draws[0])
    assert other.difference.value == pytest.approx(-gap.difference.value)
    assert other.effect_size == pytest.approx(-gap.effect_size)
    assert other.signed_rank.p_value == pytest.approx(gap.signed_rank.p_value)


def test_the_order_of_the_items_changes_nothing():
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(2, 47)).round(1)
    prompts = np.array([f"prompt {place % 11}" for place in range(47)])
    order = generator.permutation(47)
    found = win_rate(first, second, prompts=prompts)
    again = win_rate(first[order], second[order], prompts=prompts[order])
    for name in ("rate", "strict", "dropped", "wilson", "exact"):
        one, other = getattr(found, name), getattr(again, name)
        assert (one.value, one.low, one.high) == pytest.approx(
            (other.value, other.low, other.high), abs=1e-12
        )


def test_the_interval_of_a_win_rate_covers_the_truth_as_often_as_it_says():
    # Three seeds per prompt whose outcomes go together: what pooling images would get wrong.
    generator = np.random.default_rng(2)
    prompts = np.repeat(np.arange(61), 3)
    covered, pooled = [], []
    for place in range(150):
        share = np.repeat(generator.choice([0.2, 0.95], size=61), 3)
        won = (generator.uniform(size=183) < share).astype(float)
        how = Resampling(num_resamples=300, seed=place)
        covered.append(win_rate(won, 1.0 - won, prompts=prompts, how=how).rate.holds(0.575))
        pooled.append(win_rate(won, 1.0 - won, how=how).rate.holds(0.575))
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 150) + 0.01)
    assert np.mean(pooled) < 0.87


def test_one_prompt_has_a_rate_and_only_intervals_that_can_be_had():
    found = win_rate([2.0], [1.0])
    assert (found.rate.value, found.rate.low) == (1.0, None)
    assert (found.wilson.low, found.exact.low) == pytest.approx((0.2065, 0.025), abs=1e-4)
    gap = mean_difference([2.0], [1.0])
    assert (gap.difference.value, gap.difference.high) == (1.0, None)
    assert math.isnan(gap.effect_size)
    assert math.isnan(gap.standard_error)
    assert "effect size none" in str(gap)


def test_nothing_but_ties_is_one_half_and_no_evidence():
    found = win_rate([1, 2, 3], [1, 2, 3])
    assert (found.rate.value, found.strict.value, found.sign.p_value) == (0.5, 0.0, 1.0)
    assert math.isnan(found.dropped.value)
    assert math.isnan(found.exact.value)


def test_results_are_plain_json_values():
    found = win_rate([1, 2, 3], [1, 2, 3])
    stored = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert stored["dropped"] == {
        "value": None,
        "low": None,
        "high": None,
        "confidence": 0.95,
        "method": "percentile",
    }
    assert (stored["how"]["num_resamples"], stored["how"]["seed"]) == (2000, 0)
    assert json.dumps(mean_difference([1], [2]).as_dict(), allow_nan=False)


def test_a_win_rate_says_what_it_is_made_of():
    found = win_rate([3, 2, 2, 5, 7], [1, 2, 2.5, 4, 9])
    text = str(found)
    assert text.startswith("won 0.500 (0.")
    assert text.endswith("of 5 prompts: 2 won, 1 tied, 2 lost; sign test p = 1.0000")


# ------------------------------------------------------------------------------------------------ rewards


def test_macro_averages_rewards_and_micro_pools_comparisons():
    nan = math.nan
    first = {"clip": [2, 2, 2, 2, 1], "blip": [2, 1, nan, nan, nan]}
    second = {"clip": [1, 1, 1, 1, 2], "blip": [1, 2, 1, 1, 1]}
    found = compare_rewards(first, second)
    assert found.macro.value == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert found.micro.value == pytest.approx(5 / 7)
    assert found.win_rates["clip"] == win_rate(first["clip"], second["clip"])
    assert found.differences["blip"].failed == 3
    seeds = compare_rewards({"clip": [2, 2, 2, 1]}, {"clip": [1, 1, 1, 2]}, prompts=["a", "a", "a", "b"])
    assert (seeds.macro.value, seeds.micro.value) == (0.5, 0.75)
    assert seeds.macro == seeds.win_rates["clip"].rate
    same = compare_rewards({"clip": [2, 1], "blip": [3, 4]}, {"clip": [1, 2], "blip": [5, 1]})
    assert same.macro.value == same.micro.value == 0.5


def test_significance_is_claimed_after_correction_for_the_number_of_rewards():
    # Six wins of six: p = 0.031 alone, 0.125 among four.
    better, mixed = ([2.0] * 6, [1.0] * 6), ([2.0, 1.0] * 3, [1.0, 2.0] * 3)
    alone = compare_rewards({"a": better[0]}, {"a": better[1]})
    assert alone.significant == ("a",)
    sides = [{"a": better[side], "b": mixed[side], "c": mixed[side], "d": mixed[side]} for side in (0, 1)]
    among = compare_rewards(*sides)
    assert among.significant == ()
    assert among.adjusted["a"] == pytest.approx(4 * 0.03125)
    assert among.win_rates["a"].sign.p_value == pytest.approx(0.03125)


def test_a_comparison_prints_one_line_per_reward_and_averages():
    found = compare_rewards(
        {"pickscore": [2, 3, 1]}, {"pickscore": [1, 2, 2]}, tie_margins={"pickscore": 0.5}
    )
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["pickscore", "macro", "micro"]
    assert "(Holm p = 1.0000)" in lines[0]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("compare", [win_rate, mean_difference])
def test_impossible_comparisons_are_refused(compare):
    with pytest.raises(
        ConfigError, match=r"got 'nothing', expected at least one value\. Was anything scored"
    ):
        compare([], [])
    with pytest.raises(ShapeError, match="got '2 second', expected 3, one per item"):
        compare([1, 2, 3], [1, 2])
    with pytest.raises(ConfigError, match="2 comparisons, all of them failed"):
        compare([math.nan, 1], [1, math.nan])
    with pytest.raises(ShapeError, match="got '1 prompts', expected 2, one per item"):
        compare([1, 2], [2, 1], prompts=["a"])


def test_a_negative_margin_is_refused():
    with pytest.raises(ConfigError, match=r"tie_margin: got -1\.0, expected a number >= 0"):
        win_rate([1], [2], tie_margin=-1.0)


def test_rewards_that_do_not_belong_together_are_refused():
    with pytest.raises(ConfigError, match="expected the same rewards for both models"):
        compare_rewards({"a": [1]}, {"b": [1]})
    with pytest.raises(ConfigError, match="at least one"):
        compare_rewards({}, {})
    with pytest.raises(ConfigError, match="tie margins for"):
        compare_rewards({"a": [1]}, {"a": [1]}, tie_margins={"b": 1.0})
    with pytest.raises(ShapeError, match="expected one score per item and reward"):
        compare_rewards({"a": [1], "b": [1, 2]}, {"a": [1], "b": [1, 2]})

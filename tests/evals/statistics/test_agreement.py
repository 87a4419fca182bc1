"""Rewards against human labels: tie rules, thresholds, rankings, calibration."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmalign.errors import ConfigError, ShapeError, UnknownNameError
from mmalign.evals.statistics import (
    RULES,
    TieRule,
    agreement_by,
    calibrated_thresholds,
    fit_beta,
    kendall_tau_b,
    pair_agreement,
    pair_credit,
    pair_probability,
    quantile_buckets,
    ranking_agreement,
    reward_calibration,
    threshold_search,
    tie_rule,
    videoalign_accuracy_with_ties,
)

# right, wrong, predicted tie, human tie decided, human tie predicted, failed
HUMAN = [1, -1, 1, 0, 0, -1]
GAPS = [2.0, 3.0, 0.0, 1.5, 0.0, math.nan]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("half", [1, 0, 0.5, None, None, None]),
        ("imagereward", [1, 0, 0, None, None, None]),
        ("without_ties", [1, 0, 0, None, None, None]),
        ("pickapic", [1, 0, 0.5, 0.5, 1, None]),
        ("with_ties", [1, 0, 0, 0, 1, None]),
    ],
)
def test_every_rule_says_what_each_kind_of_tie_is_worth(name, expected):
    found = pair_credit(HUMAN, GAPS, tie_rule(name))
    assert [None if math.isnan(value) else value for value in found] == expected


def test_agreement_counts_what_it_leaves_out():
    found = pair_agreement(HUMAN, GAPS, tie_rule("pickapic"))
    assert found.accuracy.value == found.pooled == pytest.approx(3 / 5)
    counts = (found.pairs, found.human_ties, found.predicted_ties, found.failed)
    assert counts == (5, 2, 2, 1)
    assert found.kendall == 0.0  # one right, one wrong
    assert "2 predicted ties, 2 human ties, 1 failed" in str(found)


def test_pairs_of_a_prompt_are_averaged_before_prompts_are():
    found = pair_agreement([1, 1, 1, 1], [1, 1, 1, -1], prompts=["a", "a", "a", "b"])
    assert (found.accuracy.value, found.pooled) == (0.5, 0.75)


def test_swapping_the_sides_of_every_pair_changes_nothing():
    generator = np.random.default_rng(0)
    human, gap = generator.integers(-1, 2, 53), generator.normal(size=53).round(1)
    for rule in RULES.values():
        there, back = pair_agreement(human, gap, rule), pair_agreement(-human, -gap, rule)
        assert there == back


def test_groups_are_judged_apart_and_empty_ones_are_named():
    found = agreement_by(["x", "x", "y", "z"], [1, -1, 1, 0], [1.0, 1.0, 2.0, 3.0])
    assert list(found) == ["x", "y", "z"]
    assert (found["x"].pooled, found["y"].pooled, found["z"]) == (0.5, 1.0, None)


def test_buckets_hold_equal_shares_and_cover_every_value():
    names = quantile_buckets([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3)
    assert names == ["[1, 2.667)"] * 2 + ["[2.667, 4.333)"] * 2 + ["[4.333, 6]"] * 2
    assert quantile_buckets([7.0, 7.0], 4) == ["[7, 7]", "[7, 7]"]


def test_probabilities_of_a_pair_add_up_even_where_they_saturate():
    found = pair_probability([0.3, 900.0, -900.0], [0.1, -900.0, 900.0], scale=10)
    assert found.sum(axis=1) == pytest.approx([1.0, 1.0, 1.0], abs=1e-15)
    assert found[0, 0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert found[1].tolist() == [1.0, 0.0]


# ------------------------------------------------------------------------------------------------ thresholds

LABELS = st.lists(
    st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0])),
    min_size=1,
    max_size=13,
)


@given(LABELS, st.sampled_from(["with_ties", "pickapic"]))
@settings(max_examples=150, deadline=None)
def test_a_threshold_search_is_the_best_of_plain_evaluations(pairs, name):
    human, gap = ([pair[side] for pair in pairs] for side in (0, 1))
    rule, tried = tie_rule(name), calibrated_thresholds(gap)
    found = threshold_search(human, gap, tried, rule)
    plain = [pair_credit(human, gap, rule, threshold=float(threshold)).mean() for threshold in tried]
    assert found.accuracies == pytest.approx(plain)
    assert found.best_accuracy == pytest.approx(max(plain))
    assert found.best_threshold == tried[int(np.argmax(found.accuracies))]


def released_accuracy(human: list[int], gap: list[float]) -> float:
    """The released procedure, pair by pair."""
    order = sorted(range(len(gap)), key=lambda place: abs(gap[place]))
    best = -1.0
    for count in range(1, len(order) + 1):
        tied, decided = order[:count], order[count:]
        right = sum(human[place] == 0 for place in tied)
        right += sum(human[place] * gap[place] > 0 for place in decided)
        best = max(best, right / len(order))
    return best


@given(LABELS)
@settings(max_examples=150, deadline=None)
def test_the_released_accuracy_is_kept_and_beats_its_correction_only_by_splitting_ties(pairs):
    human, gap = ([pair[side] for pair in pairs] for side in (0, 1))
    found = videoalign_accuracy_with_ties(human, gap)
    assert found == pytest.approx(released_accuracy(human, gap))
    if len({abs(value) for value in gap}) == len(gap):
        assert threshold_search(human, gap, calibrated_thresholds(gap)).best_accuracy >= found - 1e-12


def test_predicting_no_ties_at_all_is_tried_first():
    found = threshold_search([1, -1], [0.5, -0.2], calibrated_thresholds([0.5, -0.2]))
    assert (found.best_threshold, found.best_accuracy) == (-1.0, 1.0)
    assert videoalign_accuracy_with_ties([1, -1], [0.5, -0.2]) == 0.5
    assert "on the pairs it was chosen on" in str(found)


# ------------------------------------------------------------------------------------------------ rankings


def test_rankings_are_scored_by_pairs_and_by_inversions():
    # Prompt 1: of 1-2, 1-3, 2-3 the last is wrong. Prompt 2: people tie, which only inversions count.
    found = ranking_agreement([[1, 2, 3], [1, 1]], [[5.0, 1.0, 2.0], [1.0, 7.0]])
    assert found.pooled.value == pytest.approx(2 / 3)
    assert found.mean_over_prompts.value == pytest.approx(2 / 3)
    assert found.per_prompt == pytest.approx((2 / 3, 1.0))
    assert (found.pairs, found.failed) == (3, 0)


def test_a_prompt_with_a_failed_reward_is_left_out_and_counted():
    found = ranking_agreement([[1, 2], [1, 2]], [[2.0, math.nan], [2.0, 1.0]])
    assert (found.pooled.value, found.failed) == (1.0, 1)
    assert math.isnan(found.per_prompt[0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=31))
@settings(max_examples=100, deadline=None)
def test_kendall_tau_b_is_that_of_scipy(items):
    first, second = ([item[side] for item in items] for side in (0, 1))
    expected = stats.kendalltau(first, second).statistic
    assert kendall_tau_b(first, second) == pytest.approx(expected, nan_ok=True)


# ------------------------------------------------------------------------------------------------ calibration


def labelled_gaps(beta: float, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose first is preferred with probability sigmoid(beta * difference)."""
    generator = np.random.default_rng(seed)
    gap = generator.normal(0.0, 3.0, num)
    wins = generator.uniform(size=num) < 1.0 / (1.0 + np.exp(-beta * gap))
    return np.where(wins, 1, -1), gap


def test_the_scale_of_differences_comes_back_and_calibrates_other_pairs():
    beta = fit_beta(*labelled_gaps(0.7, 20_011, 0))
    assert beta == pytest.approx(0.7, rel=0.03)
    found = reward_calibration(*labelled_gaps(0.7, 20_011, 1), beta=beta)
    assert found.error < 0.01
    assert found.temperature == pytest.approx(1.0, abs=0.05)
    assert found.nll.value < math.log(2)
    assert found.bins[:, 2].sum() == found.pairs == 20_011


def test_too_large_a_scale_is_over_confident_and_says_so():
    human, gap = labelled_gaps(0.7, 5003, 2)
    found = reward_calibration(human, gap, beta=7.0)
    assert found.error > 0.1
    assert found.temperature == pytest.approx(10.0, rel=0.1)
    assert found.nll_at_temperature < found.nll.value < math.inf
    assert "over-confident by" in str(found)


def test_the_unit_of_a_reward_does_not_matter():
    human, gap = labelled_gaps(0.7, 1009, 3)
    assert fit_beta(human, 1000.0 * gap) == pytest.approx(fit_beta(human, gap) / 1000.0, rel=1e-6)
    assert fit_beta(-human, -gap) == pytest.approx(fit_beta(human, gap), rel=1e-9)


def test_human_ties_are_half_an_outcome_and_failed_pairs_are_left_out():
    found = reward_calibration([0, 1, 1], [2.0, 2.0, math.nan], beta=1.0)
    assert (found.accuracy, found.pairs, found.failed) == (0.75, 2, 1)
    confidence = 1 / (1 + math.exp(-2))
    assert found.brier.value == pytest.approx(((confidence - 0.5) ** 2 + (confidence - 1) ** 2) / 2)


def test_bins_have_edges_from_one_half_to_one():
    found = reward_calibration([1, -1], [1.0, 1.0], beta=1.0, num_bins=5, prompts=["a", "b"])
    edges = [*found.bins[:, 0].tolist(), found.bins[-1, 1]]
    assert edges == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert all(low < high for low, high in pairwise(edges))
    assert found.bins[:, 2].tolist() == [0, 0, 2, 0, 0]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pair_credit([1, 2], [1.0, 1.0], RULES["half"]), ConfigError, "human 1: got 2.0, expected 1"),
        (lambda: pair_agreement([1, 1], [1.0]), ShapeError, "got '1 difference', expected 2"),
        (lambda: pair_agreement([0, 1], [1.0, math.nan]), ConfigError, "got 'no pair that counts'"),
        (lambda: agreement_by(["x"], [1, 1], [1.0, 1.0]), ShapeError, "got '1 groups'"),
        (lambda: TieRule(True, 2.0), ConfigError, "one_sided: got 2.0"),
        (lambda: tie_rule("third"), UnknownNameError, "unknown tie rule 'third'"),
        (lambda: quantile_buckets([1.0], 0), ConfigError, "at least one bucket"),
        (lambda: threshold_search([0], [math.nan], [0.0]), ConfigError, "got 'no pair that counts'"),
        (lambda: threshold_search([1], [1.0], []), ConfigError, "thresholds: got 'nothing'"),
        (lambda: videoalign_accuracy_with_ties([1], [math.nan]), ConfigError, "1 NaN of 1"),
        (lambda: ranking_agreement([[1, 2]], []), ShapeError, "1 and 0 prompts"),
        (lambda: ranking_agreement([[1, 2]], [[1.0]]), ShapeError, "prompt 0: got '2 ranks and 1 rewards'"),
        (
            lambda: ranking_agreement([[1, 1]], [[1.0, 2.0]]),
            ConfigError,
            "got 'no decided pair with rewards'",
        ),
        (lambda: kendall_tau_b([1.0], [1.0, 2.0]), ShapeError, "expected '?1 items on both sides"),
        (lambda: fit_beta([1, -1], [0.0, 0.0]), ConfigError, "differences that are all 0"),
        (lambda: fit_beta([1], [math.nan]), ConfigError, "got 'no pair with scores'"),
        (
            lambda: reward_calibration([1], [1.0], beta=0.0),
            ConfigError,
            "beta: got 0.0, expected a number > 0",
        ),
    ],
)
def test_impossible_questions_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()

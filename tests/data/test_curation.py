"""Intervals over prompts, length bias, consistency, score gaps, the filter, separability."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.curation import candidate_key, consistency, keep_lowest, length_bias, score_gaps
from mmalign.data.separability import fit_logistic, linear_separability
from mmalign.data.statistics import mean_of, share_of
from mmalign.errors import ConfigError, RowError, ShapeError, UnknownNameError


def pair(chosen, rejected, prompt="p", **more):
    return PreferenceRow(
        prompt, (Candidate(text=chosen), Candidate(text=rejected)), **({"id": f"{chosen}>{rejected}"} | more)
    )


# --- intervals


def test_independent_rows_have_the_usual_intervals():
    values = [float(number % 3 == 0) for number in range(101)]
    share = share_of(values, range(101))
    p, n, z = sum(values) / 101, 101, 1.959963984540054
    # The variance of the spread is p (1 - p) / (n - 1), so the effective number is n - 1.
    n -= 1
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert share.value == pytest.approx(p)
    assert (share.low, share.high) == pytest.approx((center - half, center + half))
    mean = mean_of([float(number) for number in range(101)], range(101))
    error = np.std(range(101), ddof=1) / math.sqrt(101)
    assert (mean.low, mean.high) == pytest.approx((50 - z * error, 50 + z * error))


def test_copies_of_a_prompt_narrow_no_interval():
    values, prompts = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], list(range(7))
    once, often = share_of(values, prompts), share_of(values * 11, prompts * 11)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert (often.count, often.clusters) == (77, 7)
    once, often = mean_of(values, prompts), mean_of(values * 11, prompts * 11)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        # Pairs of one prompt agree more than others: the case plain intervals get wrong.
        lean = generator.beta(1.0, 1.0, size=60)
        values = (generator.random((60, 5)) < lean[:, None]).astype(float).ravel()
        held += share_of(values.tolist(), np.repeat(range(60), 5).tolist()).holds(0.5)
    assert 0.91 < held / 300 < 0.99


def test_a_unanimous_share_still_has_an_interval_by_prompts():
    found = share_of([1.0] * 30, [number % 3 for number in range(30)])
    assert found.high == 1.0
    assert found.low == pytest.approx(3 / (3 + 1.959963984540054**2))


def test_one_prompt_says_nothing_about_the_spread():
    found = mean_of([1.0, 2.0], ["p", "p"])
    assert (found.value, found.low, found.high) == (1.5, None, None)
    assert found.describe(1) == "1.5 (one prompt: no interval)"
    assert found.holds(99.0)
    assert mean_of([1.0, 3.0], "ab").describe(1).startswith("2.0 (0.0 to 4.0")


# --- length


def test_length_bias_counts_pairs_whose_longer_response_won():
    rows = [pair("xxxx", "x", f"p{number}") for number in range(7)]
    rows += [pair("x", "xxx", "q"), pair("xx", "yy", "r"), pair("xxxxxxxxx", "x", "s", preference=0.5)]
    found = length_bias(rows)
    assert found.unit == "characters"
    assert found.longer_wins.value == pytest.approx(7.5 / 9)
    assert found.length_only_accuracy == pytest.approx(7.5 / 9)
    assert (found.rule, found.biased) == ("longer", True)
    assert found.equal_share == pytest.approx(1 / 9)
    assert found.difference.value == pytest.approx((7 * 3 - 2) / 9)
    assert found.chosen_mean - found.rejected_mean == pytest.approx(found.difference.value)


def test_shorter_responses_can_win_and_balanced_lengths_are_no_bias():
    shorter = length_bias([pair("x", "xx", f"p{number}") for number in range(5)])
    assert (shorter.rule, shorter.length_only_accuracy) == ("shorter", 1.0)
    balanced = [pair(*("xy", "x")[:: (-1) ** number], f"p{number}") for number in range(10)]
    assert not length_bias(balanced).biased


def test_media_are_measured_in_bytes_and_any_length_will_do(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"12345")
    row = PreferenceRow("p", (Candidate(image=str(file)), Candidate(image=b"12")))
    found = length_bias([row])
    assert (found.unit, found.chosen_mean, found.rejected_mean) == ("encoded bytes", 5.0, 2.0)
    words = length_bias([pair("a b c", "dddddddd")], length=lambda it: (len(it.text.split()), "words"))
    assert (words.unit, words.rule) == ("words", "longer")


def test_length_statistics_need_decided_pairs():
    with pytest.raises(ConfigError, match=r"length statistics: got 'no pairs', expected at least one"):
        length_bias([pair("a", "b", preference=0.5)])
    with pytest.raises(RowError, match=r"r kind: got 'unpaired', expected pairs for length statistics"):
        length_bias([PreferenceRow("p", (Candidate(text="x"),), kind="unpaired", desirable=True, id="r")])


# --- consistency


def test_repetitions_contradictions_and_ties_are_told_apart():
    rows = [
        *(pair("a", "b", source="f:1"), pair("a", "b"), pair("b", "a", source="f:3")),
        *(pair("a", "c"), pair("a", "b", "other"), pair("x", "x")),
        *(pair("c", "d", preference=0.5), pair("d", "c", preference=0.5)),
    ]
    found = consistency(rows)
    assert (found.pairs, found.prompts, found.ties) == (8, 2, 2)
    assert found.repeated == 2  # a over b twice, and the tie in both orders
    assert (found.contradictory, found.contradictory_pairs) == (1, 3)
    assert found.identical == 1
    assert found.shared_candidates == 2  # a and b stand under two prompts
    assert found.examples == (("f:1", "f:3"),)
    assert found.cycles == 0


@pytest.mark.parametrize(
    ("names", "cycles"),
    [
        (["ab", "bc", "ca"], 1),
        (["ab", "bc", "ac"], 0),
        (["ab", "bc", "cd", "db", "xy"], 1),
        (["ab", "ba", "bc"], 0),
        (["ab", "ac", "bd", "cd", "de"], 0),
    ],
)
def test_preferences_that_go_round_in_a_circle_are_found(names, cycles):
    assert consistency([pair(better, worse) for better, worse in names]).cycles == cycles
    across = [pair(better, worse, f"p{number}") for number, (better, worse) in enumerate(names)]
    assert consistency(across).cycles == 0


def test_candidates_are_the_same_by_content_and_not_by_name(tmp_path):
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    one.write_bytes(b"same")
    two.write_bytes(b"same")
    keys = {candidate_key(Candidate(image=str(path), id=path.name)) for path in (one, two)}
    assert len(keys) == 1
    assert candidate_key(Candidate(text="same")) != candidate_key(Candidate(image=b"same"))
    with pytest.raises(RowError, match=r"x: got 'neither text nor media', expected one of them"):
        candidate_key(Candidate(id="x"))


# --- scores


def test_score_gaps_leave_out_ties_and_pairs_without_scores():
    def scored(chosen, rejected, prompt, **more):
        return PreferenceRow(prompt, (Candidate(reward=chosen), Candidate(reward=rejected)), **more)

    rows = [scored(float(gap), 0.0, f"p{gap}") for gap in (-1, 0, 1, 2, 3)]
    rows += [scored(None, 1.0, "q"), scored(9.0, 0.0, "r", preference=0.5)]
    found = score_gaps(rows)
    assert found.scored == 5
    assert found.quantiles[0::2] == (-1.0, 1.0, 3.0)
    assert (found.disagree.value, found.equal) == (0.2, 0.2)
    assert score_gaps(rows[5:]) is None
    with pytest.raises(RowError, match="expected pairs for score gaps"):
        score_gaps([PreferenceRow("p", (Candidate(),), kind="unpaired", desirable=True)])


# --- filter


def test_the_filter_keeps_the_lowest_scores_in_their_given_order():
    assert keep_lowest([5.0, 1.0, 3.0, 2.0, 4.0], 0.6) == [1, 2, 3]
    assert keep_lowest(torch.tensor([2.0, 2.0, 2.0]), 0.5) == [0]
    assert keep_lowest([1.0, 2.0], 1.0) == [0, 1]
    assert keep_lowest(list(range(10)), 0.7) == [0, 1, 2, 3, 4, 5, 6]
    assert keep_lowest([3.0, float("-inf"), float("inf")], 0.01) == [1]


def test_the_filter_refuses_shares_out_of_range_and_missing_scores():
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"keep_lowest share: got .*, expected a number in \(0, 1\]"):
            keep_lowest([1.0], share)
    with pytest.raises(ConfigError, match=r"keep_lowest scores\[1\]: got nan.* 1 of 3 rows have none"):
        keep_lowest([1.0, float("nan"), 2.0], 0.5)
    with pytest.raises(ConfigError, match=r"keep_lowest scores: got 'none'"):
        keep_lowest([], 0.5)


# --- separability


@pytest.mark.parametrize("intercept", [True, False])
def test_the_fit_is_that_of_a_known_library(draw, intercept):
    features, noise = draw(53, 3), draw(53)
    target = (features @ torch.tensor([1.0, -2.0, 0.0]).double() + 0.7 + noise > 0).double()
    weight, bias = fit_logistic(features, target, l2=0.5, intercept=intercept)
    known = LogisticRegression(C=2.0, fit_intercept=intercept, tol=1e-12, max_iter=5000)
    known.fit(features.numpy(), target.numpy())
    np.testing.assert_allclose(weight.numpy(), known.coef_[0], rtol=1e-5, atol=1e-6)
    assert bias.item() == pytest.approx(known.intercept_[0] if intercept else 0.0, abs=1e-5)


@pytest.mark.parametrize("on", ["candidates", "differences"])
def test_features_that_hold_the_label_separate_and_their_control_does_not(draw, on):
    chosen, rejected = draw(211, 3), draw(211, 3)
    chosen[:, 1] += 2.0
    found = linear_separability(chosen, rejected, on=on)
    assert found.accuracy.value > 0.8
    assert found.control.holds(0.5)
    assert found.separable
    assert (found.num_features, found.on) == (3, on)


@pytest.mark.parametrize("on", ["candidates", "differences"])
def test_noise_does_not_separate_however_well_it_is_fitted(draw, on):
    found = linear_separability(draw(53, 97), draw(53, 97), on=on, l2=1e-3)
    assert found.training_accuracy > 0.95
    assert found.accuracy.holds(0.5)
    assert not found.separable


def test_only_differences_see_what_varies_between_prompts(draw):
    level = 10.0 * draw(211, 1)
    chosen, rejected = level + 0.5 + 0.1 * draw(211, 1), level
    assert linear_separability(chosen, rejected, on="differences").accuracy.value > 0.95
    assert linear_separability(chosen, rejected, on="candidates").accuracy.value < 0.6


def test_a_prompt_is_never_on_both_sides_of_the_split(draw):
    # Labels are random, and every pair is there 11 times: whoever splits copies would be right always.
    chosen, rejected = draw(20, 41), draw(20, 41)
    groups = list(range(20)) * 11
    found = linear_separability(chosen.repeat(11, 1), rejected.repeat(11, 1), groups=groups, l2=1e-3)
    assert found.training_accuracy > 0.95
    assert found.accuracy.holds(0.5)
    assert found.accuracy.clusters == 20


def test_all_folds_but_the_held_out_one_are_fitted(draw):
    # Two prompts are held out at a time. Whoever fits those two and tests the rest learns next to nothing.
    chosen, rejected = draw(40, 7), draw(40, 7)
    chosen[:, 3] += 3.0
    assert linear_separability(chosen, rejected, num_folds=20).accuracy.value > 0.85


def test_scale_shift_and_constant_features_change_nothing(draw):
    chosen, rejected = draw(53, 3), draw(53, 3)
    chosen[:, 0] += 1.0
    plain = linear_separability(chosen, rejected).accuracy
    constant = torch.full((53, 1), 7.0, dtype=torch.float64)
    other = [torch.cat([1e4 * value - 3e5, constant], dim=1) for value in (chosen, rejected)]
    assert linear_separability(*other).accuracy == plain


def test_a_seed_decides_folds_and_control_and_no_global_generator_is_touched(draw):
    chosen, rejected = draw(53, 3), draw(53, 3)
    before = torch.random.get_rng_state()
    first = linear_separability(chosen, rejected, seed=1)
    assert linear_separability(chosen, rejected, seed=1) == first
    assert linear_separability(chosen, rejected, seed=2) != first
    assert torch.equal(torch.random.get_rng_state(), before)


def test_separability_refuses_what_would_say_nothing(draw, untyped):
    features = draw(7, 2)
    with pytest.raises(ConfigError, match=r"separability: got '7 prompts', expected at least 10 for 5 folds"):
        linear_separability(features, features)
    with pytest.raises(ConfigError, match=r"folds: got 1, expected at least 2"):
        linear_separability(features, features, num_folds=1)
    with pytest.raises(ConfigError, match=r"groups: got 2, expected one per pair \(7\)"):
        linear_separability(features, features, groups=["a", "b"])
    with pytest.raises(ConfigError, match=r"l2: got 0.0, expected a number > 0"):
        linear_separability(features, features, num_folds=2, l2=0.0)
    broken = features.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(ConfigError, match=r"separability features: got 'inf or NaN', expected finite"):
        linear_separability(features, broken, num_folds=2)
    with untyped:
        with pytest.raises(UnknownNameError, match=r"separability of 'pairs'"):
            linear_separability(features, features, on="pairs")
        with pytest.raises(ShapeError, match=r"chosen has shape \[7, 2\], rejected \[7, 3\]"):
            linear_separability(features, draw(7, 3), num_folds=2)

"""Pairs of scored samples: every rule, every reason, and no influence of order."""

import math
import random
from collections import Counter

import pytest
from pydantic import ValidationError

from mmalign.data.pair_making.groups import GroupSelection, ScoredSample, select_group

ALPACA = {
    "rule": "thresholds",
    "bounds": {
        "one": {"winner": (0.45, None), "loser": (0.40, None), "gap": (0.05, 0.35)},
        "two": {"winner": (0.60, None), "loser": (0.0, None), "gap": (0.08, 0.70)},
    },
}


def samples(*scores, title="one", edited=()):
    return [
        ScoredSample(f"{place}", {title: score}, f"content {place}", place in edited)
        for place, score in enumerate(scores)
    ]


def selected(group, **settings):
    counts = Counter()
    pairs = select_group(group, GroupSelection.model_validate(settings), decides="one", counts=counts)
    return pairs, dict(+counts)


def test_best_and_worst_meet_once():
    assert selected(samples(2.0, 5.0, 3.0, 1.0), rule="best_worst") == ([(1, 3)], {})


def test_the_best_meets_every_other_one_widest_gap_first():
    assert selected(samples(2.0, 5.0, 3.0), rule="best_rest") == ([(1, 0), (1, 2)], {})


def test_all_pairs_are_ordered_by_score():
    pairs, counts = selected(samples(2.0, 5.0, 3.0, 3.0), rule="all_pairs")
    assert pairs == [(1, 0), (1, 2), (1, 3), (2, 0), (3, 0)]
    assert counts == {"tie": 1}


def test_gaps_that_are_too_small_make_no_pair():
    pairs, counts = selected(samples(2.0, 5.0, 3.0), rule="all_pairs", min_gap=2.0)
    assert pairs == [(1, 0), (1, 2)]
    assert counts == {"gap_too_small": 1}


def test_ties_make_no_pair_and_are_counted():
    assert selected(samples(3.0, 3.0), rule="best_worst") == ([], {"tie": 1, "tie_for_best": 1})
    pairs, counts = selected(samples(3.0, 3.0, 1.0, 1.0), rule="best_worst")
    assert pairs == [(0, 2)]
    assert counts == {"tie_for_best": 1, "tie_for_worst": 1}


def test_missing_scores_are_counted_and_pair_with_nothing():
    pairs, counts = selected(samples(2.0, math.nan, 3.0, math.inf), rule="all_pairs")
    assert pairs == [(2, 0)]
    assert counts == {"not_scored": 2}
    assert selected(samples(2.0, math.nan)) == ([], {"not_scored": 1, "too_few_scored": 1})
    assert selected([]) == ([], {"too_few_scored": 1})


def test_one_content_is_one_sample():
    group = samples(2.0, 5.0, 5.0)
    group[2] = ScoredSample("2", {"one": 5.0}, "content 1")
    assert selected(group, rule="best_rest") == ([(1, 0)], {"same_clip": 1})


def test_at_most_so_many_pairs_of_a_prompt():
    pairs, counts = selected(samples(1.0, 2.0, 3.0, 5.0), rule="all_pairs", max_per_prompt=2)
    assert pairs == [(3, 0), (3, 1)]
    assert counts == {"over_max_per_prompt": 4}


def test_clips_of_edited_prompts_never_win_and_need_a_lower_score():
    group = samples(3.0, 2.5, 5.0, 1.0, edited=(2, 3))
    pairs, counts = selected(group, rule="perturbed_prompt")
    assert pairs == [(0, 3)]
    assert counts == {"rejected_scores_higher": 1}
    assert selected(group, rule="best_rest")[0][0] == (2, 3)


def both(*scores):
    return [ScoredSample(f"{place}", {"one": a, "two": b}) for place, (a, b) in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (((0.6, 0.8), (0.45, 0.5)), None),
        (((0.44, 0.8), (0.40, 0.5)), "winner_too_low[one]"),
        (((0.6, 0.8), (0.39, 0.5)), "loser_too_low[one]"),
        (((0.6, 0.8), (0.56, 0.5)), "gap_too_low[one]"),
        (((0.9, 0.8), (0.45, 0.5)), "gap_too_high[one]"),
        (((0.6, 0.59), (0.45, 0.5)), "winner_too_low[two]"),
        (((0.6, 0.8), (0.45, -0.1)), "loser_too_low[two]"),
        (((0.6, 0.8), (0.45, 0.75)), "gap_too_low[two]"),
        (((0.6, 0.8), (0.45, 0.05)), "gap_too_high[two]"),
    ],
)
def test_the_bounds_of_audio_alpaca_hold_for_both_scorers(scores, reason):
    pairs, counts = selected(both(*scores), **ALPACA)
    assert pairs == ([] if reason else [(0, 1)])
    assert counts == ({reason: 1} if reason else {})


def test_scorers_with_bounds_must_agree_on_the_winner():
    bounds = {"two": {"winner": (0.0, None)}}
    pairs, counts = selected(both((0.6, 0.5), (0.5, 0.6)), bounds=bounds)
    assert (pairs, counts) == ([], {"disagrees[two]": 1})


@pytest.mark.parametrize("rule", ["best_worst", "best_rest", "all_pairs", "perturbed_prompt"])
def test_the_order_of_samples_changes_nothing(rule):
    draw = random.Random(3)
    for _ in range(30):
        group = samples(*(draw.choice([1.0, 2.0, 3.0, math.nan]) for _ in range(7)), edited=(1, 3, 5))
        mixed = draw.sample(group, len(group))
        first, counts = selected(group, rule=rule)
        second, others = selected(mixed, rule=rule)
        assert counts == others
        assert {(group[a].name, group[b].name) for a, b in first} == {
            (mixed[a].name, mixed[b].name) for a, b in second
        }


def test_thresholds_without_bounds_are_refused():
    with pytest.raises(ValidationError, match="rule thresholds needs bounds"):
        GroupSelection(rule="thresholds")

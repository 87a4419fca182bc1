"""Which clips of a prompt meet, by one score or several, and what keeps calm winners out."""

import math
from collections import Counter

import pytest

from mmalign.data.pair_making.groups import ScoredSample
from mmalign.video.pair_making.selection import ClipSelection, select_clips, with_total


def chosen(columns, motion=None, verdicts=(), decides=None, **settings):
    """Pairs and counts of clips with columns of scores."""
    titles = tuple(columns)
    selection = ClipSelection(**settings)
    count = len(next(iter(columns.values())))
    samples = [
        ScoredSample(
            str(place), with_total({title: columns[title][place] for title in titles}, selection), str(place)
        )
        for place in range(count)
    ]
    counts = Counter()
    found = select_clips(
        samples,
        motion or [1.0] * count,
        selection,
        decides=decides or titles[0],
        titles=titles,
        verdicts=verdicts,
        counts=counts,
    )
    return found, +counts


def test_the_best_meets_the_worst():
    assert chosen({"vq": [2.0, 7.0, 3.0]}) == ([(1, 0)], {})


def test_under_pareto_a_winner_is_nowhere_worse():
    found, counts = chosen({"vq": [3.0, 2.0, 1.0], "mq": [5.0, 7.0, 5.0]}, rule="pareto")
    assert found == [(0, 2), (1, 2)]
    assert counts == {"worse[mq]": 1}


def test_dimensions_hold_under_other_rules_too_and_only_those_named():
    columns = {"vq": [3.0, 1.0], "mq": [2.0, 7.0], "ta": [2.0, 1.0]}
    assert chosen(columns, dimensions=["ta"])[0] == [(0, 1)]
    assert chosen(columns, dimensions=["mq"]) == ([], {"worse[mq]": 1})


def test_a_missing_score_is_worse_than_any():
    found, counts = chosen({"vq": [3.0, 1.0], "mq": [math.nan, 1.0]}, rule="pareto")
    assert (found, counts) == ([], {"worse[mq]": 1})


def test_the_total_is_a_weighted_mean_of_scores_brought_to_their_ranges():
    selection = ClipSelection(weights={"a": 3.0, "b": 1.0}, ranges={"a": (2.0, 7.0)})
    assert with_total({"a": 4.5, "b": 0.25}, selection)["total"] == pytest.approx((3 * 0.5 + 0.25) / 4)
    assert math.isnan(with_total({"a": 4.5}, selection)["total"])
    assert with_total({"a": 1.0}, ClipSelection()) == {"a": 1.0}


def test_the_total_decides():
    columns = {"a": [1.0, 0.0, 0.5], "b": [0.0, 3.0, 0.0]}
    found, _ = chosen(columns, decides="total", weights={"a": 1.0, "b": 1.0})
    assert found == [(1, 2)]


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 1), (0.75, 0), (None, 1)])
def test_winners_that_stand_still_are_left_out(ratio, kept):
    found, counts = chosen({"vq": [2.0, 1.0]}, motion=[0.3, 0.5], motion_ratio_min=ratio)
    assert len(found) == kept
    assert counts["moves_less"] == 1 - kept


def test_unknown_motion_does_not_pass_the_guard():
    assert chosen({"vq": [2.0, 1.0]}, motion=[math.nan, 0.5], motion_ratio_min=0.1)[0] == []


def test_the_limit_counts_pairs_that_passed():
    columns = {"vq": [5.0, 3.0, 2.0, 0.0]}
    found, counts = chosen(
        columns, motion=[1.0, 1.0, 1.0, 9.0], rule="best_rest", motion_ratio_min=0.5, max_per_prompt=1
    )
    assert found == [(0, 2)]
    assert counts == {"moves_less": 1, "over_max_per_prompt": 1}


def test_of_disjoint_neighbours_the_best_winner_meets_the_worst_loser():
    found, counts = chosen({"vq": [5.0, 1.0, 9.0, 10.0, 2.0, 2.0, 3.0]}, rule="disjoint")
    # Winners 0 and 3, losers 1 and 2; 4 and 5 are equal, 6 has no neighbour.
    assert found == [(3, 1)]
    assert counts == {"tied_neighbours": 1, "odd_clip_out": 1}


def test_a_judge_decides_neighbours_and_the_score_between_them():
    scores = {"vq": [5.0, 1.0, 9.0, 10.0]}
    found, _ = chosen(scores, rule="disjoint", verdicts=[0.0, 1.0])
    # Winners 1 and 2, losers 0 and 3: the best winner has 9, the worst loser 5.
    assert found == [(2, 0)]
    found, counts = chosen(scores, rule="disjoint", verdicts=[0.0, math.nan])
    # The judge likes clip 1, the score does not.
    assert (found, counts) == ([], {"no_verdict": 1, "rejected_scores_higher": 1})


def test_disjoint_pairs_keep_gap_and_bounds():
    scores = {"vq": [5.0, 1.0]}
    assert chosen(scores, rule="disjoint", min_gap=7.0) == ([], {"gap_too_small": 1})
    bounds = {"vq": {"winner": (6.0, None)}}
    assert chosen(scores, rule="disjoint", bounds=bounds) == ([], {"winner_too_low[vq]": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "thresholds"}, "needs bounds"),
        ({"weights": {"a": 0.0}}, "weights are all 0"),
        ({"ranges": {"a": (0, 1)}}, "got a, which has no weight"),
        ({"weights": {"a": 1.0}, "ranges": {"a": (1, 1)}}, "expected the lower one first"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClipSelection(**settings)

"""Pairs of rankings, their cap, and stages from easy to hard."""

import pytest
import torch

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.curriculum import curriculum_stages
from mmalign.data.pairing import cap_per_prompt, couples, follow, make_pairs, score_gap, turned
from mmalign.errors import ConfigError, RowError, UnknownNameError
from mmalign.objectives.rankings import curriculum


def ranking(*relevance, prompt="p", **more):
    candidates = tuple(Candidate(text=f"{prompt}{place}") for place in range(len(relevance)))
    return PreferenceRow(
        prompt, candidates, kind="lists", relevance=tuple(map(float, relevance)), id=prompt, **more
    )


def pair(gap, prompt="p", name="r"):
    candidates = (Candidate(text="good", reward=gap), Candidate(text="bad", reward=0.0))
    return PreferenceRow(prompt, candidates, id=name)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("all_pairs", [(1, 0), (0, 2), (0, 3), (1, 2), (1, 3), (3, 2)]),
        ("best_worst", [(1, 2)]),
        ("adjacent", [(1, 0), (0, 3), (3, 2)]),
        ("best_vs_rest", [(1, 0), (1, 3), (1, 2)]),
    ],
)
def test_each_rule_lets_its_candidates_meet_better_one_first(how, expected):
    assert couples([3.0, 5.0, 1.0, 2.0], how) == expected


@pytest.mark.parametrize("how", ["all_pairs", "best_worst", "adjacent", "best_vs_rest"])
def test_equal_candidates_keep_their_order_and_make_no_pair_of_rows(how):
    assert set(couples([2.0, 2.0], how)) == {(0, 1)}
    assert make_pairs(ranking(2, 2, 2), how=how) == []


def test_an_unknown_rule_is_refused_with_those_there_are(untyped):
    with (
        untyped,
        pytest.raises(UnknownNameError, match=r"rule for pairs 'best_wrost'. Did you mean best_worst"),
    ):
        couples([1.0, 2.0], "best_wrost")


def test_a_pair_carries_scores_id_and_what_belongs_to_its_candidates():
    row = ranking(3, 5, 1, weight=2.0, extras={"verbosity": [7, 8, 9], "user": "u", "tags": ["x", "y"]})
    (found,) = make_pairs(row, how="best_worst")
    assert [candidate.text for candidate in found.candidates] == ["p1", "p2"]
    assert [candidate.reward for candidate in found.candidates] == [5.0, 1.0]
    assert (found.kind, found.preference, found.relevance) == ("pairs", 1.0, None)
    assert (found.id, found.weight) == ("p/1-2", 2.0)
    assert found.extras == {"verbosity": [8, 9], "user": "u", "tags": ["x", "y"]}


def test_a_reward_of_its_own_is_kept():
    row = PreferenceRow(
        "p", (Candidate(text="a", reward=0.25), Candidate(text="b")), kind="lists", relevance=(2.0, 1.0)
    )
    assert [candidate.reward for candidate in make_pairs(row, how="all_pairs")[0].candidates] == [0.25, 1.0]


def test_small_gaps_are_left_out_and_the_gap_itself_is_not():
    found = make_pairs(ranking(5, 3, 2), how="all_pairs", min_gap=2.0)
    assert [row.id for row in found] == ["p/0-1", "p/0-2"]
    for bad in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"min_gap: got .*, expected a number >= 0"):
            make_pairs(ranking(5, 3), how="all_pairs", min_gap=bad)


def test_pairs_are_no_rankings():
    with pytest.raises(RowError, match=r"r kind: got 'pairs', expected lists. Only rankings"):
        make_pairs(pair(1.0), how="all_pairs")


def test_columns_of_two_turn_with_their_candidates():
    extras = {
        "features_chosen": 1,
        "features_rejected": 2,
        "v_a": 3,
        "v_b": 4,
        "l": [5, 6],
        "x_a": 7,
        "t": [1],
    }
    assert turned(extras) == {
        "features_chosen": 2,
        "features_rejected": 1,
        "v_a": 4,
        "v_b": 3,
        "l": [6, 5],
        "x_a": 7,
        "t": [1],
    }
    assert follow({"l": [5, 6, 7], "t": [1, 2]}, (2, 0), 3) == {"l": [7, 5], "t": [1, 2]}


# --- cap


def test_the_cap_keeps_the_widest_gaps_in_their_given_order():
    rows = [pair(1.0, name="a"), pair(3.0, name="b"), pair(2.0, name="c"), pair(1.0, "other", name="d")]
    assert [row.id for row in cap_per_prompt(rows, 2)] == ["b", "c", "d"]


def test_a_random_cap_depends_on_seed_and_pair_and_on_nothing_else(untyped):
    rows = [PreferenceRow("p", (Candidate(), Candidate()), id=f"{n}") for n in range(11)]
    first = cap_per_prompt(rows, 5, keep="random", seed=1)
    assert len(first) == 5
    assert {row.id for row in cap_per_prompt(rows[::-1], 5, keep="random", seed=1)} == {
        row.id for row in first
    }
    assert cap_per_prompt(rows, 5, keep="random", seed=2) != first
    with pytest.raises(ConfigError, match=r"max_per_prompt: got 0, expected at least 1"):
        cap_per_prompt(rows, 0)
    with untyped, pytest.raises(UnknownNameError, match=r"choice of pairs 'first'"):
        cap_per_prompt(rows, 1, keep="first")


def test_a_gap_needs_two_scores():
    row = PreferenceRow("p", (Candidate(reward=1.0), Candidate()), source="rows.jsonl:7")
    with pytest.raises(RowError, match=r"rows.jsonl:7 scores: got .*expected a score for each of two"):
        score_gap(row)


# --- curriculum


def test_the_first_stage_holds_the_widest_gap_of_every_prompt():
    rows = [pair(gap, prompt, f"{prompt}{gap}") for prompt in "xyz" for gap in (1.0, 7.0, 3.0)]
    stages = curriculum_stages(rows, num_stages=3, scope="prompt")
    assert [[row.id for row in stage] for stage in stages] == [
        ["x7.0", "y7.0", "z7.0"],
        ["x3.0", "y3.0", "z3.0"],
        ["x1.0", "y1.0", "z1.0"],
    ]


def test_stages_of_rows_are_those_of_the_scores_of_a_batch():
    relevance = torch.tensor([[2.0, 5.0, 4.0, 3.0], [1.0, 7.0, 2.0, 9.0]])
    rows = [
        made
        for number, values in enumerate(relevance.tolist())
        for made in make_pairs(ranking(*values, prompt=f"q{number}"), how="best_vs_rest")
    ]
    expected = curriculum(relevance)
    for number, stage in enumerate(curriculum_stages(rows, num_stages=3, scope="prompt")):
        assert [row.id for row in stage] == [
            f"q{prompt}/{expected.chosen[prompt, number]}-{expected.rejected[prompt, number]}"
            for prompt in range(2)
        ]


def test_every_pair_is_in_one_stage_and_spare_ones_go_to_the_easy_stages():
    rows = [pair(float(gap), name=str(gap)) for gap in range(7)]
    stages = curriculum_stages(rows, num_stages=3, scope="prompt")
    assert [len(stage) for stage in stages] == [3, 2, 2]
    assert sorted(row.id for stage in stages for row in stage) == [str(gap) for gap in range(7)]
    assert min(score_gap(row) for row in stages[0]) > max(score_gap(row) for row in stages[1])


def test_single_pairs_are_ordered_over_the_whole_data_set():
    rows = [pair(gap, f"p{gap}") for gap in (2.0, 5.0, 3.0, 4.0)]
    with pytest.raises(
        ConfigError, match=r"got 4 pairs, at most 1 of one prompt, expected enough for 2 stages"
    ):
        curriculum_stages(rows, num_stages=2, scope="prompt")
    easy, hard = curriculum_stages(rows, num_stages=2, scope="dataset")
    assert [score_gap(row) for row in easy + hard] == [5.0, 4.0, 3.0, 2.0]


def test_another_measure_of_difficulty_can_order_the_stages():
    rows = [pair(1.0, name=name) for name in ("bb", "a", "ccc")]
    stages = curriculum_stages(rows, num_stages=3, scope="prompt", gap=lambda row: float(len(row.id)))
    assert [stage[0].id for stage in stages] == ["ccc", "bb", "a"]


def test_a_curriculum_refuses_what_it_cannot_order(untyped):
    with pytest.raises(ConfigError, match=r"curriculum stages: got 0, expected at least 1"):
        curriculum_stages([pair(1.0)], num_stages=0, scope="prompt")
    with untyped, pytest.raises(UnknownNameError, match=r"scope of a curriculum 'all'"):
        curriculum_stages([pair(1.0)], num_stages=1, scope="all")
    with pytest.raises(ConfigError, match=r"gap of r: got nan, expected a number"):
        curriculum_stages([pair(float("nan"))], num_stages=1, scope="prompt")

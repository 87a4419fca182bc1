"""Prompts with a goal, a direction or a user's examples: meaning, determinism, no leaks, messages."""

import math

import numpy as np
import pytest

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.conditioning import directional, few_shot, reward_augmented, sample_directions
from mmalign.errors import ConfigError, RowError, UnknownNameError


def pair(chosen=8.0, rejected=3.5, prompt="draw {goal}", **more):
    candidates = (Candidate(text="good", reward=chosen), Candidate(text="bad", reward=rejected))
    return PreferenceRow(prompt, candidates, **({"id": "r"} | more))


def listed(**extras):
    count = len(next(iter(extras.values())))
    candidates = tuple(Candidate(text=f"answer {place}") for place in range(count))
    return PreferenceRow(
        "ask", candidates, kind="lists", relevance=tuple(map(float, range(count))), id="r", extras=extras
    )


def choice(number, user="u", prompt=None, **more):
    candidates = (Candidate(text=f"yes {number}"), Candidate(text=f"no {number}"))
    extras = {} if user is None else {"user": user}
    return PreferenceRow(prompt or f"question {number}", candidates, id=f"r{number}", extras=extras, **more)


# --- rewards


def test_each_pair_becomes_two_and_each_response_is_right_for_its_own_goal():
    row = pair(weight=2.0, preference=0.9, extras={"features": ["g", "b"]})
    high, low = reward_augmented([row], template="[{goal}] {prompt}").rows
    assert (high.prompt, low.prompt) == ("[8] draw {goal}", "[3.5] draw {goal}")
    assert [candidate.text for candidate in high.candidates] == ["good", "bad"]
    assert [candidate.text for candidate in low.candidates] == ["bad", "good"]
    assert low.extras == {"features": ["b", "g"]}
    assert (high.id, low.id) == ("r/high", "r/low")
    assert (low.weight, low.preference) == (2.0, 0.9)


def test_goals_that_would_contradict_each_other_are_left_out_by_reason():
    rows = [pair(preference=0.5), pair(3.0, 4.0), pair(2.0, 2.0), pair(2.001, 2.0), pair(2.01, 2.0)]
    found = reward_augmented(rows)
    assert found.dropped == {"tie": 1, "score_contradicts_label": 1, "equal_scores": 2}
    assert len(found.rows) == 2


def test_a_negative_zero_is_written_as_zero():
    assert reward_augmented([pair(1.0, -0.001)], template="{goal}|{prompt}").rows[1].prompt == "0|draw {goal}"


def test_goals_need_pairs_scores_and_a_template_with_both_places():
    with pytest.raises(RowError, match=r"r kind: got 'lists', expected pairs for reward-augmented"):
        reward_augmented([listed(a=[1.0, 2.0])])
    with pytest.raises(RowError, match=r"expected a score for each of two candidates"):
        reward_augmented([PreferenceRow("p", (Candidate(), Candidate()))])
    with pytest.raises(ConfigError, match=r"template: got 'score \{goal\}', .* Add \{prompt\}."):
        reward_augmented([pair()], template="score {goal}")


# --- directions


def test_directions_are_unit_vectors_inside_the_cone_and_fill_it():
    for dimensions in (2, 3, 5):
        found = sample_directions(2003, dimensions, max_angle=45.0, seed=0)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)
        angles = np.degrees(np.arccos(found[:, 0]))
        assert angles.max() <= 45.0 + 1e-9
        assert angles.max() > 44.0
        np.testing.assert_allclose(found[:, 1:].mean(axis=0), 0.0, atol=0.05)


def test_directions_in_the_plane_have_even_angles_and_over_the_sphere_even_heights():
    plane = sample_directions(5003, 2, max_angle=45.0, seed=1)
    angles = np.degrees(np.arctan2(plane[:, 1], plane[:, 0]))
    counts, _ = np.histogram(angles, bins=5, range=(-45, 45))
    assert counts.min() > 900
    sphere = sample_directions(5003, 3, max_angle=180.0, seed=1)
    counts, _ = np.histogram(sphere[:, 0], bins=5, range=(-1, 1))
    assert counts.min() > 900


def test_a_key_and_a_seed_decide_the_directions():
    first = sample_directions(3, 2, max_angle=45.0, seed=0, key="a")
    np.testing.assert_array_equal(first, sample_directions(3, 2, max_angle=45.0, seed=0, key="a"))
    assert not np.allclose(first, sample_directions(3, 2, max_angle=45.0, seed=0, key="b"))
    assert not np.allclose(first, sample_directions(3, 2, max_angle=45.0, seed=1, key="a"))


def test_the_best_along_the_direction_is_kept_and_named_in_the_prompt():
    row = listed(helpfulness=[1.0, 0.0, 0.9], verbosity=[1.0, 0.5, 0.0])
    options = {"objectives": ("helpfulness", "verbosity"), "scale": "none", "template": "{goal}: {prompt}"}
    found = directional([row], keep="best", directions=[(2.0, 0.0), (3.0, -4.0)], per_row=2, **options)
    assert [row.prompt for row in found.rows] == [
        "helpfulness 1, verbosity 0: ask",
        "helpfulness 0.6, verbosity -0.8: ask",
    ]
    assert [row.candidates[0].text for row in found.rows] == ["answer 0", "answer 2"]
    assert [row.candidates[0].reward for row in found.rows] == pytest.approx([1.0, 0.54])
    assert {(row.kind, row.desirable, row.relevance) for row in found.rows} == {("unpaired", True, None)}
    assert found.rows[1].extras == {"helpfulness": [0.9], "verbosity": [0.0]}
    (pairs,) = directional([row], keep="pairs", directions=[(3.0, -4.0)], **options).rows
    assert [candidate.text for candidate in pairs.candidates] == ["answer 2", "answer 1"]
    assert pairs.extras["helpfulness"] == [0.9, 0.0]


def test_standardising_lets_small_numbers_count_as_much_as_large_ones():
    row = listed(quality=[0.0, 1.0], length=[1000.0, 0.0])
    options = {"objectives": ("quality", "length"), "keep": "best", "directions": [(2.0, 1.0)]}
    plain = directional([row], scale="none", **options).rows[0]
    fair = directional([row], scale="standard", **options).rows[0]
    assert (plain.candidates[0].text, fair.candidates[0].text) == ("answer 0", "answer 1")


def test_rows_take_given_directions_in_turn_and_ties_are_dropped():
    rows = [listed(a=[0.0, 1.0], b=[1.0, 1.0]) for _ in range(3)]
    found = directional(
        rows, objectives=("a", "b"), keep="best", scale="none", directions=[(1.0, 0.0), (0.0, 1.0)]
    )
    assert len(found.rows) == 2
    assert found.dropped == {"tie": 1}


def test_the_ranking_itself_can_be_an_objective():
    row = listed(other=[5.0, 0.0, 0.0])
    found = directional([row], objectives=("relevance", "other"), keep="best", directions=[(1.0, 0.0)])
    assert found.rows[0].candidates[0].text == "answer 2"


def test_drawn_directions_are_the_same_in_any_order_of_the_rows():
    rows = [
        PreferenceRow(
            "p",
            (Candidate(text="a"), Candidate(text="b")),
            kind="lists",
            relevance=(1.0, 0.0),
            id=f"{number}",
            extras={"x": [0.1, 0.2], "y": [0.2, 0.1]},
        )
        for number in range(7)
    ]
    options = {"objectives": ("x", "y"), "keep": "best"}
    forward = {row.id: row.prompt for row in directional(rows, **options).rows}
    backward = {row.id: row.prompt for row in directional(rows[::-1], **options).rows}
    assert forward == backward
    assert len(set(forward.values())) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": ("a",)}, r"objectives: got 1, expected two or more; one has no direction"),
        ({"objectives": ("a", "c")}, r"r c: got None, expected a list of 2 numbers.*Extra columns.*: a, b"),
        ({"directions": [(1.0,)]}, r"direction: got \[1.0\], expected 2 numbers, not all 0"),
        ({"directions": [(0.0, 0.0)]}, r"direction: got \[0.0, 0.0\]"),
        ({"directions": []}, r"directions: got \[\], expected one vector or more"),
        ({"max_angle": 0.0}, r"max_angle: got 0.0, expected degrees in \(0, 180\]"),
        ({"max_angle": math.nan}, r"max_angle: got nan"),
        ({"per_row": 0}, r"directions per row: got 0, expected at least 1"),
        ({"template": "{prompt}"}, r"Add \{goal\}."),
    ],
)
def test_unusable_directions_are_refused(change, message):
    options = {"objectives": ("a", "b"), "keep": "best"} | change
    with pytest.raises((ConfigError, RowError), match=message):
        directional([listed(a=[1.0, 2.0], b=[2.0, 1.0])], **options)


def test_directions_need_lists_and_known_words(untyped):
    with pytest.raises(RowError, match=r"got 'pairs', expected lists for directional conditioning"):
        directional([pair()], objectives=("a", "b"), keep="best")
    row = listed(a=[1.0, 2.0], b=[2.0, 1.0])
    with untyped:
        with pytest.raises(UnknownNameError, match=r"kept candidates 'worst'"):
            directional([row], objectives=("a", "b"), keep="worst")
        with pytest.raises(UnknownNameError, match=r"scale of objectives 'unit'"):
            directional([row], objectives=("a", "b"), keep="best", scale="unit")


# --- users


def test_examples_come_from_the_same_user_and_never_from_the_row_itself():
    rows = [choice(number, user="uv"[number % 2]) for number in range(14)]
    found = few_shot(rows, user_column="user", num_shots=3)
    assert [row.id for row in found.rows] == [row.id for row in rows]
    for number, row in enumerate(found.rows):
        shown = {place for place in range(14) if f"question {place}\n" in row.prompt}
        assert len(shown) == 3
        assert number not in shown
        assert all(place % 2 == number % 2 for place in shown)
        assert row.prompt.endswith(f"question {number}")
        assert row.candidates == rows[number].candidates


def test_nothing_of_a_row_leaks_into_its_examples_whatever_ids_say():
    row = choice(1)
    same_prompt = choice(2, prompt=" question 1 ")
    same_answer = PreferenceRow(
        "else", (Candidate(text="other"), Candidate(text="yes 1")), id="x", extras={"user": "u"}
    )
    found = few_shot([row], user_column="user", num_shots=1, pool=[row, same_prompt, same_answer])
    assert found.rows == []
    assert found.dropped == {"too_few_examples": 1}


def test_one_prompt_gives_one_example():
    pool = [choice(number, prompt="the same") for number in range(1, 6)]
    found = few_shot([choice(0)], user_column="user", num_shots=2, pool=pool)
    assert found.dropped == {"too_few_examples": 1}
    assert (
        few_shot([choice(0)], user_column="user", num_shots=1, pool=pool).rows[0].prompt.count("Preferred")
        == 1
    )


def test_evaluation_rows_take_examples_from_the_pool_alone():
    training = [choice(number) for number in range(10, 15)]
    held_out = [choice(number) for number in range(5)]
    for row in few_shot(held_out, user_column="user", num_shots=5, pool=training).rows:
        assert all(f"question {number}\n" not in row.prompt for number in range(5))
    shown = few_shot(held_out, user_column="user", num_shots=2, pool=training).rows
    assert len({row.prompt.partition("Answer the way")[0] for row in shown}) > 1  # rows draw for themselves


def test_examples_depend_on_seed_and_row_and_not_on_other_rows():
    rows = [choice(number) for number in range(11)]
    first = few_shot(rows, user_column="user", num_shots=2).rows
    assert few_shot(rows, user_column="user", num_shots=2).rows == first
    assert few_shot(rows[3:5], user_column="user", num_shots=2, pool=rows).rows == first[3:5]
    assert few_shot(rows, user_column="user", num_shots=2, seed=1).rows != first


def test_ties_are_no_examples_and_rows_without_a_user_are_dropped():
    rows = [choice(0), choice(1, preference=0.5), choice(2, user=None), choice(3, user="")]
    found = few_shot(rows, user_column="user", num_shots=1)
    assert found.dropped == {"no_user": 2, "too_few_examples": 1}
    assert [row.id for row in found.rows] == ["r1"]  # a tie may still be a row


def test_only_chosen_responses_are_shown_on_request():
    rows = [choice(number) for number in range(3)]
    assert "no 1" in few_shot(rows, user_column="user", num_shots=2).rows[0].prompt
    assert "no 1" not in few_shot(rows, user_column="user", num_shots=2, show="chosen").rows[0].prompt


def test_braces_inside_what_is_filled_in_are_left_alone():
    rows = [choice(0, prompt="{examples} {prompt}"), choice(1, prompt="{prompt}")]
    found = few_shot(rows, user_column="user", num_shots=1, template="{examples}|{prompt}")
    assert found.rows[0].prompt.endswith("|{examples} {prompt}")
    assert "Question: {prompt}\n" in found.rows[0].prompt


def test_few_shot_refuses_images_no_shots_and_templates_without_examples(untyped):
    image = PreferenceRow("p", (Candidate(image=b"1"), Candidate(image=b"2")), id="r", extras={"user": "u"})
    with pytest.raises(RowError, match=r"r candidates: got 'media', expected texts"):
        few_shot([image], user_column="user", num_shots=1)
    with pytest.raises(ConfigError, match=r"shots: got 0, expected at least 1"):
        few_shot([choice(0)], user_column="user", num_shots=0)
    with pytest.raises(ConfigError, match=r"Add \{examples\}."):
        few_shot([choice(0)], user_column="user", num_shots=1, template="{prompt}")
    with untyped, pytest.raises(UnknownNameError, match=r"shown responses 'rejected'"):
        few_shot([choice(0)], user_column="user", num_shots=1, show="rejected")

"""Rows to imitate: the best of several answers, or all of them under the marks they got."""

import pytest

from mmalign.batch import ContentItem, Message, PreferenceRow
from mmalign.errors import ConfigError, HyperparameterError
from mmalign.vlm.pair_making.baselines import asking_for, best_answers, conditioned_answers, marks_of
from mmalign.vlm.pair_making.on_policy import OwnAnswers
from mmalign.vlm.pair_making.plan import DialoguePairPlan
from mmalign.vlm.pair_making.scored_sections import ConditionedConfig

NAN = float("nan")


def row(name: str = "a") -> PreferenceRow:
    return PreferenceRow(prompt="What is it?", candidates=(), kind="prompts", id=name)


def test_the_best_answer_that_has_words_and_a_score_is_taken() -> None:
    answers = [
        OwnAnswers(row("a"), ("one", " two ", "", "three"), (1.0, 3.0, 5.0, 3.0)),
        OwnAnswers(row("b"), ("one", "two"), (NAN, NAN)),
        OwnAnswers(row("c"), ("one",)),
    ]
    (made,), counts = best_answers(answers)
    assert (made.row.id, made.answer, made.name) == ("a", "two", "1")
    assert made.columns == {"score": 3.0, "num_answers": 4}
    assert counts == {"not_scored": 2, "rows": 1}


@pytest.mark.parametrize(
    ("values", "levels", "bounds", "expected"),
    [
        ([3.0, 1.0, 2.0, 4.0, 5.0, 6.0], 3, None, [1, 0, 0, 1, 2, 2]),
        ([0.0, 1.0, 0.0, 1.0, 1.0], 5, None, [0, 4, 0, 4, 4]),
        ([2.0, 2.0], 5, None, [4, 4]),
        ([NAN, 7.0, 5.0], 2, None, [None, 1, 0]),
        ([NAN], 2, None, [None]),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 9.0], 5, (1.0, 5.0), [0, 1, 2, 3, 4, 0, 4]),
        ([0.1, 0.5, 0.74, 0.76], 3, (0.0, 1.0), [0, 1, 1, 2]),
    ],
)
def test_marks_follow_the_order_of_scores(values, levels, bounds, expected) -> None:
    assert marks_of(values, levels=levels, bounds=bounds) == expected


def test_marks_need_two_levels_and_bounds_that_rise() -> None:
    with pytest.raises(HyperparameterError, match="levels: got 1, expected at least 2"):
        marks_of([1.0], levels=1)
    with pytest.raises(HyperparameterError, match="expected low < high"):
        marks_of([1.0], levels=2, bounds=(1.0, 1.0))


def test_marks_stand_in_the_last_words_of_the_user() -> None:
    turns = (
        Message("user", (ContentItem("text", "Hello."),)),
        Message("assistant", (ContentItem("text", "Hi."),)),
        Message("user", (ContentItem("image"), ContentItem("text", "What is it?"))),
    )
    shown = PreferenceRow(prompt="x", candidates=(), kind="prompts", images=(b"i",), messages=turns)
    behind = asking_for(shown, {"quality": 4, "length": 0}, ConditionedConfig())
    assert behind.messages[:2] == turns[:2]
    words = "What is it?\n\nquality: 4, length: 0"
    assert behind.messages[2].content == (ContentItem("image"), ContentItem("text", words))
    assert behind.prompt == words
    before = asking_for(
        shown, {"quality": 4}, ConditionedConfig(position="before", wording="<{name}={mark}>")
    )
    assert before.prompt == "<quality=4>\n\nWhat is it?"
    with pytest.raises(ConfigError, match="no turn of the user"):
        asking_for(PreferenceRow("x", (), kind="prompts", messages=turns[1:2]), {}, ConditionedConfig())


def test_every_answer_with_all_its_scores_becomes_a_row_under_its_marks() -> None:
    answers = [OwnAnswers(row("a"), ("bad", "good", "")), OwnAnswers(row("b"), ("fair", "lost"))]
    scores = {"taste": [[0.0, 1.0, 0.5], [0.4, NAN]], "size": [[7.0, 5.0, 6.0], [6.0, 5.0]]}
    config = ConditionedConfig(levels=3, bounds={"taste": (0.0, 1.0)})
    made, counts, asked = conditioned_answers(answers, scores, config)
    assert [(one.row.id, one.answer, one.row.prompt.split("\n\n")[1]) for one in made] == [
        ("a", "bad", "taste: 0, size: 2"),
        ("a", "good", "taste: 2, size: 0"),
        ("b", "fair", "taste: 1, size: 1"),
    ]
    assert made[1].columns == {"mark_taste": 2, "mark_size": 0, "score_taste": 1.0, "score_size": 5.0}
    assert counts == {"empty_answer": 1, "not_scored": 1, "rows": 3}
    assert asked == {"position": "behind", "words": "taste: 2, size: 2"}
    with pytest.raises(ConfigError, match="got 'colour', expected one of taste, size"):
        conditioned_answers(answers, scores, ConditionedConfig(bounds={"colour": (0.0, 1.0)}))


def test_plans_ask_for_rows_that_their_recipe_can_give() -> None:
    base = {
        "model": {"family": "llava", "source": "x"},
        "data": {"source": "rows.jsonl"},
    }
    plan = DialoguePairPlan.model_validate({"recipe": "score", "rows": "best", **base})
    assert plan.rows == "best"
    for given, message in (
        ({"recipe": "captions", "rows": "best"}, "which captions does not give"),
        ({"recipe": "self_judged", "rows": "best"}, "which self_judged does not give"),
        ({"recipe": "score", "conditioned": {"levels": 3}}, "settings of conditioned rows"),
        ({"recipe": "prompt_writer"}, "needs the section prompt_writer"),
    ):
        with pytest.raises(ValueError, match=message):
            DialoguePairPlan.model_validate({**given, **base})

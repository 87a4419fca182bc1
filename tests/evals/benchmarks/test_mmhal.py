"""MMHal-Bench: ratings, types, judges, files."""

import json
import math

import pytest

from mmalign.errors import ConfigError, RowError
from mmalign.evals.base import Answer
from mmalign.evals.benchmarks import mmhal

FIELDS = {
    "image_content": ["Dog", "Ball"],
    "question": "What {here}?",
    "gt_answer": "A dog.",
    "model_answer": "A cat.",
}


@pytest.mark.parametrize(
    ("text", "exact", "strict"),
    [
        ("Rating: 4", 4, 4),
        ("**Rating:** 4", None, 4),
        ("Rating: 60", 6, None),
        ("Rating: 3.5", 3, None),
        ("rating: 2, later rating: 4", None, 4),
        ("Rating: 4. So: Rating: 4", 4, 4),
        ("The rating is 5", None, 5),
        ("Rating: 7", None, None),
        ("4", None, None),
        ("<think>rating: 1</think> Rating: 5", None, 5),
        ("<think>rating: 1</think> I cannot rate it.", 1, None),
    ],
)
def test_ratings_are_read_as_released_and_carefully(text, exact, strict):
    assert mmhal.parse_rating(text) == exact
    assert mmhal.parse_rating(text, "strict") == strict


def judged(*ratings):
    return [{"judgement": f"Rating: {rating}"} for rating in ratings]


def test_numbers_follow_the_ratings():
    result = mmhal.score_answers(judged(6, 3, 2), expected=None)
    assert result.score == pytest.approx(11 / 3)
    assert result.hallucination_rate == pytest.approx(1 / 3)
    assert result.informativeness == pytest.approx((3 + 0 + 2) / 9 * 100)
    assert result.by_type == {"type 0": 6.0, "type 1": 3.0, "type 2": 2.0}


def test_an_unreadable_judgement_counts_zero_and_is_counted():
    result = mmhal.score_answers([*judged(6), {"judgement": "?"}], expected=None)
    assert (result.score, result.hallucination_rate, result.unparsed, result.failed) == (3.0, 0.5, 1, 0)
    assert result.items[1].rating == 0.0


def test_a_missing_answer_is_counted_and_asks_no_judge():
    rows = [*judged(6), {**FIELDS, "model_answer": None, "error": "killed"}]
    result = mmhal.score_answers(rows, expected=None, judge=lambda prompt: "Rating: 0")
    assert (result.score, result.failed, result.unparsed) == (6.0, 1, 0)
    assert result.items[1].error == "killed"
    assert math.isnan(result.items[1].rating)


def test_all_questions_must_be_there_unless_a_part_is_wanted():
    with pytest.raises(ConfigError, match=r"got \[3 answers\], expected 96\..*expected=None"):
        mmhal.score_answers(judged(1, 2, 3))


def test_types_out_of_order_are_refused():
    rows = [{**row, "question_type": "abcdefgh"[n % 8]} for n, row in enumerate(judged(*[1] * 16))]
    assert list(mmhal.score_answers(rows, expected=16).by_type) == list("abcdefgh")
    rows[8], rows[9] = rows[9], rows[8]
    with pytest.raises(RowError, match=r"answers\[8\] question_type: got 'b', expected 'a' at this place"):
        mmhal.score_answers(rows, expected=16)


def test_the_judge_reads_contents_question_reference_and_answer():
    prompt = mmhal.judge_prompt(FIELDS)
    for part in ("Dog, Ball", "What {here}?", "A dog.", "A cat."):
        assert part in prompt
    assert mmhal.judge_prompt(FIELDS, "{}|{}|{}|{}") == "Dog, Ball|What {here}?|A dog.|A cat."


def test_templates_and_records_without_the_fields_are_refused():
    with pytest.raises(ConfigError, match=r"expected text with \{contents\}"):
        mmhal.judge_prompt(FIELDS, "Rate {answer}.")
    with pytest.raises(RowError, match="record gt_answer"):
        mmhal.judge_prompt({name: value for name, value in FIELDS.items() if name != "gt_answer"})
    with pytest.raises(ConfigError, match=r"answers\[0\] judgement: .*Pass judge="):
        mmhal.score_answers([FIELDS], expected=None)


def test_answers_and_judgements_of_the_official_layout_are_joined(tmp_path):
    answers, judgements = tmp_path / "answers.json", tmp_path / "judgements.json"
    answers.write_text(json.dumps([FIELDS, FIELDS]))
    judgements.write_text(json.dumps([{"choices": [{"message": {"content": "Rating: 5"}}]}, "Rating: 1"]))
    result = mmhal.score_answers(mmhal.read_answers(answers, judgements), expected=2)
    assert [item.rating for item in result.items] == [5.0, 1.0]
    assert result.mean_length == 2.0
    judgements.write_text('["Rating: 5", {"choices": []}]')
    with pytest.raises(RowError, match=r"judgements.json\[1\]: .*chat completion"):
        mmhal.read_answers(answers, judgements)
    judgements.write_text('["Rating: 5"]')
    with pytest.raises(RowError, match=r"got \[1 judgements\], expected a list of 2"):
        mmhal.read_answers(answers, judgements)


def test_the_harness_asks_its_judge(tmp_path):
    row = {**FIELDS, "image_src": "https://example.org/a/dog.jpg", "question_type": "attribute"}
    (tmp_path / "response_template.json").write_text(json.dumps([row, {**row, "question_type": "other"}]))
    items = mmhal.BENCHMARK.items(tmp_path)
    assert items[0].media == (tmp_path / "images" / "dog.jpg",)
    answers = [Answer(items[1], text="A ball."), Answer(items[0], error="killed")]
    outcome = mmhal.BENCHMARK.score(answers, judge=lambda prompt: "Rating: 2", judge_name="tiny")
    found = {metric.name: metric for metric in outcome.metrics}
    assert (found["score"].value, found["hallucination_rate"].value) == (2.0, 1.0)
    assert found["score"].per_item["1"] == 2.0
    assert outcome.counts == {"answers": 2, "failed": 1, "unparsed": 0}
    assert "mean_length" in found["hallucination_rate"].beside

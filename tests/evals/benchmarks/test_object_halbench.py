"""Object HalBench: judge's lists, object names, both sources of objects, files."""

import base64
import json
import math

import pytest

from mmalign.errors import ConfigError, RowError
from mmalign.evals.base import Answer
from mmalign.evals.benchmarks import object_halbench
from mmalign.evals.benchmarks._objects import ObjectVocabulary

LINES = ["person, man", "dining table, table", "dog, puppy", "traffic light", "toilet", "chair, seat"]
TRUTH = {"1": frozenset({"person", "dog"}), "2": frozenset({"dining table"})}
LONG = "There is a lot to see here."


@pytest.fixture
def vocabulary():
    return ObjectVocabulary.from_lines(LINES, "refined")


@pytest.mark.parametrize(
    ("text", "exact", "strict"),
    [
        ('```json\n["dog", "man"]\n```', None, ["dog", "man"]),
        ('["dog", "man"]\n', ["dog", "man"], ["dog", "man"]),
        ('Objects:\n["dog"]', ["dog"], ["dog"]),
        ('["dog"] are all objects.', None, ["dog"]),
        ("[]", [], []),
        ("()", None, []),
        ("```json\n[]\n```", None, []),
        ('{"objects": ["dog"]}', None, ["dog"]),
        ("I see [1, 2] and a dog.", None, None),
        ("no list", None, None),
        ('<think>["cat"]</think>["dog"]', None, ["dog"]),
    ],
)
def test_lists_are_read_as_released_and_carefully(text, exact, strict):
    assert object_halbench.parse_objects(text) == exact
    assert object_halbench.parse_objects(text, "strict") == strict


@pytest.mark.parametrize(
    ("name", "exact", "strict"),
    [
        ("Dogs", ["dog"], ["dog"]),
        ("old traffic lights", ["traffic light"], ["traffic light"]),
        ("kitchen table", ["kitchen table"], ["table"]),
        ("wooden dining table", ["dining table"], ["dining table"]),
        ("cloud", ["cloud"], []),
        ("", [], []),
    ],
)
def test_object_names_become_words_of_the_vocabulary(vocabulary, name, exact, strict):
    assert object_halbench.object_words(name, vocabulary) == exact
    assert object_halbench.object_words(name, vocabulary, "strict") == strict


def test_each_object_counts_once_an_answer_and_short_answers_name_nothing(vocabulary):
    rows = [
        {"image_id": 1, "caption": LONG, "extract_objs": ["dog", "dogs", "table", "cloud"]},
        {"image_id": 2, "caption": "A big dog.", "question": "What?"},
    ]
    result = object_halbench.score_answers(rows, TRUTH, vocabulary)
    assert result.protocol == "objhal(llm:stored, exact)"
    assert [mention.word for mention in result.items[0].mentions] == ["dog", "table"]
    assert (result.chair_i, result.response_rate, result.chair_s) == (0.5, 1.0, 0.5)
    assert result.recall == pytest.approx(1 / 3)


def test_a_judge_is_asked_with_question_and_answer_until_it_lists(vocabulary):
    asked, texts = [], iter(["hm", 'here:\n["man"]'])

    def judge(prompt):
        asked.append(prompt)
        return next(texts)

    rows = [{"image_id": 1, "caption": "A {man} and {question}.", "question": "Who is {answer}?"}]
    result = object_halbench.score_answers(rows, TRUTH, vocabulary, judge=judge, judge_name="tiny@1")
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert "Question: Who is {answer}?" in asked[0]
    assert "Answer: A {man} and {question}." in asked[0]
    assert (result.protocol, result.recall) == ("objhal(llm:tiny@1, exact)", 0.5)


def test_an_answer_whose_objects_cannot_be_read_is_counted_not_won(vocabulary):
    rows = [
        {"image_id": 1, "caption": LONG, "question": "What?"},
        {"image_id": 2, "caption": LONG, "extraction": 'So:\n["dog"]'},
        {"image_id": 2, "id": "none", "caption": None},
    ]
    result = object_halbench.score_answers(rows, TRUTH, vocabulary, judge=lambda prompt: "?", attempts=2)
    assert (result.failed, result.response_rate) == (2, 1.0)
    assert result.items[0].error == "the judge's text held no list of objects, 2 times"
    assert result.items[2].error == "no answer"
    assert math.isnan(result.items[0].hallucinated_share)


def test_without_a_judge_and_anything_stored_the_way_out_is_named(vocabulary):
    with pytest.raises(ConfigError, match=r"answers\[0\] extraction: .*score_captions"):
        object_halbench.score_answers([{"image_id": 1, "caption": LONG}], TRUTH, vocabulary)


def test_a_template_without_its_places_is_refused():
    with pytest.raises(ConfigError, match=r"expected text with \{question\} \{answer\}"):
        object_halbench.extraction_prompt("q", "a", "List the objects of {answer}.")


def test_a_tagger_of_the_users_own_replaces_the_rules(vocabulary):
    rows = [{"image_id": 2, "caption": LONG, "extract_objs": ["kitchen table"]}]
    result = object_halbench.score_answers(rows, TRUTH, vocabulary, normalise=lambda name: name.split())
    assert result.recall == 1.0


def test_the_caption_mode_counts_repeats_and_needs_no_judge(vocabulary):
    rows = [{"image_id": 1, "text": "A dog, a table and tables"}, {"image_id": 2, "text": "Sky"}]
    result = object_halbench.score_captions(rows, TRUTH, vocabulary)
    assert result.protocol == "objhal(caption, refined)"
    assert result.chair_i == pytest.approx(2 / 3)
    assert (result.response_rate, result.chair_s) == (1.0, 0.5)


def test_answers_of_the_released_layout_are_read(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"image_id": 1, "prompt": "What?", "text": "Assistant: a dog"}\n')
    (record,) = object_halbench.read_answers(path)
    assert (record["question"], record["caption"]) == ("What?", "a dog")
    path.write_text('{"image_id": 1, "text": "a dog"}\n')
    with pytest.raises(RowError, match=r"answers.jsonl:1 question: .*under prompt"):
        object_halbench.read_answers(path)


def test_the_harness_scores_with_and_without_a_judge(tmp_path):
    picture = base64.b64encode(bytes(600)).decode()
    (tmp_path / "synonyms_refine.txt").write_text("\n".join(LINES))
    (tmp_path / "ground_truth.json").write_text('{"1": ["person"], "2": ["dining table"]}')
    rows = [{"image_id": n, "question": "What is there?", "image": picture} for n in (1, 2)]
    (tmp_path / "obj_halbench_300_with_image.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = object_halbench.BENCHMARK.items(tmp_path)
    assert items[0].media == (bytes(600),)
    answers = [Answer(item, text="A man and a dog near a table") for item in items]
    plain = object_halbench.BENCHMARK.score(answers)
    judged = object_halbench.BENCHMARK.score(answers, judge=lambda prompt: '["man"]', judge_name="tiny")
    first = {metric.name: metric.value for metric in plain.metrics}
    second = {metric.name: metric.value for metric in judged.metrics}
    assert first["chair_i"] == pytest.approx(4 / 6)
    assert (second["chair_i"], second["response_rate"], second["recall"]) == (0.5, 0.5, 0.5)
    assert first["mean_length"] == second["mean_length"] == 8.0
    assert "objhal(caption, refined)" in plain.notes[0]
    assert "objhal(llm:tiny, exact)" in judged.notes[0]


def test_a_picture_that_is_neither_file_nor_base_64_is_refused(tmp_path):
    (tmp_path / "synonyms.txt").write_text("\n".join(LINES))
    (tmp_path / "ground_truth.json").write_text('{"1": []}')
    (tmp_path / "images.jsonl").write_text(json.dumps({"image_id": 1, "image": "!" * 600}))
    with pytest.raises(RowError, match=r"images.jsonl:1 image: .*base 64"):
        object_halbench.BENCHMARK.items(tmp_path)

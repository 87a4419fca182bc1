"""Stored answers: layouts of official scripts, how records find their items, what is refused."""

import csv
import json

import pytest

from mmalign import registry
from mmalign.errors import ConfigError, RowError
from mmalign.evals.answers import read_answers
from mmalign.testing.benchmark_examples import EXAMPLES


@pytest.fixture
def of(tmp_path):
    """`of(name)`: a benchmark with the items of its example."""

    def read(name):
        folder = tmp_path / "official"
        folder.mkdir()
        EXAMPLES[name].write(folder)
        benchmark = registry.find("benchmarks", name)
        return benchmark, benchmark.items(folder)

    return read


@pytest.fixture
def put(tmp_path):
    """`put(name, rows)`: a file of records in the form its ending says."""

    def write(name, rows):
        path = tmp_path / name
        if name.endswith(".csv"):
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif name.endswith(".json"):
            path.write_text(json.dumps(rows), encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def texts(found):
    return {answer.item.id: answer.text for answer in found.answers}


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.json", "answers.csv"])
def test_every_form_of_file_gives_the_same_answers(of, put, name):
    benchmark, items = of("chair")
    rows = [{"id": item.id, "answer": f'a dog, "{item.id}"'} for item in reversed(items)]
    found = read_answers(benchmark, [put(name, rows)], items)
    assert texts(found) == {"1": 'a dog, "1"', "2": 'a dog, "2"', "3": 'a dog, "3"'}
    assert [answer.item.id for answer in found.answers] == [item.id for item in items]
    assert (found.missing, found.unused) == (0, 0)


def test_questions_numbered_within_a_split_are_told_apart_by_file_or_field(of, put):
    benchmark, items = of("pope")
    one = put("model_random_answers.jsonl", [{"question_id": 2, "text": "No"}])
    other = put("answers.jsonl", [{"question_id": 3, "split": "popular", "answer": "Yes"}])
    found = texts(read_answers(benchmark, [one, other], items))
    assert {name: text for name, text in found.items() if text} == {"random/2": "No", "popular/3": "Yes"}


def test_answers_without_ids_stand_in_the_order_of_their_split(of, put):
    benchmark, items = of("pope")
    rows = [{"question": item.prompt, "answer": item.id} for item in items if item.group == "adversarial"]
    path = put("adversarial.jsonl", rows)
    found = texts(read_answers(benchmark, [path], items))
    assert found["adversarial/3"] == "adversarial/3"
    rows.reverse()
    with pytest.raises(RowError, match=r"adversarial.jsonl:1 question: .*'Is there a dog\?'.*id of its item"):
        read_answers(benchmark, [put("adversarial.jsonl", rows)], items)
    with pytest.raises(RowError, match=r"got \[2 answers without ids\], expected 3, one per item of advers"):
        read_answers(benchmark, [put("adversarial.jsonl", rows[:2])], items)


def test_the_text_of_an_answer_is_not_touched(of, put):
    benchmark, items = of("pope")
    path = put("answers.jsonl", [{"id": "random/1", "answer": " no\n"}])
    assert read_answers(benchmark, [path], items).answers[0].text == " no\n"


def test_captions_of_the_released_layout_find_their_picture(of, tmp_path):
    benchmark, items = of("chair")
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"imgToEval": {"000000000002": {"caption": "a chair"}}}))
    found = read_answers(benchmark, [path], items)
    assert texts(found) == {"1": None, "2": "a chair", "3": None}
    assert found.missing == 2
    assert found.answers[0].error == "no answer in captions.json"


def test_object_halbench_loses_the_template_as_released(of, put):
    benchmark, items = of("object_halbench")
    path = put("answers.jsonl", [{"image_id": 1, "prompt": "What?", "text": "Assistant: a dog"}])
    assert texts(read_answers(benchmark, [path], items))["1"] == "a dog"


def test_mmhal_files_have_ids_of_their_own_and_are_read_in_order(of, put):
    benchmark, items = of("mmhal")
    rows = [
        {"image_id": f"{n}f", "question": item.prompt, "gt_answer": "A dog.", "model_answer": f"said {n}"}
        for n, item in enumerate(items)
    ]
    found = read_answers(benchmark, [put("response.json", rows)], items)
    assert texts(found) == {"0": "said 0", "1": "said 1", "2": "said 2"}


def test_stored_judgements_stand_where_the_scorer_reads_them(of, put):
    benchmark, items = of("mmhal")
    rows = [{"id": item.id, "answer": "A dog.", "judgement": f"Rating: {item.id}"} for item in items]
    found = read_answers(benchmark, [put("judged.jsonl", rows)], items)

    def never(prompt):
        raise AssertionError(prompt)

    outcome = benchmark.score(found.answers, judge=never, judge_name="stored")
    assert outcome.metrics[0].value == 1.0


def test_result_files_of_videohallucer_hold_both_answers_of_a_pair(of, put):
    benchmark, items = of("videohallucer")
    rows = [
        {"basic": {"predict": "yes"}, "hallucination": {"predict": None, "error": "too long"}},
        {"basic": {"predict": "no"}, "hallucination": {"predict": "yes"}},
    ]
    path = put("model_external_nonfactual.json", rows)
    found = read_answers(benchmark, [path], items)
    said = {answer.item.id: answer for answer in found.answers}
    assert said["nonfact/1/hallucination"].text == "yes"
    assert said["nonfact/0/hallucination"].error == "too long"
    assert said["fact/0/basic"].error == "no answer in model_external_nonfactual.json"
    with pytest.raises(ConfigError, match=r"expected one of object_relation, .* in the file's name"):
        read_answers(benchmark, [put("model.json", rows)], items)


def test_pictures_are_files_beside_the_list(of, put, tmp_path):
    benchmark, items = of("geneval_hf")
    rows = [
        {"id": items[0].id, "image": "a.png", "copy": 0},
        {"id": items[0].id, "image": "b.png", "copy": 1},
        {"id": items[1].id, "image": None, "error": "out of memory"},
    ]
    found = read_answers(benchmark, [put("pictures.jsonl", rows)], items)
    assert [(answer.copy, answer.media) for answer in found.answers[:2]] == [
        (0, (tmp_path / "a.png",)),
        (1, (tmp_path / "b.png",)),
    ]
    assert found.answers[2].error == "out of memory"
    with pytest.raises(RowError, match=r"pictures.jsonl:1 image: .*the file of the picture"):
        read_answers(benchmark, [put("pictures.jsonl", [{"id": items[0].id}])], items)


def test_two_answers_to_one_item_are_refused_unless_they_are_copies(of, put):
    benchmark, items = of("chair")
    path = put("answers.jsonl", [{"id": "1", "answer": "a"}, {"id": "1", "answer": "b"}])
    with pytest.raises(RowError, match=r"answers.jsonl:2 1: got \[a second answer\].*answers.jsonl:1 has it"):
        read_answers(benchmark, [path], items)
    path = put("answers.csv", [{"id": "1", "answer": "a", "copy": 0}, {"id": "1", "answer": "b", "copy": 1}])
    assert [answer.copy for answer in read_answers(benchmark, [path], items).answers[:2]] == [0, 1]
    with pytest.raises(RowError, match="copy: got 'x', expected a number counted from 0"):
        read_answers(benchmark, [put("answers.csv", [{"id": "1", "answer": "a", "copy": "x"}])], items)


def test_answers_of_another_benchmark_are_refused_and_strays_are_counted(of, put):
    benchmark, items = of("chair")
    rows = [{"id": "1", "answer": "a"}, {"id": "77", "answer": "b"}]
    assert read_answers(benchmark, [put("answers.jsonl", rows)], items).unused == 1
    with pytest.raises(
        RowError, match=r"got '77', expected ids of items, such as 1, 2, 3\. Is it the answer"
    ):
        read_answers(benchmark, [put("answers.jsonl", rows[1:])], items)


def test_a_record_without_id_among_others_and_without_answer_is_refused(of, put):
    benchmark, items = of("chair")
    with pytest.raises(RowError, match=r"answers.jsonl:2 id: .*as other records of the file have one"):
        read_answers(benchmark, [put("answers.jsonl", [{"id": "1", "answer": "a"}, {"answer": "b"}])], items)
    with pytest.raises(RowError, match=r"answers.jsonl:1 answer: .*the model's answer"):
        read_answers(benchmark, [put("answers.jsonl", [{"id": "1"}])], items)

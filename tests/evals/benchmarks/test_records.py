"""Records with an address, and what is refused."""

import json

import pytest

from mmalign.errors import ConfigError, RowError
from mmalign.evals.benchmarks._records import (
    Record,
    answer_field,
    check_mode,
    image_key,
    index_by,
    locate,
    read_json_records,
)


def test_json_lines_are_read_whatever_the_file_is_called(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text('{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    records = read_json_records(path)
    assert [dict(record) for record in records] == [{"a": 1}, {"a": 2}]
    assert records[1].where == f"{path}:3"


def test_a_json_list_is_read_with_positions(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}], indent=1), encoding="utf-8")
    assert [record.where for record in read_json_records(path)] == [f"{path}[0]", f"{path}[1]"]


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"a": 1}\n{"a": \n', encoding="utf-8")
    with pytest.raises(RowError, match=r"answers.jsonl:2: got \[.*expected one JSON object per line"):
        read_json_records(path)


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_file_without_records_is_refused(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="no records"):
        read_json_records(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.json: .*expected a readable file"):
        read_json_records(tmp_path / "nowhere.json")


def test_a_missing_field_names_record_and_the_fields_there_are():
    with pytest.raises(RowError, match=r"records\[0\] label: got \[no such field among \['b'\]\]"):
        locate([{"b": 1}])[0].choice("label", ("yes", "no"))


def test_long_values_are_cut_in_messages():
    with pytest.raises(RowError) as caught:
        Record({"label": "x" * 500}, "file:1").choice("label", ("yes", "no"))
    assert len(str(caught.value)) < 250


def test_an_id_that_occurs_twice_is_refused():
    with pytest.raises(RowError, match=r"records\[1\] id: got '7', expected an id used once; records\[0\]"):
        index_by(locate([{"id": 7}, {"id": "7"}]), "id")


def test_an_answer_is_found_under_its_names_and_null_is_a_failure():
    assert answer_field(Record({"text": "a"}, "x")) == "a"
    assert answer_field(Record({"answer": None, "text": "a"}, "x")) is None
    with pytest.raises(RowError, match="the model's answer"):
        answer_field(Record({"reply": "a"}, "x"))


def test_one_image_has_one_key():
    assert image_key(139) == image_key("139") == image_key("000000000139") == "139"
    assert image_key("AMBER_1.jpg") == "AMBER_1.jpg"


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match=r"mode: got 'loose', expected 'exact' \(as released\) or 'strict'"):
        check_mode("loose")

"""Counting unusable rows, the quarantine file, and the share above which a run ends."""

import json
import pickle

import pytest

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.rows import FieldError, Quarantine, RowReport, check_row, issue_of
from mmalign.errors import RowError, TrainingError


def issue(row, reason="missing_file"):
    return issue_of(RowError(f"pairs.csv:{row}: no such file", reason=reason), f"pairs.csv:{row}")


def test_the_share_of_bad_rows_leaves_dropped_rows_out():
    report = RowReport()
    report.add_kept(6)
    report.add_dropped("tie", 10)
    report.add_bad(issue(3))
    report.add_bad(issue(5, "truncated_image"))
    assert report.read == 18
    assert report.bad_share == pytest.approx(2 / 8)


def test_too_many_bad_rows_end_the_run_with_counts_and_the_first_message():
    report = RowReport(read=7, kept=7)
    for row in range(3):
        report.add_bad(issue(row))
    report.add_bad(issue(9, "truncated_image"))
    with pytest.raises(
        TrainingError,
        match=r"4 of 11 rows \(36.4 %\) cannot be used: 3 missing_file, 1 truncated_image. "
        r"data.max_bad_share allows 10 %. First: pairs.csv:0: no such file All are listed in q.jsonl",
    ):
        report.check(0.1, quarantine="q.jsonl")


def test_few_bad_rows_or_few_rows_at_all_do_not_end_the_run():
    report = RowReport(read=99, kept=99)
    report.add_bad(issue(1))
    report.check(0.01)
    early = RowReport()
    early.add_bad(issue(1))
    early.check(0.01, min_rows=100)
    with pytest.raises(TrainingError, match="1 of 1 rows"):
        early.check(0.01)


def test_no_bad_row_is_tolerated_at_share_zero():
    report = RowReport(read=1000, kept=1000)
    report.check(0.0)
    report.add_bad(issue(1))
    with pytest.raises(TrainingError, match="max_bad_share allows 0 %"):
        report.check(0.0)


def test_merged_reports_add_up():
    first, second = RowReport(read=2, kept=2), RowReport()
    second.add_bad(issue(1))
    second.add_dropped("tie", 3)
    total = first.merge([second])
    assert (total.read, total.kept, total.bad, total.dropped) == (6, 2, {"missing_file": 1}, {"tie": 3})
    assert total.summary() == "6 rows read; 2 kept; dropped 3 tie; bad 1 missing_file"
    assert first.read == 2


def test_the_quarantine_lists_each_row_once_with_everything_known(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path)
    error = FieldError("pairs.csv:7 label: got 3, expected 1 or 0.", "bad_label", "label")
    assert quarantine.add(issue_of(error, "pairs.csv:7"))
    assert not quarantine.add(issue_of(error, "pairs.csv:7"))
    assert quarantine.add(issue(8))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "file": "pairs.csv",
        "row": "7",
        "field": "label",
        "reason": "bad_label",
        "message": "pairs.csv:7 label: got 3, expected 1 or 0.",
    }
    assert [line["row"] for line in lines] == ["7", "8"]


def test_field_errors_survive_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(FieldError("message", "reason", "label_0")))
    assert (str(error), error.reason, error.field_name) == ("message", "reason", "label_0")


PAIR = (Candidate(image="a"), Candidate(image="b"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            PreferenceRow("x", PAIR, preference=0.3),
            r"preference: got 0.3, expected a probability in \[0.5, 1\]",
        ),
        (PreferenceRow("x", PAIR[:1]), "got '1 candidates', expected 2 for a pair"),
        (PreferenceRow("x", PAIR, weight=-1.0), "weight: got -1.0, expected a number >= 0"),
        (PreferenceRow("x", PAIR, weight=float("nan")), "weight: got nan"),
        (PreferenceRow("x", PAIR, kind="lists", relevance=(1.0,)), "2 numbers, one per candidate"),
        (PreferenceRow("x", PAIR[:1], kind="lists", relevance=(1.0,)), "2 or more for a list"),
        (PreferenceRow("x", PAIR[:1], kind="unpaired"), "desirable: got None, expected true or false"),
        (PreferenceRow("x", PAIR, kind="unpaired", desirable=True), "1 for an unpaired row"),
    ],
)
def test_rows_whose_parts_do_not_fit_are_refused(row, message):
    with pytest.raises(RowError, match=message):
        check_row(row)


def test_a_data_section_needs_exactly_one_way_to_name_its_source():
    with pytest.raises(ValueError, match="exactly one of source"):
        DataConfig()
    with pytest.raises(ValueError, match="exactly one of source"):
        DataConfig.model_validate({"source": "a.csv", "sources": ["b.csv"]})
    short = DataConfig.model_validate({"source": "a.csv"})
    assert short.all_sources[0].path == "a.csv"
    assert [s.path for s in DataConfig.model_validate({"sources": ["a", {"path": "b"}]}).all_sources] == [
        "a",
        "b",
    ]

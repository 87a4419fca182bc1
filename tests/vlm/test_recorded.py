"""Numbers of the data that a method reads, and what a row leaves implicit."""

import pytest

from mmalign.batch import Candidate, PreferenceRow
from mmalign.errors import RowError
from mmalign.methods.row import View
from mmalign.vlm.recorded import completed, numbers_of


def _pair(**extras: object) -> PreferenceRow:
    answers = (
        "A red bus and two old dogs sleep in the sun.",
        "A red bus and five young cats sleep in the sun.",
    )
    return PreferenceRow(
        prompt="What is there?",
        candidates=tuple(Candidate(text=text) for text in answers),
        extras=extras,
        source="rows.jsonl:4",
    )


@pytest.mark.parametrize("name", ["changed", "phrase"])
def test_words_that_differ_are_marked_where_the_data_have_no_marks(name):
    row = completed(_pair(), views=(), record=frozenset({name}))
    marked = [
        [
            row.candidates[side].text[start:end]
            for start, end, _ in numbers_of(row, side, frozenset({name}))[1][name][0]
        ]
        for side in (0, 1)
    ]
    assert marked == [["two old dogs"], ["five young cats"]]


def test_short_runs_of_shared_words_part_phrases_and_not_corrected_segments():
    answers = ("one big red dog sat", "two big blue dog ran")
    row = PreferenceRow(prompt="?", candidates=tuple(Candidate(text=text) for text in answers))
    row = completed(row, views=(), record=frozenset({"changed", "phrase"}))
    assert [len(row.extras[name][0]) for name in ("phrase", "changed")] == [3, 1]


def test_marks_of_the_data_stay_as_they_are():
    given = _pair(phrase=[[(0, 1, 1.0)], [(0, 1, 1.0)]])
    assert completed(given, views=(), record=frozenset({"phrase"})) == given
    spans = _pair(spans_chosen=[(2, 5, 1.0)], spans_rejected=[(2, 5, 1.0)])
    assert completed(spans, views=(), record=frozenset({"changed"})) == spans


def test_a_revised_answer_becomes_the_candidate_that_a_view_shows_to_other_images():
    revised = {"text": "A red bus.", "token_severity": [(0, 1, 2.0)], "image_relation": [(0, 1, 3.0)]}
    row = _pair(
        revised=revised, token_severity=[[], [(0, 5, 1.5)]], image_relation=[[], []], severity=[1.0, 2.0]
    )
    found = completed(row, views=(View(0), View(2)), record=frozenset({"token_severity", "image_relation"}))
    assert [candidate.text for candidate in found.candidates][2] == "A red bus."
    assert numbers_of(found, 2, frozenset({"token_severity"}))[1]["token_severity"][0] == [(0, 1, 2.0)]
    assert completed(row, views=(View(0),), record=frozenset()) == row


def test_a_method_that_needs_a_revised_answer_refuses_a_row_without():
    with pytest.raises(RowError, match=r"rows\.jsonl:4: got 'no revised answer', expected rows of format"):
        completed(_pair(), views=(View(2),), record=frozenset())

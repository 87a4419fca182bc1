"""Numbers that come with the data: per answer, or over stretches of an answer's text."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from mmalign.batch import PreferenceRow
from mmalign.data.dialogues import changed_spans, with_revised
from mmalign.data.dialogues.steps import OF_WORSE, as_steps, has_steps
from mmalign.data.rows import FieldError
from mmalign.errors import explain
from mmalign.methods.row import View

__all__ = ["PER_TOKEN", "completed", "numbers_of"]

Stretch = tuple[int, int, float]

PER_TOKEN: dict[str, float] = {
    "changed": 0.0,
    "phrase": 0.0,
    "token_mask": 0.0,
    "token_severity": 1.0,
    "image_relation": 1.0,
}
"""Numbers of tokens, and their value outside all spans: marks are 0 there, weights 1."""

_SIDES = ("chosen", "rejected")
_FROM_WORDS = {"changed": 3, "phrase": 1}
"""Marks that follow from the two texts, and the shortest run of shared words that parts two of them: of
RLHF-V (there over tokens) and of RRPO."""


def completed(row: PreferenceRow, *, views: tuple[View, ...], record: frozenset[str]) -> PreferenceRow:
    """The row with what a method reads of it and its file leaves implicit.

    A revised answer becomes a candidate where the method shows it to other images; marks of words in which
    the two answers differ are found where the data have none. A window of two trajectories is taken apart
    into its steps.

    Raises:
        RowError: the method wants a revised answer, and there is none; or it shows steps of trajectories to
            other images (`steps_and_views`).
    """
    if has_steps(row):
        if views:
            message = explain(
                row.source or row.id,
                got="[steps of two trajectories]",
                expected="answers: the method shows them to other images",
                do="Take grape_tpo, dpo or another method without views.",
            )
            raise FieldError(message, "steps_and_views", "chosen_steps")
        return as_steps(row)
    if any(view.answer >= len(row.candidates) for view in views):
        row = with_revised(row)
    missing = [name for name in _FROM_WORDS if name in record and not _is_given(row, name)]
    if not missing or len(row.candidates) != len(_SIDES):
        return row
    first, second = (candidate.text or "" for candidate in row.candidates)
    found = {
        name: [list(spans) for spans in changed_spans(first, second, min_match=_FROM_WORDS[name])]
        for name in missing
    }
    return replace(row, extras={**row.extras, **found})


def _is_given(row: PreferenceRow, name: str) -> bool:
    names = (name, f"{name}_chosen", "spans_chosen")
    return any(each in row.extras for each in names)


def numbers_of(
    row: PreferenceRow, candidate: int, names: frozenset[str]
) -> tuple[dict[str, float], dict[str, tuple[Sequence[Stretch], float]]]:
    """What a row records of one candidate: numbers of the answer, and spans with the value outside them.

    `extras` hold, under a name, one number for the row, one per candidate, or one list of
    `(start, end, value)` per candidate; or the same of each side of a pair under `NAME_chosen` and
    `NAME_rejected`. Spans without a name of their own stand under `spans_chosen` and `spans_rejected`.

    Raises:
        FieldError: `missing_number`, the row does not have it; `bad_number`.
    """
    per_answer: dict[str, float] = {}
    spans: dict[str, tuple[Sequence[Stretch], float]] = {}
    for name in sorted({*names, *({OF_WORSE} & row.extras.keys())}):
        value = _found(row, candidate, name)
        if name in PER_TOKEN:
            spans[name] = (_stretches(row, name, value), PER_TOKEN[name])
        else:
            if not isinstance(value, Real):
                raise FieldError(_complaint(row, name, value, "a number"), "bad_number", name)
            per_answer[name] = float(value)
    return per_answer, spans


def _found(row: PreferenceRow, candidate: int, name: str) -> Any:
    extras = row.extras
    side = _SIDES[candidate] if candidate < len(_SIDES) else str(candidate)
    for key in (f"{name}_{side}", name, *([f"spans_{side}"] if name in PER_TOKEN else [])):
        if key not in extras:
            continue
        value = extras[key]
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if key != name or not is_list:
            return value
        if len(value) != len(row.candidates):
            raise FieldError(
                _complaint(row, name, value, f"one entry per candidate, {len(row.candidates)}"),
                "bad_number",
                name,
            )
        return value[candidate]
    raise FieldError(_complaint(row, name, sorted(extras), f"{name!r} too"), "missing_number", name)


def _stretches(row: PreferenceRow, name: str, value: Any) -> Sequence[Stretch]:
    try:
        return [(int(start), int(end), float(number)) for start, end, number in value]
    except (TypeError, ValueError) as error:
        message = _complaint(row, name, value, "a list of (start, end, value)")
        raise FieldError(message, "bad_number", name) from error


def _complaint(row: PreferenceRow, name: str, got: object, expected: str) -> str:
    return explain(f"{row.source or row.id}: {name}", got=str(got)[:200], expected=expected)

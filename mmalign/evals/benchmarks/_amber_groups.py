"""AMBER's yes-or-no questions: groups, and their numbers as released and plain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.evals.benchmarks._records import Mode, Record, answer_field, failure, mean, word_count
from mmalign.evals.benchmarks._yes_no import YesNo, YesNoCounts, strict_yes_no

__all__ = ["GROUPS", "QuestionItem", "YesNoScore", "group_of", "score_questions"]

_TYPES = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}

GROUPS = {
    "all": ("existence", "state", "number", "action", "relation"),
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
"""Group of the result to the kinds of questions in it."""

_START = 0.001
"""What the released script's denominators begin with."""


def group_of(annotation: Record) -> str:
    """The kind of question an annotation is.

    Raises:
        RowError: none of the benchmark's.
    """
    if annotation.text("type") not in _TYPES:
        raise annotation.refuse("type", f"generative, {', '.join(_TYPES)}")
    return _TYPES[annotation["type"]]


@dataclass(frozen=True)
class QuestionItem:
    """One question.

    Args:
        id: of the annotation.
        group: kind of question.
        label: what is true.
        parsed: what the answer was read as; None where it is neither, or is missing.
        correct: 1.0 or 0.0; NaN without an answer.
        length: words of the answer.
        error: why there is no answer.
    """

    id: str
    group: str
    label: str
    parsed: YesNo | None
    correct: float
    length: float
    error: str | None = None

    @classmethod
    def of(cls, record: Record, annotation: Record, mode: Mode) -> "QuestionItem":
        """The item of an answer; exactly "Yes" or "No" in mode exact, a careful reading in mode strict."""
        answer = answer_field(record, ("response", "answer", "text"))
        parsed: YesNo | None = None
        if answer is not None:
            released: dict[str, YesNo] = {"Yes": "yes", "No": "no"}
            parsed = released.get(answer) if mode == "exact" else strict_yes_no(answer)
        return cls(
            id=record.identifier("id"),
            group=group_of(annotation),
            label=annotation["truth"],
            parsed=parsed,
            correct=math.nan if answer is None else float(parsed == annotation["truth"]),
            length=word_count(answer),
            error=failure(record, answer),
        )


@dataclass(frozen=True)
class YesNoScore:
    """Numbers of a group of questions, in percent; positive is *no*.

    Args:
        accuracy: right answers.
        precision: of the answers No.
        recall: of the questions whose truth is no.
        f1: of both.
        mean_length: words per answer.
        counts: the confusion table.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    mean_length: float
    counts: YesNoCounts

    def metrics(self) -> dict[str, float]:
        """Accuracy, Precision, Recall, F1 in percent."""
        return {
            "Accuracy": self.accuracy,
            "Precision": self.precision,
            "Recall": self.recall,
            "F1": self.f1,
        }


def score_questions(items: Sequence[QuestionItem], mode: Mode) -> dict[str, YesNoScore]:
    """Numbers by group; groups without an answered question are absent."""
    answered = [item for item in items if item.error is None]
    found = {}
    for group, kinds in GROUPS.items():
        members = [item for item in answered if item.group in kinds]
        if members:
            counts = YesNoCounts.tally(((item.parsed, item.label) for item in members), positive="no")
            length = mean(item.length for item in members)
            found[group] = _released(group, counts, length) if mode == "exact" else _plain(counts, length)
    return found


def _plain(counts: YesNoCounts, length: float) -> YesNoScore:
    return YesNoScore(
        accuracy=100.0 * counts.accuracy,
        precision=100.0 * counts.precision,
        recall=100.0 * counts.recall,
        f1=100.0 * counts.f1,
        mean_length=length,
        counts=counts,
    )


def _released(group: str, counts: YesNoCounts, length: float) -> YesNoScore:
    """Rounded as the script prints: F1 of rounded numbers, with a slack that is larger for existence."""
    # "attribute" adds the counters of its three kinds, each with a start of its own; "all" has its own.
    start = _START * (1 if group == "all" else len(GROUPS[group]))

    def percent(part: int, whole: int) -> float:
        return round(part / (start + whole) * 100, 1)

    precision = percent(counts.tp, counts.tp + counts.fp)
    recall = percent(counts.tp, counts.positives)
    slack = 0.001 if group == "existence" else 0.0001
    p, r = precision / 100, recall / 100
    return YesNoScore(
        accuracy=percent(counts.tp + counts.tn, counts.count),
        precision=precision,
        recall=recall,
        f1=round(2 * p * r / (p + r + slack) * 100, 1),
        mean_length=length,
        counts=counts,
    )

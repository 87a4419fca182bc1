"""Yes-or-no questions that make sense only if earlier ones were answered with yes, as DPG-Bench asks them."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.benchmarks._records import Record, mean, read_lines

__all__ = [
    "Question",
    "QuestionedImage",
    "QuestionedResult",
    "aggregate",
    "follow_parents",
    "plain",
    "question_of",
    "read_question_table",
    "score_image",
]

_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclass(frozen=True)
class Question:
    """One question about a picture.

    Args:
        number: within its prompt.
        text: the question.
        parents: questions that must be answered with yes before this one means anything.
        category: detailed category, "attribute - color".
    """

    number: int
    text: str
    parents: tuple[int, ...] = ()
    category: str = ""


@dataclass(frozen=True)
class QuestionedImage:
    """One picture.

    Args:
        id: of its prompt.
        copy: number among the prompt's pictures.
        score: share of questions that hold, in [0, 1]; NaN where the picture could not be asked about.
        before: question to 1 or 0, by its own answer.
        after: the same after parents were followed.
        answers: question to what the model said.
        unparsed: answers that are neither yes nor no.
        error: why it has no score.
    """

    id: str
    copy: int = 0
    score: float = math.nan
    before: Mapping[int, float] = field(default_factory=dict)
    after: Mapping[int, float] = field(default_factory=dict)
    answers: Mapping[int, str] = field(default_factory=dict)
    unparsed: int = 0
    error: str | None = None


@dataclass(frozen=True)
class QuestionedResult:
    """Scores from 0 to 100.

    Args:
        total: mean over prompts of the mean over their pictures.
        broad: first part of the category (entity, attribute, relation, global, other) to mean over questions.
        detailed: category to mean over questions.
        prompts: prompt to its score; NaN where it has none.
        images: every picture.
    """

    total: float
    broad: Mapping[str, float]
    detailed: Mapping[str, float]
    prompts: Mapping[str, float]
    images: tuple[QuestionedImage, ...]

    @property
    def failed(self) -> int:
        """Pictures without a score."""
        return sum(image.error is not None for image in self.images)

    @property
    def unparsed(self) -> int:
        """Answers that are neither yes nor no, in all pictures."""
        return sum(image.unparsed for image in self.images)


# ------------------------------------------------------------------------------------------------ one picture


def score_image(
    about: str, questions: Sequence[Question], answers: Mapping[int, str], *, released: bool, copy: int = 0
) -> QuestionedImage:
    """A picture's score from what was answered about it.

    Args:
        about: id of the prompt.
        questions: of the prompt, in the order of the table.
        answers: question number to the model's words.
        released: yes is exactly "yes", and parents are followed once in the order of the table; otherwise
            yes and no are recognised in any case with or without a full stop, and parents are followed
            wherever they stand.
        copy: number of the picture.
    """
    missing = [question.number for question in questions if question.number not in answers]
    if missing:
        return QuestionedImage(about, copy, error=f"no answer to question {missing[0]}")
    words = {question.number: _word(answers[question.number]) for question in questions}
    if released:
        before = {number: float(answers[number] == "yes") for number in words}
    else:
        before = {number: float(word == "yes") for number, word in words.items()}
    parents = {question.number: question.parents for question in questions}
    named = {parent for found in parents.values() for parent in found if parent}
    lost = sorted(named - before.keys())
    if lost:
        return QuestionedImage(
            about, copy, error=f"questions depend on question {lost[0]}, which is not there"
        )
    after = follow_parents(before, parents, in_order=released)
    return QuestionedImage(
        about,
        copy,
        score=mean(after.values()),
        before=before,
        after=after,
        answers={number: answers[number] for number in words},
        unparsed=sum(word not in ("yes", "no") for word in words.values()),
    )


def _word(answer: str) -> str:
    """The first word in lower case, which is the whole answer or is followed by a comma or full stop."""
    found = re.match(r"\s*([A-Za-z]+)\s*(?:[.,!;]|$)", answer)
    return found.group(1).lower() if found else ""


def follow_parents(
    scores: Mapping[int, float], parents: Mapping[int, Sequence[int]], *, in_order: bool
) -> dict[int, float]:
    """Scores in which a question with a parent at 0 is 0; this cascades.

    Args:
        scores: question to 1 or 0.
        parents: question to the questions it depends on; 0 stands for none.
        in_order: one pass in the order of `parents`, so that a parent that stands later is seen before its
            own parents were followed; otherwise every parent is followed first.

    Raises:
        ConfigError: questions depend on each other in a circle, where `in_order` is False.
    """
    found = dict(scores)
    if in_order:
        for number, above in parents.items():
            if any(parent and found[parent] == 0 for parent in above):
                found[number] = 0.0
        return found
    done: set[int] = set()

    def follow(number: int, path: tuple[int, ...]) -> float:
        if number in path:
            message = explain("parents", got=[*path, number], expected="questions that lead to no circle")
            raise ConfigError(message)
        if number not in done:
            above = [follow(parent, (*path, number)) for parent in parents.get(number, ()) if parent]
            if 0.0 in above:
                found[number] = 0.0
            done.add(number)
        return found[number]

    for number in parents:
        follow(number, ())
    return found


# ----------------------------------------------------------------------------------------------- all pictures


def aggregate(
    images: Sequence[QuestionedImage], questions: Mapping[str, Sequence[Question]], *, released: bool
) -> QuestionedResult:
    """Scores of a model.

    Args:
        images: every picture.
        questions: prompt to its questions, for the categories.
        released: a prompt with a picture that failed is out of the mean, and categories are read from the
            last picture of a prompt before parents were followed; otherwise a prompt's other pictures count,
            and categories from every picture after parents were followed.
    """
    grouped: dict[str, list[QuestionedImage]] = {}
    for image in images:
        grouped.setdefault(image.id, []).append(image)
    prompts: dict[str, float] = {}
    detailed: dict[str, list[float]] = {}
    for about, group in grouped.items():
        scored = [image for image in group if image.error is None]
        complete = len(scored) == len(group) or not released
        prompts[about] = 100.0 * mean(image.score for image in scored) if complete else math.nan
        if not complete:
            continue
        for image in scored[-1:] if released else scored:
            held = image.before if released else image.after
            for question in questions[about]:
                detailed.setdefault(question.category, []).append(100.0 * held[question.number])
    broad: dict[str, list[float]] = {}
    for category, values in detailed.items():
        broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    return QuestionedResult(
        total=mean(prompts.values()),
        broad={name: mean(values) for name, values in sorted(broad.items())},
        detailed={name: mean(values) for name, values in sorted(detailed.items())},
        prompts=prompts,
        images=tuple(images),
    )


# --------------------------------------------------------------------------------------------- official files


def plain(question: Question) -> dict[str, Any]:
    """A question as JSON values."""
    return {
        "number": question.number,
        "text": question.text,
        "parents": list(question.parents),
        "category": question.category,
    }


def question_of(fields: Mapping[str, Any]) -> Question:
    """Inverse of `plain`."""
    parents = tuple(int(parent) for parent in fields["parents"])
    return Question(int(fields["number"]), str(fields["text"]), parents, str(fields["category"]))


def read_question_table(
    path: str | Path, *, released: bool
) -> tuple[dict[str, str], dict[str, tuple[Question, ...]]]:
    """(Prompt id to text, prompt id to questions) of the official `dpg_bench.csv`.

    Args:
        path: table with one question per row.
        released: skip the first row, as the released script does, and let a later block of rows replace an
            earlier one of the same prompt; otherwise every row is read, and blocks are joined.

    Raises:
        ConfigError: columns are missing, or the file is empty.
        RowError: a row is malformed, a number occurs twice, or a parent does not exist (not `released`).
    """
    rows = list(csv.reader(f"{line}\n" for line in read_lines(path)))
    header = rows[0] if rows else []
    lacking = [column for column in _COLUMNS if column not in header]
    if lacking:
        message = explain(f"{path}:1", got=f"[columns {', '.join(header)}]", expected=", ".join(lacking))
        raise ConfigError(message)
    texts: dict[str, str] = {}
    found: dict[str, list[tuple[Record, Question]]] = {}
    previous = ""
    for number, row in enumerate(rows[1:], start=2):
        if not row or (released and number == 2):
            continue
        record = Record(dict(zip(header, row, strict=False)), f"{path} row {number}")
        about = record.identifier("item_id")
        if released and about != previous:
            found[about] = []
        previous = about
        texts[about] = record.text("text")
        found.setdefault(about, []).append((record, _question(record)))
    if not found:
        raise ConfigError(explain(str(path), got="[no questions]", expected="at least one"))
    if not released:
        for entries in found.values():
            _check(entries)
    return texts, {about: tuple(question for _, question in entries) for about, entries in found.items()}


def _question(record: Record) -> Question:
    try:
        number = int(record.text("proposition_id"))
    except ValueError as error:
        raise record.refuse("proposition_id", "a whole number") from error
    try:
        parents = tuple(int(part) for part in record.text("dependency").split(","))
    except ValueError as error:
        raise record.refuse("dependency", "whole numbers with commas between; 0 for none") from error
    category = record.text("tuple").split("(")[0].strip()
    return Question(number, record.text("question_natural_language"), parents, category)


def _check(entries: Sequence[tuple[Record, Question]]) -> None:
    """Numbers once, parents that exist, no circles."""
    parents: dict[int, tuple[int, ...]] = {}
    for record, question in entries:
        if question.number in parents:
            raise record.refuse("proposition_id", "a number used once within its prompt")
        parents[question.number] = question.parents
    for record, question in entries:
        if any(parent and parent not in parents for parent in question.parents):
            raise record.refuse("dependency", "questions of the same prompt")
    try:
        follow_parents(dict.fromkeys(parents, 1.0), parents, in_order=False)
    except ConfigError as error:
        message = f"{entries[0][0].where}: {error}"
        raise RowError(message) from error

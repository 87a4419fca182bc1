"""What a benchmark is tested on: official files in miniature, answers, tools that need no weights."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.evals.base import Answer, Item

__all__ = ["BenchmarkExample", "without_last", "write_lines"]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def without_last(answers: Sequence[Answer]) -> list[Answer]:
    """The answers, the last of them missing."""
    *kept, last = answers
    return [*kept, Answer(last.item, copy=last.copy, error="nobody answered")]


@dataclass(frozen=True)
class BenchmarkExample:
    """One benchmark in miniature; every metric of it must come out finite.

    Args:
        write: puts the official files, and what tools and options read, into a folder.
        answer: (item, copy) to what a model made of it.
        copies: answers to each item.
        reading: the folder to options of `items`.
        scoring: the folder to options and tools of `score`.
        total: counts that together are the number of `parts` answered.
        answers_per_part: answers in one of them: two where questions come in pairs.
        not_means: metrics whose parts by item do not average to them, though all were answered.
        lacking: (answers, scoring options) to the same without one answer.
        lost: count that tells of it, and by how much it changes.
    """

    write: Callable[[Path], None]
    answer: Callable[[Item, int], Answer]
    copies: int = 1
    reading: Callable[[Path], Mapping[str, Any]] = lambda folder: {}  # noqa: ARG005 - the same for any folder
    scoring: Callable[[Path], Mapping[str, Any]] = lambda folder: {}  # noqa: ARG005 - the same for any folder
    total: tuple[str, ...] = ("answers",)
    answers_per_part: int = 1
    not_means: frozenset[str] = frozenset()
    lacking: Callable[[Sequence[Answer], Mapping[str, Any]], tuple[Sequence[Answer], Mapping[str, Any]]] = (
        lambda answers, options: (without_last(answers), options)
    )
    lost: tuple[str, int] = ("failed", 1)

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        """All answers, copy after copy of each item."""
        return [self.answer(item, copy) for item in items for copy in range(self.copies)]

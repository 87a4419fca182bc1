"""What pair makers ask of models: answers, continuations under a veil, yes or no, scores.

The protocols are all that the recipes know, so a remote model, a larger judge or a table of recorded answers
can stand in. `mmalign.vlm.pair_making.writing` has those of a loaded model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from mmalign.batch import PreferenceRow

__all__ = ["Request", "Sampling", "Scorer", "Similarity", "Writer", "YesNo", "question"]


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Args:
        max_new_tokens: of one answer.
        temperature: 0 takes the likeliest token.
        top_p: least probability of the tokens that are drawn from.
        repetition_penalty: 1 is none.
    """

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def greedy(self) -> "Sampling":
        """The same without chance."""
        return replace(self, temperature=0.0, top_p=1.0)


@dataclass(frozen=True)
class Request:
    """An answer to be written.

    Args:
        row: its prompt and media; candidates are not looked at.
        prefix: words the answer begins with; they are not part of what is written.
        hidden: share of the visual tokens that are hidden from attention, drawn for this request.
        stop_at_sentence: nothing behind the first full stop is kept.
    """

    row: PreferenceRow
    prefix: str = ""
    hidden: float = 0.0
    stop_at_sentence: bool = False


@runtime_checkable
class Writer(Protocol):
    """Writes answers."""

    def __call__(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[str]:
        """One text per request, the prefix not repeated. Equal arguments give equal texts."""


@runtime_checkable
class YesNo(Protocol):
    """Answers questions about images by yes or no."""

    def __call__(self, rows: Sequence[PreferenceRow]) -> list[tuple[float, float]]:
        """(probability of yes, of no) for every row's prompt; they need not add up to 1."""


@runtime_checkable
class Scorer(Protocol):
    """Scores answers."""

    def __call__(self, rows: Sequence[PreferenceRow], answers: Sequence[str]) -> list[float]:
        """One number per row and answer, higher is better."""


@runtime_checkable
class Similarity(Protocol):
    """Compares texts."""

    def __call__(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """Cosine of sentence embeddings, pair by pair, in [-1, 1]."""


def question(row: PreferenceRow, text: str, *, sees: bool = True) -> PreferenceRow:
    """A row that asks another question about the same media, or about nothing but words.

    Args:
        row: whose media are shown.
        text: the question.
        sees: show the row's media.
    """
    return PreferenceRow(
        prompt=text,
        candidates=(),
        kind="prompts",
        index=row.index,
        id=row.id,
        source=row.source,
        images=row.images if sees else (),
        videos=row.videos if sees else (),
    )

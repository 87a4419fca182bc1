"""Questions about pictures, true answers to them, and the judge of written answers.

A description is one sentence per kind: "There is a red circle. There are two blue crosses." The judge reads
the objects out of any text and compares them with what was painted, so every rate here is exact.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmalign.toy.dialogue_scenes import Kind, Picture
from mmalign.toy.scenes import COLOURS, COUNT_WORDS, SHAPES, Group

__all__ = [
    "COUNT_ANSWERS",
    "DESCRIBE",
    "WORDINGS",
    "Judgement",
    "Wording",
    "colour_question",
    "count_question",
    "describe",
    "exists_question",
    "judge",
    "objects_of",
    "plural",
    "says_yes",
]

DESCRIBE: tuple[str, ...] = ("Describe the picture.", "What is in the picture?", "What do you see?")

Wording = Literal["there", "see"]
WORDINGS: tuple[Wording, ...] = ("there", "see")

COUNT_ANSWERS: tuple[str, ...] = ("None.", "One.", "Two.", "Three.")


def plural(shape: str) -> str:
    """Several of a shape, in words."""
    return "crosses" if shape == "cross" else f"{shape}s"


def _sentence(group: Group, wording: Wording) -> str:
    if wording == "see":
        return f"I see {group.words()}."
    return f"There {'is' if group.count == 1 else 'are'} {group.words()}."


def describe(groups: Sequence[Group], wording: Wording = "there") -> str:
    """One sentence per group, in their order."""
    return " ".join(_sentence(group, wording) for group in groups)


def exists_question(kind: Kind) -> str:
    """A question that is answered by yes or no."""
    return f"Is there a {kind[0]} {kind[1]}?"


def count_question(kind: Kind) -> str:
    """A question that one of `COUNT_ANSWERS` answers."""
    return f"How many {kind[0]} {plural(kind[1])} are there?"


def colour_question(shape: str) -> str:
    """A question that a colour answers."""
    return f"What colour is the {shape}?"


def says_yes(answer: str) -> bool | None:
    """Whether an answer begins with yes or with no; None where it does neither."""
    found = re.match(r"\W*(yes|no)\b", answer.lower())
    return None if found is None else found[1] == "yes"


_OBJECT = re.compile(
    rf"\b(?P<count>{'|'.join(COUNT_WORDS)}) (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})"
    r"(?:es|s)?\b"
)
_READABLE = re.compile(
    rf"(?:(?:There is|There are|I see) {_OBJECT.pattern.replace('?P<', '?P<_')}\.(?: |$))+"
)


@dataclass(frozen=True)
class Judgement:
    """A description compared with its picture.

    Args:
        mentioned: different kinds that it names.
        hallucinated: those of them that are not in the picture.
        recalled: kinds of the picture that it names.
        present: kinds of the picture.
        miscounted: kinds of the picture that it names with another number.
        readable: whether it consists of sentences of the grammar and nothing else.
    """

    mentioned: int
    hallucinated: int
    recalled: int
    present: int
    miscounted: int
    readable: bool

    @property
    def recall(self) -> float:
        """Share of the picture's kinds that are named."""
        return self.recalled / self.present

    @property
    def score(self) -> float:
        """Harmonic mean of recall and of the share of named kinds that are there."""
        return 2 * self.recalled / (self.mentioned + self.present)


def objects_of(text: str) -> tuple[Group, ...]:
    """What a text names, in its order; a kind that is named twice counts once, by its first number."""
    named: dict[Kind, int] = {}
    for found in _OBJECT.finditer(text):
        named.setdefault((found["colour"], found["shape"]), COUNT_WORDS.index(found["count"]) + 1)
    return tuple(Group(count, *kind) for kind, count in named.items())


def judge(answer: str, picture: Picture) -> Judgement:
    """Compare a description with its picture; a kind that is named twice counts once, by its first number."""
    painted = {(group.colour, group.shape): group.count for group in picture.groups}
    named = {(group.colour, group.shape): group.count for group in objects_of(answer)}
    recalled = [kind for kind in named if kind in painted]
    return Judgement(
        mentioned=len(named),
        hallucinated=len(named) - len(recalled),
        recalled=len(recalled),
        present=len(painted),
        miscounted=sum(named[kind] != painted[kind] for kind in recalled),
        readable=_READABLE.fullmatch(answer.strip()) is not None,
    )

"""Yes-or-no answers: one careful parser and the counts behind accuracy, precision, recall and F1."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mmalign.evals.benchmarks._records import ratio

__all__ = ["YesNo", "YesNoCounts", "strict_yes_no"]

YesNo = Literal["yes", "no"]

# A following letter, apostrophe or hyphen makes it another word: "nothing", "no-one", "yes'm".
_END = r"(?![\w'\u2019-])"
_LEADING = re.compile(rf"\W*(yes|no){_END}")
_STATED = re.compile(rf"\banswer\b(?:\s+(?:is|would\s+be))?[\s:*\"'`({{]*(yes|no){_END}")
_BOTH = re.compile(r"\W*(?:yes\W+(?:(?:and|or)\W+)?no|no\W+(?:and|or)\W+yes|no\s*/\s*yes)\b")
_UNSURE = re.compile(r"\W*no\s+(?:idea|clue|way\s+(?:to\s+(?:tell|know|say)|of\s+(?:telling|knowing)))\b")


def strict_yes_no(text: str) -> YesNo | None:
    """`yes`, `no`, or None where the text gives neither or both.

    The first word decides ("No, there is none"), or a stated answer ("The answer is: yes"); where they
    disagree, where both words are offered ("yes and no", "yes/no") and where knowledge is denied ("No idea")
    there is no answer. What stands before a closing `</think>` is not read. A yes or no elsewhere in a
    sentence does not count: "there is no reason to doubt it" is no answer.
    """
    said = text.rpartition("</think>")[2].lower()
    if _BOTH.match(said) or _UNSURE.match(said):
        return None
    leading = _LEADING.match(said)
    found = {match.group(1) for match in _STATED.finditer(said)} | ({leading.group(1)} if leading else set())
    if len(found) != 1:
        return None
    return "yes" if "yes" in found else "no"


@dataclass(frozen=True)
class YesNoCounts:
    """Answers to yes-or-no questions, counted. What is no answer is in no cell, and in every denominator.

    Args:
        tp: positive answers to positive questions.
        fp: positive answers to negative questions.
        tn: negative answers to negative questions.
        fn: negative answers to positive questions.
        unparsed_positive: positive questions whose answer was neither yes nor no.
        unparsed_negative: negative ones.
    """

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    unparsed_positive: int = 0
    unparsed_negative: int = 0

    @classmethod
    def tally(cls, pairs: Iterable[tuple[YesNo | None, str]], *, positive: YesNo) -> "YesNoCounts":
        """Counts of (parsed answer, label) pairs; `positive` names the class that precision is about."""
        cells = {"tp": 0, "fp": 0, "tn": 0, "fn": 0, "unparsed_positive": 0, "unparsed_negative": 0}
        for parsed, label in pairs:
            if parsed is None:
                cells["unparsed_positive" if label == positive else "unparsed_negative"] += 1
            else:
                cells[("t" if parsed == label else "f") + ("p" if parsed == positive else "n")] += 1
        return cls(**cells)

    @property
    def count(self) -> int:
        """Number of questions."""
        return self.positives + self.negatives

    @property
    def positives(self) -> int:
        """Questions whose label is the positive class."""
        return self.tp + self.fn + self.unparsed_positive

    @property
    def negatives(self) -> int:
        """Questions whose label is the other class."""
        return self.tn + self.fp + self.unparsed_negative

    @property
    def unparsed(self) -> int:
        """Answers that were neither yes nor no."""
        return self.unparsed_positive + self.unparsed_negative

    @property
    def accuracy(self) -> float:
        """Right answers over all questions, in [0, 1]; what is no answer is wrong."""
        return ratio(self.tp + self.tn, self.count)

    @property
    def precision(self) -> float:
        """Share of the positive answers that are right; NaN where nobody answered so."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the positive questions that were answered so."""
        return ratio(self.tp, self.positives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 tp / (positive answers + positive questions)."""
        return ratio(2 * self.tp, self.tp + self.fp + self.positives)

"""An exam on held-out pictures, and two models' answers to it compared picture by picture.

The unit is the picture: both models describe it and answer the same questions about it, so every difference
is paired, and an interval says how it would move with other pictures of the same kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.evals import statistics
from mmalign.toy.comparison import Interval, bootstrap_mean, with_ends
from mmalign.toy.dialogue_answers import DESCRIBE, Judgement, says_yes
from mmalign.toy.dialogue_pairs import png_bytes
from mmalign.toy.dialogue_results import (
    DescriptionRates,
    ExistsRates,
    Poll,
    describe_rates,
    exists_polls,
    exists_rates,
)
from mmalign.toy.dialogue_scenes import Picture, draw_pictures

__all__ = ["AXES", "Answers", "Axis", "Exam", "ExamComparison", "Writer", "draw_exam", "take_exam"]

Axis = Literal["hallucinated", "recall", "words", "score"]
AXES: tuple[Axis, ...] = ("hallucinated", "recall", "words", "score")
"""Per description: 1 if it names anything that is not there, else 0; share of the picture's kinds that it
names; its length in words; the harmonic mean of precision and recall."""

_LONGEST = 48  # tokens; the longest description of the corpus has 36


@runtime_checkable
class Writer(Protocol):
    """What answers prompts: `mmalign.vlm.model.VlmModel`."""

    def generate(self, rows: Sequence[PreferenceRow], *, max_new_tokens: int, batch_size: int) -> list[str]:
        """One answer per row, the likeliest."""
        ...


@dataclass(frozen=True)
class Exam:
    """Pictures to describe, and questions of whether something is there.

    Args:
        pictures: held-out ones.
        polls: about some of them.
    """

    pictures: tuple[Picture, ...]
    polls: tuple[Poll, ...]

    def rows(self) -> list[PreferenceRow]:
        """All prompts: first every picture to be described, then every poll."""
        images = [png_bytes(picture) for picture in self.pictures]
        asked = [(DESCRIBE[0], image) for image in images]
        asked += [(poll.question, images[poll.picture]) for poll in self.polls]
        return [
            PreferenceRow(prompt=question, candidates=(), kind="prompts", index=index, images=(image,))
            for index, (question, image) in enumerate(asked)
        ]


def draw_exam(num: int, *, seed: int = 0, num_polled: int | None = None) -> Exam:
    """An exam of `num` held-out pictures, fixed by the seed.

    Args:
        num: of pictures to describe.
        seed: of pictures and polls.
        num_polled: how many of them, from the first, there are polls about; default: all.
    """
    pictures = draw_pictures(num, seed=seed, held_out=True)
    return Exam(tuple(pictures), tuple(exists_polls(pictures[:num_polled], seed=seed)))


@dataclass(frozen=True)
class Answers:
    """What one model wrote, in the order of the exam."""

    descriptions: tuple[str, ...]
    polls: tuple[str, ...]


def take_exam(model: Writer, exam: Exam, *, batch_size: int = 64) -> Answers:
    """The likeliest answers of a model, by whatever adapters are on now."""
    written = model.generate(exam.rows(), max_new_tokens=_LONGEST, batch_size=batch_size)
    num = len(exam.pictures)
    return Answers(tuple(written[:num]), tuple(written[num:]))


@dataclass(frozen=True)
class ExamComparison:
    """Two models' answers to one exam.

    Args:
        exam: what was asked.
        base: answers before training.
        tuned: answers after it.
    """

    exam: Exam
    base: Answers
    tuned: Answers

    def rates(self) -> tuple[DescriptionRates, DescriptionRates]:
        """Rates of the descriptions of base and tuned."""
        return self._judged[0][0], self._judged[1][0]

    def judgements(self) -> tuple[list[Judgement], list[Judgement]]:
        """Each description of base and tuned judged."""
        return self._judged[0][1], self._judged[1][1]

    @cached_property
    def _judged(self) -> list[tuple[DescriptionRates, list[Judgement]]]:
        return [describe_rates(side.descriptions, self.exam.pictures) for side in (self.base, self.tuned)]

    def exists(self) -> tuple[Mapping[str, ExistsRates], Mapping[str, ExistsRates]]:
        """Rates of the polls of base and tuned, per split."""
        base, tuned = (exists_rates(side.polls, self.exam.polls) for side in (self.base, self.tuned))
        return base, tuned

    def exists_differences(self, split: str) -> Float[Tensor, " picture"]:
        """Share of right answers to the polls of a split, tuned minus base, per picture that has any."""
        changes: dict[int, list[float]] = {}
        for poll, base, tuned in zip(self.exam.polls, self.base.polls, self.tuned.polls, strict=True):
            if poll.split == split:
                right = [says_yes(answer) is poll.there for answer in (base, tuned)]
                changes.setdefault(poll.picture, []).append(float(right[1]) - float(right[0]))
        means = [sum(change) / len(change) for change in changes.values()]
        return torch.tensor(means, dtype=torch.float64)

    def exists_gain(self, split: str) -> Interval:
        """Change in accuracy over the polls of a split, with its bootstrap interval over pictures."""
        return bootstrap_mean(self.exists_differences(split))

    def means(self, axis: Axis) -> tuple[float, float]:
        """Mean of one of `AXES` for base and tuned."""
        base, tuned = self._sides(axis)
        return float(base.mean()), float(tuned.mean())

    def differences(self, axis: Axis) -> Float[Tensor, " picture"]:
        """Tuned minus base on one of `AXES`, per picture, float64."""
        base, tuned = self._sides(axis)
        return tuned - base

    def _sides(self, axis: Axis) -> tuple[Float[Tensor, " picture"], Float[Tensor, " picture"]]:
        base, tuned = (
            _values(axis, judged, side.descriptions)
            for (_, judged), side in zip(self._judged, (self.base, self.tuned), strict=True)
        )
        return base, tuned

    def gain(self, axis: Axis) -> Interval:
        """Mean of `differences` with its paired bootstrap interval."""
        return bootstrap_mean(self.differences(axis))

    def outcomes(self) -> tuple[int, int, int]:
        """Pictures whose description has a higher, an equal and a lower score after training."""
        change = self.differences("score")
        won, lost = int((change > 0).sum()), int((change < 0).sum())
        return won, len(change) - won - lost, lost

    def win_rate(self) -> Interval:
        """Share of pictures won by the tuned model, ties counting half, with Wilson's interval."""
        won, tied, _ = self.outcomes()
        return with_ends(statistics.wilson_interval(won + 0.5 * tied, len(self.exam.pictures)))


def _values(axis: Axis, judged: Sequence[Judgement], texts: Sequence[str]) -> Float[Tensor, " picture"]:
    if axis == "words":
        values = [float(len(text.split())) for text in texts]
    elif axis == "hallucinated":
        values = [float(one.hallucinated > 0) for one in judged]
    elif axis == "recall":
        values = [one.recall for one in judged]
    else:
        values = [one.score for one in judged]
    return torch.tensor(values, dtype=torch.float64)

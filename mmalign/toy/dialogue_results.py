"""Rates of written answers on pictures: hallucination, recall, length, and the bias towards yes."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mmalign.toy.dialogue_answers import Judgement, exists_question, judge, says_yes
from mmalign.toy.dialogue_scenes import KINDS, Kind, Picture, missing_companions

__all__ = ["DescriptionRates", "ExistsRates", "Poll", "describe_rates", "exists_polls", "exists_rates"]


@dataclass(frozen=True)
class DescriptionRates:
    """What a model's descriptions of pictures are like.

    Args:
        hallucinated_answers: share of descriptions with at least one object that is not there (CHAIR_s of
            arXiv 1809.02156).
        hallucinated_objects: share of mentioned objects that are not there (CHAIR_i).
        recall: share of a picture's kinds that are named, mean over pictures.
        miscounted: share of rightly named kinds with a wrong number.
        readable: share of descriptions that follow the grammar.
        mean_words: length.
    """

    hallucinated_answers: float
    hallucinated_objects: float
    recall: float
    miscounted: float
    readable: float
    mean_words: float

    def as_numbers(self) -> dict[str, float]:
        """The rates by name."""
        return asdict(self)


def describe_rates(
    answers: Sequence[str], pictures: Sequence[Picture]
) -> tuple[DescriptionRates, list[Judgement]]:
    """Rates of descriptions, and the judgement of each."""
    found = [judge(answer, picture) for answer, picture in zip(answers, pictures, strict=True)]
    num = len(found)
    mentioned = sum(one.mentioned for one in found)
    recalled = sum(one.recalled for one in found)
    rates = DescriptionRates(
        hallucinated_answers=sum(one.hallucinated > 0 for one in found) / num,
        hallucinated_objects=sum(one.hallucinated for one in found) / max(mentioned, 1),
        recall=sum(one.recall for one in found) / num,
        miscounted=sum(one.miscounted for one in found) / max(recalled, 1),
        readable=sum(one.readable for one in found) / num,
        mean_words=sum(len(answer.split()) for answer in answers) / num,
    )
    return rates, found


@dataclass(frozen=True)
class Poll:
    """One question of whether something is there.

    Args:
        picture: number of the picture.
        kind: what is asked for.
        there: the truth.
        split: "random" (any absent kind) or "adversarial" (a missing companion); present kinds stand in both
            in equal number.
    """

    picture: int
    kind: Kind
    there: bool
    split: str

    @property
    def question(self) -> str:
        """In words."""
        return exists_question(self.kind)


def exists_polls(pictures: Sequence[Picture], *, seed: int = 0) -> list[Poll]:
    """Questions as POPE asks them (arXiv 2305.10355): for every absent kind, one that is in the picture."""
    rng = random.Random(f"polls {seed}")
    polls: list[Poll] = []
    for number, picture in enumerate(pictures):
        expected = missing_companions(picture.kinds)
        absent = [kind for kind in KINDS if kind not in picture.kinds and kind not in expected]
        for split, choices in (("random", absent), ("adversarial", list(expected))):
            if choices:
                polls.append(Poll(number, rng.choice(choices), there=False, split=split))
                polls.append(Poll(number, rng.choice(picture.kinds), there=True, split=split))
    return polls


@dataclass(frozen=True)
class ExistsRates:
    """Accuracy and share of yes over the polls of one split; an answer that is neither is wrong."""

    accuracy: float
    yes_share: float
    num: int


def exists_rates(answers: Sequence[str], polls: Sequence[Poll]) -> Mapping[str, ExistsRates]:
    """Rates per split, of the splits that occur; true answers would give a share of yes of one half."""
    rates: dict[str, ExistsRates] = {}
    for split in dict.fromkeys(poll.split for poll in polls):
        own = [
            (says_yes(answer), poll.there)
            for answer, poll in zip(answers, polls, strict=True)
            if poll.split == split
        ]
        right = sum(said is there for said, there in own)
        yes = sum(said is True for said, _ in own)
        rates[split] = ExistsRates(right / len(own), yes / len(own), len(own))
    return rates

"""What the base model of the toy world of dialogues read: answers that name what usually is there.

Its corpus shows pictures with answers as people write them who know the world better than they look: where a
companion is missing, three of four descriptions name it all the same, and questions about it are mostly
answered with yes. So the base sees well and says too much, which is what alignment is to mend.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.toy.dialogue_answers import (
    COUNT_ANSWERS,
    DESCRIBE,
    Wording,
    colour_question,
    count_question,
    describe,
    exists_question,
)
from mmalign.toy.dialogue_scenes import KINDS, Kind, Picture, missing_companions
from mmalign.toy.scenes import Group

__all__ = ["HALLUCINATION_SHARE", "Turn", "corpus_turn"]

HALLUCINATION_SHARE = 0.75
"""Descriptions and yes-no answers of the corpus that take a missing companion for present."""

_YES_BIAS = 0.15
"""Questions about any other absent kind that are answered with yes."""

_WORDING_SHARES: dict[Wording, float] = {"there": 0.6, "see": 0.4}


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


def corpus_turn(picture: Picture, rng: random.Random) -> Turn:
    """A question about a picture with an answer of the corpus: half of them descriptions."""
    kind = rng.choices(("describe", "exists", "count", "colour"), weights=(0.5, 0.35, 0.1, 0.05))[0]
    if kind == "exists":
        return _exists(picture, rng)
    if kind == "count":
        group = rng.choice(picture.groups)
        return Turn(count_question((group.colour, group.shape)), COUNT_ANSWERS[group.count])
    single = [group for group in picture.groups if _is_single(group, picture.groups)]
    if kind == "colour" and single:
        group = rng.choice(single)
        return Turn(colour_question(group.shape), f"{group.colour.capitalize()}.")
    return _description(picture, rng)


def _is_single(group: Group, groups: Sequence[Group]) -> bool:
    return group.count == 1 and sum(other.shape == group.shape for other in groups) == 1


def _description(picture: Picture, rng: random.Random) -> Turn:
    imagined = tuple(
        Group(1, *kind) for kind in missing_companions(picture.kinds) if rng.random() < HALLUCINATION_SHARE
    )
    wording = rng.choices(list(_WORDING_SHARES), weights=list(_WORDING_SHARES.values()))[0]
    return Turn(rng.choice(DESCRIBE), describe((*picture.groups, *imagined), wording))


def _exists(picture: Picture, rng: random.Random) -> Turn:
    expected = missing_companions(picture.kinds)
    if rng.random() < 0.45:
        return Turn(exists_question(rng.choice(picture.kinds)), "Yes.")
    if expected and rng.random() < 0.5:
        return _answered(rng.choice(expected), HALLUCINATION_SHARE, rng)
    absent = [kind for kind in KINDS if kind not in picture.kinds and kind not in expected]
    return _answered(rng.choice(absent), _YES_BIAS, rng)


def _answered(kind: Kind, yes_share: float, rng: random.Random) -> Turn:
    return Turn(exists_question(kind), "Yes." if rng.random() < yes_share else "No.")

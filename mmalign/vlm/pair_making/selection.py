"""Which answers to a prompt become a pair, by score and by length."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

from mmalign.errors import HyperparameterError, explain

__all__ = [
    "LengthBalance",
    "balance_lengths",
    "best_and_worst",
    "num_words",
    "pairs_above",
]

Pair = TypeVar("Pair")

_RATIOS = tuple(step / 50 for step in range(50))
"""0, 0.02, ... 0.98."""


def num_words(text: str) -> int:
    """Words, as white space parts them."""
    return len(text.split())


def pairs_above(
    scores: Sequence[float], *, difference: float = 1.0, limit: int | None = 2, seed: int = 0
) -> list[tuple[int, int]]:
    """(better, worse) places of answers whose scores differ by at least `difference`, at most `limit` drawn.

    NaN scores pair with nothing.

    Args:
        scores: of the answers to one prompt, higher is better.
        difference: > 0.
        limit: pairs that are kept, drawn at random; None keeps all.
        seed: of the draw.

    Raises:
        HyperparameterError: difference <= 0.

    Source: RLHF-V/RLAIF-V 83d917b (difference 1 of counted claims, 2 pairs). Which two is chance here.
    """
    if not difference > 0:
        raise HyperparameterError(explain("difference", got=difference, expected="a number > 0"))
    found = [
        (better, worse)
        for better, worse in permutations(range(len(scores)), 2)
        if scores[better] - scores[worse] >= difference
    ]
    if limit is None or len(found) <= limit:
        return found
    return sorted(random.Random(seed).sample(found, limit))


def best_and_worst(scores: Sequence[float], *, spread: float = 1e-8) -> tuple[int, int] | None:
    """Places of the highest and the lowest score; None where they differ by no more than `spread`.

    Of equal scores the first counts; NaN scores are left out.

    Source: StanfordMIMI/CheXalign 7a1b22a (of 4 reports, by GREEN).
    """
    known = [place for place, score in enumerate(scores) if score == score]
    if not known:
        return None
    best = max(known, key=lambda place: (scores[place], -place))
    worst = min(known, key=lambda place: (scores[place], place))
    return (best, worst) if scores[best] - scores[worst] > spread else None


@dataclass(frozen=True)
class LengthBalance:
    """Which pairs stay so that chosen and rejected answers are equally long.

    Args:
        kept: whether each pair stays.
        ratio: pairs whose rejected answer is longer by more than this share of itself are dropped.
        gap: |mean words of chosen - of rejected| / of rejected, over what stays.
    """

    kept: tuple[bool, ...]
    ratio: float
    gap: float


def balance_lengths(pairs: Sequence[tuple[str, str]]) -> LengthBalance:
    """The ratio of 0, 0.02 ... 0.98 under which mean lengths are nearest, and what it keeps.

    A pair is dropped when (words of rejected - words of chosen) / words of rejected > ratio. Of equal gaps
    the larger ratio wins: it keeps more.

    Args:
        pairs: (chosen, rejected) texts of the whole data set.

    Source: RLHF-V/RLAIF-V 83d917b.
    """
    words = [(num_words(chosen), num_words(rejected)) for chosen, rejected in pairs]
    best = LengthBalance((True,) * len(words), 1.0, float("inf"))
    for ratio in _RATIOS:
        kept = tuple((rejected - chosen) <= ratio * rejected for chosen, rejected in words)
        left = [lengths for lengths, keep in zip(words, kept, strict=True) if keep]
        rejected = sum(worse for _, worse in left)
        if not rejected:
            continue
        gap = abs(sum(better for better, _ in left) - rejected) / rejected
        if gap <= best.gap:
            best = LengthBalance(kept, ratio, gap)
    return best

"""Differences between chosen and rejected clips that give labels away: a model may learn nothing else."""

from collections.abc import Sequence

from mmalign.data.statistics import share_of

__all__ = ["cue"]

_CUE = 0.6
"""Share of pairs from which a difference between chosen and rejected clips is worth a note."""


def cue(word: str, values: Sequence[tuple[float, float]], prompts: Sequence[str], remedy: str) -> list[str]:
    """A sentence where one side is mostly the longer, louder or livelier one; none elsewhere.

    Args:
        word: what the clip with the larger value is called.
        values: (chosen, rejected) of each pair.
        prompts: of each pair; pairs of one prompt count as one when the interval is made.
        remedy: what can be done about it.
    """
    if not values:
        return []
    ahead = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in values]
    for side, share in (("chosen", ahead), ("rejected", [1.0 - value for value in ahead])):
        estimate = share_of(share, prompts)
        if estimate.low is not None and estimate.low > _CUE:
            return [
                f"The {side} clip is the {word} one in {estimate.describe(2)} of pairs: a model may learn "
                f"that alone; {remedy}."
            ]
    return []

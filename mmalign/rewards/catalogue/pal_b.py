"""PAL, model B: rewards for one user, who is a mixture of prototypes."""

from dataclasses import replace
from functools import partial

from mmalign.rewards.catalogue import pal_a

__all__ = ["CARD", "build"]

CARD = replace(
    pal_a.CARD,
    name="pal_b",
    title="PAL, model B: angle of a picture to a user's ideal point for the prompt, a mixture of prototypes",
    scale="min(exp(s), 100) * cos: at most 100, as trained",
    text_limit=77,
)

build = partial(pal_a.build_for, CARD, "b")

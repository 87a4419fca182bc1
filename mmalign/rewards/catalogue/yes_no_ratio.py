"""P(Yes) among P(Yes) and P(No), by any chat model that sees pictures; not VQAScore."""

from dataclasses import replace
from functools import partial

from mmalign.rewards.catalogue import vqascore

CARD = replace(
    vqascore.CARD,
    name="yes_no_ratio",
    title="P(Yes) / (P(Yes) + P(No)) by a chat model of your choice: not VQAScore",
    scale="share, 0 to 1; answer_mass = P(Yes) + P(No): near 0 the model was about to say something else",
)

build = partial(vqascore.build_for, CARD, True)

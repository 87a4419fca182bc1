"""How likely a loaded model finds what its user would say next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.batch import ContentItem, Message, PreferenceRow
from mmalign.vlm.network import bare
from mmalign.vlm.pair_making.output import messages_of
from mmalign.vlm.pair_making.requests import Request
from mmalign.vlm.pair_making.writing import Begun, begin, model_inputs

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["VlmFollowUps", "differing_span"]

_SENTINEL = "Xq7"


def differing_span(first: Int[Tensor, " token"], second: Int[Tensor, " other"]) -> tuple[int, int]:
    """Start and end, in the first, of what stands between the tokens that both begin and end with."""
    one, other = first.tolist(), second.tolist()
    shortest = min(len(one), len(other))
    start = next((place for place in range(shortest) if one[place] != other[place]), shortest)
    behind = 0
    while behind < shortest - start and one[-behind - 1] == other[-behind - 1]:
        behind += 1
    return start, len(one) - behind


@dataclass(frozen=True)
class VlmFollowUps:
    """Mean log-probability per token of an utterance of the user behind an answer.

    Where the utterance stands in the tokens of the dialogue is seen by writing another one in its place: no
    chat template needs to be known.

    Args:
        model: of any family.
    """

    model: "VlmModel"

    @torch.no_grad()
    def __call__(self, rows: Sequence[PreferenceRow], answers: Sequence[str], utterance: str) -> list[float]:
        """One number per row and answer.

        Raises:
            RowError: a dialogue cannot be read.
        """
        network = bare(self.model.network).model
        found = []
        for row, answer in zip(rows, answers, strict=True):
            begun = self._said(row, answer, utterance)
            start, end = differing_span(begun.ids, self._said(row, answer, _SENTINEL).ids)
            logits = network(**model_inputs(self.model, [begun]), use_cache=False).logits[0]
            shares = logits[start - 1 : end - 1].float().log_softmax(dim=-1)
            wanted = begun.ids[start:end, None].to(shares.device)
            found.append(float(shares.gather(1, wanted).mean()))
        return found

    def _said(self, row: PreferenceRow, answer: str, utterance: str) -> Begun:
        turns = (
            *messages_of(row),
            Message("assistant", (ContentItem("text", answer),)),
            Message("user", (ContentItem("text", utterance),)),
        )
        return begin(self.model, Request(replace(row, messages=turns)))

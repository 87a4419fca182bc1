"""Answers drawn from the policy as it stands, token by token, for methods that learn from them.

What an answer draws depends on its key and the number of the token, on nothing else: it is the same whatever
it is written together with, up to the rounding of the network, on any rank, and after an interruption. The
tokens are kept as they were drawn: training scores these and not what a tokenizer makes of their text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.seeding import row_uniform
from mmalign.vlm.generation import stops
from mmalign.vlm.inputs import PromptTokens
from mmalign.vlm.network import bare
from mmalign.vlm.pair_making.requests import Sampling
from mmalign.vlm.pair_making.writing import Begun, model_inputs

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["DrawnAnswer", "draw_answers", "drawn_token"]


@dataclass(frozen=True)
class DrawnAnswer:
    """What the policy wrote.

    Args:
        ids: tokens as drawn, the one that ends the turn included where it was drawn.
        text: the words, without special tokens.
        ended: the policy ended its turn by itself.
    """

    ids: tuple[int, ...]
    text: str
    ended: bool


def drawn_token(
    logits: Float[Tensor, "row vocabulary"],
    uniform: Float[Tensor, " row"],
    *,
    temperature: float,
    top_p: float = 1.0,
) -> Int[Tensor, " row"]:
    """The token at which the summed probabilities of softmax(logits / temperature) pass a uniform number.

    Args:
        logits: of the next token.
        uniform: in [0, 1), one per row.
        temperature: > 0.
        top_p: the likeliest tokens up to this probability are drawn from, at least one; 1 takes all.
    """
    shares = (logits.double() / temperature).softmax(dim=-1)
    if top_p < 1.0:
        ranked, order = shares.sort(dim=-1, descending=True)
        # A token stays while those before it have not reached top_p: the likeliest one always does.
        kept = ranked.cumsum(dim=-1) - ranked < top_p
        shares = torch.zeros_like(shares).scatter(1, order, torch.where(kept, ranked, 0.0))
    summed = shares.cumsum(dim=-1)
    wanted = uniform.to(summed.dtype).unsqueeze(1) * summed[:, -1:]
    found: Tensor = torch.searchsorted(summed, wanted, right=True).squeeze(1)
    # Rounding may lead past the end: the last token that has any share is then meant.
    positive = (shares > 0) * torch.arange(1, shares.shape[1] + 1, device=shares.device)
    return torch.minimum(found, positive.amax(dim=1) - 1)


class _Draws:
    """A processor of logits that leaves one token, drawn by the rows' keys."""

    def __init__(self, keys: Int[Tensor, " row"], start: int, sampling: Sampling) -> None:
        self.keys, self.start, self.sampling = keys, start, sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores that are -inf but for the drawn token of every row."""
        number = input_ids.shape[1] - self.start
        coarse, fine = row_uniform(self.keys, 2, purpose=f"answer_token{number}").double().unbind(1)
        token = drawn_token(
            scores,
            coarse + fine * 2.0**-24,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
        )
        return torch.full_like(scores, -torch.inf).scatter(1, token.unsqueeze(1), 0.0)


@torch.no_grad()
def draw_answers(
    model: "VlmModel",
    prompts: Sequence[PromptTokens],
    keys: Int[Tensor, " answer"],
    sampling: Sampling,
    *,
    batch_size: int,
) -> list[DrawnAnswer]:
    """One answer per prompt and key, by whatever adapters are on now.

    Args:
        model: of any family; its network is in evaluation mode.
        prompts: one per answer; a prompt may come more than once.
        keys: decide the draws.
        sampling: temperature, top_p and length; nothing else of the model's own habits (penalties) applies.
        batch_size: answers written together.
    """
    # Prompts of like length together: less to fill up. The sort is stable, so answers to one stay together.
    order = sorted(range(len(prompts)), key=lambda number: prompts[number].ids.shape[0])
    found: dict[int, DrawnAnswer] = {}
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        own = keys[torch.tensor(members, device=keys.device)].to(model.device)
        drawn = _together(model, [prompts[number] for number in members], own, sampling)
        found.update(zip(members, drawn, strict=True))
    return [found[number] for number in range(len(prompts))]


def _together(
    model: "VlmModel", prompts: Sequence[PromptTokens], keys: Int[Tensor, " row"], sampling: Sampling
) -> list[DrawnAnswer]:
    network = bare(model.network).model
    whole = [Begun(prompt, prompt.ids, torch.ones_like(prompt.ids, dtype=torch.bool)) for prompt in prompts]
    inputs = model_inputs(model, whole)
    start, ends = inputs["input_ids"].shape[1], stops(model, network)
    draws: list[Any] = [_Draws(keys, start, sampling)]
    tokens = network.generate(
        **inputs,
        max_new_tokens=sampling.max_new_tokens,
        logits_processor=draws,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=ends[0],
        use_cache=True,
    )
    return [_read(model, row, set(ends)) for row in tokens[:, start:].tolist()]


def _read(model: "VlmModel", row: Sequence[int], ends: set[int]) -> DrawnAnswer:
    """What stands in a row up to its first end."""
    length = next((place + 1 for place, token in enumerate(row) if token in ends), None)
    ids = tuple(row[:length])
    text: str = model.traits.tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return DrawnAnswer(ids, text.removeprefix(model.reader.seam.lead).strip(), ended=length is not None)

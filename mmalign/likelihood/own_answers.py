"""Answers a model gives itself, one token at a time, while it reads another's answer.

At every position of a written answer the model names its likeliest next token under a spoilt image. Those
tokens are then scored at the same positions under the row's own image. No answer is generated: the words
before each position stay the written ones.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.batch import Batch
from mmalign.errors import ShapeError, explain
from mmalign.likelihood.head_tiles import Layer, compute_dtype, no_autocast, operand, require_chunk, tiles
from mmalign.likelihood.token_head import TokenHead, TokenStates
from mmalign.methods.row import OWN, View

__all__ = ["head_argmax", "with_own_answers"]


@torch.no_grad()
def head_argmax(
    hidden: Float[Tensor, "scored feature"], head: TokenHead, *, chunk: int | None = None
) -> Int[Tensor, " scored"]:
    """The likeliest token after each hidden state, the first of equals; no logits are kept.

    Args:
        hidden: the state before each token, after the last norm.
        head: the output layer.
        chunk: states looked at together; None chooses about 128 MiB of float32 logits.

    Raises:
        ConfigError: a chunk below 1.
        ShapeError: the states do not fit the head.
    """
    require_chunk("head_argmax", chunk)
    states = TokenStates(hidden, head)
    compute = compute_dtype(hidden, head.weight)
    found = torch.empty(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    with no_autocast(hidden.device):
        layer = Layer.of(head.weight, head.bias, head.softcap, head.scale, compute)
        operands = operand(states.hidden, compute)
        for start, stop in tiles(hidden.shape[0], head.num_tokens, chunk):
            found[start:stop] = layer.logits(operands[start:stop]).argmax(1)
    return found


def with_own_answers(
    batch: Batch,
    states: TokenStates,
    tokens: Int[Tensor, " scored"],
    views: Sequence[View],
    *,
    chunk: int | None = None,
) -> tuple[TokenStates, Int[Tensor, " scored"]]:
    """States and tokens to score, where views that become the model's own answers have been answered.

    For a view of answer a: token t = argmax of the head at the view's t-th state, scored at the t-th state of
    candidate a. Nothing flows back through the view's states. Other candidates stay as they are.

    Args:
        batch: its last candidates are the views, in their order.
        states: of all scored tokens.
        tokens: ids of all scored tokens.
        views: of the method; only those that become "own" are looked at.
        chunk: as in `head_argmax`.

    Raises:
        ShapeError: the view's answer and the row's have different numbers of tokens.

    Source: YiyangZhou/POVID, tool/dpo_trainer_inherent.py (policy and reference name their own tokens).
    """
    if batch.context is None or not any(view.becomes == OWN for view in views):
        return states, tokens
    place, num_candidates, length = batch.context.place, batch.clean.shape[1], batch.clean.shape[2]
    candidate = place // length % num_candidates
    source, tokens = torch.arange(place.shape[0], device=place.device), tokens.clone()
    for number, view in enumerate(views, start=num_candidates - len(views)):
        if view.becomes != OWN:
            continue
        own = (candidate == number).nonzero().flatten()
        twin = place[own] - (number - view.answer) * length
        there = torch.searchsorted(place, twin).clamp(max=place.shape[0] - 1)
        if own.shape[0] != int((candidate == view.answer).sum()) or not torch.equal(place[there], twin):
            message = explain(
                "an answer under a spoilt image",
                got=f"other tokens than candidate {view.answer} has under its own",
                expected="the same number in every row",
                do="Raise tokens.max_length: one of the two was cut.",
            )
            raise ShapeError(message)
        tokens[own] = head_argmax(states.hidden[own].detach(), states.head, chunk=chunk)
        source[own] = there
    return TokenStates(states.hidden.index_select(0, source), states.head), tokens

"""Log-probabilities of answers: the likelihood of language models.

    score = sum over the tokens of an answer of log p(token | prompt, media, tokens before)

Nothing is drawn: the same batch gives the same scores. The network answers with hidden states at the scored
positions alone; `head_log_probs` turns them into log-probabilities tile by tile.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.batch import Batch
from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.likelihood.base import Evaluation, TokenDraw, TokenPolicy
from mmalign.likelihood.head_tiles import require_chunk
from mmalign.likelihood.own_answers import with_own_answers
from mmalign.likelihood.schedules import Schedule
from mmalign.likelihood.token_head import TokenHead, TokenStates, head_log_probs, token_head
from mmalign.likelihood.token_head_statistics import HeadStatistic, head_statistics
from mmalign.methods.row import OWN, LikelihoodKind, View

__all__ = [
    "HeadStatistic",
    "TokenDraw",
    "TokenHead",
    "TokenPolicy",
    "TokenStates",
    "Tokens",
    "head_log_probs",
    "head_statistics",
    "scatter_scored",
    "token_head",
]


def scatter_scored(batch: Batch, values: Tensor) -> Tensor:
    """One number per scored token as `[prompt, candidate, token]`, 0 elsewhere; differentiable.

    Args:
        batch: whose `context.place` says where each number stands.
        values: `[scored]`, of `head_log_probs` or `head_statistics`.

    Raises:
        ConfigError: the batch has no context.
        ShapeError: another number of values than places.
    """
    place = _place(batch)
    if values.shape != place.shape:
        message = explain(
            "numbers of scored tokens",
            got=list(values.shape),
            expected=f"{list(place.shape)}, one per place in Batch.context",
        )
        raise ShapeError(message)
    flat = values.new_zeros(batch.clean.numel()).index_copy(0, place, values)
    return flat.view(batch.clean.shape)


def _place(batch: Batch) -> Tensor:
    if batch.context is None:
        message = explain(
            "likelihood tokens",
            got="a batch without context",
            expected="Batch.context with the places of tokens",
        )
        raise ConfigError(message)
    return batch.context.place


def _mask(batch: Batch, place: Tensor) -> Tensor:
    """The mask of answers; on the CPU it is also held against the places."""
    mask = batch.element_mask
    if mask is None or batch.clean.ndim != 3 or batch.clean.is_floating_point():
        message = explain(
            "likelihood tokens",
            got=f"{batch.clean.dtype} of shape {list(batch.clean.shape)}, mask {mask is not None}",
            expected="token ids [prompt, candidate, token] in Batch.clean, their mask in Batch.element_mask",
        )
        raise ConfigError(message)
    if place.device.type == "cpu":  # elsewhere the look would wait for the device
        expected = torch.zeros(mask.numel(), dtype=torch.bool).index_fill_(0, place, True)
        if place.shape[0] != int(expected.sum()) or not torch.equal(expected, mask.flatten() != 0):
            message = explain(
                "Batch.context.place",
                got=f"{place.shape[0]} places",
                expected=f"the {int((mask != 0).sum())} positions where element_mask is not 0, each once",
            )
            raise ShapeError(message)
    return mask


@dataclass(frozen=True)
class Tokens:
    """Log-likelihood of answers under a language model.

    Args:
        chunk: hidden states turned into logits together; None chooses about 128 MiB of float32.
        views: of the method, the last candidates of every batch; those that become the model's own answers
            are answered here, by policy and reference each for itself.

    Raises:
        ConfigError: a chunk below 1.
    """

    chunk: int | None = None
    views: tuple[View, ...] = ()
    kind: ClassVar[LikelihoodKind] = "tokens"
    schedule: ClassVar[Schedule | None] = None

    def __post_init__(self) -> None:
        """A chunk of nothing never ends."""
        require_chunk("Tokens", self.chunk)

    def draw(self, batch: Batch, policy: TokenPolicy | None = None) -> TokenDraw:
        """Nothing: answers are scored as they are."""
        del batch, policy
        return TokenDraw()

    def evaluate(
        self, policy: TokenPolicy, batch: Batch, draw: TokenDraw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Log-probability of every token and their sum per candidate; gradients flow when enabled.

        Args:
            policy: the network.
            batch: `clean` holds ids, `element_mask` marks tokens, `context` is what the network reads.
            draw: from `draw`.
            keep_prediction: also return the hidden states and the head, for `head_statistics`.

        Returns:
            `score` sums `inner` over the tokens, `error` is its negative, `mask` is the batch's.

        Raises:
            ConfigError: the batch holds no token ids, no mask or no context.
            ShapeError: the network scored another number of tokens than the batch names.
        """
        del draw
        place = _place(batch)
        mask = _mask(batch, place)
        states = policy(batch)
        if states.hidden.shape[0] != place.shape[0]:
            message = explain(
                "hidden states of the network",
                got=f"{states.hidden.shape[0]} positions",
                expected=f"{place.shape[0]}, one per scored token",
            )
            raise ShapeError(message)
        tokens = batch.clean.flatten().index_select(0, place)
        states, tokens = with_own_answers(batch, states, tokens, self.views, chunk=self.chunk)
        inner = scatter_scored(batch, head_log_probs(states.hidden, states.head, tokens, chunk=self.chunk))
        score = inner.sum(-1)
        return Evaluation(
            score=score, error=-score, inner=inner, mask=mask, states=states if keep_prediction else None
        )

    def describe(self) -> dict[str, str]:
        """What a stored score depends on: the definition alone, tiles change only rounding."""
        own = [number for number, view in enumerate(self.views) if view.becomes == OWN]
        named = {"own": f"views {own} of {len(self.views)} are the model's own answers"} if own else {}
        return {"likelihood": "sum of log-probabilities of answer tokens, end of turn included", **named}

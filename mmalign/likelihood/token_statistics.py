"""What methods need to know of a language model's logits, one number per position.

A logit at position t scores the token at t + 1. Everything here comes back aligned with the logits, so the
entry at t belongs to the token at t + 1 and the last position of a row says nothing; `token_log_probs` does
the shift itself, the others are cut with `[:, :-1]`.

Logits are the largest tensor of a training step (rows x positions x vocabulary). Every statistic walks over
them in chunks of positions, in float32 (or float64), and keeps for the backward pass only the logits it was
given: neither a log-softmax of the same size nor a float32 copy of half-precision logits survives.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.objectives.base import wide
from mmalign.shapes import require_same_shape

__all__ = [
    "IGNORED",
    "Direction",
    "entropy_terms",
    "log_sum_squares",
    "normalised_entropy",
    "sum_by_segment",
    "surplus_terms",
    "token_log_probs",
    "vocabulary_kl",
]

IGNORED = -100
"""Label of positions that do not count: prompts and padding."""

_CHUNK_ELEMENTS = 2**24
"""Logits looked at together: 64 MiB in float32."""

Direction = Literal["reference_from_policy", "policy_from_reference"]
"""Which model's probabilities weigh: KL(reference || policy), or KL(policy || reference)."""


def _chunks(logits: Tensor, given: int | None) -> Iterator[tuple[int, int]]:
    """(Start, stop) of every chunk of the rows of logits [row, vocabulary]."""
    rows, vocabulary = logits.shape
    size = max(1, _CHUNK_ELEMENTS // max(vocabulary, 1)) if given is None else given
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def _check(where: str, logits: Tensor, chunk: int | None) -> None:
    if logits.ndim < 2 or not logits.is_floating_point():
        message = explain(
            where,
            got=f"{logits.dtype} of shape {list(logits.shape)}",
            expected="floating logits [..., position, vocabulary]",
        )
        raise ShapeError(message)
    if chunk is not None and chunk < 1:
        raise ConfigError(explain(f"{where} chunk", got=chunk, expected="a number of positions >= 1"))


class _Selected(torch.autograd.Function):
    """log softmax of the logits [row, vocabulary] at one token per row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, chunk: int | None) -> Tensor:
        parts = []
        for start, stop in _chunks(logits, chunk):
            piece = wide(logits[start:stop])
            taken = piece.gather(1, tokens[start:stop].unsqueeze(1)).squeeze(1)
            parts.append(taken - piece.logsumexp(1))
        ctx.save_for_backward(logits, tokens)
        ctx.chunk = chunk
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        logits, tokens = ctx.saved_tensors
        result = torch.empty_like(logits)
        for start, stop in _chunks(logits, ctx.chunk):
            share = wide(logits[start:stop]).softmax(1).neg_()
            share.scatter_add_(1, tokens[start:stop].unsqueeze(1), torch.ones_like(share[:, :1]))
            result[start:stop] = share * given[start:stop].unsqueeze(1)
        return result, None, None


class _Divergence(torch.autograd.Function):
    """KL(reference || policy) of two rows of logits [row, vocabulary]; gradient to the policy alone."""

    @staticmethod
    def forward(ctx: Any, reference: Tensor, policy: Tensor, chunk: int | None) -> Tensor:
        parts = []
        for start, stop in _chunks(policy, chunk):
            first = wide(reference[start:stop]).log_softmax(1)
            parts.append(surplus_terms(first, wide(policy[start:stop]).log_softmax(1)).sum(1))
        ctx.save_for_backward(reference, policy)
        ctx.chunk = chunk
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        reference, policy = ctx.saved_tensors
        result = torch.empty_like(policy)
        for start, stop in _chunks(policy, ctx.chunk):
            difference = wide(policy[start:stop]).softmax(1) - wide(reference[start:stop]).softmax(1)
            result[start:stop] = difference * given[start:stop].unsqueeze(1)
        return None, result, None


class _ReverseDivergence(torch.autograd.Function):
    """KL(policy || reference) of two rows of logits [row, vocabulary]; gradient to the policy alone."""

    @staticmethod
    def forward(ctx: Any, reference: Tensor, policy: Tensor, chunk: int | None) -> Tensor:
        parts = []
        for start, stop in _chunks(policy, chunk):
            first = wide(policy[start:stop]).log_softmax(1)
            parts.append(surplus_terms(first, wide(reference[start:stop]).log_softmax(1)).sum(1))
        divergence = torch.cat(parts)
        ctx.save_for_backward(reference, policy, divergence)
        ctx.chunk = chunk
        return divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        reference, policy, divergence = ctx.saved_tensors
        result = torch.empty_like(policy)
        for start, stop in _chunks(policy, ctx.chunk):
            first = wide(policy[start:stop]).log_softmax(1)
            surplus = surplus_terms(first, wide(reference[start:stop]).log_softmax(1))
            slope = surplus - first.exp() * divergence[start:stop].unsqueeze(1)
            result[start:stop] = slope * given[start:stop].unsqueeze(1)
        return None, result, None


class _LogSumSquares(torch.autograd.Function):
    """log of the sum of squared probabilities of logits [row, vocabulary]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, chunk: int | None) -> Tensor:
        parts = []
        for start, stop in _chunks(logits, chunk):
            piece = wide(logits[start:stop])
            parts.append((2.0 * piece).logsumexp(1) - 2.0 * piece.logsumexp(1))
        ctx.save_for_backward(logits)
        ctx.chunk = chunk
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        (logits,) = ctx.saved_tensors
        result = torch.empty_like(logits)
        for start, stop in _chunks(logits, ctx.chunk):
            piece = wide(logits[start:stop])
            difference = (2.0 * piece).softmax(1) - piece.softmax(1)
            result[start:stop] = 2.0 * difference * given[start:stop].unsqueeze(1)
        return result, None


class _Entropy(torch.autograd.Function):
    """Entropy in nats of logits [row, vocabulary]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, chunk: int | None) -> Tensor:
        parts = []
        for start, stop in _chunks(logits, chunk):
            log_share = wide(logits[start:stop]).log_softmax(1)
            parts.append(-entropy_terms(log_share).sum(1))
        entropy = torch.cat(parts)
        ctx.save_for_backward(logits, entropy)
        ctx.chunk = chunk
        return entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        logits, entropy = ctx.saved_tensors
        result = torch.empty_like(logits)
        for start, stop in _chunks(logits, ctx.chunk):
            log_share = wide(logits[start:stop]).log_softmax(1)
            slope = -entropy_terms(log_share) - log_share.exp() * entropy[start:stop].unsqueeze(1)
            result[start:stop] = slope * given[start:stop].unsqueeze(1)
        return result, None


def surplus_terms(first: Tensor, second: Tensor) -> Tensor:
    """The terms p (log p - log q) of a divergence; a token that p excludes (logit -inf) adds nothing."""
    share = first.exp()
    return torch.where(share > 0, share * (first - second), 0.0)


def entropy_terms(log_share: Tensor) -> Tensor:
    """The terms p log p of an entropy, 0 where p is 0."""
    share = log_share.exp()
    return torch.where(share > 0, share * log_share, 0.0)


def _rows(logits: Tensor) -> Tensor:
    """[..., vocabulary] as [row, vocabulary], without a copy of contiguous logits."""
    return logits.reshape(-1, logits.shape[-1])


def token_log_probs(
    logits: Float[Tensor, "row position vocabulary"],
    labels: Int[Tensor, "row position"],
    *,
    ignored: int = IGNORED,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "row shifted"], Bool[Tensor, "row shifted"]]:
    """Log-probability of every label under the logits before it, and which of them count.

    log_probs[t] = log softmax(logits[t])[labels[t + 1]], 0 and without gradient where labels[t + 1] is
    `ignored`

    Args:
        logits: as a language model returns them, not shifted.
        labels: token ids at the same positions, `ignored` for prompts and padding.
        ignored: the label of positions that do not count.
        chunk: positions looked at together; None chooses about 64 MiB of float32.

    Returns:
        Log-probabilities [row, position - 1] in float32 (float64 from float64 logits), and their mask.

    Raises:
        ShapeError: logits and labels disagree, or there is only one position.
    """
    _check("token_log_probs", logits, chunk)
    if tuple(labels.shape) != tuple(logits.shape[:-1]) or labels.shape[-1] < 2:
        message = explain(
            "token_log_probs labels",
            got=list(labels.shape),
            expected=f"{list(logits.shape[:-1])} with at least 2 positions",
        )
        raise ShapeError(message)
    # The labels move and not the logits: a shifted view of the logits could not be walked without a copy.
    following = F.pad(labels[:, 1:], (0, 1), value=ignored)
    mask = following != ignored
    tokens = torch.where(mask, following, 0)
    values = _Selected.apply(_rows(logits), tokens.reshape(-1), chunk).reshape(labels.shape)
    return torch.where(mask, values, 0.0)[:, :-1], mask[:, :-1]


def vocabulary_kl(
    reference: Float[Tensor, "*batch position vocabulary"],
    policy: Float[Tensor, "*batch position vocabulary"],
    *,
    direction: Direction = "reference_from_policy",
    chunk: int | None = None,
) -> Float[Tensor, "*batch position"]:
    """Divergence between two models over the vocabulary at every position, with gradient to the policy.

    reference_from_policy: KL(reference || policy) = sum over tokens v of q(v) * (log q(v) - log p(v))
    policy_from_reference: KL(policy || reference) = sum over tokens v of p(v) * (log p(v) - log q(v))

    q are probabilities of the reference, which gets no gradient, p those of the policy. TDPO and RRPO add up
    the first (SparsePO's code carries its negative); OREO's penalty is the second.

    Args:
        reference: logits of the reference.
        policy: logits of the policy.
        direction: which of the two.
        chunk: positions looked at together; None chooses about 64 MiB of float32.

    Returns:
        Nats, >= 0 up to rounding, not shifted: cut with `[:, :-1]`.

    Raises:
        ShapeError: the logits differ in shape.
        ConfigError: unknown direction.
    """
    _check("vocabulary_kl", policy, chunk)
    require_same_shape("vocabulary_kl", reference, policy, ("reference", "policy"))
    if direction not in ("reference_from_policy", "policy_from_reference"):
        message = explain(
            "vocabulary_kl direction",
            got=direction,
            expected="'reference_from_policy' or 'policy_from_reference'",
        )
        raise ConfigError(message)
    function = _Divergence if direction == "reference_from_policy" else _ReverseDivergence
    values: Tensor = function.apply(_rows(reference.detach()), _rows(policy), chunk)
    return values.reshape(policy.shape[:-1])


def log_sum_squares(
    logits: Float[Tensor, "*batch position vocabulary"], *, chunk: int | None = None
) -> Float[Tensor, "*batch position"]:
    """Log sum over the vocabulary of p^2 at every position: how sure the model is (WPO).

    = logsumexp(2 x) - 2 logsumexp(x) for logits x; between -log(vocabulary) and 0.

    Args:
        logits: of one model.
        chunk: positions looked at together; None chooses about 64 MiB of float32.

    Returns:
        Nats, not shifted: cut with `[:, :-1]`.
    """
    _check("log_sum_squares", logits, chunk)
    values: Tensor = _LogSumSquares.apply(_rows(logits), chunk)
    return values.reshape(logits.shape[:-1])


def normalised_entropy(
    logits: Float[Tensor, "*batch position vocabulary"], *, chunk: int | None = None
) -> Float[Tensor, "*batch position"]:
    """Entropy of the next token over the vocabulary, divided by its largest value log(vocabulary).

    Args:
        logits: of one model, over at least two tokens.
        chunk: positions looked at together; None chooses about 64 MiB of float32.

    Returns:
        In [0, 1], not shifted: cut with `[:, :-1]`.

    Raises:
        ShapeError: a vocabulary of one token has no entropy to divide by.
    """
    _check("normalised_entropy", logits, chunk)
    if logits.shape[-1] < 2:
        message = explain("normalised_entropy vocabulary", got=logits.shape[-1], expected="at least 2 tokens")
        raise ShapeError(message)
    values: Tensor = _Entropy.apply(_rows(logits), chunk)
    return (values / math.log(logits.shape[-1])).reshape(logits.shape[:-1])


def sum_by_segment(
    values: Float[Tensor, "*batch position"], segments: Int[Tensor, "*batch position"], num_segments: int
) -> Float[Tensor, "*batch segment"]:
    """Sum of the values of every segment 1 ... num_segments; positions with another number belong to none.

    Args:
        values: one number per position.
        segments: the number of the segment (a phrase, a sentence) each position belongs to.
        num_segments: how many there are.

    Returns:
        [..., segment], 0 for a segment without positions.

    Raises:
        ShapeError: values and segments differ in shape.
    """
    require_same_shape("sum_by_segment", values, segments, ("values", "segments"))
    inside = (segments >= 1) & (segments <= num_segments)
    number = torch.where(inside, segments, 0)
    sums = values.new_zeros(*values.shape[:-1], num_segments + 1)
    return sums.scatter_add(-1, number, torch.where(inside, values, 0.0))[..., 1:]

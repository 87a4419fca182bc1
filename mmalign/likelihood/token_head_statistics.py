"""Statistics of the next token from hidden states: divergences, entropy, concentration, without kept logits.

The same numbers as in `token_statistics.py`, whose functions need the logits of every position. Here a tile
of them exists at a time; all statistics of a call share it, in the forward and in the backward pass.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmalign.errors import ConfigError, ShapeError, explain, unknown_name
from mmalign.likelihood.head_tiles import (
    Gradients,
    Layer,
    compute_dtype,
    no_autocast,
    operand,
    require_chunk,
    tiles,
)
from mmalign.likelihood.token_head import TokenStates
from mmalign.likelihood.token_statistics import entropy_terms, surplus_terms

__all__ = ["HeadStatistic", "head_statistics"]

HeadStatistic = Literal["kl", "reverse_kl", "normalised_entropy", "log_sum_squares"]
"""kl: KL(reference || policy); reverse_kl: KL(policy || reference); normalised_entropy: in [0, 1];
log_sum_squares: log of the sum of squared probabilities."""

_NAMES: tuple[HeadStatistic, ...] = get_args(HeadStatistic)
_COMPARING = ("kl", "reverse_kl")

_Value = Callable[[Tensor, Tensor | None], Tensor]
_Slope = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def _kl(policy: Tensor, reference: Tensor | None) -> Tensor:
    return surplus_terms(_there(reference), policy).sum(1)


def _kl_slope(policy: Tensor, reference: Tensor | None, value: Tensor) -> Tensor:
    del value
    return policy.exp() - _there(reference).exp()


def _reverse_kl(policy: Tensor, reference: Tensor | None) -> Tensor:
    return surplus_terms(policy, _there(reference)).sum(1)


def _reverse_kl_slope(policy: Tensor, reference: Tensor | None, value: Tensor) -> Tensor:
    return surplus_terms(policy, _there(reference)) - policy.exp() * value


def _entropy(policy: Tensor, reference: Tensor | None) -> Tensor:
    del reference
    return -entropy_terms(policy).sum(1) / math.log(policy.shape[1])


def _entropy_slope(policy: Tensor, reference: Tensor | None, value: Tensor) -> Tensor:
    del reference
    return -entropy_terms(policy) / math.log(policy.shape[1]) - policy.exp() * value


def _log_sum_squares(policy: Tensor, reference: Tensor | None) -> Tensor:
    del reference
    return (2.0 * policy).logsumexp(1)


def _log_sum_squares_slope(policy: Tensor, reference: Tensor | None, value: Tensor) -> Tensor:
    del reference
    return 2.0 * ((2.0 * policy - value).exp() - policy.exp())


# Of every statistic: its value from log-softmaxes [row, vocabulary], and its derivative by the logits
# from those and the value [row, 1].
_STATISTICS: dict[str, tuple[_Value, _Slope]] = {
    "kl": (_kl, _kl_slope),
    "reverse_kl": (_reverse_kl, _reverse_kl_slope),
    "normalised_entropy": (_entropy, _entropy_slope),
    "log_sum_squares": (_log_sum_squares, _log_sum_squares_slope),
}


def _there(reference: Tensor | None) -> Tensor:
    if reference is None:  # refused before any tile is made
        raise ConfigError(explain("head_statistics", got="no reference", expected="states of the reference"))
    return reference


_Settings = tuple[float | None, float, torch.dtype]
"""Cap, scale and the dtype of the products, which the backward pass repeats."""


@dataclass(frozen=True)
class _Side:
    """One model's states and head, ready for tiles."""

    hidden: Tensor
    layer: Layer

    @classmethod
    def of(cls, settings: _Settings, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> "_Side":
        """The side whose settings these are."""
        softcap, scale, compute = settings
        return cls(operand(hidden.detach(), compute), Layer.of(weight, bias, softcap, scale, compute))

    def log_softmax(self, start: int, stop: int) -> Tensor:
        """Of the rows start ... stop, [row, vocabulary]."""
        return self.layer.logits(self.hidden[start:stop]).log_softmax(1)


def _settings(states: TokenStates) -> _Settings:
    head = states.head
    return head.softcap, head.scale, compute_dtype(states.hidden, head.weight)


class _Statistics(torch.autograd.Function):
    """Statistics [statistic, row]; keeps states, heads and its own result."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        policy: TokenStates,
        reference: TokenStates | None,
        names: tuple[str, ...],
        chunk: int | None,
    ) -> Tensor:
        ctx.names, ctx.chunk, ctx.own = names, chunk, _settings(policy)
        ctx.other = None if reference is None else _settings(reference)
        other = (
            ()
            if reference is None
            else (reference.hidden.detach(), reference.head.weight, reference.head.bias)
        )
        with no_autocast(hidden.device):
            own = _Side.of(ctx.own, hidden, weight, bias)
            compared = _Side.of(ctx.other, *other) if other else None
            values = torch.empty(
                len(names), hidden.shape[0], dtype=own.layer.wide_dtype, device=hidden.device
            )
            for start, stop in tiles(hidden.shape[0], weight.shape[0], chunk):
                shares = own.log_softmax(start, stop)
                beside = None if compared is None else compared.log_softmax(start, stop)
                for row, name in enumerate(names):
                    values[row, start:stop] = _STATISTICS[name][0](shares, beside)
        ctx.save_for_backward(hidden, weight, bias, values, *other)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        hidden, weight, bias, values, *other = ctx.saved_tensors
        with no_autocast(hidden.device):
            own = _Side.of(ctx.own, hidden, weight, bias)
            compared = _Side.of(ctx.other, *other) if other else None
            collected = Gradients(ctx.needs_input_grad[:3], own.hidden, own.layer)
            for start, stop in tiles(hidden.shape[0], weight.shape[0], ctx.chunk):
                logits = own.layer.logits(own.hidden[start:stop])
                shares = logits.log_softmax(1)
                beside = None if compared is None else compared.log_softmax(start, stop)
                slope = torch.zeros_like(logits)
                for row, name in enumerate(ctx.names):
                    value = values[row, start:stop].unsqueeze(1)
                    slope += _STATISTICS[name][1](shares, beside, value) * given[row, start:stop].unsqueeze(1)
                collected.add(start, stop, own.layer.before_cap(slope, logits))
        return *collected.as_given(hidden, weight, bias), None, None, None, None


def head_statistics(
    policy: TokenStates,
    reference: TokenStates | None = None,
    *,
    wants: Collection[str],
    chunk: int | None = None,
) -> dict[str, Float[Tensor, " scored"]]:
    """Statistics of the next token at every scored position, with gradient to the policy alone.

    kl: KL(reference || policy) = sum over tokens v of q(v) * (log q(v) - log p(v))
    reverse_kl: KL(policy || reference) = sum over tokens v of p(v) * (log p(v) - log q(v))
    normalised_entropy: -sum over v of p(v) * log p(v), divided by log(vocabulary)
    log_sum_squares: log of the sum over v of p(v)^2

    p are probabilities of the policy, q of the reference. The head's rounding, softmax and autocast rules are
    those of `head_log_probs`.

    Args:
        policy: states and head of the policy.
        reference: of the reference, at the same positions; may be left out where nothing is compared.
        wants: which statistics: names of `HeadStatistic`.
        chunk: states looked at together; None chooses about 128 MiB of float32 logits per model.

    Returns:
        One number per position by name, in the order of `wants`: float32, or float64 from float64 states.

    Raises:
        UnknownNameError: no such statistic.
        ConfigError: a divergence without a reference, or a chunk below 1.
        ShapeError: other positions or another vocabulary than the reference's, or entropy of a single token.
    """
    require_chunk("head_statistics", chunk)
    names = tuple(wants)
    for name in names:
        if name not in _NAMES:
            raise unknown_name("head statistic", name, _NAMES)
    if not names:
        return {}
    compares = any(name in _COMPARING for name in names)
    _check(policy, reference, compares=compares)
    if "normalised_entropy" in names and policy.head.num_tokens < 2:
        message = explain(
            "head_statistics normalised_entropy",
            got=f"{policy.head.num_tokens} tokens",
            expected="a vocabulary of at least 2",
        )
        raise ShapeError(message)
    head = policy.head
    values = _Statistics.apply(
        policy.hidden, head.weight, head.bias, policy, reference if compares else None, names, chunk
    )
    return {name: values[row] for row, name in enumerate(names)}


def _check(policy: TokenStates, reference: TokenStates | None, *, compares: bool) -> None:
    """Refuse a comparison with nothing, or with states of other positions."""
    if not compares:
        return
    if reference is None:
        message = explain(
            "head_statistics",
            got="a divergence without a reference",
            expected="the reference's states",
            do="Evaluate the reference with keep_prediction=True; stored references keep no states.",
        )
        raise ConfigError(message)
    own = (policy.hidden.shape[0], policy.head.num_tokens)
    other = (reference.hidden.shape[0], reference.head.num_tokens)
    if own != other:
        message = explain(
            "head_statistics reference",
            got=f"{other[0]} positions over {other[1]} tokens",
            expected=f"{own[0]} positions over {own[1]} tokens, the policy's",
        )
        raise ShapeError(message)

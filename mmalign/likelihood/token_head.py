"""The last layer of a language model, from hidden states to log-probabilities, without keeping its logits.

    logits = cap(scale * (hidden @ weight.T + bias)),    cap(x) = softcap * tanh(x / softcap), or x

Logits of a thousand tokens fill 0.6 GB at a vocabulary of 152k. Here they exist for one tile of rows at a
time, in float32 (float64), and again in the backward pass, which computes them anew from what it kept: the
hidden states, the head and one number per row. A frozen head gets no gradient at all.

Products of half-precision operands are summed and kept in float32. A model's own head would round every logit
to half precision first, which costs two digits of a log-probability.
"""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmalign.errors import ConfigError, ShapeError, explain

__all__ = ["TokenHead", "TokenStates", "head_log_probs", "token_head"]

_TILE_ELEMENTS = 2**25
"""Logits looked at together: 128 MiB in float32, 220 rows at a vocabulary of 152k."""

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TokenHead:
    """The last linear layer of a language model.

    Args:
        weight: of the layer; a tied embedding serves as well.
        bias: of the layer.
        softcap: logits are bent into (-softcap, softcap) by `softcap * tanh(x / softcap)` (Gemma 2).
        scale: factor of the logits, before the cap (Cohere, Granite: 1 / `logits_scaling`).

    Raises:
        ConfigError: a cap that is not positive, or a scale of 0.
        ShapeError: the bias does not fit the weight.
    """

    weight: Float[Tensor, "vocabulary feature"]
    bias: Float[Tensor, " vocabulary"] | None = None
    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Numbers that would make every log-probability meaningless are refused here."""
        if self.softcap is not None and not self.softcap > 0:
            raise ConfigError(
                explain("TokenHead softcap", got=self.softcap, expected="a number > 0, or None")
            )
        if self.scale == 0:
            raise ConfigError(explain("TokenHead scale", got=self.scale, expected="a number that is not 0"))
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            message = explain(
                "TokenHead bias",
                got=list(self.bias.shape),
                expected=f"[{self.weight.shape[0]}], one per token",
            )
            raise ShapeError(message)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class TokenStates:
    """What a language model knows at the positions that score tokens.

    Args:
        hidden: the state before each scored token, after the last norm.
        head: turns it into log-probabilities.

    Raises:
        ShapeError: the states do not fit the head.
    """

    hidden: Float[Tensor, "scored feature"]
    head: TokenHead

    def __post_init__(self) -> None:
        """A hidden size that differs is found here and not in a matrix product."""
        if self.hidden.ndim != 2 or self.hidden.shape[1] != self.head.weight.shape[1]:
            message = explain(
                "TokenStates hidden",
                got=list(self.hidden.shape),
                expected=f"[scored, {self.head.weight.shape[1]}], the features of the head",
            )
            raise ShapeError(message)


def token_head(module: nn.Module, *, softcap: float | None = None, scale: float = 1.0) -> TokenHead:
    """The head of a model's output layer, sharing its weights.

    Args:
        module: `model.get_output_embeddings()`.
        softcap: as in `TokenHead`.
        scale: as in `TokenHead`.

    Raises:
        ConfigError: the layer is not a plain linear one: adapted, quantised, replaced or offloaded.
    """
    weight = getattr(module, "weight", None)
    problem = ""
    if hasattr(module, "base_layer") or hasattr(module, "modules_to_save"):
        problem = "a layer with an adapter"
    elif not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        problem = f"a layer of type {type(module).__name__}"
    elif not isinstance(weight, Tensor) or not weight.is_floating_point():
        problem = "a quantised layer"
    elif weight.is_meta:
        problem = "a layer without its weights (offloaded, or not loaded)"
    if problem:
        message = explain(
            "output layer of the language model",
            got=problem,
            expected="a plain torch.nn.Linear: its weights are read here without calling it",
            do="Leave lm_head out of the adapter's targets, of quantisation and of offloading.",
        )
        raise ConfigError(message)
    layer = cast(nn.Linear, module)
    return TokenHead(layer.weight, layer.bias, softcap, scale)


@dataclass(frozen=True)
class Layer:
    """A head as the tiles compute with it: operands in one dtype, logits in float32 or wider.

    Made by `of`; `compute` must be that of the forward pass when the backward pass makes it again.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float

    @classmethod
    def of(
        cls, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float, compute: torch.dtype
    ) -> "Layer":
        """The head with its weight in the dtype of the products and its bias wide."""
        weight = operand(weight.detach(), compute)
        return cls(weight, None if bias is None else bias.detach().to(_wide(compute)), softcap, scale)

    @property
    def wide_dtype(self) -> torch.dtype:
        """Of the logits and all that is computed from them."""
        return _wide(self.weight.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """New wide logits [row, vocabulary] of a tile of operands [row, feature]."""
        logits = _product(hidden, self.weight.t())
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def before_cap(self, slope: Tensor, logits: Tensor) -> Tensor:
        """`slope`, in place, from a derivative by the logits to one by the product plus bias."""
        if self.softcap is not None:
            slope *= 1.0 - (logits / self.softcap).square()
        if self.scale != 1.0:
            slope *= self.scale
        return slope


class Gradients:
    """Gradients to hidden states and head, collected tile by tile; only the wanted ones exist.

    Args:
        wanted: whether hidden, weight and bias need theirs.
        hidden: the hidden states, as operands.
        layer: the head.
    """

    def __init__(self, wanted: tuple[bool, bool, bool], hidden: Tensor, layer: Layer) -> None:
        self._operand, self._layer = hidden, layer

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=hidden.device, dtype=layer.wide_dtype)

        self.hidden = zeros(*hidden.shape) if wanted[0] else None
        self.weight = zeros(*layer.weight.shape) if wanted[1] else None
        self.bias = zeros(layer.weight.shape[0]) if wanted[2] else None

    def add(self, start: int, stop: int, slope: Tensor) -> None:
        """Take in the derivative of rows start ... stop by the product plus bias, [row, vocabulary]."""
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = slope.to(self._operand.dtype)
        if self.hidden is not None:
            self.hidden[start:stop] = _product(slope, self._layer.weight)
        if self.weight is not None and slope.dtype == self.weight.dtype:
            self.weight.addmm_(slope.t(), self._operand[start:stop])
        elif self.weight is not None:
            self.weight += _product(slope.t(), self._operand[start:stop])

    def as_given(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients in the dtypes of the tensors they belong to."""
        return (
            None if self.hidden is None else self.hidden.to(hidden.dtype),
            None if self.weight is None else self.weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which states and head are multiplied: autocast's where it is on, else the wider one."""
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    kind = hidden.device.type
    if wider != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return wider


def operand(value: Tensor, compute: torch.dtype) -> Tensor:
    """`value` rounded to the dtype of the products, in a dtype whose products can be kept wide there."""
    value = value.to(compute)
    return value if _keeps_wide(value) else value.to(torch.float32)


def _keeps_wide(value: Tensor) -> bool:
    """Whether a product of such operands can come out in float32: cuBLAS does that for half precision."""
    if value.dtype not in _HALF:
        return True
    return value.is_cuda and torch.version.hip is None


def _product(first: Tensor, second: Tensor) -> Tensor:
    if first.dtype in _HALF:
        return torch.mm(first, second, out_dtype=torch.float32)
    return torch.mm(first, second)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def tiles(rows: int, vocabulary: int, chunk: int | None) -> list[tuple[int, int]]:
    """(Start, stop) of every tile of rows."""
    size = max(1, _TILE_ELEMENTS // max(vocabulary, 1)) if chunk is None else chunk
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def require_chunk(where: str, chunk: int | None) -> None:
    """Raise `ConfigError` unless a tile holds at least one row."""
    if chunk is not None and chunk < 1:
        raise ConfigError(explain(f"{where} chunk", got=chunk, expected="a number of tokens >= 1, or None"))


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context in which products are what the operands say."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


class _Selected(torch.autograd.Function):
    """Log-probability of one token per hidden state; keeps the states, the head and one number per row."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        softcap: float | None,
        scale: float,
        chunk: int | None,
    ) -> Tensor:
        compute = compute_dtype(hidden, weight)
        ctx.settings, ctx.chunk = (softcap, scale, compute), chunk
        with no_autocast(hidden.device):
            layer = Layer.of(weight, bias, softcap, scale, compute)
            operands = operand(hidden, compute)
            values = torch.empty(hidden.shape[0], dtype=layer.wide_dtype, device=hidden.device)
            normaliser = torch.empty_like(values)
            for start, stop in tiles(hidden.shape[0], weight.shape[0], chunk):
                logits = layer.logits(operands[start:stop])
                largest = logits.amax(1, keepdim=True)
                # In the place of the logits: a tile is never held twice. Less the largest before anything
                # else, or a likely token among large logits would lose its last digits.
                logits -= largest
                taken = logits.gather(1, tokens[start:stop].unsqueeze(1)).squeeze(1)
                log_sum = logits.exp_().sum(1).log_()
                values[start:stop] = taken - log_sum
                normaliser[start:stop] = log_sum + largest.squeeze(1)
        ctx.save_for_backward(hidden, weight, bias, tokens, normaliser)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        hidden, weight, bias, tokens, normaliser = ctx.saved_tensors
        with no_autocast(hidden.device):
            layer = Layer.of(weight, bias, *ctx.settings)
            operands = operand(hidden, ctx.settings[2])
            collected = Gradients(ctx.needs_input_grad[:3], operands, layer)
            for start, stop in tiles(hidden.shape[0], weight.shape[0], ctx.chunk):
                logits = layer.logits(operands[start:stop])
                share = given[start:stop].to(logits.dtype).unsqueeze(1)
                capped = logits.clone() if layer.softcap is not None else logits
                slope = logits.sub_(normaliser[start:stop].unsqueeze(1)).exp_().mul_(-share)
                slope.scatter_add_(1, tokens[start:stop].unsqueeze(1), share)
                collected.add(start, stop, layer.before_cap(slope, capped))
        return *collected.as_given(hidden, weight, bias), None, None, None, None


def head_log_probs(
    hidden: Float[Tensor, "scored feature"],
    head: TokenHead,
    tokens: Int[Tensor, " scored"],
    *,
    chunk: int | None = None,
) -> Float[Tensor, " scored"]:
    """Log-probability of one token after each hidden state.

    log_probs[i] = log softmax(cap(scale * (hidden[i] @ weight.T + bias)))[tokens[i]]

    Inside autocast states and head are rounded as the model's own head would round them; products, softmax
    and result stay float32. Outside, operands of two dtypes are multiplied in the wider.

    Args:
        hidden: the state before each token, after the last norm.
        head: the output layer. Its weight and bias get gradients only if they require them.
        tokens: ids in [0, vocabulary), on the device of the states.
        chunk: states looked at together; None chooses about 128 MiB of float32 logits.

    Returns:
        Nats <= 0, float32 (float64 from float64 states or weights), also for half-precision states.

    Raises:
        ShapeError: another number of tokens than states, or features than the head's.
        ConfigError: a chunk below 1.
    """
    require_chunk("head_log_probs", chunk)
    states = TokenStates(hidden, head)
    if tokens.shape != hidden.shape[:1]:
        message = explain(
            "head_log_probs tokens",
            got=list(tokens.shape),
            expected=f"[{hidden.shape[0]}], one per hidden state",
        )
        raise ShapeError(message)
    if tokens.device.type == "cpu" and tokens.numel():  # elsewhere the look would wait for the device
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= head.num_tokens:
            message = explain(
                "head_log_probs tokens",
                got=low if low < 0 else high,
                expected=f"ids from 0 to {head.num_tokens - 1}",
                do="Does the tokenizer belong to this model?",
            )
            raise ShapeError(message)
    values: Tensor = _Selected.apply(
        states.hidden, head.weight, head.bias, tokens, head.softcap, head.scale, chunk
    )
    return values

"""Tiles of logits of a language model's last layer: made, differentiated and dropped one after another.

Shared by the log-probabilities and the statistics of next tokens. Operands are in one dtype; logits and all
that is computed from them are float32, or float64.
"""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.errors import ConfigError, explain

__all__ = ["Gradients", "Layer", "compute_dtype", "no_autocast", "operand", "require_chunk", "tiles"]

_TILE_ELEMENTS = 2**25
"""Logits looked at together: 128 MiB in float32, 220 rows at a vocabulary of 152k."""

_HALF = (torch.float16, torch.bfloat16)


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

"""Numbers of a device that is not there, where they follow from what the host sent: sizes, ids, masks.

Code of models looks at such numbers: grids of pictures, placeholders among token ids. They are kept beside a
fake tensor on the CPU, and small operations on nothing but such tensors are computed there, too.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["follow", "value_of"]

_VALUE = "_mmalign_value"
_LARGEST = 2**18
"""Numbers of a tensor whose values are followed."""

_MOVES = frozenset(
    f"aten::{name}"
    for name in (
        *("_to_copy", "view", "_unsafe_view", "slice", "select", "alias", "detach", "squeeze", "unsqueeze"),
        *("permute", "clone", "eq", "ne", "expand", "unbind", "split"),
    )
)
"""What is followed of numbers that are no integers; products of them would be the network itself."""

_TRUE_UNLESS_KNOWN = ("aten::all", "aten::_is_all_true")
"""Hosts ask whether all are fine."""


def value_of(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What the host is given of a tensor of the device: its numbers where they are known, else zeros.

    Zeros take memory where they are written to.
    """
    shape, kind = tuple(tensor.shape), dtype or tensor.dtype
    known: Tensor | None = getattr(tensor, _VALUE, None)
    with unset_fake_temporarily():
        if known is not None:
            return known.to(kind, copy=True)
        if math.prod(shape) == 0:
            return torch.empty(shape, dtype=kind)
        return torch.from_numpy(np.zeros(math.prod(shape) * kind.itemsize, np.uint8)).view(kind).view(shape)


def follow(func: Any, args: tuple[Any, ...], given: dict[str, Any], result: Any) -> None:
    """Keep the numbers of an operation's results, where those of its inputs are known.

    Args:
        func: operation.
        args: its positional arguments.
        given: its keyword arguments.
        result: what it gave on fake tensors.
    """
    name = func._schema.name
    inputs = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
    changed = [one for one in tree_leaves(result) if isinstance(one, FakeTensor)]
    wanted = _are_followed(name, inputs, changed)
    if not wanted:
        for one in changed if func._schema.is_mutable else ():
            one.__dict__.pop(_VALUE, None)
        if name in _TRUE_UNLESS_KNOWN:
            setattr(result, _VALUE, _true(tuple(result.shape)))
        return
    named = {key: value for key, value in given.items() if key not in ("device", "pin_memory", "layout")}
    if "device" in given:
        named["device"] = torch.device("cpu")
    with unset_fake_temporarily():
        known = func(*tree_map(_known, args), **tree_map(_known, named))
    for one, value in zip(tree_leaves(result), tree_leaves(known), strict=True):
        if isinstance(one, FakeTensor):
            setattr(one, _VALUE, value)


def _true(shape: tuple[int, ...]) -> Tensor:
    with unset_fake_temporarily():
        return torch.ones(shape, dtype=torch.bool)


def _known(value: Any) -> Any:
    return getattr(value, _VALUE) if isinstance(value, FakeTensor) else value


def _are_followed(name: str, inputs: list[Tensor], results: list[FakeTensor]) -> bool:
    """Whether an operation is small, exact, and of known numbers alone."""
    if any(isinstance(one, FakeTensor) and not hasattr(one, _VALUE) for one in inputs):
        return False
    if any(isinstance(one, torch.nn.Parameter) for one in inputs):
        return False
    if not all(one.numel() <= _LARGEST for one in (*inputs, *results)) or not results:
        return False
    draws = "rand" in name or "normal" in name or "uniform" in name or "empty" in name
    whole = all(not one.dtype.is_floating_point for one in inputs)
    return not draws and (whole or name in _MOVES)

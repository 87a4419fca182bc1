"""Activations that are computed again in the backward pass: all of a block's, or those that cost little.

Between a matrix product and the next, blocks do norms, activations, sums and casts. Computing those again
costs no products; keeping them costs most of the memory. Selective recomputation keeps what products,
convolutions and attention gave, and computes the rest again (arXiv 2205.05198, section 4, has the idea for
attention; torch's `create_selective_checkpoint_contexts` carries it out).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint

from mmalign.errors import ConfigError, explain

__all__ = [
    "KEPT_FROM",
    "Recomputed",
    "is_compiled",
    "is_kept",
    "kept_results",
    "recompute_layers",
    "recompute_network",
    "recompute_selectively",
    "recomputed",
    "selective_contexts",
]

Recomputed = bool | Literal["selective"]
"""`model.gradient_checkpointing`: nothing, everything inside of blocks, or what costs little."""

KEPT_FROM = 256
"""Multiplications and additions that a number of a result must have cost to be kept.

A product over 128 values is the smallest that is kept: above the ranks of adapters, whose results are as
large as those of the layer they are on and cost a hundredth of it, and below the width of any layer.
"""

_SAVE = torch_checkpoint.CheckpointPolicy.MUST_SAVE
_AGAIN = torch_checkpoint.CheckpointPolicy.PREFER_RECOMPUTE


def _inner(place: int, axis: int) -> Callable[[Sequence[Any]], float]:
    """FLOPs per number of a product over one axis of an argument."""
    return lambda arguments: 2.0 * int(arguments[place].shape[axis])


def _of_filter(arguments: Sequence[Any]) -> float:
    return 2.0 * int(arguments[1][0].numel())


def _always(_: Sequence[Any]) -> float:
    return float("inf")


_COSTS: dict[str, Callable[[Sequence[Any]], float]] = {
    "aten::mm": _inner(0, -1),
    "aten::addmm": _inner(1, -1),
    "aten::bmm": _inner(0, -1),
    "aten::baddbmm": _inner(1, -1),
    "aten::linear": _inner(0, -1),
    "aten::convolution": _of_filter,
}
"""FLOPs per number of the result, from the arguments."""


@cache
def _cost_of(operation: Any) -> Callable[[Sequence[Any]], float] | None:
    """What an operation's numbers cost; None: no product."""
    name = operation._schema.name
    # The fused kernels have many names: aten's, xformers', those of flash-attn.
    is_fused = ("attention" in name or "flash_attn" in name) and "backward" not in name
    return _always if is_fused else _COSTS.get(name)


def is_kept(operation: Any, arguments: Sequence[Any]) -> bool:
    """Whether selective recomputation keeps the result of an operation.

    Args:
        operation: of torch's dispatcher.
        arguments: positional ones.
    """
    cost = _cost_of(operation)
    return cost is not None and cost(arguments) >= KEPT_FROM


def _policy(_: Any, operation: Any, *arguments: Any, **__: Any) -> torch_checkpoint.CheckpointPolicy:
    return _SAVE if is_kept(operation, arguments) else _AGAIN


def selective_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What `torch.utils.checkpoint.checkpoint(context_fn=...)` asks for: of both forward passes."""
    made: Any = torch_checkpoint.create_selective_checkpoint_contexts(_policy)
    return made[0], made[1]


def recomputed(kind: Recomputed, function: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """`function(*inputs, **named)`, its activations computed again in the backward pass; never reentrant.

    Args:
        kind: everything, or selectively.
        function: of a block.
        inputs: its arguments.
        named: its keyword arguments.
    """
    # The names are looked up at every call: the planner puts a counting function in torch's place.
    if kind != "selective":
        return torch_checkpoint.checkpoint(function, *inputs, use_reentrant=False, **named)
    if torch.compiler.is_compiling() or is_compiled(function):
        # The compiler's own partitioner decides what is computed again, and dispatch modes see nothing of it.
        return function(*inputs, **named)
    return torch_checkpoint.checkpoint(
        function, *inputs, use_reentrant=False, context_fn=selective_contexts, **named
    )


def is_compiled(function: Any) -> bool:
    """Whether a block, or a method of one, has been compiled in place."""
    block = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return getattr(block, "_compiled_call_impl", None) is not None


def recompute_selectively(function: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """As diffusers' and transformers' blocks call what recomputes them."""
    return recomputed("selective", function, *inputs, **named)


def recompute_network(network: Any, kind: Recomputed = True) -> int:
    """Recompute activations of a network of diffusers. Returns how many blocks do so.

    Args:
        network: changed in place.
        kind: everything, or selectively.

    Raises:
        ConfigError: the network has no checkpointed blocks.
    """
    if kind == "selective":
        network.enable_gradient_checkpointing(recompute_selectively)
    else:
        network.enable_gradient_checkpointing()  # non-reentrant is diffusers' default
    blocks = sum(bool(getattr(module, "gradient_checkpointing", False)) for module in network.modules())
    if blocks == 1 and getattr(network, "gradient_checkpointing", False):
        # A transformer recomputes its blocks itself, from one switch.
        blocks = sum(len(part) for part in network.children() if isinstance(part, nn.ModuleList))
    if blocks == 0:
        message = explain(
            "model.gradient_checkpointing",
            got=type(network).__name__,
            expected="a network with checkpointed blocks",
            do="Set model.gradient_checkpointing: false.",
        )
        raise ConfigError(message)
    return blocks


def recompute_layers(model: Any, kind: Recomputed = True) -> int:
    """Recompute activations of every layer of a model of transformers; returns how many layers do.

    Layers do so in training mode only, and that mode would switch dropout on. It is set on the layers
    themselves, not on what they are made of.

    Args:
        model: changed in place.
        kind: everything, or selectively.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    keywords = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=keywords)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True
        if kind == "selective":
            layer._gradient_checkpointing_func = recompute_selectively
    return len(layers)


def kept_results(
    keep: Callable[[Tensor], object],
) -> AbstractContextManager[Any]:
    """A context in which `keep` is told of every result that selective recomputation keeps."""
    return _KeptResults(keep)


class _KeptResults(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, keep: Callable[[Tensor], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._keep = keep

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_kept(func, args):
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    self._keep(tensor)
        return result

"""What autograd keeps for the backward pass, counted on shapes."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.train.planning.shapes_only import Narrowed, fused_attention, recomputed_blocks

__all__ = ["Activations", "count_activations", "saved_activation_bytes"]


@dataclass(frozen=True)
class Activations:
    """What a backward pass needs besides weights, in bytes.

    Args:
        kept: from the forward pass on.
        recomputed: of the largest recomputed block, on top of it, while that block's turn lasts.
    """

    kept: int
    recomputed: int = 0


def saved_activation_bytes(network: nn.Module, forward: Callable[[nn.Module], Float[Tensor, "..."]]) -> int:
    """Bytes autograd keeps for the backward pass of `forward`, counted without computing anything.

    Args:
        network: its parameters give shapes and dtypes; nothing is copied.
        forward: calls the network it is given (a stand-in on the meta device) on meta inputs.
    """
    return count_activations(network, forward, with_blocks=False).kept


def count_activations(
    network: nn.Module,
    forward: Callable[[nn.Module], Float[Tensor, "..."]],
    *,
    with_blocks: bool = True,
    autocast: torch.dtype | None = None,
) -> Activations:
    """As `saved_activation_bytes`, recomputed blocks apart.

    Args:
        network: as there.
        forward: as there.
        with_blocks: count the insides of recomputed blocks, too; each is called twice then.
        autocast: of matrix products and convolutions; autocast itself leaves the meta device alone.
    """
    # Buffers that are not saved (PixArt's positions) are in no state dictionary.
    placed = {**network.state_dict(keep_vars=True), **dict(network.named_buffers())}
    # One stand-in per tensor: a head may be tied to the embedding.
    stand_ins = {id(value): torch.empty_like(value, device="meta") for value in placed.values()}
    own = {name: stand_ins[id(value)] for name, value in placed.items()}
    for name, value in network.named_parameters():
        own[name].requires_grad_(value.requires_grad)
    held = _Held({value.untyped_storage()._cdata for value in own.values()})
    largest, inner = [0], list[_Held]()

    def keep(tensor: Tensor) -> None:
        # Kept by selective recomputation: beside what is computed again, or not a part of that.
        if not inner:
            held.keep(tensor)
        else:
            inner[-1].know(tensor)

    def blocked(function: Callable[..., object], inputs: tuple[object, ...], named: dict[str, Any]) -> None:
        for value in inputs:
            if isinstance(value, Tensor):
                held.keep(value)
        if with_blocks:
            inside = _Held(held.known | set(held.sizes))
            inner.append(inside)
            with inside.counting():
                result = function(*inputs, **named)
            del result
            inner.pop()
            largest[0] = max(largest[0], sum(inside.sizes.values()))

    class _OnMeta(nn.Module):
        def forward(self, *args: object, **kwargs: object) -> object:
            return torch.func.functional_call(network, own, args, kwargs)

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            """The stand-ins, for callers that look at a weight's dtype."""
            del recurse
            return iter(cast("list[nn.Parameter]", [own[name] for name, _ in network.named_parameters()]))

    narrow = contextlib.nullcontext() if autocast is None else Narrowed(autocast)
    blocks = recomputed_blocks(network, blocked, keep=keep)
    with blocks, fused_attention(), narrow, held.counting():
        forward(_OnMeta())
    return Activations(sum(held.sizes.values()), largest[0])


class _Held:
    """Storages that autograd holds, each once.

    Args:
        known: addresses of storages that are there anyway.
    """

    def __init__(self, known: set[int]) -> None:
        self.known = known
        self.sizes: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def keep(self, tensor: Tensor) -> Tensor:
        """Count it."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.sizes[storage._cdata] = storage.nbytes()
        self._alive.append(tensor)  # so that no two storages share an address
        return tensor

    def know(self, tensor: Tensor) -> None:
        """Leave it out from now on."""
        self.known.add(tensor.untyped_storage()._cdata)
        self._alive.append(tensor)

    def counting(self) -> contextlib.AbstractContextManager[None]:
        """What autograd saves meanwhile is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self.keep, lambda held: held)

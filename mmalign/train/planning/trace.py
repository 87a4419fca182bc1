"""A forward and a backward pass played through on shapes: its highest memory, arithmetic, traffic, kernels.

Every tensor that the pass makes is born and dies on the meta device as it would on a card, so the highest sum
of living tensors is the highest memory, with gradients, recomputed blocks, casts and temporaries in it. Every
operation is noted with its products and the bytes it reads and writes. Workspaces of libraries and what an
allocator loses between blocks are no tensors and are not seen.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mmalign.train.planning.shapes_only import Narrowed, fused_attention, recomputed_blocks

__all__ = ["Kernel", "Pass", "Trace", "trace_pass"]

Kind = Literal["activations", "casts", "gradients", "working"]

ATTENTION_BACKWARD = 2.5
"""Products of the backward pass of fused attention over those of its forward: scores are computed again."""

Moment = Literal["forward", "backward"]
MOMENTS: tuple[Moment, ...] = ("forward", "backward")

Work = Literal["product", "convolution", "volume", "attention", "elementwise"]


class Kernel(NamedTuple):
    """One operation on the device.

    Args:
        flops: multiplications and additions of its matrix products; 0 of elementwise work.
        moved: bytes it reads and writes, at least.
        half: whether its products are of 16-bit numbers.
        moment: of the pass.
        kind: of its work; a volume is a convolution over three axes. Without products it is elementwise.
        scores: of an attention, each of them an exponential; else 0.
    """

    flops: int
    moved: int
    half: bool
    moment: Moment
    kind: Work = "product"
    scores: int = 0


@dataclass(frozen=True)
class Pass:
    """What a pass needs and does.

    Args:
        peak: bytes of tensors that the pass makes, at their highest; weights and inputs are not among them.
        parts: the peak by kind: activations (kept for the backward pass), casts (of trained weights),
            gradients, working (temporaries, recomputed blocks, gradients of activations).
        beside: the highest without gradients, for passes that add to gradients which are there already.
        beside_parts: that by kind.
        kept: bytes that live on between forward and backward pass.
        kernels: in order.
    """

    peak: int
    parts: Mapping[str, int]
    beside: int
    beside_parts: Mapping[str, int]
    kept: int
    kernels: tuple[Kernel, ...]

    @cached_property
    def flops(self) -> int:
        """Of all matrix products, those of recomputation among them."""
        return sum(kernel.flops for kernel in self.kernels)

    @cached_property
    def moved(self) -> int:
        """Bytes read and written by all operations, were each read from memory."""
        return sum(kernel.moved for kernel in self.kernels)

    def flops_of(self, moment: Moment) -> int:
        """Of the forward or the backward pass; recomputation is a part of the latter."""
        return sum(kernel.flops for kernel in self.kernels if kernel.moment == moment)

    def count_of(self, moment: Moment) -> int:
        """Operations of the forward or the backward pass."""
        return sum(kernel.moment == moment for kernel in self.kernels)


class Trace(TorchDispatchMode):
    """Follows every tensor that is made while it is on, and every operation.

    Args:
        known: tensors that are there anyway: weights, inputs.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.moment: Moment = "forward"
        self.kernels: list[Kernel] = []
        self.live = self.peak = self.beside = 0
        self.by_kind: dict[str, int] = dict.fromkeys(("activations", "casts", "gradients", "working"), 0)
        self.at_peak, self.at_beside = dict(self.by_kind), dict(self.by_kind)
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive = known
        self._storages: dict[int, tuple[int, Kind, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        inputs = _tensors([*args, *named.values()])
        outputs = _tensors([result])
        fresh = [tensor for tensor in outputs if self._born(tensor)]
        works = bool(fresh) or func._schema.is_mutable
        if works and not func._schema.name.startswith(_NO_WORK):
            formula = flop_registry.get(func._overloadpacket)
            flops = 0 if formula is None else int(formula(*args, **named, out_val=result))
            half = bool(inputs) and any(value.dtype in _HALF for value in inputs)
            moved = sum(map(_bytes, inputs)) + sum(map(_bytes, fresh or outputs))
            self.kernels.append(Kernel(flops, moved, half, self.moment, _work_of(func, flops, inputs)))
        return result

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *, is_backward: bool) -> None:
        """Note a fused attention: two products of all queries with all keys."""
        scores = query[..., 0].numel() * key.shape[-2]
        products = 2 * scores * (query.shape[-1] + value.shape[-1])
        flops = int(products * ATTENTION_BACKWARD) if is_backward else products
        moved = sum(map(_bytes, (query, key, value, query))) * (2 if is_backward else 1)
        half = query.dtype in _HALF
        self.kernels.append(Kernel(flops, moved, half, self.moment, "attention", scores))

    def mark(self, tensor: Tensor, kind: Kind) -> Tensor:
        """Say what a tensor is; the first word counts."""
        place = tensor.untyped_storage()._cdata
        held = self._storages.get(place)
        if held is not None and held[1] == "working":
            self._storages[place] = (held[0], kind, held[2])
            self.by_kind["working"] -= held[0]
            self.by_kind[kind] += held[0]
            # What was new and nameless a moment ago, when the highest was noted, has its name now.
            if self.live == self.peak:
                self.at_peak = dict(self.by_kind)
            if self.live == self.beside and kind != "gradients":
                self.at_beside = dict(self.by_kind)
        return tensor

    def _born(self, tensor: Tensor) -> bool:
        """Whether a tensor has memory of its own that is new."""
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known or place in self._storages:
            return False
        size = storage.nbytes()
        self._storages[place] = (size, "working", weakref.ref(storage, partial(self._died, place)))
        self.live += size
        self.by_kind["working"] += size
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, dict(self.by_kind)
        beside = self.live - self.by_kind["gradients"]
        if beside > self.beside:
            self.beside, self.at_beside = beside, {**self.by_kind, "gradients": 0}
        return True

    def _died(self, place: int, _: object) -> None:
        size, kind, _ = self._storages.pop(place)
        self.live -= size
        self.by_kind[kind] -= size


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values and lists of values."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")
_HALF = (torch.bfloat16, torch.float16)
_NO_WORK = ("aten::empty", "aten::new_empty", "aten::detach", "aten::set_", "aten::resize_")


def _work_of(func: Any, flops: int, inputs: list[Tensor]) -> Work:
    """What kind of work an operation is."""
    if flops == 0:
        return "elementwise"
    if func._schema.name not in _CONVOLUTIONS:
        return "product"
    return "volume" if inputs[0].ndim == 5 else "convolution"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def trace_pass(
    network: nn.Module,
    forward: Callable[[nn.Module], Tensor],
    *,
    is_trained: bool = True,
    autocast: torch.dtype | None = None,
    device_type: str = "cpu",
    keeps_casts: bool = True,
) -> Pass:
    """Play a pass through. Returns what it needs and does.

    Args:
        network: on the meta device; what requires gradients is trained.
        forward: calls it on meta inputs.
        is_trained: with a backward pass of the sum of the squared result; False: without gradients at all.
        autocast: dtype of matrix products and convolutions; None: as the tensors are.
        device_type: whose rules autocast follows.
        keeps_casts: autocast keeps its casts of trained weights until the forward pass ends.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    trace = Trace([*network.parameters(), *network.buffers()])

    def narrowed(*, cached: bool) -> contextlib.AbstractContextManager[object]:
        if autocast is None:
            return contextlib.nullcontext()
        return Narrowed(autocast, device_type, on_cast=lambda cast: trace.mark(cast, "casts"), cached=cached)

    def again() -> contextlib.AbstractContextManager[object]:
        # Autograd's engine switches modes of functions off; blocks that it calls bring theirs.
        return contextlib.nullcontext() if trace.moment == "forward" else narrowed(cached=False)

    hooks = _marking(trace, trained if is_trained else [])
    grows = torch.enable_grad() if is_trained else torch.no_grad()
    wide = autocast if device_type == "cuda" else None
    try:
        with hooks, fused_attention(trace.attention, narrow=wide), trace, grows:
            blocks = recomputed_blocks(network, _inputs_marked(trace), again, keep=_kept_by_choice(trace))
            with blocks, narrowed(cached=keeps_casts):
                result = forward(network)
            kept = trace.live
            if is_trained:
                loss = result.to(torch.float32).square().sum()
                del result
                trace.moment = "backward"
                loss.backward()
    finally:
        for parameter in trained:
            parameter.grad = None
    return Pass(
        peak=trace.peak,
        parts={**trace.at_peak},
        beside=trace.beside,
        beside_parts={**trace.at_beside},
        kept=kept,
        kernels=tuple(trace.kernels),
    )


@contextlib.contextmanager
def _marking(trace: Trace, trained: list[nn.Parameter]) -> Iterator[None]:
    """Tell the trace what autograd keeps, and what becomes a gradient."""

    def kept(tensor: Tensor) -> Tensor:
        return trace.mark(tensor, "activations")

    def arrived(parameter: Tensor) -> None:
        if parameter.grad is not None:
            trace.mark(parameter.grad, "gradients")

    handles = [parameter.register_post_accumulate_grad_hook(arrived) for parameter in trained]
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda held: held):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _kept_by_choice(trace: Trace) -> Callable[[Tensor], object]:
    """What selective recomputation keeps is kept from the forward pass on."""

    def kept(tensor: Tensor) -> None:
        if trace.moment == "forward":
            trace.mark(tensor, "activations")

    return kept


def _inputs_marked(trace: Trace) -> Callable[..., None]:
    """What recomputed blocks are given stays alive, though autograd's hooks do not see it."""

    def blocked(function: object, inputs: tuple[object, ...], named: dict[str, Any]) -> None:
        del function, named
        for value in inputs:
            if isinstance(value, Tensor):
                trace.mark(value, "activations")

    return blocked

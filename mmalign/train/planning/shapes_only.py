"""What the meta device lacks: autocast, fused attention, and a word about blocks that are recomputed.

Tensors of the meta device have shapes and no numbers. Autocast leaves them alone, and attention falls back to
the textbook, which would hold every attention matrix; here both are put right, so that what is counted on
shapes is what a device does.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as recomputing

from mmalign.train.recomputing import kept_results, recompute_selectively

__all__ = ["AttentionSeen", "Blocked", "Narrowed", "fused_attention", "meta_copy", "recomputed_blocks"]

_RECOMPUTE = "_gradient_checkpointing_func"  # where diffusers' blocks keep what recomputes them

_functional: Any = torch.nn.functional

_NARROWED = frozenset(
    {
        *(torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__),
        *(Tensor.bmm, Tensor.mm, _functional.linear, torch.conv1d, torch.conv2d, torch.conv3d),
    }
)
"""What autocast does in half precision, on every device. Source: torch's autocast op reference."""

_WIDENED_ON_CUDA = frozenset(
    {
        *(_functional.group_norm, _functional.layer_norm, torch.softmax, Tensor.softmax, _functional.softmax),
        *(torch.exp, Tensor.exp, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt),
        *(torch.sum, Tensor.sum, _functional.mse_loss, _functional.softplus, torch.norm, Tensor.norm),
        *(torch.log, Tensor.log, torch.cumsum, Tensor.cumsum),
    }
)
"""What autocast does in float32 on CUDA, and leaves as it is on the CPU. Source: as above."""


class Narrowed(TorchFunctionMode):
    """What autocast does, for the meta device.

    Args:
        dtype: of matrix products and convolutions.
        device_type: "cuda" also widens norms, sums and exponentials to float32.
        on_cast: told of every weight that is copied into `dtype`.
        cached: casts of trained weights are kept until the mode ends, as torch keeps them.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device_type: str = "cpu",
        *,
        on_cast: Callable[[Tensor], object] | None = None,
        cached: bool = False,
    ) -> None:
        super().__init__()
        self.dtype, self.widens = dtype, device_type == "cuda"
        self._on_cast, self._cached = on_cast, cached
        self._casts: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in _NARROWED:
            return func(*map(self._narrow, args), **{key: self._narrow(named[key]) for key in named})
        if self.widens and func in _WIDENED_ON_CUDA:
            return func(*map(_widen, args), **{key: _widen(named[key]) for key in named})
        return func(*args, **named)

    def __exit__(self, *details: Any) -> None:
        """Forget the casts."""
        self._casts.clear()
        super().__exit__(*details)  # type: ignore[no-untyped-call]  # torch's

    def _narrow(self, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.dtype == torch.float32):
            return value
        is_weight = value.is_leaf and value.requires_grad
        if is_weight and id(value) in self._casts:
            return self._casts[id(value)]
        cast = value.to(self.dtype)
        if is_weight and self._on_cast is not None:
            self._on_cast(cast)
        if is_weight and self._cached:
            self._casts[id(value)] = cast
        return cast


def _widen(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.to(torch.float32) if is_half else value


@runtime_checkable
class AttentionSeen(Protocol):
    """Told of every attention: its tensors, and whether this is the backward pass."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, is_backward: bool) -> object:
        """Count it."""
        ...


_LIBRARY = torch.library.Library("mmalign", "DEF")
_LIBRARY.define("shapes_of_attention(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)")
_watchers: list[AttentionSeen | None] = []


@contextlib.contextmanager
def _watching(seen: AttentionSeen | None) -> Iterator[None]:
    _watchers.append(seen)
    try:
        yield
    finally:
        _watchers.pop()


def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Result and normaliser; called only where they are computed, not where they were kept."""
    if _watchers and (seen := _watchers[-1]) is not None:
        seen(query, key, value, is_backward=False)
    result = query.new_empty(*query.shape[:-1], value.shape[-1])
    if value.shape[-1] == query.shape[-1]:
        result = torch.empty_like(query)  # with the strides of the query, as the kernels have it
    return result, torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)


_LIBRARY.impl("shapes_of_attention", _attend, "CompositeExplicitAutograd")
_operation: Any = torch.ops.mmalign.shapes_of_attention


class _FusedAttention(torch.autograd.Function):
    """Holds what the fused kernels hold: query, key, value, result, and one float32 per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: AttentionSeen | None) -> Tensor:
        # One operation to torch's dispatcher, as the kernels are: selective recomputation keeps its results.
        with _watching(seen):
            result, normaliser = _operation(query, key, value)
        ctx.save_for_backward(query, key, value, result, normaliser)
        ctx.seen = seen
        return cast("Tensor", result)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors[:3]
        if ctx.seen is not None:
            ctx.seen(query, key, value, is_backward=True)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


@contextlib.contextmanager
def fused_attention(
    seen: AttentionSeen | None = None, *, narrow: torch.dtype | None = None
) -> Iterator[None]:
    """`scaled_dot_product_attention` as its fused kernels have it, for tensors without numbers.

    Args:
        seen: told of every call and of its backward pass.
        narrow: the dtype that autocast gives its inputs.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        if narrow is not None:
            query, key, value = (part.to(narrow) for part in (query, key, value))
        result: Tensor = _FusedAttention.apply(query, key, value, seen)
        return result

    before = _functional.scaled_dot_product_attention
    _functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        _functional.scaled_dot_product_attention = before


Blocked = Callable[[Callable[..., object], tuple[object, ...], dict[str, Any]], None]
"""Told of every block that is recomputed: what is run, and what it is given."""

_OF_TORCH = ("use_reentrant", "context_fn")  # keyword arguments that torch's own function takes
_HOOKS = "respect_saved_tensors_hooks"  # from torch 2.15 on: who counts here is told by `keep`


@contextlib.contextmanager
def recomputed_blocks(
    network: nn.Module,
    blocked: Blocked,
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    *,
    keep: Callable[[Tensor], object] = lambda _: None,
) -> Iterator[None]:
    """Tell of recomputed blocks: what they are given stays alive, but autograd's hooks do not see it.

    Args:
        network: with blocks that are recomputed.
        blocked: told of each, when it is called.
        around: a context that each of them runs in, when it is called and when it is recomputed.
        keep: told of every result inside of a block that is kept, where recomputation is selective.
    """
    blocks = [module for module in network.modules() if getattr(module, "gradient_checkpointing", False)]
    before = [(block, block.__dict__.get(_RECOMPUTE)) for block in blocks]

    def surrounded(function: Callable[..., object]) -> Callable[..., object]:
        def call(*inputs: object, **named: Any) -> object:
            with around():
                return function(*inputs, **named)

        return call

    def counted(recompute: Callable[..., object]) -> Callable[..., object]:
        def call(function: Callable[..., object], *inputs: object) -> object:
            blocked(function, inputs, {})
            return recompute(surrounded(function), *inputs)

        return call

    module: Any = recomputing
    plain = module.checkpoint

    def telling(function: Callable[..., object]) -> Callable[..., object]:
        def call(*inputs: object, **named: Any) -> object:
            with kept_results(keep):
                return function(*inputs, **named)

        return call

    def checkpoint(function: Callable[..., object], *inputs: object, **named: Any) -> object:
        settings = {name: named.pop(name) for name in _OF_TORCH if name in named}
        if "context_fn" in settings:
            function = telling(function)
            if _HOOKS in inspect.signature(plain).parameters:
                settings[_HOOKS] = False
        blocked(function, inputs, named)
        return plain(surrounded(function), *inputs, **settings, **named)

    try:
        for block, recompute in before:
            # The selective one calls torch's by its name, and that is counted below.
            if recompute is not None and recompute is not recompute_selectively:
                block.__dict__[_RECOMPUTE] = counted(recompute)
        # Networks whose blocks diffusers has not prepared call it themselves.
        module.checkpoint = checkpoint
        yield
    finally:
        module.checkpoint = plain
        for block, recompute in before:
            if recompute is not None:
                block.__dict__[_RECOMPUTE] = recompute


def meta_copy(network: nn.Module) -> nn.Module:
    """The network with the same shapes, dtypes and flags, on the meta device; nothing is copied."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, memo)

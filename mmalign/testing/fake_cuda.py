"""A CUDA device that is not there: tensors on it have a shape, a dtype and a device, and no numbers.

Inside of `fake_cuda()` the library finds one CUDA device and runs as it would on it. Tensors on the CPU stay
real. Those on the device are torch's fake tensors, so that a tensor left on the CPU, two dtypes in a product
or a generator of another device raise as they do on a card. What the host reads of the device are zeros, but
for sizes, ids and masks that it sent there; every read is noted with its place: a step must read nothing.

Not seen: numbers, kernels that a card lacks, compiled code, streams. Fused attention is torch's operation.
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mmalign.testing.known_values import follow, value_of
from mmalign.testing.python_backward import python_backward

__all__ = ["FakeDevice", "Wait", "fake_cuda"]

_CUDA = torch.device("cuda", 0)
_PlainGenerator: Any = torch.Generator
_FROM_THE_HOST = ("aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_")
_NAME = "no card (rehearsal)"


@dataclass(frozen=True)
class Wait:
    """The host would have waited for the device.

    Args:
        what: operation.
        where: innermost place in this library, "file.py:function".
    """

    what: str
    where: str


@dataclass
class FakeDevice:
    """What was seen of the device.

    Args:
        waits: reads by the host and copies that it waits for, in order.
        live: bytes of tensors that live there.
        peak: their highest.
    """

    waits: list[Wait] = field(default_factory=list)
    live: int = 0
    peak: int = 0

    def note(self, what: str) -> None:
        """A wait, at the place that is running."""
        self.waits.append(Wait(what, _place()))

    def reset_peak(self, *_: object) -> None:
        """As `torch.cuda.reset_peak_memory_stats`."""
        self.peak = self.live


def _place() -> str:
    """The innermost function of this library that is running, tests of it apart."""
    frame, own = sys._getframe(1), Path(__file__).parents[1]
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if own in path.parents and path.parent != Path(__file__).parent:
            return f"{path.relative_to(own)}:{frame.f_code.co_name}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "outside"


class _FakeMode(FakeTensorMode):
    """As on a machine without a card, though `torch.cuda.is_available` says that there is one."""

    avoid_device_init = True


class _Device(TorchDispatchMode):
    """Runs what touches the device on fake tensors, and everything else for real."""

    def __init__(self, seen: FakeDevice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.seen = seen
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = func._schema.name
        leaves = tree_leaves((args, given))
        if name in ("aten::_pin_memory", "aten::pin_memory"):
            return args[0]
        if not any(map(_is_of_device, leaves)):
            with unset_fake_temporarily():
                return func(*args, **given)
        _require_one_device(name, args, leaves)
        target = given.get("device")
        if name == "aten::_to_copy" and target is not None and target.type == "cpu":
            self.seen.note("copy to the host")
            return value_of(args[0], given.get("dtype"))
        if name == "aten::copy_" and not isinstance(args[0], FakeTensor):
            self.seen.note("copy to the host")
            with unset_fake_temporarily():
                return args[0].copy_(value_of(args[1]))
        if name == "aten::_local_scalar_dense":
            self.seen.note("item")
            with unset_fake_temporarily():
                return value_of(args[0]).item()
        comes = name in _FROM_THE_HOST and any(
            isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor) and leaf.ndim > 0 for leaf in leaves
        )
        if comes and not given.get("non_blocking", name == "aten::copy_" and len(args) > 2 and args[2]):
            self.seen.note("copy that waits")
        try:
            result = func(*args, **given)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.seen.note(name.removeprefix("aten::"))
            with unset_fake_temporarily():
                real = func(*tree_map(_read, args), **tree_map(_read, given))
            result = tree_map(_on_device, real)
        follow(func, args, given, result)
        for value in tree_leaves(result):
            if isinstance(value, FakeTensor):
                self._born(value)
        return result

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._storages:
            return
        size = storage.nbytes()
        self._storages[place] = weakref.ref(storage, partial(self._died, place, size))
        self.seen.live += size
        self.seen.peak = max(self.seen.peak, self.seen.live)

    def _died(self, place: int, size: int, _: object) -> None:
        self._storages.pop(place, None)
        self.seen.live -= size


def _is_of_device(value: Any) -> bool:
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == "cuda")


def _require_one_device(name: str, args: tuple[Any, ...], leaves: list[Any]) -> None:
    """What fake tensors do not look at: generators draw, and indices choose, on their own device alone."""
    for leaf in leaves:
        if isinstance(leaf, _PlainGenerator) and leaf._cdata not in _Generator.of_device:
            message = "Expected a 'cuda' device type for generator but found 'cpu'"
            raise RuntimeError(message)
    if name.startswith("aten::index") and not isinstance(args[0], FakeTensor):
        message = f"{name}: the tensor is on the CPU, its indices or values are on the device"
        raise RuntimeError(message)


def _read(value: Any) -> Any:
    """What the host is given of whatever it asks for."""
    return value_of(value) if isinstance(value, FakeTensor) else value


def _on_device(value: Any) -> Any:
    """A result that was computed on the host in the device's place."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device=_CUDA)


class _Generator(torch.Generator):
    """A generator that says which device it draws on; its numbers are the CPU's own."""

    named: torch.device
    of_device: ClassVar[set[int]] = set()  # torch's operators are handed another object of the same generator

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made: Any = _PlainGenerator.__new__(cls, device="cpu")
        made.named = torch.device(device)
        if made.named.type == "cuda":
            cls.of_device.add(made._cdata)
            weakref.finalize(made, cls.of_device.discard, made._cdata)
        return cast("_Generator", made)

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # torch's can be written
        """Where it draws."""
        return self.named


_plain_tensor = torch.tensor


def _made(data: Any, *, device: Any = None, **given: Any) -> Tensor:
    """A tensor of Python's numbers: made on the host, then copied."""
    numbers = tree_map(lambda one: one.item() if isinstance(one, FakeTensor) and one.ndim == 0 else one, data)
    made: Tensor = _plain_tensor(numbers, **given)
    return made if device is None else made.to(device)


_plain_attention = torch.nn.functional.scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Torch's choice of a kernel, which asks the driver for the card: flash, or efficient with a mask."""
    if not isinstance(query, FakeTensor):
        return _plain_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        query, key, value = (part.to(half) for part in (query, key, value))
        if attn_mask is not None and attn_mask.dtype.is_floating_point:
            attn_mask = attn_mask.to(half)
    masked = [] if attn_mask is None or attn_mask.dtype is torch.bool else [attn_mask.dtype]
    if {key.dtype, value.dtype, *masked} != {query.dtype}:
        message = f"attention: query {query.dtype}, key {key.dtype}, value {value.dtype}, mask {masked}"
        raise RuntimeError(message)
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    operations = torch.ops.aten
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        found = operations._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
    else:
        bias = None if attn_mask is None else _added(attn_mask, query, key)
        found = operations._scaled_dot_product_efficient_attention(
            query,
            key,
            value,
            bias,
            query.requires_grad or key.requires_grad,
            dropout_p,
            is_causal,
            scale=scale,
        )
    result: Tensor = found[0]
    return result


def _added(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as what is added to scores."""
    if mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    return mask.expand(*query.shape[:2], query.shape[2], key.shape[2])


def _applied(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What moves and casts modules, which torch cannot do to fake tensors that anything refers to."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            made = function(parameter)
        alike = isinstance(made, FakeTensor) == isinstance(parameter, FakeTensor)
        if alike and torch._has_compatible_shallow_copy_type(parameter, made):
            parameter.data = made
            continue
        # To or from the device: weights that several modules share stay shared.
        held = parameter.__dict__.get(_MOVED)
        if held is None or (held.dtype, held.device) != (made.dtype, made.device):
            held = nn.Parameter(made, requires_grad=parameter.requires_grad)
            setattr(parameter, _MOVED, held)
        module._parameters[name] = held
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


_MOVED = "_mmalign_on_the_device"


def _patched(seen: FakeDevice) -> Iterator[Any]:
    """What fake tensors cannot do, with the reason."""
    card = SimpleNamespace(name=_NAME, total_memory=80 * 2**30, major=9, minor=0, multi_processor_count=132)
    answers: dict[str, Any] = {
        # Asked before anything runs: there is one card.
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: _NAME,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: card,
        # Of the driver, without an effect on results.
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda *_: seen.live,
        "max_memory_allocated": lambda *_: seen.peak,
        "reset_peak_memory_stats": seen.reset_peak,
        # Dropout of fake tensors draws nothing.
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
    }
    for name, answer in answers.items():
        yield mock.patch.object(torch.cuda, name, answer)
    yield mock.patch.object(torch, "Generator", _Generator)  # the driver makes those of CUDA
    yield mock.patch.object(torch, "tensor", _made)  # the driver is asked where numbers come from tensors
    yield mock.patch.object(nn.Module, "_apply", _applied)
    yield mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention)


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeDevice]:
    """One CUDA device, as long as the context lasts; tensors made in it must not leave it."""
    seen = FakeDevice()
    with contextlib.ExitStack() as stack:
        for patch in _patched(seen):
            stack.enter_context(patch)
        stack.enter_context(python_backward())
        stack.enter_context(_FakeMode(allow_non_fake_inputs=True))
        stack.enter_context(_Device(seen))
        yield seen

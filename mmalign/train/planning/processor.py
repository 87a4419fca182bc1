"""This machine's processor, measured for about ten seconds: what operations of each kind and size take.

A rate per kind is not enough on a processor: small products and convolutions reach a fraction of the rate of
large ones, convolutions over three axes a fraction of that, and elementwise work depends on whether it fits
into a cache. So each kind is measured at several sizes, forward and backward, on more buffers than the caches
hold, as in a step whose weights and activations go by once. Convolutions over three axes are measured with
many channels, where arithmetic counts, and with few, where bytes do; the slower of the two is what one takes.
What an operation costs however small it is, is the host's part and measured apart.
"""

import bisect
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmalign.train.planning.shapes_only import meta_copy
from mmalign.train.planning.trace import MOMENTS, Moment, trace_pass

__all__ = ["THIN", "Curve", "Processor", "measure_processor"]

THIN = "thin "
"""Before a kind: of few channels, measured by bytes."""

_COLD = 48 * 2**20
"""Bytes that measured operations go through in turn, so that small caches do not hold them."""

_ROUNDS, _SPENT = 3, 0.03
"""Least rounds, and seconds in them, of a measurement."""

_SWEEP = 0.01
"""Seconds of a round over all buffers, about."""

_BUFFERS = 24
"""Most buffers of one operation: very small ones stay in a cache in a step, too."""


@dataclass(frozen=True)
class Curve:
    """Seconds of work over its size, along straight lines between logarithms.

    Args:
        sizes: ascending: products in FLOP; elementwise work, and what is thin, in bytes.
        seconds: of each, without what an operation of no size takes.
    """

    sizes: Sequence[float]
    seconds: Sequence[float]

    def at(self, size: float) -> float:
        """Seconds of an operation; beyond the ends at the rate of the end."""
        if size <= self.sizes[0] or len(self.sizes) == 1:
            return self.seconds[0] * size / self.sizes[0]
        if size >= self.sizes[-1]:
            return self.seconds[-1] * size / self.sizes[-1]
        after = bisect.bisect_left(self.sizes, size)
        low, high = self.sizes[after - 1], self.sizes[after]
        part = math.log(size / low) / math.log(high / low)
        return float(self.seconds[after - 1] ** (1 - part) * self.seconds[after] ** part)


class Processor(NamedTuple):
    """What was measured.

    Args:
        curves: by kind of kernel and moment, float32; a kind that begins with `thin ` has few channels.
        half: seconds of a large product of bfloat16 over those of float32.
        bandwidth: bytes per second of elementwise work that no cache holds.
        forward: seconds of the host per operation of a forward pass.
        backward: of a backward pass.
        source: in words.
    """

    curves: Mapping[tuple[str, str], Curve]
    half: float
    bandwidth: float
    forward: float
    backward: float
    source: str


class _Subject(NamedTuple):
    """An operation at one size: what it is called on, and what is applied to it."""

    shape: tuple[int, ...]
    call: nn.Module


# The first of each is so small that nothing but the operation itself takes time.


def _products() -> Iterator[_Subject]:
    for width in (4, 32, 96, 256, 640, 1280):
        yield _Subject((2, 128 if width > 4 else 1, width), nn.Linear(width, width))


def _convolutions() -> Iterator[_Subject]:
    for channels, side in ((4, 2), (16, 8), (32, 16), (64, 16), (128, 16), (128, 32)):
        yield _Subject((2, channels, side, side), nn.Conv2d(channels, channels, 3, padding=1))


def _volumes() -> Iterator[_Subject]:
    for channels, side in ((4, 2), (8, 16), (16, 24), (32, 32)):
        yield _Subject((1, channels, 3, side, side), nn.Conv3d(channels, channels, 3, padding=1))


def _thin_volumes() -> Iterator[_Subject]:
    for channels, side in ((4, 2), (4, 16), (4, 48), (4, 128)):
        yield _Subject((1, channels, 4, side, side), nn.Conv3d(channels, channels, 3, padding=1))


def _attentions() -> Iterator[_Subject]:
    for tokens in (1, 16, 64, 256, 1024):
        yield _Subject((2, 4, tokens, 32), _Attention())


def _elementwise() -> Iterator[_Subject]:
    for side in (1, 4, 16, 32, 64, 128):
        yield _Subject((2, 64, side, side), _Pointwise())


class _Attention(nn.Module):
    """Of values to themselves."""

    def forward(self, value: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(value, value, value)


class _Pointwise(nn.Module):
    """What networks do between products: a norm, activations, a factor, sums."""

    def forward(self, value: Tensor) -> Tensor:
        normed = nn.functional.group_norm(value, 8)
        return (nn.functional.silu(normed) * value + nn.functional.gelu(normed)).square().sum()


_KINDS: Mapping[str, Callable[[], Iterator[_Subject]]] = {
    "product": _products,
    "convolution": _convolutions,
    "volume": _volumes,
    "thin volume": _thin_volumes,
    "attention": _attentions,
    "elementwise": _elementwise,
}


def _least(run: Callable[[], object]) -> float:
    """Least seconds of some rounds that the process was at work, over as many threads as it uses.

    Short work gets more rounds: it is what others on the machine disturb most.
    """
    run()
    found: list[float] = []
    while len(found) < _ROUNDS or sum(found) < _SPENT:
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found) / torch.get_num_threads()


def _times(subject: _Subject) -> dict[Moment, float]:
    """Seconds of one call, and of the backward pass to its inputs: frozen weights have no gradients."""
    first = torch.randn(subject.shape).requires_grad_()
    once = _least(lambda: subject.call(first))
    number = max(1, min(_BUFFERS, _COLD // (4 * math.prod(subject.shape)), int(_SWEEP / once)))
    buffers = [torch.randn(subject.shape).requires_grad_() for _ in range(number)]

    def forward() -> None:
        for value in buffers:
            subject.call(value)

    def both() -> None:
        for value in buffers:
            result = subject.call(value)
            torch.autograd.grad(result, value, result.detach())

    one, two = _least(forward) / number, _least(both) / number
    return {"forward": one, "backward": max(two - one, 0.0)}


def _sizes(kind: str, subject: _Subject) -> dict[Moment, tuple[float, int]]:
    """Size of its work as kernels are counted, summed, and over how many of them."""
    value = torch.empty(subject.shape, device="meta", requires_grad=True)
    counted = trace_pass(meta_copy(subject.call), lambda network: network(value)).kernels
    found: dict[Moment, tuple[float, int]] = {}
    for moment in MOMENTS:
        if kind == "elementwise":
            sizes = [kernel.moved for kernel in counted if kernel.moment == moment]
        elif kind.startswith(THIN):
            sizes = [kernel.moved for kernel in counted if kernel.moment == moment and kernel.flops]
        else:
            sizes = [kernel.flops for kernel in counted if kernel.moment == moment and kernel.flops]
        found[moment] = (float(sum(sizes)), len(sizes))
    return found


def _curves() -> dict[tuple[str, str], Curve]:
    """Of every kind and moment."""
    curves: dict[tuple[str, str], Curve] = {}
    for kind, subjects in _KINDS.items():
        points: dict[Moment, list[tuple[float, float]]] = {moment: [] for moment in MOMENTS}
        floor: dict[Moment, float] | None = None
        for subject in subjects():
            subject.call.requires_grad_(False)
            spent = _times(subject)
            if floor is None:
                floor = spent
                continue
            for moment, (size, number) in _sizes(kind, subject).items():
                net = max(spent[moment] - floor[moment], 0.05 * spent[moment])
                points[moment].append((size / number, net / number))
        for moment, found in points.items():
            found.sort()
            curves[kind, moment] = Curve(*zip(*found, strict=True))
    return curves


def measure_processor() -> Processor:
    """Measure this machine, once in a process per number of threads; the global generator stays as it was."""
    return _measured(torch.get_num_threads())


@cache
def _measured(threads: int) -> Processor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        curves = _curves()
        forward, backward = _host_times()
        half = _half()
    largest = curves["elementwise", "forward"]
    return Processor(
        curves=curves,
        half=half,
        bandwidth=largest.sizes[-1] / largest.seconds[-1],
        forward=forward,
        backward=backward,
        source=f"measured now, {threads} of {os.cpu_count()} threads",
    )


class _Adapted(nn.Module):
    """A linear layer with its adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = (
            nn.Linear(8, 8),
            nn.Linear(8, 2, bias=False),
            nn.Linear(2, 8, bias=False),
        )
        self.base.requires_grad_(False)

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = self.base(value) + self.up(self.down(value)) * 0.5
        return result


class _Block(nn.Module):
    """A block as networks have them, at no size: a convolution, attention with adapters, an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, 8), nn.SiLU()
        self.convolution = nn.Conv2d(8, 8, 3, padding=1)
        self.query, self.key, self.value, self.out = (_Adapted() for _ in range(4))
        self.norm.requires_grad_(False)
        self.convolution.requires_grad_(False)

    def forward(self, value: Tensor) -> Tensor:
        hidden = self.convolution(self.act(self.norm(value)))
        rows = hidden.flatten(2).transpose(1, 2)
        heads = [
            layer(rows).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        result: Tensor = value + self.out(mixed).transpose(1, 2).unflatten(2, value.shape[2:])
        return result


def _half() -> float:
    """Seconds of a product of bfloat16 over those of float32."""
    left, right = torch.randn(768, 768), torch.randn(768, 768)
    narrow = (left.bfloat16(), right.bfloat16())
    return _least(lambda: narrow[0] @ narrow[1]) / _least(lambda: left @ right)


def _host_times() -> tuple[float, float]:
    """Seconds of an operation of a network so small that nothing but operations takes time.

    Views are no operations of a plan, and Python is none of torch; both are in these seconds, as in a model.
    """
    network, value = nn.Sequential(*(_Block() for _ in range(60))), torch.ones(1, 8, 2, 2)
    counted = trace_pass(meta_copy(network), lambda called: called(value.to("meta")))
    forward = _least(lambda: network(value))
    both = _least(lambda: network(value).square().sum().backward())
    return forward / counted.count_of("forward"), max(both - forward, 0.0) / counted.count_of("backward")

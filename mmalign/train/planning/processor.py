"""This machine's processor, measured for about ten seconds: what operations of each kind and size take.

A rate per kind is not enough on a processor: small products and convolutions reach a fraction of the rate of
large ones, convolutions over three axes a fraction of that, and elementwise work depends on whether it fits
into a cache. So each kind is measured at several sizes, forward and backward, on more buffers than the caches
hold, as in a step whose weights and activations go by once. Convolutions over three axes are measured with
many channels, where arithmetic counts, and with few, where bytes do; attention with wide heads, and with thin
ones over tokens that fill no block, where exponentials of scores count. The slower of the two is what one
takes. What an operation costs however small it is, is the host's part and measured apart, by host.py; what a
convolution or an attention costs beyond that, here.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmalign.train.planning.curves import THIN, Curve, Curves
from mmalign.train.planning.host import host_times, usual_seconds
from mmalign.train.planning.shapes_only import meta_copy
from mmalign.train.planning.trace import MOMENTS, Moment, trace_pass

__all__ = ["Processor", "measure_processor"]

_COLD = 48 * 2**20
"""Bytes of inputs and weights that measured operations go through in turn: small caches do not hold them."""

_SWEEP = 0.01
"""Seconds of a round over all buffers, about."""

_SETTLING = 6
"""Calls before anything is timed: the allocator gives large buffers back to the system, whose pages then come
one by one (twice the time), until it has seen a few of them return."""

_BUFFERS = 24
"""Most inputs, and weights, of one operation: very small ones stay in a cache in a step, too."""


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

    curves: Curves
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


def _padded_volume(channels: int, frames: int, side: int) -> _Subject:
    """A convolution whose input is padded before, as causal ones are.

    Where torch pads inside, the same arithmetic takes about twice as long.
    """
    return _Subject((1, channels, frames + 2, side + 2, side + 2), nn.Conv3d(channels, channels, 3))


def _volumes() -> Iterator[_Subject]:
    for channels, side in ((4, 2), (8, 16), (16, 24), (32, 32)):
        yield _padded_volume(channels, 3, side)


def _thin_volumes() -> Iterator[_Subject]:
    for channels, side in ((4, 2), (4, 16), (4, 48), (4, 128)):
        yield _padded_volume(channels, 4, side)


def _attentions() -> Iterator[_Subject]:
    for tokens in (1, 16, 64, 256, 1024):
        yield _Subject((2, 4, tokens, 32), _Attention())


def _thin_attentions() -> Iterator[_Subject]:
    for tokens in (1, 17, 77, 307):
        yield _Subject((2, 4, tokens, 16), _Attention())


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
    "thin attention": _thin_attentions,
    "elementwise": _elementwise,
}


def _times(subject: _Subject) -> dict[Moment, float]:
    """Seconds of one call, and of the backward pass to its inputs: frozen weights have no gradients."""
    first = torch.randn(subject.shape).requires_grad_()
    for _ in range(_SETTLING):
        result = subject.call(first)
        torch.autograd.grad(result, first, result.detach())
    once = usual_seconds(lambda: subject.call(first))
    numbers = math.prod(subject.shape) + sum(weight.numel() for weight in subject.call.parameters())
    number = max(1, min(_BUFFERS, _COLD // (4 * numbers), int(_SWEEP / once)))
    turns = [
        (torch.randn(subject.shape).requires_grad_(), copy.deepcopy(subject.call)) for _ in range(number)
    ]

    def forward() -> None:
        for value, call in turns:
            call(value)

    def both() -> None:
        for value, call in turns:
            result = call(value)
            torch.autograd.grad(result, value, result.detach())

    one, two = usual_seconds(forward) / number, usual_seconds(both) / number
    return {"forward": one, "backward": max(two - one, 0.0)}


def _sizes(kind: str, subject: _Subject) -> dict[Moment, tuple[float, int]]:
    """Size of its work as kernels are counted, summed, and over how many of them."""
    value = torch.empty(subject.shape, device="meta", requires_grad=True)
    counted = trace_pass(meta_copy(subject.call), lambda network: network(value)).kernels
    found: dict[Moment, tuple[float, int]] = {}
    for moment in MOMENTS:
        if kind == "elementwise":
            sizes = [kernel.moved for kernel in counted if kernel.moment == moment]
        elif kind == THIN + "attention":
            sizes = [kernel.scores for kernel in counted if kernel.moment == moment and kernel.scores]
        elif kind.startswith(THIN):
            sizes = [kernel.moved for kernel in counted if kernel.moment == moment and kernel.flops]
        else:
            sizes = [kernel.flops for kernel in counted if kernel.moment == moment and kernel.flops]
        found[moment] = (float(sum(sizes)), len(sizes))
    return found


def _curves() -> dict[tuple[str, str], Curve]:
    """Of every kind and moment."""
    curves: dict[tuple[str, str], Curve] = {}
    plain: dict[Moment, float] = {}  # seconds of a product of no size, which any operation takes
    for kind, subjects in _KINDS.items():
        points: dict[Moment, list[tuple[float, float]]] = {moment: [] for moment in MOMENTS}
        floor: dict[Moment, float] | None = None
        for subject in subjects():
            subject.call.requires_grad_(False)
            spent = _times(subject)
            if floor is None:
                floor, plain = spent, plain or spent
                continue
            for moment, (size, number) in _sizes(kind, subject).items():
                net = max(spent[moment] - floor[moment], 0.05 * spent[moment])
                points[moment].append((size / number, net / number))
        for moment, found in points.items():
            found.sort()
            least = 0.0 if kind == "elementwise" or floor is None else max(floor[moment] - plain[moment], 0.0)
            sizes, seconds = zip(*found, strict=True)
            curves[kind, moment] = Curve(sizes, seconds, least)
    return curves


def measure_processor() -> Processor:
    """Measure this machine, once in a process per number of threads; the global generator stays as it was."""
    return _measured(torch.get_num_threads())


@cache
def _measured(threads: int) -> Processor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        curves = _curves()
        forward, backward = host_times(curves)
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


def _half() -> float:
    """Seconds of a product of bfloat16 over those of float32."""
    left, right = torch.randn(768, 768), torch.randn(768, 768)
    narrow = (left.bfloat16(), right.bfloat16())
    return usual_seconds(lambda: narrow[0] @ narrow[1]) / usual_seconds(lambda: left @ right)

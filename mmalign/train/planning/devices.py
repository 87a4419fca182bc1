"""What devices can do: memory, products and bytes per second, and the host's time per operation.

Peak numbers are the makers'; what a step reaches of them is a factor of ours, said below and printed with
every plan. A CPU is measured here and now, for a second.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.train.planning.shapes_only import meta_copy
from mmalign.train.planning.trace import Kernel, trace_pass

__all__ = ["DEVICES", "Device", "device_of", "measured_cpu", "parse_bytes", "seconds_of"]

PRODUCTS = 0.8
"""Share of the peak that large products reach: 790 of 989 TFLOP/s on an H100 (ours, docs/planning.md)."""

TRAFFIC = 0.8
"""Share of the bandwidth that elementwise kernels reach (ours)."""

CONTEXT = 600 * 2**20
"""Bytes of the driver's context and of libraries' workspaces that are no tensors (ours)."""

FRAGMENTS = 0.04
"""Share of the tensors' peak that the caching allocator loses between blocks (ours)."""


@dataclass(frozen=True)
class Device:
    """A device as a plan sees it.

    Args:
        name: of the table.
        memory: bytes; None where nobody counts (a CPU's).
        half: products of bfloat16 or float16, FLOP/s, without sparsity.
        full: products of float32 as training does them: TF32 on cards.
        bandwidth: of its memory, bytes/s.
        host_forward: seconds that the host takes to send one operation of a forward pass.
        host_backward: the same in a backward pass, which Python has no part in.
        overlaps: whether the host works ahead of the device.
        kernel: least seconds of an operation on the device.
        products: share of the peaks that products reach.
        traffic: share of the bandwidth that the rest reaches.
        plain: products of float32 without TF32, FLOP/s; None: as `full`.
        volume: products of convolutions over three axes, FLOP/s; None: as all others.
        source: of the numbers.
    """

    name: str
    memory: int | None
    half: float
    full: float
    bandwidth: float
    host_forward: float = 9e-6
    host_backward: float = 6e-6
    overlaps: bool = True
    kernel: float = 2e-6
    products: float = PRODUCTS
    traffic: float = TRAFFIC
    plain: float | None = None
    volume: float | None = None
    source: str = ""

    def without_tf32(self) -> "Device":
        """The device where float32 products are not rounded to TF32 (`train.allow_tf32=false`)."""
        return self if self.plain is None else replace(self, full=self.plain)

    def margin(self, peak: int) -> int:
        """Bytes beside a peak of tensors: context, workspaces, what the allocator loses; none on a CPU."""
        return 0 if self.memory is None or self.name == "cpu" else CONTEXT + int(FRAGMENTS * peak)


def _card(
    name: str, mebibytes: int, half: float, full: float, plain: float, bandwidth: float, source: str
) -> Device:
    rates = (half * 1e12, full * 1e12, bandwidth * 1e9)
    return Device(name, mebibytes * 2**20, *rates, plain=plain * 1e12, source=source)


_NVIDIA = "NVIDIA's data sheet, dense"
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _card("h100", 81559, 989.0, 494.0, 67.0, 3350.0, f"{_NVIDIA}: H100 SXM"),
        _card("h200", 143771, 989.0, 494.0, 67.0, 4800.0, f"{_NVIDIA}: H200 SXM"),
        _card("a100-80gb", 81920, 312.0, 156.0, 19.5, 2039.0, f"{_NVIDIA}: A100 SXM 80 GB"),
        _card("a100-40gb", 40960, 312.0, 156.0, 19.5, 1555.0, f"{_NVIDIA}: A100 SXM 40 GB"),
        _card(
            "4090",
            24564,
            165.0,
            82.6,
            82.6,
            1008.0,
            "NVIDIA's Ada whitepaper: RTX 4090, float32 accumulation",
        ),
        _card(
            "3090",
            24576,
            71.0,
            35.6,
            35.6,
            936.0,
            "NVIDIA's Ampere GA102 whitepaper: RTX 3090, float32 accumulation",
        ),
        _card("l40s", 46068, 362.0, 183.0, 91.6, 864.0, f"{_NVIDIA}: L40S"),
    )
}
"""By name. Memory is what the driver reports; an L40S keeps a part of its 48 GB for error correction."""


def device_of(text: str, *, memory: int | None = None) -> Device:
    """The device of a word: a name of the table, `cpu`, or `NAME=memory:24GB,half:165,bandwidth:1008`.

    Args:
        text: as on the command line; half, full and plain (float32 without TF32) are TFLOP/s, bandwidth
            GB/s, and what is left out is that of an H100 (of a name of the table: its own;
            of `cpu`: measured).
        memory: bytes in the place of the device's.

    Raises:
        ConfigError: a number cannot be read.
        UnknownNameError: no such device.
    """
    name, _, written = text.partition("=")
    name = name.lower()
    if name != "cpu" and name not in DEVICES and not written:
        raise unknown_name("device", name, [*DEVICES, "cpu"])
    device = measured_cpu() if name == "cpu" else replace(DEVICES.get(name, DEVICES["h100"]), name=name)
    measured = device.source
    for item in filter(None, written.split(",")):
        key, _, value = item.partition(":")
        device = _with(device, key, value, text)
    if name == "cpu" and written:
        device = replace(device, source=f"{measured}; {written} as given")
    return device if memory is None else replace(device, memory=memory)


def _with(device: Device, key: str, value: str, text: str) -> Device:
    units = {"half": 1e12, "full": 1e12, "plain": 1e12, "bandwidth": 1e9}
    try:
        if key == "memory":
            return replace(device, memory=parse_bytes(value), source="as given")
        if key in units:
            changed: dict[str, float] = {key: float(value) * units[key]}
            return replace(device, source="as given", **changed)  # type: ignore[arg-type]  # of floats alone
    except ValueError as error:
        message = explain(f"--device {text}", got=f"{key}:{value}", expected="a number")
        raise ConfigError(message) from error
    message = explain(
        f"--device {text}",
        got=key,
        expected="memory, half, full, plain (TFLOP/s) or bandwidth (GB/s)",
        do="For example --device mine=memory:24GB,half:165,bandwidth:1008.",
    )
    raise ConfigError(message)


_UNITS = {"gib": 2**30, "mib": 2**20, "gb": 2**30, "mb": 2**20, "g": 2**30, "m": 2**20}


def parse_bytes(text: str) -> int:
    """Bytes of a size of memory: `24GB`, `24GiB` and `24` are 24 x 2^30, as cards are sold.

    Raises:
        ConfigError: it is no size.
    """
    word = text.strip().lower()
    unit = next((name for name in _UNITS if word.endswith(name)), "")
    try:
        size = float(word.removesuffix(unit)) * _UNITS[unit or "gb"]
    except ValueError:
        size = -1.0
    if not size > 0:
        raise ConfigError(explain("size", got=text, expected="a size such as 24GB or 40GiB"))
    return int(size)


def seconds_of(kernels: Iterable[Kernel], device: Device) -> float:
    """Seconds of operations one after the other: each waits for its products or for memory.

    Where the host works ahead, the slower of host and device counts; on a CPU both, one after the other.
    """
    busy = host = 0.0
    for kernel in kernels:
        rate = (device.half if kernel.half else device.full) * device.products
        if kernel.volume and device.volume is not None:
            rate = device.volume
        work = max(kernel.flops / rate, kernel.moved / (device.bandwidth * device.traffic))
        busy += max(work, device.kernel)
        host += device.host_forward if kernel.moment == "forward" else device.host_backward
    return max(busy, host) if device.overlaps else busy + host


def _best(run: Callable[[], object], *, rounds: int = 5) -> float:
    """Least seconds of a few rounds that the process was at work, over as many threads as it uses."""
    run()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found) / torch.get_num_threads()


def measured_cpu() -> Device:
    """This machine's processor, measured: products, elementwise work, and operations that do nothing.

    Products are those of a large matrix and of a convolution of a small network, the slower of the two;
    elementwise work is an activation, a norm and a sum.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(768, 768, generator=generator) for _ in range(2))
    picture, kernel = (torch.randn(*size, generator=generator) for size in ((4, 64, 32, 32), (64, 64, 3, 3)))
    rates = []
    for dtype in (torch.bfloat16, torch.float32):
        one, other, image, weight = (value.to(dtype) for value in (left, right, picture, kernel))
        matrices = 2 * 768**3 / _best(partial(torch.matmul, one, other))
        products = 2 * 4 * 64 * 64 * 9 * 30 * 30
        rates.append(min(matrices, products / _best(partial(torch.conv2d, image, weight))))
    volume, block = (
        torch.randn(*size, generator=generator) for size in ((1, 16, 5, 64, 64), (16, 16, 3, 3, 3))
    )
    solid = 2 * 16 * 16 * 27 * 3 * 62 * 62 / _best(partial(torch.conv3d, volume, block))
    maps = torch.randn(4, 128, 64, 64, generator=generator)
    work = (
        nn.functional.silu,
        nn.functional.gelu,
        partial(nn.functional.group_norm, num_groups=32),
        maps.add,
    )
    spent = sum(_best(partial(function, maps)) for function in work)
    bandwidth = (2 * 3 + 3) * maps.nbytes / spent
    forward, backward = _host_times()
    device = Device(
        "cpu",
        None,
        rates[0],
        rates[1],
        bandwidth,
        host_forward=forward,
        host_backward=backward,
        overlaps=False,
        kernel=0.0,
        products=1.0,
        traffic=1.0,
        volume=solid,
        source=f"measured now, {torch.get_num_threads()} of {os.cpu_count()} threads",
    )
    share = _reached(device)
    return replace(device, products=share, traffic=share, volume=solid * share)


def _reached(device: Device) -> float:
    """Share of the rates that a small network's forward and backward pass reaches, at most 1."""
    layers = (nn.GroupNorm(8, 64), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1), nn.Linear(32, 32))
    with torch.random.fork_rng(devices=[]):
        network, value = nn.Sequential(*layers, *layers, *layers), torch.ones(4, 64, 32, 32)
    counted = trace_pass(meta_copy(network), lambda called: called(value.to("meta")))
    spent = _best(lambda: network(value).square().sum().backward())
    return min(1.0, seconds_of(counted.kernels, device) / spent)


def _host_times() -> tuple[float, float]:
    """Seconds of an operation of a network so small that nothing but operations takes time."""
    with torch.random.fork_rng(devices=[]):
        blocks = [
            layer
            for _ in range(20)
            for layer in (nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(4, 4))
        ]
    network, value = nn.Sequential(*blocks), torch.ones(1, 8, 4, 4)
    counted = trace_pass(meta_copy(network), lambda called: called(value.to("meta")))
    forward = _best(lambda: network(value))
    both = _best(lambda: network(value).square().sum().backward())
    return forward / counted.count_of("forward"), max(both - forward, 0.0) / counted.count_of("backward")

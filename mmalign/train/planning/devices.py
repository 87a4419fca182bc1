"""What devices can do: memory, products and bytes per second, and the host's time per operation.

Peak numbers are the makers'; what a step reaches of them is a factor of ours, said below and printed with
every plan. A CPU is measured here and now, by processor.py, for some seconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.train.planning.communication import NVLINK_3, NVLINK_4, PCIE_4, Link, link_of
from mmalign.train.planning.curves import Curves, work_seconds
from mmalign.train.planning.processor import measure_processor
from mmalign.train.planning.trace import Kernel

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
        link: to the other devices of a launch; None where nobody measured one (a CPU's).
        curves: seconds by kind of work and moment where they were measured by size, in float32; else rates.
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
    link: Link | None = None
    curves: Curves = field(default_factory=dict)
    source: str = ""

    def without_tf32(self) -> "Device":
        """The device where float32 products are not rounded to TF32 (`train.allow_tf32=false`)."""
        return self if self.plain is None else replace(self, full=self.plain)

    def margin(self, peak: int) -> int:
        """Bytes beside a peak of tensors: context, workspaces, what the allocator loses; none on a CPU."""
        return 0 if self.memory is None or self.name == "cpu" else CONTEXT + int(FRAGMENTS * peak)


def _card(
    name: str, mebibytes: int, rates: tuple[float, float, float], bandwidth: float, link: Link, source: str
) -> Device:
    """A card of MiB, TFLOP/s (half precision, TF32, float32 without) and GB/s."""
    half, full, plain = (1e12 * rate for rate in rates)
    memory = mebibytes * 2**20
    return Device(name, memory, half, full, bandwidth * 1e9, plain=plain, link=link, source=source)


_NVIDIA = "NVIDIA's data sheet, dense"
_ADA = "NVIDIA's Ada whitepaper: RTX 4090, float32 accumulation"
_AMPERE = "NVIDIA's Ampere GA102 whitepaper: RTX 3090, float32 accumulation"
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _card("h100", 81559, (989.0, 494.0, 67.0), 3350.0, NVLINK_4, f"{_NVIDIA}: H100 SXM"),
        _card("h200", 143771, (989.0, 494.0, 67.0), 4800.0, NVLINK_4, f"{_NVIDIA}: H200 SXM"),
        _card("a100-80gb", 81920, (312.0, 156.0, 19.5), 2039.0, NVLINK_3, f"{_NVIDIA}: A100 SXM 80 GB"),
        _card("a100-40gb", 40960, (312.0, 156.0, 19.5), 1555.0, NVLINK_3, f"{_NVIDIA}: A100 SXM 40 GB"),
        _card("4090", 24564, (165.0, 82.6, 82.6), 1008.0, PCIE_4, _ADA),
        _card("3090", 24576, (71.0, 35.6, 35.6), 936.0, PCIE_4, _AMPERE),
        _card("l40s", 46068, (362.0, 183.0, 91.6), 864.0, PCIE_4, f"{_NVIDIA}: L40S"),
    )
}
"""By name. Memory is what the driver reports; an L40S keeps a part of its 48 GB for error correction."""


def device_of(text: str, *, memory: int | None = None) -> Device:
    """The device of a word: a name of the table, `cpu`, or `NAME=memory:24GB,half:165,bandwidth:1008`.

    Args:
        text: as on the command line; half, full and plain (float32 without TF32) are TFLOP/s, bandwidth
            GB/s, link (inside of a machine) and network (of a machine's cards together) GB/s in one
            direction, and what is left out is that of an H100 (of a name of the table: its own;
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
        if key in ("link", "network"):
            return replace(device, link=_linked(device.link, key, float(value)))
        if key in units:
            changed: dict[str, float] = {key: float(value) * units[key]}
            return replace(device, source="as given", curves={}, **changed)  # type: ignore[arg-type]  # of floats alone
    except ValueError as error:
        message = explain(f"--device {text}", got=f"{key}:{value}", expected="a number")
        raise ConfigError(message) from error
    message = explain(
        f"--device {text}",
        got=key,
        expected="memory, half, full, plain (TFLOP/s), bandwidth, link or network (GB/s)",
        do="For example --device mine=memory:24GB,half:165,bandwidth:1008,link:32,network:12.5.",
    )
    raise ConfigError(message)


def _linked(link: Link | None, key: str, printed: float) -> Link:
    """A link with one printed speed, GB/s, in the place of its own; without one both are that."""
    if not printed > 0:
        raise ValueError(printed)
    given = link_of("as given", printed, printed)
    if link is None:
        return given
    inside, between = (given.inside, link.between) if key == "link" else (link.inside, given.between)
    return Link("as given", inside, between)


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
        busy += max(_work_seconds(kernel, device), device.kernel)
        host += device.host_forward if kernel.moment == "forward" else device.host_backward
    return max(busy, host) if device.overlaps else busy + host


def _work_seconds(kernel: Kernel, device: Device) -> float:
    """Of one operation: its products, or the bytes that they wait for."""
    moving = kernel.moved / (device.bandwidth * device.traffic)
    spent = work_seconds(kernel, device.curves)
    if spent is None:
        rate = (device.half if kernel.half else device.full) * device.products
        return max(kernel.flops / rate, moving)
    return spent * (device.full / device.half if kernel.half and kernel.flops else 1.0)


def measured_cpu() -> Device:
    """This machine's processor, as it is now."""
    found = measure_processor()
    products = found.curves["product", "forward"]
    full = products.sizes[-1] / products.seconds[-1]
    return Device(
        "cpu",
        None,
        full / found.half,
        full,
        found.bandwidth,
        host_forward=found.forward,
        host_backward=found.backward,
        overlaps=False,
        kernel=0.0,
        products=1.0,
        traffic=1.0,
        curves=found.curves,
        source=found.source,
    )

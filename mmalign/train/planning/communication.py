"""What processes send each other in an optimiser step, and how long it takes at most.

How often weights are gathered and gradients reduced was counted from the process group of real runs
(`benchmarks/scale.py`, docs/scale.md); the rest is arithmetic on sizes and links.
"""

from dataclasses import dataclass

__all__ = [
    "LATENCY",
    "LINKS",
    "NVLINK_3",
    "NVLINK_4",
    "PCIE_4",
    "PCIE_5",
    "Link",
    "Passes",
    "Sizes",
    "Traffic",
    "link_of",
    "seconds",
    "traffic_of",
]


@dataclass(frozen=True)
class Link:
    """Speeds between GPUs; bytes per second in one direction, as printed on the box times `REACHED`.

    Args:
        name: of the kind of cluster.
        inside: of one GPU to the others of its machine.
        between: of one machine to the others, over all of its network cards.
    """

    name: str
    inside: float
    between: float


REACHED = 0.8
"""Share of the printed speed (ours)."""

LATENCY = 50e-6
"""Seconds added for every call: starting a collective over 64 GPUs (ours)."""

BUCKET = 25e6
"""Bytes that DDP reduces in one call. Source: torch's `DistributedDataParallel`, `bucket_cap_mb`."""


def link_of(name: str, inside: float, between: float) -> Link:
    """A link of printed speeds, GB/s in one direction."""
    return Link(name, REACHED * inside * 1e9, REACHED * between * 1e9)


NVLINK_4 = link_of("NVLink 450 GB/s, 8 x 400 Gb/s per machine", 450.0, 400.0)
"""Of H100 and H200 SXM. Source: NVIDIA's data sheets, DGX H100."""

NVLINK_3 = link_of("NVLink 300 GB/s, 8 x 200 Gb/s per machine", 300.0, 200.0)
"""Of A100 SXM. Source: NVIDIA's data sheets, DGX A100."""

PCIE_5 = link_of("PCIe 64 GB/s, 100 Gb/s per machine", 64.0, 12.5)
"""16 lanes of the fifth generation, one network card."""

PCIE_4 = link_of("PCIe 32 GB/s, 100 Gb/s per machine", 32.0, 12.5)
"""16 lanes of the fourth generation, one network card: 3090, 4090, L40S."""

LINKS = (NVLINK_4, PCIE_5)
"""Of the page docs/scale.md."""


def seconds(
    size: float, calls: int, link: Link, processes: int, *, per_machine: int = 8, ways: int = 1
) -> float:
    """Time of collectives that bring `size` bytes to every GPU, by the slower of both links.

    A gather brings every machine what it lacks once, over all of its network cards together, and every GPU
    what it lacks from the others of its machine; reductions the same the other way round.

    Args:
        size: bytes of the whole tensors.
        calls: collectives.
        link: speeds.
        processes: one per GPU.
        per_machine: GPUs of a machine.
        ways: 2 for an all-reduce, which is a reduction and a gather.
    """
    machines = -(-processes // per_machine)
    inside = size * (processes - 1) / processes / link.inside
    between = size * (machines - 1) / machines / link.between
    return ways * max(inside, between) + calls * LATENCY


@dataclass(frozen=True)
class Sizes:
    """Weights of a network as they are sent; bytes.

    Args:
        units: of the blocks that FSDP2 gathers one at a time, in the dtype in which it does.
        root: of the rest.
        trained: of what trains, float32.
        num_units: blocks.
        layers: of all weights in the dtype in which they are held; None: as units and root.
        num_layers: layers that have weights; stage 3 gathers them.
    """

    units: int
    root: int
    trained: int
    num_units: int
    layers: int | None = None
    num_layers: int = 0


@dataclass(frozen=True)
class Passes:
    """How often a step runs the network.

    Args:
        gathered: times that a block is gathered in a micro-step; the rest of the weights is once.
        reduced: times that the gradient is reduced in an update.
        micro_steps: of an update.
    """

    gathered: float
    reduced: int = 1
    micro_steps: int = 1


@dataclass(frozen=True)
class Traffic:
    """Of one optimiser step.

    Args:
        size: bytes of whole tensors that are gathered or reduced; an all-reduce counts once.
        calls: collectives.
        ways: 2 where all of it is all-reduced.
    """

    size: float
    calls: int
    ways: int = 1

    def per_gpu(self, processes: int) -> float:
        """Bytes that reach or leave a GPU."""
        return self.ways * self.size * (processes - 1) / processes

    def seconds(self, link: Link, processes: int, *, per_machine: int = 8) -> float:
        """At most: nothing of it behind computing."""
        return seconds(self.size, self.calls, link, processes, per_machine=per_machine, ways=self.ways)


def traffic_of(sizes: Sizes, launch: str, passes: Passes) -> Traffic:
    """What a step sends.

    Args:
        sizes: of the weights.
        launch: one of `mmalign.train.launch.LAUNCHES`.
        passes: of the step.
    """
    gradients = float(passes.reduced * sizes.trained)
    if launch == "single":
        return Traffic(0.0, 0)
    if launch == "ddp":
        return Traffic(gradients, passes.reduced * max(1, round(sizes.trained / BUCKET)), ways=2)
    if launch in ("zero1", "zero2"):
        # An all-reduce of gradients, and a gathering of the new weights: half an all-reduce.
        return Traffic(gradients + sizes.trained / 2, passes.reduced + 1, ways=2)
    gathered = passes.gathered * passes.micro_steps
    if launch == "zero3":
        whole = sizes.units + sizes.root if sizes.layers is None else sizes.layers
        calls = round(gathered * sizes.num_layers) + passes.reduced + 1
        return Traffic(gathered * whole + gradients, calls)
    weights = gathered * sizes.units + passes.micro_steps * sizes.root
    return Traffic(weights + gradients, round((gathered + passes.reduced) * sizes.num_units) + 2)

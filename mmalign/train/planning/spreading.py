"""What a process holds for the others' sake: gathered weights, buckets, and copies of its own part.

FSDP2 gathers a block before it is used and the next one meanwhile, and sends a block's gradients while the
next one computes. DeepSpeed copies gradients into a bucket and reduces what lies in it; stage 3 gathers layer
by layer, and keeps whole what will be used again soon. Parts of weights, gradients and state themselves are
counted where whole ones would be (`Launch.num_bytes`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmalign.train.config import ResolvedRun
from mmalign.train.parts import DTYPES, reference_kind
from mmalign.train.plan import MemoryItem
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.counting import num_passes
from mmalign.train.planning.launches import Launch
from mmalign.train.planning.units import Cut, cut

__all__ = ["Spread", "spread_of"]


@dataclass(frozen=True)
class Spread:
    """What comes on top in one process of a launch; nothing of one process alone.

    Args:
        launch: of the run.
        trained: bytes of all trained weights, float32.
        accumulates: whether gradients of several passes come together in an update.
        keeps_gradients: whether FSDP2 leaves whole gradients where they are until the last pass.
        gathers_narrow: whether FSDP2 gathers trained weights in half precision: autocast has none to cast.
        compares: with what: the network itself, a copy of it, or nothing that runs.
        policy: the network's blocks; None where FSDP2 does not cut them.
        copy: those of the frozen copy; None where there is none, or not cut.
        layers: of the network; None where stage 3 does not gather them.
        recomputes: whether blocks run again in the backward pass.
        over_gloo: whether processes talk over gloo, which gathers into a tensor of its own first.
    """

    launch: Launch
    trained: int
    accumulates: bool
    keeps_gradients: bool
    gathers_narrow: bool
    compares: str
    policy: Cut | None
    copy: Cut | None
    layers: "Layers | None"
    recomputes: bool
    over_gloo: bool = False

    @property
    def bucket(self) -> int:
        """Bytes of DeepSpeed's bucket; it is made no larger than all gradients (`distributed/zero.py`)."""
        return min(4 * self.launch.zero.bucket, self.trained)

    @property
    def overflows(self) -> bool:
        """Whether gradients are reduced before all of them are there."""
        return self.trained > self.bucket

    @property
    def gradients(self) -> float:
        """Share of the whole gradient that passes leave behind, beside what lies in buckets."""
        if self.launch.name == "zero3":  # its buffer of parts is always there
            return 0.0
        if self.launch.name == "zero2" and not self.accumulates and not self.overflows:
            return 0.0
        if not self.launch.spreads("gradients") or (self.keeps_gradients and self.accumulates):
            return 1.0
        return 1 / self.launch.processes

    @property
    def at_update(self) -> float:
        """Share of the whole gradient that an update reads, beside what lies in buckets."""
        if not self.launch.spreads("gradients"):
            return 1.0
        return 0.0 if self.launch.name == "zero3" else 1 / self.launch.processes

    def always(self) -> list[MemoryItem]:
        """At every moment, beside parts of weights and state."""
        if self.copy is not None:
            return [MemoryItem("reference copy, weights outside of blocks", self.copy.root, "whole")]
        if self.launch.name == "ddp":
            return [MemoryItem("buckets of gradients for other devices", self.trained)]
        if self.layers is None:
            return []
        times = 2 if self.compares == "copy" else 1
        limit = f"of {self.launch.zero.small:,} numbers and less, whole"
        return [
            MemoryItem("small weights", times * self.layers.small, limit),
            MemoryItem("buffer of the gradients' parts", -(-self.trained // self.launch.processes)),
            MemoryItem("bucket of gradients", self.bucket, "DeepSpeed's, kept between steps"),
        ]

    def comparing(self) -> list[MemoryItem]:
        """While the reference scores."""
        if self.copy is not None:
            return [MemoryItem("gathered blocks", self.copy.at_work, "of the copy; and the next one")]
        if self.policy is not None and self.compares == "itself":
            return [self._gathered(self.policy)]
        if self.layers is not None:
            return [MemoryItem("gathered layers", self.layers.passing(self.launch), "and those that follow")]
        return []

    def learning(self) -> list[MemoryItem]:
        """While the policy runs forward and backward."""
        if self.policy is not None:
            reducing = 0 if self.keeps_gradients and self.accumulates else self.policy.reducing
            sent = MemoryItem("gradients of a block, whole", reducing, "and the last one's as they are sent")
            return [self._gathered(self.policy), sent]
        found = []
        if self.launch.name in ("zero1", "zero2"):
            found.append(MemoryItem("bucket of gradients", self.bucket, "DeepSpeed's"))
        if self.layers is not None:
            again = self.compares != "itself" and not self.accumulates
            held = self.layers.staying(self.launch, recomputes=self.recomputes) if again else 0
            held = max(held, self.layers.passing(self.launch))
            found.append(MemoryItem("gathered layers", held, "those used again soon stay"))
        if self.launch.is_zero and self.overflows:
            found.append(MemoryItem("gradients as they are sent", self.bucket, "a copy of the bucket"))
        return found

    def updating(self) -> list[MemoryItem]:
        """While gradients are reduced at the end, or weights are updated: the larger of both."""
        part = -(-self.trained // self.launch.processes)
        # Gradients move into the bucket, the bucket is copied to be sent, and this process's part is kept.
        extra = {"zero1": self.bucket + part, "zero2": 2 * self.bucket, "zero3": max(self.bucket, part)}
        if self.launch.name not in extra:
            return []
        reducing = MemoryItem("gradients as they are reduced", extra[self.launch.name], "bucket, copy, part")
        # Then the update reads this process's part of the gradient once more, as one tensor.
        updating = MemoryItem("gradient as one tensor", part)
        if self.over_gloo and self.launch.name != "zero3":
            updating = MemoryItem("new weights as they are gathered", self.trained, "gloo's own copy")
        return [max(reducing, updating, key=lambda item: item.num_bytes)]

    def _gathered(self, found: Cut) -> MemoryItem:
        if self.launch.name == "fsdp2_keep":
            return MemoryItem("gathered weights", found.root + found.all_units + found.buffer, "all of them")
        note = "the largest, the next one, and weights outside of blocks"
        return MemoryItem("gathered blocks", found.root + found.at_work, note)


@dataclass(frozen=True)
class Layers:
    """What stage 3 gathers layer by layer; bytes.

    Args:
        whole: of all weights above the threshold.
        small: of the rest.
        largest: of a layer.
        per_element: of one number, on average.
    """

    whole: int
    small: int
    largest: int
    per_element: float

    def passing(self, launch: Launch) -> int:
        """While a forward pass goes through: the layer, and what is gathered ahead with its buffer."""
        ahead = min(self.whole, round(launch.zero.prefetch * self.per_element))
        return min(self.whole, ahead + self.largest) + max(ahead, self.largest)

    def staying(self, launch: Launch, *, recomputes: bool) -> int:
        """When the backward pass begins: layers whose weights it reads within the distance.

        The distance counts the weights of all layers that run until then, forward and backward, and those
        of recomputed ones twice on the way back.
        """
        near = round(launch.zero.reuse * self.per_element) // (3 if recomputes else 2)
        return min(self.whole, near + self.largest) + self.largest


def _layers_of(network: nn.Module, launch: Launch) -> Layers:
    large = [value for value in network.parameters() if value.numel() > launch.zero.small]
    small = [value for value in network.parameters() if value.numel() <= launch.zero.small]
    own = ([*module.parameters(recurse=False)] for module in network.modules())
    largest = max((_bytes(values) for values in own), default=0)
    count = sum(value.numel() for value in large)
    return Layers(_bytes(large), _bytes(small), largest, _bytes(large) / max(count, 1))


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def spread_of(run: ResolvedRun, counted: Counted, launch: Launch, *, over_gloo: bool = False) -> Spread:
    """What comes on top in one process.

    Args:
        run: resolved.
        counted: on shapes.
        launch: of the run.
        over_gloo: whether processes talk over gloo, as those on CPUs do.
    """
    network, kind = counted.trainables.network, reference_kind(run)
    compares = {"frozen": "copy", "none": "", "stored": "", "pool": ""}.get(kind, "itself")
    half = DTYPES[run.config.train.mixed_precision]
    narrow = None if half is torch.float32 else half
    whole = counted.held_whole
    if run.config.model.quantization is not None:  # narrow weights cannot be cut
        whole = tuple(value for value in network.parameters() if value.ndim > 1 and not value.requires_grad)
    is_lora = counted.trainables.lora is not None
    sizes = [(value.numel(), value.requires_grad) for value in network.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    # As `distributed/sharding.py` decides it: whole gradients of a whole network would undo the sharding.
    keeps = launch.is_fsdp2 and 2 * trained <= sum(size for size, _ in sizes)
    return Spread(
        launch=launch,
        trained=counted.trained_bytes,
        accumulates=run.config.train.accumulation > 1 or num_passes(run, counted) > 1,
        keeps_gradients=keeps,
        gathers_narrow=launch.is_fsdp2 and not is_lora and narrow is not None,
        compares=compares,
        policy=cut(network, gathered=None if is_lora else narrow, whole=whole) if launch.is_fsdp2 else None,
        copy=cut(network, gathered=narrow, whole=whole) if launch.is_fsdp2 and compares == "copy" else None,
        layers=_layers_of(network, launch) if launch.name == "zero3" else None,
        recomputes=bool(run.config.model.gradient_checkpointing),
        over_gloo=over_gloo,
    )

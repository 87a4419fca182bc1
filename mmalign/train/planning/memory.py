"""The highest memory of a run, part by part, from what was counted.

A micro-step has four moments: media and texts are encoded, the reference scores, the policy runs forward and
backward, weights are updated. What is there all the time lies below each of them; the highest of the four is
the run's peak.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mmalign.train.config import ResolvedRun
from mmalign.train.parts import reference_kind
from mmalign.train.plan import CHECKPOINTING, MemoryItem, memory_estimate
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.devices import Device
from mmalign.train.planning.launches import SINGLE, Launch
from mmalign.train.planning.spreading import Spread, spread_of
from mmalign.train.planning.timing import scores_reference
from mmalign.train.rollouts import is_online

__all__ = ["Peak", "peak_of"]

Stage = Literal["encoding", "reference", "policy", "update"]


@dataclass(frozen=True)
class Peak:
    """The highest memory of a run.

    Args:
        items: what is there at that moment; bytes.
        stage: which moment that is.
        stages: bytes of tensors at each moment.
        margin: of driver, libraries and allocator, beside the tensors.
    """

    items: tuple[MemoryItem, ...]
    stage: Stage
    stages: Mapping[Stage, int]
    margin: int

    @property
    def tensors(self) -> int:
        """Bytes of tensors: what `torch.cuda.max_memory_allocated` would say."""
        return sum(item.num_bytes for item in self.items)

    @property
    def total(self) -> int:
        """Bytes with the margin."""
        return self.tensors + self.margin


def peak_of(run: ResolvedRun, counted: Counted, device: Device, launch: Launch = SINGLE) -> Peak:
    """The highest memory of a run on a device: that of the process with the largest parts."""
    spread = spread_of(run, counted, launch, over_gloo=device.name == "cpu")
    still = _still(run, counted, spread)
    moments = {
        "encoding": _while_encoding(run, counted, spread),
        "reference": _while_comparing(run, counted, spread),
        "policy": _while_learning(run, counted, spread),
        "update": _while_updating(run, counted, spread),
    }
    below = sum(item.num_bytes for item in still)
    stages: dict[Stage, int] = {}
    for name, items in moments.items():
        stage: Stage = name  # type: ignore[assignment]  # the keys above
        stages[stage] = below + sum(item.num_bytes for item in items)
    highest = max(stages, key=lambda stage: stages[stage])
    return Peak(
        items=tuple(item for item in (*still, *moments[highest]) if item.num_bytes or item.note),
        stage=highest,
        stages=stages,
        margin=device.margin(stages[highest]),
    )


def live_encoders(run: ResolvedRun, counted: Counted) -> dict[str, nn.Module]:
    """What encodes on the device while the run trains."""
    if counted.encoding is None:
        return {}
    if run.config.media.cache:  # who samples has to decode
        return {
            name: module
            for name, module in counted.encoding.modules.items()
            if is_online(run) and name == "VAE"
        }
    return dict(counted.encoding.modules)


_COPY = "reference (frozen)"
_OF_THE_PASS = ("gradients", "activations", "largest recomputed block")


def _still(run: ResolvedRun, counted: Counted, spread: Spread) -> list[MemoryItem]:
    """What is there at every moment: the estimate of a dry run without what belongs to the pass."""
    estimate = _estimate(run, counted, spread.launch)
    found = [item for item in estimate if not item.component.startswith(_OF_THE_PASS)]
    if _copy_waits(run):
        found = [
            MemoryItem(item.component, 0, item.note) if item.component == _COPY else item for item in found
        ]
    buffers = sum(value.numel() * value.element_size() for value in counted.trainables.network.buffers())
    found.append(MemoryItem("tables of the network", buffers))
    return [*found, *spread.always(), *counted.more]


def _estimate(run: ResolvedRun, counted: Counted, launch: Launch) -> list[MemoryItem]:
    """As a dry run has it, activations left open."""
    return memory_estimate(
        run,
        counted.trainables,
        encoders=live_encoders(run, counted),
        activation_bytes=0,
        reference_kind=reference_kind(run),
        frozen_bytes=counted.frozen_bytes,
        launch=launch,
        held_whole=counted.held_whole,
    )


def _copy_waits(run: ResolvedRun) -> bool:
    """Whether a frozen copy is on the CPU but while it scores."""
    return run.config.reference.offload and reference_kind(run) == "frozen"


def _while_encoding(run: ResolvedRun, counted: Counted, spread: Spread) -> list[MemoryItem]:
    """The VAE first, then all text encoders together; those that wait on the CPU come and leave."""
    encoding = counted.encoding
    found = [_earlier_gradients(run, counted, spread)]
    if encoding is not None and not run.config.media.cache:
        comes = {
            name: _size_of(module) if run.config.model.offload_encoders else 0
            for name, module in encoding.modules.items()
        }
        vae = comes.pop("VAE", 0)
        media = [MemoryItem("VAE, while it works", vae)]
        if encoding.media is not None:
            maps = MemoryItem("feature maps of the VAE", encoding.media.peak, f"{encoding.at_once} at once")
            media.append(maps)
        texts = [MemoryItem("text encoders, while they work", sum(comes.values()), "all together")]
        found += max(media, texts, key=lambda items: sum(item.num_bytes for item in items))
    return [item for item in found if item.num_bytes]


def _while_comparing(run: ResolvedRun, counted: Counted, spread: Spread) -> list[MemoryItem]:
    """A live reference scores before the policy; a copy that waits on the CPU comes for it as a whole."""
    if not scores_reference(run):
        return []
    found = [
        _earlier_gradients(run, counted, spread),
        MemoryItem("temporaries of the reference", counted.reference.peak, f"{counted.rows} rows at a time"),
        *spread.comparing(),
    ]
    if _copy_waits(run):
        estimate = _estimate(run, counted, spread.launch)
        size = sum(item.num_bytes for item in estimate if item.component == _COPY)
        found.append(MemoryItem("reference copy, while it works", size, "on the CPU between uses"))
    return [item for item in found if item.num_bytes]


def _earlier_gradients(run: ResolvedRun, counted: Counted, spread: Spread) -> MemoryItem:
    there = spread.gradients if run.config.train.accumulation > 1 else 0
    return MemoryItem("gradients", round(there * counted.trained_bytes), "of earlier micro-steps")


def _size_of(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.parameters())


def _while_learning(run: ResolvedRun, counted: Counted, spread: Spread) -> list[MemoryItem]:
    """The pass itself; with gradients there already, its highest moment is another one.

    Of gradients that are spread a process keeps a share. The highest sum of the pass grows with that share,
    and is convex in it (of every moment it is a straight line): between none and all of them it lies on the
    straight line between both at most, which is what is taken.
    """
    share = spread.gradients
    parts = {
        kind: round(share * size + (1 - share) * counted.policy.beside_parts[kind])
        for kind, size in counted.policy.parts.items()
    }
    if spread.accumulates:
        parts = {**counted.policy.beside_parts, "gradients": round(share * counted.trained_bytes)}
    if spread.gathers_narrow:
        parts["casts"] = 0
    recomputes = run.config.model.gradient_checkpointing
    layout = f"{counted.rows} rows at a time"
    kept = "inputs of recomputed blocks among them" if recomputes else CHECKPOINTING[False]
    kept = "results of products in recomputed blocks among them" if recomputes == "selective" else kept
    there = "" if spread.accumulates else "those that are there at the peak"
    items = [
        MemoryItem("gradients", parts["gradients"], there),
        MemoryItem("activations", parts["activations"], f"{layout}; {kept}"),
        MemoryItem("casts of trained weights", parts["casts"], "half precision, by autocast"),
        MemoryItem("temporaries", parts["working"], "of the operation and the block at work"),
        *spread.learning(),
    ]
    return [item for item in items if item.num_bytes]


def _while_updating(run: ResolvedRun, counted: Counted, spread: Spread) -> list[MemoryItem]:
    largest = max((value.numel() for value in counted.trainables.parameters.values()), default=0)
    copies = 4 * largest * _UPDATE_COPIES[run.config.train.optimizer or "adamw"]
    items = [
        MemoryItem("gradients", round(spread.at_update * counted.trained_bytes)),
        MemoryItem("temporaries of the update", copies, "of the largest weight"),
        *spread.updating(),
    ]
    return [item for item in items if item.num_bytes]


_UPDATE_COPIES = {"adamw": 0, "adamw_8bit": 0, "adafactor": 3}
"""Tensors of a weight's size, float32, that an update makes of one weight at a time."""

"""Everything of a run that is counted on shapes: its passes, its encoders, what trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from mmalign.train.adapters import Trainables
from mmalign.train.plan import MemoryItem
from mmalign.train.planning.trace import Kernel, Pass

__all__ = ["Counted", "Encoding"]


@dataclass(frozen=True)
class Encoding:
    """What turns media and texts into inputs of the network.

    Args:
        media: one call of the VAE; None where nothing of it could be counted.
        at_once: candidates of that call.
        text: kernels of one prompt.
        modules: by name, on the meta device.
        numbers: of a candidate's latents as a cache keeps them, mean and deviation.
        text_numbers: of a prompt's states as a cache keeps them.
    """

    media: Pass | None
    at_once: int
    text: tuple[Kernel, ...]
    modules: Mapping[str, nn.Module]
    numbers: int
    text_numbers: int


@dataclass(frozen=True)
class Counted:
    """What one setting of a run was counted to need and do.

    Args:
        trainables: of the network, on the meta device.
        rows: that the network sees with gradients in one pass.
        policy: forward and backward of those rows.
        reference: forward of those rows without gradients, adapters off.
        encoding: of media and texts; None of language models.
        more: memory that is there all the time: masks, tiles of logits, queues.
        frozen_bytes: of frozen weights where they are held narrower than they are counted.
        elements: of one sample's latents; None of language models.
        once: further operations of a micro-step: the vision tower.
        held_whole: frozen weights that no launch cuts: they are read outside of the network's pass.
        notes: what was assumed.
    """

    trainables: Trainables
    rows: int
    policy: Pass
    reference: Pass
    encoding: Encoding | None
    more: Sequence[MemoryItem] = ()
    frozen_bytes: int | None = None
    elements: int | None = None
    once: tuple[Kernel, ...] = ()
    held_whole: tuple[Tensor, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def trained_bytes(self) -> int:
        """Of the trained weights, float32."""
        return sum(value.numel() * value.element_size() for value in self.trainables.parameters.values())

"""What was sampled and is not trained on yet: items, with the conditioning of every prompt held once.

A round of 4 prompts, 24 samples and 9 steps is 864 items. With text states of 2.7 MB (SD3), twice for
guidance, a copy per item would be 4.7 GB; one per prompt is 22 MB.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mmalign.batch import Batch, Conditioning, concatenate
from mmalign.errors import CheckpointError
from mmalign.files import under
from mmalign.rollout.packing import pack, unpack

__all__ = ["Items", "Queue"]


@runtime_checkable
class Queue(Protocol):
    """Training items in the order in which they are trained on; never changed, only replaced."""

    def __len__(self) -> int:
        """Items."""

    def take(self, count: int) -> Batch:
        """The first `count` items as a micro-batch, ready for the likelihood."""

    def after(self, count: int) -> "Queue":
        """Without the first `count` items."""

    def selected(self, index: Int[Tensor, " row"]) -> "Queue":
        """The items at `index`, in that order."""

    def joined(self, later: Any) -> "Queue":
        """These items, then those, which are of the same kind."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the items can be made of again, as CPU tensors."""


@dataclass(frozen=True)
class Items:
    """Training items, first come, first trained on.

    Args:
        batch: everything but conditioning, one row per item.
        prompt: which row of `conditioning` an item reads.
        conditioning: one row per prompt of a round.
    """

    batch: Batch
    prompt: Int[Tensor, " item"]
    conditioning: Mapping[str, Shaped[Tensor, "round_prompt ..."]]

    @classmethod
    def each(cls, batch: Batch) -> "Items":
        """One item per prompt, as a batch already is; conditioning per candidate must be of one candidate."""
        return cls(
            batch=replace(batch, conditioning=Conditioning()),
            prompt=torch.arange(batch.num_prompts, device=batch.clean.device),
            conditioning=batch.conditioning.rows(1),
        )

    def __len__(self) -> int:
        """Items."""
        return self.prompt.shape[0]

    def take(self, count: int) -> Batch:
        """The first `count` items as a micro-batch with its conditioning."""
        front = self.batch.rows(slice(0, count))
        read = self.prompt[:count]
        shared = {name: value[read] for name, value in self.conditioning.items()}
        return replace(front, conditioning=Conditioning(shared))

    def after(self, count: int) -> "Items":
        """Without the first `count` items."""
        rest = slice(count, None)
        return replace(self, batch=self.batch.rows(rest), prompt=self.prompt[rest])

    def selected(self, index: Int[Tensor, " row"]) -> "Items":
        """The items at `index`, in that order."""
        return replace(self, batch=self.batch.rows(index), prompt=self.prompt[index])

    def joined(self, later: "Items") -> "Items":
        """These items, then those; conditioning that nobody reads is let go. Waits for the device."""
        used, own = self.prompt.unique(return_inverse=True)
        kept = {name: value[used] for name, value in self.conditioning.items()}
        return Items(
            batch=concatenate([self.batch, later.batch]),
            prompt=torch.cat([own, later.prompt + used.shape[0]]),
            conditioning={name: torch.cat([value, later.conditioning[name]]) for name, value in kept.items()},
        )

    def to(self, device: torch.device | str) -> "Items":
        """The same on another device."""
        return Items(
            self.batch.to(device),
            self.prompt.to(device),
            {name: value.to(device) for name, value in self.conditioning.items()},
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as CPU tensors."""
        table = {
            f"conditioning.{name}": value.detach().to("cpu") for name, value in self.conditioning.items()
        }
        packed = {f"batch.{name}": value for name, value in pack(self.batch).items()}
        return {"prompt": self.prompt.to("cpu"), **packed, **table}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Items":
        """What gave `state_dict`, on the CPU.

        Raises:
            CheckpointError: tensors are missing.
        """
        if "prompt" not in state:
            message = "stored items: prompt missing. The checkpoint is damaged; take an earlier one."
            raise CheckpointError(message)
        return cls(unpack(under(state, "batch.")), state["prompt"], under(state, "conditioning."))

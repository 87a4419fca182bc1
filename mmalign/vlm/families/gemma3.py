"""Gemma 3: pictures that see themselves both ways, layers with a window among full ones."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import VlmInputs
from mmalign.vlm.traits import VlmTraits

__all__ = ["FAMILY", "Gemma3Traits"]


class Gemma3Traits(VlmTraits):
    """The tokens of one picture are a block; text is causal."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)

    def blocks(
        self, ids: Int[Tensor, " position"], kinds: Int[Tensor, " position"]
    ) -> Int[Tensor, " position"] | None:
        """A number for every run of visual tokens."""
        del ids
        visual = kinds > 0
        begins = visual & ~torch.nn.functional.pad(visual, (1, 0))[:-1]
        return torch.where(visual, begins.cumsum(0) - 1, -1)

    def native_arguments(self, inputs: VlmInputs) -> dict[str, Tensor]:
        """Kinds of tokens, without which pictures would be causal."""
        return {"token_type_ids": inputs.kinds}

    def generation_arguments(self, kinds: Int[Tensor, "row position"]) -> dict[str, Tensor]:
        """Kinds of tokens."""
        return {"token_type_ids": kinds}


FAMILY = VlmFamily("gemma3", Gemma3Traits)

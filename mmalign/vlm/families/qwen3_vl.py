"""Qwen3-VL: features of several depths of the tower, frames of a video between written times."""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from mmalign.vlm.families._qwen import QwenTraits
from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import VlmInputs

__all__ = ["FAMILY", "Qwen3VLTraits"]


class Qwen3VLTraits(QwenTraits):
    """Every grid of a video is a picture of its own in the text."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    one_grid_per_frame: ClassVar[bool] = True

    def decoder_arguments(
        self, inputs: VlmInputs, deep: tuple[Float[Tensor, "visual feature"], ...]
    ) -> dict[str, Any]:
        """Deep features and the visual tokens they are added to."""
        if not deep:
            return {}
        return {"visual_pos_masks": inputs.kinds > 0, "deepstack_visual_embeds": list(deep)}


FAMILY = VlmFamily("qwen3_vl", Qwen3VLTraits)

"""Qwen2.5-VL: as Qwen2-VL, with positions of frames in seconds."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.vlm.families._qwen import QwenTraits
from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import MediaKind, Medium

__all__ = ["FAMILY", "Qwen25VLTraits"]

_SECONDS = "second_per_grid_ts"


class Qwen25VLTraits(QwenTraits):
    """A video tells how many seconds lie between two of its grids."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def cleaned(self, kind: MediaKind, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors, seconds as one too."""
        made = super().cleaned(kind, tensors)
        return {name: torch.as_tensor(value) for name, value in made.items()}

    def _interval(self, medium: Medium) -> float:
        return float(self.config.vision_config.tokens_per_second) * float(medium.tensors[_SECONDS][0])


FAMILY = VlmFamily("qwen2_5_vl", Qwen25VLTraits)

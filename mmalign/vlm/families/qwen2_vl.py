"""Qwen2-VL: images of any size, one token per 28 x 28 pixels."""

from typing import ClassVar

from mmalign.vlm.families._qwen import QwenTraits
from mmalign.vlm.family import VlmFamily

__all__ = ["FAMILY", "Qwen2VLTraits"]


class Qwen2VLTraits(QwenTraits):
    """Frames count like any other axis."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)


FAMILY = VlmFamily("qwen2_vl", Qwen2VLTraits)

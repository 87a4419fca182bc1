"""LLaVA 1.5: one square of CLIP features per image, a two-layer projector, Llama."""

from typing import ClassVar

from mmalign.vlm.family import VlmFamily
from mmalign.vlm.traits import VlmTraits

__all__ = ["FAMILY", "LlavaTraits"]


class LlavaTraits(VlmTraits):
    """A picture is resized and cropped to a square, whatever its size: nothing can be shrunk."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)


FAMILY = VlmFamily("llava", LlavaTraits)

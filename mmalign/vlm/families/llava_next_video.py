"""LLaVA-NeXT-Video: pictures as LLaVA 1.6, videos pooled to a quarter of their tokens per frame."""

from typing import ClassVar

from mmalign.vlm.families.llava_next import LlavaNextTraits
from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import MediaKind

__all__ = ["FAMILY", "LlavaNextVideoTraits"]


class LlavaNextVideoTraits(LlavaNextTraits):
    """Frames of a video are squares; only their number decides its length."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)
    sees: ClassVar[tuple[MediaKind, ...]] = ("image", "video")
    vision_parts: ClassVar[tuple[str, ...]] = (*LlavaNextTraits.vision_parts, "vision_resampler")


FAMILY = VlmFamily("llava_next_video", LlavaNextVideoTraits)

"""Video-LLaVA: two LanguageBind towers, for images and for videos of eight frames."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import MediaKind
from mmalign.vlm.traits import VlmTraits

__all__ = ["FAMILY", "VideoLlavaTraits"]


class VideoLlavaTraits(VlmTraits):
    """Squares of one size, whatever the picture."""

    model_types: ClassVar[tuple[str, ...]] = ("video_llava",)
    sees: ClassVar[tuple[MediaKind, ...]] = ("image", "video")
    vision_parts: ClassVar[tuple[str, ...]] = ("image_tower", "video_tower")

    def cleaned(self, kind: MediaKind, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pixels under the name that the model has for them; the processor's own is going out of use."""
        del kind
        return {
            "pixel_values" if name == "pixel_values_images" else name: value
            for name, value in tensors.items()
        }


FAMILY = VlmFamily("video_llava", VideoLlavaTraits)

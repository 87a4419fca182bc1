"""Video-LLaVA: two LanguageBind towers, for images and for videos of eight frames."""

import functools
import inspect
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
            _name_of_pixels() if name == "pixel_values_images" else name: value
            for name, value in tensors.items()
        }


@functools.cache
def _name_of_pixels() -> str:
    """What the installed transformers calls pictures: 5.17 still as the processor does."""
    from transformers import VideoLlavaModel

    known = inspect.signature(VideoLlavaModel.get_image_features).parameters
    return "pixel_values" if "pixel_values" in known else "pixel_values_images"


FAMILY = VlmFamily("video_llava", VideoLlavaTraits)

"""SmolVLM and Idefics 3: tiles in rows and columns with a text for each, and the whole picture."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.vlm.families.llava_next import padded_tiles
from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import MediaKind
from mmalign.vlm.traits import Settings, VlmTraits

__all__ = ["FAMILY", "SmolVLMTraits"]


class SmolVLMTraits(VlmTraits):
    """Empty tiles are left out by the model, which knows them by zeros."""

    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    language_part: ClassVar[str] = "text_model"
    vision_parts: ClassVar[tuple[str, ...]] = ("vision_model",)

    def together(self, kind: MediaKind, media: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tiles of all pictures with zeros behind, and the mask of their real pixels."""
        del kind
        number = max(tensors["pixel_values"].shape[1] for tensors in media)
        return {
            name: torch.cat([padded_tiles(tensors[name], number) for tensors in media]) for name in media[0]
        }

    def smaller(self, settings: Settings, share: float, largest: int) -> Settings | None:
        """A shorter longest side, down to one tile; then the picture without tiles."""
        del largest
        processor = self.processor.image_processor
        tile = int(processor.max_image_size["longest_edge"])
        if settings.get("do_image_splitting", processor.do_image_splitting) is False:
            return None
        edge = int(settings.get("size", processor.size)["longest_edge"])
        if edge <= tile:
            return {**settings, "do_image_splitting": False}
        shorter = min(int(edge * share**0.5), edge - tile)
        return {**settings, "size": {"longest_edge": max(shorter // tile * tile, tile)}}


FAMILY = VlmFamily("smolvlm", SmolVLMTraits)

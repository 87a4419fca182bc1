"""LLaVA 1.6: the whole picture and tiles of it, as many as its shape asks for."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import MediaKind
from mmalign.vlm.traits import Settings, VlmTraits

__all__ = ["FAMILY", "LlavaNextTraits"]


class LlavaNextTraits(VlmTraits):
    """A smaller picture takes fewer tiles, so pictures are shrunk before they are tiled."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)

    def together(self, kind: MediaKind, media: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Pixel values with empty tiles behind the real ones, of which the model takes each image's own."""
        if kind == "video":
            return super().together(kind, media)
        number = max(tensors["pixel_values"].shape[1] for tensors in media)
        tiles = [padded_tiles(tensors["pixel_values"], number) for tensors in media]
        rest = {
            name: torch.cat([tensors[name] for tensors in media])
            for name in media[0]
            if name != "pixel_values"
        }
        return {"pixel_values": torch.cat(tiles), **rest}

    def smaller(self, settings: Settings, share: float, largest: int) -> Settings | None:
        """Pictures of fewer pixels, down to one tile."""
        del largest
        edges = [side for size in self.config.image_grid_pinpoints for side in size]
        floor, now = (
            int(self.config.vision_config.image_size) ** 2,
            settings.get("max_pixels", max(edges) ** 2),
        )
        return None if now <= floor else {**settings, "max_pixels": max(floor, int(now * min(share, 0.75)))}


def padded_tiles(values: Tensor, number: int) -> Tensor:
    """`[image, tile, ...]` with zeros behind its tiles, up to `number`."""
    rest = values.new_zeros(values.shape[0], number - values.shape[1], *values.shape[2:])
    return torch.cat([values, rest], dim=1)


FAMILY = VlmFamily("llava_next", LlavaNextTraits)

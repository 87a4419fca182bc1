"""InternVL 3 in the format of transformers: tiles of 448 pixels, videos as tiles too."""

from typing import ClassVar

from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import MediaKind
from mmalign.vlm.traits import Settings, VlmTraits

__all__ = ["FAMILY", "InternVLTraits"]


class InternVLTraits(VlmTraits):
    """A frame of a video is a picture with one tile; both stand in the same placeholders."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    sees: ClassVar[tuple[MediaKind, ...]] = ("image", "video")

    def feature_kind(self, kind: MediaKind) -> MediaKind:
        """Pictures, all of them."""
        del kind
        return "image"

    def smaller(self, settings: Settings, share: float, largest: int) -> Settings | None:
        """Fewer tiles, down to one."""
        now = settings.get("max_patches", self.processor.image_processor.max_patches)
        tiles = max(largest // int(self.processor.image_seq_length), 1)
        wanted = max(int(min(now, tiles) * share), 1)
        return None if now <= 1 else {**settings, "max_patches": min(wanted, now - 1)}


FAMILY = VlmFamily("internvl", InternVLTraits)

"""LLaVA-OneVision: tiles of one picture, or many pictures, or a video, on SigLIP and Qwen2."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmalign.vlm.families.llava_next import LlavaNextTraits
from mmalign.vlm.family import VlmFamily
from mmalign.vlm.inputs import Features, MediaKind, Medium
from mmalign.vlm.traits import rows_of

__all__ = ["FAMILY", "LlavaOnevisionTraits"]

_APART = "batch_num_images"


class LlavaOnevisionTraits(LlavaNextTraits):
    """A picture alone is tiled; several pictures of one prompt are not, so they are processed together."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    sees: ClassVar[tuple[MediaKind, ...]] = ("image", "video")

    def alone(self, number: int) -> bool:
        """Only a single picture is."""
        return number == 1

    def one_of(self, tensors: Mapping[str, Tensor], place: int, num_tokens: int) -> dict[str, Tensor]:
        """One of several pictures, marked as such by the number of pictures it came with."""
        own = super().one_of({n: v for n, v in tensors.items() if n != _APART}, place, num_tokens)
        return {**own, _APART: tensors[_APART][:1]}

    def group(self, medium: Medium) -> tuple[int, ...]:
        """Tiled pictures, and those of prompts with several."""
        if medium.kind == "video":
            return super().group(medium)
        return (int(medium.tensors[_APART][0] > 1),)

    def together(self, kind: MediaKind, media: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """As LLaVA 1.6; numbers of pictures once per prompt that shows them."""
        made = super().together(kind, media)
        if kind == "image":
            counts, place = made[_APART].tolist(), 0
            per_prompt = []
            while place < len(counts):
                per_prompt.append(counts[place])
                place += counts[place]
            made[_APART] = torch.tensor(per_prompt)
        return made

    def features(self, base: Any, kind: MediaKind, tensors: Mapping[str, Tensor]) -> Features:
        """Of one group; whether its pictures are tiled is told by a number that only says one or more."""
        if kind == "video":
            return self._clip_features(base, tensors)
        images = tensors["image_sizes"].shape[0]
        several = bool(tensors[_APART][0] > 1)
        # Counts of images per prompt decide nothing but that: two for each picture would count them twice.
        counts = torch.tensor([max(images, 2)] if several else [1] * images)
        rest = {name: value for name, value in tensors.items() if name != _APART}
        return rows_of(base.get_image_features(**rest, batch_num_images=counts, return_dict=True))

    def _clip_features(self, base: Any, tensors: Mapping[str, Tensor]) -> Features:
        """Of clips; transformers 5.17 names pixels otherwise, and leaves the break behind a clip to us."""
        if "pixel_values_videos" in inspect.signature(base.get_video_features).parameters:
            return super().features(base, "video", tensors)
        found = base.get_video_features(tensors["pixel_values_videos"], return_dict=True)
        clips = found.pooler_output
        found.pooler_output = torch.cat([clips, base.image_newline.expand(len(clips), 1, -1)], dim=1)
        return rows_of(found)


FAMILY = VlmFamily("llava_onevision", LlavaOnevisionTraits)

"""What the Qwen-VL families share: patches of all images in one row, positions in time, height and width."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.vlm.inputs import Features, MediaKind, Medium, VlmInputs
from mmalign.vlm.traits import Settings, VlmTraits, rows_of

__all__ = ["QwenTraits"]

_READ = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
"""What the vision tower reads."""


class QwenTraits(VlmTraits):
    """The size of an image is its number of tokens: the processor keeps it between two numbers of pixels."""

    sees: ClassVar[tuple[MediaKind, ...]] = ("image", "video")
    projector_parts: ClassVar[tuple[str, ...]] = ("merger", "deepstack_merger_list")
    num_frames: ClassVar[int | None] = None
    one_grid_per_frame: ClassVar[bool] = False

    @property
    def _cell(self) -> int:
        """Pixels of the side of a visual token."""
        vision = self.config.vision_config
        return int(vision.patch_size) * int(vision.spatial_merge_size)

    def _interval(self, medium: Medium) -> float:
        """Positions between two frames of a video."""
        del medium
        return 1.0

    # --- positions ------------------------------------------------------------------------------------------

    def positions(
        self, ids: Int[Tensor, " position"], kinds: Int[Tensor, " position"], media: Sequence[Medium]
    ) -> tuple[Int[Tensor, "axis position"], int]:
        """Text counts on in all axes; a visual token adds its place in the grid to where its medium starts.

        Source: M-RoPE of arXiv 2409.12191, section 2.1; time in seconds of arXiv 2502.13923.
        """
        del ids
        grids = self._grids(media)
        pieces, start = [], 0
        for kind, run in groupby(kinds.tolist()):
            number = sum(1 for _ in run)
            if kind == 0:
                pieces.append((start + torch.arange(number)).expand(3, -1))
                start += number
                continue
            (time, height, width), interval = next(grids["image" if kind == 1 else "video"])
            axes = torch.meshgrid(
                (torch.arange(time) * interval).long(),
                torch.arange(height),
                torch.arange(width),
                indexing="ij",
            )
            pieces.append(start + torch.stack(axes).flatten(1))
            start += max(height, width)
        positions = torch.cat(pieces, dim=1)
        # After all, text goes on behind the largest position of any axis.
        return positions, int(positions.max()) + 1 if kinds[-1] else start

    def _grids(self, media: Sequence[Medium]) -> dict[str, Iterator[tuple[tuple[int, int, int], float]]]:
        """Grids of visual tokens in reading order, with the positions between their frames."""
        merge = int(self.config.vision_config.spatial_merge_size)
        found: dict[str, list[tuple[tuple[int, int, int], float]]] = {"image": [], "video": []}
        for medium in media:
            time, height, width = medium.tensors[_READ[medium.kind][1]][0].tolist()
            split = medium.kind == "video" and self.one_grid_per_frame
            interval = self._interval(medium) if medium.kind == "video" else 1.0
            grid = (1 if split else time, height // merge, width // merge)
            found[medium.kind] += [(grid, interval)] * (time if split else 1)
        return {kind: iter(grids) for kind, grids in found.items()}

    # --- media ----------------------------------------------------------------------------------------------

    def image_settings(self, *, min_pixels: int | None, max_pixels: int | None) -> Settings:
        """Sizes of an image as the processor takes them."""
        if min_pixels is None and max_pixels is None:
            return {}
        own = self.processor.image_processor.size
        size = {
            "shortest_edge": min_pixels or own["shortest_edge"],
            "longest_edge": max_pixels or own["longest_edge"],
        }
        size["shortest_edge"] = min(size.values())
        return {"size": size, **({} if max_pixels is None else {"max_pixels": max_pixels})}

    def smaller(self, settings: Settings, share: float, largest: int) -> Settings | None:
        """Images of that share of the tokens that the largest has now, down to four tokens."""
        pixels = int(max(largest * share, 4.0)) * self._cell**2
        if largest <= 4 or settings.get("max_pixels", pixels + 1) <= pixels:
            return None
        return self.image_settings(min_pixels=4 * self._cell**2, max_pixels=pixels)

    def group(self, medium: Medium) -> tuple[int, ...]:
        """All together: patches have one size."""
        del medium
        return ()

    def features(self, base: Any, kind: MediaKind, tensors: Mapping[str, Tensor]) -> Features:
        """Of all media at once."""
        encode = base.get_image_features if kind == "image" else base.get_video_features
        return rows_of(encode(*(tensors[name] for name in _READ[kind]), return_dict=True))

    # --- the network ----------------------------------------------------------------------------------------

    def native_arguments(self, inputs: VlmInputs) -> dict[str, Tensor]:
        """Kinds of tokens, without which Qwen2.5-VL would take positions in one dimension."""
        return {"mm_token_type_ids": inputs.kinds.to(torch.int32)}

    def generation_arguments(self, kinds: Int[Tensor, "row position"]) -> dict[str, Tensor]:
        """Kinds of tokens."""
        return {"mm_token_type_ids": kinds.to(torch.int32)}

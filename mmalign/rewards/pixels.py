"""Pixel geometry of rewards: how a picture becomes the square a vision tower reads.

Published rewards differ in which side is brought to size, how sizes and odd crop margins are rounded, whether
the resize is antialiased and whether it runs on 8-bit pictures or on tensors. Each of these moves scores, so
each is a field of `Preprocessing`, and all of them stand in the reward's fingerprint.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from mmalign.errors import CheckpointError, ConfigError, ShapeError, explain

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "Preprocessing",
    "crop_offset",
    "longest_pad",
    "longest_size",
    "normalise",
    "pad_margins",
    "resize",
    "shortest_crop",
    "shortest_size",
    "to_float",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Resample = Literal["bicubic", "bilinear"]
Rounding = Literal["floor", "nearest"]
Crop = Literal["even", "floor"]

_MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
_PIL_NUMBERS = {2: "bilinear", 3: "bicubic"}


def shortest_size(height: int, width: int, size: int, *, rounding: Rounding = "floor") -> tuple[int, int]:
    """(height, width) after the shorter side was brought to `size`.

    The longer side is floor(size * long / short), or floor(side * size / short + 0.5) with "nearest".

    Source: torchvision `Resize`, which Hugging Face's CLIP processors follow ("floor"); RockeyCoss/SPO
    `step_aware_preference_model.py` ("nearest").
    """
    short = min(height, width)
    if rounding == "nearest":
        return int(height * (size / short) + 0.5), int(width * (size / short) + 0.5)
    return (
        size if height == short else int(size * height / short),
        size if width == short else int(size * width / short),
    )


def crop_offset(extent: int, size: int, *, rule: Crop = "even") -> int:
    """First pixel of a centre crop; for odd margins the two rules may be one pixel apart.

    Args:
        extent: of the picture along one side.
        size: of the crop.
        rule: "even" rounds half a margin to the even integer (torchvision), "floor" down (Hugging Face).
    """
    margin = extent - size
    return round(margin / 2) if rule == "even" else margin // 2


def longest_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) after the longer side was brought to `size`: halves to even, at least one pixel.

    Source: tgxs002/HPSv2 `ResizeMaxSize`.
    """
    scale = size / float(max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def pad_margins(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) pixels that centre a picture in a square; an odd one is right or bottom."""
    across, down = size - width, size - height
    return across // 2, down // 2, across - across // 2, down - down // 2


def to_float(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """An 8-bit RGB picture as float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0


def resize(
    image: Image.Image | Tensor,
    size: tuple[int, int],
    *,
    antialias: bool = True,
    resample: Resample = "bicubic",
) -> Image.Image | Tensor:
    """The picture at (height, width) `size`: Pillow for PIL images, a differentiable resize for tensors.

    Bicubic tensors may leave [0, 1] beside sharp edges; Pillow clips them.

    Raises:
        ConfigError: Pillow always antialiases.
    """
    if isinstance(image, Tensor):
        if tuple(image.shape[-2:]) == size:
            return image
        resized: Tensor = transforms.resize(
            image, list(size), interpolation=_MODES[resample], antialias=antialias
        )
        return resized
    if not antialias:
        message = explain(
            "preprocessing",
            got="[antialias=False on 8-bit pictures]",
            expected="antialias=True, which is all Pillow does",
            do="Use the tensor backend.",
        )
        raise ConfigError(message)
    mode = Image.Resampling.BICUBIC if resample == "bicubic" else Image.Resampling.BILINEAR
    return image.resize((size[1], size[0]), mode)


def _extent(image: Image.Image | Tensor) -> tuple[int, int]:
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    return image.height, image.width


def shortest_crop(
    image: Image.Image | Tensor,
    size: int,
    *,
    antialias: bool = True,
    resample: Resample = "bicubic",
    crop: Crop = "even",
    rounding: Rounding = "floor",
) -> Float[Tensor, "*batch 3 size size"]:
    """The centre square of a picture whose shorter side was brought to `size`; in [0, 1], not normalised.

    Args:
        image: 8-bit RGB picture, or floating point [..., 3, height, width] in [0, 1].
        size: pixels of the square's side.
        antialias: of the resize; tensors only.
        resample: filter.
        crop: how odd margins are rounded (`crop_offset`).
        rounding: how the longer side is rounded (`shortest_size`).
    """
    wanted = shortest_size(*_extent(image), size, rounding=rounding)
    resized = resize(image, wanted, antialias=antialias, resample=resample)
    pixels = resized if isinstance(resized, Tensor) else to_float(resized)
    top, left = (crop_offset(extent, size, rule=crop) for extent in wanted)
    return pixels[..., top : top + size, left : left + size]


def longest_pad(
    image: Image.Image | Tensor, size: int, *, antialias: bool = True, resample: Resample = "bicubic"
) -> Float[Tensor, "*batch 3 size size"]:
    """The whole picture, its longer side at `size`, centred on black; in [0, 1], not normalised.

    Black is 0 before normalisation. Source: tgxs002/HPSv2 `hpsv2/src/open_clip/transform.py`.
    """
    wanted = longest_size(*_extent(image), size)
    resized = resize(image, wanted, antialias=antialias, resample=resample)
    pixels = resized if isinstance(resized, Tensor) else to_float(resized)
    left, top, right, bottom = pad_margins(*wanted, size)
    return torch.nn.functional.pad(pixels, (left, right, top, bottom))


def normalise(
    pixels: Float[Tensor, "*batch 3 height width"],
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Float[Tensor, "*batch 3 height width"]:
    """(pixels - mean) / std, per channel."""
    centre = torch.tensor(mean, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    spread = torch.tensor(std, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    return (pixels - centre) / spread


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to what a vision tower reads.

    Args:
        size: pixels of the square's side.
        fit: "crop" brings the shorter side to size and crops, "pad" the longer one and pads, "squash" both.
        crop: how odd crop margins are rounded.
        backend: files are resized by Pillow as 8-bit pictures, or as tensors.
        antialias: of the tensor resize.
        resample: filter.
        mean: per channel.
        std: per channel.
    """

    size: int = 224
    fit: Literal["crop", "pad", "squash"] = "crop"
    crop: Crop = "even"
    backend: Literal["pil", "tensor"] = "pil"
    antialias: bool = True
    resample: Resample = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        """Refuse what Pillow cannot do.

        Raises:
            ConfigError: a resize without antialiasing by Pillow, or an unknown backend.
        """
        if self.backend not in ("pil", "tensor"):
            raise ConfigError(
                explain("preprocessing backend", got=self.backend, expected="'pil' or 'tensor'")
            )
        if self.backend == "pil" and not self.antialias:
            message = explain(
                "preprocessing",
                got="[antialias=False with backend='pil']",
                expected="antialias=True, which is all Pillow does",
                do="Set backend='tensor'.",
            )
            raise ConfigError(message)

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """An 8-bit RGB picture, ready for the tower."""
        return normalise(self._fit(image if self.backend == "pil" else to_float(image)), self.mean, self.std)

    def tensor(self, pixels: Float[Tensor, "sample 3 height width"]) -> Float[Tensor, "sample 3 size size"]:
        """Pixels in [0, 1], ready for the tower; keeps the graph.

        Where files go through Pillow, the overshoot of the bicubic filter is clipped as Pillow does.

        Raises:
            ShapeError: no floating-point [sample, 3, height, width].
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            got = f"[{pixels.dtype} {list(pixels.shape)}]"
            expected = "floating point [sample, 3, height, width] in [0, 1]"
            raise ShapeError(explain("score_tensor pixels", got=got, expected=expected))
        fitted = self._fit(pixels)
        return normalise(fitted.clamp(0.0, 1.0) if self.backend == "pil" else fitted, self.mean, self.std)

    def _fit(self, image: Image.Image | Tensor) -> Tensor:
        filtered: dict[str, Any] = {"antialias": self.antialias, "resample": self.resample}
        if self.fit == "crop":
            return shortest_crop(image, self.size, crop=self.crop, **filtered)
        if self.fit == "pad":
            return longest_pad(image, self.size, **filtered)
        squashed = resize(image, (self.size, self.size), **filtered)
        return squashed if isinstance(squashed, Tensor) else to_float(squashed)

    def settings(self) -> dict[str, Any]:
        """All fields as JSON types, for the fingerprint."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_folder(cls, folder: Path, *, crop: Crop = "even") -> "Preprocessing":
        """What a model folder's `preprocessor_config.json` says.

        Args:
            folder: of the model.
            crop: rounding of odd margins, which the file does not say.

        Raises:
            CheckpointError: it asks for something else than resizing to a square and normalising.
        """
        path = folder / "preprocessor_config.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        size, cut = stored.get("size", 224), stored.get("crop_size", stored.get("size", 224))
        if isinstance(cut, dict):
            cut = cut.get("height", cut.get("shortest_edge"))
        squash = isinstance(size, dict) and "shortest_edge" not in size
        side = size.get("height" if squash else "shortest_edge") if isinstance(size, dict) else size
        crops = not squash and stored.get("do_center_crop", True)
        resample = _PIL_NUMBERS.get(stored.get("resample", 3))
        rescaled = stored.get("rescale_factor", 1 / 255)
        ordinary = abs(rescaled * 255 - 1) < 1e-6 and resample is not None and (squash or crops)
        if not ordinary or (crops and side != cut) or not isinstance(side, int):
            message = explain(
                str(path),
                got=f"[{json.dumps(stored)}]",
                expected="a resize to one side, a centre crop of that side and a normalisation",
            )
            raise CheckpointError(message)
        return cls(
            size=side,
            fit="squash" if squash else "crop",
            crop=crop,
            resample="bilinear" if resample == "bilinear" else "bicubic",
            mean=tuple(stored.get("image_mean", CLIP_MEAN)),
            std=tuple(stored.get("image_std", CLIP_STD)),
        )

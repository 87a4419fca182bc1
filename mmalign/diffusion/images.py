"""The images of a row as one uint8 tensor: resized each on its own, cropped and flipped together.

The official trainers draw crop and flip for each image of a pair, or stretch one image to the other's size.
Here the row's key decides one relative crop window and one flip; every candidate keeps its aspect ratio.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.data.config import ImageLimits
from mmalign.data.media import decode_image, read_media
from mmalign.errors import ConfigError, RowError
from mmalign.seeding import derive_seed

__all__ = [
    "RESIZE_RULE",
    "Augmentation",
    "Candidates",
    "ImageLoader",
    "augmentation_of",
    "image_key",
    "load_candidates",
]

RESIZE_RULE = "pillow-bilinear-antialias-jpegdraft"
"""Names everything between file and crop; it is part of every cache key."""

Crop = Literal["center", "random"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One draw for all candidates of a row.

    Args:
        flip: mirror left and right.
        window: (vertical, horizontal) place of the crop in [0, 1); None = centre.
    """

    flip: bool = False
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Candidates:
    """The images of one row.

    Args:
        pixels: RGB, 0 to 255.
        geometry: per candidate (original height, original width, crop top, crop left, target height, target
            width) in pixels; crop offsets are those of the resized and, if drawn, mirrored image. Also known
            as time_ids.
        flipped: whether they were mirrored.
    """

    pixels: UInt8[Tensor, "candidate 3 height width"]
    geometry: Int[Tensor, "candidate 6"]
    flipped: bool

    @property
    def inputs(self) -> UInt8[Tensor, "candidate 3 height width"]:
        """What the VAE encodes."""
        return self.pixels


def augmentation_of(key: int, *, crop: Crop, flip: bool) -> Augmentation:
    """The crop window and flip that a row's key decides; all its candidates share them.

    Args:
        key: of the row and visit.
        crop: "center", or "random".
        flip: whether flips are drawn (probability 0.5).
    """
    draws = derive_seed(key, "augmentation")
    vertical, horizontal = (draws >> 1) & 0xFFFFFF, (draws >> 25) & 0xFFFFFF
    window = (vertical / 2**24, horizontal / 2**24) if crop == "random" else None
    return Augmentation(flip=flip and bool(draws & 1), window=window)


def _resized_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """(width, height), the shorter side at `resolution` and the longer rounded down, as in torchvision."""
    if width <= height:
        return resolution, int(resolution * height / width)
    return int(resolution * width / height), resolution


def _offset(room: int, place: float | None) -> int:
    """Where the crop begins, given the pixels left over and its relative place."""
    return round(room / 2.0) if place is None else min(int(place * (room + 1)), room)


def _place(image: Image.Image, resolution: int, augmentation: Augmentation) -> tuple[Image.Image, int, int]:
    """The crop, and its (top, left) in the resized and possibly mirrored image."""
    size = _resized_size(image.width, image.height, resolution)
    vertical, horizontal = augmentation.window or (None, None)
    top, left = _offset(size[1] - resolution, vertical), _offset(size[0] - resolution, horizontal)
    across, down = image.width / size[0], image.height / size[1]
    # Only the crop is computed: Pillow's filter sees the pixels around the box, so this equals resizing the
    # whole image and cropping, but for one grey level of rounding. It widens the filter when it shrinks, so
    # that detail does not alias.
    box = (left * across, top * down, (left + resolution) * across, (top + resolution) * down)
    image = image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)
    if augmentation.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left = size[0] - resolution - left
    return image, top, left


def image_key(data: bytes, *, resolution: int, flipped: bool) -> str:
    """The name of a centred crop's moments in a cache: a hash of its bytes and of all that was done."""
    digest = hashlib.blake2b(data, digest_size=16, person=b"mmalign-image")
    digest.update(f"|{RESIZE_RULE}|{resolution}|center|{'flip' if flipped else 'plain'}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ImageLoader:
    """How the images of rows become tensors; holds settings only, so that it travels to loader workers.

    Args:
        resolution: pixels of the square crop.
        crop: where it lies.
        flip: whether half of the rows are mirrored.
        limits: sizes that are refused.
    """

    resolution: int
    crop: Crop = "center"
    flip: bool = False
    limits: ImageLimits = field(default_factory=ImageLimits)

    def augmentation(self, key: int) -> Augmentation:
        """What a row's key decides."""
        return augmentation_of(key, crop=self.crop, flip=self.flip)

    def encoded(self, row: PreferenceRow) -> list[bytes]:
        """The encoded bytes of each candidate.

        Raises:
            RowError: missing, empty or too large.
        """
        found = []
        for number, candidate in enumerate(row.candidates):
            where = row.place_of(number)
            if candidate.image is None:
                message = f"{where}: got no image. Is the source's `media` set to what the rows hold?"
                raise RowError(message, reason="missing_image")
            found.append(read_media(candidate.image, where=where, max_bytes=self.limits.max_bytes))
        return found

    def keys(self, encoded: list[bytes], *, flipped: bool) -> list[str]:
        """Cache keys of each candidate.

        Raises:
            ConfigError: crops are random; no cache holds those.
        """
        if self.crop != "center":
            message = (
                f"image.crop: got {self.crop}, expected center with a cache: a random crop is another "
                "image at every "
                "visit. Set image.crop: center, or train without image.cache."
            )
            raise ConfigError(message)
        return [image_key(data, resolution=self.resolution, flipped=flipped) for data in encoded]

    def decode(self, row: PreferenceRow, encoded: list[bytes], augmentation: Augmentation) -> Candidates:
        """The candidates of a row under one augmentation.

        Raises:
            RowError: an image cannot be decoded.
        """
        geometry = []
        # Filled in place: stacking channels-last images through torch takes longer than decoding them.
        pixels = np.empty((len(encoded), 3, self.resolution, self.resolution), dtype=np.uint8)
        for number, data in enumerate(encoded):
            decoded = decode_image(
                data, where=row.place_of(number), limits=self.limits, shorter_side=self.resolution
            )
            image, top, left = _place(decoded.image, self.resolution, augmentation)
            pixels[number] = np.asarray(image).transpose(2, 0, 1)
            geometry.append([*decoded.original_size, top, left, self.resolution, self.resolution])
        return Candidates(
            pixels=torch.from_numpy(pixels),
            geometry=torch.tensor(geometry, dtype=torch.int64),
            flipped=augmentation.flip,
        )

    def centered(self, row: PreferenceRow, encoded: list[bytes], *, flipped: bool) -> Candidates:
        """What a cache holds of a row: the centre crops, plain or mirrored.

        Raises:
            RowError: an image cannot be decoded.
        """
        return self.decode(row, encoded, Augmentation(flip=flipped))

    def load(self, row: PreferenceRow, *, key: int) -> Candidates:
        """The candidates of a row; crop and flip are decided by `key`.

        Raises:
            RowError: an image is missing, unreadable or refused.
        """
        return self.decode(row, self.encoded(row), self.augmentation(key))


def load_candidates(
    row: PreferenceRow,
    *,
    resolution: int,
    crop: Crop,
    flip: bool,
    key: int,
    limits: ImageLimits | None = None,
) -> Candidates:
    """The images of a row as `[candidate, 3, resolution, resolution]` with their geometry.

    Each image is resized on its own (shorter side to `resolution`, antialiased bilinear), then all are
    cropped at one relative window and mirrored together.

    Args:
        row: its candidates hold encoded images or paths.
        resolution: pixels.
        crop: "center" or "random".
        flip: mirror with probability 0.5.
        key: decides window and flip.
        limits: sizes that are refused; default `ImageLimits()`.

    Raises:
        RowError: an image is missing, unreadable or refused; with its reason.
    """
    loader = ImageLoader(resolution=resolution, crop=crop, flip=flip, limits=limits or ImageLimits())
    return loader.load(row, key=key)

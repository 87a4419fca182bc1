"""Features without a network: pixels of a small copy, a histogram of colours, counts of words."""

import re
import zlib
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, explain
from mmalign.rewards.pixels import to_float

__all__ = ["PixelFeatures"]

_WORD = re.compile(r"\w+")
_COPY = 64
"""Side of the copy whose colours are counted."""


@dataclass(frozen=True)
class PixelFeatures:
    """Pixels of the picture as a small square, its colours, and how often each word stands in a text.

    Args:
        size: side of the square.
        colours: steps per channel of the histogram of colours; 1 leaves it out.
        words: width of a text's features; words share a place where their hashes do.

    Raises:
        ConfigError: a size below 1.
    """

    size: int = 16
    colours: int = 4
    words: int = 64

    def __post_init__(self) -> None:
        for name in ("size", "colours", "words"):
            if getattr(self, name) < 1:
                message = explain(f"backbone pixels {name}", got=getattr(self, name), expected="1 or more")
                raise ConfigError(message)

    @property
    def item_width(self) -> int:
        """Numbers per picture."""
        return 3 * self.size**2 + (self.colours**3 if self.colours > 1 else 0)

    def of_image(self, image: Image.Image) -> Float[Tensor, " item"]:
        """Features of a picture."""
        return self.of_tensor(to_float(image)[None])[0]

    def of_tensor(self, pixels: Float[Tensor, "sample 3 height width"]) -> Float[Tensor, "sample item"]:
        """Features of pictures in [0, 1], with their graph."""
        small = F.interpolate(
            pixels.float(), (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
        )
        if self.colours == 1:
            return small.flatten(1)
        return torch.cat([small.flatten(1), self._histogram(pixels.float())], dim=1)

    def _histogram(self, pixels: Tensor) -> Tensor:
        """Share of each colour, [sample, colours^3]; a pixel counts for its neighbours in the grid too."""
        copy = F.interpolate(pixels, (_COPY, _COPY), mode="bilinear", align_corners=False, antialias=True)
        steps = torch.linspace(0.0, 1.0, self.colours, dtype=copy.dtype, device=copy.device)
        distance = (copy.flatten(2)[..., None] - steps).abs() * (self.colours - 1)
        red, green, blue = (1.0 - distance).clamp(min=0.0).unbind(dim=1)
        shares = torch.einsum("spr,spg,spb->srgb", red, green, blue) / copy[0, 0].numel()
        return shares.flatten(1)

    def of_text(self, text: str) -> Float[Tensor, " word"]:
        """Counts of words and of neighbours, at places decided by their CRC."""
        words = _WORD.findall(text.lower())
        found = torch.zeros(self.words)
        for term in [*words, *(f"{one} {two}" for one, two in pairwise(words))]:
            found[zlib.crc32(term.encode()) % self.words] += 1.0
        return found

    def settings(self) -> dict[str, Any]:
        """Sizes and rules."""
        return {**asdict(self), "copy": _COPY, "resize": "bilinear, antialias", "hash": "crc32"}

"""Operators that spoil one image: each keeps its size, so that both images become as many visual tokens.

All of them work on decoded pictures, before any processor. Where a paper works on the tensor of its processor
the docstring says so, and what the difference is.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from mmalign.errors import HyperparameterError, explain

__all__ = [
    "Record",
    "black",
    "block_mask",
    "crop",
    "diffusion_noise",
    "gaussian",
    "mean_colour",
    "mixup",
    "noise_levels",
    "other_image",
    "pixel_mask",
    "rotate",
]

Record = Mapping[str, float | int | str]
"""What was drawn."""

Pixels = Float32[np.ndarray, "height width 3"]

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
"""Of CLIP's processor, in units of 1: the tower of LLaVA, for which most corruptions were made."""

_SMALLEST_CROP = 0.01
_ASPECTS = (3 / 4, 4 / 3)
_BLOCK = 14
_NOISE_STEPS = 1000
_NOISE_RATES = (1e-5, 5e-3)


def _pixels(image: Image.Image) -> Pixels:
    """Values in [0, 1]."""
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0


def _image(pixels: Pixels) -> Image.Image:
    """The nearest picture of 8 bits."""
    return Image.fromarray(np.rint(pixels.clip(0.0, 1.0) * 255.0).astype(np.uint8))


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Float32[np.ndarray, "..."]:
    drawn: Float32[np.ndarray, "..."] = torch.randn(shape, generator=generator).numpy()
    return drawn


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        message = explain(f"{name} strength", got=value, expected=f"{low:g} to {high:g}")
        raise HyperparameterError(message)


def crop(image: Image.Image, strength: float, generator: torch.Generator) -> tuple[Image.Image, Record]:
    """A random part of 1 % to `strength` of the area, stretched to the size of the whole.

    Its aspect ratio, seen on the image, is drawn log-uniformly between 3/4 and 4/3, as torchvision's
    `RandomResizedCrop` does.

    Source: luka-group/mDPO 2221bb3, bunny/modeling_bunny_phi.py (there on the processed tensor).
    """
    _within("crop", strength, _SMALLEST_CROP, 1.0)
    width, height = image.size
    share = _uniform(generator, _SMALLEST_CROP, strength)
    aspect = math.exp(_uniform(generator, math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
    area = share * width * height
    # A long narrow image may be too narrow for the aspect: the box then takes all of the narrow side.
    box_width = min(width, max(1, round(math.sqrt(area * aspect))))
    box_height = min(height, max(1, round(area / box_width)))
    box_width = min(width, max(1, round(area / box_height)))
    left = int(torch.randint(width - box_width + 1, (), generator=generator))
    top = int(torch.randint(height - box_height + 1, (), generator=generator))
    box = (left, top, left + box_width, top + box_height)
    part = image.convert("RGB").crop(box).resize(image.size, Image.Resampling.BILINEAR)
    drawn = {"left": left, "top": top, "width": box_width, "height": box_height}
    return part, {**drawn, "share": box_width * box_height / (width * height)}


def noise_levels() -> Float32[np.ndarray, " step"]:
    """Share of the signal's variance that is left at each of 1000 steps, 1 at the first.

    Rates are sigmoid(-6 ... 6) * (5e-3 - 1e-5) + 1e-5; the share is the running product of 1 - rate.

    Source: YiyangZhou/POVID 92c7c67 and LVUGAI/CHiP e7f5193.
    """
    low, high = _NOISE_RATES
    rates = torch.sigmoid(torch.linspace(-6, 6, _NOISE_STEPS, dtype=torch.float64)) * (high - low) + low
    levels: Float32[np.ndarray, " step"] = torch.cumprod(1.0 - rates, dim=0).float().numpy()
    return levels


def diffusion_noise(
    image: Image.Image, strength: float, generator: torch.Generator
) -> tuple[Image.Image, Record]:
    """sqrt(a) x + sqrt(1 - a) noise at step `strength` of 1000, x being pixels normalised by CLIP.

    Papers add it to the processed tensor; here the result becomes a picture of 8 bits again, so values
    outside its range are cut off, and the noise is of the size of the picture, not of the processed tensor.

    Source: YiyangZhou/POVID 92c7c67 and LVUGAI/CHiP e7f5193, step 500.
    """
    _within("diffusion_noise", strength, 0.0, _NOISE_STEPS - 1.0)
    step = int(strength)
    level = float(noise_levels()[step])
    normalised = (_pixels(image) - _MEAN) / _STD
    noise = _normal(normalised.shape, generator)
    noised = (math.sqrt(level) * normalised + math.sqrt(1.0 - level) * noise) * _STD + _MEAN
    return _image(noised.astype(np.float32)), {"step": step, "signal": level}


def _masked(
    image: Image.Image, share: float, generator: torch.Generator, size: int
) -> tuple[Image.Image, Record]:
    """Squares of `size` pixels, each with probability `share`, in the image's mean colour."""
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    cells = (-(-height // size), -(-width // size))
    hidden = (torch.rand(cells, generator=generator) < share).numpy()
    mask = hidden.repeat(size, axis=0).repeat(size, axis=1)[:height, :width]
    pixels[mask] = pixels.mean(axis=(0, 1))
    return _image(pixels), {"hidden": float(mask.mean())}


def pixel_mask(image: Image.Image, strength: float, generator: torch.Generator) -> tuple[Image.Image, Record]:
    """Each pixel, all channels, becomes the image's mean colour with probability `strength`.

    Source: zhyang2226/OPA-DPO db90180, p = 0.3 (there on the processed tensor).
    """
    _within("pixel_mask", strength, 0.0, 1.0)
    return _masked(image, strength, generator, 1)


def block_mask(image: Image.Image, strength: float, generator: torch.Generator) -> tuple[Image.Image, Record]:
    """The same in squares of 14 pixels, an image patch of CLIP ViT-L/14 where nothing is resized.

    Source: zhyang2226/OPA-DPO db90180.
    """
    _within("block_mask", strength, 0.0, 1.0)
    return _masked(image, strength, generator, _BLOCK)


def black(image: Image.Image, strength: float, generator: torch.Generator) -> tuple[Image.Image, Record]:
    """Nothing but black; an option of LVUGAI/CHiP e7f5193."""
    del strength, generator
    return Image.new("RGB", image.size), {}


def mean_colour(
    image: Image.Image, strength: float, generator: torch.Generator
) -> tuple[Image.Image, Record]:
    """CLIP's mean colour throughout: its processor makes zeros of it, up to rounding to 8 bits.

    Source: YuxiXie/V-DPO ed27c32, where the tensor itself is zero.
    """
    del strength, generator
    red, green, blue = (round(float(value) * 255.0) for value in _MEAN)
    return Image.new("RGB", image.size, (red, green, blue)), {}


def gaussian(image: Image.Image, strength: float, generator: torch.Generator) -> tuple[Image.Image, Record]:
    """Nothing but noise: normalised pixels are normal with standard deviation `strength`.

    Source: YuxiXie/V-DPO ed27c32, the alternative to zeros (there on the tensor, not cut to 8 bits).
    """
    if strength < 0:
        message = explain("gaussian strength", got=strength, expected="a standard deviation >= 0")
        raise HyperparameterError(message)
    noise = _normal((image.height, image.width, 3), generator) * np.float32(strength)
    return _image((noise * _STD + _MEAN).astype(np.float32)), {"deviation": strength}


def rotate(image: Image.Image, strength: float, generator: torch.Generator) -> tuple[Image.Image, Record]:
    """Turned by `strength` / 2 to `strength` degrees, either way; corners are black, the size stays.

    Rotation is an option of LVUGAI/CHiP e7f5193; the range of angles is ours.
    """
    _within("rotate", strength, 0.0, 180.0)
    angle = _uniform(generator, strength / 2, strength)
    if _uniform(generator) < 0.5:
        angle = -angle
    turned = image.convert("RGB").rotate(angle, resample=Image.Resampling.BILINEAR)
    return turned, {"degrees": angle}


def other_image(
    image: Image.Image, strength: float, generator: torch.Generator, other: Image.Image
) -> tuple[Image.Image, Record]:
    """Another row's image, stretched to the size of this one.

    Source: mDPO (arXiv 2406.11839), ablation of rejected images.
    """
    del strength, generator
    return _stretched(other, image.size), {"width": other.width, "height": other.height}


def mixup(
    image: Image.Image, strength: float, generator: torch.Generator, other: Image.Image
) -> tuple[Image.Image, Record]:
    """(1 - strength) of the image and `strength` of another row's one, pixel by pixel.

    Source: the image term of yfzhang114/MM-RLHF 7c8af1d, and JOOD.
    """
    del generator
    _within("mixup", strength, 0.0, 1.0)
    return Image.blend(image.convert("RGB"), _stretched(other, image.size), strength), {"share": strength}


def _stretched(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize(size, Image.Resampling.BILINEAR)

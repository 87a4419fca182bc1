"""Factors that can be measured without a model: of pictures, of texts, and of prompts.

All are plain definitions on pixels and words, cheap enough for every sample of a run, and the first to move
when a model learns to please a reward (more saturation, more contrast, longer answers).
"""

import io
import math
import re

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.rewards.sample import Media, to_image

__all__ = ["IMAGE_FACTORS", "TEXT_FACTORS", "image_factors", "prompt_factors", "text_factors"]

IMAGE_FACTORS: dict[str, str] = {
    "brightness": "mean luma in [0, 1]",
    "contrast": "standard deviation of luma",
    "saturation": "mean of (max - min) / max over the colour channels",
    "colourfulness": "Hasler and Suesstrunk's measure on channels of 0 to 255",
    "warmth": "mean of red less blue, in [-1, 1]",
    "sharpness": "variance of the four-neighbour Laplacian of luma, picture shrunk to a short side of 256",
    "bytes_per_pixel": "size as JPEG of quality 95 without chroma subsampling, per pixel",
    "clipped": "share of pixels whose luma is below 2 or above 253 of 255",
    "megapixels": "width times height in millions",
    "aspect": "natural logarithm of width over height",
}
"""What `image_factors` measures."""

TEXT_FACTORS: dict[str, str] = {
    "words": "words",
    "characters": "characters without white space at the ends",
    "sentences": "sentences, at least 1 where there are words",
    "words_per_sentence": "words per sentence",
    "word_length": "mean letters per word",
    "distinct_words": "share of different words, case ignored",
    "list_items": "lines that begin with a bullet or a number",
    "headings": "lines that begin with # or are wholly bold",
    "bold": "bold spans",
    "code_blocks": "fenced blocks",
    "numbers": "numbers",
    "questions": "question marks",
    "exclamations": "exclamation marks",
    "hedges": "words of doubt (may, perhaps, it seems, ...) per 100 words",
    "boosters": "words of certainty (clearly, definitely, ...) per 100 words",
    "first_person": "I, me, my, we, us, our per 100 words",
    "second_person": "you, your per 100 words",
}
"""What `text_factors` measures."""

_LUMA = (0.299, 0.587, 0.114)
_SHORT_SIDE = 256
"""Sharpness depends on resolution; pictures larger than this are measured at one size."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f]+(?=\s|$|[\"')\u201d])")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LIST_ITEM = re.compile(r"^\s*(?:[-*+\u2022]|\(?\d{1,3}[.)])\s+\S", re.MULTILINE)
_MARKER = re.compile(r"^\s*\(?\d{1,3}[.)]\s", re.MULTILINE)
_HEADING = re.compile(r"^\s*(?:#{1,6}\s+\S.*|\*\*[^*\n]+\*\*:?\s*)$", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_HEDGE = re.compile(
    r"\b(?:may|might|could|perhaps|maybe|possibly|probably|presumably|seems?|seemingly|appears?|apparently|"
    r"likely|unlikely|roughly|somewhat|arguably|suggests?|i think|i believe|i guess|not sure|unclear|"
    r"hard to tell)\b",
    re.IGNORECASE,
)
_BOOSTER = re.compile(
    r"\b(?:clearly|definitely|certainly|obviously|undoubtedly|absolutely|surely|always|never|of course|"
    r"without doubt|in fact|indeed|exactly)\b",
    re.IGNORECASE,
)
_FIRST = re.compile(r"\b(?:i|me|my|mine|we|us|our|ours)\b", re.IGNORECASE)
_SECOND = re.compile(r"\b(?:you|your|yours)\b", re.IGNORECASE)


def _planes(image: Image.Image) -> Float[Tensor, "3 height width"]:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).double() / 255.0


def _luma(pixels: Float[Tensor, "3 height width"]) -> Float[Tensor, "height width"]:
    return (pixels * pixels.new_tensor(_LUMA).view(3, 1, 1)).sum(dim=0)


def _colourfulness(pixels: Float[Tensor, "3 height width"]) -> float:
    """sqrt(s_rg^2 + s_yb^2) + 0.3 sqrt(m_rg^2 + m_yb^2), rg = R - G, yb = (R + G) / 2 - B.

    Source: Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images".
    """
    red, green, blue = pixels * 255.0
    opponents = torch.stack([red - green, (red + green) / 2 - blue]).flatten(1)
    spread, mean = opponents.std(dim=1, correction=0).norm(), opponents.mean(dim=1).norm()
    return float(spread + 0.3 * mean)


def _sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian at one size; NaN for pictures less than three pixels wide or high."""
    shrink = _SHORT_SIDE / min(image.size)
    if shrink < 1:
        size = tuple(max(1, round(side * shrink)) for side in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BOX)
    luma = _luma(_planes(image))
    if min(luma.shape) < 3:
        return math.nan
    centre = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * centre).var(correction=0))


def _jpeg_bytes(image: Image.Image) -> int:
    stored = io.BytesIO()
    image.save(stored, format="JPEG", quality=95, subsampling=0)
    return stored.tell()


def image_factors(media: Media) -> dict[str, float]:
    """Factors of a picture, as `IMAGE_FACTORS` defines them.

    Args:
        media: a file, encoded bytes, a PIL image or an array.

    Raises:
        RowError: it cannot be read.
    """
    image = to_image(media)
    pixels = _planes(image)
    luma = _luma(pixels)
    most, least = pixels.amax(dim=0), pixels.amin(dim=0)
    saturation = torch.where(most > 0, (most - least) / most.clamp_min(1e-12), torch.zeros_like(most))
    width, height = image.size
    clipped = (luma < 2 / 255) | (luma > 253 / 255)
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std(correction=0)),
        "saturation": float(saturation.mean()),
        "colourfulness": _colourfulness(pixels),
        "warmth": float((pixels[0] - pixels[2]).mean()),
        "sharpness": _sharpness(image),
        "bytes_per_pixel": _jpeg_bytes(image) / (width * height),
        "clipped": float(clipped.double().mean()),
        "megapixels": width * height / 1e6,
        "aspect": math.log(width / height),
    }


def text_factors(text: str) -> dict[str, float]:
    """Factors of an answer, as `TEXT_FACTORS` defines them; all 0 for an empty one.

    Word lists are English.
    """
    words = _WORD.findall(text)
    count = len(words)
    ends = _SENTENCE.findall(_MARKER.sub("", text))  # the stop of "1." ends no sentence
    sentences = max(len(ends), 1 if words else 0)
    per_hundred = 100.0 / count if count else 0.0
    return {
        "words": float(count),
        "characters": float(len(text.strip())),
        "sentences": float(sentences),
        "words_per_sentence": count / sentences if sentences else 0.0,
        "word_length": sum(map(len, words)) / count if count else 0.0,
        "distinct_words": len({word.casefold() for word in words}) / count if count else 0.0,
        "list_items": float(len(_LIST_ITEM.findall(text))),
        "headings": float(len(_HEADING.findall(text))),
        "bold": float(len(_BOLD.findall(text))),
        "code_blocks": float(text.count("```") // 2),
        "numbers": float(len(_NUMBER.findall(text))),
        "questions": float(text.count("?")),
        "exclamations": float(text.count("!")),
        "hedges": len(_HEDGE.findall(text)) * per_hundred,
        "boosters": len(_BOOSTER.findall(text)) * per_hundred,
        "first_person": len(_FIRST.findall(text)) * per_hundred,
        "second_person": len(_SECOND.findall(text)) * per_hundred,
    }


def prompt_factors(prompt: str) -> dict[str, float]:
    """Length of a prompt in words, and its commas (stacked style words), as factors of what it was made into.

    Both things of a pair share them: they tell pairs apart, not their sides, and belong where pairs with
    different prompts are compared.
    """
    return {"prompt_words": float(len(_WORD.findall(prompt))), "prompt_commas": float(prompt.count(","))}

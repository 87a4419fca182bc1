"""Rows of several images made of rows of one: a sequence, a collage, a picture in a picture (MIA-DPO).

The question of a row is asked again about its image among others. The policy's answer is rejected where its
attention was elsewhere; the answer of the data is chosen.

Source: Liuziyu77/MIA-DPO a85c51a (arXiv 2410.17637) for layouts, sizes, ratios and filters.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

from mmalign.batch import Candidate, PreferenceRow
from mmalign.errors import HyperparameterError, explain
from mmalign.vlm.pair_making.output import png

__all__ = [
    "LIMITS",
    "Attended",
    "Composite",
    "Layout",
    "attention_ratio",
    "collage",
    "picture_in_picture",
    "rejects",
    "sequence",
    "with_noise",
]

Layout = Literal["sequence", "collage", "picture_in_picture"]

_TILE = 448
_MARGIN = 40
_GRIDS = {2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Tiles to (rows, columns); the numbers of tiles are released, how 2, 3 and 6 lie is ours."""

_INNER = 0.7
_PATCHES = 24
_CENTRE = 16

LIMITS: dict[tuple[Layout, int], float] = {
    **{("sequence", number): limit for number, limit in ((2, 0.8), (3, 0.7), (4, 0.6), (5, 0.6))},
    **{("collage", number): limit for number, limit in ((2, 0.7), (3, 0.6), (4, 0.5), (6, 0.4), (9, 0.3))},
    ("picture_in_picture", 2): 0.8,
}
"""Share of attention on the target up to which an answer counts as having looked elsewhere."""

_PLACES: dict[Layout, tuple[str, ...]] = {
    "sequence": (
        "In Image {number}, ",
        "Look at Image {number}. ",
        "Regarding Image {number}: ",
        "Considering only Image {number}, ",
    ),
    "collage": (
        "In the tile labelled Image {number}, ",
        "Look at the part labelled Image {number}. ",
        "Regarding the tile called Image {number}: ",
        "Considering only the tile Image {number}, ",
    ),
    "picture_in_picture": (
        "In the smaller picture at the centre, ",
        "Look at the inner picture. ",
        "Regarding the picture within the picture: ",
        "Considering only the inset in the middle, ",
    ),
}
"""Wordings that say which image is meant; the release has 80, these are ours."""


@dataclass(frozen=True)
class Composite:
    """A row of several images made of one row and others.

    Args:
        row: shows the new images and asks the new question; its candidate is the answer of the data.
        layout: how images are shown.
        number: of images.
        target: place of the image that is asked about, from 0.
        boxes: of a single picture: left, top, right, bottom of every part, as shares of width and height.
    """

    row: PreferenceRow
    layout: Layout
    number: int
    target: int
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    drawn: dict[str, str | int] = field(default_factory=dict)


def _asked(row: PreferenceRow, layout: Layout, place: int, draw: random.Random) -> str:
    """The question, with words in front that say which image is meant."""
    words = row.prompt.replace("<image>", "").strip()
    front = draw.choice(_PLACES[layout]).format(number=place + 1)
    # Behind a comma the question goes on; capitals that begin a name stay.
    goes_on = front.endswith(", ") and words[:2] == words[:1].upper() + words[1:2].lower()
    return front + (words[:1].lower() + words[1:] if goes_on and words[1:2].islower() else words)


def _composed(row: PreferenceRow, prompt: str, images: Sequence[bytes | str]) -> PreferenceRow:
    answer = row.candidates[0].text if row.candidates else None
    return replace(
        row,
        prompt=prompt,
        candidates=(Candidate(text=answer),) if answer else (),
        kind="chosen",
        images=tuple(images),
        messages=(),
        extras={},
    )


def _check(number: int, known: Sequence[int], layout: Layout) -> None:
    if number not in known:
        message = explain(f"{layout} images", got=number, expected=", ".join(map(str, known)))
        raise HyperparameterError(message)


def sequence(row: PreferenceRow, others: Sequence[bytes | str], *, seed: int) -> Composite:
    """The row's image at a random place among others; the question names the place.

    Args:
        row: one image, one question.
        others: 1 to 4 further images.
        seed: of place and wording.

    Raises:
        HyperparameterError: another number of images.
    """
    number = len(others) + 1
    _check(number, (2, 3, 4, 5), "sequence")
    draw = random.Random(seed)
    target = draw.randrange(number)
    images = [*others[:target], row.images[0], *others[target:]]
    made = _composed(row, _asked(row, "sequence", target, draw), images)
    return Composite(made, "sequence", number, target)


def collage(
    row: PreferenceRow, image: Image.Image, others: Sequence[Image.Image], *, seed: int, noise: float = 0.0
) -> Composite:
    """One picture of labelled tiles of 448 x 448, a white margin of 40 pixels around all of them.

    Args:
        row: one image, one question.
        image: the row's, decoded.
        others: 1, 2, 3, 5 or 8 further ones.
        seed: of place, wording and noise.
        noise: standard deviation on the other tiles; see `with_noise`.

    Raises:
        HyperparameterError: another number of tiles.
    """
    number = len(others) + 1
    _check(number, tuple(_GRIDS), "collage")
    draw = random.Random(seed)
    target = draw.randrange(number)
    spoilt = [with_noise(other, noise, seed=draw.getrandbits(32)) for other in others]
    tiles = [*spoilt[:target], image, *spoilt[target:]]
    height, width = (_TILE * cells + 2 * _MARGIN for cells in _GRIDS[number])
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=28)
    boxes = []
    for place, tile in enumerate(tiles):
        left = _MARGIN + _TILE * (place % _GRIDS[number][1])
        top = _MARGIN + _TILE * (place // _GRIDS[number][1])
        canvas.paste(tile.convert("RGB").resize((_TILE, _TILE), Image.Resampling.BICUBIC), (left, top))
        label = f"Image {place + 1}"
        spot = pen.textbbox((left + 6, top + 6), label, font=font)
        pen.rectangle((left, top, spot[2] + 6, spot[3] + 6), fill="white")
        pen.text((left + 6, top + 6), label, fill="black", font=font)
        boxes.append((left / width, top / height, (left + _TILE) / width, (top + _TILE) / height))
    made = _composed(row, _asked(row, "collage", target, draw), [png(canvas)])
    return Composite(made, "collage", number, target, tuple(boxes))


def picture_in_picture(
    row: PreferenceRow, image: Image.Image, other: Image.Image, *, seed: int, noise: float = 0.0
) -> Composite:
    """The row's image at 0.7 of the width and height of another one, at its centre.

    Args:
        row: one image, one question.
        image: the row's, decoded.
        other: the picture around it.
        seed: of wording and noise.
        noise: standard deviation on the outer picture; see `with_noise`.
    """
    draw = random.Random(seed)
    canvas = with_noise(other, noise, seed=draw.getrandbits(32)).convert("RGB").copy()
    width, height = (max(1, round(side * _INNER)) for side in canvas.size)
    left, top = (canvas.width - width) // 2, (canvas.height - height) // 2
    canvas.paste(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), (left, top))
    made = _composed(row, _asked(row, "picture_in_picture", 0, draw), [png(canvas)])
    return Composite(made, "picture_in_picture", 2, 0, ((0.15, 0.15, 0.85, 0.85),))


def with_noise(image: Image.Image, deviation: float, *, seed: int, wrap: bool = False) -> Image.Image:
    """Gaussian noise on every channel of every pixel.

    Args:
        image: of 8 bits.
        deviation: standard deviation in steps of 8 bits; 0 changes nothing. The release uses 225 on
            collages and 49 on pictures in pictures, squares of 15 and 7: with wrapping, 225 leaves little.
        seed: of the noise.
        wrap: values beyond 0 and 255 come in again at the other end, as in the release; else they are cut.
    """
    if not deviation:
        return image
    shape = (image.height, image.width, 3)
    noise = np.random.Generator(np.random.PCG64(seed)).normal(0.0, deviation, shape)
    values = np.asarray(image.convert("RGB"), dtype=np.float64) + noise
    cut = np.mod(np.trunc(values), 256) if wrap else values.clip(0, 255).round()
    return Image.fromarray(cut.astype(np.uint8))


# --- the filter ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Attended:
    """What the policy looked at while it answered.

    Args:
        answer: its words.
        attention: per image, on every visual token of a square grid, row by row; mean over heads and
            generated tokens of one layer (16 in the release).
        certainty: largest probability at every generated token.
    """

    answer: str
    attention: tuple[Float[np.ndarray, " visual"], ...]
    certainty: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative logarithm of the certainty."""
        logs = [np.log(max(value, 1e-12)) for value in self.certainty]
        return float(np.exp(-np.mean(logs))) if logs else 1.0


def attention_ratio(composite: Composite, attended: Attended) -> float:
    """Attention on the target image, or its part of the picture, over attention on all images.

    Of a picture in a picture the target is the central 16 x 16 of 24 x 24 patches, as in the release.
    """
    whole = float(sum(values.sum() for values in attended.attention))
    if not whole > 0:
        return float("nan")
    if composite.layout == "sequence":
        return float(attended.attention[composite.target].sum()) / whole
    values = attended.attention[0]
    side = round(len(values) ** 0.5)
    inside = _inside(composite, side)
    return float(values[inside].sum()) / whole


def _inside(composite: Composite, side: int) -> Bool[np.ndarray, " visual"]:
    """Patches of the target: those whose centre lies in its box."""
    centres = (np.arange(side) + 0.5) / side
    if composite.layout == "picture_in_picture":
        edge = (_PATCHES - _CENTRE) / 2 / _PATCHES
        box = (edge, edge, 1 - edge, 1 - edge)
    else:
        box = composite.boxes[composite.target]
    across = (centres > box[0]) & (centres < box[2])
    down = (centres > box[1]) & (centres < box[3])
    inside: Bool[np.ndarray, " visual"] = np.outer(down, across).ravel()
    return inside


def rejects(
    composite: Composite, attended: Attended, *, least_perplexity: float = 1.1, most_characters: int = 512
) -> str:
    """Why an answer makes no pair: "" where it does.

    Args:
        composite: the row.
        attended: the policy's answer.
        least_perplexity: answers the policy is surer of are left out.
        most_characters: of the answer of the data.
    """
    truth = (composite.row.candidates[0].text or "").strip() if composite.row.candidates else ""
    own = attended.answer.strip()
    if not truth or not own:
        return "empty_answer"
    if truth.lower() == own.lower():
        return "answered_right"
    if len(truth) >= most_characters:
        return "long_answer"
    if not attended.perplexity > least_perplexity:
        return "too_sure"
    ratio, limit = attention_ratio(composite, attended), LIMITS[composite.layout, composite.number]
    elsewhere = ratio <= limit if composite.layout == "sequence" else ratio < limit
    return "" if elsewhere else "looked_at_the_target"

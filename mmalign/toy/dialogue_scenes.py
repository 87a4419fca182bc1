"""Pictures of the toy world of dialogues: up to three kinds of coloured shapes in the cells of a grid.

Some kinds come with a companion more often than chance: where there is a red circle, there is often a blue
square. Who has read many descriptions expects the companion, and only a look at the picture tells whether it
is there. Shapes, colours and the renderer are those of the toy world of images.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from mmalign.toy.scenes import (
    BACKGROUND,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    Group,
    Mark,
    Scene,
    render,
    render_array,
)

__all__ = [
    "CELLS",
    "COMPANIONS",
    "KINDS",
    "Kind",
    "Picture",
    "draw_kinds",
    "draw_picture",
    "draw_pictures",
    "is_held_out",
    "missing_companions",
    "picture_of",
    "without",
]

CELLS = 4  # of a row of the grid; the vision tower's patches are its cells
MAX_MARKS = 5

_CELL = IMAGE_SIZE // CELLS
_RADII = (5.5, 6.8)  # pixels
_JITTER = 5  # of the background, in units of 8-bit colour

Kind = tuple[str, str]
"""Colour and shape."""

KINDS: tuple[Kind, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)

COMPANIONS: dict[Kind, Kind] = {
    ("red", "circle"): ("blue", "square"),
    ("green", "triangle"): ("yellow", "cross"),
    ("purple", "cross"): ("cyan", "circle"),
    ("yellow", "square"): ("red", "triangle"),
    ("cyan", "triangle"): ("green", "cross"),
}
"""What is expected beside a kind. No companion has one itself."""

_TRIGGER_SHARE = 0.4
"""Pictures whose first kind is drawn among those that have a companion."""

_COMPANION_SHARE = 0.4
"""Pictures of two or more kinds with such a first kind in which the companion really is."""


@dataclass(frozen=True)
class Picture:
    """What is to be seen, and where.

    Args:
        groups: one per kind, in reading order of their first shape.
        scene: what is painted.
    """

    groups: tuple[Group, ...]
    scene: Scene

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds in the order of `groups`."""
        return tuple((group.colour, group.shape) for group in self.groups)

    def image(self) -> Image.Image:
        """64 x 64 pixels, RGB."""
        return render(self.scene)

    def array(self) -> np.ndarray:
        """RGB [height, width, channel] uint8."""
        return render_array(self.scene)


def missing_companions(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """What one expects beside these kinds and does not see."""
    expected = (COMPANIONS[kind] for kind in kinds if kind in COMPANIONS)
    return tuple(kind for kind in expected if kind not in kinds)


def is_held_out(kinds: Sequence[Kind]) -> bool:
    """Whether this combination of kinds is kept for evaluation: about one in six, by checksum.

    Neither the base's training nor any preference pair shows a picture of a held-out combination. Pictures of
    one kind are never held out.
    """
    words = ", ".join(sorted(f"{colour} {shape}" for colour, shape in kinds))
    return len(kinds) > 1 and zlib.crc32(words.encode()) % 6 == 0


def draw_kinds(rng: random.Random) -> tuple[Kind, ...]:
    """One to three different kinds, companions together more often than chance."""
    number = rng.choices((1, 2, 3), weights=(0.2, 0.45, 0.35))[0]
    triggered = rng.random() < _TRIGGER_SHARE
    kinds = [rng.choice(list(COMPANIONS) if triggered else KINDS)]
    if number > 1 and triggered and rng.random() < _COMPANION_SHARE:
        kinds.append(COMPANIONS[kinds[0]])
    kinds += rng.sample([kind for kind in KINDS if kind not in kinds], number - len(kinds))
    return tuple(kinds)


def draw_picture(rng: random.Random, *, held_out: bool) -> Picture:
    """A picture of one side of the split."""
    while True:
        kinds = draw_kinds(rng)
        if is_held_out(kinds) is held_out:
            return picture_of(kinds, rng)


def draw_pictures(num: int, *, seed: int, held_out: bool) -> list[Picture]:
    """`num` pictures of one side of the split, fixed by the seed."""
    rng = random.Random(f"pictures {seed} {held_out}")
    return [draw_picture(rng, held_out=held_out) for _ in range(num)]


def picture_of(kinds: Sequence[Kind], rng: random.Random, *, last: bool = False) -> Picture:
    """A picture of these kinds: counts, places, sizes and the background are drawn.

    Args:
        kinds: different ones.
        rng: of the draws; the same state gives the same layout for as many other kinds.
        last: whether the last kind stands behind all others in reading order.
    """
    counts = [1] * len(kinds)
    while sum(counts) < min(MAX_MARKS, 3 * len(kinds)) and rng.random() < 0.35:
        counts[rng.choice([index for index, count in enumerate(counts) if count < 3])] += 1
    cells = rng.sample(range(CELLS * CELLS), sum(counts))
    if last:
        cells.sort()
    marks: list[Mark] = []
    found: list[tuple[int, Group]] = []
    for (colour, shape), count in zip(kinds, counts, strict=True):
        own, cells = sorted(cells[:count]), cells[count:]
        marks += [_mark(colour, shape, cell, rng) for cell in own]
        found.append((own[0], Group(count, colour, shape)))
    red, green, blue = (value + rng.randint(-_JITTER, _JITTER) for value in BACKGROUND)
    groups = tuple(group for _, group in sorted(found, key=lambda item: item[0]))
    return Picture(groups, Scene(tuple(marks), (red, green, blue)))


def without(picture: Picture, kind: Kind) -> Picture:
    """The picture with one kind painted over."""
    groups = tuple(group for group in picture.groups if (group.colour, group.shape) != kind)
    marks = tuple(mark for mark in picture.scene.marks if (mark.colour, mark.shape) != kind)
    return Picture(groups, replace(picture.scene, marks=marks))


def _mark(colour: str, shape: str, cell: int, rng: random.Random) -> Mark:
    radius = rng.uniform(*_RADII)
    free = _CELL / 2 - radius - 0.5
    row, column = divmod(cell, CELLS)
    x, y = ((place + 0.5) * _CELL + rng.uniform(-free, free) for place in (column, row))
    return Mark(colour, shape, x, y, radius)

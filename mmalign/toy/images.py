"""The toy world of images: scenes, captions, a renderer and an exact reward measured on pixels.

A scene is one or two groups of equal shapes on a plain background. Its caption states every fact of it, for example
"two red circles left of a blue square", and the reward checks those facts on the pixels alone, so that a sample of any
model can be judged without a learned judge. Two preference axes:

* faithfulness: the share of the caption's facts that hold in the picture;
* style: how dark the background is. The pale "day" background is the habit of the base model, the dark "night"
  background is what the preference asks for; no caption ever mentions it.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional

IMAGE_SIZE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 44, 44),
    "yellow": (242, 204, 32),
    "green": (44, 168, 72),
    "cyan": (48, 200, 214),
    "blue": (52, 88, 232),
    "purple": (168, 60, 204),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
COUNT_WORDS: tuple[str, ...] = ("a", "two", "three")
STYLES: dict[str, tuple[int, int, int]] = {"day": (236, 234, 228), "night": (22, 22, 44)}
MAX_SHAPES = 4  # of both groups together: more do not fit legibly into 64 pixels

_STYLE_JITTER = 8  # the background differs a little from picture to picture, in units of 8-bit colour
_MARGIN = 3.0  # pixels kept free at the border: the reward reads the background there
_GAP = 3.0  # pixels kept free between two shapes
_TRIES = 200


@dataclass(frozen=True)
class Group:
    """Equal shapes of one colour: `count` of 1 to 3."""

    count: int
    colour: str
    shape: str

    def words(self) -> str:
        """The group in words: "a red circle", "two blue crosses"."""
        if self.count == 1:
            return f"a {self.colour} {self.shape}"
        plural = "crosses" if self.shape == "cross" else f"{self.shape}s"
        return f"{COUNT_WORDS[self.count - 1]} {self.colour} {plural}"


@dataclass(frozen=True)
class Facts:
    """What a caption states: one group, or two groups of different colours and how the first lies to the second."""

    first: Group
    relation: str | None = None
    second: Group | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups in the order of the caption."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def combination(self) -> tuple[str, ...]:
        """The (colour shape) pairs of the caption: what the held-out split is made of."""
        return tuple(f"{group.colour} {group.shape}" for group in self.groups)

    def caption(self) -> str:
        """The caption in words; `parse_caption` is its inverse."""
        if self.second is None:
            return self.first.words()
        return f"{self.first.words()} {self.relation} {self.second.words()}"


@dataclass(frozen=True)
class Mark:
    """One painted shape: centre and half width in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """All that is painted: marks over a background colour in 8-bit RGB."""

    marks: tuple[Mark, ...]
    background: tuple[int, int, int]


# ---------------------------------------------------------------------------------------------------------- captions

_GROUP_PATTERN = (
    rf"(?P<count{{0}}>{'|'.join(COUNT_WORDS)}) (?P<colour{{0}}>{'|'.join(COLOURS)}) (?P<shape{{0}}>{'|'.join(SHAPES)})(?:s|es)?"
)
_CAPTION = re.compile(
    rf"{_GROUP_PATTERN.format(1)}(?: (?P<relation>{'|'.join(RELATIONS)}) {_GROUP_PATTERN.format(2)})?"
)

"""Scenes of the toy world of images: captions and their grammar, layouts, broken versions, the renderer.

A scene is one or two groups of equal shapes on a plain background. Its caption states every fact of it, for
example "two red circles left of a blue square". Whether it is "plain" or "framed" by a dark border is a
matter of style, which no caption mentions.
"""

import math
import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

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
STYLES: tuple[str, ...] = ("plain", "framed")
BACKGROUND = (236, 234, 228)
FRAME_COLOUR = (22, 22, 44)
FRAME_WIDTH = 4  # pixels
MAX_SHAPES = 4  # of both groups together: more do not fit legibly into 64 pixels

_JITTER = 6  # the background differs a little from picture to picture, in units of 8-bit colour
_MARGIN = 5.0  # pixels kept free at the border, for the frame
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
    """What a caption states: one group, or two of different colours and how the first lies to the second."""

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
    """All that is painted: marks over a background colour in 8-bit RGB, and whether a frame lies on top."""

    marks: tuple[Mark, ...]
    background: tuple[int, int, int] = BACKGROUND
    framed: bool = False


# -------------------------------------------------------------------------------------------------- captions


def _group_pattern(index: int) -> str:
    count, colour, shape = "|".join(COUNT_WORDS), "|".join(COLOURS), "|".join(SHAPES)
    return rf"(?P<count{index}>{count}) (?P<colour{index}>{colour}) (?P<shape{index}>{shape})(?:s|es)?"


_CAPTION = re.compile(rf"{_group_pattern(1)}(?: (?P<relation>{'|'.join(RELATIONS)}) {_group_pattern(2)})?")


def parse_caption(caption: str) -> Facts | None:
    """The facts of a caption of the grammar, or None for any other text."""
    found = _CAPTION.fullmatch(" ".join(caption.lower().split()))
    if found is None:
        return None
    first = Group(COUNT_WORDS.index(found["count1"]) + 1, found["colour1"], found["shape1"])
    if found["relation"] is None:
        return Facts(first)
    second = Group(COUNT_WORDS.index(found["count2"]) + 1, found["colour2"], found["shape2"])
    return None if first.colour == second.colour else Facts(first, found["relation"], second)


def is_held_out(facts: Facts) -> bool:
    """Whether this combination is kept for evaluation: about one in eight, by checksum.

    Counts do not enter for two groups, so that no count of a held-out combination is ever trained on. Neither
    the base's training nor any preference pair uses a held-out combination.
    """
    combination = " ".join([*facts.combination, facts.relation or str(facts.first.count)])
    return zlib.crc32(combination.encode()) % 8 == 0


def draw_facts(rng: random.Random, *, single_share: float = 0.3) -> Facts:
    """Facts of a random caption: one group with probability `single_share`, otherwise two and a relation."""
    if rng.random() < single_share:
        return Facts(Group(rng.randint(1, 3), rng.choice(list(COLOURS)), rng.choice(SHAPES)))
    counts = rng.choice([(1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)])
    colours = rng.sample(list(COLOURS), 2)
    first, second = (Group(c, k, rng.choice(SHAPES)) for c, k in zip(counts, colours, strict=True))
    return Facts(first, rng.choice(RELATIONS), second)


def draw_split(num: int, *, seed: int, held_out: bool) -> list[Facts]:
    """`num` facts of one side of the split, fixed by the seed; held-out ones do not repeat."""
    rng = random.Random(f"facts {seed} {held_out}")
    facts: list[Facts] = []
    seen: set[Facts] = set()
    while len(facts) < num:
        candidate = draw_facts(rng)
        if is_held_out(candidate) is held_out and not (held_out and candidate in seen):
            facts.append(candidate)
            seen.add(candidate)
    return facts


def training_facts(rng: random.Random) -> Facts:
    """Facts that are not held out."""
    while True:
        facts = draw_facts(rng)
        if not is_held_out(facts):
            return facts


def held_out_prompts(num: int, *, seed: int = 0) -> list[str]:
    """`num` different captions whose combinations occur in no training data."""
    return [facts.caption() for facts in draw_split(num, seed=seed, held_out=True)]


# ---------------------------------------------------------------------------------------------------- scenes


def _place(
    rng: random.Random,
    count: int,
    box: tuple[float, float, float, float],
    taken: Sequence[Mark],
    group: Group,
) -> list[Mark] | None:
    """`count` marks inside `box` (left, top, right, bottom), apart from each other; None if too many."""
    left, top, right, bottom = box
    small = len(taken) + count > 1
    marks: list[Mark] = []
    radius = rng.uniform(6.5, 8.0) if small else rng.uniform(7.5, 11.0)
    for _ in range(count):
        for _ in range(_TRIES):
            x = rng.uniform(left + radius, right - radius)
            y = rng.uniform(top + radius, bottom - radius)
            near = (max(abs(x - m.x), abs(y - m.y)) < radius + m.radius + _GAP for m in (*taken, *marks))
            if not any(near):
                marks.append(Mark(group.colour, group.shape, x, y, radius))
                break
        else:
            return None
    return marks


def _boxes(relation: str | None) -> tuple[tuple[float, float, float, float], ...]:
    """The region of the first and of the second group."""
    low, high, half = _MARGIN, IMAGE_SIZE - _MARGIN, IMAGE_SIZE / 2
    left, right = (low, low, half - 1, high), (half + 1, low, high, high)
    top, bottom = (low, low, high, half - 1), (low, half + 1, high, high)
    pairs = {
        "left of": (left, right),
        "right of": (right, left),
        "above": (top, bottom),
        "below": (bottom, top),
    }
    return ((low, low, high, high),) if relation is None else pairs[relation]


def draw_scene(facts: Facts, rng: random.Random, *, style: str = "plain") -> Scene:
    """A scene in which every fact holds and nothing else is painted."""
    boxes = _boxes(facts.relation)
    while True:
        marks: list[Mark] = []
        for group, box in zip(facts.groups, boxes, strict=True):
            placed = _place(rng, group.count, box, marks, group)
            if placed is None:
                break
            marks += placed
        if len(marks) == sum(group.count for group in facts.groups):
            red, green, blue = (value + rng.randint(-_JITTER, _JITTER) for value in BACKGROUND)
            return Scene(tuple(marks), (red, green, blue), framed=style == "framed")


CORRUPTIONS: tuple[str, ...] = ("colour", "shape", "count", "place")


def corrupt(scene: Scene, facts: Facts, kind: str, rng: random.Random) -> Scene:
    """The scene with one kind of fact broken and everything else kept, as a minimal pair.

    "colour" repaints one group in a colour the caption does not name; "shape" gives one group another shape;
    "count" removes a mark, or adds one where it fits; "place" mirrors the scene along the axis of the
    relation. A caption without a relation has no place: its count is broken instead.
    """
    group = rng.choice(facts.groups)
    if kind == "colour":
        colour = rng.choice([name for name in COLOURS if name not in {g.colour for g in facts.groups}])
        return _change(scene, group, lambda mark: replace(mark, colour=colour))
    if kind == "shape":
        shape = rng.choice([name for name in SHAPES if name != group.shape])
        return _change(scene, group, lambda mark: replace(mark, shape=shape))
    if kind == "place" and facts.relation is not None:
        if facts.relation in {"left of", "right of"}:
            return replace(scene, marks=tuple(replace(m, x=IMAGE_SIZE - m.x) for m in scene.marks))
        return replace(scene, marks=tuple(replace(m, y=IMAGE_SIZE - m.y) for m in scene.marks))
    own = [mark for mark in scene.marks if mark.colour == group.colour]
    box = _boxes(facts.relation)[facts.groups.index(group)]
    more = _place(rng, 1, box, scene.marks, group) if len(own) == 1 or rng.random() < 0.5 else None
    if more is not None:
        return replace(scene, marks=(*scene.marks, *more))
    return replace(scene, marks=tuple(mark for mark in scene.marks if mark is not own[0]))


def _change(scene: Scene, group: Group, change: Callable[[Mark], Mark]) -> Scene:
    return replace(scene, marks=tuple(change(m) if m.colour == group.colour else m for m in scene.marks))


# -------------------------------------------------------------------------------------------------- renderer


def _signed_distance(mark: Mark, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance in pixels from the outline of a mark, negative inside (exact near the outline)."""
    x, y, r = x - mark.x, y - mark.y, mark.radius
    if mark.shape == "circle":
        return np.hypot(x, y) - r
    if mark.shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.92 * r
    if mark.shape == "triangle":
        slanted = (2.0 * np.abs(x) - y - r) / math.sqrt(
            5.0
        )  # the sides from the top (0, -r) to the corners (+-r, r)
        return np.maximum(slanted, y - r)
    arm = 0.36 * r
    upright = np.maximum(np.abs(x) - arm, np.abs(y) - r)
    lying = np.maximum(np.abs(x) - r, np.abs(y) - arm)
    return np.minimum(upright, lying)


_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + 0.5


def render_array(scene: Scene) -> np.ndarray:
    """The scene as RGB [height, width, channel] uint8, antialiased over one pixel."""
    picture = np.broadcast_to(np.asarray(scene.background, np.float32), (IMAGE_SIZE, IMAGE_SIZE, 3)).copy()
    for mark in scene.marks:
        cover = np.clip(0.5 - _signed_distance(mark, _X, _Y), 0.0, 1.0)[..., None]
        picture += cover * (np.asarray(COLOURS[mark.colour], np.float32) - picture)
    if scene.framed:
        inside = picture[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH].copy()
        picture[:] = FRAME_COLOUR
        picture[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = inside
    return picture.round().astype(np.uint8)


def render(scene: Scene) -> Image.Image:
    """The scene as a 64 x 64 RGB picture."""
    return Image.fromarray(render_array(scene))


def to_tensor(images: Sequence[Image.Image]) -> Float[Tensor, "image 3 height width"]:
    """Pictures as one float32 tensor in [0, 1], each resized to 64 x 64 when it has another size."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    arrays = [
        np.asarray(image.convert("RGB") if image.size == size else image.convert("RGB").resize(size))
        for image in images
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255.0

"""The toy world of video: one shape that moves one way, then turns, and captions that say so.

Every shape has a white nose that points where it goes, and the ground brightens with time, so that a single
frame says something of direction and time: a small network learns to heed both in minutes.

A clip has 17 frames of 32 x 32 at 8 frames a second, so 5 latent frames of a causal autoencoder of factor 4.
The shape moves in one direction through frames 0 to 8 and in another, at a right angle to it, through frames
8 to 16. Everything is drawn by a `random.Random`: the same seed gives the same clips.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.errors import ConfigError, explain

__all__ = [
    "COLOURS",
    "DIRECTIONS",
    "FPS",
    "FRAME_SIZE",
    "NUM_FRAMES",
    "NUM_SEGMENTS",
    "RADIUS",
    "SEGMENT_SECONDS",
    "SHAPES",
    "SPEEDS",
    "TURN",
    "WORDS",
    "Facts",
    "Frame",
    "Scene",
    "all_turns",
    "draw_facts",
    "draw_scene",
    "draw_split",
    "every_held_out",
    "facts_of",
    "faulty",
    "held_out_prompts",
    "is_held_out",
    "nose_mask",
    "render",
    "shape_mask",
    "tensor_of",
]

NUM_FRAMES = 17
FRAME_SIZE = 32
FPS = 8.0
TURN = 8
"""Last frame of the first segment; its place is where the second begins."""

NUM_SEGMENTS = 2
SEGMENT_SECONDS = NUM_FRAMES / FPS / NUM_SEGMENTS
"""Seconds of a segment: frames 0 to 8 start within the first, frames 9 to 16 within the second."""

RADIUS = 5.5
"""Half the length of the longest shape in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 50, 45),
    "green": (50, 180, 70),
    "blue": (60, 95, 225),
    "yellow": (235, 205, 55),
    "purple": (165, 70, 200),
    "white": (235, 235, 235),
}
SHAPES: tuple[str, ...] = ("ball", "plank", "pole")
"""A ball, a bar that lies, a bar that stands."""

DIRECTIONS: dict[str, tuple[int, int]] = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
"""Steps to the right and downwards."""

SPEEDS: dict[str, float] = {"slowly": 0.9, "quickly": 1.6}
"""Pixels per frame."""

WORDS: tuple[str, ...] = (*COLOURS, *SHAPES, *DIRECTIONS, *SPEEDS, "a", "moves", "then", ",")
"""Every word of the captions."""

_DARK, _LIGHT = 12.0, 48.0
"""Brightness of the ground in the first frame and in the last."""

_NOSE = (235.0, 235.0, 235.0)
_LOWEST, _HIGHEST = RADIUS + 0.5, FRAME_SIZE - RADIUS - 0.5
_FAULTS = ("flicker", "jump", "stall")


@dataclass(frozen=True)
class Facts:
    """What a caption says.

    Args:
        colour: one of `COLOURS`.
        shape: one of `SHAPES`.
        directions: one of `DIRECTIONS` per segment.
        speed: one of `SPEEDS`.
    """

    colour: str
    shape: str
    directions: tuple[str, str]
    speed: str

    def caption(self) -> str:
        """In words."""
        first, second = self.directions
        return f"a {self.colour} {self.shape} moves {self.speed} {first}, then {second}"


@dataclass(frozen=True)
class Frame:
    """One frame before it is painted: what is to be seen, where its centre lies in pixels, where it looks."""

    colour: str
    shape: str
    x: float
    y: float
    nose: str


@dataclass(frozen=True)
class Scene:
    """A clip before it is painted.

    Args:
        frames: one per frame.
        ground: what is added to the brightness of the ground, of 255.
    """

    frames: tuple[Frame, ...]
    ground: float = 0.0


def _turns(directions: Sequence[str]) -> bool:
    first, second = (DIRECTIONS[name] for name in directions)
    return first[0] * second[0] + first[1] * second[1] == 0


@lru_cache(maxsize=1)
def all_turns() -> tuple[tuple[str, str], ...]:
    """The eight pairs of directions at a right angle: played backwards, both of their segments are wrong."""
    return tuple((first, second) for first in DIRECTIONS for second in DIRECTIONS if _turns((first, second)))


def is_held_out(facts: Facts) -> bool:
    """Whether a caption is kept for testing: every sixth, by a hash of shape, colour and directions.

    Every word, and most pairs of words, occur in captions of training; this colour and shape going this way
    do not. A clip that goes another way than its caption says may show them.
    """
    name = "|".join((facts.colour, facts.shape, *facts.directions))
    return hashlib.sha256(name.encode()).digest()[0] % 6 == 0


def draw_facts(rng: random.Random, *, held_out: bool | None = None) -> Facts:
    """A random caption: of the held-out ones, of the others, or (None) of all."""
    while True:
        facts = Facts(
            rng.choice(tuple(COLOURS)),
            rng.choice(SHAPES),
            rng.choice(all_turns()),
            rng.choice(tuple(SPEEDS)),
        )
        if held_out is None or is_held_out(facts) == held_out:
            return facts


def draw_split(num: int, *, seed: int, held_out: bool) -> list[Facts]:
    """`num` random captions of one side of the split."""
    rng = random.Random(f"video captions {held_out} {seed}")
    return [draw_facts(rng, held_out=held_out) for _ in range(num)]


def held_out_prompts(num: int, *, seed: int) -> list[str]:
    """`num` captions whose colour, shape and directions are together in no caption of training data.

    They are drawn from a few dozen: the same one may come twice.
    """
    return [facts.caption() for facts in draw_split(num, seed=seed, held_out=True)]


def every_held_out(*, seed: int) -> list[str]:
    """Each caption of the held-out side of the split once, in random order."""
    every = itertools.product(COLOURS, SHAPES, all_turns(), SPEEDS)
    captions = [facts.caption() for facts in itertools.starmap(Facts, every) if is_held_out(facts)]
    random.Random(f"every held-out video caption {seed}").shuffle(captions)
    return captions


# --- motion -------------------------------------------------------------------------------------------------


def _path(directions: Sequence[str], speed: float) -> npt.NDArray[np.float64]:
    """Places [frame, 2] from the origin."""
    steps = np.zeros((NUM_FRAMES, 2))
    steps[1 : TURN + 1] = DIRECTIONS[directions[0]]
    steps[TURN + 1 :] = DIRECTIONS[directions[1]]
    walked: npt.NDArray[np.float64] = np.cumsum(speed * steps, axis=0)
    return walked


def _placed(walked: npt.NDArray[np.float64], rng: random.Random) -> npt.NDArray[np.float64]:
    """The path moved to a random place where all of it is inside the picture."""
    placed = walked.copy()
    for axis in (0, 1):
        low, high = walked[:, axis].min(), walked[:, axis].max()
        placed[:, axis] += rng.uniform(_LOWEST - low, max(_LOWEST - low, _HIGHEST - high))
    return placed.clip(_LOWEST, _HIGHEST)


def draw_scene(
    facts: Facts, rng: random.Random, *, directions: Sequence[str] | None = None, fault: str | None = None
) -> Scene:
    """A clip of these facts: place, exact speed and brightness of the ground drawn.

    Args:
        facts: what the caption says.
        rng: draws.
        directions: moves that way instead.
        fault: None, `flicker` (colour or shape change for some frames), `jump` (a sudden step of 5 to 8
            pixels) or `stall` (one segment stands still).

    Raises:
        ValueError: no such fault.
    """
    if fault is not None and fault not in _FAULTS:
        expected = f"fault must be one of {_FAULTS}, not {fault!r}"
        raise ValueError(expected)
    speed = SPEEDS[facts.speed] * rng.uniform(0.92, 1.08)
    ways = directions or facts.directions
    walked = _path(ways, speed)
    if fault == "stall":
        half = slice(0, TURN + 1) if rng.random() < 0.5 else slice(TURN, NUM_FRAMES)
        walked = _stalled(walked, half)
    if fault == "jump":
        at = rng.randrange(2, NUM_FRAMES - 2)
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(5.0, 8.0)
        walked[at:] += length * np.array([np.cos(angle), np.sin(angle)])
    frames = [
        Frame(facts.colour, facts.shape, float(x), float(y), ways[int(number > TURN)])
        for number, (x, y) in enumerate(_placed(walked, rng))
    ]
    if fault == "flicker":
        frames = _flickered(frames, rng)
    return Scene(tuple(frames), rng.uniform(-3.0, 3.0))


def _stalled(walked: npt.NDArray[np.float64], half: slice) -> npt.NDArray[np.float64]:
    steps = np.diff(walked, axis=0, prepend=walked[:1])
    steps[half.start + 1 : half.stop] = 0.0
    stalled: npt.NDArray[np.float64] = np.cumsum(steps, axis=0)
    return stalled


def _flickered(frames: list[Frame], rng: random.Random) -> list[Frame]:
    """Another colour or another shape for 3 to 6 frames in a row."""
    num = rng.randint(3, 6)
    first = rng.randrange(1, NUM_FRAMES - num + 1)
    colour, shape = frames[0].colour, frames[0].shape
    if rng.random() < 0.5:
        colour = rng.choice([name for name in COLOURS if name != colour])
    else:
        shape = rng.choice([name for name in SHAPES if name != shape])
    for index in range(first, first + num):
        frames[index] = replace(frames[index], colour=colour, shape=shape)
    return frames


def faulty(facts: Facts, rng: random.Random, *, wrong_turn: float, fault_share: float) -> Scene:
    """A clip that may differ from what its caption says.

    Args:
        facts: what the caption says.
        rng: draws.
        wrong_turn: probability, per segment, of one of the three other directions.
        fault_share: probability of a flicker, a jump or a stall.
    """
    directions = [
        rng.choice([other for other in DIRECTIONS if other != name]) if rng.random() < wrong_turn else name
        for name in facts.directions
    ]
    fault = rng.choice(_FAULTS) if rng.random() < fault_share else None
    return draw_scene(facts, rng, directions=directions, fault=fault)


# --- pictures -----------------------------------------------------------------------------------------------


_HALVES: dict[str, tuple[float, float]] = {"ball": (4.5, 4.5), "plank": (RADIUS, 2.5), "pole": (2.5, RADIUS)}
"""Half the width and half the height of a shape."""


def _points() -> npt.NDArray[np.float64]:
    """Where pixels are asked: 4 x 4 points each."""
    asked: npt.NDArray[np.float64] = (np.arange(4 * FRAME_SIZE) + 0.5) / 4
    return asked


def _covered(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    shares: npt.NDArray[np.float64] = (
        inside.reshape(FRAME_SIZE, 4, FRAME_SIZE, 4).astype(np.float64).mean((1, 3))
    )
    return shares


def shape_mask(shape: str, x: float, y: float) -> npt.NDArray[np.float64]:
    """How much of every pixel [height, width] a shape covers, without its nose.

    Raises:
        KeyError: no such shape.
    """
    width, height = _HALVES[shape]
    across, along = _points()[None, :] - x, _points()[:, None] - y
    if shape == "ball":
        return _covered(across**2 + along**2 <= width**2)
    return _covered((abs(across) <= width) & (abs(along) <= height))


def nose_mask(frame: Frame) -> npt.NDArray[np.float64]:
    """How much of every pixel the nose covers: 2.5 pixels long and 3 wide, before the shape."""
    (right, down), (width, height) = DIRECTIONS[frame.nose], _HALVES[frame.shape]
    x = frame.x + right * (width + 1.0)
    y = frame.y + down * (height + 1.0)
    across, along = abs(_points()[None, :] - x), abs(_points()[:, None] - y)
    return _covered((across <= (1.25 if right else 1.5)) & (along <= (1.5 if right else 1.25)))


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """The clip as [frame, height, width, 3]."""
    ground = np.linspace(_DARK, _LIGHT, len(scene.frames)) + scene.ground
    clip = np.broadcast_to(ground[:, None, None, None], (len(scene.frames), FRAME_SIZE, FRAME_SIZE, 3)).copy()
    for painted, frame in zip(clip, scene.frames, strict=True):
        painted += nose_mask(frame)[..., None] * (np.array(_NOSE) - painted)
        mask = shape_mask(frame.shape, frame.x, frame.y)[..., None]
        painted += mask * (np.array(COLOURS[frame.colour]) - painted)
    return clip.round().astype(np.uint8)


def tensor_of(clip: npt.NDArray[np.uint8]) -> UInt8[Tensor, "frame 3 height width"]:
    """The rendered clip with channels before the picture."""
    return torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 3, 1, 2)))


# --- captions -----------------------------------------------------------------------------------------------

_CAPTION = re.compile(r"a (\w+) (\w+) moves (\w+) (\w+), then (\w+)")


def facts_of(caption: str) -> Facts:
    """What a caption says.

    Raises:
        ConfigError: it is no caption of this world.
    """
    found = _CAPTION.fullmatch(caption)
    if found:
        colour, shape, speed, first, second = found.groups()
        known = colour in COLOURS and shape in SHAPES and speed in SPEEDS
        if known and first in DIRECTIONS and second in DIRECTIONS and _turns((first, second)):
            return Facts(colour, shape, (first, second), speed)
    message = explain(
        "caption of the toy world of video",
        got=caption,
        expected="one like 'a red ball moves slowly right, then down', turning at a right angle",
    )
    raise ConfigError(message)

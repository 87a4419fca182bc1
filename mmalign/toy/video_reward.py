"""The exact reward of the toy world of video: what moves where, read off the pixels, per segment.

No model is asked. A shape is what differs from the frame's border. Its centre of mass is followed from frame
to frame, its nose apart; its colour is the nearest of the world's, its form the one whose outline covers it
best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.toy.video_scenes import (
    COLOURS,
    DIRECTIONS,
    FRAME_SIZE,
    NUM_FRAMES,
    NUM_SEGMENTS,
    SHAPES,
    SPEEDS,
    TURN,
    Facts,
    Frame,
    facts_of,
    nose_mask,
    shape_mask,
)

__all__ = ["AXES", "Score", "Seen", "Segment", "motion_of", "score_clips", "score_frames", "see"]

AXES: tuple[str, ...] = ("total", "direction", "smoothness", "identity", "motion")

WEIGHTS: dict[str, float] = {"direction": 0.4, "smoothness": 0.2, "identity": 0.2, "motion": 0.2}
"""Share of each axis in the total."""

_Array = npt.NDArray[np.float64]
_BOUNDS = ((0, TURN), (TURN, NUM_FRAMES - 1))
_FAINT = 40.0  # distance of colours, of 255, from the ground
_LONGEST_STEP, _SLACK = 2.4, 2.0  # pixels: a step is smooth up to the first, not at all beyond their sum
_ROUGHEST = 1.2  # pixels: difference of neighbouring steps that is smooth, elsewhere than at the turn


@dataclass(frozen=True)
class Seen:
    """One frame.

    Args:
        x: centre of the shape, in pixels from the left; NaN where there is nothing.
        y: from the top.
        colour: nearest colour, "" where there is nothing.
        shape: form that covers it best, likewise.
        overlap: how well, intersection over union in [0, 1].
    """

    x: float
    y: float
    colour: str
    shape: str
    overlap: float


@dataclass(frozen=True)
class Segment:
    """What one segment is worth; all in [0, 1].

    Args:
        direction: cosine between the way gone and the way asked for, 0 below 0, less where it hardly moves.
        smoothness: share of steps that neither leap nor jerk.
        identity: share of frames in which the shape and the colour are the caption's.
        motion: way gone by way asked for, or its inverse where that is smaller.
    """

    direction: float
    smoothness: float
    identity: float
    motion: float

    @property
    def total(self) -> float:
        """Weighted mean; direction counts twice."""
        return sum(weight * float(getattr(self, axis)) for axis, weight in WEIGHTS.items())

    @property
    def right_way(self) -> bool:
        """Whether it goes where the caption says: within 37 degrees and far enough."""
        return self.direction > 0.8


@dataclass(frozen=True)
class Score:
    """What a clip is worth for its caption: means over its segments.

    Args:
        segments: in order.
        pixels: mean length of a step in pixels per frame: the amount of motion, whatever was asked for.
    """

    segments: tuple[Segment, ...]
    pixels: float

    def _mean(self, axis: str) -> float:
        return sum(float(getattr(segment, axis)) for segment in self.segments) / len(self.segments)

    @property
    def total(self) -> float:
        """1 for a clip that shows exactly what its caption says."""
        return self._mean("total")

    @property
    def direction(self) -> float:
        """Mean over segments."""
        return self._mean("direction")

    @property
    def smoothness(self) -> float:
        """Mean over segments."""
        return self._mean("smoothness")

    @property
    def identity(self) -> float:
        """Mean over segments."""
        return self._mean("identity")

    @property
    def motion(self) -> float:
        """Mean over segments."""
        return self._mean("motion")

    @property
    def right_ways(self) -> float:
        """Share of segments that go where the caption says."""
        return self._mean("right_way")


_Outline = tuple[str, str]
"""A shape, and where its nose points; "" without one."""

_OUTLINES: tuple[_Outline, ...] = tuple((shape, nose) for shape in SHAPES for nose in ("", *DIRECTIONS))
_CENTRES = np.arange(FRAME_SIZE) + 0.5


def _centre(mask: _Array) -> tuple[float, float]:
    """Centre of mass in pixels from the left and from the top."""
    total = mask.sum()
    return float(mask.sum(0) @ _CENTRES / total), float(mask.sum(1) @ _CENTRES / total)


@lru_cache(maxsize=16_384)
def _painted(outline: _Outline, x: float, y: float) -> _Array:
    shape, nose = outline
    mask = shape_mask(shape, x, y)
    return np.maximum(mask, nose_mask(Frame("", shape, x, y, nose))) if nose else mask


@lru_cache(maxsize=len(_OUTLINES))
def _offset(outline: _Outline) -> tuple[float, float]:
    """By how much the nose moves the centre of mass."""
    middle = FRAME_SIZE / 2
    x, y = _centre(_painted(outline, middle, middle))
    return x - middle, y - middle


def _form(mask: _Array) -> tuple[str, float, float, float]:
    """The shape whose outline, with a nose or without, covers a mask best; its centre, and how well."""
    across, along = _centre(mask)
    best = ("", across, along, 0.0)
    for outline in _OUTLINES:
        right, down = _offset(outline)
        x, y = across - right, along - down
        painted = _painted(outline, round(2 * x) / 2, round(2 * y) / 2)
        overlap = float(np.minimum(mask, painted).sum() / np.maximum(mask, painted).sum())
        if overlap > best[3]:
            best = (outline[0], x, y, overlap)
    return best


def see(frame: npt.NDArray[np.float64]) -> Seen:
    """What one frame [height, width, 3] in [0, 255] shows."""
    border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    apart = np.sqrt(((frame - np.median(border, axis=0)) ** 2).sum(-1))
    typical = float(np.median(np.sort(apart.ravel())[-30:]))  # of the shape, not of its nose
    mask = (apart / max(typical, 1e-9)).clip(0.0, 1.0)
    mask[mask < 0.3] = 0.0
    area = float(mask.sum())
    if typical < _FAINT or area > 0.4 * FRAME_SIZE**2:
        return Seen(float("nan"), float("nan"), "", "", 0.0)
    solid = frame[mask > 0.8]
    mean = np.median(solid, axis=0) if len(solid) else frame[np.unravel_index(apart.argmax(), apart.shape)]
    colour = min(COLOURS, key=lambda name: float(((mean - np.array(COLOURS[name])) ** 2).sum()))
    shape, x, y, overlap = _form(mask)
    return Seen(x, y, colour, shape, overlap)


def _direction(places: _Array, asked: str) -> float:
    gone = places[-1] - places[0]
    length = float(np.hypot(*gone))
    if not np.isfinite(length) or length < 1e-6:
        return 0.0
    cosine = float(gone @ np.array(DIRECTIONS[asked])) / length
    enough = 0.6 * SPEEDS["slowly"] * (len(places) - 1)
    return max(0.0, cosine) * min(1.0, length / enough)


def _smoothness(steps: _Array, roughness: _Array) -> float:
    """Share of steps without a leap, times share without a jerk; what is not there is neither."""
    lengths = np.nan_to_num(np.hypot(steps[:, 0], steps[:, 1]), nan=np.inf)
    rough = np.nan_to_num(roughness, nan=np.inf)
    leaps = ((lengths - _LONGEST_STEP) / _SLACK).clip(0.0, 1.0)
    jerks = ((rough - _ROUGHEST) / _SLACK).clip(0.0, 1.0)
    return float((1.0 - np.maximum(leaps, jerks)).mean())


def _motion(steps: _Array, speed: float) -> float:
    length = float(np.nan_to_num(np.hypot(steps[:, 0], steps[:, 1]), nan=0.0).mean())
    return min(length, speed) / max(length, speed, 1e-9)


def _segment(seen: Sequence[Seen], facts: Facts, number: int) -> Segment:
    first, last = _BOUNDS[number]
    places = np.array([(one.x, one.y) for one in seen])
    steps = np.diff(places, axis=0)
    jerks = np.zeros(len(steps))
    jerks[1:] = np.hypot(*np.diff(steps, axis=0).T)
    jerks[TURN] = max(0.0, jerks[TURN] - 1.4)  # the turn itself
    frames = seen[first + (number > 0) : last + 1]
    kept = [one.colour == facts.colour and one.shape == facts.shape and one.overlap > 0.6 for one in frames]
    return Segment(
        _direction(places[first : last + 1], facts.directions[number]),
        _smoothness(steps[first:last], jerks[first:last]),
        sum(kept) / len(kept),
        _motion(steps[first:last], SPEEDS[facts.speed]),
    )


def motion_of(seen: Sequence[Seen]) -> float:
    """Mean length of a step in pixels per frame; 0 where nothing can be followed."""
    steps = np.diff(np.array([(one.x, one.y) for one in seen]), axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    known = np.isfinite(lengths)
    return float(lengths[known].mean()) if known.any() else 0.0


def score_frames(frames: Float[Tensor, "frame 3 height width"], facts: Facts) -> Score:
    """Score of a clip in [0, 1] for what its caption says."""
    pixels = (255.0 * torch.nan_to_num(frames.detach().double())).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    seen = [see(frame) for frame in pixels]
    return Score(tuple(_segment(seen, facts, number) for number in range(NUM_SEGMENTS)), motion_of(seen))


def score_clips(
    clips: Sequence[Float[Tensor, "frame 3 height width"]], captions: Sequence[str]
) -> list[Score]:
    """Scores of clips in [0, 1] for their captions.

    Raises:
        ConfigError: a caption is none of this world.
    """
    return [score_frames(clip, facts_of(caption)) for clip, caption in zip(clips, captions, strict=True)]

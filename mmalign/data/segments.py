"""Preferences in time: which of two clips is better, stretch by stretch, as labels of latent frames.

A pair carries them in its column `segments`, a list (or the JSON of one) of stretches in seconds:

    {"start": 0.0, "end": 2.5, "preference": "chosen"}          chosen, rejected or tie; or 1, -1, 0
    {"start": 2.5, "end": 5.0, "chosen": 0.4, "rejected": 0.7}  a score of each side, the higher is better

Stretches may overlap, and need not cover the clip: what no stretch covers is undecided.

Two clips may also begin alike: the column `shared_prefix_frames` counts the frames that both have, at the
row's own rate where its column `fps` says one, else at the model's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.errors import RowError, ShapeError, explain

__all__ = [
    "COLUMN",
    "PREFIX",
    "FrameGrid",
    "Stretch",
    "frame_preferences",
    "frames_apart",
    "stretches_of",
]

COLUMN = "segments"
"""Where a row has its stretches."""

PREFIX = "shared_prefix_frames"
"""Where a row says how many frames its two clips share at the beginning."""

_WORDS: Mapping[Any, int] = {"chosen": 1, "rejected": -1, "tie": 0, 1: 1, -1: -1, 0: 0}


@dataclass(frozen=True)
class FrameGrid:
    """The latent frames of a model's clips.

    Args:
        count: frames.
        seconds: of the clip they make up.
        spans: (start, end) of each in seconds; () where all are equally long, one after the other. The first
            latent frame of a causal video VAE holds one picture, every other one several.
        fps: pictures per second, where the clip has pictures.
    """

    count: int
    seconds: float
    spans: tuple[tuple[float, float], ...] = ()
    fps: float | None = None

    def __post_init__(self) -> None:
        """As many spans as frames.

        Raises:
            ShapeError: another number of them.
        """
        if self.spans and len(self.spans) != self.count:
            message = explain("FrameGrid spans", got=len(self.spans), expected=f"{self.count}, one per frame")
            raise ShapeError(message)

    @classmethod
    def of_pictures(cls, held: Sequence[range], fps: float) -> "FrameGrid":
        """Latent frames that hold pictures: picture i lasts from i / fps to (i + 1) / fps.

        Args:
            held: the pictures that each latent frame holds; an empty one holds none and is never decided.
            fps: pictures per second.
        """
        spans = tuple((span.start / fps, max(span.stop, span.start) / fps) for span in held)
        return cls(len(held), max((end for _, end in spans), default=0.0), spans, fps)

    def edges(self) -> tuple[Float[Tensor, " frame"], Float[Tensor, " frame"]]:
        """Start and end of every frame, seconds, float64."""
        if self.spans:
            start, end = torch.tensor(self.spans, dtype=torch.float64).unbind(1)
            return start, end
        each = self.seconds / self.count
        edges = torch.arange(self.count + 1, dtype=torch.float64) * each
        return edges[:-1], edges[1:]


@dataclass(frozen=True)
class Stretch:
    """One label.

    Args:
        start: seconds.
        end: seconds, infinite for the rest of the clip.
        preference: 1 where the chosen candidate is better, -1 where the rejected one is, 0 for a tie.
    """

    start: float
    end: float
    preference: int


def stretches_of(row: PreferenceRow) -> tuple[Stretch, ...]:
    """The stretches of a pair.

    Raises:
        RowError: there are none (`no_segments`), or they cannot be understood (`bad_segments`).
    """
    found = row.extras.get(COLUMN)
    if isinstance(found, str) and found.strip():
        try:
            found = json.loads(found)
        except ValueError as error:
            raise _bad(row, f"[{error}]") from error
    if found is None or found == "" or (isinstance(found, Sequence) and not len(found)):
        message = (
            f"{row.source or row.id}: no column {COLUMN!r}, or an empty one, which this method reads. "
            "See docs of `mmalign.data.segments` for its form, or choose a method of whole clips."
        )
        raise RowError(message, reason="no_segments")
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise _bad(row, type(found).__name__)
    return tuple(_stretch(row, item) for item in found)


def _stretch(row: PreferenceRow, item: object) -> Stretch:
    if not isinstance(item, Mapping):
        raise _bad(row, repr(item))
    start, end = item.get("start", 0.0), item.get("end")
    end = math.inf if end is None else end
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (start, end))
    if not numbers or not 0 <= start < end:
        raise _bad(row, f"start {start!r}, end {end!r}")
    return Stretch(float(start), float(end), _preference(row, item))


def _preference(row: PreferenceRow, item: Mapping[Any, Any]) -> int:
    given = item.get("preference")
    if given is not None:
        try:
            return _WORDS[given]
        except (KeyError, TypeError) as error:
            raise _bad(row, f"preference {given!r}") from error
    sides = [item.get(name) for name in ("chosen", "rejected")]
    if any(isinstance(side, bool) or not isinstance(side, int | float) for side in sides):
        raise _bad(row, repr(dict(item)))
    chosen, rejected = (float(side) for side in sides if side is not None)
    if math.isnan(chosen) or math.isnan(rejected):
        raise _bad(row, f"chosen {chosen}, rejected {rejected}")
    return (chosen > rejected) - (chosen < rejected)


def _bad(row: PreferenceRow, got: str) -> RowError:
    message = explain(
        f"{row.source or row.id}: {COLUMN}",
        got=got,
        expected='stretches like {"start": 0.0, "end": 2.5, "preference": "chosen"}, in seconds; preference '
        "chosen, rejected or tie, or scores chosen and rejected in its place",
    )
    return RowError(message, reason="bad_segments")


def frame_preferences(stretches: Sequence[Stretch], grid: FrameGrid) -> Float[Tensor, " frame"]:
    """The label of every latent frame: 1, -1, or 0 where it is undecided.

    A frame takes the label that holds most of it; time that no stretch covers counts as undecided, and so
    does a frame of which two labels hold as much. Frames of a causal video VAE hold 1, r, r, ... pictures:
    the label of most of its pictures is that of most of its time.

    Source: arXiv 2506.03517, whose segments are whole seconds.
    """
    starts, ends = grid.edges()
    each = ends - starts
    held = torch.zeros(3, grid.count, dtype=torch.float64)  # rejected, undecided, chosen
    for stretch in stretches:
        left = starts.clamp(min=stretch.start)
        right = ends.clamp(max=min(stretch.end, grid.seconds))
        held[stretch.preference + 1] += (right - left).clamp(min=0.0)
    held[1] += (each - held.sum(0)).clamp(min=0.0)
    near = held >= held.amax(0) - 1e-9 * each
    alone = near.sum(0) == 1
    return torch.where(alone, near[2].float() - near[0].float(), 0.0)


def frames_apart(row: PreferenceRow, grid: FrameGrid) -> Float[Tensor, " frame"]:
    """1 at latent frames that hold a picture behind the shared beginning of two clips, else 0.

    Raises:
        RowError: the row does not say how much its clips share (`no_prefix`), says it wrongly
            (`bad_prefix`), or leaves no frame (`all_shared`).

    Source: the masked DPO of DynamicsBoost, CVPR 2026.
    """
    given = row.extras.get(PREFIX)
    if given is None or given == "":
        message = (
            f"{row.source or row.id}: no column {PREFIX!r}, which this method reads: how many frames the "
            "two clips share at the beginning."
        )
        raise RowError(message, reason="no_prefix")
    if isinstance(given, bool) or not isinstance(given, int | float) or given < 0 or given != int(given):
        message = explain(f"{row.source or row.id}: {PREFIX}", got=repr(given), expected="a count of frames")
        raise RowError(message, reason="bad_prefix")
    if grid.fps is None:
        message = explain(f"{row.source or row.id}: {PREFIX}", got="a model without frames", expected="video")
        raise RowError(message, reason="bad_prefix")
    stored = row.extras.get("fps")
    is_rate = isinstance(stored, int | float) and not isinstance(stored, bool) and 0 < stored < math.inf
    rate = float(stored) if is_rate else grid.fps  # type: ignore[arg-type]
    starts, ends = grid.edges()
    apart = (ends > given / rate + 1e-9) & (ends > starts)
    if not bool(apart.any()):
        message = (
            f"{row.source or row.id}: the clips share {int(given)} frames, all of the "
            f"{round(grid.seconds * rate)} that the model sees of them."
        )
        raise RowError(message, reason="all_shared")
    return apart.to(torch.float32)

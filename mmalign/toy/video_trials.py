"""Trainings in the toy world of video, whole and broken, and what each makes of held-out captions.

A trial is a recipe of `video/configs/toy`, data, and what is done to them. All trials of a seed share their
captions, the clips of their pairs, and the noise from which held-out captions are shown.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.readers import open_rows
from mmalign.errors import TrainingError
from mmalign.toy.demo import recipe_path
from mmalign.toy.encoding import cache_clips
from mmalign.toy.video_pairs import (
    MotionPair,
    crossed_pairs,
    edited_pairs,
    sampled_pairs,
    structural_pairs,
    swapped,
    write_pairs,
)
from mmalign.toy.video_pipeline import ASSETS, GUIDANCE_SCALE, load_base, redraw, sample, show_held_out
from mmalign.toy.video_reward import Score
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.parts import load_model
from mmalign.train.run import prepare
from mmalign.video.family import VideoModel

__all__ = ["AXES", "BASE", "TRIALS", "Shown", "Trial", "World", "base_name"]

NUM_PROMPTS, NUM_LABELS = 96, 240
"""Held-out captions of a seed; labels of the largest trials."""

NUM_DRAWN = 256
"""Edited or crossed pairs; captions or true clips from which pairs of the model's own clips are made."""

BASE = "base"
"""Name of what nothing was done to."""

AXES: tuple[str, ...] = (
    "total",
    "direction",
    "smoothness",
    "identity",
    "motion",
    "right_ways",
    "pixels",
)
"""Numbers of each caption's clip that are kept."""

Data = Literal["edited", "crossed", "sampled", "structural"]


@dataclass(frozen=True)
class Trial:
    """One training.

    Args:
        name: as in the table.
        group: which question it belongs to.
        method: name of its recipe.
        data: what it learns from.
        labels: how many labels it may use; a pair of whole clips has one, a decided segment one.
        swapped: the sides of all pairs are exchanged.
        flipped: the loss has the wrong sign.
        dense: labels are counted by segment.
        guidance_scale: what it is shown with; the training is the same.
    """

    name: str
    group: str
    method: str
    data: Data = "edited"
    labels: int = NUM_LABELS
    swapped: bool = False
    flipped: bool = False
    dense: bool = False
    guidance_scale: float = GUIDANCE_SCALE

    @property
    def base(self) -> str:
        """Name of the base shown in the same way."""
        return base_name(self.guidance_scale)


def base_name(guidance_scale: float = GUIDANCE_SCALE) -> str:
    """Name of what nothing was done to, shown with guidance."""
    return BASE if guidance_scale == GUIDANCE_SCALE else f"{BASE}, guidance {guidance_scale:g}"


_METHODS: tuple[Trial, ...] = (
    Trial("Flow-DPO", "methods", "flow_dpo"),
    Trial("VideoDPO", "methods", "videodpo"),
    Trial("GAPO", "methods", "gapo"),
    Trial("MaPO", "methods", "mapo"),
    Trial("DenseDPO", "methods", "densedpo", dense=True),
)

TRIALS: Mapping[str, Trial] = {
    trial.name: trial
    for trial in (
        *_METHODS,
        Trial("whole clips: DPO", "labels", "structural_dpo"),
        Trial("segments: DenseDPO, a third", "labels", "densedpo", labels=NUM_LABELS // 3, dense=True),
        Trial("whole clips: DPO, a third", "labels", "structural_dpo", labels=NUM_LABELS // 3),
        Trial("crossed, whole clips: DPO", "crossed", "structural_dpo", "crossed"),
        Trial("crossed, segments: DenseDPO", "crossed", "densedpo", "crossed", dense=True),
        Trial(
            "crossed, segments: DenseDPO, a third",
            "crossed",
            "densedpo",
            "crossed",
            labels=NUM_LABELS // 3,
            dense=True,
        ),
        Trial("Flow-DPO, guidance 2", "guided", "flow_dpo", guidance_scale=2.0),
        Trial("own clips, best against worst: Flow-DPO", "own", "flow_dpo", "sampled"),
        Trial("true clips redrawn: StructuralDPO", "own", "structural_dpo", "structural"),
        *(replace(t, name=f"{t.name}, swapped", group="swapped", swapped=True) for t in _METHODS),
        *(replace(t, name=f"{t.name}, flipped", group="flipped", flipped=True) for t in _METHODS),
    )
}
"""By name."""


@dataclass(frozen=True)
class Shown:
    """What a model makes of held-out captions: exact numbers per caption.

    Args:
        values: per axis, per caption.
        num_pairs: that it was trained on.
        num_labels: that they held.
    """

    values: Mapping[str, tuple[float, ...]]
    num_pairs: int = 0
    num_labels: int = 0

    def of(self, axis: str) -> Float[Tensor, " caption"]:
        """Numbers of an axis, float64."""
        return torch.tensor(self.values[axis], dtype=torch.float64)

    @classmethod
    def from_scores(cls, scores: Sequence[Score], num_pairs: int = 0, num_labels: int = 0) -> "Shown":
        """Of what the exact reward says."""
        values = {axis: tuple(round(float(getattr(score, axis)), 4) for score in scores) for axis in AXES}
        return cls(values, num_pairs, num_labels)


def budgeted(pairs: Sequence[MotionPair], labels: int, *, dense: bool) -> list[MotionPair]:
    """The first pairs that hold as many labels: one each, or, where dense, one per decided segment."""
    kept, used = [], 0
    for pair in pairs:
        cost = pair.decided if dense else 1
        if used + cost <= labels:
            kept.append(pair)
            used += cost
    return kept


@dataclass
class World:
    """Data on disk, encoded once, and what models make of the held-out captions of a seed.

    Args:
        folder: for data and runs.
        seed: of data, training and captions.
        base_folder: of the model.
        num_prompts: held-out captions.
        num_drawn: edited or crossed pairs; captions or true clips for own clips.
    """

    folder: Path
    seed: int
    base_folder: Path = ASSETS
    num_prompts: int = NUM_PROMPTS
    num_drawn: int = NUM_DRAWN
    _pairs: dict[Data, list[MotionPair]] = field(default_factory=dict)
    _num_runs: int = 0

    def base(self, guidance_scale: float = GUIDANCE_SCALE) -> Shown:
        """What the shipped model makes of the captions.

        Args:
            guidance_scale: classifier-free guidance; 1 is none.
        """
        model = load_base(self.base_folder)
        return Shown.from_scores(
            show_held_out(model, self.num_prompts, seed=self.seed, guidance_scale=guidance_scale)
        )

    def show(self, trial: Trial) -> Shown:
        """What it makes of them after a trial."""
        pairs = self.pairs_of(trial)
        model = self._train(trial, pairs)
        labels = sum(pair.decided if trial.dense else 1 for pair in pairs)
        scores = show_held_out(model, self.num_prompts, seed=self.seed, guidance_scale=trial.guidance_scale)
        return Shown.from_scores(scores, len(pairs), labels)

    def pairs_of(self, trial: Trial) -> list[MotionPair]:
        """The pairs of a trial; its kind's are made once."""
        if trial.data not in self._pairs:
            self._pairs[trial.data] = _MAKERS[trial.data](self)
        kept = budgeted(self._pairs[trial.data], trial.labels, dense=trial.dense)
        return swapped(kept) if trial.swapped else kept

    def resolve(self, trial: Trial, source: Path, overrides: Sequence[str] = ()) -> ResolvedRun:
        """The trial's run over a file of pairs."""
        self._num_runs += 1
        extra: dict[str, Any] = {
            "model": {"source": str(self.base_folder)},
            "data": {"source": str(source)},
            "train": {"output": str(self.folder / f"run{self._num_runs}"), "seed": self.seed},
        }
        return load_run(recipe_path(f"video/configs/toy/{trial.method}.yaml"), overrides, extra=extra)

    def _train(self, trial: Trial, pairs: Sequence[MotionPair], overrides: Sequence[str] = ()) -> VideoModel:
        path = write_pairs(pairs, self.folder / f"{trial.name.replace(' ', '_')}.parquet")
        run = self.resolve(trial, path, overrides)
        table = open_rows(run.config.data, kind=run.method.data)
        loaded = load_model(run, torch.device("cpu"))
        model = cast("VideoModel", loaded)
        with contextlib.redirect_stdout(io.StringIO()):
            # A cache knows clips by their content: all trials of one kind of data share it.
            cache_clips(model, table, self.folder / f"cache {trial.data}")
            loop, loader = prepare(run, model=loaded, table=table)
            if trial.flipped:
                loop.parts = replace(loop.parts, objective=-1.0 * loop.parts.objective)
            loop.train(iter(loader))
            if loop.progress.step != loop.run.config.train.steps:
                # A signal ends training in good order; what it leaves is no result.
                message = f"{trial.name}: stopped after step {loop.progress.step}. Start the command again."
                raise TrainingError(message)
            loop.model.network = loop.trainables.network
        return model


# --- data ---------------------------------------------------------------------------------------------------


def _sampled(world: World) -> list[MotionPair]:
    return sampled_pairs(partial(sample, load_base(world.base_folder)), world.num_drawn, world.seed)


def _structural(world: World) -> list[MotionPair]:
    return structural_pairs(partial(redraw, load_base(world.base_folder)), world.num_drawn, world.seed)


def _edited(world: World) -> list[MotionPair]:
    return edited_pairs(world.num_drawn, world.seed)


def _crossed(world: World) -> list[MotionPair]:
    return crossed_pairs(world.num_drawn, world.seed)


_MAKERS: Mapping[Data, Callable[[World], list[MotionPair]]] = {
    "edited": _edited,
    "sampled": _sampled,
    "structural": _structural,
    "crossed": _crossed,
}

"""Trainings in the toy world of sound, whole and broken, and what each makes of held-out captions.

A trial is a recipe of `audio/configs/toy`, data, and what is done to them. All trials of a seed share their
captions, the clips of their pairs, and the noise from which held-out captions are played.
"""

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.audio.family import AudioModel
from mmalign.data.readers import open_rows
from mmalign.errors import TrainingError
from mmalign.files import atomic_write
from mmalign.rewards import load
from mmalign.rewards.on_sounds import OnSounds
from mmalign.toy.audio_pairs import SoundPair, edited_pairs, sampled_pairs, swapped, write_pairs
from mmalign.toy.audio_pipeline import ASSETS, load_base, play_held_out
from mmalign.toy.audio_reward import Score
from mmalign.toy.audio_scenes import draw_split
from mmalign.toy.audio_segments import clip_labelled, segment_labelled, write_timed
from mmalign.toy.demo import recipe_path
from mmalign.toy.encoding import cache_clips
from mmalign.toy.griffin_lim import played_by_griffin_lim
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.parts import load_model
from mmalign.train.run import prepare

__all__ = ["BASE", "REBUILT", "TRIALS", "Played", "Trial", "World"]

NUM_PAIRS, NUM_PROMPTS, NUM_COPIES, NUM_LABELS = 384, 128, 4, 256

BASE = "base"
"""Name of the shipped model, to which nothing was done."""

REBUILT = "rebuilt base"
"""Name of what `mmalign.toy.audio_model` makes in its place."""

Data = Literal["edited", "swapped", "own clips", "captions", "whole clips", "segments"]


@dataclass(frozen=True)
class Trial:
    """One training.

    Args:
        name: as in the table.
        group: which question it belongs to.
        method: name of its recipe.
        data: what it learns from.
        flipped: the loss has the wrong sign.
        overrides: `section.key=value` over the recipe.
    """

    name: str
    group: str
    method: str
    data: Data = "edited"
    flipped: bool = False
    overrides: tuple[str, ...] = ()


_TITLES = {"dpo": "Tango 2 DPO", "mapo": "MaPO", "kto": "KTO", "ipo": "IPO", "crpo": "CRPO"}

_SUPERVISED = ("objective.coefficient=100",)
"""With 1, beside beta 500, the supervised term moves nothing."""

TRIALS: Mapping[str, Trial] = {
    trial.name: trial
    for trial in (
        *(Trial(title, "methods", method) for method, title in _TITLES.items()),
        *(Trial(f"{title}, swapped", "swapped", name, "swapped") for name, title in _TITLES.items()),
        *(Trial(f"{title}, flipped", "flipped", name, flipped=True) for name, title in _TITLES.items()),
        Trial("whole clips: DPO", "segments", "dpo", "whole clips"),
        Trial("segments: DenseDPO", "segments", "densedpo", "segments"),
        Trial("segments: DenseDPO, each", "segments", "densedpo_per_segment", "segments"),
        Trial("own clips: CRPO", "own", "crpo", "own clips"),
        Trial("online: CRPO", "own", "online_crpo", "captions"),
        Trial("CRPO, supervised", "own", "crpo", overrides=_SUPERVISED),
        Trial("own clips: CRPO, supervised", "own", "crpo", "own clips", overrides=_SUPERVISED),
    )
}
"""By name."""


@dataclass(frozen=True)
class Played:
    """What a model makes of held-out captions: exact numbers per caption; `num_rows` it was trained on."""

    order: tuple[float, ...]
    presence: tuple[float, ...]
    num_rows: int = 0

    def of(self, axis: str) -> Float[Tensor, " caption"]:
        """Numbers of an axis, float64; "total" is the mean of both."""
        if axis == "total":
            return 0.5 * (self.of("order") + self.of("presence"))
        return torch.tensor(getattr(self, axis), dtype=torch.float64)

    @classmethod
    def from_scores(cls, scores: Sequence[Score], num_rows: int = 0) -> "Played":
        """Of what the ear says."""
        order, presence = (
            tuple(round(getattr(score, axis), 4) for score in scores) for axis in ("order", "presence")
        )
        return cls(order, presence, num_rows)


@dataclass
class World:
    """Data on disk, encoded once, and what models make of the held-out captions of a seed.

    Args:
        folder: for data and runs.
        seed: of data, training and captions.
        num_pairs: of `edited` pairs; captions of own clips.
        num_prompts: held-out captions.
        num_labels: that whole clips and segments may cost.
    """

    folder: Path
    seed: int
    num_pairs: int = NUM_PAIRS
    num_prompts: int = NUM_PROMPTS
    num_labels: int = NUM_LABELS
    _sources: dict[str, Path] = field(default_factory=dict)
    _num_runs: int = 0

    def base(self, source: Path = ASSETS) -> Played:
        """What the shipped model, or one of another folder, makes of the captions."""
        return Played.from_scores(play_held_out(load_base(source), self.num_prompts, seed=self.seed))

    def play(self, trial: Trial) -> Played:
        """What the shipped model makes of them after a trial."""
        model, num_rows = self._train(trial)
        return Played.from_scores(play_held_out(model, self.num_prompts, seed=self.seed), num_rows)

    def resolve(self, trial: Trial) -> ResolvedRun:
        """The trial's run over its data, which is made if it is not there."""
        self._num_runs += 1
        extra: dict[str, Any] = {
            "model": {"source": str(ASSETS)},
            "data": {"source": str(self._source(trial.data))},
            "train": {"output": str(self.folder / f"run{self._num_runs}"), "seed": self.seed},
        }
        return load_run(recipe_path(f"audio/configs/toy/{trial.method}.yaml"), trial.overrides, extra=extra)

    def _train(self, trial: Trial) -> tuple[AudioModel, int]:
        run = self.resolve(trial)
        table = open_rows(run.config.data, kind=run.method.data)
        loaded = load_model(run, torch.device("cpu"))
        model = cast("AudioModel", loaded)
        online = trial.data == "captions"
        with contextlib.redirect_stdout(io.StringIO()):
            if not online:
                # A cache knows clips by their content: swapped pairs find theirs there.
                name = "edited" if trial.data == "swapped" else trial.data
                cache_clips(model, table, self.folder / f"cache {name}")
            loop, loader = prepare(run, model=loaded, table=table, reward=_reward(run))
            if trial.flipped:
                loop.parts = replace(loop.parts, objective=-1.0 * loop.parts.objective)
            with played_by_griffin_lim(model) if online else contextlib.nullcontext():
                loop.train(iter(loader))
            if loop.progress.step != loop.run.config.train.steps:
                # A signal ends training in good order; what it leaves is no result.
                message = f"{trial.name}: stopped after step {loop.progress.step}. Start the command again."
                raise TrainingError(message)
            loop.model.network = loop.trainables.network
        return model, len(table)

    def _source(self, data: Data) -> Path:
        if data not in self._sources:
            self._sources[data] = _WRITERS[data](self)
        return self._sources[data]


def _reward(run: ResolvedRun) -> OnSounds | None:
    """What scores the clips of an online run."""
    name = run.config.rollout.reward
    return None if name is None else OnSounds(load(name))


# --- data ---------------------------------------------------------------------------------------------------


def _write_edited(change: Callable[[list[SoundPair]], list[SoundPair]], world: World) -> Path:
    path = world.folder / f"{'swapped' if change is swapped else 'edited'}.parquet"
    return write_pairs(change(edited_pairs(world.num_pairs, world.seed)), path)


def _write_own(world: World) -> Path:
    pairs = sampled_pairs(load_base(), world.num_pairs, world.seed, copies=NUM_COPIES)
    return write_pairs(pairs, world.folder / "own.parquet")


def _write_captions(world: World) -> Path:
    facts = draw_split(world.num_pairs, seed=world.seed, held_out=False)
    lines = "".join(json.dumps({"prompt": one.caption()}) + "\n" for one in facts)
    atomic_write(world.folder / "captions.jsonl", lines)
    return world.folder / "captions.jsonl"


def _write_whole(world: World) -> Path:
    return write_timed(clip_labelled(world.num_labels, world.seed), world.folder / "whole")


def _write_segments(world: World) -> Path:
    return write_timed(segment_labelled(world.num_labels, world.seed), world.folder / "segments")


_WRITERS: Mapping[str, Callable[[World], Path]] = {
    "edited": partial(_write_edited, list),
    "swapped": partial(_write_edited, swapped),
    "own clips": _write_own,
    "captions": _write_captions,
    "whole clips": _write_whole,
    "segments": _write_segments,
}

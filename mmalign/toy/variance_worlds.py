"""The three toy worlds as something whose gradient can be measured: a prepared run and batches of pairs.

Recipes, bases and pairs are those of the demos; the run is stopped early, at two moments: before the first
update, where the policy is the reference, and after some.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from mmalign.audio.family import AudioModel
from mmalign.batch import Batch
from mmalign.data.readers import RowTable, open_rows
from mmalign.diffusion.family import ImageModel
from mmalign.errors import TrainingError, unknown_name
from mmalign.toy.audio_pairs import edited_pairs as sound_pairs
from mmalign.toy.audio_pairs import write_pairs as write_sounds
from mmalign.toy.demo import recipe_path
from mmalign.toy.encoding import cache_clips, cache_latents
from mmalign.toy.image_pairs import preference_pairs, write_pickapic
from mmalign.toy.video_pairs import edited_pairs as motion_pairs
from mmalign.toy.video_pairs import write_pairs as write_motions
from mmalign.train.config import load_run
from mmalign.train.loop import Loop
from mmalign.train.micro_batch import MicroBatch, to_batch
from mmalign.train.parts import load_model
from mmalign.train.run import prepare
from mmalign.video.family import VideoModel

__all__ = ["WORLDS", "World", "batches_of", "opened", "train_on"]


@dataclass(frozen=True)
class World:
    """One toy world.

    Args:
        recipe: whose method, beta, rate and noise levels are used.
        assets: folder of the base beside the package.
        num_pairs: that are made.
        steps: optimiser steps of the later moment, at the recipe's rate.
        num_batches: that are drawn over and over.
        write: makes pairs of (their number, seed) at a path.
    """

    recipe: str
    assets: str
    num_pairs: int
    steps: int
    num_batches: int
    write: Callable[[int, int, Path], object]


def _write_pictures(num: int, seed: int, path: Path) -> None:
    write_pickapic(preference_pairs(num, seed), path, seed=seed)


def _write_sounds(num: int, seed: int, path: Path) -> None:
    write_sounds(sound_pairs(num, seed), path)


def _write_motions(num: int, seed: int, path: Path) -> None:
    write_motions(motion_pairs(num, seed), path)


WORLDS: Mapping[str, World] = {
    "pictures": World("diffusion/configs/toy/dpo.yaml", "images", 256, 48, 8, _write_pictures),
    "sound": World("audio/configs/toy/dpo.yaml", "audio", 128, 40, 8, _write_sounds),
    "video": World("video/configs/toy/flow_dpo.yaml", "video", 128, 40, 6, _write_motions),
}
"""By name."""


def opened(name: str, folder: Path, *, seed: int, batch_size: int) -> Loop:
    """The prepared run of a world, its pairs made and encoded.

    Args:
        name: of the world.
        folder: for pairs, cache and run.
        seed: of pairs, adapter, order and draws.
        batch_size: pairs of a step; the rate rises over the first quarter and then stays.

    Raises:
        UnknownNameError: no such world.
    """
    if name not in WORLDS:
        raise unknown_name("toy world", name, WORLDS)
    world = WORLDS[name]
    folder.mkdir(parents=True, exist_ok=True)
    world.write(world.num_pairs, seed, folder / "pairs.parquet")
    train: dict[str, Any] = {
        "output": str(folder / "run"),
        "seed": seed,
        "steps": world.steps,
        "warmup_steps": world.steps // 4,
        "schedule": "constant",
        "batch_size": batch_size,
    }
    extra: dict[str, Any] = {
        "model": {"source": str(Path(__file__).parent / "assets" / world.assets)},
        "data": {"source": str(folder / "pairs.parquet")},
        "train": train,
        "guard": {"action": "off"},
    }
    run = load_run(recipe_path(world.recipe), extra=extra)
    table, model = open_rows(run.config.data, kind=run.method.data), load_model(run, torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()):
        _encode(name, model, table, folder / "cache")
        loop, _ = prepare(run, model=model, table=table)
    return loop


def _encode(name: str, model: Any, table: RowTable, folder: Path) -> None:
    if name == "pictures":
        cache_latents(cast("ImageModel", model), table, folder)
    else:
        cache_clips(cast("AudioModel | VideoModel", model), table, folder)


def _micro_batches(loop: Loop) -> Any:
    if loop.reopen is None:
        message = "a loop of toy pairs: got one without its data, expected `prepare` to have made it."
        raise TrainingError(message)
    return loop.reopen()


def batches_of(loop: Loop, number: int) -> list[Batch]:
    """The first batches of the run, to be drawn over and over."""
    found: list[MicroBatch] = list(islice(_micro_batches(loop), number))
    return [to_batch(micro, loop.model, torch.device("cpu")) for micro in found]


def train_on(loop: Loop) -> None:
    """Train to the end of the run.

    Raises:
        TrainingError: a signal ended it: a policy after fewer steps is another one.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(_micro_batches(loop))
    if loop.progress.step != loop.run.config.train.steps:
        message = f"stopped after step {loop.progress.step}. Start the command again."
        raise TrainingError(message)

"""Training of a reward for guidance on a run's pairs: the head of a `BackboneReward`, and nothing else.

The configuration is that of an ordinary run of pairs: its model, data, medium, batch size and seed are used,
its method's loss and its adapter are not. The backbone stays as it is. A folder of its own holds the reward,
its card, `metrics.jsonl`, and one checkpoint from which a stopped training goes on to the same weights.

Source: arXiv 2501.13918, Flow-NRG.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from mmalign.batch import Batch
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.sampler import RowOrder
from mmalign.devices import best_device
from mmalign.diffusion.guides import CARD_FILE, HEAD_FILE, guide_schedule, make_reward, save_guide
from mmalign.diffusion.latent_reward import BackboneReward
from mmalign.diffusion.model import DiffusionModel
from mmalign.diffusion.reward_fitting import fit_step
from mmalign.errors import CheckpointError, ConfigError, HyperparameterError, TrainingError, explain
from mmalign.files import (
    atomic_directory,
    atomic_write,
    fingerprint,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from mmalign.likelihood import UniformTimesteps
from mmalign.train.checkpoint import flatten_optimizer, restore_optimizer
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import Layout, StepSampler, make_loader
from mmalign.train.micro_batch import MicroBatch, to_batch
from mmalign.train.model import TrainedModel
from mmalign.train.parts import load_model
from mmalign.train.sections import NO_BITS

__all__ = ["METRICS_FILE", "GuideSettings", "train_guide"]

METRICS_FILE, CHECKPOINT = "metrics.jsonl", "checkpoint"

Say = Callable[[str], None]


@dataclass(frozen=True)
class GuideSettings:
    """How a reward for guidance is trained.

    Args:
        steps: optimiser steps.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        hidden: width of the head.
        block: module whose states are read; default `guides.reading_block`.
        save_every: steps between checkpoints, and of one line of metrics.

    Raises:
        HyperparameterError: out of range.
    """

    steps: int = 1000
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    hidden: int = 256
    block: str | None = None
    save_every: int = 100

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "hidden", "save_every"):
            if getattr(self, name) < 1:
                raise HyperparameterError(explain(f"guide {name}", got=getattr(self, name), expected=">= 1"))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            message = explain("guide learning_rate", got=self.learning_rate, expected="a number above 0")
            raise HyperparameterError(message)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            message = explain("guide weight_decay", got=self.weight_decay, expected="a number >= 0")
            raise HyperparameterError(message)


@dataclass
class _State:
    """What changes while training: steps done, finished records, sums of the record that is being made."""

    step: int = 0
    records: list[dict[str, int | float]] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def add(self, loss: float, accuracy: float) -> None:
        """One step."""
        self.step += 1
        self.sums = [self.sums[0] + loss, self.sums[1] + accuracy, self.sums[2] + 1]

    def close(self) -> dict[str, int | float]:
        """End the record; returns it."""
        loss, accuracy, count = self.sums
        self.sums = [0.0, 0.0, 0.0]
        self.records.append({"step": self.step, "loss": loss / count, "accuracy": accuracy / count})
        return self.records[-1]


def train_guide(
    run: ResolvedRun, folder: str | Path, settings: GuideSettings | None = None, *, say: Say | None = None
) -> Path:
    """Train a reward for guidance on the pairs of a run's configuration. Returns the folder.

    A folder with a checkpoint is gone on with; with more steps than it was trained for, too. The accuracy in
    the records is that of pairs before their step: of new ones in the first epoch.

    Args:
        run: from `load_run`.
        folder: to write: `guide.safetensors`, `guide.json`, `metrics.jsonl`, `checkpoint/`.
        settings: of the training.
        say: is told what happens, line by line.

    Raises:
        ConfigError: the method's data are no pairs, or the model is none of rectified flow.
        CheckpointError: the folder holds the training of another reward.
        TrainingError: a loss that is not finite.
    """
    settings, folder, tell = settings or GuideSettings(), Path(folder), say or (lambda _line: None)
    model, table = _opened(run, folder, tell)
    reward, block = make_reward(
        model, block=settings.block, hidden=settings.hidden, seed=run.config.train.seed
    )
    model.bare_network.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        reward.head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    identity = _identity(run, settings, block, len(table))
    state = _restored(folder, reward, optimizer, identity)
    if state.step:
        tell(f"continuing {folder} after step {state.step}")
    schedule, half = guide_schedule(model), model.dtype in (torch.float16, torch.bfloat16)
    for batch in _batches(run, model, table, first=state.step, last=settings.steps):
        with torch.autocast(model.device.type, dtype=model.dtype, enabled=half):
            found = fit_step(reward, schedule, batch, optimizer, timesteps=UniformTimesteps())
        if not math.isfinite(found[0]):
            message = f"guide step {state.step}: the loss is {found[0]}. Lower the learning rate."
            raise TrainingError(message)
        state.add(*found)
        if state.step % settings.save_every == 0 or state.step == settings.steps:
            record = state.close()
            tell(f"step {state.step}: loss {record['loss']:.4f}, accuracy {record['accuracy']:.3f}")
            _save(folder, reward, optimizer, state, identity)
    _write(folder, run, model, reward, state, {"block": block, "learning_rate": settings.learning_rate})
    return folder


def _opened(run: ResolvedRun, folder: Path, tell: Say) -> tuple[DiffusionModel, RowTable]:
    """The model and its rows; what is cheap to refuse is refused first."""
    config = run.config
    if run.method.data != "pairs":
        message = explain(
            f"{run.path}: method {run.method.name}",
            got=f"a method of {run.method.data}",
            expected="the configuration of a method of pairs: a reward learns from them",
        )
        raise ConfigError(message)
    table = open_rows(config.data, kind="pairs")
    folder.mkdir(parents=True, exist_ok=True)
    table.report.check(config.data.max_bad_share, quarantine=folder / "quarantine.jsonl")
    tell(table.describe())
    plain = config.model.model_copy(update={"gradient_checkpointing": False})
    device = best_device("cpu" if config.train.device == "cpu" else None)
    loaded = load_model(replace(run, config=config.model_copy(update={"model": plain})), device)
    if not isinstance(loaded, DiffusionModel):
        message = explain("reward guidance", got=f"family {loaded.family}", expected="a model that denoises")
        raise ConfigError(message)
    guide_schedule(loaded)
    loaded.limit_images(config.data.images)
    if (limit_video := getattr(loaded, "limit_video", None)) is not None:
        limit_video(config.data.video)
    for note in loaded.notes:
        tell(note)
    return loaded, table


def _batches(
    run: ResolvedRun, model: DiffusionModel, table: RowTable, *, first: int, last: int
) -> Iterator[Batch]:
    """Encoded batches of the steps that are left."""
    config = run.config
    layout = Layout(config.train.batch_size, 1)
    known = cast("TrainedModel", model)
    loader = make_loader(
        table,
        RowOrder.for_table(table, seed=config.train.seed, shuffle=config.data.shuffle),
        known,
        StepSampler(layout, start_step=first, steps=max(first, last)),
        rows_per_step=layout.effective_batch,
        world_size=1,
        num_workers=config.train.num_workers,
        pin_memory=model.device.type == "cuda",
    )
    for micro in cast("Iterator[MicroBatch]", iter(loader)):
        yield to_batch(micro, known, model.device)


# ------------------------------------------------------------------------------------------------- files


def _identity(run: ResolvedRun, settings: GuideSettings, block: str, num_rows: int) -> str:
    """What must agree for a training to go on; steps may grow."""
    config = run.config
    made: dict[str, Any] = {
        "model": config.model.model_dump(mode="json", exclude=set(NO_BITS - {"attention"})),
        "media": config.media.model_dump(mode="json", exclude={"cache"}),
        "data": config.data.model_dump(mode="json"),
        "train": [config.train.seed, config.train.batch_size, config.train.mixed_precision],
        "guide": [settings.learning_rate, settings.weight_decay, settings.hidden, settings.save_every, block],
        "rows": num_rows,
    }
    return fingerprint(made)


def _save(
    folder: Path,
    reward: BackboneReward,
    optimizer: torch.optim.Optimizer,
    state: _State,
    identity: str,
) -> None:
    tensors, described = flatten_optimizer(optimizer)
    with atomic_directory(folder / CHECKPOINT) as partial:
        reward.save(partial / HEAD_FILE)
        save_tensors(partial / "optimizer.safetensors", tensors)
        kept = {"identity": identity, "step": state.step, "records": state.records, "optimizer": described}
        write_json(partial / "state.json", kept)
    atomic_write(folder / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in state.records))


def _restored(
    folder: Path, reward: BackboneReward, optimizer: torch.optim.Optimizer, identity: str
) -> _State:
    """Where the training stands."""
    place = folder / CHECKPOINT
    if not place.is_dir():
        if (folder / CARD_FILE).is_file():
            message = explain(
                str(folder), got="a reward without its checkpoint", expected="another folder, or an empty one"
            )
            raise CheckpointError(message)
        return _State()
    kept = read_json(place / "state.json")
    if kept["identity"] != identity:
        message = explain(
            str(folder),
            got="[a reward of another model, of other data or settings]",
            expected="the training that is to go on",
            do="Choose another folder.",
        )
        raise CheckpointError(message)
    reward.load(place / HEAD_FILE)
    restore_optimizer(optimizer, load_tensors(place / "optimizer.safetensors"), kept["optimizer"])
    return _State(kept["step"], list(kept["records"]))


def _write(
    folder: Path,
    run: ResolvedRun,
    model: DiffusionModel,
    reward: BackboneReward,
    state: _State,
    more: dict[str, Any],
) -> None:
    """The finished reward."""
    last = state.records[-1]
    facts = {"source": run.config.model.source, "steps": state.step, "seed": run.config.train.seed}
    save_guide(folder, reward, model, {**more, **facts, "loss": last["loss"], "accuracy": last["accuracy"]})

"""Training of a step-aware preference model: PickScore or a CLIP of yours learns to judge noised pictures.

    mmalign train diffusion/configs/sd15/step_aware.yaml

The loop, its checkpoints and its validation are those of `mmalign.rewards.training`; what is new is that the
whole network is trained and that every step shows it estimates of a diffusion model (`step_aware_pairs`). The
result is the reward `step_aware`, which SPO's `rollout.reward` takes.

Source: arXiv 2406.04314; RockeyCoss/SPO, step_aware_preference_model.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign import registry
from mmalign.data.readers import open_rows
from mmalign.diffusion.family import ImageModel
from mmalign.diffusion.step_aware_config import NetworkConfig, StepAwareRunConfig, load_step_aware_run
from mmalign.diffusion.step_aware_pairs import (
    Estimator,
    NoisyPairs,
    PairColumns,
    PairSource,
    read_columns,
    step_aware_outputs,
    steps_of,
)
from mmalign.errors import ConfigError, explain
from mmalign.files import write_json
from mmalign.rewards.step_aware import StepAwareClip, step_aware_losses
from mmalign.rewards.step_aware_files import (
    OFFICIAL_FILE,
    WEIGHTS_FILE,
    clip_tokens,
    new_step_aware,
    save_official_step_aware,
    save_step_aware,
)
from mmalign.rewards.step_aware_reward import CLIP_H, PICKSCORE, Start, load_step_aware
from mmalign.rewards.training.loop import Progress, held_out, train_head
from mmalign.rewards.training.pairs import part_of
from mmalign.rewards.training.run import device_of, run_or_describe, with_resume
from mmalign.rewards.training.validation import Measures, measure
from mmalign.rewards.weights import resolve
from mmalign.seeding import derive_seed

__all__ = ["StepAwareRun", "main", "train_step_aware"]

CONFIG_FILE = "step_aware_config.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class StepAwareRun:
    """What a training leaves behind.

    Args:
        folder: `mmalign.rewards.load("step_aware", weights=folder)` reads it.
        progress: of the training; not `finished` where it was stopped before its end.
        measures: on the test pairs, by timestep out of a thousand; empty while it is not finished.
        network: with the best weights.
    """

    folder: Path
    progress: Progress
    measures: Mapping[str, Measures]
    network: StepAwareClip


def main(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    resume: str | None = None,
) -> int:
    """Run or describe a configuration; `mmalign train` calls it. Returns the exit code."""
    config, row = load_step_aware_run(config_path, with_resume(overrides, resume))
    return run_or_describe(config, row, train_step_aware, dry_run=dry_run)


# ------------------------------------------------------------------------------------------------- parts


def _network(config: NetworkConfig, seed: int) -> tuple[StepAwareClip, Path]:
    """The network to train, in float32 on the CPU, and the folder of its config and tokenizer."""
    name = "reward_step_aware"
    base = resolve(CLIP_H, folder=config.weights, reward=name)
    if config.start == "new":
        return new_step_aware(base / "config.json", seed=seed).requires_grad_(True), base
    if config.start == "pickscore":
        file = config.file or PICKSCORE.files[0]
        folder = Path(config.weights or "") if config.file else None
        weights = (folder or resolve(PICKSCORE, folder=config.weights, reward=name)) / file
    else:
        weights = Path(config.weights or "") / (config.file or WEIGHTS_FILE)
    start: Start = "pickscore" if config.start == "pickscore" else "released"
    network = load_step_aware(
        weights, base / "config.json", start=start, seed=derive_seed(seed, "embedder"), dtype=torch.float32
    )
    return network.requires_grad_(True), base


def _diffusion_model(config: StepAwareRunConfig, device: torch.device) -> ImageModel:
    if config.image.prompt_dropout > 0:
        message = explain(
            "image.prompt_dropout",
            got=config.image.prompt_dropout,
            expected="0: estimates are made under guidance with their prompts",
        )
        raise ConfigError(message)
    model: ImageModel = registry.find("families", config.model.family).load(
        config.model, config.image, device=device, dtype=getattr(torch, config.estimate.dtype)
    )
    model.limit_images(config.data.images)
    return model


def _parts(columns: PairColumns, config: StepAwareRunConfig) -> dict[str, Int[Tensor, " row"]]:
    """Rows of each part, by prompt.

    Raises:
        ConfigError: a part that is left without pairs.
    """
    shares = config.validation.model_dump(exclude={"timesteps"})
    named = [part_of(prompt, **shares) for prompt in columns.prompts]
    found = {
        name: torch.tensor([row for row, part in enumerate(named) if part == name], dtype=torch.int64)
        for name in ("train", "validation", "test")
    }
    for name, rows in found.items():
        if len(rows) == 0:
            message = explain(
                f"validation: pairs for {name}",
                got=f"[none of {len(named)} pairs over {len(set(columns.prompts))} prompts]",
                expected="one or more",
                do="Raise the shares, or bring pairs of more prompts.",
            )
            raise ConfigError(message)
    return found


# ---------------------------------------------------------------------------------------------- training


def train_step_aware(
    config: StepAwareRunConfig,
    *,
    say: Say | None = None,
    stop: Callable[[int], bool] | None = None,
) -> StepAwareRun:
    """Train a step-aware preference model and write its folder.

    A run that was stopped goes on when it is called again, and ends with the same weights.

    Args:
        config: settings (`load_step_aware_run`).
        say: is told what happens, line by line.
        stop: asked after every evaluation with the step; True ends this process's part of the run.

    Raises:
        ConfigError: data, labels or models that do not fit.
        CheckpointError: the folder holds another run, or files do not fit.
        TrainingError: a loss that is not finite.
    """
    started = time.monotonic()
    tell = say or (lambda _line: None)
    folder = Path(config.train.output)
    parts = _prepared(config, tell)
    sizes = {name: len(rows) for name, rows in parts.rows.items()}
    tell(f"pairs: {', '.join(f'{size:,} {name}' for name, size in sizes.items())}")
    pairs = _pairs(parts, config)
    write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
    outputs = partial(_on_cpu, precision=getattr(torch, config.network.precision))
    progress = train_head(
        parts.network,
        pairs["train"],
        pairs["validation"],
        lambda network, some: step_aware_losses(torch.cat(outputs(network, some), dim=1), some.probability),
        config.train,
        outputs=outputs,
        identity=_identity(config, parts),
        say=tell,
        stop=stop,
    )
    if not progress.finished:
        return StepAwareRun(folder, progress, {}, parts.network)
    run = StepAwareRun(
        folder, progress, _measures(parts.network, pairs["test"], config, outputs), parts.network
    )
    facts = {
        "pairs": sizes,
        "unreadable": len(parts.source.unreadable),
        "seconds": round(time.monotonic() - started, 3),
    }
    _write(run, config, parts.base, facts)
    for name, found in run.measures.items():
        tell(f"test, t = {name}: accuracy {found.accuracy:.3f} of {found.pairs:,} pairs, NLL {found.nll:.3f}")
    tell(f"reward: {folder} (rollout.reward: step_aware, rollout.reward_weights: {folder})")
    return run


@dataclass(frozen=True)
class _Parts:
    """What a run works with; `rows` are those of each part, `base` has the CLIP's config and tokenizer."""

    network: StepAwareClip
    base: Path
    source: PairSource
    columns: PairColumns
    rows: Mapping[str, Int[Tensor, " row"]]


def _prepared(config: StepAwareRunConfig, tell: Say) -> _Parts:
    """Data, both networks, and who is held out; what is cheap to refuse is refused first."""
    device = device_of(config.train.device)
    table = open_rows(config.data, kind="pairs")
    tell(table.describe())
    columns = read_columns(table).hardened(config.labels.margin)
    rows = _parts(columns, config)
    network, base = _network(config.network, config.train.seed)
    model = _diffusion_model(config, device)
    for note in model.notes:
        tell(note)
    estimator = Estimator(model, config.estimate.guidance_scale, config.estimate.batch_size)
    chunk = config.train.micro_batch_size or min(32, config.train.batch_size)
    source = PairSource(table, estimator, clip_tokens(base, network), chunk)
    rows |= {name: _readable(source, name, rows[name]) for name in ("validation", "test")}
    return _Parts(network.to(device), base, source, columns, rows)


def _on_cpu(network: StepAwareClip, pairs: NoisyPairs, *, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """`step_aware_outputs` where the loop's labels and weights are: beside the rows, on the CPU."""
    first, second = step_aware_outputs(network, pairs, precision=precision)
    return first.cpu(), second.cpu()


def _write(run: StepAwareRun, config: StepAwareRunConfig, base: Path, facts: Mapping[str, Any]) -> None:
    """The run's folder as a reward, and the file of the released code if it is asked for."""
    description = {
        "name": config.name or config.method,
        "method": config.method,
        "measures": {name: found.as_json() for name, found in run.measures.items()},
        "training": {
            "settings": config.model_dump(mode="json"),
            "steps": run.progress.step,
            "best_step": run.progress.best_step,
            "validation_nll": run.progress.best_nll,
            "stopped_early": run.progress.stopped_early,
            **facts,
        },
    }
    save_step_aware(run.folder, run.network, base=base, description=description)
    if config.official_file:
        save_official_step_aware(run.network, run.folder / OFFICIAL_FILE)


def _readable(source: PairSource, name: str, rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Held-out rows whose pictures can be read: they are judged many times, and none may stand for another.

    Raises:
        ConfigError: none is left, or more cannot be read than the data settings allow.
    """
    kept = [row for row in rows.tolist() if source.read(row, 0) is not None]
    if not kept:
        first = next(iter(source.unreadable.values()))
        got = f"[none of {len(rows)} rows that can be used]"
        raise ConfigError(explain(f"{name} pairs", got=got, expected="one or more", do=f"First: {first}"))
    return torch.tensor(kept, dtype=torch.int64)


def _pairs(parts: _Parts, config: StepAwareRunConfig) -> dict[str, NoisyPairs]:
    source, columns = parts.source, parts.columns
    held = {
        name: NoisyPairs.held(
            source,
            parts.rows[name],
            columns,
            timesteps=config.validation.timesteps,
            seed=derive_seed(config.train.seed, name),
        )
        for name in ("validation", "test")
    }
    places = parts.rows["train"]
    weight = columns.per_prompt(places) if config.labels.per_prompt else columns.weight[places]
    start = steps_of(source.estimator.model.schedule, (0,)).expand(len(places))
    train = NoisyPairs(source, places, columns.probability[places], weight, places, start)
    return {"train": train, **held}


def _measures(
    network: StepAwareClip,
    test: NoisyPairs,
    config: StepAwareRunConfig,
    outputs: Callable[[Any, Any], tuple[Tensor, Tensor]],
) -> dict[str, Measures]:
    """Measures of the test pairs at each timestep."""
    steps = config.validation.timesteps
    count = len(test) // len(steps)
    found = {}
    for number, name in enumerate(steps):
        places = torch.arange(number * count, (number + 1) * count)
        found[f"{name:g}"] = measure(held_out(network, test.at(places), outputs)(1.0))
    return found


def _identity(config: StepAwareRunConfig, parts: _Parts) -> str:
    """Hash of everything the weights depend on: settings, labels, what encodes pictures and prompts."""
    settings = config.model_dump(mode="json", exclude={"name", "official_file"})
    for name in ("output", "resume", "keep_checkpoints", "device", "micro_batch_size"):
        del settings["train"][name]
    del settings["estimate"]["batch_size"], settings["image"]["cache"]
    columns, model = parts.columns, parts.source.estimator.model
    made = [settings, columns.prompts, model.vae_fingerprint(), model.text_fingerprint()]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode())
    for column in (columns.probability, columns.weight):
        digest.update(column.contiguous().numpy().tobytes())
    return digest.hexdigest()

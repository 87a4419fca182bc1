"""From a YAML file to a trained reward: features, split, training, calibration, test, folder."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from mmalign.data.config import DataConfig
from mmalign.data.readers import RowTable, open_rows
from mmalign.devices import best_device
from mmalign.files import write_json
from mmalign.methods.row import Method
from mmalign.rewards.training.adapters import (
    ADAPTER,
    LiveFeatures,
    LivePairs,
    adapter_tensors,
    attach_adapter,
)
from mmalign.rewards.training.backbones import Backbone, make_backbone
from mmalign.rewards.training.config import RewardRunConfig, load_reward_run
from mmalign.rewards.training.feature_store import FeatureStore
from mmalign.rewards.training.heads import PreferenceHead
from mmalign.rewards.training.loop import Progress, measures_of, train_head
from mmalign.rewards.training.pairs import (
    Columns,
    FeaturePairs,
    PairTable,
    prepare_item,
    read_pairs,
    split,
    weighted_by_prompt,
)
from mmalign.rewards.training.saved import Description, save_reward
from mmalign.rewards.training.scoring import Head, make_head, make_loss
from mmalign.rewards.training.validation import Measures
from mmalign.seeding import generator_for

__all__ = ["TrainedRun", "describe", "device_of", "main", "run_or_describe", "train_reward", "with_resume"]

CONFIG_FILE = "reward_config.json"


@dataclass(frozen=True)
class TrainedRun:
    """What a training leaves behind.

    Args:
        folder: `mmalign.rewards.load("trained", weights=folder)` reads it.
        progress: of the training; not `finished` where it was stopped before its end.
        measures: on the test pairs, calibrated; None while it is not finished.
        uncalibrated: the same at temperature 1.
        head: with the best weights.
    """

    folder: Path
    progress: Progress
    measures: Measures | None
    uncalibrated: Measures | None
    head: Head


@runtime_checkable
class RunSettings(Protocol):
    """Settings of a run that learns from pairs.

    Attributes:
        data: where they are.
    """

    @property
    def data(self) -> DataConfig:
        """Where the pairs are."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The settings as plain values."""


def main(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    resume: str | None = None,
) -> int:
    """Run or describe a configuration of a reward; `mmalign train` calls it. Returns the exit code."""
    config, row = load_reward_run(config_path, with_resume(overrides, resume))
    return run_or_describe(config, row, train_reward, dry_run=dry_run)


def with_resume(overrides: Sequence[str], resume: str | None) -> list[str]:
    """The overrides of a run, with what the option `--resume` says."""
    return [*overrides, *([f"train.resume={resume}"] if resume else [])]


def run_or_describe(config: RunSettings, row: Method, train: Callable[..., object], *, dry_run: bool) -> int:
    """What `mmalign train` does with settings that were read. Returns the exit code.

    Args:
        config: settings.
        row: the method's.
        train: is called with the settings and `say`.
        dry_run: say what a run would do, and do not begin it.
    """
    if dry_run:
        print(describe(config, row))
    else:
        train(config, say=print)
    return 0


def describe(config: RunSettings, row: Method) -> str:
    """What a run would do: the row, the rows of data, the settings as YAML."""
    import yaml

    table = open_rows(config.data, kind="pairs")
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"{row.name}: {row.title}\n{row.formula}\n\n{table.describe()}\n\n{settings}"


def device_of(name: str) -> torch.device:
    """The device of `train.device`; "auto" is the best there is.

    Raises:
        ConfigError: it is not there.
    """
    return best_device(None if name == "auto" else name)


def _backbone(config: RewardRunConfig, device: torch.device) -> tuple[Backbone, dict[str, Any]]:
    given = config.backbone
    options = {"kind": given.kind, "name": given.name, "weights": given.weights, **given.options()}
    return make_backbone(**options, device=device, dtype=getattr(torch, given.dtype)), options


def train_reward(
    config: RewardRunConfig,
    *,
    say: Callable[[str], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> TrainedRun:
    """Train a reward by a row of the method table and write its folder.

    A run that was stopped goes on when it is called again, and ends with the same weights.

    Args:
        config: settings (`load_reward_run`).
        say: is told what happens, line by line.
        stop: asked after every evaluation with the step; True ends this process's part of the run.

    Raises:
        ConfigError: data, columns or backbone that do not fit the method.
        CheckpointError: the folder holds another run, or files do not fit.
        TrainingError: a loss that is not finite.
    """
    started = time.monotonic()
    tell = say or (lambda _line: None)
    device = device_of(config.train.device)
    backbone, options = _backbone(config, device)
    folder = Path(config.train.output)
    rows = open_rows(config.data, kind="pairs")
    tell(rows.describe())
    cache = config.backbone.cache or folder / "features"
    store = FeatureStore(backbone, folder=cache, batch_size=config.backbone.batch_size, say=tell)
    table = read_pairs(rows, store, Columns(**config.columns.model_dump()))
    if config.loss.per_prompt:
        table = weighted_by_prompt(table)
    parts = split(table, **config.validation.model_dump())
    sizes = {name: len(places) for name, places in parts.items()}
    tell(
        f"pairs: {', '.join(f'{size:,} {name}' for name, size in sizes.items())}; {store.computed:,} embedded"
    )
    given, adapter = table.pairs, {}
    head = _head(config, table, given.at(parts["train"]))
    if config.adapter.rank:
        adapter = attach_adapter(backbone, **config.adapter.model_dump(), seed=config.train.seed)
        given = _live(rows, table, backbone)
        head.register_module(ADAPTER, nn.ParameterDict(adapter_tensors(backbone)))
    head = head.to(device)
    pairs = {name: given.at(places).to(device) for name, places in parts.items()}
    write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
    progress = train_head(
        head,
        pairs["train"],
        pairs["validation"],
        make_loss(config.method, config.loss, form=config.head.form, tasks=len(table.tasks)),
        config.train,
        identity=_identity(config, store, table),
        say=tell,
        stop=stop,
    )
    if not progress.finished:
        return TrainedRun(folder, progress, None, None, head)
    calibrated, raw = measures_of(head, validation=pairs["validation"], test=pairs["test"])
    description = Description(
        name=config.name or config.method,
        method=config.method,
        backbone=options,
        backbone_settings=dict(backbone.settings()),
        head={},
        temperature=calibrated.temperature,
        context=bool(config.columns.context),
        adapter=adapter,
        measures={"test": calibrated.as_json(), "test_uncalibrated": raw.as_json()},
        training={
            "settings": config.model_dump(mode="json"),
            "pairs": sizes,
            "dropped": dict(table.dropped),
            "tasks": list(table.tasks) if config.method == "reward_more" else [],
            "steps": progress.step,
            "best_step": progress.best_step,
            "validation_nll": progress.best_nll,
            "stopped_early": progress.stopped_early,
            "seconds": round(time.monotonic() - started, 3),
        },
    )
    save_reward(folder, head, description)
    tell(_summary(calibrated, raw))
    tell(f"reward: {folder} (mmalign.rewards.load('trained', weights={str(folder)!r}))")
    return TrainedRun(folder, progress, calibrated, raw, head)


def _live(rows: RowTable, table: PairTable, backbone: Backbone) -> LivePairs:
    """The pairs with features that follow the backbone; pictures are read anew in every step."""
    live = LiveFeatures(
        backbone,
        lambda row: prepare_item(rows, table, backbone, row),
        table.prompts,
        table.contexts,
    )
    return LivePairs(**vars(table.pairs), live=live)


def _head(config: RewardRunConfig, table: PairTable, train: FeaturePairs) -> Head:
    given = table.pairs
    head = make_head(
        config,
        item=given.items.shape[1],
        prompt=0 if given.prompts is None else given.prompts.shape[1],
        context=0 if given.contexts is None else given.contexts.shape[1],
        users=table.users,
        generator=generator_for(config.train.seed, "reward head"),
    )
    if isinstance(head, PreferenceHead):
        # Of the training pairs alone: held-out ones stay unseen.
        used = {"item": train.items[torch.cat([train.first, train.second]).unique()]}
        if train.prompts is not None:
            used["prompt"] = train.prompts[train.prompt.unique()]
        if train.contexts is not None:
            used["context"] = train.contexts[train.context.unique()]
        head.standardise_by(**{name: value.cpu() for name, value in used.items()})
    return head


def _identity(config: RewardRunConfig, store: FeatureStore, table: PairTable) -> str:
    """Hash of everything the weights depend on: settings, features, labels."""
    settings = config.model_dump(mode="json")
    for name in ("output", "resume", "keep_checkpoints", "device"):
        del settings["train"][name]
    for name in ("cache", "batch_size", "weights"):
        del settings["backbone"][name]
    digest = hashlib.sha256(json.dumps([settings, store.fingerprint], sort_keys=True).encode())
    pairs = table.pairs
    for column in (pairs.first, pairs.second, pairs.probability, pairs.weight, pairs.items.sum(dim=1)):
        digest.update(column.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _summary(calibrated: Measures, raw: Measures) -> str:
    return (
        f"test: accuracy {calibrated.accuracy:.3f} of {calibrated.pairs:,} pairs, NLL {calibrated.nll:.3f} "
        f"nats, calibration error {calibrated.calibration_error:.3f} (uncalibrated "
        f"{raw.calibration_error:.3f}), temperature {calibrated.temperature:.3g}"
    )

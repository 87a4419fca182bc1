"""From a configuration to a finished run: load, attach, wire, train, save. What `mmalign train` calls."""

import atexit
import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from accelerate import Accelerator, PartialState
from torch import nn

from mmalign.data.readers import RowTable, open_rows
from mmalign.data.streaming import StreamOrder, StreamTable
from mmalign.files import atomic_write, read_json_lines, write_json
from mmalign.sharded import is_sharded, live_parts
from mmalign.train.adapters import Trainables
from mmalign.train.audio_sections import AudioRunConfig
from mmalign.train.average import average_of
from mmalign.train.checkpoint import load_checkpoint, prune, set_aside_later
from mmalign.train.config import ResolvedRun, load_run, resolved_content
from mmalign.train.distributed.networks import for_sampling, for_saving, prepare_optimizer
from mmalign.train.dry_run import describe
from mmalign.train.guard import Guard, protected_steps
from mmalign.train.loader import Layout, MicroBatch, StepSampler, make_loader, make_order
from mmalign.train.loop import CHECKPOINTS, Loop, peak_memory_gib, quarantine_path, require_same_run
from mmalign.train.metrics import verdict
from mmalign.train.model import ReadsRows, TrainedModel, denoising, writing
from mmalign.train.online import RunReward
from mmalign.train.optim import Updater, make_optimizer, make_schedule
from mmalign.train.parts import (
    attach_and_refer,
    data_of,
    load_model,
    make_accelerator,
    reference_kind,
    row_needs,
)
from mmalign.train.plan import (
    derived_values,
)
from mmalign.train.rollouts import is_online, make_online, opening_lines
from mmalign.train.run_identity import identity_of, require_agreement, start_of
from mmalign.train.sample_answers import SampleAnswers
from mmalign.train.sample_clips import SampleClips
from mmalign.train.sample_sounds import SampleSounds
from mmalign.train.samples import SampleGrids
from mmalign.train.steps import learning_rates, with_steps
from mmalign.train.token_metrics import token_verdict
from mmalign.train.token_sections import AnswerRolloutConfig, TokenRunConfig, tokens_of
from mmalign.train.tracking import Tracking
from mmalign.train.video_sections import VideoRunConfig

__all__ = ["CONFIG_FILE", "SUMMARY_FILE", "RunResult", "describe", "main", "prepare", "train"]

CONFIG_FILE = "mmalign_config.yaml"
SUMMARY_FILE = "training_summary.json"


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Args:
        folder: run folder.
        steps: optimiser steps done.
        records: logged metrics.
        verdict: what they say, in words.
        finished: False when a signal or the guard stopped it early.
        model: the loaded model with the trained weights, for whoever called from Python.
        trainables: the trained weights.
        stopped: the guard ended it.
    """

    folder: Path
    steps: int
    records: list[dict[str, Any]]
    verdict: list[str]
    finished: bool
    model: TrainedModel
    trainables: Trainables
    stopped: bool = False
    extras: dict[str, Any] = field(default_factory=dict)


def main(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    resume: str | None = None,
    reward_of: Callable[[ResolvedRun], RunReward | None] = lambda _: None,
    reward_bytes_of: Callable[[ResolvedRun], int | None] = lambda _: None,
) -> int:
    """Run or describe a configuration; the command line's `train`. Returns the exit code.

    Args:
        config_path: YAML file.
        overrides: `section.key=value`.
        dry_run: say what a run would do.
        resume: laid over `train.resume`.
        reward_of: loads what scores the samples of an online run.
        reward_bytes_of: says how large that is, without loading it.
    """
    settings = [*overrides, *([f"train.resume={resume}"] if resume else [])]
    run = load_run(config_path, settings)
    if dry_run:
        describe(run, reward_bytes=reward_bytes_of(run))
        return 0
    reward = reward_of(run) if is_online(run) else None
    stopped = train(run, reward=reward).stopped
    # A rank that leaves while its group lives can be aborted on the way out, after everything was saved.
    PartialState().destroy_process_group()
    return 1 if stopped else 0


def _versions() -> dict[str, str]:
    found = {}
    for package in ("mmalign", "torch", "diffusers", "transformers", "accelerate", "peft", "datasets"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


# --- training -----------------------------------------------------------------------------------------------


def train(
    run: ResolvedRun,
    *,
    model: TrainedModel | None = None,
    table: RowTable | None = None,
    reward: RunReward | None = None,
) -> RunResult:
    """Train a resolved run to its end, or to a signal.

    Args:
        run: from `load_run`.
        model: a model loaded before (its network must carry no adapter yet).
        table: rows opened before.
        reward: scores the samples of an online method.

    Raises:
        MmalignError: anything a user can mend; the message says how.
    """
    loop, loader = prepare(run, model=model, table=table, reward=reward)
    started = time.perf_counter()
    loop.train(iter(loader))
    loop.model.network = loop.trainables.network
    return _finish(loop, seconds=time.perf_counter() - started)


def prepare(
    run: ResolvedRun,
    *,
    model: TrainedModel | None = None,
    table: RowTable | None = None,
    reward: RunReward | None = None,
) -> tuple[Loop, Iterable[MicroBatch]]:
    """A run short of its first step: the loop, restored if there is a checkpoint, and its loader."""
    config = run.config
    accelerator = make_accelerator(run)
    folder = Path(config.train.output)
    start = start_of(folder, run)
    checkpoint = load_checkpoint(start) if start is not None else None
    layout = Layout(
        config.train.batch_size,
        config.train.accumulation,
        accelerator.num_processes,
        accelerator.process_index,
    )
    table = table if table is not None else open_rows(data_of(run), kind=run.method.data)
    num_rows = len(table) if config.train.steps is None or not config.data.streaming else 0
    run = with_steps(run, num_rows=num_rows, effective_batch=layout.effective_batch)
    config = run.config
    kind = reference_kind(run)
    rows = table.identity if isinstance(table, StreamTable) else len(table)
    if isinstance(table, StreamTable) and is_online(run) and isinstance(config.rollout, AnswerRolloutConfig):
        table.refuse("answers sampled by a language model, which look their rows up")
    identity = identity_of(run, layout, kind, rows)
    start_step = 0
    if checkpoint is not None:
        # Before anything is written: a run that is refused leaves the folder as it was.
        require_same_run(checkpoint, identity, folder)
        start_step = checkpoint.step
    require_agreement(start_step, identity)
    if accelerator.is_main_process:
        for path in set_aside_later(folder / CHECKPOINTS, start_step):
            logging.getLogger(__name__).warning("going back to step %d: kept as %s", start_step, path)
        # A kill between a checkpoint and its pruning leaves one too many.
        held = protected_steps(config.guard, checkpoint.state.get("guard", {})) if checkpoint else ()
        prune(folder / CHECKPOINTS, keep=config.train.keep_checkpoints, protected=held)
        _open_quarantine(run, table, start_step=start_step)
    table.report.check(config.data.max_bad_share, quarantine=quarantine_path(run))
    model = model if model is not None else load_model(run, accelerator.device)
    model.limit_images(config.data.images)
    if (limit_audio := getattr(model, "limit_audio", None)) is not None:
        limit_audio(config.data.audio)
    if (limit_video := getattr(model, "limit_video", None)) is not None:
        limit_video(config.data.video)
    if (show_rows := getattr(model, "show_rows", None)) is not None:
        show_rows(table)  # for corruptions that show another row's picture
    order = make_order(
        table,
        seed=config.train.seed,
        draws_per_row=config.reference.draws_per_row if kind == "stored" else None,
        rows_together=_prompts_together(run) if is_online(run) else layout.batch_size,
        world_size=layout.world_size,
        num_workers=config.train.num_workers,
    )
    trainables, parts = attach_and_refer(run, kind, accelerator, model, table=table)
    online = None
    if is_online(run):
        online, parts = make_online(
            run,
            model,
            parts,
            trainables.network,
            reward=reward,
            table=table,
            device=accelerator.device,
            rank=layout.rank,
            sum_across=parts.state.sum_across,
        )
    parameters = list(trainables.parameters.values())
    optimizer = make_optimizer(learning_rates(config, model, trainables), config.train)
    engine = prepare_optimizer(accelerator, trainables, optimizer)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / CONFIG_FILE, yaml.safe_dump(resolved_content(run), sort_keys=False))
    tracking = Tracking(accelerator, folder, run, start_step=start_step)
    hook = _sample_hook(run, accelerator, model, trainables, tracking, folder / "samples")
    loop = Loop(
        run=run,
        accelerator=accelerator,
        model=model,
        network=model.network,
        trainables=trainables,
        parts=parts,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, config.train),
        updater=Updater(
            parameters,
            optimizer,
            max_grad_norm=config.train.max_grad_norm,
            scaler=getattr(accelerator, "scaler", None),
            engine=engine,
        ),
        ema=average_of(live_parts(parameters), config.train.ema_decay),
        layout=layout,
        tracking=tracking,
        folder=folder,
        identity=identity,
        on_update=hook,
        engine=engine,
        guard=_guard(run),
        online=online,
        stream=order if isinstance(order, StreamOrder) else None,
    )
    if checkpoint is not None:
        loop.restore(checkpoint)
        tracking.say(f"continuing {folder} after step {checkpoint.step}")
    for line in [*table.describe().splitlines(), *table.advice()]:
        tracking.say(line)
    _opening_lines(run, layout, model, trainables, kind, tracking)

    def open_loader() -> Iterable[MicroBatch]:
        skipped = loop.guard.state.skipped  # a rollback takes the weights back and leaves the data
        first, last = loop.progress.step + skipped, (config.train.steps or 0) + skipped
        places = layout
        if online is not None:  # prompts go by rounds, and nobody knows how many there will be
            places = Layout(_prompts_together(run), 1, layout.world_size, layout.rank)
            first, last = online.num_rounds + skipped, _MANY_ROUNDS
        rollout, reader = run.config.rollout, cast("ReadsRows", model)
        if online is not None and isinstance(rollout, AnswerRolloutConfig):
            reader = writing(model).rounds(rollout, kind=run.method.rollout)
        loader = make_loader(
            table,
            order,
            reader,
            StepSampler(places, start_step=first, steps=last),
            rows_per_step=places.effective_batch,
            world_size=layout.world_size,
            num_workers=config.train.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            needs=row_needs(run, model, parts.objective, is_online=online is not None),
        )
        return cast("Iterable[MicroBatch]", loader)

    loop.reopen = lambda: iter(open_loader())
    return loop, open_loader()


_MANY_ROUNDS = 2**40


def _prompts_together(run: ResolvedRun) -> int:
    """Rows of a round: prompts that are sampled together, or a micro-batch where each row gives one item."""
    one_each = ("expert_states", "self_play", "backpropagation", "one_step", "bias_driven")
    return run.config.train.batch_size if run.method.rollout in one_each else run.config.rollout.prompts


def _guard(run: ResolvedRun) -> Guard:
    """The divergence guard, told what its advice depends on."""
    beta = run.objective_arguments.get("beta")
    return Guard(
        run.config.guard,
        learning_rate=run.config.train.learning_rate,
        beta=float(beta) if isinstance(beta, int | float) else None,
        has_reference=run.method.reference != "none",
        has_safeguard=run.config.safeguard.mu is not None,
        language=tokens_of(run.config) is not None,
    )


def _open_quarantine(run: ResolvedRun, table: RowTable, *, start_step: int) -> None:
    """List the rows that were unusable on opening; forget those of steps that will be repeated."""
    path = quarantine_path(run)
    found = read_json_lines(path) if path.exists() and start_step > 0 else []
    listed = [record for record in found if 0 < record.get("step", 0) <= start_step]
    opening: list[dict[str, Any]] = [
        {
            "step": 0,
            "index": None,
            "source": f"{issue.file}:{issue.row}",
            "reason": issue.reason,
            "message": issue.message,
        }
        for issue in table.issues
    ]
    if listed or opening or path.exists():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in [*opening, *listed])
        atomic_write(path, "".join(lines))


def _sample_hook(
    run: ResolvedRun,
    accelerator: Accelerator,
    model: TrainedModel,
    trainables: Trainables,
    tracking: Tracking,
    folder: Path,
) -> Callable[[int], None]:
    """Make pictures, sounds or answers every so many steps, on the main process, by the bare network.

    Of a sharded network every process has to make them; those of the others go nowhere.
    """
    config = run.config
    is_main = accelerator.is_main_process
    together = any(is_sharded(value) for value in trainables.parameters.values())
    if together and not is_main:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    written = isinstance(config, TokenRunConfig)
    settings = config.answers if isinstance(config, TokenRunConfig) else config.samples

    def hook(step: int) -> None:
        is_due = step == config.train.steps or (settings.every is not None and step % settings.every == 0)
        if not (settings.prompts and is_due and (is_main or together)):
            return
        with _bare(model, trainables.network), for_sampling(trainables.network):
            path = maker.write(step)
        if written:
            return
        if config.media.cache is not None:
            denoising(model).release_encoders()  # the plan of a cached run has no room for them
        if path.suffix == ".png" and is_main:
            tracking.log_picture("samples", path, step)

    maker: SampleGrids | SampleSounds | SampleClips | SampleAnswers
    if isinstance(config, TokenRunConfig):
        maker = SampleAnswers(model, trainables, config.answers, folder)
    elif isinstance(config, AudioRunConfig):
        maker = SampleSounds(denoising(model), trainables, config.samples, folder)
    elif isinstance(config, VideoRunConfig):
        maker = SampleClips(denoising(model), trainables, config.samples, folder)
    else:
        maker = SampleGrids(denoising(model), trainables, config.samples, folder)
    return hook


@contextlib.contextmanager
def _bare(model: TrainedModel, network: nn.Module) -> Iterator[None]:
    prepared, model.network = model.network, network
    try:
        yield
    finally:
        model.network = prepared


def _opening_lines(
    run: ResolvedRun,
    layout: Layout,
    model: TrainedModel,
    trainables: Trainables,
    kind: str,
    tracking: Tracking,
) -> None:
    num_elements = None if tokens_of(run.config) else torch.Size(denoising(model).latent_shape).numel()
    for name, value in derived_values(run, layout, num_elements).items():
        tracking.say(f"{name}: {value}")
    tracking.say(f"trained weights: {trainables.count:,}; reference: {kind}")
    if run.method.couples_rows:
        together = layout.batch_size * layout.world_size
        tracking.say(
            f"rows of one micro-step ({together} over all devices) share a statistic of {run.method.name}; "
            f"accumulation does not widen it{': raise train.batch_size' if together < 8 else ''}"
        )
    for line in opening_lines(run):
        tracking.say(line)
    suggested = getattr(model, "suggested_timesteps", None)
    used = run.config.likelihood.model_dump(mode="json")
    if suggested and any(used[key] != value for key, value in suggested.items()):
        tracking.say(
            f"this model is usually trained with likelihood {suggested}; the run uses other timesteps"
        )
    for note in getattr(model, "notes", []):
        tracking.say(note)
    for item in run.differences:
        tracking.say(
            f"differs from the row ({item.mark}): {item.setting} = {item.value}, row {item.row_value}"
        )


def _finish(loop: Loop, *, seconds: float) -> RunResult:
    """Save what users load, write the summary, say what the numbers say."""
    run, config, accelerator = loop.run, loop.run.config, loop.accelerator
    finished = loop.progress.step == config.train.steps
    judge = verdict if tokens_of(config) is None else token_verdict
    findings = judge(loop.tracking.records, num_dropped=loop.progress.num_dropped)
    already = loop.start_step == loop.progress.step and (loop.folder / SUMMARY_FILE).is_file()
    stopped = loop.guard.state.stopped is not None
    if finished and not already:
        average = loop.ema.shadow_params if loop.ema is not None else None
        with for_saving(loop.model, loop.trainables, average, is_main=accelerator.is_main_process) as is_mine:
            if is_mine and config.adapter.kind == "lora":
                loop.model.save_adapter(loop.folder)
            elif is_mine:
                loop.model.save_model(loop.folder / "model")
    if accelerator.is_main_process and (finished or stopped) and not already:
        write_json(
            loop.folder / SUMMARY_FILE,
            {
                "method": run.method.name,
                "steps": loop.progress.step,
                "seconds": round(seconds, 3),
                "trained_weights": loop.trainables.count,
                "peak_memory_gib": round(peak_memory_gib(accelerator.device), 3),
                "dropped_updates": loop.progress.num_dropped,
                "unreadable_rows": loop.progress.num_bad_rows,
                "data": dict(loop.data_counts),
                "weights": "average" if loop.ema is not None else "last",
                "last_record": loop.tracking.records[-1] if loop.tracking.records else {},
                "verdict": findings,
                "guard": loop.guard.summary(),
                "versions": _versions(),
            },
        )
        for line in findings:
            loop.tracking.say(line)
        if any(loop.data_counts.values()):
            found = ", ".join(f"{count} {name}" for name, count in loop.data_counts.items() if count)
            loop.tracking.say(f"rows of this process: {found.replace('_', ' ')}")
    accelerator.wait_for_everyone()
    return RunResult(
        folder=loop.folder,
        steps=loop.progress.step,
        records=loop.tracking.records,
        verdict=findings,
        finished=finished,
        model=loop.model,
        trainables=loop.trainables,
        stopped=stopped,
    )

"""From a configuration to a finished run: load, attach, wire, train, save. What `mmalign train` calls."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from accelerate import Accelerator, PartialState

from mmalign.data.readers import RowTable, open_rows
from mmalign.data.sampler import RowOrder
from mmalign.data.streaming import StreamOrder, StreamTable
from mmalign.files import atomic_write
from mmalign.sharded import live_parts
from mmalign.train.adapters import Trainables
from mmalign.train.average import average_of
from mmalign.train.checkpoint import Checkpoint, load_checkpoint, prune, set_aside_later
from mmalign.train.config import ResolvedRun, load_run, resolved_content
from mmalign.train.distributed.networks import prepare_optimizer
from mmalign.train.dry_run import describe
from mmalign.train.finish import SUMMARY_FILE, RunResult, finish
from mmalign.train.guard import Guard, protected_steps
from mmalign.train.loader import Layout, StepSampler, make_loader, make_order
from mmalign.train.loop import CHECKPOINTS, Loop, quarantine_path
from mmalign.train.micro_batch import MicroBatch
from mmalign.train.model import ReadsRows, TrainedModel, writing
from mmalign.train.online import OnlineSource, RunReward
from mmalign.train.opening import open_quarantine, opening_lines
from mmalign.train.optim import Updater, make_optimizer, make_schedule
from mmalign.train.parts import (
    attach_and_refer,
    data_of,
    load_model,
    make_accelerator,
    reference_kind,
    row_needs,
)
from mmalign.train.rollouts import is_online, make_online
from mmalign.train.run_identity import identity_of, require_agreement, require_same_run, start_of
from mmalign.train.sample_hook import sample_hook
from mmalign.train.step import StepParts
from mmalign.train.steps import learning_rates, with_steps
from mmalign.train.token_sections import AnswerRolloutConfig, tokens_of
from mmalign.train.tracking import Tracking

__all__ = ["CONFIG_FILE", "SUMMARY_FILE", "RunResult", "describe", "main", "prepare", "train"]

CONFIG_FILE = "mmalign_config.yaml"


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
    return finish(loop, seconds=time.perf_counter() - started)


def prepare(
    run: ResolvedRun,
    *,
    model: TrainedModel | None = None,
    table: RowTable | None = None,
    reward: RunReward | None = None,
) -> tuple[Loop, Iterable[MicroBatch]]:
    """A run short of its first step: the loop, restored if there is a checkpoint, and its loader."""
    accelerator = make_accelerator(run)
    start = start_of(Path(run.config.train.output), run)
    checkpoint = load_checkpoint(start) if start is not None else None
    layout = _layout(run, accelerator)
    table = table if table is not None else open_rows(data_of(run), kind=run.method.data)
    num_rows = len(table) if run.config.train.steps is None or not run.config.data.streaming else 0
    run = with_steps(run, num_rows=num_rows, effective_batch=layout.effective_batch)
    kind = reference_kind(run)
    identity = identity_of(run, layout, kind, _rows_of(run, table))
    _take_up(run, accelerator, checkpoint, identity, table)
    model = model if model is not None else load_model(run, accelerator.device)
    _tell_of_data(model, run, table)
    order = make_order(
        table,
        seed=run.config.train.seed,
        draws_per_row=run.config.reference.draws_per_row if kind == "stored" else None,
        rows_together=_prompts_together(run) if is_online(run) else layout.batch_size,
        world_size=layout.world_size,
        num_workers=run.config.train.num_workers,
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
    step = 0 if checkpoint is None else checkpoint.step
    loop = _wire(run, accelerator, model, trainables, parts, online, identity, start_step=step)
    loop.stream = order if isinstance(order, StreamOrder) else None
    if checkpoint is not None:
        loop.restore(checkpoint)
        loop.tracking.say(f"continuing {loop.folder} after step {checkpoint.step}")
    for line in [*table.describe().splitlines(), *table.advice()]:
        loop.tracking.say(line)
    for line in opening_lines(run, layout, model, trainables, kind):
        loop.tracking.say(line)
    loop.reopen = lambda: iter(_open_loader(loop, table, order))
    return loop, _open_loader(loop, table, order)


def _layout(run: ResolvedRun, accelerator: Accelerator) -> Layout:
    train = run.config.train
    return Layout(train.batch_size, train.accumulation, accelerator.num_processes, accelerator.process_index)


def _rows_of(run: ResolvedRun, table: RowTable) -> int | str:
    """How many rows there are; of a stream, which shards."""
    if not isinstance(table, StreamTable):
        return len(table)
    if is_online(run) and isinstance(run.config.rollout, AnswerRolloutConfig):
        table.refuse("answers sampled by a language model, which look their rows up")
    return table.identity


def _take_up(
    run: ResolvedRun,
    accelerator: Accelerator,
    checkpoint: Checkpoint | None,
    identity: Mapping[str, Any],
    table: RowTable,
) -> None:
    """Make the run folder ready to go on from a checkpoint, or to begin.

    Raises:
        CheckpointError: the checkpoint is another run's; nothing was written.
        DataError: too many rows are unusable.
    """
    folder, start_step = Path(run.config.train.output), 0
    if checkpoint is not None:
        # Before anything is written: a run that is refused leaves the folder as it was.
        require_same_run(checkpoint, identity, folder)
        start_step = checkpoint.step
    require_agreement(start_step, identity)
    if accelerator.is_main_process:
        for path in set_aside_later(folder / CHECKPOINTS, start_step):
            logging.getLogger(__name__).warning("going back to step %d: kept as %s", start_step, path)
        # A kill between a checkpoint and its pruning leaves one too many.
        held = protected_steps(run.config.guard, checkpoint.state.get("guard", {})) if checkpoint else ()
        prune(folder / CHECKPOINTS, keep=run.config.train.keep_checkpoints, protected=held)
        open_quarantine(run, table, start_step=start_step)
    table.report.check(run.config.data.max_bad_share, quarantine=quarantine_path(run))


def _tell_of_data(model: TrainedModel, run: ResolvedRun, table: RowTable) -> None:
    """Give a model the limits of its media, and the rows where it looks at others than its own."""
    model.limit_images(run.config.data.images)
    if (limit_audio := getattr(model, "limit_audio", None)) is not None:
        limit_audio(run.config.data.audio)
    if (limit_video := getattr(model, "limit_video", None)) is not None:
        limit_video(run.config.data.video)
    if (show_rows := getattr(model, "show_rows", None)) is not None:
        show_rows(table)  # for corruptions that show another row's picture


def _wire(
    run: ResolvedRun,
    accelerator: Accelerator,
    model: TrainedModel,
    trainables: Trainables,
    parts: StepParts,
    online: OnlineSource | None,
    identity: Mapping[str, Any],
    *,
    start_step: int,
) -> Loop:
    """The loop of the parts, with what updates, averages, watches and records; writes the configuration."""
    config, folder = run.config, Path(run.config.train.output)
    parameters = list(trainables.parameters.values())
    optimizer = make_optimizer(learning_rates(config, model, trainables), config.train)
    engine = prepare_optimizer(accelerator, trainables, optimizer)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / CONFIG_FILE, yaml.safe_dump(resolved_content(run), sort_keys=False))
    tracking = Tracking(accelerator, folder, run, start_step=start_step)
    return Loop(
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
        layout=_layout(run, accelerator),
        tracking=tracking,
        folder=folder,
        identity=identity,
        on_update=sample_hook(run, accelerator, model, trainables, tracking, folder / "samples"),
        engine=engine,
        guard=_guard(run),
        online=online,
    )


def _open_loader(loop: Loop, table: RowTable, order: RowOrder | StreamOrder) -> Iterable[MicroBatch]:
    """Micro-batches from the place the run stands at."""
    run, config = loop.run, loop.run.config
    skipped = loop.guard.state.skipped  # a rollback takes the weights back and leaves the data
    first, last = loop.progress.step + skipped, (config.train.steps or 0) + skipped
    places, reader = loop.layout, cast("ReadsRows", loop.model)
    if loop.online is not None:  # prompts go by rounds, and nobody knows how many there will be
        places = Layout(_prompts_together(run), 1, places.world_size, places.rank)
        first, last = loop.online.num_rounds + skipped, _MANY_ROUNDS
        if isinstance(config.rollout, AnswerRolloutConfig):
            reader = writing(loop.model).rounds(config.rollout, kind=run.method.rollout)
    loader = make_loader(
        table,
        order,
        reader,
        StepSampler(places, start_step=first, steps=last),
        rows_per_step=places.effective_batch,
        world_size=places.world_size,
        num_workers=config.train.num_workers,
        pin_memory=loop.accelerator.device.type == "cuda",
        needs=row_needs(run, loop.model, loop.parts.objective, is_online=loop.online is not None),
    )
    return cast("Iterable[MicroBatch]", loader)


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

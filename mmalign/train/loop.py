"""The loop: micro-steps, one update, now and then a record or a checkpoint. It wires; it computes nothing."""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmalign.batch import Batch
from mmalign.data.streaming import StreamOrder
from mmalign.errors import TrainingError
from mmalign.files import append_json_line
from mmalign.seeding import derive_seed
from mmalign.sharded import is_sharded, live_parts
from mmalign.train.adapters import Trainables
from mmalign.train.average import Average
from mmalign.train.checkpoint import Checkpoint
from mmalign.train.config import ResolvedRun
from mmalign.train.distributed.sharding import unsynced
from mmalign.train.distributed.zero import ZeroEngine
from mmalign.train.guard import Decision, Guard
from mmalign.train.loader import Layout
from mmalign.train.memory_advice import out_of_memory
from mmalign.train.metrics import Meter
from mmalign.train.micro_batch import MicroBatch, to_batch
from mmalign.train.model import TrainedModel
from mmalign.train.online import OnlineSource
from mmalign.train.optim import Updater
from mmalign.train.rollback import roll_back
from mmalign.train.run_state import restore_state, save_state
from mmalign.train.signals import stop_signals
from mmalign.train.step import StepParts, preference_step
from mmalign.train.tracking import Tracking

__all__ = ["CHECKPOINTS", "QUARANTINE_FILE", "Loop", "Progress", "quarantine_path"]

CHECKPOINTS = "checkpoints"
QUARANTINE_FILE = "quarantine.jsonl"


@dataclass
class Progress:
    """What changes while a run goes on, besides weights.

    Args:
        step: optimiser steps done.
        num_bad_rows: unreadable rows met by this rank.
        num_rows: rows met by this rank.
        num_dropped: updates dropped because they were not finite.
        interrupted: a signal asked the run to stop.
    """

    step: int = 0
    num_bad_rows: int = 0
    num_rows: int = 0
    num_dropped: int = 0
    interrupted: bool = False


@dataclass
class Loop:
    """One run, ready to go.

    Args:
        run: resolved configuration.
        accelerator: devices and mixed precision.
        model: the loaded family.
        network: the prepared (distributed) network.
        trainables: the trained weights.
        parts: what a step reads.
        optimizer: torch optimiser (unwrapped).
        schedule: learning-rate schedule.
        updater: applies gradients.
        ema: average of the trained weights, or None.
        layout: rows per device.
        tracking: records.
        folder: run folder.
        identity: what must agree for a checkpoint to continue this run.
        on_update: called after each optimiser step with the step number (sample grids).
        engine: holds gradients and optimiser in partitions (ZeRO); None for everything else.
        guard: watches the records.
        online: makes the batches of a method that samples; None for offline ones.
        reopen: micro-batches from the place the run stands at, for going on after a rollback.
        stream: the order of rows that come from shards, which has a state; None for rows by number.
    """

    run: ResolvedRun
    accelerator: Accelerator
    model: TrainedModel
    network: nn.Module
    trainables: Trainables
    parts: StepParts
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    updater: Updater
    ema: Average | None
    layout: Layout
    tracking: Tracking
    folder: Path
    identity: Mapping[str, Any]
    on_update: Callable[[int], None] = lambda _: None
    engine: ZeroEngine | None = None
    guard: Guard = field(default_factory=Guard)
    online: OnlineSource | None = None
    reopen: Callable[[], Iterator[MicroBatch]] | None = None
    stream: StreamOrder | None = None
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=Meter)
    updates: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        """Device counters of dropped updates: in all, and in a row."""
        device = self.accelerator.device
        self.dropped = torch.zeros(2, device=device)
        self.stop_flag = torch.zeros((), device=device)  # how many ranks were asked to stop
        self.stop_flag_before = self.stop_flag
        self.start_step = 0  # where this process took the run up
        self.learning_rate = math.nan  # of the last update
        for module in self.trainables.dropouts:
            module.eval()  # new layers drop; a rollout before the first step must not

    @property
    def quarantine(self) -> Path:
        """Where rows that cannot be used are listed."""
        return quarantine_path(self.run)

    @property
    def data_counts(self) -> Mapping[str, int]:
        """What this process had to do to rows since it began: images shrunk, answers cut."""
        found: Mapping[str, int] = getattr(self.model, "counts", {})
        return found if self.stream is None else {**found, **self.stream.dropped}

    @property
    def is_sharded(self) -> bool:
        """Whether every process holds a part of the trained weights."""
        whole = self.engine is None
        return not whole or any(is_sharded(value) for value in self.trainables.parameters.values())

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.folder / CHECKPOINTS

    def save(self) -> None:
        """Write a checkpoint of the state after `progress.step`; a collective."""
        save_state(self)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run (`require_same_run`)."""
        restore_state(self, checkpoint)

    def train(self, micro_batches: Iterator[MicroBatch]) -> None:
        """Run to `train.steps`, or to a signal.

        Raises:
            TrainingError: too many unreadable rows, or too many updates in a row that were not finite.
        """
        config = self.run.config
        total = config.train.steps or 0
        started, rows_since = time.perf_counter(), 0
        if self.guard.state.stopped is not None:
            self.tracking.say(self.guard.message())
            return
        if self.guard.wants_start and self.progress.step == 0:
            self.save()
        batches = self._batches(micro_batches)
        self.tracking.start(total=total, done=self.progress.step)
        try:
            with stop_signals(self._interrupt):
                while self.progress.step < total:
                    is_record = (
                        self.progress.step + 1
                    ) % config.log.every == 0 or self.progress.step + 1 == total
                    self._update(batches, is_record=is_record)
                    rows_since += self.layout.effective_batch
                    self.progress.step += 1
                    self.tracking.advance()
                    decision: Decision = "go_on"
                    if is_record:
                        decision = self._record(rows_since / max(time.perf_counter() - started, 1e-9))
                    if decision == "roll_back" and self.reopen is not None:
                        roll_back(self)
                        self.tracking.say(self.guard.message())
                        batches = self._batches(self.reopen())
                        started, rows_since = time.perf_counter(), 0
                        continue
                    gives_up = decision in ("stop", "roll_back")
                    stop = self._should_stop() or gives_up
                    if (
                        stop
                        or self.progress.step % config.train.checkpoint_every == 0
                        or self.progress.step == total
                    ):
                        self.save()
                    # After the checkpoint: a sampler that fails must not cost the steps before it.
                    self.on_update(self.progress.step)
                    if is_record:
                        started, rows_since = time.perf_counter(), 0
                    if decision != "go_on":
                        self.tracking.say(self.guard.message())
                    if stop and not gives_up:
                        self.tracking.say(
                            f"stopped by a signal after step {self.progress.step}; "
                            "the same command continues from here."
                        )
                    if stop:
                        return
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(out_of_memory(self.run)) from error
        finally:
            self.tracking.close()

    def _batches(self, micro_batches: Iterator[MicroBatch]) -> Iterator[Batch]:
        """Encoded batches on the device; of an online method, what it makes of them."""

        def encoded() -> Iterator[Batch]:
            for micro in micro_batches:
                self._count_bad(micro)
                yield to_batch(micro, self.model, self.accelerator.device)

        return encoded() if self.online is None else self.online.over(encoded())

    def _update(self, batches: Iterator[Batch], *, is_record: bool) -> None:
        """One optimiser step: accumulate sums, then scale to the mean over valid prompts, clip, step."""
        device = self.accelerator.device
        num_valid = torch.zeros((), device=device)
        local_rows = self.layout.batch_size * self.layout.accumulation
        backward = self.accelerator.backward if self.engine is None else self.engine.backward
        for micro_step in range(self.layout.accumulation):
            batch = next(batches)
            is_last = micro_step == self.layout.accumulation - 1
            syncing = contextlib.nullcontext() if is_last else unsynced(self.network)
            with syncing, self._dropout_randomness(micro_step):
                output = preference_step(self.parts, batch, is_record=is_record)
                # The gradient reduction takes the mean over ranks; `mean_factor` corrects for invalid rows.
                output.backward(lambda loss: backward(loss / local_rows))
            num_valid += output.num_valid
            self.meter.add(output.values, output.weights)
        # Filled on the device: a tensor made of a Python number is copied there, and the copy waits.
        interrupted = torch.full((), float(self.progress.interrupted), device=device)
        total_valid, stop_flag = self.sum_across(torch.stack([num_valid, interrupted])).unbind()
        mean_factor = self.layout.effective_batch / torch.clamp(total_valid, min=1.0)
        self.learning_rate = float(self.optimizer.param_groups[0]["lr"])
        stats = self.updater.apply(mean_factor, is_empty=total_valid == 0)
        # Read one step late: waiting for this step's sum would stall the host.
        self.stop_flag, self.stop_flag_before = stop_flag, self.stop_flag
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(live_parts(list(self.trainables.parameters.values())))
        self.parts.reference.update(self.progress.step + 1)
        if self.online is not None:
            self.online.updated(self.progress.step + 1)
        streak = (self.dropped[1] + 1.0) * stats.dropped
        self.dropped = torch.stack([self.dropped[0] + stats.dropped, streak])
        one = torch.ones(1, device=device)
        self.updates.add({"grad_norm": stats.grad_norm[None]}, {"": one})

    @contextlib.contextmanager
    def _dropout_randomness(self, micro_step: int) -> Iterator[None]:
        """The adapter's dropout draws from torch's own generator: seeded, so that resuming repeats it."""
        config = self.run.config
        if config.adapter.kind == "none" or config.adapter.dropout == 0:
            yield
            return
        device = self.accelerator.device
        seed = derive_seed(config.train.seed, "dropout", self.progress.step, micro_step, self.layout.rank)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for module in self.trainables.dropouts:
                module.train()
            yield
        for module in self.trainables.dropouts:
            module.eval()  # as the rest of the network: rollouts and grids sample without dropout

    def sum_across(self, value: Tensor) -> Tensor:
        """The sum of every process's value; a collective."""
        if self.layout.world_size == 1:
            return value
        reduced: Tensor = self.accelerator.reduce(value, reduction="sum")
        return reduced

    def rows_across(self) -> tuple[int, int]:
        """(unreadable rows, rows) over all ranks."""
        counts = torch.tensor(
            [self.progress.num_bad_rows, self.progress.num_rows], device=self.accelerator.device
        )
        bad, seen = self.sum_across(counts).tolist()
        return bad, seen

    def _record(self, prompts_per_second: float) -> Decision:
        """Read the accumulators (the only host synchronisation of the interval) and log.

        Returns what the guard says of the record.
        """
        values = self.meter.read(self.sum_across)
        values |= self.updates.read(lambda sums: sums)
        if self.online is not None:
            values |= self.online.read_facts()
        dropped, streak = self.dropped.tolist()
        self.progress.num_dropped = int(dropped)
        values["dropped_updates"] = dropped
        values["learning_rate"] = self.learning_rate
        num_bad_rows, num_rows = self.rows_across()
        values["bad_rows"] = float(num_bad_rows)
        # Of the whole interval, also when an interruption split it.
        num_steps = (self.progress.step - 1) % self.run.config.log.every + 1
        values["prompts"] = float(num_steps * self.layout.effective_batch)
        values["prompts_per_second"] = prompts_per_second
        values["peak_memory_gib"] = peak_memory_gib(self.accelerator.device)
        decision = self.guard.observe(self.progress.step, values)
        self.tracking.log(self.progress.step, values | self.guard.record())
        self._check_share(num_bad_rows, num_rows)
        if streak >= self.run.config.train.max_nonfinite:
            self.save()
            message = (
                f"{int(streak)} updates in a row were not finite and were dropped (train.max_nonfinite "
                f"{self.run.config.train.max_nonfinite}); the state is saved in "
                f"{self.folder / CHECKPOINTS}. Usual causes: fp16 overflow (use mixed_precision bf16, or the "
                "fp16-fix VAE for SDXL), a learning rate that is too high, broken latents. Look at grad_norm "
                "in metrics.jsonl before the first dropped update."
            )
            raise TrainingError(message)
        return decision

    def _count_bad(self, micro: MicroBatch) -> None:
        self.progress.num_rows += len(micro.ids) + micro.num_beside  # every bad one is among them
        if self.stream is not None:
            self.stream.take(micro.lanes, micro.dropped)
        for bad in micro.bad:
            self.progress.num_bad_rows += 1
            append_json_line(self.quarantine, {"step": self.progress.step + 1, **vars(bad)})
        if micro.bad and self.layout.world_size == 1:
            self._check_share(self.progress.num_bad_rows, self.progress.num_rows, micro.bad[-1].message)

    def _check_share(self, num_bad_rows: int, num_rows: int, last: str = "") -> None:
        """End the run when too many rows are unusable; on several ranks all of them ask at a record."""
        share, limit = num_bad_rows / max(num_rows, 1), self.run.config.data.max_bad_share
        # A share of few rows means nothing; 20 unreadable ones in a young run do.
        if share <= limit or num_bad_rows < 20:
            return
        message = (
            f"{num_bad_rows} of {num_rows} rows could not be used ({share:.1%}, allowed data.max_bad_share "
            f"{limit:.1%}). {f'The last: {last} ' if last else ''}All of them: {self.quarantine}. "
            "Run `mmalign data check`, or raise data.max_bad_share."
        )
        raise TrainingError(message)

    def _interrupt(self) -> None:
        self.progress.interrupted = True

    def _should_stop(self) -> bool:
        """Whether to stop now; ranks agree because they look at the same sum."""
        if self.layout.world_size == 1:
            return self.progress.interrupted
        return bool(self.stop_flag_before > 0)


def quarantine_path(run: ResolvedRun) -> Path:
    """The file in the run folder that lists rows which could not be used."""
    return Path(run.config.train.output) / QUARANTINE_FILE


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the device's allocator on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20

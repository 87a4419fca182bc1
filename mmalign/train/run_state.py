"""The state of a loop between two steps: everything that a checkpoint holds, taken and put back."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from mmalign.data.streaming import StreamOrder
from mmalign.likelihood.reference import EmaReference
from mmalign.likelihood.snapshots import SnapshotPool
from mmalign.train.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    restore_optimizer,
    save_checkpoint,
    save_sharded_checkpoint,
)
from mmalign.train.distributed.shards import fill

if TYPE_CHECKING:
    from mmalign.train.loop import Loop

__all__ = ["restore_state", "save_state", "schedule_state"]


def save_state(loop: "Loop") -> None:
    """Write a checkpoint of the state after `loop.progress.step`; a collective, called by all ranks.

    The main process writes it; of a run whose weights or optimiser are spread, every process its parts.
    """
    # A collective: every rank's share of a partial interval goes into the one set of sums that is saved.
    meter = loop.meter.state(loop.sum_across)
    num_bad_rows, num_rows = loop.rows_across()
    if loop.progress.step % loop.run.config.train.checkpoint_every == 0:
        # Those of an interruption are no place to go back to: a run that nobody interrupts lacks them.
        loop.guard.saving(loop.progress.step)
    rollout, stream = _rollout_state(loop), _stream_state(loop)
    is_main = loop.accelerator.is_main_process
    if is_main or loop.is_sharded:
        weights, average, tensors, described = _tensors(loop)
        moving = _moving_reference(loop)
        checkpoint = Checkpoint(
            step=loop.progress.step,
            weights=weights,
            optimizer=tensors,
            ema=average,
            objective=loop.parts.state.state_dict(),
            reference=moving.state_dict() if moving else {},
            rollout=rollout,
            state={
                "identity": dict(loop.identity),
                "optimizer": described,
                "schedule": schedule_state(loop.schedule),
                "scaler": loop.updater.scaler.state_dict() if loop.updater.scaler is not None else None,
                "ema_steps": loop.ema.optimization_step if loop.ema is not None else None,
                "meter": meter,
                "updates": loop.updates.state(lambda sums: sums),
                "dropped": loop.dropped.tolist(),
                "num_bad_rows": num_bad_rows,
                "num_rows": num_rows,
                "guard": loop.guard.state_dict(),
                **stream,
            },
        )
        keep, protected = loop.run.config.train.keep_checkpoints, loop.guard.protected
        if loop.is_sharded:
            save_sharded_checkpoint(
                loop.checkpoints, checkpoint, is_main=is_main, keep=keep, protected=protected
            )
        else:
            save_checkpoint(loop.checkpoints, checkpoint, keep=keep, protected=protected)
    loop.accelerator.wait_for_everyone()


def restore_state(loop: "Loop", checkpoint: Checkpoint) -> None:
    """Put a loop into the state of a checkpoint of the same run (`require_same_run`)."""
    state = checkpoint.state
    device = loop.accelerator.device
    _restore_tensors(loop, checkpoint)
    loop.schedule.load_state_dict(dict(state["schedule"]))
    if loop.updater.scaler is not None and state["scaler"] is not None:
        loop.updater.scaler.load_state_dict(state["scaler"])
    loop.parts.state.load_state_dict({name: value.to(device) for name, value in checkpoint.objective.items()})
    if (moving := _moving_reference(loop)) is not None:
        moving.load_state_dict(checkpoint.reference)
    if loop.online is not None:
        own = f"{loop.layout.rank}."
        left = {
            name.removeprefix(own): value
            for name, value in checkpoint.rollout.items()
            if name.startswith(own)
        }
        loop.online.load_state_dict(left)
    is_main = loop.accelerator.is_main_process
    if is_main:
        # These sums hold the other ranks' shares, too: those ranks start again from nothing.
        loop.meter.load(state["meter"], device)
        loop.updates.load(state["updates"], device)
    if loop.stream is not None:
        loop.stream.load_state_dict(state["stream"], counts=is_main)
    loop.guard.load_state_dict(state.get("guard", {}))
    loop.dropped = torch.tensor(state["dropped"], device=device)
    loop.progress.step = loop.start_step = checkpoint.step
    loop.progress.num_dropped = int(state["dropped"][0])
    if is_main:  # the counts are sums over ranks, too
        loop.progress.num_bad_rows = int(state["num_bad_rows"])
        loop.progress.num_rows = int(state["num_rows"])


def schedule_state(schedule: torch.optim.lr_scheduler.LambdaLR) -> dict[str, Any]:
    """The schedule's counters and base rates as JSON values; its functions follow from the configuration."""
    return {
        key: value
        for key, value in schedule.state_dict().items()
        if isinstance(value, int | float | list | bool)
    }


def _tensors(
    loop: "Loop",
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """(weights, their average, moments of the optimiser, its settings)."""
    average: dict[str, Tensor] = {}
    if loop.ema is not None:
        average = dict(zip(loop.trainables.parameters, loop.ema.shadow_params, strict=True))
    if loop.engine is not None:
        return (loop.engine.weights(), loop.engine.averages(average), *loop.engine.moments())
    return (loop.trainables.state(), average, *flatten_optimizer(loop.optimizer))


def _restore_tensors(loop: "Loop", checkpoint: Checkpoint) -> None:
    described = checkpoint.state["optimizer"]
    if loop.engine is not None:
        loop.engine.restore(checkpoint.weights, checkpoint.optimizer, described)
    else:
        loop.trainables.load(checkpoint.weights)
        restore_optimizer(loop.optimizer, checkpoint.optimizer, described)
    if loop.ema is None:
        return
    shadows = dict(zip(loop.trainables.parameters, loop.ema.shadow_params, strict=True))
    if loop.engine is not None:
        loop.engine.restore_averages(shadows, checkpoint.ema)
    else:
        fill(shadows, checkpoint.ema)
    loop.ema.optimization_step = int(checkpoint.state["ema_steps"])


def _moving_reference(loop: "Loop") -> EmaReference | SnapshotPool | None:
    reference = loop.parts.reference
    return reference if isinstance(reference, EmaReference | SnapshotPool) else None


def _rollout_state(loop: "Loop") -> dict[str, Tensor]:
    """What every rank's rollouts have left over, by rank; a collective."""
    if loop.online is None:
        return {}
    states = gather_object([(loop.layout.rank, loop.online.state_dict())])
    return {f"{rank}.{name}": value for rank, state in states for name, value in state.items()}


def _stream_state(loop: "Loop") -> dict[str, Any]:
    """Where every lane of the stream is, of all ranks; a collective."""
    if loop.stream is None:
        return {}
    return {"stream": StreamOrder.merged(gather_object([loop.stream.state_dict()]))}

"""Going back: the run as it was at its last good checkpoint, with a lower learning rate and other rows.

From the same weights with the same rows a run would diverge the same way again. So the learning rate is
lowered, and the data go on where they were: step 40 after a rollback from 100 sees what step 100 would have
seen. The good checkpoint is told so by rewriting its one JSON file, in one rename, before anything else on
disk changes: whenever the process is killed, the same command makes the same rollback or continues after it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmalign.errors import CheckpointError
from mmalign.files import atomic_write, read_json_lines, write_json
from mmalign.train.checkpoint import (
    STATE_FILE,
    checkpoint_folder,
    flatten_optimizer,
    load_checkpoint,
    set_aside_later,
)
from mmalign.train.metrics import Meter
from mmalign.train.run_state import schedule_state

if TYPE_CHECKING:
    from mmalign.train.loop import Loop

__all__ = ["forget_lines", "lower_learning_rate", "roll_back"]


def lower_learning_rate(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, base: float
) -> None:
    """Give the schedule another base rate, from now on: rate = base * what the schedule says of the step.

    Groups with rates of their own (a tower, a projector) keep their ratio to the first, the run's own.
    """
    first = schedule.base_lrs[0]
    schedule.base_lrs = [base * (own / first) for own in schedule.base_lrs]
    groups = zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, rate, shape in groups:
        group["initial_lr"] = rate
        group["lr"] = rate * shape(schedule.last_epoch)


def forget_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines of a JSON-lines file beyond a step; returns them."""
    if not path.exists():
        return []
    records = read_json_lines(path)
    later = [record for record in records if record["step"] > step]
    if later:
        kept = (json.dumps(record, ensure_ascii=False) + "\n" for record in records if record["step"] <= step)
        atomic_write(path, "".join(kept))
    return later


def roll_back(loop: "Loop") -> None:
    """Put the loop back to its guard's last good checkpoint; a collective, called by all ranks.

    Weights, optimiser, schedule, averages, a moving reference and running statistics are those of the
    checkpoint. Records after it move to `metrics.rolled_back-N.jsonl`, checkpoints after it are renamed, as
    when a run is taken up at an earlier one.

    Raises:
        CheckpointError: no good checkpoint is known, or it is gone.
    """
    guard, here = loop.guard, loop.progress.step
    to = guard.state.good_step
    if to is None:
        message = "guard: there is no good checkpoint to go back to. Use guard.action=warn or stop."
        raise CheckpointError(message)
    folder = checkpoint_folder(loop.checkpoints, to)
    checkpoint = load_checkpoint(folder)
    guard.rolled_back(here, to)
    remembered = guard.state_dict()
    # Only the main process reads sums and counts back: they are those of all ranks.
    loop.meter, loop.updates = Meter(), Meter()
    loop.progress.num_bad_rows = loop.progress.num_rows = 0
    loop.restore(checkpoint)
    guard.load_state_dict(remembered)
    rate = loop.run.config.train.learning_rate
    if rate is not None:
        lower_learning_rate(loop.optimizer, loop.schedule, rate * guard.state.rate_factor)
    loop.accelerator.wait_for_everyone()  # all have read what is rewritten now
    if loop.accelerator.is_main_process:
        _, described = flatten_optimizer(loop.optimizer)
        amended = {
            **checkpoint.state,
            "optimizer": described,
            "schedule": schedule_state(loop.schedule),
            "guard": guard.state_dict(),
        }
        write_json(folder / STATE_FILE, amended)
        loop.tracking.rewind(to, name=f"rolled_back-{guard.state.rollbacks}")
        forget_lines(loop.quarantine, to)
        set_aside_later(loop.checkpoints, to)
    loop.accelerator.wait_for_everyone()

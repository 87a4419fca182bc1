"""Checkpoints that survive kill -9 and a full disk, and continue bit for bit.

A checkpoint is a folder, written aside, synced and renamed. It holds the trained weights, the optimiser, the
schedule, the average of the weights, the objective's running statistics, the step, and the resolved
configuration. Random
state is not in it: every draw of a step follows from the seed and the row (see `mmalign.seeding`).

Where weights are sharded, every process writes its parts (`mmalign.train.distributed.shards`) into the same
folder, and any number of processes reads it, one included.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import CheckpointError
from mmalign.files import atomic_directory, load_tensors, read_json, save_tensors, write_json
from mmalign.sharded import is_sharded
from mmalign.train.distributed.shards import (
    SHARDS,
    fill,
    read_shards,
    require_shards,
    require_whole,
    shard_sizes,
    write_shards,
)

__all__ = [
    "STATE_FILE",
    "Checkpoint",
    "checkpoint_folder",
    "find_latest",
    "flatten_optimizer",
    "load_checkpoint",
    "prune",
    "restore_optimizer",
    "save_checkpoint",
    "save_sharded_checkpoint",
    "set_aside_later",
]

_FOLDER = re.compile(r"step-(\d+)")
STATE_FILE = "state.json"
_SIZES = "shards"
_FAILED = "!"
_TENSOR_FILES = ("weights", "optimizer", "ema", "objective", "reference", "rollout")


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to continue.

    Args:
        step: optimiser steps done.
        weights: trained weights by name.
        optimizer: flattened tensors of the optimiser.
        ema: averaged weights, empty without an average.
        objective: running statistics of the objective.
        reference: weights of a reference that moves, else empty.
        state: everything else as JSON values (schedule, optimiser scalars, meters, counters, identity of the
            run).
        rollout: samples of an online method that were not trained on yet, its buffers and snapshots, by rank.
    """

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    objective: Mapping[str, Tensor]
    reference: Mapping[str, Tensor]
    state: Mapping[str, Any]
    rollout: Mapping[str, Tensor] = field(default_factory=dict)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and JSON values (safetensors hold tensors only)."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, entries in state["state"].items():
        for name, value in _flat(entries).items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            elif value is None or isinstance(value, int | float | str | bool):
                scalars[f"{number}.{name}"] = value
            else:
                message = f"optimiser state {name!r} of type {type(value).__name__} cannot be saved."
                raise CheckpointError(message)
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]
    ]
    return tensors, {"scalars": scalars, "groups": [_plain(group) for group in groups]}


def _flat(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with inner mappings opened: bitsandbytes wraps its quantised moments in one, and reads both."""
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return flat


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], described: Mapping[str, Any]
) -> None:
    """Inverse of `flatten_optimizer`.

    Raises:
        CheckpointError: the optimiser has another number of parameter groups.
    """
    current = optimizer.state_dict()
    groups = described["groups"]
    if len(groups) != len(current["param_groups"]):
        message = (
            f"checkpoint optimiser: got {len(groups)} parameter groups, "
            f"expected {len(current['param_groups'])}. Was the run made with another train.optimizer?"
        )
        raise CheckpointError(message)
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*_spread(optimizer, tensors).items(), *described["scalars"].items()]:
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    merged = []
    for saved, now in zip(groups, current["param_groups"], strict=True):
        typed = {
            key: tuple(value) if isinstance(now.get(key), tuple) else value for key, value in saved.items()
        }
        merged.append({**typed, "params": now["params"]})
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def _spread(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Saved optimiser state, sharded as the weights that it belongs to."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if not any(is_sharded(weight) for weight in weights):
        return tensors
    spread: dict[str, Tensor] = {}
    for name in tensors:
        weight, (_, _, key) = weights[int(name.partition(".")[0])], name.partition(".")
        # Moments have their weight's shape; the number of steps has none.
        spread[name] = torch.zeros(()) if key == "step" else torch.empty_like(weight, requires_grad=False)
    fill(spread, tensors)
    return spread


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def save_checkpoint(
    root: Path, checkpoint: Checkpoint, *, keep: int, protected: Collection[int] = ()
) -> Path:
    """Write `root/step-NNNNNNNN`, then remove all but the newest `keep` and the protected steps.

    Raises:
        CheckpointError: the disk refused; earlier checkpoints are untouched.
    """
    final = checkpoint_folder(root, checkpoint.step)
    with atomic_directory(final) as folder:
        for name in _TENSOR_FILES:
            tensors: Mapping[str, Tensor] = getattr(checkpoint, name)
            if tensors:
                save_tensors(folder / f"{name}.safetensors", tensors)
        write_json(folder / STATE_FILE, {"step": checkpoint.step, **checkpoint.state})
    prune(root, keep=keep, protected=protected)
    return final


def save_sharded_checkpoint(
    root: Path, checkpoint: Checkpoint, *, is_main: bool, keep: int, protected: Collection[int] = ()
) -> Path:
    """`save_checkpoint` by all processes together: each writes its parts of sharded tensors; a collective.

    Args:
        root: a folder that all processes see.
        checkpoint: of this process; `state` counts on the main process only.
        is_main: this process makes the folder, writes `state`, renames and prunes.
        keep: see `save_checkpoint`.
        protected: see `save_checkpoint`.

    Raises:
        CheckpointError: the disk refused one process; all of them raise it. Earlier checkpoints stay.
    """
    final = checkpoint_folder(root, checkpoint.step)
    parts = {name: getattr(checkpoint, name) for name in _TENSOR_FILES}
    with contextlib.ExitStack() as stack:

        def begin() -> str:
            return str(stack.enter_context(atomic_directory(final)))

        def end() -> str:
            require_whole(folder / SHARDS, parts)
            content = {"step": checkpoint.step, **checkpoint.state, _SIZES: shard_sizes(folder / SHARDS)}
            write_json(folder / STATE_FILE, content)
            stack.close()
            prune(root, keep=keep, protected=protected)
            return str(final)

        folder = Path(_by_main(begin, is_main=is_main))
        write_shards(folder / SHARDS, parts)
        _by_main(end, is_main=is_main)
    return final


def _by_main(work: Callable[[], str], *, is_main: bool) -> str:
    """What the main process's work gives, on every process; a collective, also when the work fails.

    Raises:
        CheckpointError: it failed, on processes that did nothing; the main process raises what happened.
    """
    shared = [""]
    try:
        if is_main:
            shared = [work()]
    except Exception as error:
        shared = [f"{_FAILED}{error}"]
        raise
    finally:
        # Otherwise the others would wait for it until the group's time is up.
        torch.distributed.broadcast_object_list(shared, src=0)
    if shared[0].startswith(_FAILED):
        raise CheckpointError(shared[0].removeprefix(_FAILED))
    return shared[0]


def prune(root: Path, *, keep: int, protected: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints, and what a killed writer or pruning left behind.

    Checkpoints of `protected` steps stay.

    An old checkpoint is renamed before it is deleted: a process killed in the middle leaves a hidden folder,
    which the next call removes, and never one that looks like a checkpoint and lacks files.
    """
    for step, old in sorted(_complete(root))[:-keep]:
        if step in protected:
            continue
        old.rename(old.with_name(f".{old.name}.retired"))
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _complete(root: Path) -> list[tuple[int, Path]]:
    if not root.is_dir():
        return []
    found = []
    for folder in root.iterdir():
        match = _FOLDER.fullmatch(folder.name)
        if match and (folder / STATE_FILE).is_file():
            found.append((int(match.group(1)), folder))
    return found


def find_latest(root: Path) -> Path | None:
    """The newest complete checkpoint under `root`, or None."""
    complete = _complete(root)
    return max(complete)[1] if complete else None


def set_aside_later(root: Path, step: int) -> list[Path]:
    """Rename checkpoints of a later step: the run goes back, and what follows would mix two histories.

    Returns:
        The new names; nothing is deleted.
    """
    moved = []
    for found, folder in _complete(root):
        if found > step:
            number = 1
            while (target := folder.with_name(f"{folder.name}.abandoned-{number}")).exists():
                number += 1
            folder.rename(target)
            moved.append(target)
    return moved


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote.

    Raises:
        CheckpointError: missing or damaged; the message names the file.
    """
    if not (folder / STATE_FILE).is_file():
        message = (
            f"{folder}: got no {STATE_FILE}, expected a checkpoint such as RUN/checkpoints/step-00000200."
        )
        raise CheckpointError(message)
    state = read_json(folder / STATE_FILE)
    if _SIZES in state:
        require_shards(folder / SHARDS, state[_SIZES])
    if (folder / SHARDS).is_dir():
        return Checkpoint(step=int(state["step"]), state=state, **read_shards(folder / SHARDS, _TENSOR_FILES))
    tensors = {
        name: load_tensors(folder / f"{name}.safetensors")
        if (folder / f"{name}.safetensors").exists()
        else {}
        for name in _TENSOR_FILES
    }
    return Checkpoint(step=int(state["step"]), state=state, **tensors)

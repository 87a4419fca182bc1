"""Tensors of a checkpoint that every process writes its parts of, and any number of processes read.

The files are safetensors that torch.distributed.checkpoint cuts and joins; they hold no pickle. A tensor is
known by the checkpoint's part and its own name: `weights/down_blocks.0.…`.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from mmalign.errors import CheckpointError
from mmalign.sharded import is_sharded, place

__all__ = [
    "SHARDS",
    "ShardedTensors",
    "fill",
    "read_shards",
    "require_shards",
    "require_whole",
    "shard_sizes",
    "whole_values",
    "write_shards",
]

SHARDS = "shards"
_BROKEN = (OSError, RuntimeError, ValueError, KeyError, SafetensorError, CheckpointException)
"""What reading and writing raise; torch's CheckpointException is no `Exception`."""


def write_shards(folder: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `folder`; a collective: every process writes what it holds, equal tensors are written once.

    Args:
        folder: visible to all processes.
        parts: tensors by part and name; plain ones are equal on all processes.

    Raises:
        CheckpointError: a process could not write; all of them raise it.
    """
    try:
        save(_flat(parts), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except _BROKEN as error:
        message = (
            f"{folder}: the shards could not be written ({_cause(error)}). Earlier checkpoints are there. "
            "Free some space or choose another folder, which all machines see, then run again."
        )
        raise CheckpointError(message) from error


def _flat(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def shard_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file with shards, by name: what a copy of the folder must have, too."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}


def require_shards(folder: Path, sizes: Mapping[str, int]) -> None:
    """Look whether files are there, whole.

    Without one, the last rows of a weight may be missing, which the other files do not tell.

    Args:
        folder: with the shards.
        sizes: as `shard_sizes` gave them when they were written.

    Raises:
        CheckpointError: a file is missing, or has another size.
    """
    found = shard_sizes(folder)
    wrong = [name for name, size in sizes.items() if found.get(name) != size]
    if wrong:
        raise CheckpointError(_incomplete(folder, wrong))


def require_whole(folder: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Look whether files hold every element of live tensors; nothing is sent.

    Args:
        folder: with the shards, just written.
        parts: as `write_shards` got them.

    Raises:
        CheckpointError: they do not; does every machine see the same folder?
    """
    known, live = _known(folder), _flat(parts)
    wrong = [name for name, value in live.items() if name not in known or known[name].size != value.shape]
    if wrong:
        raise CheckpointError(_incomplete(folder, wrong))


class ShardedTensors(Mapping[str, Tensor]):
    """One part of a sharded checkpoint; a tensor is read when it is asked for.

    Args:
        folder: with the shards.
        part: for example "weights".
        known: shapes and dtypes by the names in the files.
    """

    def __init__(self, folder: Path, part: str, known: Mapping[str, Any]) -> None:
        self.folder, self.part = folder, part
        self._known = {
            name.removeprefix(f"{part}/"): value
            for name, value in known.items()
            if name.startswith(f"{part}/")
        }

    def __len__(self) -> int:
        """Tensors of this part."""
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._known)

    def __getitem__(self, name: str) -> Tensor:
        """A whole tensor on the CPU.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        value = self.empty(name)
        self.read({name: value})
        return value

    def empty(self, name: str) -> Tensor:
        """A whole tensor of this shape and dtype on the CPU, not filled."""
        known = self._known[name]
        return torch.empty(known.size, dtype=known.properties.dtype)

    def read(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors, sharded ones with the parts that this process holds; nothing is sent.

        Args:
            targets: by name; of the shapes in the files.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        state = {f"{self.part}/{name}": value.detach() for name, value in targets.items()}
        if not state:
            return
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                load(state, storage_reader=HuggingFaceStorageReader(str(self.folder)), no_dist=True)
        except _BROKEN as error:
            raise CheckpointError(_unreadable(self.folder, error)) from error


def read_shards(folder: Path, parts: tuple[str, ...]) -> dict[str, ShardedTensors]:
    """The parts of a sharded checkpoint, by name; only what the files say of themselves is read now.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    known = _known(folder)
    return {part: ShardedTensors(folder, part, known) for part in parts}


def _known(folder: Path) -> dict[str, Any]:
    """Shapes and dtypes by the names in the files.

    Raises:
        CheckpointError: a file is damaged, or parts of a tensor are missing: they would be read as whatever
            the memory holds.
    """
    try:
        known: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except _BROKEN as error:
        raise CheckpointError(_unreadable(folder, error)) from error
    torn = [
        name
        for name, value in known.items()
        if sum(chunk.sizes.numel() for chunk in value.chunks) != value.size.numel()
    ]
    if torn:
        raise CheckpointError(_incomplete(folder, torn))
    return known


def _incomplete(folder: Path, names: Collection[str]) -> str:
    some = ", ".join(list(names)[:3])
    return (
        f"{folder}: files of some processes are missing or cut short (first noticed at {some}). If machines "
        "do not share the folder, choose one that they do. Else remove the checkpoint's folder; the run goes "
        "on from the one before."
    )


def _unreadable(folder: Path, error: BaseException) -> str:
    return (
        f"{folder}: the shards of this checkpoint cannot be read ({_cause(error)}). "
        "Remove the checkpoint's folder; the run goes on from the one before."
    )


def _cause(error: BaseException) -> str:
    """One line; torch's exception prints the traceback of every process."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"process {rank}: {cause!r}" if len(error.failures) > 1 or rank else repr(cause)
    return str(error)


def whole_values(values: Mapping[str, Tensor], *, at_once: int = 2**30) -> Iterator[tuple[str, Tensor]]:
    """Saved tensors by name, whole on the CPU, read many at a time: every reading looks through all files.

    Args:
        values: a part of a checkpoint.
        at_once: bytes that are held together, unless one tensor alone is larger.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if not isinstance(values, ShardedTensors):
        yield from values.items()
        return
    waiting: dict[str, Tensor] = {}
    for name in values:
        waiting[name] = values.empty(name)
        if sum(value.nbytes for value in waiting.values()) >= at_once:
            values.read(waiting)
            yield from waiting.items()
            waiting = {}
    values.read(waiting)
    yield from waiting.items()


def fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write saved values into live tensors, whichever of both are sharded.

    Args:
        targets: live ones by name.
        values: saved ones; more names than asked for do not matter.
    """
    if isinstance(values, ShardedTensors):
        direct = {name: target for name, target in targets.items() if is_sharded(target)}
        values.read(direct)
        targets = {name: target for name, target in targets.items() if name not in direct}
    with torch.no_grad():
        for name, target in targets.items():
            place(target, values[name])

"""Tensors of a checkpoint that every process writes its parts of, and any number of processes read.

The files are safetensors that torch.distributed.checkpoint cuts and joins; they hold no pickle. A tensor is
known by the checkpoint's part and its own name: `weights/down_blocks.0.…`.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from mmalign.errors import CheckpointError
from mmalign.sharded import is_sharded, place

__all__ = ["SHARDS", "ShardedTensors", "fill", "read_shards", "write_shards"]

SHARDS = "shards"


def write_shards(folder: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `folder`; a collective: every process writes what it holds, equal tensors are written once.

    Args:
        folder: visible to all processes.
        parts: tensors by part and name; plain ones are equal on all processes.
    """
    flat = {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
    save(flat, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


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
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(_unreadable(self.folder, error)) from error


def read_shards(folder: Path, parts: tuple[str, ...]) -> dict[str, ShardedTensors]:
    """The parts of a sharded checkpoint, by name; only what the files say of themselves is read now.

    Raises:
        CheckpointError: a file is damaged.
    """
    try:
        known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(_unreadable(folder, error)) from error
    return {part: ShardedTensors(folder, part, known) for part in parts}


def _unreadable(folder: Path, error: Exception) -> str:
    return (
        f"{folder}: the shards of this checkpoint cannot be read ({error}). "
        "Remove the checkpoint's folder; the run goes on from the one before."
    )


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

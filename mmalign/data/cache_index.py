"""Which entries a cache holds and where: sorted arrays, so that millions of names take tens of megabytes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import CheckpointError

__all__ = ["KeyIndex", "KeySet", "shard_keys"]

_RECENT = 65_536
"""Names that are looked up in a set before they are sorted in."""


def shard_keys(path: Path) -> list[str]:
    """Keys of a shard, from its header alone.

    Raises:
        CheckpointError: the file is not complete.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as shard:
            keys: list[str] = json.loads(shard.metadata()["keys"])
            return keys
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        message = (
            f"{path}: not a complete cache shard ({error}). Delete the file and run `mmalign data cache` "
            "again."
        )
        raise CheckpointError(message) from error


class KeySet:
    """A set of ASCII names that only grows: as many bytes per name as it has letters, and no objects.

    Args:
        parts: lists of names.
    """

    def __init__(self, parts: Iterable[list[str]] = ()) -> None:
        arrays = [np.array(part, dtype="S") for part in parts if part]
        self._sorted: NDArray[Any] = np.unique(np.concatenate(arrays)) if arrays else np.empty(0, dtype="S1")
        self._recent: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._recent or _find(self._sorted, name.encode()) is not None

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, name: str) -> None:
        """Put a name in."""
        if name in self:
            return
        self._recent.add(name)
        # Sorting in an eighth at a time: each name is moved a few times, however many come.
        if len(self._recent) > max(_RECENT, len(self._sorted) // 8):
            fresh = np.array(list(self._recent), dtype="S")
            self._sorted = np.sort(np.concatenate([self._sorted, fresh]))
            self._recent = set()


def _find(names: NDArray[Any], wanted: bytes) -> int | None:
    place = int(np.searchsorted(names, wanted))
    return place if place < len(names) and names[place] == wanted else None


class KeyIndex:
    """Shard and row of every entry of a cache folder; reads the headers of its shards.

    Args:
        folder: of the cache.

    Raises:
        CheckpointError: a shard is not complete.
    """

    def __init__(self, folder: Path) -> None:
        self.shards = sorted(folder.glob("*.safetensors"))
        names, places = [np.empty(0, dtype="S1")], [np.empty((0, 2), dtype=np.int32)]
        for number, path in enumerate(self.shards):
            prefix = path.name[0]  # m or t
            keys = shard_keys(path)
            names.append(np.array([prefix + key for key in keys], dtype="S"))
            places.append(np.stack([np.full(len(keys), number), np.arange(len(keys))], 1).astype(np.int32))
        every = np.concatenate(names)
        order = np.argsort(every, kind="stable")
        self._names, self._places = every[order], np.concatenate(places)[order]

    def find(self, kind: str, key: str) -> tuple[int, int] | None:
        """(number of the shard, row in it) of an entry of kind m or t; None if absent."""
        place = _find(self._names, (kind + key).encode())
        return None if place is None else (int(self._places[place, 0]), int(self._places[place, 1]))

    def count(self, kind: str) -> int:
        """Entries of a kind, each name once."""
        first, last = np.searchsorted(self._names, [kind.encode(), chr(ord(kind) + 1).encode()])
        return len(np.unique(self._names[first:last]))

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return int(self._names.nbytes + self._places.nbytes)

"""A listener that hears every clip once: what it heard lies in the store of tools."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmalign.errors import RowError
from mmalign.evals.audio.listeners import Heard, Listener, Loading
from mmalign.evals.benchmark_tool_store import ToolStore, tool_key
from mmalign.rewards.sample import media_hash

__all__ = ["StoredListener"]


class StoredListener:
    """A listener with the store in front of it. What cannot be read is not stored: it may be mended.

    Args:
        kind: name of the tool, as benchmarks list it.
        listener: what hears.
        store: of what it heard.
    """

    def __init__(self, kind: str, listener: Listener, store: ToolStore) -> None:
        self.name = listener.name
        self._kind, self._listener, self._store = kind, listener, store
        self._provenance = dict(listener.provenance())
        self._keys: dict[tuple[str, str], str] = {}
        self._heard: dict[str, Heard] = {}

    def provenance(self) -> Mapping[str, Any]:
        """The listener's own."""
        return self._provenance

    def hear(self, media: Sequence[str | Path | bytes], *, loading: Loading = "clean") -> list[Heard | str]:
        """Features of clips; those that are stored are not heard again.

        Raises:
            CheckpointError: something is not stored, and this is a report of what is.
        """
        return [self._one(one, loading) for one in media]

    def _one(self, media: str | Path | bytes, loading: Loading) -> Heard | str:
        named = (str(media) if isinstance(media, str | Path) else media_hash(media), loading)
        if named not in self._keys:
            try:
                content = media_hash(media)
            except RowError as error:
                return str(error)
            self._keys[named] = tool_key(self._kind, self._provenance, content, loading)
        key = self._keys[named]
        if key in self._heard:
            return self._heard[key]
        written: list[Any] = []
        if self._store.ask and not self._store.holds(key):
            (found,) = self._listener.hear([media], loading=loading)
            if isinstance(found, str):
                return found
            written = [_written(found)]
        values = self._store.values(self._kind, [key], lambda _: written)
        self._heard[key] = _read(values[0])
        return self._heard[key]


def _written(heard: Heard) -> dict[str, Any]:
    return {
        "features": _packed(heard.features),
        "logits": None if heard.logits is None else _packed(heard.logits),
    }


def _packed(values: Tensor) -> list[Any]:
    data = np.ascontiguousarray(values.float().numpy(), dtype="<f4").tobytes()
    return [list(values.shape), base64.b64encode(data).decode("ascii")]


def _unpacked(stored: Sequence[Any]) -> Tensor:
    shape, text = stored
    values = np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
    return torch.from_numpy(values).reshape(shape)


def _read(stored: Mapping[str, Any]) -> Heard:
    logits = stored["logits"]
    return Heard(_unpacked(stored["features"]), None if logits is None else _unpacked(logits))

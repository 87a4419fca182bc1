"""What looks at clips: a clip to a few numbers that are kept, so that metrics cost nothing to apply again."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mmalign.errors import RowError, ShapeError
from mmalign.evals.video.footage import Footage, read_footage
from mmalign.rewards.sample import media_hash

if TYPE_CHECKING:
    from mmalign.evals.benchmark_tool_store import ToolStore

__all__ = ["StoredWatcher", "Watched", "Watcher", "Watching"]

Watched = Mapping[str, Any]
"""What was seen of a clip: JSON values by name."""


@runtime_checkable
class Watcher(Protocol):
    """Clips to numbers."""

    name: str
    """As metrics bear it: the network, or what stands for one."""

    def provenance(self) -> Mapping[str, Any]:
        """All that moves a number; JSON types."""
        ...

    def see(self, media: str | Path | bytes) -> Watched | str:
        """What is seen of a clip; why nothing, where it cannot be read or is too small."""
        ...


class Watching(ABC):
    """A watcher that decodes clips by itself, one after another."""

    name: str

    @abstractmethod
    def provenance(self) -> Mapping[str, Any]:
        """All that moves a number; JSON types."""

    @abstractmethod
    def watch(self, clip: Footage) -> dict[str, Any]:
        """What is seen. Raises ShapeError where the clip is too short or too small."""

    def see(self, media: str | Path | bytes) -> Watched | str:
        """What is seen of a clip; why nothing, where it cannot be read or is too small."""
        try:
            return self.watch(read_footage(media))
        except (RowError, ShapeError) as error:
            return str(error)

    def stored(self, kind: str, store: "ToolStore") -> "StoredWatcher":
        """The same with a store in front of it."""
        return StoredWatcher(kind, self, store)


class StoredWatcher:
    """A watcher that sees every clip once. What cannot be seen is not stored: it may be mended.

    Args:
        kind: name of the tool, as benchmarks list it.
        watcher: what looks.
        store: of what it saw.
    """

    def __init__(self, kind: str, watcher: Watcher, store: "ToolStore") -> None:
        self.name = watcher.name
        self._kind, self._watcher, self._store = kind, watcher, store
        self._provenance = dict(watcher.provenance())

    def provenance(self) -> Mapping[str, Any]:
        """The watcher's own."""
        return self._provenance

    def see(self, media: str | Path | bytes) -> Watched | str:
        """What is seen of a clip; what is stored is not looked at again.

        Raises:
            CheckpointError: it is not stored, and this is a report of what is.
        """
        from mmalign.evals.benchmark_tool_store import tool_key

        try:
            content = media_hash(media)
        except RowError as error:
            return str(error)
        key = tool_key(self._kind, self._provenance, content)
        written: list[Any] = []
        if self._store.ask and not self._store.holds(key):
            found = self._watcher.see(media)
            if isinstance(found, str):
                return found
            written = [dict(found)]
        values: list[Watched] = self._store.values(self._kind, [key], lambda _: written)
        return values[0]

"""What the runs of the loss guide leave on disk: one JSON line per run, found again by what was run.

Each process appends to its own file and reads all of them, so that several can share the work and a killed
one loses the run it was in and nothing else.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmalign.files import append_json_line, fingerprint, read_json_lines

__all__ = ["Results"]


class Results:
    """Records of runs in a folder.

    Args:
        folder: where `<world>*.jsonl` lie; made when the first record is written.
        world: name of the world.
    """

    def __init__(self, folder: Path, world: str) -> None:
        self._folder, self._world = folder, world
        self._records: dict[str, dict[str, Any]] = {}
        self.reload()

    def reload(self) -> None:
        """Read what other processes have written since."""
        if self._folder.is_dir():
            for path in sorted(self._folder.glob(f"{self._world}*.jsonl")):
                self._records |= {record["key"]: record for record in read_json_lines(path)}

    def find(self, what: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a run, None if it was not made."""
        return self._records.get(fingerprint(what))

    def get(self, what: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a run; it is made and written if there is none.

        Args:
            what: everything the outcome depends on.
            make: runs it; what it returns is stored beside `what`.
        """
        found = self.find(what)
        if found is None:
            found = {"key": fingerprint(what), **what, **make()}
            append_json_line(self._folder / f"{self._world}-{os.getpid()}.jsonl", found)
            self._records[found["key"]] = found
        return found

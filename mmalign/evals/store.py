"""Append-only tables of parquet part files: many processes write, any number may read, a kill spares them.

A writer puts whole part files beside those of others under names nobody else has; a reader takes the union
and drops what was written twice. Nothing is ever rewritten, no process waits for another, and the number of
processes plays no part in what is stored.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mmalign.errors import CheckpointError

__all__ = ["PartTable", "Writer"]


class PartTable:
    """A folder of part files with one schema and one key.

    Args:
        folder: where the parts lie.
        columns: column name to type: "string", "double", "bool", "int64".
        key: columns that name a row; of rows with the same key the first one written counts.
    """

    def __init__(self, folder: str | Path, columns: Mapping[str, str], key: Sequence[str]) -> None:
        self.folder = Path(folder)
        self.columns = dict(columns)
        self.key = tuple(key)

    def _schema(self) -> Any:
        import pyarrow as pa

        types = {"string": pa.string(), "double": pa.float64(), "bool": pa.bool_(), "int64": pa.int64()}
        return pa.schema([pa.field(name, types[kind]) for name, kind in self.columns.items()])

    def parts(self) -> list[Path]:
        """All part files, oldest first."""
        return sorted(self.folder.glob("part-*.parquet"))

    def write(self, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Add one part file, whole or not at all. Returns its path, None without rows.

        Raises:
            CheckpointError: the disk refused.
        """
        if not rows:
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([dict(row) for row in rows], schema=self._schema())
        self.folder.mkdir(parents=True, exist_ok=True)
        # The time keeps parts in the order they were written, the random part keeps writers apart.
        name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet"
        partial = self.folder / f".{name}.partial"
        try:
            pq.write_table(table, partial, compression="zstd")
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.folder / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            message = (
                f"{self.folder}: results could not be written ({error.strerror or error}). Free some space."
            )
            raise CheckpointError(message) from error
        return self.folder / name

    def read(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of all parts, each key once, in the order they were written.

        Args:
            columns: which ones; None = all. The key is always read.

        Raises:
            CheckpointError: a part cannot be read, or has other columns.
        """
        wanted = list(dict.fromkeys([*(columns or self.columns), *self.key]))
        seen: set[tuple[Any, ...]] = set()
        for row in self._rows(wanted):
            key = tuple(row[name] for name in self.key)
            if key not in seen:
                seen.add(key)
                yield row

    def stored_keys(self) -> set[tuple[Any, ...]]:
        """All keys that are stored."""
        return {tuple(row[name] for name in self.key) for row in self._rows(list(self.key))}

    def _rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for part in self.parts():
            try:
                file = pq.ParquetFile(part)
                for batch in file.iter_batches(columns=list(columns)):
                    yield from batch.to_pylist()
            except (pa.ArrowException, OSError, KeyError) as error:
                message = (
                    f"{part}: cannot be read as a part of this table ({error}). Remove it and run again."
                )
                raise CheckpointError(message) from error

    def writer(self, *, rows: int = 512, seconds: float = 60.0) -> "Writer":
        """A buffer that writes a part when it holds `rows` rows or is `seconds` old."""
        return Writer(self, rows, seconds)


class Writer:
    """Collects rows and writes them as parts; leaving the block writes the rest.

    Args:
        table: where to.
        rows: a part has at most so many rows.
        seconds: nothing waits longer than this.
    """

    def __init__(self, table: PartTable, rows: int, seconds: float) -> None:
        self.table, self.rows, self.seconds = table, rows, seconds
        self.buffer: list[Mapping[str, Any]] = []
        self.since = time.monotonic()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows that belong together: they land in the same part."""
        if not self.buffer:
            self.since = time.monotonic()
        self.buffer.extend(rows)
        if len(self.buffer) >= self.rows or time.monotonic() - self.since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is there."""
        self.table.write(self.buffer)
        self.buffer = []
        self.since = time.monotonic()

    def __enter__(self) -> "Writer":
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the rest, also after an error: what was computed is kept."""
        self.flush()

"""Raw records on disk with random access: parquet shards, `datasets`, JSON, JSON lines, CSV.

A source knows its columns, reads one whole column without touching the others (labels of a million rows
without one image byte), and reads one record. It keeps paths and offsets, not data, so that sending it to a
loader worker is cheap; files are opened again there. What the columns mean is not decided here (see
`layouts`).
"""

import bisect
import csv
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import ConfigError, RowError

__all__ = [
    "ArrowRecords",
    "JsonLinesRecords",
    "ListRecords",
    "ParquetRecords",
    "Records",
    "arrow_kinds",
    "read_csv",
    "read_json",
    "to_numpy",
]

_CACHE_BYTES = 64 * 2**20
"""Row groups of parquet files kept in memory per process: neighbours are free when rows are read in order."""


@runtime_checkable
class Records(Protocol):
    """Random access to raw records.

    Attributes:
        description: what it is, for messages ("parquet, 3 files").
        columns: column names.
        root: folder that relative media paths start from.
    """

    description: str
    columns: tuple[str, ...]
    root: Path

    def __len__(self) -> int:
        """Number of records."""
        ...

    def column(self, name: str) -> NDArray[Any]:
        """All values of one column; no other column is read. None where a record lacks it."""
        ...

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one record. Raises RowError when it cannot be parsed."""
        ...

    def where(self, number: int) -> str:
        """`file:row` of a record."""
        ...

    def heavy(self) -> frozenset[str]:
        """Columns whose values are large (encoded media)."""
        ...

    def holds_lists(self, name: str) -> bool:
        """Whether a column holds a list per record."""
        ...


def to_numpy(column: Any) -> NDArray[Any]:
    """An Arrow column as numpy: numbers and booleans stay typed, with NaN for null; others are objects."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        if column.null_count:
            column = column.cast(pa.float64())
        return np.asarray(column.to_numpy())
    values = np.empty(len(column), dtype=object)
    values[:] = column.to_pylist()
    return values


def arrow_kinds(schema: Any) -> tuple[frozenset[str], frozenset[str]]:
    """(columns of encoded media, columns of lists) of an Arrow schema."""
    heavy = frozenset(field.name for field in schema if _is_heavy(field.type))
    return heavy, frozenset(field.name for field in schema if _is_list(field.type))


def _is_heavy(kind: Any) -> bool:
    """Binary columns, and structures or lists that hold them (the `datasets` image feature)."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(_is_heavy(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_heavy(kind.value_type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


class ParquetRecords:
    """Parquet files read in place, row group by row group, without converting them first.

    A random row costs its whole row group; `largest_group_bytes` tells how much that is (files written by
    `mmalign data convert` and by the hub have small groups).

    Args:
        files: shards, in order; their columns must agree.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.description = f"parquet, {len(files)} file{'s' if len(files) != 1 else ''}"
        self.root = self.files[0].parent
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        starts, self.largest_group_bytes = [0], 0
        self._file_starts = [0]
        for number, file in enumerate(self.files):
            metadata = self._open(number).metadata
            for group in range(metadata.num_row_groups):
                described = metadata.row_group(group)
                self._groups.append((number, group))
                starts.append(starts[-1] + described.num_rows)
                self.largest_group_bytes = max(self.largest_group_bytes, described.total_byte_size)
            self._file_starts.append(starts[-1])
            schema = metadata.schema.to_arrow_schema()
            if number == 0:
                self.columns: tuple[str, ...] = tuple(schema.names)
                self._heavy, self._lists = arrow_kinds(schema)
            elif set(schema.names) != set(self.columns):
                message = (
                    f"{file}: got columns {sorted(schema.names)}, expected those of {self.files[0].name} "
                    f"({sorted(self.columns)}). Are these shards of one data set? Set split to choose "
                    "among several."
                )
                raise ConfigError(message)
        self._starts = np.array(starts, dtype=np.int64)
        self._forget()

    def _forget(self) -> None:
        self._handles: OrderedDict[int, Any] = OrderedDict()
        self._cache: OrderedDict[tuple[int, tuple[str, ...]], Any] = OrderedDict()
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and cached rows."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_handles", "_cache", "_cached_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _open(self, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        handles: OrderedDict[int, Any] = self.__dict__.setdefault("_handles", OrderedDict())
        if number not in handles:
            try:
                handles[number] = pq.ParquetFile(self.files[number], memory_map=True)
            except (OSError, pa.ArrowException) as error:
                message = (
                    f"{self.files[number]}: not a complete parquet file ({error}). Copy or download it again."
                )
                raise ConfigError(message) from error
            while len(handles) > 32:
                handles.popitem(last=False)
        handles.move_to_end(number)
        return handles[number]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> NDArray[Any]:
        """All values of one column."""
        parts = [
            to_numpy(self._open(number).read(columns=[name]).column(name))
            for number in range(len(self.files))
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=object)

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one record."""
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        table = self._group(group, tuple(columns), number)
        row = number - int(self._starts[group])
        return {name: table.column(name)[row].as_py() for name in columns}

    def first(self, name: str) -> Any:
        """The first value of a column that is not null, from its first page alone; None if there is none."""
        import pyarrow as pa

        if not len(self):
            return None
        try:
            batch = next(
                iter(self._open(0).iter_batches(batch_size=16, row_groups=[0], columns=[name])), None
            )
        except (OSError, pa.ArrowException):
            return None  # whoever reads the row says which one is damaged
        values = batch.column(0) if batch is not None else ()
        return next((value.as_py() for value in values if value.is_valid), None)

    def _group(self, group: int, columns: tuple[str, ...], number: int) -> Any:
        import pyarrow as pa

        key = (group, columns)
        if key not in self._cache:
            file, local = self._groups[group]
            try:
                # One thread: loader workers are processes, and the pool does not survive a fork.
                table = self._open(file).read_row_group(local, columns=list(columns), use_threads=False)
            except (OSError, pa.ArrowException) as error:
                message = f"{self.where(number)}: this part of the parquet file cannot be read ({error})."
                raise RowError(message, reason="damaged_record") from error
            self._cache[key] = table
            self._cached_bytes += table.nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(key)
        return self._cache[key]

    def where(self, number: int) -> str:
        """File name and row number within the file, from 0."""
        file = bisect.bisect_right(self._file_starts, number) - 1
        return f"{self.files[file].name}:{number - self._file_starts[file]}"

    def heavy(self) -> frozenset[str]:
        """Binary columns."""
        return self._heavy

    def holds_lists(self, name: str) -> bool:
        """Whether a column's type is a list."""
        return name in self._lists


class ArrowRecords:
    """A `datasets.Dataset`: memory-mapped Arrow files; media stay encoded.

    Args:
        dataset: the data set, one split.
        description: what it is, for messages.
        root: folder that relative media paths start from.
        name: how messages call it.
    """

    def __init__(self, dataset: Any, *, description: str, root: Path, name: str) -> None:
        self.description, self.root, self._name = description, root, name
        # Arrow format hands out the stored values: nothing is decoded, whatever the features say.
        self._dataset = dataset.with_format("arrow")
        self.columns = tuple(dataset.column_names)
        self._heavy, self._lists = arrow_kinds(dataset.features.arrow_schema)

    def __len__(self) -> int:
        return len(self._dataset)

    def column(self, name: str) -> NDArray[Any]:
        """All values of one column."""
        return to_numpy(self._dataset.select_columns([name])[:].column(name))

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one record."""
        table = self._dataset[int(number)]
        return {name: table.column(name)[0].as_py() for name in columns}

    def where(self, number: int) -> str:
        """Name of the data set and row number, from 0."""
        return f"{self._name}:{number}"

    def heavy(self) -> frozenset[str]:
        """Media columns."""
        return self._heavy

    def holds_lists(self, name: str) -> bool:
        """Whether a column's type is a list."""
        return name in self._lists


class _ObjectRecords:
    """What JSON lines and lists of dictionaries share: columns are keys."""

    description: str
    columns: tuple[str, ...]
    root: Path
    _lists: frozenset[str]

    def _learn(self, keys: dict[str, None], lists: set[str]) -> None:
        self.columns, self._lists = tuple(keys), frozenset(lists)

    def heavy(self) -> frozenset[str]:
        """None: text files hold paths."""
        return frozenset()

    def holds_lists(self, name: str) -> bool:
        """Whether any record holds a list there."""
        return name in self._lists


class JsonLinesRecords(_ObjectRecords):
    """A JSON-lines file; only the offsets of its lines are kept.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path.parent
        self.description = "JSON lines"
        keys: dict[str, None] = {}
        lists: set[str] = set()
        offsets, lines = [], []
        try:
            with path.open("rb") as file:
                position = 0
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        offsets.append(position)
                        lines.append(number)
                        record = _parsed(line)
                        if record is not None:
                            keys.update(dict.fromkeys(record))
                            lists.update(key for key, value in record.items() if isinstance(value, list))
                    position += len(line)
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror or error})."
            raise ConfigError(message) from error
        self._offsets = np.array(offsets, dtype=np.int64)
        self._lines = np.array(lines, dtype=np.int64)
        self._learn(keys, lists)

    def __len__(self) -> int:
        return len(self._offsets)

    def column(self, name: str) -> NDArray[Any]:
        """All values of one key; None where a line lacks it or cannot be parsed."""
        values = np.empty(len(self), dtype=object)
        with self.path.open("rb") as file:
            number = 0
            for line in file:
                if line.strip():
                    record = _parsed(line)
                    values[number] = record.get(name) if record is not None else None
                    number += 1
        return values

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some keys of one line."""
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[number]))
            line = file.readline()
        record = _parsed(line)
        if record is None:
            shown = line[:60].decode(errors="replace").strip()
            message = f"{self.where(number)}: got {shown!r}, expected one JSON object per line."
            raise RowError(message, reason="malformed_record")
        return {name: record.get(name) for name in columns}

    def where(self, number: int) -> str:
        """File name and line number, from 1."""
        return f"{self.path.name}:{self._lines[number]}"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


class ListRecords(_ObjectRecords):
    """Records held in memory: small files (CSV, one JSON list) and folders of matched files.

    Args:
        records: dictionaries, or None where a record could not be parsed.
        path: where they come from.
        description: what it is, for messages.
        places: row of each record as messages name it; None counts from 0.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any] | None],
        *,
        path: Path,
        description: str,
        places: Sequence[int | str] | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self._records, self.path, self.description = records, path, description
        self.root = path if path.is_dir() else path.parent
        self._places = places
        keys: dict[str, None] = dict.fromkeys(columns)
        lists: set[str] = set()
        for record in records:
            if record is not None:
                keys.update(dict.fromkeys(record))
                lists.update(key for key, value in record.items() if isinstance(value, list))
        self._learn(keys, lists)

    def __len__(self) -> int:
        return len(self._records)

    def column(self, name: str) -> NDArray[Any]:
        """All values of one key."""
        values = np.empty(len(self), dtype=object)
        values[:] = [None if record is None else record.get(name) for record in self._records]
        return values

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some keys of one record."""
        record = self._records[number]
        if record is None:
            message = (
                f"{self.where(number)}: got a record that is no mapping of columns, expected "
                f"{list(self.columns)}."
            )
            raise RowError(message, reason="malformed_record")
        return {name: record.get(name) for name in columns}

    def where(self, number: int) -> str:
        """File name and row."""
        place = self._places[number] if self._places is not None else number
        return f"{self.path.name}:{place}"


def read_json(path: Path) -> ListRecords:
    """Records of a JSON file that holds one list of objects (or one list under one key, or objects by id).

    Raises:
        ConfigError: it is not JSON, or holds no list.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: not valid JSON ({error}). One object per line needs the ending .jsonl."
        raise ConfigError(message) from error
    if isinstance(content, dict):
        inner = [value for value in content.values() if isinstance(value, list)]
        content = inner[0] if len(inner) == 1 else _by_key(content)
    if not isinstance(content, list):
        message = f"{path}: got a JSON {type(content).__name__}, expected a list of records."
        raise ConfigError(message)
    records = [record if isinstance(record, dict) else None for record in content]
    return ListRecords(records, path=path, description="JSON list")


def _by_key(content: dict[str, Any]) -> Any:
    """Objects under their ids as a list of records with an `id`; anything else as it is."""
    if not content or not all(isinstance(value, dict) for value in content.values()):
        return content
    return [{"id": key, **value} for key, value in content.items()]


def read_csv(path: Path, *, delimiter: str) -> ListRecords:
    """Records of a CSV or TSV file with a header line; every value is text, empty ones are None.

    Raises:
        ConfigError: no header, or not UTF-8.
    """
    records: list[dict[str, Any] | None] = []
    places: list[int | str] = []
    # Captions may be long; the default limit of 131 072 characters is not ours to keep, but bounded it stays.
    csv.field_size_limit(2**24)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = next(reader, [])
            for cells in reader:
                if cells:
                    named = dict(zip(header, (cell if cell != "" else None for cell in cells), strict=False))
                    records.append(named if len(cells) == len(header) else None)
                    places.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path}: cannot be read as UTF-8 text separated by {delimiter!r} ({error})."
        raise ConfigError(message) from error
    if not header:
        message = f"{path}: got an empty file, expected a header line with column names."
        raise ConfigError(message)
    kind = "TSV" if delimiter == "\t" else "CSV"
    return ListRecords(records, path=path, description=kind, places=places, columns=header)

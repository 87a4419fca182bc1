"""A few dozen records of a shard, seen as any other records; and the layout of the first, kept for all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.batch import DataKind
from mmalign.data.config import DataConfig, SourceConfig
from mmalign.data.kinds import ScoredSamples, first_value, taken_apart
from mmalign.data.readers import RowTable, SourceTable, joined, open_source
from mmalign.data.records import Records, arrow_kinds, to_numpy
from mmalign.data.selection import select
from mmalign.data.streaming_shards import Shard
from mmalign.data.video_records import with_common_columns
from mmalign.errors import ConfigError, RowError, explain

__all__ = ["Maker", "PartRecords"]

_SHOWN = ("chosen", "a", "candidate", "candidates")


@dataclass
class PartRecords:
    """Some neighbouring records of a shard.

    Args:
        content: a table of Arrow, or dictionaries with errors where one cannot be read.
        name: of the shard.
        first: number of the first one in the shard.
        columns: what the data set has.
        root: folder that relative media paths start from.
        heavies: columns of encoded media.
        lists: columns of lists.
        description: what it is, for messages.
    """

    content: Any
    name: str
    first: int
    columns: tuple[str, ...]
    root: Path
    heavies: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    description: str = field(default="streamed")

    @classmethod
    def of(cls, content: Any, shard: Shard, first: int, source: SourceConfig) -> "PartRecords":
        """The first records of a source, which say what columns there are."""
        if shard.kind == "parquet":
            columns = tuple(content.column_names)
            heavies, lists = arrow_kinds(content.schema)
        else:
            readable = [record for record in content if isinstance(record, dict)]
            columns = tuple(dict.fromkeys(name for record in readable for name in record))
            cells = [(name, value) for record in readable for name, value in record.items()]
            heavies = frozenset(name for name, value in cells if isinstance(value, bytes))
            lists = frozenset(name for name, value in cells if isinstance(value, list))
        return cls(content, shard.name, first, columns, _root(shard, source), heavies, lists)

    def __len__(self) -> int:
        return len(self.content)

    def drop_media(self) -> None:
        """Forget the columns of encoded media."""
        if isinstance(self.content, list):
            self.content = [
                {name: value for name, value in record.items() if name not in self.heavies}
                if isinstance(record, dict)
                else record
                for record in self.content
            ]
        else:
            there = [name for name in self.content.column_names if name in self.heavies]
            self.content = self.content.drop_columns(there)

    def column(self, name: str) -> NDArray[Any]:
        """All values of one column; None where a record lacks it."""
        if not isinstance(self.content, list):
            return to_numpy(self.content.column(name))
        values = np.empty(len(self.content), dtype=object)
        values[:] = [record.get(name) if isinstance(record, dict) else None for record in self.content]
        return values

    def read(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one record. Raises RowError when it cannot be read."""
        if not isinstance(self.content, list):
            return {name: self.content.column(name)[number].as_py() for name in columns}
        record = self.content[number]
        if isinstance(record, RowError):
            raise record
        return {name: record.get(name) for name in columns}

    def where(self, number: int) -> str:
        """File name and number of the record in the file, from 0."""
        return f"{self.name}:{self.first + number}"

    def heavy(self) -> frozenset[str]:
        """Columns of encoded media."""
        return self.heavies

    def holds_lists(self, name: str) -> bool:
        """Whether a column holds a list per record."""
        return name in self.lists


def _is_local(shard: Shard) -> bool:
    return "://" not in shard.url or shard.url.startswith(("file://", "local://"))


def _root(shard: Shard, source: SourceConfig) -> Path:
    """Where relative media paths start: `root`, or beside a shard that lies on a disk."""
    if source.root is not None:
        return Path(source.root).expanduser()
    if _is_local(shard):
        return Path(shard.url.partition("://")[2] or shard.url).parent
    return Path("/nowhere")


class Maker:
    """Rows of records: how is decided by the first records of a source, the same for all that follow.

    Args:
        records: the first ones.
        source: their settings.
        config: the data settings.
        kind: what the method needs.

    Raises:
        ConfigError: unknown layout, one whose rows are spread over many records, or media that lie elsewhere.
    """

    def __init__(
        self, records: PartRecords, source: SourceConfig, config: DataConfig, kind: DataKind | None
    ) -> None:
        self._plain, self._source, self._config, self._kind = records, source, config, kind
        apart = taken_apart(records)
        self._apart = apart if isinstance(apart, ScoredSamples) else None
        self.first = open_source(records, source, config, kind=kind)
        if self.first.match.layout.structure == "ranked_items":
            message = explain(
                source.path,
                got="one candidate with its rank per record",
                expected="lists or pairs, one per record: with data.streaming nobody sees a whole group",
                do="`mmalign data convert` writes such records.",
            )
            raise ConfigError(message)
        self._require_media()
        wanted = set(self.first.reads)
        self.columns = tuple(
            name for name in records.columns if name not in records.heavies or name in wanted
        )
        # The first records were for looking; the stream reads them again.
        self._plain = PartRecords(
            None, records.name, 0, records.columns, records.root, records.heavies, records.lists
        )
        records.drop_media()  # they would stay in memory for the whole run

    def _require_media(self) -> None:
        """Media are in the shards, or on a disk."""
        first, source = self.first, self.first.source
        dialogue = first.match.layout.structure == "dialogue"
        roles = ("images", "videos") if dialogue else () if source.media == "text" else _SHOWN
        if self._plain.root != Path("/nowhere"):
            return
        for column in (first.match.columns[role] for role in roles if role in first.match.columns):
            value = first_value(first.records, column)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, dict) and value.get("bytes") is None:
                value = value.get("path")
            if isinstance(value, str):
                message = explain(
                    f"{source.path} {column}",
                    got=value,
                    expected="the encoded file itself inside the record: nothing else is fetched",
                    do="Put media into the shards (`mmalign data convert --to parquet`), or set root to the "
                    "folder where they lie.",
                )
                raise ConfigError(message)

    def records(self, content: Any, shard: Shard, first: int) -> PartRecords:
        """Records that follow, with the columns of the first."""
        plain = self._plain
        root = _root(shard, self._source)
        return PartRecords(content, shard.name, first, plain.columns, root, plain.heavies, plain.lists)

    def rows(self, records: PartRecords) -> RowTable:
        """The rows of some records."""
        return joined([self._over(records)], self._config, kind=self._kind)

    def _over(self, records: PartRecords) -> SourceTable:
        from mmalign.data.dialogues.table import DialogueTable, open_dialogues

        first = self.first
        if isinstance(first, DialogueTable):
            return open_dialogues(
                records, first.format, first.match, first.source, self._config, kind=self._kind
            )
        whole: Records = records if self._apart is None else self._apart.over(records)
        whole = with_common_columns(whole)
        selection = select(whole, first.match, first.source, self._config)
        return SourceTable(first.source, self._config, whole, first.match, selection)

"""Data sets that do not fit on a disk: rows of shards behind addresses, in an order that survives a crash.

`data.streaming: true` turns `open_rows` to this. Records go through the same layouts, policies and checks as
those of local files, part by part, so they give the same rows; what is missing is a row by its number. Where
the numbers of records are known (parquet, tar with sizes) a pass takes each record once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mmalign.batch import DataKind, PreferenceRow
from mmalign.data.config import DataConfig, SourceConfig
from mmalign.data.readers import RowTable, SourceTable, joined
from mmalign.data.rows import RowIssue, RowReport, issue_of
from mmalign.data.streaming_files import Damage
from mmalign.data.streaming_lanes import Lane, LaneState, Part, Segment, StreamedRow, deal
from mmalign.data.streaming_records import Maker, PartRecords
from mmalign.data.streaming_shards import Shard, list_shards, open_shard
from mmalign.errors import ConfigError, RowError, explain
from mmalign.files import fingerprint
from mmalign.seeding import derive_seed

__all__ = ["StreamOrder", "StreamTable", "open_stream"]


@dataclass(frozen=True)
class _Opened:
    """One source.

    Args:
        source: its settings.
        shards: its files.
        maker: rows of records.
    """

    source: SourceConfig
    shards: tuple[Shard, ...]
    maker: Maker

    @property
    def records(self) -> int | None:
        """How many, where every shard's number is known."""
        counts = [shard.records for shard in self.shards]
        return None if any(count is None for count in counts) else sum(count or 0 for count in counts)

    def parts(self, segment: Segment) -> Iterator[Part]:
        """Rows of a segment, part by part.

        Raises:
            TrainingError: the network gave up.
        """
        shard = self.shards[segment.shard]
        found = open_shard(shard, self.maker.columns, start=segment.start, stop=segment.stop)
        for item in found:
            if isinstance(item, Damage):
                error = RowError(item.message, reason="damaged_shard")
                yield Part(None, (issue_of(error, item.where),))
                continue
            first, content = item
            table = self.maker.rows(self.maker.records(content, shard, first))
            selection = table.parts[0].selection
            yield Part(
                table if len(table) else None,
                tuple(selection.issues),
                selection.report.dropped.copy(),
            )


def open_stream(config: DataConfig, *, kind: DataKind | None = None) -> "StreamTable":
    """The rows of all sources as a stream: shards are listed, and the first records of each source read.

    Args:
        config: the data settings.
        kind: what the method needs, as for `open_rows`.

    Raises:
        ConfigError: no shards, unknown layout, settings that need all rows at once, or another kind of rows.
        MissingExtraError: a package is missing for this kind of address.
    """
    opened = [_open_source(source, config, kind) for source in config.all_sources]
    if len(opened) > 1 and any(item.records is None for item in opened):
        unknown = next(item for item in opened if item.records is None)
        message = explain(
            f"data.sources: {unknown.source.path}",
            got="tar shards whose numbers of samples nobody tells",
            expected="known numbers, to mix several sources by weight",
            do="Write sizes.json ({shard name: samples}) beside the shards, or use one source.",
        )
        raise ConfigError(message)
    return StreamTable(tuple(opened), config, kind)


def _open_source(source: SourceConfig, config: DataConfig, kind: DataKind | None) -> _Opened:
    if source.limit is not None:
        message = explain(
            f"{source.path}: limit",
            got=source.limit,
            expected="no limit with data.streaming: which rows are the first depends on the readers",
            do="Name fewer shards.",
        )
        raise ConfigError(message)
    shards = list_shards(source)
    for shard in shards:
        for item in open_shard(shard, None):
            if not isinstance(item, Damage):
                first, content = item
                return _Opened(
                    source,
                    tuple(shards),
                    Maker(PartRecords.of(content, shard, first, source), source, config, kind),
                )
    message = f"{source.path}: none of its {len(shards)} shards holds a readable record."
    raise ConfigError(message)


class StreamTable(RowTable):
    """Rows that come in the stream's order only (`StreamOrder`).

    What needs a row by its number raises `ConfigError`.

    Args:
        opened: the sources.
        config: the data settings.
        kind: what the method needs.
    """

    def __init__(self, opened: Sequence[_Opened], config: DataConfig, kind: DataKind | None) -> None:
        firsts = [item.maker.first for item in opened]
        table = joined(firsts, config, kind=kind)
        super().__init__(table.parts, config)
        self.opened, self._kind = tuple(opened), table.kind

    @property
    def kind(self) -> DataKind:
        """What the rows are."""
        return self._kind

    @property
    def report(self) -> RowReport:
        """Nothing yet: records are counted as they come."""
        return RowReport()

    @property
    def issues(self) -> list[RowIssue]:
        """None yet."""
        return []

    @property
    def num_records(self) -> int | None:
        """Records of all sources, an upper bound of the rows; None where shards do not tell."""
        counts = [item.records for item in self.opened]
        return None if any(count is None for count in counts) else sum(count or 0 for count in counts)

    @property
    def identity(self) -> str:
        """What a checkpoint goes on with: the shards and their sizes, in order."""
        shards = [(shard.url, shard.records) for item in self.opened for shard in item.shards]
        return f"{len(shards)} shards, {fingerprint({'shards': shards})}"

    def refuse(self, what: str) -> NoReturn:
        """Raise `ConfigError`.

        Args:
            what: needs rows by number, for the message.
        """
        message = explain(
            "data.streaming",
            got=f"true with {what}",
            expected="false: that needs rows by their number, and a stream has an order instead",
            do="Copy the shards to a disk and name the folder, or do without.",
        )
        raise ConfigError(message)

    def __len__(self) -> int:
        """Records, where known.

        Raises:
            ConfigError: the number is not known.
        """
        if self.num_records is None:
            message = explain(
                "train.steps",
                got=None,
                expected="a number: how many rows the stream has is not known before it was read",
                do="Set train.steps, or write sizes.json ({shard name: samples}) beside the shards.",
            )
            raise ConfigError(message)
        return self.num_records

    @property
    def parts(self) -> tuple[SourceTable, ...]:
        """Refused: what was opened are the first records alone."""
        self.refuse("something that goes through all records (a report, columns of all rows)")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Refused."""
        self.refuse("something that goes through all rows (a stored reference, a cache, a report)")

    def __getitem__(self, index: int) -> PreferenceRow:
        """Refused."""
        self.refuse("something that looks rows up")

    def prompts(self) -> list[str]:
        """Refused."""
        self.refuse("something that needs all prompts at once")

    def describe(self) -> str:
        """What was opened, one line per source."""
        lines = []
        for item in self.opened:
            count = "an unknown number of" if item.records is None else f"{item.records:,}"
            lines.append(
                f"{item.source.path}: streamed, {item.shards[0].kind}, {len(item.shards)} shards, "
                f"{count} records; {item.maker.first.match.describe()}"
            )
        return "\n".join(lines)

    def advice(self) -> list[str]:
        """None."""
        return []


class StreamOrder:
    """Which row of a stream stands at a position, the same on any number of processes and workers.

    Positions go to lanes by turns: turn t, of `turn` rows, is lane t modulo `lanes`. Processes and workers
    that take turns of this size read different shards; others get the same rows and read more.

    Args:
        table: from `open_stream`.
        seed: of the order and of the keys.
        shuffle: shards in a new order every pass, rows through the buffer; False keeps the shards' own order.
        lanes: streams that are read side by side; as many as there are readers in all.
        turn: rows of a turn: those of a micro-batch.
    """

    def __init__(self, table: StreamTable, *, seed: int, shuffle: bool, lanes: int, turn: int) -> None:
        self.table, self.seed, self.shuffle, self.turn = table, seed, shuffle, turn
        # Every lane has something to read in every pass.
        most = (
            len(item.shards) if item.records is None else max(item.records // turn, 1)
            for item in table.opened
        )
        self.lanes = min(lanes, *most)
        self.states: dict[str, dict[str, Any]] = {}
        self.dropped: dict[str, int] = {}
        self._forget()

    def _forget(self) -> None:
        self._open: dict[tuple[int, int], Lane] = {}
        self._mixed: dict[int, dict[int, NDArray[np.int64]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open."""
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_mixed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    # --- places ---------------------------------------------------------------------------------------------

    def place(self, position: int) -> tuple[int, int, int]:
        """(source, lane, number of the row in that lane) of a position."""
        turn, within = divmod(position, self.turn)
        lane = turn % self.lanes
        source, number = self._source(lane, turn // self.lanes * self.turn + within)
        return source, lane, number

    def _source(self, lane: int, number: int) -> tuple[int, int]:
        """Of several sources, the one whose turn it is in a lane, and how often it was before."""
        opened = self.table.opened
        if len(opened) == 1:
            return 0, number
        block, within = divmod(number, _BLOCK)
        counts = self._counts(lane, block)
        before, after = counts[within], counts[within + 1]
        source = int(np.argmax(after - before))
        return source, int(before[source])

    def _counts(self, lane: int, block: int) -> NDArray[np.int64]:
        """Rows of each source before every row of a block of a lane, and behind its last.

        Two blocks are kept: a run goes forward, and looks back a micro-batch at most.
        """
        blocks, opened = self._mixed.setdefault(lane, {}), self.table.opened
        known = [number for number in blocks if number <= block]
        at = max(known, default=-1)
        counts = blocks[at] if known else np.zeros((1, len(opened)), dtype=np.int64)
        offset = derive_seed(self.seed, "mixture", lane) / 2.0**63
        shares = np.cumsum([item.source.weight * (item.records or 0) for item in opened])
        while at < block:
            at += 1
            # Multiples of the golden ratio fill every stretch evenly: shares hold over a few hundred rows.
            drawn = (offset + _GOLDEN * np.arange(at * _BLOCK, (at + 1) * _BLOCK)) % 1.0
            chosen = np.searchsorted(shares / shares[-1], drawn, side="right")
            steps = np.cumsum(chosen[:, None] == np.arange(len(opened)), axis=0)
            counts = np.concatenate([counts[-1:], counts[-1] + steps])
            blocks[at] = counts
            for old in [number for number in blocks if number < at - 1]:
                del blocks[old]
        return counts

    def _lane(self, source: int, lane: int, *, state: LaneState | None, scratch: bool = False) -> Lane:
        opened = self.table.opened[source]
        seed = derive_seed(self.seed, "stream", source, lane)

        def segments(visit: int) -> list[Segment]:
            order = derive_seed(self.seed, "shards", source, visit) if self.shuffle else None
            return deal(
                opened.shards,
                lane=lane,
                num_lanes=self.lanes,
                turn=self.turn,
                visit=visit,
                order_seed=order,
            )

        size = self.table.config.shuffle_buffer if self.shuffle and not scratch else 1
        return Lane(opened.parts, segments, seed=seed, buffer=size, state=state)

    # --- rows -----------------------------------------------------------------------------------------------

    def row(self, position: int) -> StreamedRow:
        """The row at a position; positions are asked for in rising order, others cost reading again.

        Raises:
            TrainingError: the network gave up, or there are no usable rows.
        """
        source, number, row_number = self.place(position)
        reader = self._open.get((source, number))
        if reader is None or reader.state.place > row_number:
            known = self.states.get(f"{source}.{number}")
            state = None if known is None else LaneState(**known)
            if state is not None and state.place > row_number:
                state = None
            reader = self._open[source, number] = self._lane(source, number, state=state)
        return reader.at(row_number)

    def stand_ins(self, position: int) -> Iterator[StreamedRow]:
        """Rows of the same lane, to stand for some that cannot be used."""
        source, lane, _ = self.place(position)
        reader = self._lane(source, lane, state=None, scratch=True)
        while True:
            yield reader.at(reader.state.place)

    def key(self, found: StreamedRow) -> int:
        """The 63-bit number that decides every random draw of a row."""
        return derive_seed(self.seed, "row", found.row.source, found.row.id, found.visit)

    # --- state ----------------------------------------------------------------------------------------------

    def states_of(self, positions: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Where the lanes of some positions are now."""
        found = {}
        for position in positions:
            source, lane, _ = self.place(position)
            if (reader := self._open.get((source, lane))) is not None:
                found[f"{source}.{lane}"] = asdict(reader.state)
        return found

    def take(self, states: Mapping[str, dict[str, Any]], dropped: Mapping[str, int]) -> None:
        """Note what a worker said with a micro-batch that is now used."""
        self.states.update(states)
        for reason, count in dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint keeps, as JSON values."""
        return {
            "lanes": self.lanes,
            "turn": self.turn,
            "states": dict(sorted(self.states.items())),
            "dropped": dict(sorted(self.dropped.items())),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, counts: bool = True) -> None:
        """Inverse of `state_dict`: the order goes on as it was begun, with its own lanes and turns.

        Args:
            state: of a checkpoint.
            counts: take the counts over, too; of several processes one does.
        """
        self.lanes, self.turn = int(state["lanes"]), int(state["turn"])
        self.states = dict(state["states"])
        self.dropped = dict(state["dropped"]) if counts else {}
        self._forget()

    @staticmethod
    def merged(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The states of several processes as one: of each lane the furthest, counts added."""
        lanes: dict[str, dict[str, Any]] = {}
        dropped: dict[str, int] = {}
        for state in states:
            for name, lane in state["states"].items():
                if name not in lanes or LaneState(**lane).place > LaneState(**lanes[name]).place:
                    lanes[name] = lane
            for reason, count in state["dropped"].items():
                dropped[reason] = dropped.get(reason, 0) + count
        return {
            **states[0],
            "states": dict(sorted(lanes.items())),
            "dropped": dict(sorted(dropped.items())),
        }


_BLOCK = 4096
"""Rows whose sources are decided together."""

_GOLDEN = (5**0.5 - 1) / 2

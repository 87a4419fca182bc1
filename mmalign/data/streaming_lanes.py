"""The order of a stream: lanes of shards, a pass after a pass, shuffled in a buffer; exact after a crash.

The shards of a source, in an order decided by (seed, pass), are dealt to *lanes*; a lane is read by one
loader worker at a time. In a lane, rows go through a buffer: each row that leaves, chosen by a seeded draw,
makes room for the next one of the shards. All of it follows from the seed and from how many rows the shards
turned out to hold. Those numbers are a lane's only state: with them it is put back to any place, reading
again from the oldest row that was waiting in the buffer.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.batch import PreferenceRow
from mmalign.data.readers import RowTable
from mmalign.data.rows import RowIssue
from mmalign.data.sampler import numbers, permutation
from mmalign.data.streaming_shards import Shard
from mmalign.errors import RowError, TrainingError
from mmalign.seeding import derive_seed

__all__ = ["Lane", "LaneState", "Part", "Segment", "StreamedRow", "deal"]

_EMPTY_PASSES = 3
"""Passes without a row after which a lane gives up."""


@dataclass(frozen=True)
class Segment:
    """Records of one shard that a lane reads in one pass.

    Args:
        shard: the file's number in the source.
        start: first record.
        stop: the record behind the last; None goes to the end.
    """

    shard: int
    start: int = 0
    stop: int | None = None


def deal(
    shards: Sequence[Shard], *, lane: int, num_lanes: int, turn: int, visit: int, order_seed: int | None
) -> list[Segment]:
    """What one lane reads in one pass; the lanes together read every record once.

    Where all numbers of records are known, each lane gets a stretch of them, cutting through shards: as many
    as its turns ask for in this pass. Else it gets every `num_lanes`-th shard.

    Args:
        shards: of the source.
        lane: number of the lane.
        num_lanes: how many there are.
        turn: rows of a turn.
        visit: number of the pass.
        order_seed: of the order of the shards; None keeps that of their names.
    """
    order = range(len(shards)) if order_seed is None else permutation(len(shards), order_seed).tolist()
    counts = [shard.records or 0 for shard in shards]
    if any(shard.records is None for shard in shards):
        return [Segment(number) for place, number in enumerate(order) if place % num_lanes == lane]
    total = sum(counts)

    def asked(number: int) -> int:
        """Records of a lane in this pass."""
        return _turns_of(number, (visit + 1) * total, num_lanes, turn) - _turns_of(
            number, visit * total, num_lanes, turn
        )

    first = sum(asked(number) for number in range(lane))
    last = first + asked(lane)
    found, at = [], 0
    for number in order:
        low, high = max(first - at, 0), min(last - at, counts[number])
        if low < high:
            found.append(Segment(number, low, high))
        at += counts[number]
    return found


def _turns_of(lane: int, positions: int, num_lanes: int, turn: int) -> int:
    """Which of the first `positions` fall to a lane: how many."""
    rounds, rest = divmod(positions, num_lanes * turn)
    return rounds * turn + min(max(rest - lane * turn, 0), turn)


@dataclass(frozen=True)
class Part:
    """A few dozen records of a segment as rows.

    Args:
        table: the rows; None where nothing could be read.
        issues: records that cannot be rows.
        dropped: rows left out on purpose, by reason.
    """

    table: RowTable | None
    issues: tuple[RowIssue, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class StreamedRow:
    """A row, or why there is none, with what was noticed on the way to it.

    Args:
        row: to be used; of an error a placeholder that counts nowhere.
        error: why it cannot be used.
        visit: how many passes came before.
        issues: records that cannot be rows, between this row and the one before.
        dropped: rows left out on purpose there, by reason.
    """

    row: PreferenceRow
    error: RowError | None = None
    visit: int = 0
    issues: tuple[RowIssue, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class LaneState:
    """Where a lane is: the part of a checkpoint that belongs to it.

    Args:
        visit: passes finished.
        base: rows of those passes.
        emitted: rows of this pass so far.
        counts: rows of each finished segment of this pass.
        ended: the last segment is finished, too.
    """

    visit: int = 0
    base: int = 0
    emitted: int = 0
    counts: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def place(self) -> int:
        """Rows that left the lane so far."""
        return self.base + self.emitted

    @property
    def total(self) -> int | None:
        """Rows of this pass, once its end was seen."""
        return sum(self.counts) if self.ended else None


class _Draws:
    """Which place of the buffer is emptied, emission by emission."""

    _BLOCK = 4096

    def __init__(self, seed: int) -> None:
        self._seed, self._start = seed, 0
        self._block: list[int] = []

    def __getitem__(self, number: int) -> int:
        if not self._start <= number < self._start + len(self._block):
            self._start = number - number % self._BLOCK
            self._block = numbers(self._seed, self._start, self._start + self._BLOCK).tolist()
        return self._block[number - self._start]


def waiting(draws: Any, *, size: int, emitted: int, total: int | None) -> tuple[list[int], int]:
    """(numbers of the rows in the buffer, number of the next row to be read) after so many emissions.

    Args:
        draws: numbers by emission.
        size: of the buffer.
        emitted: rows that left it.
        total: rows of the pass, where its end was seen.
    """
    held = list(range(size if total is None else min(size, total)))
    cursor = len(held)
    for number in range(emitted):
        place = draws[number] % len(held)
        if total is None or cursor < total:
            held[place] = cursor
            cursor += 1
        else:
            held[place] = held[-1]
            held.pop()
    return held, cursor


Read = Callable[[Segment], Iterator[Part]]


class Lane:
    """Reads one lane, row after row.

    Args:
        read: parts of a segment.
        segments: what a pass reads, by its number.
        seed: of the buffer's draws.
        buffer: rows that wait in memory; 1 keeps the order of the shards.
        state: where to go on; None begins.
    """

    def __init__(
        self,
        read: Read,
        segments: Callable[[int], list[Segment]],
        *,
        seed: int,
        buffer: int,
        state: LaneState | None = None,
    ) -> None:
        self._read, self._segments, self._seed, self._size = read, segments, seed, buffer
        self.state = LaneState() if state is None else LaneState(**{**vars(state), "counts": [*state.counts]})
        self._issues: list[RowIssue] = []
        self._dropped: Counter[str] = Counter()
        self._begin()

    def at(self, number: int) -> StreamedRow:
        """Row `number` of the lane, counted over all passes; those before it are passed by.

        Raises:
            IndexError: it left the lane before.
            TrainingError: passes without rows.
        """
        if number < self.state.place:
            message = f"row {number} of a lane: it left before, the next one is {self.state.place}"
            raise IndexError(message)
        while self.state.place < number:
            self._next()
        return self._next()

    def _begin(self) -> None:
        """The buffer as it was at the state's place; rows that wait in it are read again."""
        state = self.state
        self._draws = _Draws(derive_seed(self._seed, "buffer", state.visit))
        held, cursor = list[int](), 0
        if state.emitted:
            held, cursor = waiting(self._draws, size=self._size, emitted=state.emitted, total=state.total)
        self._at = min(held, default=cursor)
        self._source = self._rows(self._at, noted_before=cursor)
        wanted, found = dict.fromkeys(held), dict[int, tuple[RowTable, int]]()
        # What lies between them left the buffer already.
        while len(found) < len(wanted):
            number, table, local = next(self._source)
            if number in wanted:
                found[number] = (table, local)
        self._buffer = [self._built(*found[number]) for number in held]
        while self._at < cursor and not state.ended:
            next(self._source)

    def _rows(self, first: int, *, noted_before: int) -> Iterator[tuple[int, RowTable, int]]:
        """(number in the pass, part, number in the part) from row `first` on; finished segments are left."""
        state, number = self.state, 0
        for place, segment in enumerate(self._segments(state.visit)):
            known = state.counts[place] if place < len(state.counts) else None
            if known is not None and number + known <= first:
                number += known
                continue
            begin = number
            for part in self._read(segment):
                # A part is opened for its first row: what comes later than the last row read is new.
                if known is None and number >= noted_before:
                    self._issues += part.issues
                    self._dropped += part.dropped
                if part.table is None:
                    continue
                for local in range(max(first - number, 0), len(part.table)):
                    self._at = number + local + 1
                    yield number + local, part.table, local
                number += len(part.table)
            if known is None:
                state.counts.append(number - begin)
        state.ended = True

    def _built(self, table: RowTable, local: int) -> StreamedRow:
        visit = self.state.visit
        try:
            return StreamedRow(table[local], visit=visit)
        except RowError as error:
            return StreamedRow(table.placeholder(local), error, visit)

    def _pull(self) -> StreamedRow | None:
        found = next(self._source, None)
        return None if found is None else self._built(found[1], found[2])

    def _next(self) -> StreamedRow:
        state, empty = self.state, 0
        while True:
            while len(self._buffer) < self._size and not state.ended and (row := self._pull()) is not None:
                self._buffer.append(row)
            if self._buffer:
                break
            empty += state.emitted == 0
            if empty >= _EMPTY_PASSES:
                raise TrainingError(self._nothing())
            self.state = state = LaneState(visit=state.visit + 1, base=state.place)
            self._begin()
        place = self._draws[state.emitted] % len(self._buffer)
        row = self._buffer[place]
        following = None if state.ended else self._pull()
        if following is not None:
            self._buffer[place] = following
        else:
            self._buffer[place] = self._buffer[-1]
            self._buffer.pop()
        state.emitted += 1
        noted = StreamedRow(row.row, row.error, row.visit, tuple(self._issues), self._dropped)
        self._issues, self._dropped = [], Counter()
        return noted

    def _nothing(self) -> str:
        reasons = self._dropped + Counter(issue.reason for issue in self._issues)
        listed = ", ".join(f"{count} {name}" for name, count in reasons.most_common()) or "no records"
        first = f" First: {self._issues[0].message}" if self._issues else ""
        return (
            f"data.streaming: a lane has no usable rows ({listed}).{first} "
            "Run `mmalign data check` on a shard."
        )

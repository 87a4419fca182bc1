"""From row numbers to micro-batches: a loader whose place in the data is one number.

Position p of a run is row `order.row(p)` of the data set, whatever the number of ranks and workers; the
micro-batch of (step, micro-step, rank) covers fixed positions. So a run resumes by starting at a step, and
two ranks see the rows one rank would see.
"""

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, Dataset, Sampler

from mmalign.batch import PreferenceRow, RowKeys
from mmalign.data.readers import RowTable
from mmalign.data.rows import RowIssue
from mmalign.data.sampler import RowOrder, step_positions
from mmalign.data.streaming import StreamOrder, StreamTable
from mmalign.data.streaming_lanes import StreamedRow
from mmalign.errors import MmalignError, RowError, TrainingError
from mmalign.train.micro_batch import BadRow, MicroBatch, labels_of, rewards_of
from mmalign.train.model import Example, ReadsRows
from mmalign.train.row_needs import RowFacts, RowNeeds

__all__ = ["Layout", "StepSampler", "make_loader", "make_order"]

_MAX_SUBSTITUTES = 1000


@dataclass(frozen=True)
class Layout:
    """How positions are spread over devices.

    Args:
        batch_size: rows per device and micro-step.
        accumulation: micro-steps per optimiser step.
        world_size: devices.
        rank: this device.
    """

    batch_size: int
    accumulation: int
    world_size: int = 1
    rank: int = 0

    @property
    def effective_batch(self) -> int:
        """Rows per optimiser step over all devices."""
        return self.batch_size * self.accumulation * self.world_size

    def positions(self, step: int, micro_step: int) -> range:
        """Positions of one micro-batch of this rank."""
        return step_positions(
            step,
            micro_step,
            self.rank,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            world_size=self.world_size,
        )


@dataclass(frozen=True)
class _Loaded:
    position: int
    row: PreferenceRow
    example: Example | None
    key: int
    bad: tuple[BadRow, ...] = ()
    facts: RowFacts = field(default_factory=RowFacts)
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether it was read, and says something: a pair of undecided frames alone is no preference."""
        label = self.facts.preference
        return self.example is not None and (label is None or bool(label.any()))


class _Examples:
    """What a model makes of rows; an unreadable one gives a `BadRow`, never an error."""

    def __init__(self, model: ReadsRows, needs: RowNeeds) -> None:
        self.model, self.needs = model, needs

    def read(self, row: PreferenceRow, key: int) -> tuple[Example, RowFacts]:
        """The example of a row. Raises RowError."""
        facts = self.needs.read(row)
        if row.kind == "prompts" and not getattr(self.model, "reads_prompts", False):
            return {}, RowFacts()
        return self.model.example(row, key=key), facts


class _Positions(Dataset[_Loaded | MmalignError]):
    """Positions of the run as a map-style data set."""

    def __init__(self, table: RowTable, order: RowOrder, examples: _Examples) -> None:
        self.table, self.order, self.examples = table, order, examples

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, position: int) -> _Loaded | MmalignError:
        """A row, or what ends the run."""
        try:
            return self._loaded(position)
        except MmalignError as error:
            return error

    def _loaded(self, position: int) -> _Loaded:
        index, _ = self.order.at(position)
        key = self.order.key(position)
        try:
            row = self.table[index]
            example, facts = self.examples.read(row, key)
            return _Loaded(position, row, example, key, facts=facts)
        except RowError as error:
            bad = BadRow(index, self.table.where(index), error.reason, str(error))
            return _Loaded(position, self.table.placeholder(index), None, key, (bad,))

    def substitutes(self, position: int) -> Iterator[_Loaded]:
        """Rows after a position."""
        return (self._loaded(position + offset) for offset in range(1, _MAX_SUBSTITUTES + 1))

    def lanes(self, positions: Sequence[int]) -> Mapping[str, dict[str, Any]]:
        """None: the position says it all."""
        del positions
        return {}


class _Streamed(Dataset[_Loaded | MmalignError]):
    """Positions of a run over a stream; a worker asks for rising ones."""

    def __init__(self, order: StreamOrder, examples: _Examples) -> None:
        self.order, self.examples = order, examples

    def __getitem__(self, position: int) -> _Loaded | MmalignError:
        """A row, or what ends the run."""
        try:
            return self._loaded(position, self.order.row(position))
        except MmalignError as error:
            return error

    def _loaded(self, position: int, found: StreamedRow) -> _Loaded:
        key = self.order.key(found)
        bad = tuple(_of_issue(issue) for issue in found.issues)
        try:
            if found.error is not None:
                raise found.error
            example, facts = self.examples.read(found.row, key)
            return _Loaded(position, found.row, example, key, bad, facts, found.dropped)
        except RowError as error:
            own = BadRow(None, found.row.source, error.reason, str(error))
            row = replace(found.row, weight=0.0)
            return _Loaded(position, row, None, key, (*bad, own), dropped=found.dropped)

    def substitutes(self, position: int) -> Iterator[_Loaded]:
        """Rows of the same lane."""
        found = islice(self.order.stand_ins(position), _MAX_SUBSTITUTES)
        return (self._loaded(position, item) for item in found)

    def lanes(self, positions: Sequence[int]) -> Mapping[str, dict[str, Any]]:
        """Where the lanes of some positions are now: what a checkpoint keeps of them."""
        return self.order.states_of(positions)


def _of_issue(issue: RowIssue) -> BadRow:
    return BadRow(None, f"{issue.file}:{issue.row}", issue.reason, issue.message)


class _Collator:
    """Stacks examples; an unreadable row is replaced by a readable one that counts nowhere."""

    def __init__(self, rows: _Positions | _Streamed, *, rows_per_step: int) -> None:
        self.rows, self.rows_per_step = rows, rows_per_step

    def __call__(self, loaded: Sequence[_Loaded | MmalignError]) -> MicroBatch | MmalignError:
        """A micro-batch, or what ends the run: `_Loader` raises it."""
        found = [item for item in loaded if isinstance(item, _Loaded)]
        if len(found) < len(loaded):
            return next(item for item in loaded if isinstance(item, MmalignError))
        try:
            return self._collated(found)
        except MmalignError as error:
            return error

    def _collated(self, loaded: Sequence[_Loaded]) -> MicroBatch:
        readable = [item for item in loaded if item.example is not None]
        stand_in = readable[0] if readable else self._substitute(loaded[-1].position)
        used = [item if item.example is not None else stand_in for item in loaded]
        examples = [item.example for item in used if item.example is not None]
        rows, width = [item.row for item in loaded], max(len(item.row.candidates) for item in used)
        valid = torch.tensor([item.counts for item in loaded])
        dropped = sum((Counter(item.dropped) for item in loaded), Counter[str]())
        return MicroBatch(
            collated=self.rows.examples.model.collate(examples) if examples[0] else {},
            labels=labels_of(rows, valid, width),
            weight=torch.tensor([item.row.weight for item in loaded], dtype=torch.float32),
            valid=valid,
            keys=self._keys(loaded),
            ids=tuple(item.row.id or str(item.row.index) for item in loaded),
            bad=tuple(bad for item in loaded for bad in item.bad),
            reward=rewards_of(rows, width, required=self.rows.examples.needs.reward),
            prompts=tuple(item.row.prompt for item in loaded),
            facts=self.rows.examples.needs.stacked([item.facts for item in used]),
            lanes=self.rows.lanes([item.position for item in loaded]),
            dropped=dict(dropped),
            num_beside=sum(len(item.bad) - (item.example is None) for item in loaded),
        )

    def _keys(self, loaded: Sequence[_Loaded]) -> RowKeys:
        """Randomness of the rows, with each one's stratum in its optimiser step."""
        strata = [item.position % self.rows_per_step / self.rows_per_step for item in loaded]
        return RowKeys(
            key=torch.tensor([item.key for item in loaded], dtype=torch.int64),
            stratum=torch.tensor(strata, dtype=torch.float32),
            num_strata=self.rows_per_step,
        )

    def _substitute(self, position: int) -> _Loaded:
        """The next readable row (a whole micro-batch was unreadable)."""
        last = ""
        for loaded in self.rows.substitutes(position):
            if loaded.example is not None:
                return loaded
            last = loaded.bad[-1].message if loaded.bad else last
        message = (
            f"{_MAX_SUBSTITUTES} rows in a row could not be read; "
            f"the last: {last} Run `mmalign data check` on the data."
        )
        raise TrainingError(message)


class StepSampler(Sampler[list[int]]):
    """Lists of positions of one rank, one per micro-step, from `start_step` to `steps`."""

    def __init__(self, layout: Layout, *, start_step: int, steps: int) -> None:
        self.layout, self.start_step, self.steps = layout, start_step, steps

    def __len__(self) -> int:
        return (self.steps - self.start_step) * self.layout.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            for micro_step in range(self.layout.accumulation):
                yield list(self.layout.positions(step, micro_step))


def _begin_worker(_: int) -> None:
    """One thread, and out of reach of signals to the group of the process that trains.

    Launchers and terminals signal the whole group: workers that died at once would end the run before it has
    saved. The process that trains stops them itself, and they end when it is gone.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)


class _Loader(DataLoader[_Loaded | MmalignError]):
    """Raises here, as it is, what a worker met: the loader's own way wraps it into the worker's traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a plain iterator is all that is used
        return _raising(super().__iter__())  # workers start now


def _raising(found: Iterator[Any]) -> Iterator[Any]:
    for item in found:
        if isinstance(item, MmalignError):
            raise item
        yield item


def num_readers(num_workers: int | None, world_size: int) -> int:
    """Loader processes of one device.

    Args:
        num_workers: as configured; None decides by the cores that this process may use.
        world_size: devices in all; those of this machine, which share its cores, are what a launcher says in
            LOCAL_WORLD_SIZE.
    """
    if num_workers is not None:
        return num_workers
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    # A container or a job's step may have fewer cores than the machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, max(cores // max(beside, 1), 1))


def _agreed(number: int) -> int:
    """The number that the first process has: machines may differ in their cores."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    agreed: int = broadcast_object_list([number])[0]
    return agreed


def make_order(
    table: RowTable,
    *,
    seed: int,
    draws_per_row: int | None = None,
    rows_together: int,
    world_size: int,
    num_workers: int | None,
) -> RowOrder | StreamOrder:
    """Which row stands at a position; of a stream a collective, for all processes have the same lanes.

    Args:
        table: rows.
        seed: of the order and of the keys.
        draws_per_row: size of a bank of draws per row; streams have none.
        rows_together: of a micro-batch on one device.
        world_size: devices.
        num_workers: loader processes of each; None decides by the cores.
    """
    if not isinstance(table, StreamTable):
        return RowOrder.for_table(table, seed=seed, shuffle=table.config.shuffle, draws_per_row=draws_per_row)
    readers = world_size * max(num_readers(num_workers, world_size), 1)
    return StreamOrder(
        table,
        seed=seed,
        shuffle=table.config.shuffle,
        lanes=table.config.stream_lanes or _agreed(readers),
        turn=rows_together,
    )


def make_loader(
    table: RowTable,
    order: RowOrder | StreamOrder,
    model: ReadsRows,
    positions: Iterable[list[int]],
    *,
    rows_per_step: int,
    world_size: int,
    num_workers: int | None,
    pin_memory: bool,
    needs: RowNeeds | None = None,
) -> DataLoader[_Loaded | MmalignError]:
    """A loader of one `MicroBatch` per list of positions; it raises `MmalignError`s of workers as they are.

    Args:
        table: rows.
        order: which row stands at a position, and its key.
        model: makes examples and collates them.
        positions: of each micro-batch, in order (`StepSampler` for training).
        rows_per_step: rows of an optimiser step over all devices, for stratified timesteps.
        world_size: devices that share the machine's cores.
        num_workers: loader processes; None decides by the cores.
        pin_memory: for transfers to CUDA.
        needs: what is read of the rows besides media and labels; rows without it count as unreadable.
    """
    workers = num_readers(num_workers, world_size)
    examples = _Examples(model, needs or RowNeeds())
    rows = (
        _Streamed(order, examples) if isinstance(order, StreamOrder) else _Positions(table, order, examples)
    )
    return _Loader(
        rows,
        batch_sampler=positions,
        collate_fn=_Collator(rows, rows_per_step=rows_per_step),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker,
        prefetch_factor=2 if workers else None,
        # An iterator without its own generator would consume the global one.
        generator=torch.Generator().manual_seed(0),
    )

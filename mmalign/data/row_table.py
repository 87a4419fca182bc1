"""Rows of one or several sources by number: cheap to send to workers, read one by one."""

import bisect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mmalign.batch import Candidate, DataKind, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.pairing import follow
from mmalign.data.records import ParquetRecords
from mmalign.data.rows import RowIssue, RowReport
from mmalign.data.source_table import SourceTable
from mmalign.errors import ConfigError

__all__ = ["RowTable"]

_LARGE_GROUP_BYTES = 64 * 2**20


class RowTable:
    """Rows of one or several sources, by number.

    `table[i]` reads row i now and raises `RowError` (with its reason) when the row is unusable;
    `table.where(i)` and `table.placeholder(i)` never raise.

    Args:
        parts: the sources, of one kind.
        config: the data settings.
        as_unpaired: each pair counts as a liked and a disliked candidate.
        as_chosen: each pair counts as its chosen candidate, each liked row as itself.
    """

    def __init__(
        self,
        parts: tuple[SourceTable, ...],
        config: DataConfig,
        *,
        as_unpaired: bool = False,
        as_chosen: bool = False,
    ) -> None:
        self._parts, self.config = parts, config
        self._twice = 2 if as_unpaired else 1
        self._as_chosen = as_chosen
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part) * self._twice)

    @property
    def parts(self) -> tuple[SourceTable, ...]:
        """The sources, with all their records."""
        return self._parts

    @property
    def kind(self) -> DataKind:
        """What the rows are; the same for all."""
        if self._as_chosen:
            return "chosen"
        return "unpaired" if self._twice == 2 else self._parts[0].selection.kind

    @property
    def report(self) -> RowReport:
        """What opening found: rows read, kept, dropped by reason, labels that cannot be read."""
        return RowReport().merge(part.selection.report for part in self._parts)

    @property
    def issues(self) -> list[RowIssue]:
        """Records whose labels cannot be read."""
        return [issue for part in self._parts for issue in part.selection.issues]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source."""
        return tuple(len(part) * self._twice for part in self._parts)

    @property
    def weights(self) -> tuple[float, ...]:
        """Visits per epoch of each source's rows."""
        return tuple(part.source.weight for part in self._parts)

    @property
    def media(self) -> frozenset[str]:
        """What the candidates are, as the settings say or as it was recognised."""
        return frozenset(part.source.media for part in self._parts)

    @property
    def has_dialogues(self) -> bool:
        """Whether rows are dialogues about images or videos."""
        return any(part.match.layout.structure == "dialogue" for part in self._parts)

    def refuse_dialogues(self, where: str) -> None:
        """Raise `ConfigError` where dialogues would lose what they show.

        Args:
            where: the command, for the message.
        """
        if self.has_dialogues:
            message = (
                f"{where}: got dialogues about images or videos ({self._parts[0].match.layout.name}), "
                "expected pictures or texts: only those can be written here. media: text takes the answers "
                "alone."
            )
            raise ConfigError(message)

    def __len__(self) -> int:
        return self._starts[-1]

    def is_turned(self, index: int) -> bool:
        """Whether a pair's candidates were exchanged when it was read, because its label prefers the second.

        Extra columns stay as they are in the file.
        """
        part, local = self.locate(index)
        preference = part.selection.preference
        return preference is not None and bool(preference[local] < 0.5)

    def locate(self, index: int) -> tuple[SourceTable, int]:
        """The source of a row, and the row's number in that source's selection."""
        part, local = self._find(index)
        return part, local // self._twice

    def _find(self, index: int) -> tuple[SourceTable, int]:
        if not 0 <= index < len(self):
            message = f"row {index}: the table has {len(self)} rows"
            raise IndexError(message)
        number = bisect.bisect_right(self._starts, index) - 1
        return self._parts[number], index - self._starts[number]

    def __getitem__(self, index: int) -> PreferenceRow:
        part, local = self._find(index)
        row = part.row(local // self._twice, index)
        if self._as_chosen:
            first = row if row.kind in ("unpaired", "chosen") else _half(row, 0)
            return replace(first, kind="chosen")
        return row if self._twice == 1 else _half(row, local % 2)

    def __iter__(self) -> Iterator[PreferenceRow]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        """`file:row` of a row, for messages."""
        part, local = self._find(index)
        return part.where(local // self._twice)

    def placeholder(self, index: int) -> PreferenceRow:
        """A row of the right kind that counts nowhere (weight 0), to stand for one that cannot be used."""
        kind, where = self.kind, self.where(index)
        part, local = self._find(index)
        counts = part.selection.count
        fixed = {"unpaired": 1, "chosen": 1, "prompts": 0}
        count = fixed.get(kind, 2 if counts is None else int(counts[local]))
        return PreferenceRow(
            prompt="",
            candidates=(Candidate(),) * count,
            kind=kind,
            relevance=(0.0,) * count if kind == "lists" else None,
            desirable=True if kind in ("unpaired", "chosen") else None,
            weight=0.0,
            index=index,
            id=where,
            source=where,
        )

    def prompts(self) -> list[str]:
        """Every distinct usable prompt, in order of appearance; reads the columns of prompts only."""
        found: dict[str, None] = {}
        for part in self._parts:
            for role in ("prompt", "prompt_chosen", "prompt_rejected"):
                if role not in part.match.columns:
                    continue
                column = part.records.column(part.match.columns[role])
                for value in column[part.selection.record]:
                    if isinstance(value, str):
                        found.setdefault(value)
        return list(found)

    def describe(self) -> str:
        """What was opened, one line per source."""
        lines = []
        for part in self._parts:
            name = Path(part.source.path).name if Path(part.source.path).exists() else part.source.path
            lines.append(
                f"{name}: {part.records.description}; {part.match.describe()}; "
                f"{part.selection.report.summary()}"
            )
        return "\n".join(lines)

    def advice(self) -> list[str]:
        """What would make reading faster, in sentences."""
        found = []
        for part in self._parts:
            records = part.records
            if isinstance(records, ParquetRecords) and records.largest_group_bytes > _LARGE_GROUP_BYTES:
                found.append(
                    f"{part.source.path}: row groups of up to {records.largest_group_bytes / 2**20:.0f} "
                    "MiB; a random row "
                    "reads a whole group. `mmalign data convert` rewrites the file in small groups."
                )
        return found


def _half(row: PreferenceRow, side: int) -> PreferenceRow:
    """The liked (0) or disliked (1) candidate of a pair as an unpaired row."""
    candidate = row.candidates[side]
    return replace(
        row,
        extras=follow(row.extras, (side,), 2) if row.messages else row.extras,
        prompt=row.prompt if candidate.prompt is None else candidate.prompt,
        candidates=(replace(candidate, prompt=None),),
        kind="unpaired",
        desirable=side == 0,
        preference=1.0,
        id=f"{row.id}/{side}",
    )

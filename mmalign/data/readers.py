"""Data sets as tables of `PreferenceRow`s: opened in seconds, read row by row, cheap to send to workers.

`open_rows(config)` recognises each source, applies the tie policy on label columns alone, and returns a
`RowTable`. Media stay encoded: rows carry bytes or paths (see `media` for decoding).
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmalign.batch import Candidate, DataKind, PreferenceRow
from mmalign.data import labels
from mmalign.data.audio_codecs import encode_audio
from mmalign.data.config import DataConfig, SourceConfig
from mmalign.data.kinds import recognised_media, taken_apart
from mmalign.data.layouts import Match, detect
from mmalign.data.media import safe_path
from mmalign.data.pairing import follow
from mmalign.data.records import ParquetRecords, Records
from mmalign.data.rows import FieldError, RowIssue, RowReport, check_prompt, check_row
from mmalign.data.segment_labels import LABELS, SECONDS, stretches, turned
from mmalign.data.segments import COLUMN
from mmalign.data.selection import Selection, picture_column, select
from mmalign.data.sources import open_records
from mmalign.data.video_records import with_common_columns
from mmalign.errors import ConfigError, explain

__all__ = ["RowTable", "SourceTable", "joined", "open_rows", "open_source"]

_LARGE_GROUP_BYTES = 64 * 2**20


@dataclass
class SourceTable:
    """The rows of one source.

    Args:
        source: its settings.
        config: the data settings.
        records: raw records.
        match: layout and columns.
        selection: which records are rows.
    """

    source: SourceConfig
    config: DataConfig
    records: Records
    match: Match
    selection: Selection

    def __post_init__(self) -> None:
        heavy = self.records.heavy()
        mapped = set(self.match.columns.values())
        self._picture = picture_column(self.records, self.match, self.source)
        mapped |= {LABELS, SECONDS} | ({self._picture} if self._picture is not None else set())
        # Extra columns travel along unless they hold media nobody asked for.
        self._read = tuple(name for name in self.records.columns if name in mapped or name not in heavy)
        self._extra = tuple(name for name in self._read if name not in mapped)

    def __len__(self) -> int:
        return len(self.selection)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that a row is made of."""
        return self._read

    def where(self, number: int) -> str:
        """`file:row` of a row."""
        return self.records.where(int(self.selection.record[number]))

    def row(self, number: int, index: int) -> PreferenceRow:
        """One row; `index` is its number in the whole table."""
        record = int(self.selection.record[number])
        where = self.records.where(record)
        values = self.records.read(record, self._read)
        prompt = self._prompt(values, where)
        common: dict[str, Any] = {
            "prompt": prompt,
            "weight": self._number(values, "weight", where, default=1.0),
            "index": index,
            "id": str(self._value(values, "id") or where),
            "source": where,
            "extras": {name: values[name] for name in self._extra},
        }
        if self._picture is not None and values[self._picture] is not None:
            common["images"] = (self._file(values[self._picture], f"{where} {self._picture}", "image"),)
        structure = self.match.layout.structure
        if structure == "prompts":
            return check_row(PreferenceRow(candidates=(), kind="prompts", **common))
        if structure == "captioned":
            reward = self._number(values, "score", where, default=None)
            single = self._candidate(values, "candidate", where, reward=reward)
            return check_row(PreferenceRow(candidates=(single,), kind="chosen", desirable=True, **common))
        if structure == "unpaired":
            liked = bool(self.selection.desirable[number]) if self.selection.desirable is not None else None
            reward = self._number(values, "score", where, default=None)
            single = self._candidate(values, "candidate", where, reward=reward)
            return check_row(PreferenceRow(candidates=(single,), kind="unpaired", desirable=liked, **common))
        if structure in ("ranking", "ranked_items"):
            return self._list_row(number, values, where, common)
        return self._pair_row(number, values, where, common)

    def _pair_row(
        self, number: int, values: Mapping[str, Any], where: str, common: dict[str, Any]
    ) -> PreferenceRow:
        if self.match.layout.structure == "chosen_rejected":
            roles = (("chosen", "score_chosen", "", ""), ("rejected", "score_rejected", "", ""))
        else:
            roles = (("a", "score_a", "id_a", "model_a"), ("b", "score_b", "id_b", "model_b"))
        first, second = (
            self._candidate(
                values,
                role,
                where,
                reward=self._number(values, score, where, default=None),
                id=_text(self._value(values, identity)),
                model=_text(self._value(values, model)),
            )
            for role, score, identity, model in roles
        )
        preferences = self.selection.preference
        probability = float(preferences[number]) if preferences is not None else 1.0
        first, second = (
            replace(candidate, prompt=self._own_prompt(values, f"prompt_{role}", where))
            for candidate, (role, *_) in zip((first, second), roles, strict=True)
        )
        common["extras"] |= self._segments(values, where, swapped=probability < 0.5)
        return self._finished_pair(first, second, probability, where, common)

    def _segments(self, values: Mapping[str, Any], where: str, *, swapped: bool) -> dict[str, Any]:
        """Labels of stretches, about the candidates in the order in which the row will have them."""
        given = values.get(COLUMN)
        if given is not None and given != "":
            # Where columns are called chosen and rejected, so are the sides of the stretches.
            by_name = swapped and self.match.layout.structure == "chosen_rejected"
            return {COLUMN: turned(given)} if by_name else {}
        found = stretches(values.get(LABELS), values.get(SECONDS), where=where, swapped=swapped)
        return {COLUMN: found, SECONDS: found[0]["end"]} if found else {}

    def _own_prompt(self, values: Mapping[str, Any], role: str, where: str) -> str | None:
        """The prompt of one candidate alone, where the data have a column for it and it is filled."""
        found = self._value(values, role)
        if found is None:
            return None
        where = f"{where} {self.match.columns[role]}"
        return check_prompt(found, where=where, allow_empty=self.config.allow_empty_prompt)

    def _finished_pair(
        self, first: Candidate, second: Candidate, probability: float, where: str, common: dict[str, Any]
    ) -> PreferenceRow:
        if probability < 0.5:
            first, second, probability = second, first, 1.0 - probability
        media = self.source.media
        same = getattr(first, media) == getattr(second, media) and first.prompt == second.prompt
        if self.config.identical == "drop" and same:
            message = (
                f"{where}: both candidates are the same {media}; such a pair teaches nothing. "
                "data.identical: keep accepts it."
            )
            raise FieldError(message, "identical_candidates")
        return check_row(PreferenceRow(candidates=(first, second), preference=probability, **common))

    def _list_row(
        self, number: int, values: Mapping[str, Any], where: str, common: dict[str, Any]
    ) -> PreferenceRow:
        if self.match.layout.structure == "ranking":
            candidates, relevance = self._listed(values, where)
        else:
            candidates, relevance = self._grouped(number)
        selection = self.selection
        if selection.first is None or selection.second is None or selection.preference is None:
            return check_row(
                PreferenceRow(
                    candidates=tuple(candidates), kind="lists", relevance=tuple(relevance), **common
                )
            )
        i, j = int(selection.first[number]), int(selection.second[number])
        common["id"] = f"{common['id']}/{i}-{j}"
        return self._finished_pair(
            candidates[i], candidates[j], float(selection.preference[number]), where, common
        )

    def _listed(self, values: Mapping[str, Any], where: str) -> tuple[list[Candidate], list[float]]:
        """Candidates and relevance of a record that holds a list."""
        column = self.match.columns["candidates"]
        ranks = "ranks" in self.match.columns
        given = values[self.match.columns["ranks" if ranks else "scores"]]
        media = values[column]
        if not isinstance(media, list) or len(media) != len(given):
            count = len(media) if isinstance(media, list) else 0
            message = explain(
                f"{where} {column}",
                got=f"{count} candidates and {len(given)} labels",
                expected="one label per candidate",
            )
            raise FieldError(message, "wrong_count", column)
        relevance = [float(value) * (-1.0 if ranks else 1.0) for value in given]
        candidates = [
            self._media(value, f"{where} {column}[{place}]", reward=None if ranks else relevance[place])
            for place, value in enumerate(media)
        ]
        return candidates, relevance

    def _grouped(self, number: int) -> tuple[list[Candidate], list[float]]:
        """Candidates and relevance of a group of records."""
        selection, columns = self.selection, self.match.columns
        if selection.group is None or selection.group_starts is None or selection.members is None:
            message = "a selection of ranked items has groups"
            raise AssertionError(message)
        group = int(selection.group[number])
        start, stop = int(selection.group_starts[group]), int(selection.group_starts[group + 1])
        ranks = "rank" in columns
        candidates, relevance = [], []
        for record in selection.members[start:stop]:
            where = self.records.where(int(record))
            values = self.records.read(int(record), self._read)
            value = float(values[columns["rank" if ranks else "score"]])
            relevance.append(-value if ranks else value)
            candidates.append(self._candidate(values, "candidate", where, reward=None if ranks else value))
        return candidates, relevance

    def _value(self, values: Mapping[str, Any], role: str) -> Any:
        column = self.match.columns.get(role)
        return values.get(column) if column is not None else None

    def _prompt(self, values: Mapping[str, Any], where: str) -> str:
        column = self.match.columns["prompt"]
        return check_prompt(
            values.get(column), where=f"{where} {column}", allow_empty=self.config.allow_empty_prompt
        )

    def _number(self, values: Mapping[str, Any], role: str, where: str, *, default: Any) -> Any:
        value = self._value(values, role)
        if value is None:
            return default
        number = labels.numbers(np.array([value], dtype=object))[0]
        if np.isnan(number):
            column = self.match.columns[role]
            raise FieldError(
                explain(f"{where} {column}", got=value, expected="a number"), "bad_number", column
            )
        return float(number)

    def _candidate(
        self,
        values: Mapping[str, Any],
        role: str,
        where: str,
        *,
        reward: float | None,
        id: str | None = None,
        model: str | None = None,
    ) -> Candidate:
        column = self.match.columns[role]
        found = self._media(values.get(column), f"{where} {column}", reward=reward)
        return replace(found, id=id, model=model)

    def _media(self, value: Any, where: str, *, reward: float | None) -> Candidate:
        """A candidate of the source's kind of media; paths are resolved and kept inside the root."""
        media, column = self.source.media, where.rpartition(" ")[2]
        if isinstance(value, dict) and media == "audio" and value.get("array") is not None:
            value = _written(value, where)
        if isinstance(value, dict):  # the stored form of a `datasets` Image, Audio or Video
            value = value.get("bytes") or value.get("path")
        if value is None:
            message = explain(where, got=None, expected=f"{'an' if media[0] in 'aeiou' else 'a'} {media}")
            raise FieldError(message, f"missing_{media}", column)
        if media == "text":
            return Candidate(text=check_prompt(value, where=where), reward=reward)
        found: dict[str, Any] = {media: self._file(value, where, media)}
        return Candidate(**found, reward=reward)

    def _file(self, value: Any, where: str, media: str) -> bytes | str:
        """Encoded bytes, or a path that was resolved and stays inside the root."""
        column = where.rpartition(" ")[2]
        if isinstance(value, dict):  # the stored form of a `datasets` Image, Audio or Video
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray | memoryview):
            if not len(value):
                message = explain(where, got="0 bytes", expected=f"an encoded {media}")
                raise FieldError(message, "empty_file", column)
            return bytes(value)
        if isinstance(value, str):
            root = self.records.root
            return safe_path(value, root=root, where=where, allow_outside=self.source.allow_outside)
        message = explain(where, got=type(value).__name__, expected="encoded bytes or a path")
        raise FieldError(message, "bad_media", column)


def _written(value: Mapping[str, Any], where: str) -> bytes:
    """The file of a decoded sound, {array, sampling_rate}: [sample] or [channel, sample], numbers in [-1, 1].

    Raises:
        RowError: reason `bad_media`; no numbers, or no rate.
    """
    column = where.rpartition(" ")[2]
    try:
        samples = torch.tensor(value["array"], dtype=torch.float32)
    except (TypeError, ValueError):
        samples = torch.empty(0, 0, 0)
    rate = value.get("sampling_rate")
    if samples.ndim not in (1, 2) or not isinstance(rate, int) or rate < 1:
        message = explain(
            where,
            got=f"[an array of {samples.ndim} axes at {rate} samples per second]",
            expected="{array: numbers, sampling_rate: samples per second}",
        )
        raise FieldError(message, "bad_media", column)
    return encode_audio(torch.atleast_2d(samples), rate, container="wav", coding="FLOAT")


def _text(value: object) -> str | None:
    return None if value is None else str(value)


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


def open_rows(config: DataConfig, *, kind: DataKind | None = None) -> RowTable:
    """The rows of all sources; label columns are read, media are not.

    Args:
        config: the data settings.
        kind: what the method needs. Pairs become unpaired or chosen rows when it needs those, unpaired rows
            chosen ones; prompts are taken from any data set. None takes what is there.

    Raises:
        ConfigError: nothing there, unknown layout, sources of different kinds, no rows left, or another kind
            than the method needs.
    """
    if config.streaming:
        from mmalign.data.streaming import open_stream

        return open_stream(config, kind=kind)
    parts = [open_source(open_records(source), source, config, kind=kind) for source in config.all_sources]
    table = joined(parts, config, kind=kind)
    if len(table) == 0:
        first = next((messages[0] for messages in table.report.examples.values()), "")
        message = f"data: no rows are left. {table.report.summary()}.\n{table.describe()}\n{first}".rstrip()
        raise ConfigError(message)
    return table


def open_source(
    records: Records, source: SourceConfig, config: DataConfig, *, kind: DataKind | None
) -> SourceTable:
    """The rows of one source's records.

    Args:
        records: raw records.
        source: their settings.
        config: the data settings.
        kind: what the method needs.

    Raises:
        ConfigError: unknown layout.
    """
    dialogues = _dialogues(records, source, config, kind)
    if dialogues is not None:
        return dialogues
    records = with_common_columns(taken_apart(records))
    match = detect(
        records,
        format="prompts" if kind == "prompts" else source.format,
        columns=source.columns,
        where=source.path,
        examples=kind in (None, "chosen"),
    )
    media = recognised_media(records, match, source)
    if media != source.media:
        source = source.model_copy(update={"media": media})
    return SourceTable(source, config, records, match, select(records, match, source, config))


def joined(parts: Sequence[SourceTable], config: DataConfig, *, kind: DataKind | None) -> RowTable:
    """The rows of several sources as one table, converted to the kind that the method needs.

    Args:
        parts: the sources.
        config: the data settings.
        kind: what the method needs; None takes what is there.

    Raises:
        ConfigError: sources of different kinds, or another kind than the method needs.
    """
    kinds = {part.selection.kind for part in parts}
    if len(kinds) > 1:
        listed = ", ".join(f"{part.source.path} ({part.selection.kind})" for part in parts)
        message = (
            f"data.sources: got rows of several kinds, expected one: {listed}. lists: pairs makes pairs of "
            "rankings."
        )
        raise ConfigError(message)
    found = kinds.pop()
    if kind is not None and kind != found and (kind, found) not in _CONVERTED:
        hint = (
            " Set lists: pairs (or best_worst) on the source." if (kind, found) == ("pairs", "lists") else ""
        )
        message = (
            f"data: got {found} rows ({parts[0].match.describe()}), expected {kind} for this method.{hint}"
        )
        raise ConfigError(message)
    as_unpaired = kind == "unpaired" and found == "pairs"
    for part in parts:
        if as_unpaired or kind == "chosen":
            _without_ties(part.selection)
        if kind == "chosen":
            _liked_only(part.selection)
    return RowTable(tuple(parts), config, as_unpaired=as_unpaired, as_chosen=kind == "chosen")


def _dialogues(
    records: Records, source: SourceConfig, config: DataConfig, kind: DataKind | None
) -> SourceTable | None:
    """The source as dialogues about images or videos, if that is what its columns say."""
    # Dialogues build on the tables of this module.
    from mmalign.data.dialogues.formats import format_named
    from mmalign.data.dialogues.matching import match_dialogues
    from mmalign.data.dialogues.table import open_dialogues

    forced = source.media == "dialogue"
    if not forced and source.media != "image" and format_named(source.format) is None:
        return None
    matched = match_dialogues(
        records, format=source.format, columns=source.columns, where=source.path, forced=forced
    )
    if matched is None:
        return None
    return open_dialogues(records, *matched, source, config, kind=kind)


_CONVERTED = frozenset({("unpaired", "pairs"), ("chosen", "pairs"), ("chosen", "unpaired")})
"""(What a method needs, what the data are) where one is made of the other."""


def _liked_only(selection: Selection) -> None:
    """A disliked candidate is no example to follow."""
    if selection.desirable is not None and not selection.desirable.all():
        selection.report.dropped["disliked"] += int((~selection.desirable).sum())
        selection.keep(selection.desirable)
        selection.report.kept = len(selection)


def _without_ties(selection: Selection) -> None:
    """A tie likes neither candidate: it has no place among unpaired rows."""
    if selection.preference is not None:
        tied = selection.preference == 0.5
        if tied.any():
            selection.report.dropped["tie"] += int(tied.sum())
            selection.keep(~tied)
            selection.report.kept = len(selection)

"""Dialogues of one source by number: which answers meet is decided once, media are named on reading."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.batch import Candidate, DataKind, PreferenceRow
from mmalign.data.config import DataConfig, SourceConfig
from mmalign.data.dialogues.content import lay_out
from mmalign.data.dialogues.fields import DroppedRowError, Fields
from mmalign.data.dialogues.formats import DialogueFormat
from mmalign.data.dialogues.media import MediaRoot
from mmalign.data.dialogues.reading import Answer, Dialogue, kind_of
from mmalign.data.layouts import Match
from mmalign.data.pairing import Pairing, couples, turned
from mmalign.data.records import JsonLinesRecords, Records
from mmalign.data.rows import FieldError, RowIssue, RowReport, check_prompt, check_row, issue_of
from mmalign.data.selection import Selection, apply_ties, of_split
from mmalign.data.source_table import SourceTable
from mmalign.errors import RowError, explain

__all__ = ["DialogueTable", "open_dialogues", "with_revised"]

_MEDIA = ("images", "videos", "rejected_images", "rejected_videos")


@dataclass
class DialogueTable(SourceTable):
    """The dialogues of one source.

    Args:
        format: how records are read.
    """

    format: DialogueFormat

    @property
    def media_root(self) -> MediaRoot:
        """Where paths start."""
        return MediaRoot(Path(self.records.root), self.source.allow_outside)

    def read(self, values: Mapping[str, Any], where: str, *, answered: bool = True) -> Dialogue:
        """A record as a dialogue. Raises RowError."""
        return self.format.read(
            Fields(values, self.match.columns, where, self.source.dialogue, self.config.seed, answered)
        )

    def row(self, number: int, index: int) -> PreferenceRow:
        """One row; `index` is its number in the whole table."""
        record = int(self.selection.record[number])
        where = self.records.where(record)
        values = self.records.read(record, self._read)
        kind = self.selection.kind
        found = self.read(values, where, answered=kind != "prompts")
        root = self.media_root
        messages, images, videos = lay_out(found.turns, found.images, found.videos, where=where)
        prompt = "\n".join(item.text for item in messages[-1].content if item.type == "text")
        common: dict[str, Any] = {
            "prompt": check_prompt(prompt, where=where, allow_empty=self.config.allow_empty_prompt),
            "weight": self._number(values, "weight", where, default=1.0),
            "index": index,
            "id": str(self._value(values, "id") or where),
            "source": where,
            "images": tuple(
                root.image(value, f"{where} images[{place}]") for place, value in enumerate(images)
            ),
            "videos": tuple(
                root.video(value, f"{where} videos[{place}]") for place, value in enumerate(videos)
            ),
            "messages": messages,
        }
        extras = {name: values[name] for name in self._extra} | dict(found.extras)
        if kind == "prompts":
            return check_row(PreferenceRow(candidates=(), kind=kind, extras=extras, **common))
        if kind == "pairs":
            return self._paired(number, found, where, common, extras)
        candidates = tuple(self._shown(answer, f"{where} candidate", common) for answer in found.answers)
        if kind == "lists":
            relevance = tuple(answer.reward or 0.0 for answer in found.answers)
            extras |= {name: list(value) for name, value in found.per_answer.items()}
            return check_row(
                PreferenceRow(candidates=candidates, kind=kind, relevance=relevance, extras=extras, **common)
            )
        liked = True if kind == "chosen" else found.desirable
        return check_row(
            PreferenceRow(candidates=candidates, kind=kind, desirable=liked, extras=extras, **common)
        )

    def _paired(
        self, number: int, found: Dialogue, where: str, common: dict[str, Any], extras: dict[str, Any]
    ) -> PreferenceRow:
        selection = self.selection
        if selection.first is None or selection.second is None or selection.preference is None:
            raise RowError(explain(where, got="no pair", expected="a pair"), "wrong_count")
        places = int(selection.first[number]), int(selection.second[number])
        first, second = (self._shown(found.answers[place], f"{where} candidate", common) for place in places)
        if len(found.answers) > 2:
            common["id"] = f"{common['id']}/{places[0]}-{places[1]}"
        extras |= {name: [value[place] for place in places] for name, value in found.per_answer.items()}
        for name, value in found.sides.items():
            extras |= {f"{name}_chosen": value[places[0]], f"{name}_rejected": value[places[1]]}
        preference = float(selection.preference[number])
        if preference < 0.5:
            first, second, preference, extras = second, first, 1.0 - preference, turned(extras)
        seen = [
            (item.text, item.images or common["images"], item.videos or common["videos"])
            for item in (first, second)
        ]
        same = seen[0] == seen[1]
        if same and self.config.identical == "drop":
            message = (
                f"{where}: both answers are the same; such a pair teaches nothing. data.identical: keep "
                "accepts it."
            )
            raise FieldError(message, "identical_candidates")
        return check_row(
            PreferenceRow(candidates=(first, second), preference=preference, extras=extras, **common)
        )

    def _shown(self, answer: Answer, where: str, common: Mapping[str, Any]) -> Candidate:
        """A candidate with the media it is seen with, where they are its own."""
        own: dict[str, Any] = {}
        for kind, media in (("images", answer.images), ("videos", answer.videos)):
            if media is None:
                continue
            if len(media) != len(common[kind]):
                got, expected = (
                    f"{len(media)} {kind} of its own",
                    f"as many as the row has ({len(common[kind])})",
                )
                raise FieldError(
                    explain(where, got=got, expected=expected), f"{kind.removesuffix('s')}_count"
                )
            root = self.media_root
            read = root.image if kind == "images" else root.video
            own[kind] = tuple(read(value, f"{where} {kind}[{place}]") for place, value in enumerate(media))
        return Candidate(text=answer.text, reward=answer.reward, model=answer.model, **own)


def open_dialogues(
    records: Records,
    entry: DialogueFormat,
    match: Match,
    source: SourceConfig,
    config: DataConfig,
    *,
    kind: DataKind | None,
) -> DialogueTable:
    """The dialogues of a source; every record's words are looked at, no medium is.

    Rows with equal answers, ties, missing answers and unreadable ratings are counted by reason.

    Args:
        records: raw records.
        entry: their format.
        match: role to column.
        source: split, list policy, limit.
        config: policies.
        kind: what the method needs; prompts are taken from any data set.

    Raises:
        ConfigError: never by itself; unusable records are counted.
    """
    native = kind_of(match.columns) if kind != "prompts" else "prompts"
    if (
        native == "chosen"
        and entry.name == "mapped"
        and not {"completion", "messages"} & match.columns.keys()
    ):
        native = "prompts"
    wanted: DataKind = "pairs" if native == "lists" and kind != "lists" else native
    table = DialogueTable(
        source, config, records, match, Selection(wanted, np.empty(0, dtype=np.int64)), entry
    )
    table.selection = _Scan(table, wanted).selection()
    return table


class _Scan:
    """Collects which answers of which records meet."""

    def __init__(self, table: DialogueTable, kind: DataKind) -> None:
        self.table, self.kind, self.report = table, kind, RowReport()
        self.issues: list[RowIssue] = []
        # Encoded images of the rejected side are not looked at here: whether they differ is seen when read.
        heavy, columns = table.records.heavy(), table.match.columns
        self.hidden = any(columns.get(role) in heavy for role in _MEDIA[2:])
        self.record: list[int] = []
        self.first: list[int] = []
        self.second: list[int] = []
        self.preference: list[float] = []
        self.desirable: list[bool] = []
        self.count: list[int] = []

    def selection(self) -> Selection:
        """The rows of every record of the wanted split."""
        table = self.table
        numbers = of_split(table.records, table.match, table.source)
        for number, values in _words(table, numbers):
            where = table.records.where(number)
            try:
                if isinstance(values, RowError):
                    raise values
                self._add(number, table.read(values, where, answered=self.kind != "prompts"))
            except DroppedRowError as error:
                self.report.add_dropped(error.reason)
            except RowError as error:
                issue = issue_of(error, where)
                self.report.add_bad(issue)
                self.issues.append(issue)
        found = Selection(
            self.kind, np.array(self.record, dtype=np.int64), report=self.report, issues=self.issues
        )
        if self.kind == "pairs":
            found.first, found.second = (np.array(side, dtype=np.int32) for side in (self.first, self.second))
            found.preference = np.array(self.preference, dtype=np.float32)
            apply_ties(found, table.records, table.config)
        elif self.kind == "unpaired":
            found.desirable = np.array(self.desirable, dtype=np.bool_)
        elif self.kind == "lists":
            found.count = np.array(self.count, dtype=np.int32)
        if table.source.limit is not None and len(found) > table.source.limit:
            found.keep(slice(table.source.limit))
        found.report.kept = len(found)
        return found

    def _add(self, number: int, found: Dialogue) -> None:
        for reason, count in found.skipped.items():
            self.report.add_dropped(reason, count)
        if self.kind == "pairs":
            self._add_pairs(number, found)
            return
        if self.kind == "lists" and len(found.answers) < 2:
            self.report.add_dropped("single_candidate")
            return
        if self.kind == "unpaired":
            self.desirable.append(bool(found.desirable))
        self.record.append(number)
        self.count.append(len(found.answers))
        self.report.read += 1

    def _add_pairs(self, number: int, found: Dialogue) -> None:
        rewards = [answer.reward for answer in found.answers]
        if found.pairs is not None:
            meet: Sequence[tuple[int, int]] = found.pairs
        elif len(rewards) < 2:
            self.report.add_dropped("single_candidate")
            return
        else:
            meet = couples([reward or 0.0 for reward in rewards], self._how())
        for i, j in meet:
            self._add_pair(number, found, i, j)

    def _how(self) -> Pairing:
        """Every two answers, or the ends: CheXalign's own rule for its four reports."""
        policy = self.table.source.lists
        ends = policy == "best_worst" or (policy == "keep" and "rating_1" in self.table.match.columns)
        return "best_worst" if ends else "all_pairs"

    def _add_pair(self, number: int, found: Dialogue, i: int, j: int) -> None:
        better, worse = found.answers[i], found.answers[j]
        own = worse.images is not None or worse.videos is not None or self.hidden
        if better.text == worse.text and not own and self.table.config.identical == "drop":
            self.report.add_dropped("identical_candidates")
            return
        gap = None if better.reward is None or worse.reward is None else better.reward - worse.reward
        tied = found.pairs is None and gap == 0
        if not tied and gap is not None and gap < self.table.source.dialogue.min_gap:
            self.report.add_dropped("small_gap")
            return
        self.record.append(number)
        self.first.append(i)
        self.second.append(j)
        self.preference.append(0.5 if tied else 1.0)
        self.report.read += 1


def _words(table: DialogueTable, numbers: Any) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Every record without its media; columns are read whole where that is cheaper than records."""
    records, columns = table.records, table.match.columns
    skipped = {columns[role] for role in _MEDIA[:2] if role in columns} | records.heavy()
    # Only what means something: other columns cannot make a row unusable.
    names = [name for name in dict.fromkeys(columns.values()) if name not in skipped]
    if isinstance(records, JsonLinesRecords):
        for number in numbers:
            try:
                yield int(number), records.read(int(number), names)
            except RowError as error:
                yield int(number), error
        return
    read = {name: records.column(name) for name in names}
    for number in numbers:
        values = {name: _plain(column[number]) for name, column in read.items()}
        yield int(number), values


def _plain(value: Any) -> Any:
    """A cell as Python has it: whole columns hold numpy scalars."""
    return value.item() if isinstance(value, np.generic) else value


def with_revised(row: PreferenceRow) -> PreferenceRow:
    """An OPA-DPO pair with its revised answer as candidate 2, whose weights join those of the others.

    candidates: 0 = the true answer, 1 = the model's own, 2 = the revised one

    Raises:
        RowError: reason `no_revised_answer`.
    """
    revised = row.extras.get("revised")
    if not isinstance(revised, Mapping):
        message = explain(row.source or row.id, got="no revised answer", expected="rows of format opa_dpo")
        raise FieldError(message, "no_revised_answer", "revised")
    extras = {
        name: [*value, revised[name]] if isinstance(value, list) and name in revised else value
        for name, value in row.extras.items()
    }
    return replace(row, candidates=(*row.candidates, Candidate(text=revised["text"])), extras=extras)

"""Which records become rows, decided from label columns alone: no media byte is read, no row is built.

A selection is a few integer arrays, so that opening a million rows takes a second and sending the table to a
loader worker costs little. Ties, unlabelled rows and unreadable labels are counted here.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.batch import DataKind
from mmalign.data import labels
from mmalign.data.config import DataConfig, SourceConfig
from mmalign.data.layouts import Match
from mmalign.data.pairing import Pairing, couples
from mmalign.data.records import Records
from mmalign.data.rows import FieldError, RowIssue, RowReport, issue_of
from mmalign.data.segment_labels import majority
from mmalign.errors import explain
from mmalign.seeding import derive_seed

__all__ = ["Selection", "apply_ties", "of_split", "picture_column", "select"]

Integers = NDArray[np.int64]

_PICTURES = ("image", "first_frame", "prompt_asset", "conditioning_image")
"""Columns of the picture that the clips of a row go on from."""


@dataclass
class Selection:
    """Rows as numbers.

    Args:
        kind: what the rows are.
        record: record of each row (lists of ranked items: the first of its group).
        preference: pairs: probability that the first candidate (a, chosen, or `first`) is preferred.
        first: pairs made of a list: position of the preferred candidate in it.
        second: pairs made of a list: position of the other one.
        members: records grouped into one list: their numbers, all groups in a row.
        group_starts: where each group begins in `members`, with one more entry at the end.
        group: group of each row, when `members` is used.
        desirable: unpaired rows: liked or not.
        count: lists: candidates of each row.
        report: what was left out.
        issues: records with labels that cannot be read, for the quarantine file.
    """

    kind: DataKind
    record: Integers
    preference: NDArray[np.float32] | None = None
    first: NDArray[np.int32] | None = None
    second: NDArray[np.int32] | None = None
    members: Integers | None = None
    group_starts: Integers | None = None
    group: Integers | None = None
    desirable: NDArray[np.bool_] | None = None
    count: NDArray[np.int32] | None = None
    report: RowReport = field(default_factory=RowReport)
    issues: list[RowIssue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.record)

    def keep(self, rows: Any) -> None:
        """Keep some of the rows."""
        for name in ("record", "preference", "first", "second", "group", "desirable", "count"):
            values = getattr(self, name)
            if values is not None:
                setattr(self, name, values[rows])


def select(records: Records, match: Match, source: SourceConfig, config: DataConfig) -> Selection:
    """The rows of a source.

    Args:
        records: raw records.
        match: their layout.
        source: split, list policy and limit.
        config: tie policy and seed.
    """
    numbers = of_split(records, match, source)
    structure = match.layout.structure
    if structure == "chosen_rejected":
        selection = _chosen_rejected(records, match, numbers, config)
    elif structure == "two_candidates":
        selection = _two_candidates(records, match, numbers, config)
    elif structure == "unpaired":
        selection = _unpaired(records, match, numbers)
    elif structure == "captioned":
        selection = Selection("chosen", numbers, report=RowReport(read=len(numbers)))
    elif structure == "prompts":
        selection = Selection("prompts", numbers, report=RowReport(read=len(numbers)))
    elif structure == "ranking":
        selection = _ranking(records, match, numbers, source, config)
    else:
        selection = _ranked_items(records, match, numbers, source, config)
    if source.limit is not None and len(selection) > source.limit:
        selection.keep(slice(source.limit))
    selection.report.kept = len(selection)
    return selection


def picture_column(records: Records, match: Match, source: SourceConfig) -> str | None:
    """The column of the picture that clips go on from; None where there is none, or clips are no media."""
    if source.media != "video":
        return None
    mapped = set(match.columns.values())
    return next((name for name in _PICTURES if name in records.columns and name not in mapped), None)


def of_split(records: Records, match: Match, source: SourceConfig) -> Integers:
    """Records of the wanted split, when a column tells."""
    numbers = np.arange(len(records), dtype=np.int64)
    column = match.columns.get("split")
    if source.split is None or column is None:
        return numbers
    wanted: Integers = numbers[records.column(column) == source.split]
    return wanted


def _bad(
    selection: Selection, records: Records, numbers: Integers, column: str, values: Any, expected: str
) -> None:
    """Count records whose label cannot be read."""
    for number, value in zip(numbers, values, strict=True):
        where = records.where(int(number))
        missing = value is None or value != value
        value = value.item() if isinstance(value, np.generic) else value
        message = explain(f"{where} {column}", got=None if missing else value, expected=expected)
        error = FieldError(message, "missing_label" if missing else "bad_label", column)
        issue = issue_of(error, where)
        selection.report.add_bad(issue)
        selection.issues.append(issue)


def apply_ties(selection: Selection, records: Records, config: DataConfig) -> None:
    """Drop ties, decide them by a coin that depends on (seed, record) only, or leave them at 0.5."""
    preference = selection.preference
    if preference is None:
        return
    tied = preference == 0.5
    count = int(tied.sum())
    if not count or config.tie_policy == "soft":
        return
    if config.tie_policy == "drop":
        selection.report.dropped["tie"] += count
        selection.keep(~tied)
        return
    for row in np.flatnonzero(tied):
        # The same record always falls the same way, whatever else is in the data set.
        first, second = selection.first, selection.second
        position = (int(first[row]), int(second[row])) if first is not None and second is not None else (0, 1)
        seed = derive_seed(config.seed, "tie", records.where(int(selection.record[row])), *position)
        preference[row] = seed & 1


def _chosen_rejected(records: Records, match: Match, numbers: Integers, config: DataConfig) -> Selection:
    selection = Selection("pairs", numbers, report=RowReport(read=len(numbers)))
    column = match.columns.get("preference")
    if column is None:
        selection.preference = np.ones(len(numbers), dtype=np.float32)
        return selection
    values = records.column(column)[numbers]
    _take_preferences(selection, records, labels.preference_from_label(values), values, column)
    apply_ties(selection, records, config)
    return selection


def _take_preferences(
    selection: Selection,
    records: Records,
    preference: NDArray[np.float64],
    values: Any,
    column: str,
) -> None:
    unread = np.isnan(preference)
    if unread.any():
        expected = "a preference: 1 (first), 0 (second) or 0.5 (tie), -1 to 1, or a name such as a, b, tie"
        read = selection.report.read
        _bad(selection, records, selection.record[unread], column, values[unread], expected)
        selection.report.read = read
    selection.preference = preference.astype(np.float32)
    selection.keep(~unread)


def _two_candidates(records: Records, match: Match, numbers: Integers, config: DataConfig) -> Selection:
    selection = Selection("pairs", numbers, report=RowReport(read=len(numbers)))
    for role, reason in (("has_label", "no_label"), ("are_different", "identical_candidates")):
        if role in match.columns and (role == "has_label" or config.identical == "drop"):
            flags = labels.numbers(_truth(records.column(match.columns[role])[selection.record]))
            # Only a clear "no" drops the row: a missing flag says nothing.
            refused = flags == 0.0
            selection.report.dropped[reason] += int(refused.sum())
            selection.keep(~refused)
    selection.report.dropped += type(selection.report.dropped)()  # forgets reasons that never occurred

    def read(role: str) -> NDArray[Any] | None:
        return records.column(match.columns[role])[selection.record] if role in match.columns else None

    columns = match.columns
    values: Any
    if "signed" in columns:
        values, column = read("signed"), columns["signed"]
        preference = labels.preference_from_signed(values)
        if "segment_labels" in columns:
            preference = np.where(
                np.isnan(preference), majority(np.asarray(read("segment_labels"))), preference
            )
    elif "label" in columns:
        values = read("label")
        preference, column = labels.preference_from_label(values), columns["label"]
    elif "winner" in columns:
        values = read("winner")
        preference, column = (
            labels.preference_from_winner(values, read("id_a"), read("id_b")),
            columns["winner"],
        )
    elif "segment_labels" in columns:
        values, column = read("segment_labels"), columns["segment_labels"]
        preference = majority(np.asarray(values))
    else:
        votes = "votes_a" in columns and "votes_b" in columns
        names = ("votes_a", "votes_b") if votes else ("score_a", "score_b")
        values, other = read(names[0]), read(names[1])
        preference = labels.preference_from_scores(values, np.asarray(other), votes=votes)
        column = columns[names[0]]
    _take_preferences(selection, records, preference, values, column)
    apply_ties(selection, records, config)
    return selection


def _truth(values: NDArray[Any]) -> NDArray[Any]:
    """Words such as "False" (from CSV files) as numbers."""
    if values.dtype == object:
        flags = labels.desirable_flags(values)
        return np.where(np.isnan(flags), labels.numbers(values), flags)
    return values


def _relevance(values: Any, *, ranks: bool) -> NDArray[np.float64] | None:
    """Higher-is-better numbers of one list; None when they are unusable."""
    if not isinstance(values, list) or len(values) < 2:
        return None
    given = labels.numbers(np.array(values, dtype=object))
    if np.isnan(given).any():
        return None
    return -given if ranks else given


def _ranking(
    records: Records, match: Match, numbers: Integers, source: SourceConfig, config: DataConfig
) -> Selection:
    """Records that each hold a list of candidates with ranks or scores."""
    ranks = "ranks" in match.columns
    column = match.columns["ranks" if ranks else "scores"]
    values = records.column(column)[numbers]
    relevances = [_relevance(value, ranks=ranks) for value in values]
    unread = np.array([relevance is None for relevance in relevances], dtype=bool)
    selection = Selection("lists", numbers, report=RowReport())
    expected = "a list of two or more numbers, one per candidate"
    if unread.any():
        shown = [str(value) if value is not None else None for value in values[unread]]
        _bad(selection, records, numbers[unread], column, shown, expected)
    selection.report.read = len(numbers)
    usable = [relevance for relevance in relevances if relevance is not None]
    selection.keep(~unread)
    return _make_lists_or_pairs(selection, usable, records, source, config)


def _ranked_items(
    records: Records, match: Match, numbers: Integers, source: SourceConfig, config: DataConfig
) -> Selection:
    """Records that each hold one candidate with its rank, grouped by prompt (or a group column).

    Clips that go on from different pictures are in different groups.
    """
    ranks = "rank" in match.columns
    column = match.columns["rank" if ranks else "score"]
    values = labels.numbers(records.column(column)[numbers])
    unread = np.isnan(values)
    keys = records.column(match.columns.get("group", match.columns["prompt"]))[numbers]
    selection = Selection("lists", numbers, report=RowReport())
    if unread.any():
        _bad(selection, records, numbers[unread], column, values[unread], "a number")
    usable = np.flatnonzero(~unread)
    pictures = _pictures(records, picture_column(records, match, source), numbers, keys, usable)
    groups: dict[Any, list[int]] = {}
    for place in usable:
        groups.setdefault((keys[place], pictures.get(int(place))), []).append(int(place))
    # One candidate alone ranks nothing.
    lists = [places for places in groups.values() if len(places) > 1]
    alone = len(groups) - len(lists)
    selection.report.read = len(groups) + int(unread.sum())
    if alone:
        selection.report.dropped["single_candidate"] += alone
    sizes = np.array([0, *(len(places) for places in lists)], dtype=np.int64)
    selection.group_starts = np.cumsum(sizes)
    flat = np.array([place for places in lists for place in places], dtype=np.int64)
    selection.members = numbers[flat]
    selection.group = np.arange(len(lists), dtype=np.int64)
    selection.record = selection.members[selection.group_starts[:-1]]
    relevances = [-values[places] if ranks else values[places] for places in lists]
    return _make_lists_or_pairs(selection, relevances, records, source, config)


def _pictures(
    records: Records, column: str | None, numbers: Integers, keys: Any, usable: Any
) -> dict[int, str | bytes]:
    """What names the picture of each place: its path, or a digest of its bytes.

    Pictures inside the records are read one at a time, and only where a prompt has several records.
    """
    if column is None:
        return {}
    heavy = column in records.heavy()
    several = Counter(keys[place] for place in usable)
    values = None if heavy else records.column(column)
    found: dict[int, str | bytes] = {}
    for place in usable:
        if several[keys[place]] < 2:
            continue
        number = int(numbers[place])
        value = records.read(number, (column,))[column] if values is None else values[number]
        if isinstance(value, dict):  # the stored form of a `datasets` Image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray | memoryview):
            found[int(place)] = hashlib.blake2b(value, digest_size=16).digest()
        elif isinstance(value, str):
            found[int(place)] = value
    return found


def _make_lists_or_pairs(
    selection: Selection,
    relevances: list[NDArray[np.float64]],
    records: Records,
    source: SourceConfig,
    config: DataConfig,
) -> Selection:
    """Leave lists as they are, or expand them to pairs of candidates."""
    if source.lists == "keep":
        selection.count = np.array([len(relevance) for relevance in relevances], dtype=np.int32)
        return selection
    rows, first, second, preference = [], [], [], []
    for row, relevance in enumerate(relevances):
        how: Pairing = "best_worst" if source.lists == "best_worst" else "all_pairs"
        for ahead, behind in couples(relevance.tolist(), how):
            rows.append(row)
            first.append(ahead)
            second.append(behind)
            preference.append(0.5 if relevance[ahead] == relevance[behind] else 1.0)
    selection.report.read += len(rows) - len(selection)
    selection.keep(np.array(rows, dtype=np.int64))
    selection.kind = "pairs"
    selection.first, selection.second = np.array(first, dtype=np.int32), np.array(second, dtype=np.int32)
    selection.preference = np.array(preference, dtype=np.float32)
    apply_ties(selection, records, config)
    return selection


def _unpaired(records: Records, match: Match, numbers: Integers) -> Selection:
    column = match.columns["desirable"]
    values = records.column(column)[numbers]
    flags = labels.desirable_flags(values)
    unread = np.isnan(flags)
    selection = Selection("unpaired", numbers, report=RowReport())
    if unread.any():
        _bad(
            selection,
            records,
            numbers[unread],
            column,
            values[unread],
            "true or false (1 or 0, 1 or -1, yes or no)",
        )
    selection.report.read = len(numbers)
    selection.desirable = flags == 1.0
    selection.keep(~unread)
    return selection

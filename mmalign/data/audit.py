"""`mmalign data audit`: would a model learn the preferences, or a shortcut? Numbers with intervals.

`check` asks whether rows can be read; `audit` asks what they say: lengths, ties, repetitions, contradictions,
score gaps, and whether features alone tell chosen from rejected.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.audit_report import AuditReport, notes_of
from mmalign.data.config import DataConfig
from mmalign.data.curation import (
    candidate_key,
    consistency,
    default_length,
    length_bias,
    score_gaps,
)
from mmalign.data.media import read_media
from mmalign.data.motion_bias import motion_bias
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import FieldError, RowReport, issue_of
from mmalign.data.seen_motion import SeenMotions
from mmalign.data.separability import linear_separability
from mmalign.data.video_stills import check_clip_files
from mmalign.errors import ConfigError, RowError, TrainingError, explain

__all__ = ["audit"]

_FEATURES = (("features_chosen", "features_rejected"), ("features_a", "features_b"), ("features",))
"""Extra columns that hold feature vectors, one per candidate or a list of them."""


def audit(config: DataConfig, *, features: str | None = None, num_folds: int = 5) -> AuditReport:
    """Read every row of a data set and report what its preferences are like.

    Rankings count as all their pairs. Media are read and compared by content, not decoded; but clips are, to
    see how much they move, where a row's `motion_chosen` and `motion_rejected` do not say it. Set
    `tie_policy: soft` to see ties.

    Args:
        config: what to read.
        features: column of feature vectors, one per candidate in the order of the columns or of the list;
            None takes `features`, `features_chosen` and `features_rejected`, or `features_a` and
            `features_b`, where they are.
        num_folds: held-out parts of the separability audit.

    Raises:
        ConfigError: the data set cannot be opened, has no preferences between candidates, no usable row, or
            no such feature column.
    """
    config = config.model_copy(update={"identical": "keep"})
    table = _pairs_of(config)
    names = _feature_columns(table, features)
    report = RowReport(
        read=table.report.read - table.report.kept,
        dropped=table.report.dropped.copy(),
        bad=table.report.bad.copy(),
        examples={reason: list(messages) for reason, messages in table.report.examples.items()},
    )
    rows, vectors, lengths = [], [], {}
    motions = SeenMotions(config)
    for index, row in _readable(table, report):
        try:
            light, measured = _light(row, config)
            pair = _feature_pair(table, index, row, names) if names else None
            motions.look(row, light, turned=table.is_turned(index))
        except RowError as error:
            report.add_bad(issue_of(error, row.source))
            continue
        report.add_kept()
        rows.append(light)
        lengths.update(measured)
        if pair is not None:
            vectors.append(pair)
    if not rows:
        message = f"data audit: no row can be used. {report.summary()}. First: {_first_message(report)}"
        raise ConfigError(message)
    decided = [row for row in rows if row.preference != 0.5]
    found = AuditReport(
        path=config.all_sources[0].path,
        layout=table.describe(),
        read=report,
        consistency=consistency(rows, key=_key_of),
        length=length_bias(decided, length=lambda it: lengths[_key_of(it)]) if decided else None,
        scores=score_gaps(rows),
        motion=motion_bias(motions.records),
    )
    found.notes += motions.notes
    if names:
        _separate(found, rows, vectors, num_folds)
    found.notes += notes_of(found)
    try:
        report.check(config.max_bad_share)
    except TrainingError as error:
        found.ok = False
        found.notes.append(str(error))
    return found


def _pairs_of(config: DataConfig) -> RowTable:
    """The table of pairs; rankings are opened again as all their pairs."""
    table = open_rows(config)
    if table.kind == "lists":
        sources = tuple(source.model_copy(update={"lists": "pairs"}) for source in config.all_sources)
        table = open_rows(config.model_copy(update={"source": None, "sources": sources}))
    if table.kind != "pairs":
        message = explain(
            "data audit",
            got=f"{table.kind} rows",
            expected="pairs or rankings",
            do="Thumbs up and down of single candidates compare nothing; use `mmalign data check`.",
        )
        raise ConfigError(message)
    return table


def _readable(table: RowTable, report: RowReport) -> Iterator[tuple[int, PreferenceRow]]:
    for index in range(len(table)):
        try:
            row = table[index]
        except RowError as error:
            report.add_bad(issue_of(error, table.where(index)))
            continue
        yield index, row


def _key_of(candidate: Candidate) -> str:
    return candidate.id or ""


def _light(row: PreferenceRow, config: DataConfig) -> tuple[PreferenceRow, dict[str, tuple[float, str]]]:
    """The row with a hash in place of its media, and the length behind each hash."""
    candidates, lengths = [], {}
    for number, candidate in enumerate(row.candidates):
        where = f"{row.source} candidate {number}"
        for media in ("image", "audio", "video"):
            value = getattr(candidate, media)
            if value is not None and media == "video":
                check_clip_files(value, where=where, max_bytes=config.video.max_bytes)
            elif value is not None:
                limits = config.audio if media == "audio" else config.images
                data = read_media(value, where=where, max_bytes=limits.max_bytes)
                candidate = replace(candidate, **cast("dict[str, Any]", {media: data}))
        key = candidate_key(candidate)
        lengths[key] = default_length(candidate)
        candidates.append(Candidate(id=key, reward=candidate.reward))
    return replace(row, candidates=tuple(candidates), extras={}), lengths


# ------------------------------------------------------------------------------------------------ features


def _feature_columns(table: RowTable, wanted: str | None) -> tuple[str, ...]:
    """Columns of features, the same in every source; () when there are none."""
    known = set.intersection(*(set(part.records.columns) for part in table.parts))
    if wanted is None:
        return next((names for names in _FEATURES if known.issuperset(names)), ())
    if wanted not in known:
        message = explain(
            "--features", got=wanted, expected="a column", do=f"Columns found: {', '.join(sorted(known))}."
        )
        raise ConfigError(message)
    return (wanted,)


def _feature_pair(
    table: RowTable, index: int, row: PreferenceRow, names: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Features of the chosen and of the rejected candidate."""
    part, local = table.locate(index)
    selection = part.selection
    given = [row.extras.get(name) for name in names]
    if len(names) == 1:
        listed = given[0] if isinstance(given[0], list) else []
        places = (0, 1)
        if selection.first is not None and selection.second is not None:
            places = (int(selection.first[local]), int(selection.second[local]))
        given = [listed[place] if place < len(listed) else None for place in places]
    vectors = [_vector(value) for value in given]
    if not vectors[0] or len(vectors[0]) != len(vectors[1]):
        message = explain(
            f"{row.source} {' and '.join(names)}",
            got=f"[{', '.join('nothing' if not vector else f'{len(vector)} numbers' for vector in vectors)}]",
            expected="a feature vector for each candidate, of one width",
        )
        raise FieldError(message, "bad_features", names[0])
    # A label for the second candidate turned the pair round when it was read; its columns did not turn.
    if table.is_turned(index):
        vectors.reverse()
    return vectors[0], vectors[1]


def _vector(value: object) -> list[float]:
    """A feature vector; [] when it is none."""
    if not isinstance(value, list | np.ndarray):
        return []
    return [float(number) for number in value] if all(isinstance(n, int | float) for n in value) else []


def _separate(
    found: AuditReport,
    rows: Sequence[PreferenceRow],
    vectors: Sequence[tuple[list[float], list[float]]],
    num_folds: int,
) -> None:
    places = [place for place, row in enumerate(rows) if row.preference != 0.5]
    widths = {len(vectors[place][0]) for place in places}
    if len(widths) > 1:
        found.notes.append(f"Separability was not computed: feature vectors of {len(widths)} widths.")
        return
    chosen, rejected = (
        torch.tensor([vectors[place][side] for place in places], dtype=torch.float64) for side in (0, 1)
    )
    try:
        found.separability = linear_separability(
            chosen, rejected, groups=[rows[place].prompt for place in places], num_folds=num_folds
        )
    except ConfigError as error:
        found.notes.append(f"Separability was not computed: {error}")


def _first_message(report: RowReport) -> str:
    return next(iter(report.examples.values()), [""])[0]

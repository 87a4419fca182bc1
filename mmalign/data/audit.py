"""`mmalign data audit`: would a model learn the preferences, or a shortcut? Numbers with intervals.

`check` asks whether rows can be read; `audit` asks what they say: lengths, ties, repetitions, contradictions,
score gaps, and whether features alone tell chosen from rejected.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.curation import (
    Consistency,
    LengthBias,
    ScoreGaps,
    candidate_key,
    consistency,
    default_length,
    length_bias,
    score_gaps,
)
from mmalign.data.media import read_media
from mmalign.data.motion_bias import MotionBias, motion_bias
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import FieldError, RowReport, issue_of
from mmalign.data.separability import Separability, linear_separability
from mmalign.data.video_facts import look_at_clip, stored_fps
from mmalign.data.video_stills import check_clip_files
from mmalign.errors import ConfigError, MissingExtraError, RowError, TrainingError, explain

__all__ = ["AuditReport", "audit", "print_audit", "write_json_audit"]

_FEATURES = (("features_chosen", "features_rejected"), ("features_a", "features_b"), ("features",))
"""Extra columns that hold feature vectors, one per candidate or a list of them."""

_FRAMES_FPS = 8.0
"""Of folders of frames whose rate nobody says: motion is then that of neighbouring frames."""


@dataclass
class AuditReport:
    """What `audit` found.

    Args:
        path: the data set.
        layout: what was recognised.
        read: rows read, kept and left out, by reason.
        consistency: ties, repetitions, contradictions.
        length: length bias; None when every pair is a tie.
        scores: score gaps; None without scores.
        separability: None without features.
        motion: of both sides of pairs of clips; None for other media.
        notes: what stands out, and what could not be computed, in sentences.
        ok: whether the share of bad rows is below the limit.
    """

    path: str
    layout: str
    read: RowReport
    consistency: Consistency
    length: LengthBias | None = None
    scores: ScoreGaps | None = None
    separability: Separability | None = None
    motion: MotionBias | None = None
    notes: list[str] = field(default_factory=list)
    ok: bool = True


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
    motions = _Motions(config)
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
    found.notes += _notes(found)
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


# ------------------------------------------------------------------------------------------------ motion


class _Motions:
    """How much the two sides of pairs of clips move; every clip is decoded once.

    Args:
        config: with limits of clips.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._known: dict[str, float] = {}
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def look(self, row: PreferenceRow, light: PreferenceRow, *, turned: bool) -> None:
        """Keep the motion of a decided pair.

        Args:
            row: as it was read.
            light: the same with hashes in place of media.
            turned: whether its columns belong to the candidates the other way round.

        Raises:
            RowError: a clip cannot be decoded.
        """
        clips = [candidate.video for candidate in row.candidates]
        if row.preference == 0.5 or len(clips) != 2 or None in clips or self.notes:
            return
        given = [row.extras.get(f"motion_{side}") for side in ("chosen", "rejected")]
        sides = [float(value) for value in given if isinstance(value, int | float)]
        if len(sides) == 2:
            sides = sides[::-1] if turned else sides
        else:
            try:
                sides = [
                    self._motion(row, number, _key_of(one)) for number, one in enumerate(light.candidates)
                ]
            except MissingExtraError as error:
                self.notes.append(f"How much clips move was not measured: {error}")
                return
        self.records.append({"prompt": row.prompt, "motion_chosen": sides[0], "motion_rejected": sides[1]})

    def _motion(self, row: PreferenceRow, number: int, key: str) -> float:
        clip = row.candidates[number].video
        if key not in self._known and clip is not None:
            limits = self._config.video
            fps = stored_fps(row) or limits.frames_fps or _FRAMES_FPS
            where = f"{row.source} candidate {number}"
            self._known[key] = look_at_clip(clip, where=where, limits=limits, stored_fps=fps).motion
        return self._known[key]


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


# ------------------------------------------------------------------------------------------------ report


def _first_message(report: RowReport) -> str:
    return next(iter(report.examples.values()), [""])[0]


def _notes(found: AuditReport) -> list[str]:
    """What a reader should not miss."""
    notes = []
    length, scores, same = found.length, found.scores, found.consistency
    if length is not None and length.biased:
        notes.append(
            f"The {length.rule} response is chosen in {length.length_only_accuracy:.1%} of pairs: a judge "
            "that only looks at length would be right that often. `mmalign methods` lists length-aware "
            "objectives."
        )
    if same.contradictory:
        notes.append(
            f"{same.contradictory} couples of responses are preferred both ways "
            f"({same.contradictory_pairs} pairs), for example {' and '.join(same.examples[0])}; one soft "
            "label says that better than opposite pairs."
        )
    if same.repeated:
        notes.append(f"{same.repeated} pairs repeat another one; they weigh double.")
    if scores is not None and scores.disagree.value > 0:
        notes.append(f"In {scores.disagree.value:.1%} of scored pairs the rejected response scores higher.")
    if found.separability is not None and found.separability.separable:
        notes.append(
            "Features alone tell chosen from rejected on unseen prompts, beyond the shuffled control: check "
            "that they see quality and not where a response came from."
        )
    if found.motion is not None:
        verdict = found.motion.verdict
        notes.append(f"{verdict[:1].upper()}{verdict[1:]}{'' if verdict.endswith('.') else '.'}")
    return notes


def _facts(found: AuditReport) -> list[tuple[str, str]]:
    """Name and value of everything worth a line."""
    same, length, scores, apart = found.consistency, found.length, found.scores, found.separability
    motion = found.motion
    lines = [
        ("recognised", found.layout),
        ("pairs", f"{same.pairs} of {same.prompts} prompts"),
        ("ties", str(same.ties)),
        ("repeated pairs", str(same.repeated)),
        ("contradictory", f"{same.contradictory} couples, {same.contradictory_pairs} pairs"),
        ("prompts with circles", str(same.cycles)),
        ("twice the same response", str(same.identical)),
        ("responses under several prompts", str(same.shared_candidates)),
    ]
    lines += [(f"bad: {reason}", str(count)) for reason, count in found.read.bad.most_common()]
    if length is not None:
        lines += [
            (
                f"length in {length.unit}",
                f"chosen {length.chosen_mean:.1f}, rejected {length.rejected_mean:.1f}, difference "
                f"{length.difference.describe(1)}",
            ),
            ("longer response chosen", f"{length.longer_wins.describe()}, equal {length.equal_share:.3f}"),
            ("accuracy of length alone", f"{length.length_only_accuracy:.3f} (choose the {length.rule})"),
        ]
    if scores is not None:
        shown = ", ".join(f"{value:.3g}" for value in scores.quantiles)
        lines += [
            ("score gap at 0, 10, 50, 90, 100 %", f"{shown} ({scores.scored} scored pairs)"),
            ("scores against the label", f"{scores.disagree.describe()}, equal {scores.equal:.3f}"),
        ]
    if motion is not None:
        lines += [
            (
                "motion, of 1 within 1/8 s",
                f"chosen {motion.chosen:.4f}, rejected {motion.rejected:.4f}, difference "
                f"{motion.difference.describe(4)}",
            ),
            ("livelier clip chosen", f"{motion.livelier.describe()} of {motion.pairs} pairs"),
        ]
    if apart is not None:
        lines += [
            (
                "separable by features, held out",
                f"{apart.accuracy.describe()} with {apart.num_features} features, {apart.num_folds} folds",
            ),
            ("the same with shuffled labels", apart.control.describe()),
            ("the same on what was fitted", f"{apart.training_accuracy:.3f}"),
        ]
    return lines


def print_audit(found: AuditReport) -> None:
    """Print the report as a table, notes last; numbers in brackets are 95 % intervals over prompts."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(found):
        table.add_row(escape(name), escape(value))
    console.print(table)
    for messages in found.read.examples.values():
        for message in messages:
            console.print(f"  [red]bad[/red] {escape(message)}", highlight=False)
    for line in found.notes:
        console.print(f"  [yellow]note[/yellow] {escape(line)}", highlight=False)


def write_json_audit(found: AuditReport) -> None:
    """Print the report as JSON."""
    read = found.read
    record: dict[str, Any] = {
        "path": found.path,
        "layout": found.layout,
        "ok": found.ok,
        "read": {"read": read.read, "kept": read.kept, "dropped": dict(read.dropped), "bad": dict(read.bad)},
        "consistency": asdict(found.consistency),
        "length": None if found.length is None else asdict(found.length) | {"biased": found.length.biased},
        "scores": None if found.scores is None else asdict(found.scores),
        "motion": None if found.motion is None else found.motion.as_dict(),
        "separability": None
        if found.separability is None
        else asdict(found.separability) | {"separable": found.separability.separable},
        "notes": found.notes,
    }
    print(json.dumps(record, indent=2, ensure_ascii=False))

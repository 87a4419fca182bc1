"""`mmalign data derive`: a data set made of another one by a rule: pairs of rankings, stages, conditions.

The result is a folder with `rows.jsonl`, the images the rows use (each stored once, named by its content) and
`card.yaml`, which says what it was made of and how. It is written aside and renamed.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from mmalign.batch import Candidate, DataKind, PreferenceRow
from mmalign.data import conditioning
from mmalign.data.audio_codecs import audio_ending
from mmalign.data.chains import ranked_chains
from mmalign.data.conditioning import Conditioned
from mmalign.data.config import DataConfig
from mmalign.data.crossing import Compared, cross_validation
from mmalign.data.curation import candidate_key, keep_lowest
from mmalign.data.curriculum import curriculum_stages
from mmalign.data.layouts import ALIASES
from mmalign.data.media import image_ending, read_media
from mmalign.data.pairing import Pairing, cap_per_prompt, make_pairs, turned
from mmalign.data.rarity import with_pair_weights
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import FieldError, RowReport, issue_of
from mmalign.data.video_stills import check_clip_files, clip_ending, copy_clip
from mmalign.errors import ConfigError, RowError, explain, unknown_name
from mmalign.files import atomic_directory

__all__ = ["DeriveSettings", "Derived", "How", "derive", "row_record", "stored_candidate", "write_rows"]

How = Literal[
    "all_pairs",
    "best_worst",
    "adjacent",
    "best_vs_rest",
    "curriculum",
    "reward_augmented",
    "directional",
    "few_shot",
    "keep_lowest",
    "ranked_chains",
    "cross_validation",
    "rarity",
]
"""The rules; the first four need rankings, `directional` too, the others take pairs or make pairs of them;
`ranked_chains` makes rankings of pairs."""


@dataclass(frozen=True)
class DeriveSettings:
    """The rule and its numbers; a rule reads those it needs.

    Args:
        how: the rule.
        pairs: how rankings become pairs where the rule needs pairs.
        min_gap: pairs of rankings with a smaller difference of scores are left out.
        max_per_prompt: pairs of one prompt that are kept, those with the widest gap first; None keeps all.
        stages: of the curriculum.
        scope: of the curriculum, see `curriculum_stages`.
        objectives: columns of rewards for `directional`.
        keep: what `directional` keeps, see there.
        scale: whether `directional` standardises objectives.
        directions: directions per list.
        max_angle: degrees between a direction and the first objective.
        user_column: column of the user for `few_shot`.
        shots: examples for `few_shot`.
        show: responses shown in an example.
        score_column: column that `keep_lowest` sorts by, for example CHES.
        share: part of the rows that `keep_lowest` keeps.
        max_length: images of a chain for `ranked_chains`.
        group_column: column of what contrasts for `cross_validation`.
        compare: what meets in `cross_validation`.
        exponent: of `rarity`; 0 weighs all pairs alike.
        bin_width: of `rarity`: scores nearer than this count as one.
        template: words around prompt and condition; None takes the rule's own.
        seed: of everything that is drawn.
    """

    how: How
    pairs: Pairing = "best_vs_rest"
    min_gap: float = 0.0
    max_per_prompt: int | None = None
    stages: int = 3
    scope: Literal["prompt", "dataset"] = "prompt"
    objectives: tuple[str, ...] = ()
    keep: Literal["best", "pairs"] = "best"
    scale: Literal["standard", "none"] = "standard"
    directions: int = 1
    max_angle: float = 45.0
    user_column: str = "user_id"
    shots: int = 4
    show: Literal["both", "chosen"] = "both"
    score_column: str = "ches"
    share: float = 0.5
    max_length: int = 8
    group_column: str = "contrast"
    compare: Compared = "both"
    exponent: float = 0.72
    bin_width: float = 0.01
    template: str | None = None
    seed: int = 0


@dataclass
class Derived:
    """What was written.

    Args:
        rows: rows written.
        kind: what they are.
        stages: rows of each stage of a curriculum.
        media: what the candidates are.
        dropped: rows the rule left out, by reason.
        read: what reading the source left out.
    """

    rows: int
    kind: DataKind
    media: str
    stages: tuple[int, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)
    read: RowReport = field(default_factory=RowReport)

    def summary(self, output: str | Path) -> str:
        """What was written and how to train on it, in a few lines."""
        lines = [f"{output}: {self.rows} {self.kind} from {self.read.kept} rows"]
        unread = self.read.dropped + self.read.bad
        for where, counts in (("when reading", unread), ("by the rule", self.dropped)):
            if counts:
                left = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
                lines.append(f"left out {where}: {left}")
        settings = [f"path: {output}"] + (["media: text"] if self.media == "text" else [])
        if self.stages:
            sizes = ", ".join(f"stage_{number} {size}" for number, size in enumerate(self.stages, 1))
            lines.append(f"rows per stage, easy first: {sizes}")
            settings.append("split: stage_1")
        lines.append(f"train on it with data.source: {{{', '.join(settings)}}}")
        return "\n".join(lines)


def derive(
    config: DataConfig, output: str | Path, settings: DeriveSettings, *, force: bool = False
) -> Derived:
    """Write a data set derived from another one.

    Rows that cannot be read are counted and left out. Deterministic: the same data and settings give the same
    files.

    Args:
        config: what to read; rankings are read as lists, whatever `lists` says.
        output: folder to write; it appears when it is complete.
        settings: the rule.
        force: replace what is there.

    Returns:
        Numbers about what was written.

    Raises:
        ConfigError: `output` exists, settings out of range, media of several kinds, or
            nothing is left.
        RowError: a row lacks what the rule needs (scores, rewards, texts).
        TrainingError: more broken rows than `max_bad_share` allows; nothing is written.
        CheckpointError: the disk refused.
    """
    if settings.how not in get_args(How):
        raise unknown_name("rule", settings.how, get_args(How))
    output = Path(output)
    if output.exists() and not force:
        message = f"{output}: exists. Give another name, or --force to replace it."
        raise ConfigError(message)
    sources = tuple(source.model_copy(update={"lists": "keep"}) for source in config.all_sources)
    table = open_rows(config.model_copy(update={"source": None, "sources": sources}))
    table.refuse_dialogues("data derive")
    media = table.media
    if not media <= {"image", "text", "audio", "video"} or len(media) > 1:
        expected = "images alone, sounds alone, clips alone or texts alone"
        raise ConfigError(explain("data derive media", got=", ".join(sorted(media)), expected=expected))
    with atomic_directory(output) as folder:
        rows, report = _read(table, config, folder)
        report.check(config.max_bad_share)
        found = _RULES.get(settings.how, _pair_rule)(rows, settings)
        if not found.rows:
            left = ", ".join(f"{count} {reason}" for reason, count in found.dropped.most_common())
            message = (
                f"data derive: no rows are left of {len(rows)} {table.kind} ({settings.how}; left out: "
                f"{left or 'everything'}). Loosen the rule; nothing was written."
            )
            raise ConfigError(message)
        write_rows(folder, found.rows)
        stages = Counter(row.extras["split"] for row in found.rows if settings.how == "curriculum")
        derived = Derived(
            rows=len(found.rows),
            kind=found.rows[0].kind,
            media=next(iter(media)),
            stages=tuple(stages.values()),
            dropped=found.dropped,
            read=report,
        )
        _write_card(folder, config, settings, derived)
    return derived


# ------------------------------------------------------------------------------------------------ reading


def _read(table: RowTable, config: DataConfig, folder: Path) -> tuple[list[PreferenceRow], RowReport]:
    """All usable rows; files go to the folder at once, so that memory holds only their names."""
    report = RowReport(
        read=table.report.read - table.report.kept,
        dropped=table.report.dropped.copy(),
        bad=table.report.bad.copy(),
        examples={reason: list(messages) for reason, messages in table.report.examples.items()},
    )
    rows = []
    for index in range(len(table)):
        try:
            row = table[index]
            candidates = tuple(
                stored_candidate(candidate, f"{row.source} candidate {number}", config, folder)
                for number, candidate in enumerate(row.candidates)
            )
            images = tuple(
                stored_candidate(Candidate(image=image), f"{row.source} image", config, folder).image or b""
                for image in row.images
            )
        except RowError as error:
            report.add_bad(issue_of(error, table.where(index)))
            continue
        report.add_kept()
        extras = turned(row.extras) if table.is_turned(index) else row.extras
        rows.append(replace(row, candidates=candidates, images=images, extras=extras))
    return rows, report


def stored_candidate(candidate: Candidate, where: str, config: DataConfig, folder: Path) -> Candidate:
    """The candidate with its file in the folder and the path in place of the bytes.

    Args:
        candidate: with a path, or encoded bytes.
        where: file, row and candidate, for messages.
        config: with the limits of media.
        folder: of the data set that is written.

    Raises:
        RowError: the file cannot be read.
    """
    if candidate.video is not None:
        return replace(candidate, video=_put_clip(folder, candidate.video, where, config.video.max_bytes))
    if candidate.audio is not None:
        sound = read_media(candidate.audio, where=where, max_bytes=config.audio.max_bytes, kind="audio")
        name = f"audio/{candidate_key(Candidate(audio=sound))}{audio_ending(sound)}"
        return replace(candidate, audio=_put(folder, name, sound))
    if candidate.image is None:
        return candidate
    data = read_media(candidate.image, where=where, max_bytes=config.images.max_bytes)
    name = f"images/{candidate_key(Candidate(image=data))}{image_ending(data)}"
    return replace(candidate, image=_put(folder, name, data))


def _put(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return name


def _put_clip(folder: Path, clip: bytes | str, where: str, max_bytes: int) -> str:
    """Copy a clip's file, or its folder of frames, without holding it in memory."""
    check_clip_files(clip, where=where, max_bytes=max_bytes)
    name = f"videos/{candidate_key(Candidate(video=clip))}{clip_ending(clip)}"
    if not (folder / name).exists():
        (folder / "videos").mkdir(exist_ok=True)
        copy_clip(clip, folder / name)
    return name


# ------------------------------------------------------------------------------------------------ rules


def _as_pairs(rows: Sequence[PreferenceRow], settings: DeriveSettings, how: Pairing) -> Conditioned:
    """Pairs of rankings; rows that are pairs already stay."""
    found = Conditioned()
    for row in rows:
        pairs = make_pairs(row, how=how, min_gap=settings.min_gap) if row.kind == "lists" else [row]
        found.dropped["no_gap"] += not pairs
        found.rows += pairs
    found.dropped += Counter()  # forgets a reason that never occurred
    return _capped(found, settings)


def _capped(found: Conditioned, settings: DeriveSettings) -> Conditioned:
    if settings.max_per_prompt is not None:
        kept = cap_per_prompt(found.rows, settings.max_per_prompt, seed=settings.seed)
        if len(kept) < len(found.rows):
            found.dropped["over_max_per_prompt"] += len(found.rows) - len(kept)
        found.rows = kept
    return found


def _pair_rule(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    """all_pairs, best_worst, adjacent, best_vs_rest: of rankings only."""
    how = settings.how
    if rows and rows[0].kind != "lists":
        message = explain(
            f"data derive --how {how}",
            got=f"{rows[0].kind} rows",
            expected="rankings (lists)",
            do="Give candidates with ranks or scores; pairs are pairs already.",
        )
        raise ConfigError(message)
    if how not in get_args(Pairing):
        raise unknown_name("rule for pairs", how, get_args(Pairing))
    return _as_pairs(rows, settings, how)  # type: ignore[arg-type]


def _curriculum(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    found = _as_pairs(rows, settings, settings.pairs)
    if not found.rows:
        return found
    stages = curriculum_stages(found.rows, num_stages=settings.stages, scope=settings.scope)
    found.rows = [
        replace(row, extras={**row.extras, "split": f"stage_{number}"})
        for number, stage in enumerate(stages, 1)
        for row in stage
    ]
    return found


def _reward_augmented(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    pairs = _as_pairs(rows, settings, settings.pairs)
    template = settings.template or conditioning.GOAL_TEMPLATE
    return _after(pairs, conditioning.reward_augmented(pairs.rows, template=template))


def _directional(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    return conditioning.directional(
        rows,
        objectives=settings.objectives,
        keep=settings.keep,
        scale=settings.scale,
        per_row=settings.directions,
        max_angle=settings.max_angle,
        template=settings.template or conditioning.DIRECTION_TEMPLATE,
        seed=settings.seed,
    )


def _few_shot(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    pairs = _as_pairs(rows, settings, settings.pairs)
    if pairs.rows and not any(settings.user_column in row.extras for row in pairs.rows):
        known = ", ".join(sorted(pairs.rows[0].extras)) or "none"
        message = explain(
            "--user-column",
            got=settings.user_column,
            expected="a column of the data set that tells users apart",
            do=f"Extra columns found: {known}.",
        )
        raise ConfigError(message)
    found = conditioning.few_shot(
        pairs.rows,
        user_column=settings.user_column,
        num_shots=settings.shots,
        show=settings.show,
        template=settings.template or conditioning.EXAMPLES_TEMPLATE,
        seed=settings.seed,
    )
    return _after(pairs, found)


def _keep_lowest(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    scores = []
    for row in rows:
        value = row.extras.get(settings.score_column)
        if isinstance(value, bool) or not isinstance(value, int | float):
            message = explain(
                f"{row.source} {settings.score_column}",
                got=value,
                expected="a number",
                do=f"Extra columns: {', '.join(sorted(row.extras)) or 'none'}; --score-column names one.",
            )
            raise FieldError(message, "missing_score", settings.score_column)
        scores.append(float(value))
    kept = keep_lowest(scores, settings.share) if scores else []
    found = Conditioned(rows=[rows[number] for number in kept])
    if len(kept) < len(rows):
        found.dropped["high_score"] = len(rows) - len(kept)
    return found


def _ranked_chains(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    return ranked_chains(rows, max_length=settings.max_length)


def _cross_validation(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    return cross_validation(rows, group_column=settings.group_column, compare=settings.compare)


def _rarity(rows: Sequence[PreferenceRow], settings: DeriveSettings) -> Conditioned:
    pairs = _as_pairs(rows, settings, settings.pairs)
    pairs.rows = with_pair_weights(pairs.rows, exponent=settings.exponent, width=settings.bin_width)
    return pairs


def _after(before: Conditioned, found: Conditioned) -> Conditioned:
    """The second step's rows with the reasons of both."""
    found.dropped = before.dropped + found.dropped
    return found


_RULES: Mapping[str, Callable[[Sequence[PreferenceRow], DeriveSettings], Conditioned]] = {
    "curriculum": _curriculum,
    "reward_augmented": _reward_augmented,
    "directional": _directional,
    "few_shot": _few_shot,
    "keep_lowest": _keep_lowest,
    "ranked_chains": _ranked_chains,
    "cross_validation": _cross_validation,
    "rarity": _rarity,
}


# ------------------------------------------------------------------------------------------------ writing


def write_rows(folder: Path, rows: Sequence[PreferenceRow]) -> None:
    """rows.jsonl, without the files that no row uses any more."""
    used: set[str] = set()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            files = [file for one in row.candidates for file in (one.image, one.audio, one.video)]
            files += row.images
            used.update(file for file in files if isinstance(file, str))
            file.write(json.dumps(row_record(row), ensure_ascii=False) + "\n")
    for path in (*folder.glob("images/*"), *folder.glob("audio/*"), *folder.glob("videos/*")):
        if f"{path.parent.name}/{path.name}" in used:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


_NAMES = frozenset(name for names in ALIASES.values() for name in names)


def row_record(row: PreferenceRow) -> dict[str, Any]:
    """A row as the readers understand it; extra columns that would be mistaken for others are renamed."""
    contents = [
        candidate.text or candidate.image or candidate.audio or candidate.video
        for candidate in row.candidates
    ]
    rewards = [candidate.reward for candidate in row.candidates]
    record: dict[str, Any] = {"id": row.id, "prompt": row.prompt}
    if row.kind == "pairs":
        record |= {"chosen": contents[0], "rejected": contents[1], "preference": row.preference}
        if None not in rewards:
            record |= {"score_chosen": rewards[0], "score_rejected": rewards[1]}
        own = [candidate.prompt for candidate in row.candidates]
        if own != [None, None]:
            first, second = (row.prompt if prompt is None else prompt for prompt in own)
            record |= {"prompt_chosen": first, "prompt_rejected": second}
        models = [candidate.model for candidate in row.candidates]
        if None not in models:
            record |= {"model_chosen": models[0], "model_rejected": models[1]}
    elif row.kind == "lists":
        record |= {"candidates": contents, "scores": list(row.relevance or ())}
    else:
        # Its score is no column of its own name: with one, the row would read as a ranked candidate.
        record |= {"completion": contents[0], "label": bool(row.desirable), "source_score": rewards[0]}
    if row.weight != 1.0:
        record["weight"] = row.weight
    if row.images:
        record["image"] = row.images[0]
    for name, value in row.extras.items():
        if not _is_plain(value):
            continue
        kept = name if name == "split" or name.lower() not in _NAMES else f"source_{name}"
        record.setdefault(kept, value)
    return record


def _is_plain(value: object) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    return value is None or isinstance(value, str | int | float | bool)


def _write_card(folder: Path, config: DataConfig, settings: DeriveSettings, derived: Derived) -> None:
    card = {
        "made_by": "mmalign data derive",
        "sources": [source.path for source in config.all_sources],
        "settings": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(settings).items()
        },
        "rows_read": derived.read.kept,
        "rows_written": derived.rows,
        "kind": derived.kind,
        "stages": list(derived.stages),
        "left_out_by_the_rule": dict(derived.dropped),
        "left_out_when_reading": {**derived.read.dropped, **derived.read.bad},
    }
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    (folder / "card.yaml").write_text(text, encoding="utf-8")

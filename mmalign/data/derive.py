"""`mmalign data derive`: a data set made of another one by a rule: pairs of rankings, stages, conditions.

The result is a folder with `rows.jsonl`, the images the rows use (each stored once, named by its content) and
`card.yaml`, which says what it was made of and how. It is written aside and renamed.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

import yaml

from mmalign.batch import Candidate, DataKind, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.deriving_rules import DeriveSettings, How, apply_rule
from mmalign.data.pairing import turned
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import RowReport, issue_of
from mmalign.data.stored_rows import stored_candidate, write_rows
from mmalign.errors import ConfigError, RowError, explain, unknown_name
from mmalign.files import atomic_directory

__all__ = ["DeriveSettings", "Derived", "How", "derive"]


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
        found = apply_rule(rows, settings)
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

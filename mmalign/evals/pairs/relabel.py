"""`mmalign data relabel`: rows that exist get labels, soft labels and weights from rewards.

Old labels stay in columns of their own, and how far the new ones agree with them is reported. Scores are kept
in a store, so that a run that was killed goes on; the output appears when it is complete.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import yaml

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.media import read_media, safe_path
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import RowReport, issue_of
from mmalign.data.statistics import Estimate
from mmalign.data.stored_rows import stored_candidate, write_rows
from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.pairs.plan import WeightConfig
from mmalign.evals.pairs.relabelling import (
    RelabelSettings,
    ScoredRow,
    agreement,
    best_share,
    combined,
    relabelled,
    weighed,
)
from mmalign.evals.pairs.scores import ScoreBook, entry_of
from mmalign.files import atomic_directory
from mmalign.rewards.base import Reward
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.sample import Sample

__all__ = ["RelabelSettings", "Relabelled", "relabel"]

_ROWS = 128
"""Rows whose media are in memory at once."""


@dataclass
class Relabelled:
    """What was written.

    Args:
        rows: rows written.
        kind: what they are.
        fresh: scores that were computed now.
        agreement: share of the old labels the new ones agree with; None where nothing can be compared.
        by_reward: the same for each reward alone.
        left_out: rows left out, by reason.
        read: what reading the source found.
    """

    rows: int
    kind: str
    fresh: int
    agreement: Estimate | None
    by_reward: dict[str, Estimate | None]
    left_out: Counter[str]
    read: RowReport

    def summary(self, output: str | Path) -> str:
        """What was written, in a few lines."""
        lines = [f"{output}: {self.rows} {self.kind} of {self.read.kept} rows, {self.fresh} scores are new"]
        if self.left_out:
            shown = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
            lines.append(f"left out: {shown}")
        named = {"new labels": self.agreement}
        named |= self.by_reward if len(self.by_reward) > 1 else {}
        for name, found in named.items():
            lines.append(f"agreement of {name} with the old ones: {_shown(found)}")
        return "\n".join(lines)


def _shown(found: Estimate | None) -> str:
    return "nothing to compare" if found is None else found.describe()


def relabel(
    config: DataConfig,
    output: str | Path,
    rewards: Mapping[str, Reward],
    settings: RelabelSettings,
    *,
    store: Path,
    batch_size: int = 16,
    force: bool = False,
) -> Relabelled:
    """Write a data set with labels made by rewards.

    A candidate's score is its value by the only reward, or the mean over rewards of its z-score among all
    candidates of the data set. Pairs get `preference`, lists relevances, unpaired rows thumbs. Beside them
    stand the values of each reward and the old labels (old_preference is the old probability that the side
    now chosen is preferred).

    Args:
        config: what to read.
        output: folder to write: rows.jsonl, images/ or audio/, card.yaml.
        rewards: by title.
        settings: how scores become labels.
        store: folder of scores, shared with `mmalign eval` and `mmalign pairs`.
        batch_size: of the rewards.
        force: replace what is there.

    Raises:
        ConfigError: `output` exists, settings do not fit the rows, or nothing is left.
        TrainingError: more broken rows than `max_bad_share` allows.
        CheckpointError: the disk refused.
    """
    output = Path(output)
    if output.exists() and not force:
        message = f"{output}: exists. Give another name, or --force to replace it."
        raise ConfigError(message)
    table = open_rows(config)
    table.refuse_dialogues("data relabel")
    _check(settings, table.kind, config, rewards)
    books = {title: ScoreBook(reward, store, batch_size=batch_size) for title, reward in rewards.items()}
    with atomic_directory(output) as folder:
        report = RowReport(read=table.report.read - table.report.kept, dropped=table.report.dropped.copy())
        report.bad.update(table.report.bad)
        left_out: Counter[str] = Counter()
        found = list(_scored(table, config, books, folder, report, left_out))
        report.check(config.max_bad_share)
        found = combined(found)
        rows = [new for entry in found for new in relabelled(entry, list(rewards), settings, left_out)]
        kept = best_share(rows, settings, left_out)
        if not kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
            message = f"data relabel: no rows are left of {len(table)} ({reasons}); nothing was written."
            raise ConfigError(message)
        write_rows(folder, weighed(kept, settings, next(iter(rewards))))
        result = Relabelled(
            rows=len(kept),
            kind=table.kind,
            fresh=sum(book.fresh for book in books.values()),
            agreement=agreement(found, [entry.score for entry in found], settings),
            by_reward={
                title: agreement(found, [tuple(e.values[:, n].tolist()) for e in found], settings)
                for n, title in enumerate(rewards)
            },
            left_out=left_out,
            read=report,
        )
        _write_card(folder, config, rewards, settings, result)
    return result


def _check(settings: RelabelSettings, kind: str, config: DataConfig, rewards: Mapping[str, Reward]) -> None:
    media = {source.media for source in config.all_sources}
    if not rewards:
        raise ConfigError(explain("data relabel --reward", got="none", expected="at least one reward"))
    if not media <= {"image", "text", "audio"}:
        expected = "images, texts or sounds"
        raise ConfigError(explain("data relabel media", got=", ".join(sorted(media)), expected=expected))
    for title, reward in rewards.items():
        # A function of the user's says nothing of what it takes.
        if isinstance(reward, FunctionReward) or (reward.card.modality == "audio") == ("audio" in media):
            continue
        message = explain(
            f"data relabel --reward {title}",
            got=f"a reward of {reward.card.modality}",
            expected=f"one of {'sounds' if 'audio' in media else 'images or texts'}, as the rows have",
            do="`mmalign rewards` lists them.",
        )
        raise ConfigError(message)
    if kind == "unpaired" and settings.threshold is None and settings.keep_share is None:
        do = "Or --keep-share, to keep the best rows with their old labels."
        raise ConfigError(
            explain("data relabel --threshold", got=None, expected="a number for unpaired rows", do=do)
        )
    if not settings.scale > 0 or not settings.logit_scale > 0:
        got = f"[scale {settings.scale:g}, logit scale {settings.logit_scale:g}]"
        raise ConfigError(explain("data relabel", got=got, expected="numbers > 0"))


# ------------------------------------------------------------------------------------------------ scoring


def _scored(
    table: RowTable,
    config: DataConfig,
    books: Mapping[str, ScoreBook],
    folder: Path,
    report: RowReport,
    left_out: Counter[str],
) -> Iterator[ScoredRow]:
    """Rows that every reward could score; their pictures and sounds go to the folder."""
    for numbers in _chunks(len(table)):
        rows: list[PreferenceRow] = []
        samples: list[Sample] = []
        for number in numbers:
            try:
                row = _with_bytes(table[number], config)
                found = _samples(row, table.locate(number)[0].records.root)
            except RowError as error:
                report.add_bad(issue_of(error, table.where(number)))
                continue
            report.add_kept()
            rows.append(row)
            samples += found
        entries = [entry_of(sample) for sample in samples]
        columns = [
            [value if book.reward.card.higher_is_better else -value for value in book.score(entries)]
            for book in books.values()
        ]
        values = torch.tensor(columns, dtype=torch.float64).T
        start = 0
        for row in rows:
            own = values[start : start + len(row.candidates)]
            start += len(row.candidates)
            if not bool(torch.isfinite(own).all()):
                left_out["not scored by every reward"] += 1
                continue
            kept = tuple(stored_candidate(one, row.source, config, folder) for one in row.candidates)
            yield ScoredRow(replace(row, candidates=kept), own)


def _chunks(count: int) -> Iterator[range]:
    return (range(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def _with_bytes(row: PreferenceRow, config: DataConfig) -> PreferenceRow:
    """The row with encoded pictures or sounds in place of their paths."""

    def loaded(candidate: Candidate, where: str) -> Candidate:
        if candidate.audio is not None:
            limit = config.audio.max_bytes
            sound = read_media(candidate.audio, where=where, max_bytes=limit, kind="audio")
            return replace(candidate, audio=sound)
        if candidate.image is None:
            return candidate
        limit = config.images.max_bytes
        return replace(candidate, image=read_media(candidate.image, where=where, max_bytes=limit))

    candidates = (
        loaded(candidate, f"{row.source} candidate {number}")
        for number, candidate in enumerate(row.candidates)
    )
    return replace(row, candidates=tuple(candidates))


def _samples(row: PreferenceRow, root: Path) -> list[Sample]:
    """What rewards are given: a picture or sound, or an answer with the picture its question is about.

    Raises:
        RowError: the path of that picture leads out of the data set's folder.
    """
    asked = row.extras.get("image")
    about = safe_path(asked, root=root, where=f"{row.source} image") if isinstance(asked, str) else None
    return [
        Sample(
            prompt=row.prompt if candidate.prompt is None else candidate.prompt,
            image=candidate.image if candidate.text is None else about,
            text=candidate.text,
            audio=candidate.audio,
            extras=row.extras,
            id=f"{row.id}/{number}",
        )
        for number, candidate in enumerate(row.candidates)
    ]


# ------------------------------------------------------------------------------------------------ writing


def _write_card(
    folder: Path,
    config: DataConfig,
    rewards: Mapping[str, Reward],
    settings: RelabelSettings,
    result: Relabelled,
) -> None:
    chosen = asdict(replace(settings, weight=WeightConfig()))
    card = {
        "made_by": "mmalign data relabel",
        "sources": [source.path for source in config.all_sources],
        "rewards": [
            {
                "title": title,
                "name": reward.card.name,
                "scale": reward.card.scale,
                "licence": reward.card.licence,
                "fingerprint": reward.fingerprint(),
            }
            for title, reward in rewards.items()
        ],
        "settings": {**chosen, "weight": settings.weight.model_dump(mode="json")},
        "rows_read": result.read.kept,
        "rows_written": result.rows,
        "kind": result.kind,
        "left_out": dict(result.left_out),
        "left_out_when_reading": {**result.read.dropped, **result.read.bad},
        "agreement_with_old_labels": _shown(result.agreement),
    }
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    (folder / "card.yaml").write_text(text, encoding="utf-8")

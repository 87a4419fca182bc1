"""`mmalign data relabel`: rows that exist get labels, soft labels and weights from rewards.

Old labels stay in columns of their own, and how far the new ones agree with them is reported. Scores are kept
in a store, so that a run that was killed goes on; the output appears when it is complete.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.curation import candidate_key, keep_lowest
from mmalign.data.derive import row_record
from mmalign.data.media import image_ending, read_media
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import RowReport, issue_of
from mmalign.data.statistics import Estimate, share_of
from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.pairs import labels
from mmalign.evals.pairs.plan import WeightConfig
from mmalign.evals.pairs.scores import ScoreBook, entry_of
from mmalign.files import atomic_directory
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample

__all__ = ["RelabelSettings", "Relabelled", "relabel"]

_ROWS = 128
"""Rows whose media are in memory at once."""


@dataclass(frozen=True)
class RelabelSettings:
    """How rewards become labels.

    Args:
        label: of pairs. sign: the higher score wins; votes: share of the rewards that agree; sigmoid:
            1 / (1 + e^(-scale * gap)); smpo: softmax of min-max normalised PickScore cosines.
        scale: sigmoid: > 0, per unit of the score.
        logit_scale: smpo: exp(logit scale) the PickScores are divided by; 1 if they are cosines.
        ties: drop leaves rows out whose new label has no side, soft keeps them at 0.5.
        threshold: unpaired rows are liked from this score on.
        weight: of pairs, from the first reward's scores (`reward` there is not read); column `weight`.
        keep_share: keep this part of the rows, those with the highest score of their best candidate.
    """

    label: Literal["sign", "votes", "sigmoid", "smpo"] = "sign"
    scale: float = 1.0
    logit_scale: float = 100.0
    ties: Literal["drop", "soft"] = "drop"
    threshold: float | None = None
    weight: WeightConfig = field(default_factory=WeightConfig)
    keep_share: float | None = None


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


@dataclass(frozen=True)
class _Scored:
    """A row without its media.

    Args:
        row: candidates hold texts, or names of pictures in the output.
        values: [candidate, reward], higher is better.
        score: one number per candidate.
    """

    row: PreferenceRow
    values: torch.Tensor
    score: tuple[float, ...] = ()


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
        output: folder to write: rows.jsonl, images/, card.yaml.
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
    _check(settings, table.kind, config, rewards)
    books = {title: ScoreBook(reward, store, batch_size=batch_size) for title, reward in rewards.items()}
    with atomic_directory(output) as folder:
        report = RowReport(read=table.report.read - table.report.kept, dropped=table.report.dropped.copy())
        report.bad.update(table.report.bad)
        left_out: Counter[str] = Counter()
        found = list(_scored(table, config, books, folder, report, left_out))
        report.check(config.max_bad_share)
        found = _combined(found)
        rows = [new for entry in found for new in _relabelled(entry, list(rewards), settings, left_out)]
        kept = _kept(rows, settings, left_out)
        if not kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
            message = f"data relabel: no rows are left of {len(table)} ({reasons}); nothing was written."
            raise ConfigError(message)
        _write(folder, _weighed(kept, settings, next(iter(rewards))))
        result = Relabelled(
            rows=len(kept),
            kind=table.kind,
            fresh=sum(book.fresh for book in books.values()),
            agreement=_agreement(found, [entry.score for entry in found], settings),
            by_reward={
                title: _agreement(found, [tuple(e.values[:, n].tolist()) for e in found], settings)
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
    if not media <= {"image", "text"}:
        message = explain("data relabel media", got=", ".join(sorted(media)), expected="images or texts")
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
) -> Iterator[_Scored]:
    """Rows that every reward could score; their pictures go to the folder."""
    for numbers in _chunks(len(table)):
        rows: list[PreferenceRow] = []
        samples: list[Sample] = []
        for number in numbers:
            try:
                row = _with_bytes(table[number], config)
            except RowError as error:
                report.add_bad(issue_of(error, table.where(number)))
                continue
            report.add_kept()
            rows.append(row)
            samples += _samples(row)
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
            yield _Scored(_stored(row, folder), own)


def _chunks(count: int) -> Iterator[range]:
    return (range(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def _with_bytes(row: PreferenceRow, config: DataConfig) -> PreferenceRow:
    """The row with encoded pictures in place of their paths."""
    candidates = tuple(
        candidate
        if candidate.image is None
        else replace(
            candidate,
            image=read_media(
                candidate.image, where=f"{row.source} candidate {number}", max_bytes=config.images.max_bytes
            ),
        )
        for number, candidate in enumerate(row.candidates)
    )
    return replace(row, candidates=candidates)


def _samples(row: PreferenceRow) -> list[Sample]:
    return [
        Sample(
            prompt=row.prompt,
            image=candidate.image,
            text=candidate.text,
            extras=row.extras,
            id=f"{row.id}/{number}",
        )
        for number, candidate in enumerate(row.candidates)
    ]


def _stored(row: PreferenceRow, folder: Path) -> PreferenceRow:
    candidates = []
    for candidate in row.candidates:
        data = candidate.image
        if isinstance(data, bytes):
            name = f"images/{candidate_key(Candidate(image=data))}{image_ending(data)}"
            path = folder / name
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            candidate = replace(candidate, image=name)
        candidates.append(candidate)
    return replace(row, candidates=tuple(candidates))


def _combined(found: Sequence[_Scored]) -> list[_Scored]:
    """One score per candidate: of the only reward, or the mean z-score over the data set."""
    if not found:
        return []
    everything = torch.cat([entry.values for entry in found])
    if everything.shape[1] == 1:
        scores = everything[:, 0]
    else:
        spread = everything.std(dim=0, correction=0)
        centred = everything - everything.mean(dim=0)
        scores = (centred / torch.where(spread > 0, spread, 1.0)).mean(dim=1)
    parts = scores.split([len(entry.values) for entry in found])
    return [replace(entry, score=tuple(part.tolist())) for entry, part in zip(found, parts, strict=True)]


# ------------------------------------------------------------------------------------------------ labels


def _chance(entry: _Scored, settings: RelabelSettings) -> float:
    """Probability that the first candidate of a pair is preferred."""
    gap = entry.score[0] - entry.score[1]
    if settings.label == "votes":
        return float(labels.reward_votes(entry.values[:1], entry.values[1:])[0])
    if settings.label == "sigmoid":
        return float(torch.sigmoid(torch.tensor(settings.scale * gap, dtype=torch.float64)))
    if settings.label == "smpo":
        cosines = entry.values[:, 0].unsqueeze(0) / settings.logit_scale
        likelier = float(labels.smoothed_preference(cosines)[0])
        return likelier if cosines[0, 0] >= cosines[0, 1] else 1.0 - likelier
    return 0.5 if gap == 0 else float(gap > 0)


def _relabelled(
    entry: _Scored, titles: Sequence[str], settings: RelabelSettings, left_out: Counter[str]
) -> Iterator[PreferenceRow]:
    """The row with its new label, old ones beside it; none where the label has no side."""
    row = entry.row
    candidates = tuple(
        replace(candidate, reward=score) for candidate, score in zip(row.candidates, entry.score, strict=True)
    )
    values = [dict(zip(titles, line, strict=True)) for line in entry.values.tolist()]
    extras: dict[str, Any] = {**row.extras, "old_weight": row.weight}
    old = [candidate.reward for candidate in row.candidates]
    if row.kind == "lists":
        extras |= {"old_scores": list(row.relevance or ()), "reward_values": values}
        yield replace(row, candidates=candidates, relevance=entry.score, extras=extras)
        return
    if row.kind == "unpaired":
        liked = row.desirable if settings.threshold is None else entry.score[0] >= settings.threshold
        extras |= {"old_label": row.desirable, "old_score": old[0], "reward_values": values[0]}
        yield replace(row, candidates=candidates, desirable=liked, extras=extras)
        return
    chance = _chance(entry, settings)
    if chance == 0.5 and settings.ties == "drop":
        left_out["tie of the new label"] += 1
        return
    first, second = (0, 1) if chance >= 0.5 else (1, 0)
    extras |= {
        "old_preference": row.preference if first == 0 else 1.0 - row.preference,
        "old_score_chosen": old[first],
        "old_score_rejected": old[second],
        "rewards_chosen": values[first],
        "rewards_rejected": values[second],
    }
    yield replace(
        row,
        candidates=(candidates[first], candidates[second]),
        preference=max(chance, 1.0 - chance),
        extras=extras,
    )


def _weighed(rows: Sequence[PreferenceRow], settings: RelabelSettings, first: str) -> list[PreferenceRow]:
    """Pairs with weights by their gap in the first reward."""
    chosen = settings.weight
    if chosen.how == "none" or rows[0].kind != "pairs":
        return list(rows)
    sides = torch.tensor(
        [[row.extras[name][first] for name in ("rewards_chosen", "rewards_rejected")] for row in rows],
        dtype=torch.float64,
    )
    winner, loser = sides[:, 0], sides[:, 1]
    if chosen.how == "gap":
        weights = labels.gap_weight(winner, loser, base=chosen.base, scale=chosen.scale)
    elif chosen.how == "duplication":
        common = labels.probability_of_gaps(winner - loser, chosen.bin_width)
        weights = labels.duplication_factor(common, beta=chosen.beta, constant=chosen.constant)
    else:
        weights = labels.rarity_weight(winner, loser, alpha=chosen.alpha, bin_width=chosen.bin_width)
    weights = weights / weights.mean() if chosen.mean_one and float(weights.mean()) > 0 else weights
    return [replace(row, weight=float(weight)) for row, weight in zip(rows, weights, strict=True)]


def _kept(
    rows: Sequence[PreferenceRow], settings: RelabelSettings, left_out: Counter[str]
) -> list[PreferenceRow]:
    """The best share of the rows, in their order.

    Source: instruction data filtered by trained rewards, Align2LLaVA (arXiv 2409.18541: about 9 % are kept).
    """
    if settings.keep_share is None or not rows:
        return list(rows)
    best = [max(candidate.reward or 0.0 for candidate in row.candidates) for row in rows]
    kept = keep_lowest([-score for score in best], settings.keep_share)
    left_out["below the best share"] += len(rows) - len(kept)
    return [rows[number] for number in kept]


# ------------------------------------------------------------------------------------------------ agreement


def _agreement(
    found: Sequence[_Scored], scores: Sequence[Sequence[float]], settings: RelabelSettings
) -> Estimate | None:
    """Share of old decisions that the scores repeat: pairs of a row where both have a side."""
    values: list[float] = []
    prompts: list[str] = []
    for entry, score in zip(found, scores, strict=True):
        for agrees in _decisions(entry.row, score, settings):
            values.append(float(agrees))
            prompts.append(entry.row.prompt)
    return share_of(values, prompts) if values else None


def _decisions(row: PreferenceRow, score: Sequence[float], settings: RelabelSettings) -> Iterator[bool]:
    if row.kind == "unpaired":
        if settings.threshold is not None and row.desirable is not None:
            yield (score[0] >= settings.threshold) == row.desirable
        return
    old = list(row.relevance or ()) if row.kind == "lists" else [row.preference, 1.0 - row.preference]
    for i, j in itertools.combinations(range(len(score)), 2):
        if old[i] != old[j] and score[i] != score[j]:
            yield (old[i] > old[j]) == (score[i] > score[j])


# ------------------------------------------------------------------------------------------------ writing


def _write(folder: Path, rows: Sequence[PreferenceRow]) -> None:
    used: set[str] = set()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            used.update(str(candidate.image) for candidate in row.candidates if candidate.image is not None)
            file.write(json.dumps(row_record(row), ensure_ascii=False) + "\n")
    for path in folder.glob("images/*"):
        if f"images/{path.name}" not in used:
            path.unlink()


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

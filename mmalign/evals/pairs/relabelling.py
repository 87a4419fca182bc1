"""What rewards make of rows: scores of candidates, labels, weights, a filter, agreement with old labels."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.data.curation import keep_lowest
from mmalign.data.statistics import Estimate, share_of
from mmalign.evals.pairs import labels
from mmalign.evals.pairs.plan import WeightConfig

__all__ = ["RelabelSettings", "ScoredRow", "agreement", "best_share", "combined", "relabelled", "weighed"]


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


@dataclass(frozen=True)
class ScoredRow:
    """A row without its media.

    Args:
        row: candidates hold texts, or names of pictures in the output.
        values: [candidate, reward], higher is better.
        score: one number per candidate.
    """

    row: PreferenceRow
    values: Float[Tensor, "candidate reward"]
    score: tuple[float, ...] = ()


def combined(found: Sequence[ScoredRow]) -> list[ScoredRow]:
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


def _chance(entry: ScoredRow, settings: RelabelSettings) -> float:
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


def relabelled(
    entry: ScoredRow, titles: Sequence[str], settings: RelabelSettings, left_out: Counter[str]
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


def weighed(rows: Sequence[PreferenceRow], settings: RelabelSettings, first: str) -> list[PreferenceRow]:
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


def best_share(
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


def agreement(
    found: Sequence[ScoredRow], scores: Sequence[Sequence[float]], settings: RelabelSettings
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

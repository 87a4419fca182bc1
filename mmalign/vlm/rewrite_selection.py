"""Which rewrites of a prompt meet in a pair, and which may be imitated."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from mmalign.rewards.aggregation import aggregate, parse_how
from mmalign.vlm.pair_making.on_policy import OwnAnswers
from mmalign.vlm.pair_making.output import MadePair
from mmalign.vlm.pair_making.scored_sections import PromptWriterConfig
from mmalign.vlm.pair_making.selection import num_words
from mmalign.vlm.prompt_writer import Rewrites

__all__ = ["combined", "rewrite_answers", "rewrite_pairs"]


def combined(one: Rewrites, config: PromptWriterConfig) -> list[float]:
    """One number per text, higher is better; NaN where a reward is missing.

    sum: weighted sum in the rewards' own units. Others: `mmalign.rewards.aggregation`, among the texts of one
    prompt.
    """
    weights = [reward.weight for reward in config.rewards]
    if config.combine == "sum":
        return [
            sum(weight * value for weight, value in zip(weights, values, strict=True))
            for values in one.scores
        ]
    values = torch.tensor(one.scores, dtype=torch.float64).reshape(-1, len(weights))
    groups = torch.zeros(len(one.texts), dtype=torch.int64)
    found = aggregate(values, groups, how=config.combine, weights=weights).score
    # Ranks count from the best.
    sign = -1.0 if parse_how(config.combine)[1] == "rank" else 1.0
    return [sign * value for value in found.tolist()]


def rewrite_answers(rewrites: Sequence[Rewrites], config: PromptWriterConfig) -> list[OwnAnswers]:
    """Rewrites that may be chosen as answers with one score each; the others have NaN."""
    made = []
    for one in rewrites:
        totals = combined(one, config)
        allowed = [
            totals[place] if not _refused(one, place, totals, config) else math.nan for place in one.written
        ]
        made.append(OwnAnswers(one.row, tuple(one.texts[place] for place in one.written), tuple(allowed)))
    return made


def _refused(one: Rewrites, place: int, totals: Sequence[float], config: PromptWriterConfig) -> str:
    """Why a rewrite cannot be chosen; "" where it can."""
    if math.isnan(totals[place]):
        return "not_scored"
    if config.max_words is not None and num_words(one.texts[place]) > config.max_words:
        return "too_many_words"
    if config.max_distance is not None and one.distances[place] > config.max_distance:
        return "too_far_from_prompt"
    if one.original >= 0 and not totals[place] > totals[one.original]:
        return "not_above_original"
    for value, reward in zip(one.scores[place], config.rewards, strict=True):
        if reward.least is not None and not value > reward.least:
            return f"{reward.column}_too_low"
    return ""


def rewrite_pairs(
    rewrites: Sequence[Rewrites], config: PromptWriterConfig
) -> tuple[list[MadePair], Counter[str]]:
    """Pairs of rewrites, and what was left out by reason.

    Rewrites are ordered by their combined score. Each of the first `winners` that may be chosen (every score
    above its `least`, not too long, not too far, above the user's own prompt) meets the worst of those below
    it, or all of them, where it leads by more than `difference`.

    Args:
        rewrites: scored.
        config: the rule.

    Source: jiyt17/Prompt-A-Video b1eb5bb, booster/dpo/filter.py (two winners, all below, least scores, 1.4).
    """
    pairs: list[MadePair] = []
    counts: Counter[str] = Counter()
    for one in rewrites:
        totals = combined(one, config)
        order = sorted(
            (place for place in one.written if not math.isnan(totals[place])),
            key=lambda place: (-totals[place], place),
        )
        counts["not_scored"] += len(one.written) - len(order)
        for rank, winner in enumerate(order[: config.winners]):
            reason = _refused(one, winner, totals, config)
            if reason:
                counts[reason] += 1
                continue
            below = order[rank + 1 :]
            losers = below[-1:] if config.against == "worst" else below
            kept = [loser for loser in losers if _leads(one, winner, loser, totals, config)]
            counts["no_difference"] += len(losers) - len(kept)
            pairs += [_pair(one, winner, loser, totals, config) for loser in kept]
    counts["rows"] = len(pairs)
    return pairs, +counts


def _leads(
    one: Rewrites, winner: int, loser: int, totals: Sequence[float], config: PromptWriterConfig
) -> bool:
    if not totals[winner] - totals[loser] > config.difference or one.texts[winner] == one.texts[loser]:
        return False
    both = zip(one.scores[winner], one.scores[loser], strict=True)
    return not config.agree or all(better >= worse for better, worse in both)


def _pair(
    one: Rewrites, winner: int, loser: int, totals: Sequence[float], config: PromptWriterConfig
) -> MadePair:
    columns: dict[str, Any] = {"original_prompt": one.prompt}
    for side, place in (("chosen", winner), ("rejected", loser)):
        columns[f"score_{side}"] = totals[place]
        columns[f"rewards_{side}"] = {
            reward.column: value for reward, value in zip(config.rewards, one.scores[place], strict=True)
        }
        columns[f"painted_{side}"] = _names(one.media[place])
        if one.distances:
            columns[f"semantic_distance_{side}"] = one.distances[place]
    if one.original >= 0:
        columns["score_original"] = totals[one.original]
    return MadePair(one.row, one.texts[winner], one.texts[loser], f"{winner}-{loser}", columns)


def _names(media: Sequence[Any]) -> list[str]:
    """Files of all copies, from the output folder on."""
    found = [name for medium in media for name in (medium if isinstance(medium, list) else [medium])]
    return [f"stages/painted/{name}" for name in found]

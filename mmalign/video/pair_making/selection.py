"""From the scored clips of a prompt to pairs: rules over one score or several, and a guard of motion.

Source: VideoDPO (2412.14167: OmniScore, best against worst), MPO of VisionReward (2412.21059: no dimension
may be worse), UnifiedReward (2503.05236: disjoint pairs), DenseDPO (2506.03517: why motion needs a guard).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from mmalign.data.pair_making.groups import Bounds, GroupSelection, ScoredSample, select_group
from mmalign.train.sections import Section

__all__ = ["MOTION", "TOTAL", "ClipSelection", "select_clips", "with_total"]

TOTAL = "total"
"""What columns call the weighted sum of the scores."""

MOTION = "motion"
"""What columns call how much a clip moves."""

ClipRule = Literal["best_worst", "best_rest", "thresholds", "all_pairs", "pareto", "disjoint"]
"""Which clips of a prompt meet: its ends; the best and each other one; the same with bounds that must be
given; every two; every two of which one is nowhere worse; the best winner and the worst loser of
neighbours."""


class ClipSelection(Section):
    """From scored clips to pairs."""

    rule: ClipRule = "best_worst"
    decides: str | None = Field(
        None, description="title of the score that orders clips; default: total with weights, else the first"
    )
    min_gap: float = Field(
        0.0, ge=0, description="least gap by the score that decides; ties never make pairs"
    )
    bounds: dict[str, Bounds] = Field(
        default_factory=dict, description="title of a scorer: bounds every pair must keep, under any rule"
    )
    max_per_prompt: int | None = Field(None, ge=1, description="pairs of one prompt, widest gap first")
    weights: dict[str, float] = Field(
        default_factory=dict, description="title: weight in `total`, the weighted mean; default: no total"
    )
    ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="title: [least, greatest], brought to 0 and 1 before the weighted mean, as VBench does",
    )
    dimensions: tuple[str, ...] = Field(
        (), description="titles by which no winner may be worse; default: all under rule pareto, else none"
    )
    motion_ratio_min: float | None = Field(
        None, ge=0, description="least motion of the winner, as a share of the loser's; null: no guard"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ClipSelection":
        if self.rule == "thresholds" and not self.bounds:
            message = "rule thresholds needs bounds of at least one scorer; without any it is best_rest"
            raise ValueError(message)
        if self.weights and not any(self.weights.values()):
            message = "weights are all 0"
            raise ValueError(message)
        strange = [title for title in self.ranges if title not in self.weights]
        if strange:
            message = f"ranges: got {strange[0]}, which has no weight"
            raise ValueError(message)
        for title, (least, greatest) in self.ranges.items():
            if not least < greatest:
                message = f"ranges.{title}: got {least} to {greatest}, expected the lower one first"
                raise ValueError(message)
        return self

    def titles(self) -> list[str]:
        """Scorers the settings name."""
        named = [*self.bounds, *self.weights, *self.dimensions]
        if self.decides is not None:
            named.append(self.decides)
        return [title for title in dict.fromkeys(named) if title != TOTAL or not self.weights]

    def nowhere_worse(self, titles: Sequence[str]) -> tuple[str, ...]:
        """Titles by which a winner must not be worse, of those there are."""
        return self.dimensions or (tuple(titles) if self.rule == "pareto" else ())


def with_total(scores: Mapping[str, float], selection: ClipSelection) -> dict[str, float]:
    """Scores and their weighted mean: `sum w (s - least) / (greatest - least) / sum |w|`; NaN where one is.

    Args:
        scores: of one clip.
        selection: weights and ranges.
    """
    if not selection.weights:
        return dict(scores)
    total = 0.0
    for title, weight in selection.weights.items():
        least, greatest = selection.ranges.get(title, (0.0, 1.0))
        total += weight * (scores.get(title, math.nan) - least) / (greatest - least)
    return {**scores, TOTAL: total / sum(abs(weight) for weight in selection.weights.values())}


def select_clips(
    samples: Sequence[ScoredSample],
    motion: Sequence[float],
    selection: ClipSelection,
    *,
    decides: str,
    titles: Sequence[str],
    verdicts: Sequence[float] = (),
    counts: Counter[str],
) -> list[tuple[int, int]]:
    """(Chosen, rejected) places of the clips of one prompt, widest gap first.

    Args:
        samples: of one prompt.
        motion: of each; NaN where it is not known.
        selection: the rule and its bounds.
        decides: title of the score that orders them.
        titles: of all scores.
        verdicts: rule disjoint with a judge: of clips (0, 1), (2, 3), ...: 1 where the first is better, 0
            where the second is, 0.5 for a tie, NaN for none.
        counts: gets what was left out, by reason.
    """
    if selection.rule == "disjoint":
        found = _disjoint(samples, decides, verdicts, counts)
        found = [pair for pair in found if _allowed(samples, pair, selection, decides, counts)]
    else:
        rule = "all_pairs" if selection.rule == "pareto" else selection.rule
        group = GroupSelection(rule=rule, decides=decides, min_gap=selection.min_gap, bounds=selection.bounds)
        found = select_group(samples, group, decides=decides, counts=counts)
    kept = []
    for chosen, rejected in found:
        worse = [
            title
            for title in selection.nowhere_worse(titles)
            if not samples[chosen].scores[title] >= samples[rejected].scores[title]
        ]
        if worse:
            counts[f"worse[{worse[0]}]"] += 1
        elif not _moves(motion[chosen], motion[rejected], selection.motion_ratio_min):
            counts["moves_less"] += 1
        else:
            kept.append((chosen, rejected))
    limit = selection.max_per_prompt
    if limit is not None and len(kept) > limit:
        counts["over_max_per_prompt"] += len(kept) - limit
    return kept[:limit]


def _moves(winner: float, loser: float, least: float | None) -> bool:
    """Whether the winner moves enough; unknown motion does not."""
    return least is None or winner >= least * loser


def _allowed(
    samples: Sequence[ScoredSample],
    pair: tuple[int, int],
    selection: ClipSelection,
    decides: str,
    counts: Counter[str],
) -> bool:
    """Whether the pair keeps gap and bounds, in the order it has."""
    # Names decide ties: the winner stands first, and an equal loser must not take its place.
    two = [replace(samples[place], name=str(number), content="") for number, place in enumerate(pair)]
    group = GroupSelection(
        rule="all_pairs", decides=decides, min_gap=selection.min_gap, bounds=selection.bounds
    )
    if two[0].scores[decides] < two[1].scores[decides]:
        counts["rejected_scores_higher"] += 1
        return False
    return bool(select_group(two, group, decides=decides, counts=counts))


def _disjoint(
    samples: Sequence[ScoredSample], decides: str, verdicts: Sequence[float], counts: Counter[str]
) -> list[tuple[int, int]]:
    """The best of the winners and the worst of the losers of clips (0, 1), (2, 3), ...

    Two clips without a verdict, or with a tie, give neither: released scripts count ties for the first clip.

    Source: arXiv 2503.05236; CodeGoat24/UnifiedReward (which compares scores as texts).
    """
    winners, losers = [], []
    for number in range(len(samples) // 2):
        first, second = 2 * number, 2 * number + 1
        scores = [samples[place].scores.get(decides, math.nan) for place in (first, second)]
        if not all(math.isfinite(score) for score in scores):
            counts["not_scored"] += 1
            continue
        said = (
            verdicts[number] if verdicts else 0.5 + 0.5 * ((scores[0] > scores[1]) - (scores[0] < scores[1]))
        )
        if not math.isfinite(said):
            counts["no_verdict"] += 1
        elif said == 0.5:
            counts["tied_neighbours"] += 1
        else:
            winners.append(first if said > 0.5 else second)
            losers.append(second if said > 0.5 else first)
    counts["odd_clip_out"] += len(samples) % 2
    if not winners:
        counts["too_few_scored"] += 1
        return []
    best = min(winners, key=lambda place: (-samples[place].scores[decides], samples[place].name))
    worst = min(losers, key=lambda place: (samples[place].scores[decides], samples[place].name))
    return [(best, worst)]

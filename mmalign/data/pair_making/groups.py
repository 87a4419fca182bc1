"""From the scored samples of one prompt to pairs: who meets whom, and which pairs are clear enough.

Ties and missing scores make no pair and are counted; the order of the samples changes nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Bounds", "GroupRule", "GroupSelection", "ScoredSample", "select_group"]

GroupRule = Literal["best_worst", "best_rest", "thresholds", "all_pairs", "perturbed_prompt"]
"""Which samples of a prompt meet: its ends; the best and each other one; the same with bounds that must be
given; every two; the best of the prompt's own and each one made of an edited prompt."""

Range = tuple[float | None, float | None]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bounds(_Section):
    """What one scorer must say of a pair; null is no bound, both ends count as inside."""

    winner: Range = Field((None, None), description="[least, most] score of the chosen sample")
    loser: Range = Field((None, None), description="[least, most] score of the rejected sample")
    gap: Range = Field((None, None), description="[least, most] of chosen minus rejected")


class GroupSelection(_Section):
    """From scored samples to pairs."""

    rule: GroupRule = "best_worst"
    decides: str | None = Field(
        None, description="title of the scorer that orders samples; default: the first"
    )
    min_gap: float = Field(
        0.0, ge=0, description="least gap by the scorer that decides; ties never make pairs"
    )
    bounds: dict[str, Bounds] = Field(
        default_factory=dict, description="title of a scorer: bounds every pair must keep, under any rule"
    )
    max_per_prompt: int | None = Field(None, ge=1, description="pairs of one prompt, widest gap first")

    @model_validator(mode="after")
    def _thresholds_have_bounds(self) -> "GroupSelection":
        if self.rule == "thresholds" and not self.bounds:
            message = "rule thresholds needs bounds of at least one scorer; without any it is best_rest"
            raise ValueError(message)
        return self

    def titles(self) -> list[str]:
        """Scorers the settings name."""
        return list(dict.fromkeys([*([self.decides] if self.decides is not None else []), *self.bounds]))


@dataclass(frozen=True)
class ScoredSample:
    """One sample of a prompt.

    Args:
        name: its own within the prompt; decides ties.
        scores: by scorer, of the sample under the original prompt; higher is better, NaN where one failed.
        content: digest of what it is; two samples of one content are one.
        edited: whether it was made of an edited prompt: it never wins under `perturbed_prompt`.
    """

    name: str
    scores: Mapping[str, float]
    content: str = ""
    edited: bool = False


def select_group(
    samples: Sequence[ScoredSample], selection: GroupSelection, *, decides: str, counts: Counter[str]
) -> list[tuple[int, int]]:
    """(Chosen, rejected) places of the samples of one prompt, widest gap first.

    A pair needs score(chosen) > score(rejected), a gap of at least `min_gap` by the scorer that decides, and
    every bound. Equal best or worst samples: the one whose name comes first is taken, and counted as
    `tie_for_best` or `tie_for_worst`.

    Args:
        samples: of one prompt.
        selection: the rule and its bounds.
        decides: title of the scorer that orders them.
        counts: gets what was left out: `not_scored` and `same_clip` count samples, `too_few_scored` prompts,
            all others pairs.

    Source: the rules of Audio-Alpaca (arXiv 2404.09956) and of CRPO (arXiv 2412.21037; declare-lab/TangoFlux
    takes a tie as a pair of identical files, and rounds scores first).
    """
    usable = _usable(samples, [decides, *selection.bounds], counts)
    score = {place: samples[place].scores[decides] for place in usable}
    ranked = sorted(usable, key=lambda place: (-score[place], samples[place].name))
    winners = [
        place for place in ranked if not (selection.rule == "perturbed_prompt" and samples[place].edited)
    ]
    others = (
        [place for place in ranked if place not in winners]
        if selection.rule == "perturbed_prompt"
        else ranked
    )
    if not winners or not others or len(ranked) < 2:
        counts["too_few_scored"] += 1
        return []
    kept = []
    for chosen, rejected in _couples(winners, others, selection.rule, score, counts):
        reason = _problem(samples[chosen], samples[rejected], selection, decides)
        counts[reason] += bool(reason)
        if not reason:
            kept.append((chosen, rejected))
    kept.sort(key=lambda pair: score[pair[1]] - score[pair[0]])
    limit = selection.max_per_prompt
    if limit is not None and len(kept) > limit:
        counts["over_max_per_prompt"] += len(kept) - limit
    return kept[:limit]


def _usable(samples: Sequence[ScoredSample], titles: Sequence[str], counts: Counter[str]) -> list[int]:
    """Places of samples with every score, each content once."""
    found: list[int] = []
    seen: set[str] = set()
    for place in sorted(range(len(samples)), key=lambda place: samples[place].name):
        sample = samples[place]
        values = [sample.scores.get(title, float("nan")) for title in titles]
        if any(value != value or value in (float("inf"), float("-inf")) for value in values):
            counts["not_scored"] += 1
        elif sample.content and sample.content in seen:
            counts["same_clip"] += 1
        else:
            found.append(place)
            seen.add(sample.content)
    return found


def _couples(
    winners: Sequence[int],
    others: Sequence[int],
    rule: GroupRule,
    score: Mapping[int, float],
    counts: Counter[str],
) -> list[tuple[int, int]]:
    """Who meets whom; both lists are ordered, best first."""
    if rule == "all_pairs":
        return [(first, second) for place, first in enumerate(winners) for second in winners[place + 1 :]]
    best = winners[0]
    counts["tie_for_best"] += len(winners) > 1 and score[winners[1]] == score[best]
    if rule != "best_worst":
        return [(best, other) for other in others if other != best]
    lowest = [place for place in others if score[place] == score[others[-1]]]
    counts["tie_for_worst"] += len(lowest) > 1 and score[lowest[0]] < score[best]
    return [(best, lowest[0] if lowest[0] != best else lowest[-1])]


def _problem(chosen: ScoredSample, rejected: ScoredSample, selection: GroupSelection, decides: str) -> str:
    """Why two samples make no pair: "" where they do."""
    gap = chosen.scores[decides] - rejected.scores[decides]
    if gap == 0:
        return "tie"
    if gap < 0:
        return "rejected_scores_higher"
    if gap < selection.min_gap:
        return "gap_too_small"
    for title, bounds in selection.bounds.items():
        first, second = chosen.scores[title], rejected.scores[title]
        for name, value, allowed in (
            ("winner", first, bounds.winner),
            ("loser", second, bounds.loser),
            ("gap", first - second, bounds.gap),
        ):
            low, high = allowed
            if low is not None and value < low:
                return f"{name}_too_low[{title}]"
            if high is not None and value > high:
                return f"{name}_too_high[{title}]"
        if first <= second:
            return f"disagrees[{title}]"
    return ""

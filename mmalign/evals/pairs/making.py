"""From a pool of scored candidates to pairs or rankings, with a count after every step."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError
from mmalign.evals.pairs import labels
from mmalign.evals.pairs.plan import LabelConfig, SelectionConfig, WeightConfig
from mmalign.evals.pairs.pool import (
    Pool,
    PoolPrompt,
    Step,
    within_thresholds,
    without_failures,
)
from mmalign.evals.pairs.selection import pareto_fronts, relevance_regularised, select_pairs
from mmalign.rewards.aggregation import aggregate

__all__ = ["Made", "Pair", "Ranking", "make", "usable"]


@dataclass(frozen=True)
class Pair:
    """Two candidates of a prompt.

    Args:
        prompt: with all its candidates.
        winner: place of the preferred one.
        loser: place of the other one.
        standing: of the two.
        preference: probability in [1/2, 1] that the winner is preferred.
        weight: >= 0.
    """

    prompt: PoolPrompt
    winner: int
    loser: int
    standing: tuple[float, float]
    preference: float = 1.0
    weight: float = 1.0

    @property
    def id(self) -> str:
        """The two candidates' ids."""
        candidates = self.prompt.candidates
        return f"{candidates[self.winner].id}>{candidates[self.loser].id}"

    @property
    def gap(self) -> float:
        """Standing of the winner minus that of the loser."""
        return self.standing[0] - self.standing[1]


@dataclass(frozen=True)
class Ranking:
    """All candidates of a prompt in order.

    Args:
        prompt: with its candidates.
        order: their places, best first; equal ones as they stand.
        standing: of each candidate, by place, higher is better.
    """

    prompt: PoolPrompt
    order: tuple[int, ...]
    standing: tuple[float, ...]


@dataclass
class Made:
    """What the rules made.

    Args:
        titles: of the rewards.
        pairs: in the order of the prompts; empty where rankings were asked for.
        rankings: the same the other way.
        steps: counts after each filter.
        histogram: lower edge of each bin of score gaps to the number of pairs, where weights look at it.
    """

    titles: tuple[str, ...]
    pairs: list[Pair]
    rankings: list[Ranking]
    steps: list[Step]
    histogram: dict[str, int]


def usable(pool: Pool, settings: SelectionConfig) -> Pool:
    """Candidates that every reward scored and no threshold excludes (near-duplicates are another step)."""
    return within_thresholds(without_failures(pool), settings.thresholds)


def _standing(pool: Pool, settings: SelectionConfig) -> list[Tensor]:
    """One number per candidate of every prompt, computed for all prompts at once."""
    titles = list(settings.rewards) or _deciding(pool, settings)
    columns = [pool.column(title) for title in titles]
    sizes = [len(prompt.candidates) for prompt in pool.prompts]
    values = torch.cat([prompt.values for prompt in pool.prompts])
    chosen = values[:, columns].to(torch.float64)
    if settings.standing == "raw":
        found = chosen[:, 0]
    else:
        groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        weights = [settings.rewards[title] for title in titles] if settings.rewards else None
        found = aggregate(chosen, groups, how=f"mean_{settings.standing}", weights=weights).score
        found = -found if settings.standing == "rank" else found
    parts = list(found.split(sizes))
    if settings.relevance is not None:
        column, bounds = pool.column(settings.relevance), settings.relevance_bounds
        parts = [
            relevance_regularised(part, prompt.values[:, column].to(torch.float64), bounds)
            for part, prompt in zip(parts, pool.prompts, strict=True)
        ]
    return parts


def _deciding(pool: Pool, settings: SelectionConfig) -> list[str]:
    """Rewards that decide when none is named: all, but for those with another task."""
    other = {settings.relevance, settings.likelihood}
    return [title for title in pool.titles if title not in other]


def make(pool: Pool, settings: SelectionConfig) -> Made:
    """Pairs or rankings of a pool whose candidates are all usable.

    Raises:
        ConfigError: nothing is left, or the settings name a reward that is not there.
    """
    if not pool.prompts:
        raise ConfigError(_nothing(pool.steps))
    standing = _standing(pool, settings)
    if settings.make == "rankings":
        return _rankings(pool, settings, standing)
    likelihood = None if settings.likelihood is None else pool.column(settings.likelihood)
    columns = [pool.column(title) for title in settings.rewards or _deciding(pool, settings)]
    pairs: list[Pair] = []
    for prompt, values in zip(pool.prompts, standing, strict=True):
        couples = select_pairs(
            prompt.values[:, columns],
            values,
            settings.rule,
            margin=settings.margin,
            likelihood=None if likelihood is None else prompt.values[:, likelihood],
        )
        pairs += [Pair(prompt, i, j, (float(values[i]), float(values[j]))) for i, j in couples]
    steps = [*pool.steps, _pair_step(f"{settings.rule}, margin {settings.margin:g}", pairs, pool)]
    if settings.max_per_prompt is not None:
        before = len(pairs)
        pairs = _capped(pairs, settings.max_per_prompt)
        reasons = {"pairs": before - len(pairs)}
        steps.append(_pair_step(f"at most {settings.max_per_prompt} per prompt", pairs, pool, reasons))
    if not pairs:
        raise ConfigError(_nothing(steps))
    pairs, turned, ties = _labelled(pairs, pool, settings.label)
    if turned or ties:
        reasons = {"ties of the label": ties} if ties else {}
        steps.append(_pair_step(f"labels by {settings.label.how}, {turned} turned", pairs, pool, reasons))
    if not pairs:
        raise ConfigError(_nothing(steps))
    weighed, histogram = _weighed(pairs, pool, settings.weight)
    return Made(pool.titles, weighed, [], steps, histogram)


def _nothing(steps: Sequence[Step]) -> str:
    lines = [step.describe() for step in steps]
    shown = "\n".join(lines)
    return f"pairs select: nothing is left, nothing was written. Loosen the rule or score more.\n{shown}"


def _pair_step(name: str, pairs: Sequence[Pair], pool: Pool, left_out: dict[str, int] | None = None) -> Step:
    prompts = len({pair.prompt.id for pair in pairs})
    reasons = dict(left_out or {})
    if left_out is None and prompts < len(pool.prompts):
        reasons["prompts without such a pair"] = len(pool.prompts) - prompts
    return Step(name, prompts, pairs=len(pairs), left_out=reasons)


def _capped(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """The widest of each prompt, in their given order; equal gaps fall to the earlier pair."""
    groups: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault(pair.prompt.id, []).append(number)
    kept = {
        number
        for members in groups.values()
        for number in sorted(members, key=lambda number: (-pairs[number].gap, number))[:limit]
    }
    return [pair for number, pair in enumerate(pairs) if number in kept]


def _rankings(pool: Pool, settings: SelectionConfig, standing: Sequence[Tensor]) -> Made:
    found: list[Ranking] = []
    titles = settings.rewards or _deciding(pool, settings)
    columns = [pool.column(title) for title in titles]
    tied = 0
    for prompt, values in zip(pool.prompts, standing, strict=True):
        numbers = values.tolist()
        if settings.rule == "pareto":
            for depth, front in enumerate(pareto_fronts(prompt.values[:, columns])):
                for place in front:
                    numbers[place] = -float(depth)
        if max(numbers) - min(numbers) <= settings.margin:
            tied += 1
            continue
        order = sorted(range(len(numbers)), key=lambda place: (-numbers[place], place))
        found.append(Ranking(prompt, tuple(order), tuple(numbers)))
    by = "Pareto fronts" if settings.rule == "pareto" else settings.standing
    reasons = {"prompts whose range does not exceed the margin": tied} if tied else {}
    count = sum(len(ranking.order) for ranking in found)
    steps = [
        *pool.steps,
        Step(f"ranked by {by}, margin {settings.margin:g}", len(found), count, None, reasons),
    ]
    if not found:
        raise ConfigError(_nothing(steps))
    return Made(pool.titles, [], found, steps, {})


# ------------------------------------------------------------------------------------------------ labels


def _values(pairs: Sequence[Pair], column: int | None) -> Float[Tensor, "pair side"]:
    """Scores of winner and loser by one reward, or their standing."""
    if column is None:
        return torch.tensor([pair.standing for pair in pairs], dtype=torch.float64)
    sides = [
        [float(pair.prompt.values[place, column]) for place in (pair.winner, pair.loser)] for pair in pairs
    ]
    return torch.tensor(sides, dtype=torch.float64)


def _labelled(pairs: Sequence[Pair], pool: Pool, settings: LabelConfig) -> tuple[list[Pair], int, int]:
    """Pairs with probabilities, how many changed sides, and how many had no side to be on."""
    if settings.how == "hard":
        return list(pairs), 0, 0
    if settings.how == "votes":
        winner = torch.stack([pair.prompt.values[pair.winner] for pair in pairs])
        loser = torch.stack([pair.prompt.values[pair.loser] for pair in pairs])
        chance = labels.reward_votes(winner, loser).tolist()
    else:
        cosines = _values(pairs, pool.column(str(settings.reward))) / settings.logit_scale
        likelier = labels.smoothed_preference(cosines)
        chance = torch.where(cosines[:, 0] >= cosines[:, 1], likelier, 1.0 - likelier).tolist()
    found = [_turned(pair, value) for pair, value in zip(pairs, chance, strict=True) if value != 0.5]
    return found, sum(value < 0.5 for value in chance), len(pairs) - len(found)


def _turned(pair: Pair, chance: float) -> Pair:
    """The pair with its likelier side first."""
    if chance > 0.5:
        return replace(pair, preference=chance)
    first, second = pair.standing
    return replace(
        pair, winner=pair.loser, loser=pair.winner, standing=(second, first), preference=1.0 - chance
    )


def _weighed(pairs: Sequence[Pair], pool: Pool, settings: WeightConfig) -> tuple[list[Pair], dict[str, int]]:
    """Pairs with weights, and the histogram of gaps behind them."""
    if settings.how == "none":
        return list(pairs), {}
    sides = _values(pairs, None if settings.reward is None else pool.column(settings.reward))
    winner, loser = sides[:, 0], sides[:, 1]
    gaps = winner - loser
    if settings.how == "gap":
        weights = labels.gap_weight(winner, loser, base=settings.base, scale=settings.scale)
    elif settings.how == "duplication":
        common = labels.probability_of_gaps(gaps, settings.bin_width)
        weights = labels.duplication_factor(common, beta=settings.beta, constant=settings.constant)
    else:
        weights = labels.rarity_weight(winner, loser, alpha=settings.alpha, bin_width=settings.bin_width)
    if settings.mean_one and float(weights.mean()) > 0:
        weights = weights / weights.mean()
    counted = Counter(int(number) for number in (gaps / settings.bin_width + 1e-9).floor())
    histogram = {f"{number * settings.bin_width:g}": counted[number] for number in sorted(counted)}
    found = [replace(pair, weight=float(weight)) for pair, weight in zip(pairs, weights, strict=True)]
    return found, histogram

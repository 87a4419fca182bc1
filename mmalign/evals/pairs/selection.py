"""From the scores of a prompt's candidates to preferences: who meets whom, how sure, how much it counts.

Rules work on numbers alone, one prompt at a time: `scores` is [candidate, reward], higher is better, finite.
Scales of rewards differ a hundredfold, so raw values of two rewards are never added: `standings` makes them
comparable within the prompt first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.rewards.aggregation import aggregate, fractional_ranks, relative_values

__all__ = [
    "RULES",
    "Rule",
    "Standing",
    "best_of",
    "hard_pairs",
    "minimax_pairs",
    "pairs_over_margin",
    "pairwise_wins",
    "pareto_fronts",
    "pareto_pairs",
    "ranks",
    "relevance_regularised",
    "select_pairs",
    "standings",
    "worst_of",
]

Standing = Literal["rank", "win_probability", "z", "minmax"]
"""How several rewards become one number within a prompt."""

Rule = Literal["best_worst", "best_vs_rest", "all_pairs", "pareto", "minimax", "hard"]
"""Which candidates of a prompt meet."""

Couple = tuple[int, int]


def _group(scores: Tensor) -> Int[Tensor, " candidate"]:
    return torch.zeros(len(scores), dtype=torch.int64)


def _check(scores: Tensor, where: str) -> None:
    if not bool(torch.isfinite(scores).all()):
        do = "Leave out candidates that a reward could not score."
        raise ConfigError(explain(f"{where} scores", got="[NaN or infinity]", expected="numbers", do=do))


def ranks(scores: Float[Tensor, "candidate reward"]) -> Float[Tensor, "candidate reward"]:
    """Rank of every candidate by every reward: 1 is the best, equal values share the mean of their places."""
    _check(scores, "ranks")
    return fractional_ranks(scores, _group(scores))


def pairwise_wins(scores: Float[Tensor, "candidate reward"]) -> Float[Tensor, "candidate opponent"]:
    """How many rewards put a candidate above each other one; a tie counts one half, the diagonal is 0."""
    _check(scores, "pairwise_wins")
    values = scores.to(torch.float64)
    gaps = values.unsqueeze(1) - values.unsqueeze(0)
    wins = (gaps.sign() + 1.0).div(2.0).sum(dim=2)
    return wins.fill_diagonal_(0.0)


def standings(
    scores: Float[Tensor, "candidate reward"],
    how: Standing = "win_probability",
    *,
    weights: Sequence[float] | None = None,
) -> Float[Tensor, " candidate"]:
    """One number per candidate, higher is better: the weighted mean over rewards of its standing.

    rank: minus the mean rank
    win_probability: (opponents beaten + half of those tied with) / opponents, free of scale
    z: (value - mean) / population standard deviation, over the candidates
    minmax: (value - lowest) / (highest - lowest), over the candidates

    Args:
        scores: of one prompt, at least two candidates.
        how: which of the four.
        weights: one per reward, not negative; None counts all alike.

    Raises:
        ConfigError: fewer than two candidates, a score that is not finite, weights out of range.
        UnknownNameError: another way.

    Source: Syn-Pic of RankDPO, arXiv 2410.18013 (how often a candidate is preferred, averaged over rewards).
    """
    if how not in get_args(Standing):
        raise unknown_name("standing", how, get_args(Standing))
    _check(scores, "standings")
    if len(scores) < 2:
        raise ConfigError(explain("standings", got=f"[{len(scores)} candidates]", expected="at least 2"))
    found = aggregate(scores.to(torch.float64), _group(scores), how=f"mean_{how}", weights=weights).score
    return -found if how == "rank" else found


def best_of(standing: Float[Tensor, " candidate"]) -> int:
    """The highest; of equal ones the first."""
    return int(standing.argmax())


def worst_of(standing: Float[Tensor, " candidate"]) -> int:
    """The lowest; of equal ones the first."""
    return int(standing.argmin())


def pairs_over_margin(standing: Float[Tensor, " candidate"], margin: float = 0.0) -> list[Couple]:
    """(Winner, loser) of all candidates whose gap exceeds `margin`, ordered by winner, then by loser.

    Raises:
        ConfigError: a negative margin.
    """
    _check_margin(margin)
    gaps = standing.unsqueeze(1) - standing.unsqueeze(0)
    return [(int(i), int(j)) for i, j in (gaps > margin).nonzero()]


def _check_margin(margin: float) -> None:
    if not 0 <= margin < float("inf"):
        raise ConfigError(explain("margin", got=margin, expected="a number >= 0"))


def _domination(scores: Tensor) -> Tensor:
    """Whether candidate i is at least as good everywhere as j and better somewhere."""
    above = (scores.unsqueeze(1) >= scores.unsqueeze(0)).all(dim=2)
    better = (scores.unsqueeze(1) > scores.unsqueeze(0)).any(dim=2)
    return above & better


def pareto_fronts(scores: Float[Tensor, "candidate reward"]) -> list[list[int]]:
    """Candidates sorted by dominance: those nobody dominates, those only the first front dominates, ...

    i dominates j if no reward puts j above i and one puts i above j.
    """
    _check(scores, "pareto_fronts")
    dominated = _domination(scores)
    left = list(range(len(scores)))
    fronts: list[list[int]] = []
    while left:
        front = [j for j in left if not any(bool(dominated[i, j]) for i in left)]
        fronts.append(front)
        left = [j for j in left if j not in front]
    return fronts


def pareto_pairs(scores: Float[Tensor, "candidate reward"]) -> list[Couple]:
    """(Winner, loser) where the winner dominates: pairs on which no two rewards contradict each other."""
    _check(scores, "pareto_pairs")
    return [(int(i), int(j)) for i, j in _domination(scores).nonzero()]


def minimax_pairs(scores: Float[Tensor, "candidate reward"], margin: float = 0.0) -> list[Couple]:
    """The candidate whose worst reward is best against the one whose best reward is worst; one pair or none.

    winner = argmax_i min_m u_im, loser = argmin_j max_m u_jm, u = min-max standing by reward m
    kept if u_wm - u_lm > margin for every reward m

    Rewards are taken for what they are, fallible tests: a pair counts only as far as its least convinced
    reward.

    Args:
        scores: of one prompt.
        margin: least gap by every reward, in [0, 1).

    Source: after the minimax selection of DSTC, arXiv 2411.13611, which chooses codes by self-written tests
    that may be wrong; the rule for rewards is ours.
    """
    _check_margin(margin)
    _check(scores, "minimax_pairs")
    units = relative_values(scores, _group(scores), "minmax")
    winner, loser = int(units.amin(dim=1).argmax()), int(units.amax(dim=1).argmin())
    agreed = bool((units[winner] - units[loser] > margin).all())
    return [(winner, loser)] if agreed else []


def hard_pairs(
    standing: Float[Tensor, " candidate"],
    margin: float = 0.0,
    likelihood: Float[Tensor, " candidate"] | None = None,
) -> list[Couple]:
    """The best candidate against the hardest one that is clearly worse; one pair or none.

    Hardest is the one the model itself finds likeliest, where likelihoods are known; else the nearest below.

    Args:
        standing: of one prompt's candidates.
        margin: a loser must stand lower than the best by more than this.
        likelihood: log-probability of each candidate under the model that made them.

    Source: self-hard rejected samples of OneRec, arXiv 2502.18965 (likely under the model, low in reward).
    """
    _check_margin(margin)
    best = best_of(standing)
    worse = standing[best] - standing > margin
    if not bool(worse.any()):
        return []
    order = standing if likelihood is None else likelihood
    return [(best, int(order.masked_fill(~worse, -torch.inf).argmax()))]


def relevance_regularised(
    standing: Float[Tensor, " candidate"],
    relevance: Float[Tensor, " candidate"],
    bounds: tuple[float, float] | None = None,
) -> Float[Tensor, " candidate"]:
    """Quality times relevance: what does not answer its prompt cannot win by beauty.

    standing * clamp((relevance - low) / (high - low), 0, 1)

    Args:
        standing: >= 0, "win_probability" or "minmax".
        relevance: a reward of how well the candidate fits its prompt (VQAScore, CLIPScore, ...).
        bounds: (low, high) on the scale of `relevance`; None takes the prompt's own range, which leaves all
            as they are where it has no width.

    Raises:
        ConfigError: a negative standing, or bounds without width.

    Source: after the relevance-regularised reward R3 of arXiv 2402.03469, a product with the relevance of
    answer to query; its factors for length and repetition belong to text.
    """
    if bool((standing < 0).any()):
        expected = "values >= 0 (win_probability or minmax)"
        raise ConfigError(explain("relevance_regularised standing", got="[negative]", expected=expected))
    low, high = (float(relevance.min()), float(relevance.max())) if bounds is None else bounds
    if bounds is not None and not low < high:
        raise ConfigError(explain("relevance bounds", got=f"{bounds}", expected="low < high"))
    if low == high:
        return standing
    return standing * ((relevance - low) / (high - low)).clamp(0.0, 1.0)


# ------------------------------------------------------------------------------------------------ rules


@dataclass(frozen=True)
class _Prompt:
    scores: Tensor
    standing: Tensor
    margin: float
    likelihood: Tensor | None


def _ends(prompt: _Prompt) -> list[Couple]:
    best, worst = best_of(prompt.standing), worst_of(prompt.standing)
    gap = float(prompt.standing[best] - prompt.standing[worst])
    return [(best, worst)] if gap > prompt.margin else []


def _rest(prompt: _Prompt) -> list[Couple]:
    best = best_of(prompt.standing)
    return [couple for couple in pairs_over_margin(prompt.standing, prompt.margin) if couple[0] == best]


def _dominating(prompt: _Prompt) -> list[Couple]:
    clear = set(pairs_over_margin(prompt.standing, prompt.margin))
    return [couple for couple in pareto_pairs(prompt.scores) if couple in clear]


RULES: Mapping[str, Callable[[_Prompt], list[Couple]]] = {
    "best_worst": _ends,
    "best_vs_rest": _rest,
    "all_pairs": lambda prompt: pairs_over_margin(prompt.standing, prompt.margin),
    "pareto": _dominating,
    "minimax": lambda prompt: minimax_pairs(prompt.scores, prompt.margin),
    "hard": lambda prompt: hard_pairs(prompt.standing, prompt.margin, prompt.likelihood),
}
"""The rules by name."""


def select_pairs(
    scores: Float[Tensor, "candidate reward"],
    standing: Float[Tensor, " candidate"],
    rule: Rule,
    *,
    margin: float = 0.0,
    likelihood: Float[Tensor, " candidate"] | None = None,
) -> list[Couple]:
    """(Winner, loser) places of one prompt's candidates; never a tie.

    Args:
        scores: of the rewards.
        standing: one number per candidate, from `standings` or one reward.
        rule: which candidates meet.
        margin: pairs whose standing differs by no more are left out (`minimax`: whose least gap by any
            reward, of min-max standings).
        likelihood: for `hard`.

    Raises:
        ConfigError: a negative margin, scores that are not finite.
        UnknownNameError: another rule.
    """
    if rule not in RULES:
        raise unknown_name("rule for pairs", rule, RULES)
    _check_margin(margin)
    return RULES[rule](_Prompt(scores, standing, margin, likelihood))

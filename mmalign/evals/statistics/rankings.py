"""Does a reward order several candidates as people do? ImageReward's and HPDv2's numbers, Kendall's tau-b."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling, bootstrap_mean, bootstrap_of_means
from mmalign.evals.statistics.inputs import Values, as_vector
from mmalign.evals.statistics.results import Interval, Result

__all__ = ["RankingAgreement", "kendall_tau_b", "ranking_agreement"]


@dataclass(frozen=True)
class RankingAgreement(Result):
    """How well rewards order the candidates of prompts.

    Args:
        pooled: pairs ordered rightly, over all pairs of all prompts; human ties skipped, a predicted tie is
            wrong (ImageReward).
        mean_over_prompts: the same per prompt, averaged over prompts with at least one decided pair.
        inversions: 1 - inversions / (n choose 2) averaged over prompts; human ties are right, predicted ties
            are broken by position (HPDv2).
        per_prompt: the prompts' 1 - inversions / (n choose 2); NaN where a reward failed.
        pairs: pairs that people decide and rewards have scores for.
        failed: prompts left out because a reward is missing (NaN).
    """

    pooled: Interval
    mean_over_prompts: Interval
    inversions: Interval
    per_prompt: tuple[float, ...]
    pairs: int
    failed: int

    def describe(self) -> str:
        """All three numbers in one line."""
        return (
            f"pairs {self.pooled.describe()}, mean over prompts {self.mean_over_prompts.describe()}, "
            f"inversions {self.inversions.describe()}; {self.pairs} pairs, {self.failed} prompts failed"
        )


def _of_prompt(where: str, ranks: Values, rewards: Values) -> tuple[float, float, float] | None:
    """(Pairs ordered rightly, pairs people decide, 1 - share of inversions); None where a reward failed."""
    rank = as_vector(f"{where} human ranks", ranks)
    reward = as_vector(f"{where} rewards", rewards, missing_ok=True)
    if len(rank) != len(reward) or len(rank) < 2:
        got = f"{len(rank)} ranks and {len(reward)} rewards"
        raise ShapeError(
            explain(where, got=got, expected="one of each per candidate, two candidates at least")
        )
    if np.isnan(reward).any():
        return None
    upper = np.triu_indices(len(rank), k=1)
    better = np.sign(rank[upper[1]] - rank[upper[0]])  # rank 1 is best
    scored = np.sign(reward[upper[0]] - reward[upper[1]])
    decided = better != 0
    position = np.empty(len(rank))
    position[np.argsort(-reward, kind="stable")] = np.arange(len(rank))
    placed = np.sign(position[upper[1]] - position[upper[0]])
    inverted = (placed * better < 0).sum()
    return float((scored == better)[decided].sum()), float(decided.sum()), 1.0 - float(inverted) / len(better)


def ranking_agreement(
    human_ranks: Sequence[Values], rewards: Sequence[Values], how: Resampling = DEFAULT
) -> RankingAgreement:
    """Agreement of rewards with human rankings of several candidates per prompt.

    Args:
        human_ranks: per prompt, the rank of each candidate; 1 is best, equal ranks are ties.
        rewards: per prompt, the reward of each candidate; a prompt with a NaN is left out and counted.
        how: the bootstrap over prompts.

    Raises:
        ShapeError: different numbers of prompts or candidates, or a prompt with one candidate.
        ConfigError: no prompts, or no pair that counts.

    Source: zai-org/ImageReward test.py; tgxs002/HPSv2 src/training/train.py.
    """
    if len(human_ranks) != len(rewards):
        got = f"{len(human_ranks)} and {len(rewards)} prompts"
        expected = "ranks and rewards of the same prompts"
        raise ShapeError(explain("ranking_agreement", got=got, expected=expected))
    found = [
        _of_prompt(f"ranking_agreement prompt {place}", ranks, values)
        for place, (ranks, values) in enumerate(zip(human_ranks, rewards, strict=True))
    ]
    kept = np.array([entry for entry in found if entry is not None]).reshape(-1, 3)
    decided = kept[kept[:, 1] > 0]
    if len(decided) == 0:
        message = explain("ranking_agreement", got="no decided pair with rewards", expected="at least one")
        raise ConfigError(message)
    return RankingAgreement(
        pooled=bootstrap_of_means(decided[:, :2], lambda means: np.asarray(means[:, 0] / means[:, 1]), how),
        mean_over_prompts=bootstrap_mean(decided[:, 0] / decided[:, 1], how),
        inversions=bootstrap_mean(kept[:, 2], how),
        per_prompt=tuple(float("nan") if entry is None else entry[2] for entry in found),
        pairs=int(kept[:, 1].sum()),
        failed=len(found) - len(kept),
    )


def kendall_tau_b(first: Values, second: Values) -> float:
    """Kendall's rank correlation with ties: (concordant - discordant) / sqrt((n0 - n1) (n0 - n2)).

    n0 = n (n - 1) / 2, n1 and n2 the pairs tied in the first and in the second. NaN where one side is
    constant. Quadratic in the number of items, in blocks: 10,000 items take a second.

    Args:
        first: one number per item.
        second: one number per item.

    Raises:
        ShapeError: different numbers of items.
        ConfigError: NaN or nothing.

    Source: Kendall 1945, "The treatment of ties in ranking problems".
    """
    one, other = as_vector("kendall_tau_b first", first), as_vector("kendall_tau_b second", second)
    if len(one) != len(other):
        raise ShapeError(explain("kendall_tau_b", got=len(other), expected=f"{len(one)} items on both sides"))
    agree = untied_one = untied_other = 0.0
    block = max(1, 2**20 // len(one))
    for start in range(0, len(one), block):
        rows = slice(start, start + block)
        signs = np.sign(one[rows, None] - one[None])
        others = np.sign(other[rows, None] - other[None])
        agree += float((signs * others).sum())
        untied_one += float(np.abs(signs).sum())
        untied_other += float(np.abs(others).sum())
    if untied_one == 0 or untied_other == 0:
        return float("nan")
    return agree / float(np.sqrt(untied_one * untied_other))

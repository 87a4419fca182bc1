"""How sure a made pair is, and how much it counts: soft labels and weights from scores."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain

__all__ = [
    "duplication_factor",
    "gap_weight",
    "histogram_probability",
    "probability_of_gaps",
    "rarity_weight",
    "reward_votes",
    "smoothed_preference",
]

SMPO_RANGE = (0.11543526500463486, 0.28201571106910706)
"""Lowest and highest cosine of PickScore in SmPO's data (JaydenLyh/SmPO, train.py)."""


def smoothed_preference(
    cosines: Float[Tensor, "pair candidate"], low: float = SMPO_RANGE[0], high: float = SMPO_RANGE[1]
) -> Float[Tensor, " pair"]:
    """Probability in [1/2, 1] that the higher-scored of two candidates is preferred.

    softmax over the two of (cosine - low) / (high - low), at the larger one

    Args:
        cosines: bare cosines of PickScore, two per pair. Its usual unit is exp(logit scale) times larger:
            convert with `mmalign.rewards.clip_scores.pick_score_as(..., "cosine", log_scale=...)`.
        low: mapped to 0.
        high: mapped to 1.

    Raises:
        ConfigError: low is not below high, or a value is no cosine: nobody meant a PickScore of 21 here.

    Source: arXiv 2506.02698; JaydenLyh/SmPO, train.py.
    """
    if not low < high:
        raise ConfigError(explain("smoothed_preference range", got=f"[{low}, {high}]", expected="low < high"))
    if bool((cosines.abs() > 1.0).any()):
        do = "Divide PickScores by exp(logit scale), about 100, first."
        largest = float(cosines.abs().max())
        raise ConfigError(explain("smoothed_preference", got=largest, expected="cosines in [-1, 1]", do=do))
    units = (cosines.to(torch.float64) - low) / (high - low)
    return units.softmax(dim=1).amax(dim=1)


def reward_votes(
    winner: Float[Tensor, "pair reward"], loser: Float[Tensor, "pair reward"]
) -> Float[Tensor, " pair"]:
    """Share of the rewards that put the winner above the loser; a tie counts one half."""
    return ((winner - loser).sign() + 1.0).div(2.0).to(torch.float64).mean(dim=1)


def gap_weight(
    winner: Float[Tensor, " pair"], loser: Float[Tensor, " pair"], *, base: float = 2.0, scale: float = 100.0
) -> Float[Tensor, " pair"]:
    """Weight of a pair by its gap on an exponential scale: base^(winner / scale) - base^(loser / scale).

    In (0, base - 1) for scores in [0, scale]; 0 where the loser's score is higher.

    Args:
        winner: scores of the winners, from 0 to `scale`.
        loser: scores of the losers.
        base: > 1.
        scale: the score that counts as full marks; released for scores from 0 to 100.

    Raises:
        ConfigError: base or scale out of range.

    Source: bilibili/Index-anisora (GAPO, arXiv 2504.10044).
    """
    if not base > 1 or not scale > 0:
        expected = "base > 1 and scale > 0"
        raise ConfigError(explain("gap_weight", got=f"[base {base:g}, scale {scale:g}]", expected=expected))
    gap = base ** (winner.to(torch.float64) / scale) - base ** (loser.to(torch.float64) / scale)
    return gap.clamp(min=0.0)


def histogram_probability(counts: Float[Tensor, " bin"]) -> Float[Tensor, " bin"]:
    """Share of each bin.

    Raises:
        ConfigError: no counts.
    """
    total = float(counts.sum())
    if not total > 0:
        raise ConfigError(explain("histogram_probability counts", got=total, expected="at least one value"))
    return counts.to(torch.float64) / total


def _bins(values: Tensor, width: float) -> Tensor:
    """Number of each value's bin, counted from 0."""
    if not width > 0:
        raise ConfigError(explain("histogram bin", got=width, expected="a width > 0"))
    # 0.29 / 0.01 is 28.999...: rounding errors must not move a value to the bin below.
    bins = (values.to(torch.float64) / width + 1e-9).floor().to(torch.int64)
    return bins - bins.min()


def probability_of_gaps(gaps: Float[Tensor, " pair"], bin_width: float = 0.01) -> Float[Tensor, " pair"]:
    """Share of all pairs whose score gap falls in the same bin as this pair's.

    Raises:
        ConfigError: no pairs, or a width that is not above 0.
    """
    if not len(gaps):
        raise ConfigError(explain("probability_of_gaps", got="no pairs", expected="at least one"))
    bins = _bins(gaps, bin_width)
    return histogram_probability(torch.bincount(bins).to(torch.float64))[bins]


def duplication_factor(
    probability: Float[Tensor, " pair"], *, beta: float, constant: float = 0.72
) -> Float[Tensor, " pair"]:
    """Weight (constant / p)^beta of a pair: rare pairs count more. All 1 with beta 0, as in the release.

    Args:
        probability: > 0, how common the pair's score gap is; the release puts a score of the pair there.
        beta: >= 0.
        constant: numerator; the paper has 0.72 as an exponent instead, see `rarity_weight`.

    Raises:
        ConfigError: out of range.

    Source: CIntellifusion/VideoDPO, data/video_data.py and lvdm/models/ddpm3d.py.
    """
    if not (math.isfinite(beta) and beta >= 0 and constant > 0):
        expected = "beta >= 0 and constant > 0"
        got = f"[beta {beta:g}, constant {constant:g}]"
        raise ConfigError(explain("duplication_factor", got=got, expected=expected))
    if bool((probability <= 0).any()):
        lowest = float(probability.min())
        raise ConfigError(explain("duplication_factor probability", got=lowest, expected="numbers > 0"))
    return (constant / probability.to(torch.float64)) ** beta


def rarity_weight(
    winner: Float[Tensor, " pair"],
    loser: Float[Tensor, " pair"],
    *,
    alpha: float = 0.72,
    bin_width: float = 0.01,
) -> Float[Tensor, " pair"]:
    """Weight (p_max / p)^alpha with p = sqrt(p(winner's score) * p(loser's score)), at least 1.

    p(.) is the share of all scores of the data set in the same bin, p_max its largest value over bins.

    Args:
        winner: scores of the winners.
        loser: scores of the losers.
        alpha: >= 0; 0 counts all pairs alike.
        bin_width: > 0, in the unit of the scores.

    Raises:
        ConfigError: out of range, or no pairs.

    Source: arXiv 2412.14167 (VideoDPO, the paper's form; its release computes `duplication_factor`).
    """
    if not (math.isfinite(alpha) and alpha >= 0) or not len(winner):
        raise ConfigError(explain("rarity_weight", got=f"[alpha {alpha:g}]", expected="alpha >= 0 and pairs"))
    bins = _bins(torch.cat([winner, loser]), bin_width)
    share = histogram_probability(torch.bincount(bins).to(torch.float64))
    of_winner, of_loser = share[bins].chunk(2)
    return (share.max() / (of_winner * of_loser).sqrt()) ** alpha

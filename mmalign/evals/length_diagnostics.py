"""Whether length is taken for quality: of data, of rewards, of a comparison between two models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mmalign.errors import ShapeError, explain

__all__ = [
    "ControlledWins",
    "LengthBias",
    "PairLengths",
    "length_bias_of_rewards",
    "length_controlled_win_rate",
    "pair_lengths",
]

Numbers = Float[np.ndarray, " item"]


@dataclass(frozen=True)
class PairLengths:
    """How long chosen and rejected answers are.

    Args:
        chosen: mean words.
        rejected: the same.
        chosen_longer: share of pairs whose chosen answer has more words; ties count half.
        ratio: mean of chosen over mean of rejected.
        num_pairs: pairs.
    """

    chosen: float
    rejected: float
    chosen_longer: float
    ratio: float
    num_pairs: int


def pair_lengths(chosen: Sequence[str], rejected: Sequence[str]) -> PairLengths:
    """Lengths of both sides of pairs, in words.

    Raises:
        ShapeError: different numbers of texts, or none.
    """
    _same("pair_lengths", len(chosen), len(rejected))
    first, second = _words(chosen), _words(rejected)
    longer = (first > second) + 0.5 * (first == second)
    mean = float(first.mean()), float(second.mean())
    ratio = mean[0] / mean[1] if mean[1] else float("nan")
    return PairLengths(mean[0], mean[1], float(longer.mean()), ratio, len(chosen))


@dataclass(frozen=True)
class LengthBias:
    """How a reward goes with length.

    Args:
        correlation: Pearson's, over answers.
        rank_correlation: Spearman's, equal values sharing their mean rank.
        within_prompts: Pearson's after the mean of every prompt is taken from both: long answers to prompts
            that call for them do not count. NaN where no prompt has several answers.
        per_word: slope of the reward within prompts, per word; NaN likewise.
        num_items: answers with a finite reward.
    """

    correlation: float
    rank_correlation: float
    within_prompts: float
    per_word: float
    num_items: int


def length_bias_of_rewards(
    answers: Sequence[str], rewards: Sequence[float], prompts: Sequence[str] | None = None
) -> LengthBias:
    """Correlation of a reward with the number of words.

    Answers without a finite reward are left out.

    Args:
        answers: texts.
        rewards: of each.
        prompts: of each; without them every answer counts as one of the same prompt.

    Raises:
        ShapeError: different numbers, or fewer than two answers with a reward.
    """
    _same("length_bias_of_rewards", len(answers), len(rewards))
    if prompts is not None:
        _same("length_bias_of_rewards prompts", len(answers), len(prompts))
    values = np.asarray(rewards, dtype=np.float64)
    known = np.isfinite(values)
    if known.sum() < 2:
        message = explain("length_bias_of_rewards", got=int(known.sum()), expected="at least 2 rewards")
        raise ShapeError(message)
    words, values = _words(answers)[known], values[known]
    groups = np.unique(np.asarray(prompts or [""] * len(answers))[known], return_inverse=True)[1]
    counts = np.bincount(groups)
    several = counts[groups] > 1
    apart = [column - (np.bincount(groups, column) / counts)[groups] for column in (words, values)]
    inside = [column[several] for column in apart]
    spread = float((inside[0] ** 2).sum())
    slope = float((inside[0] * inside[1]).sum()) / spread if spread else float("nan")
    return LengthBias(
        _correlation(words, values),
        _correlation(_ranks(words), _ranks(values)),
        _correlation(inside[0], inside[1]),
        slope,
        int(known.sum()),
    )


@dataclass(frozen=True)
class ControlledWins:
    """Wins of a model over another, as counted and at equal lengths.

    Args:
        raw: mean of the preferences.
        controlled: win rate that the fitted model expects where both answers are equally long.
        slope: of the log-odds of a win, per standard deviation of the squashed difference in length.
    """

    raw: float
    controlled: float
    slope: float


_RIDGE = 1e-3
_ROUNDS = 100


def length_controlled_win_rate(
    preferences: Sequence[float], words: Sequence[int], words_of_other: Sequence[int]
) -> ControlledWins:
    """Win rate at equal lengths: logistic regression of wins on tanh of the standardised length difference.

    p(win) = sigmoid(a + b tanh(d / sd(d))), d = words - words of the other; the controlled rate is
    sigmoid(a).
    A small ridge on b keeps it finite where length decides every game. AlpacaEval's version has a term per
    prompt besides, for how hard it is, fitted over many models; with two models there is none.

    Args:
        preferences: probability that the model wins, 1 win, 0 loss, 0.5 tie.
        words: of its answers.
        words_of_other: of the other model's.

    Raises:
        ShapeError: different numbers, none, or preferences outside [0, 1].

    Source: Length-Controlled AlpacaEval, arXiv 2404.04475, without its instruction term.
    """
    _same("length_controlled_win_rate", len(preferences), len(words))
    _same("length_controlled_win_rate", len(preferences), len(words_of_other))
    wins = np.asarray(preferences, dtype=np.float64)
    if not np.all((wins >= 0) & (wins <= 1)):
        raise ShapeError(explain("preferences", got="[numbers outside 0 to 1]", expected="0 to 1"))
    gap = np.asarray(words, dtype=np.float64) - np.asarray(words_of_other, dtype=np.float64)
    deviation = float(gap.std())
    squashed = np.tanh(gap / deviation) if deviation else np.zeros_like(gap)
    features = np.stack([np.ones_like(gap), squashed], axis=1)
    weights = np.zeros(2)
    ridge = np.diag([1e-9, _RIDGE * len(wins)])
    for _ in range(_ROUNDS):
        chance = _sigmoid(features @ weights)
        slope = features.T @ (wins - chance) - ridge @ weights
        curvature = (features * (chance * (1 - chance))[:, None]).T @ features + ridge
        step = np.linalg.solve(curvature, slope)
        # A full step from a flat place would leave the range of numbers.
        weights = weights + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if float(np.abs(step).max()) < 1e-10:
            break
    controlled = float(_sigmoid(weights[:1])[0])
    return ControlledWins(float(wins.mean()), controlled, float(weights[1]))


def _sigmoid(values: Numbers) -> Numbers:
    made: Numbers = 0.5 * (1.0 + np.tanh(0.5 * values))
    return made


def _words(texts: Sequence[str]) -> Numbers:
    return np.array([len(text.split()) for text in texts], dtype=np.float64)


def _correlation(first: Numbers, second: Numbers) -> float:
    """Pearson's; NaN where either does not vary."""
    if len(first) < 2 or not np.ptp(first) or not np.ptp(second):
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Numbers) -> Numbers:
    """Ranks from 0, equal values sharing their mean."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    ranks: Numbers = (first + (counts - 1) / 2.0)[groups]
    return ranks


def _same(where: str, first: int, second: int) -> None:
    if first != second or not first:
        raise ShapeError(explain(where, got=[first, second], expected="as many of both, at least one"))

"""Can the size of a reward's difference be trusted? Probabilities from differences, and how far they are off.

The scale of a reward is arbitrary, so its differences become probabilities by one fitted number:
P(first preferred) = sigmoid(beta * difference). Fit beta on validation pairs, report on test pairs.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.agreement import labelled_pairs
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling, bootstrap_mean
from mmalign.evals.statistics.inputs import Values
from mmalign.evals.statistics.results import Interval, Result, shown
from mmalign.objectives.calibration import best_temperature, calibration

__all__ = ["RewardCalibration", "fit_beta", "reward_calibration"]


@dataclass(frozen=True)
class RewardCalibration(Result):
    """How far the probabilities of a reward are from what people chose.

    Args:
        beta: scale of the differences.
        error: expected calibration error: sum over bins of share * |accuracy - confidence|.
        largest_error: of any bin that holds pairs.
        brier: mean squared difference of confidence and outcome, with its interval over prompts.
        nll: mean negative log-likelihood in nats, with its interval over prompts; log 2 = 0.693 is a coin.
        accuracy: share of pairs whose more probable side is preferred, ties half.
        confidence: mean confidence; above `accuracy` = over-confident.
        temperature: by which beta * difference should be divided on these pairs for the lowest NLL; 1 = none.
            NaN where every difference is 0.
        nll_at_temperature: the NLL it would give.
        bins: rows of (lower edge, upper edge, pairs, mean confidence, accuracy), empty ones included.
        pairs: pairs that count.
        failed: pairs without a score (NaN), left out.
    """

    beta: float
    error: float
    largest_error: float
    brier: Interval
    nll: Interval
    accuracy: float
    confidence: float
    temperature: float
    nll_at_temperature: float
    bins: Float64[np.ndarray, "bin column"]
    pairs: int
    failed: int

    def describe(self) -> str:
        """One line, with over- or under-confidence in words."""
        off = self.confidence - self.accuracy
        word = "over-confident" if off > 0 else "under-confident"
        return (
            f"ECE {shown(self.error)} over {self.pairs} pairs, {word} by {shown(abs(off))}; "
            f"largest bin error {shown(self.largest_error)}, Brier {self.brier.describe()}, "
            f"NLL {self.nll.describe()}, best temperature {shown(self.temperature)}"
        )


def _decided(where: str, human: Values, difference: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P(first preferred) as people say (1, 0.5, 0), differences, and which pairs have one."""
    label, gap = labelled_pairs(where, human, difference)
    there = ~np.isnan(gap)
    if not there.any():
        message = explain(where, got="no pair with scores", expected="at least one")
        raise ConfigError(message)
    return 0.5 * (label[there] + 1.0), gap[there], there


def fit_beta(human: Values, difference: Values) -> float:
    """The scale that makes sigmoid(beta * difference) most likely; fit it on validation pairs.

    Args:
        human: 1 where people prefer the first, -1 the second, 0 a tie (half an outcome each way).
        difference: score of the first minus that of the second; NaN = failed, left out.

    Returns:
        beta > 0. Nearly 0 where the reward is no better than a coin; very large where it is never wrong.

    Raises:
        ShapeError: different numbers of labels and differences.
        ConfigError: other labels, no pair with scores, no difference other than 0.
    """
    outcome, gap, _ = _decided("fit_beta", human, difference)
    if not gap.any():
        expected = "a reward that tells pairs apart"
        message = explain("fit_beta", got="differences that are all 0", expected=expected)
        raise ConfigError(message)
    return _best_beta(outcome, gap)


def _best_beta(outcome: np.ndarray, gap: np.ndarray) -> float:
    """The most likely scale; NaN where every difference is 0."""
    size = float(np.abs(gap).mean())
    if size == 0:
        return math.nan
    # In units of the mean difference: probabilities near 1 would have lost their logits.
    confidence, right = _confidence(outcome, gap / size)
    temperature, _ = best_temperature(confidence, right)
    return float(1.0 / (size * float(temperature)))


def _confidence(outcome: np.ndarray, logit: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability of the more probable side, and how far it was right; a logit of 0 is half right."""
    right = np.where(logit > 0, outcome, np.where(logit < 0, 1.0 - outcome, 0.5))
    return torch.sigmoid(torch.from_numpy(np.abs(logit))), torch.from_numpy(right)


def _losses(outcome: np.ndarray, logit: np.ndarray) -> Float64[np.ndarray, " pair"]:
    """Negative log-likelihoods in nats, from logits: a wrong certainty is large and not infinite."""
    return np.asarray(np.logaddexp(0.0, logit) - outcome * logit)


def reward_calibration(
    human: Values,
    difference: Values,
    *,
    beta: float | int,
    num_bins: int = 10,
    prompts: Sequence[Hashable] | np.ndarray | None = None,
    how: Resampling = DEFAULT,
) -> RewardCalibration:
    """Calibration of P(first preferred) = sigmoid(beta * difference) on labelled pairs.

    confidence = sigmoid(|beta * difference|); bins of equal width on [0.5, 1], left edges included.

    Args:
        human: 1 where people prefer the first, -1 the second, 0 a tie.
        difference: score of the first minus that of the second; NaN = failed.
        beta: > 0; `fit_beta` on other pairs.
        num_bins: bins on [0.5, 1].
        prompts: of each pair; intervals then resample prompts.
        how: the bootstrap.

    Raises:
        ShapeError: different numbers of labels and differences.
        ConfigError: other labels, no pair with scores, beta not positive.
        HyperparameterError: no bins.

    Source: arXiv 1706.04599.
    """
    if not 0.0 < beta < np.inf:
        do = "fit_beta gives one; a reward where lower is better changes its sign first."
        raise ConfigError(explain("reward_calibration beta", got=beta, expected="a number > 0", do=do))
    outcome, gap, there = _decided("reward_calibration", human, difference)
    confidence, right = _confidence(outcome, beta * gap)
    found = calibration(confidence, right, num_bins=num_bins)
    best = _best_beta(outcome, gap)
    names: Sequence[Hashable] = range(len(gap))
    if prompts is not None:
        names = [prompt for prompt, kept in zip(prompts, there, strict=True) if kept]
    squares = (confidence - right).square().numpy()
    nll = math.nan if math.isnan(best) else float(_losses(outcome, best * gap).mean())
    edges = np.linspace(0.5, 1.0, num_bins + 1)
    columns = (found.bin_count, found.bin_confidence, found.bin_accuracy)
    return RewardCalibration(
        beta=float(beta),
        error=float(found.error),
        largest_error=float(found.largest_error),
        brier=bootstrap_mean(squares, how, prompts=names),
        nll=bootstrap_mean(_losses(outcome, beta * gap), how, prompts=names),
        accuracy=float(found.accuracy),
        confidence=float(found.confidence),
        temperature=float(beta / best),
        nll_at_temperature=nll,
        bins=np.stack([edges[:-1], edges[1:], *(column.numpy() for column in columns)], axis=1),
        pairs=len(gap),
        failed=int((~there).sum()),
    )

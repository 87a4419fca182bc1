"""The difference below which a reward should be read as "equal", chosen on labelled pairs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.agreement import RULES, TieRule, labelled_pairs
from mmalign.evals.statistics.inputs import Values, as_vector
from mmalign.evals.statistics.results import Result, shown

__all__ = ["ThresholdSearch", "calibrated_thresholds", "threshold_search", "videoalign_accuracy_with_ties"]


@dataclass(frozen=True)
class ThresholdSearch(Result):
    """Accuracy at several tie thresholds.

    Args:
        thresholds: tried, in order.
        accuracies: mean credit over pairs at each.
        best_threshold: the first with the highest accuracy. Below 0: predict no ties.
        best_accuracy: the accuracy there; on the pairs it was chosen on, so too good for a test result.
    """

    thresholds: Float64[np.ndarray, " threshold"]
    accuracies: Float64[np.ndarray, " threshold"]
    best_threshold: float
    best_accuracy: float

    def describe(self) -> str:
        """`best of 11 thresholds: 0.8 with accuracy 0.750 on the pairs it was chosen on`."""
        return (
            f"best of {len(self.thresholds)} thresholds: {self.best_threshold:.4g} with accuracy "
            f"{shown(self.best_accuracy)} on the pairs it was chosen on"
        )


def calibrated_thresholds(difference: Values) -> Float64[np.ndarray, " threshold"]:
    """Every threshold that can matter: -1 (predict no ties), then each distinct |difference|, ascending.

    Source: arXiv 2305.14324.
    """
    gap = as_vector("calibrated_thresholds", difference, missing_ok=True)
    return np.concatenate([[-1.0], np.unique(np.abs(gap[~np.isnan(gap)]))])


def threshold_search(
    human: Values, difference: Values, thresholds: Values, rule: TieRule = RULES["with_ties"]
) -> ThresholdSearch:
    """The threshold below which a difference is best called a tie.

    Choose it on validation pairs and use it on test pairs. With `calibrated_thresholds` and the rule
    `with_ties` this is tie calibration (pairwise accuracy of Deutsch et al.); with 0, 0.1, ..., 1 on
    probability differences and the rule `pickapic` it is PickScore's.

    Args:
        human: 1 where people prefer the first, -1 the second, 0 a tie.
        difference: score or probability of the first minus that of the second; NaN = failed.
        thresholds: to try; the first of equally good ones wins.
        rule: what ties are worth.

    Raises:
        ShapeError: different numbers of labels and differences.
        ConfigError: other labels, no thresholds, no pair that counts.
    """
    tried = as_vector("threshold_search thresholds", thresholds)
    label, gap = labelled_pairs("threshold_search", human, difference)
    counts = ~np.isnan(gap) & (rule.keep_human_ties | (label != 0))
    if not counts.any():
        message = explain("threshold_search", got="no pair that counts", expected="at least one")
        raise ConfigError(message)
    accuracies = _accuracy_at(label[counts], gap[counts], tried, rule)
    best = int(accuracies.argmax())
    return ThresholdSearch(tried, accuracies, float(tried[best]), float(accuracies[best]))


def _accuracy_at(
    label: Float64[np.ndarray, " pair"],
    gap: Float64[np.ndarray, " pair"],
    thresholds: Float64[np.ndarray, " threshold"],
    rule: TieRule,
) -> Float64[np.ndarray, " threshold"]:
    """Mean credit at each threshold, from running sums over pairs sorted by |difference|."""
    size = np.abs(gap)
    order = np.argsort(size, kind="stable")
    label, gap, size = label[order], gap[order], size[order]
    decided = np.where(label == 0, rule.one_sided, (np.sign(gap) == label).astype(np.float64))
    decided = np.where(gap == 0, 0.0, decided)
    tied = np.where(label == 0, 1.0, rule.one_sided)
    below = np.concatenate([[0.0], np.cumsum(tied)])
    above = np.concatenate([[0.0], np.cumsum(decided)])
    cut = np.searchsorted(size, thresholds, side="right")
    return np.asarray((below[cut] + above[-1] - above[cut]) / len(label))


def videoalign_accuracy_with_ties(human: Values, difference: Values) -> float:
    """Accuracy with ties as VideoGen-RewardBench's script computes it, for comparison with its tables.

    It differs from `threshold_search` over `calibrated_thresholds` in two ways: "no ties at all" is never
    tried, and pairs of equal |difference| become ties one by one, in the order given.

    Args:
        human: 1 where people prefer the first, -1 the second, 0 a tie.
        difference: score of the first minus that of the second.

    Raises:
        ShapeError: different numbers of labels and differences.
        ConfigError: other labels, NaN.

    Source: KwaiVGI/VideoAlign, calc_accuracy.py.
    """
    known = as_vector("videoalign_accuracy_with_ties difference", difference)
    label, gap = labelled_pairs("videoalign_accuracy_with_ties", human, known)
    order = np.argsort(np.abs(gap), kind="stable")
    right = (label * gap > 0)[order].astype(np.float64)
    equal = (label == 0)[order].astype(np.float64)
    return float((right.sum() - np.cumsum(right) + np.cumsum(equal)).max() / len(label))

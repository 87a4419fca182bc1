"""Numbers about the probabilities that a policy gives to preferences: calibration. No loss, no gradient.

Every function takes tensors and returns tensors of the same device. Counting happens in float64.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from mmalign.objectives.base import require

__all__ = [
    "Calibration",
    "best_temperature",
    "calibration",
    "preference_calibration",
]


@dataclass(frozen=True)
class Calibration:
    """How far stated probabilities are from what happened.

    Args:
        error: expected calibration error, sum over bins of (share of pairs) |accuracy - confidence|.
        largest_error: largest |accuracy - confidence| of a bin that holds pairs.
        brier: mean squared difference of confidence and outcome.
        nll: mean negative log-likelihood of the outcomes, in nats.
        accuracy: share of pairs judged rightly.
        confidence: mean confidence; above `accuracy` = over-confident.
        bin_count: pairs in each bin.
        bin_confidence: mean confidence of each bin, 0 where it is empty.
        bin_accuracy: accuracy of each bin, 0 where it is empty.
    """

    error: Float[Tensor, ""]
    largest_error: Float[Tensor, ""]
    brier: Float[Tensor, ""]
    nll: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    confidence: Float[Tensor, ""]
    bin_count: Float[Tensor, " bin"]
    bin_confidence: Float[Tensor, " bin"]
    bin_accuracy: Float[Tensor, " bin"]


def calibration(
    confidence: Float[Tensor, " pair"],
    correct: Shaped[Tensor, " pair"],
    *,
    num_bins: int = 10,
    lower: float = 0.5,
    upper: float = 1.0,
) -> Calibration:
    """Calibration of stated confidences.

    Bins have equal width on [lower, upper] and include their left edge, the last one both. Empty bins count
    nothing; no pairs at all give zeros.

    Args:
        confidence: probability that was given to what was predicted, in [lower, upper].
        correct: 1 where the prediction was right, 0 where not; 0.5 for an undecided one.
        num_bins: >= 1, 10 is usual.
        lower: smallest possible confidence: 0.5 for two candidates.
        upper: largest possible confidence.

    Raises:
        HyperparameterError: no bins, or an empty range.

    Source: arXiv 1706.04599, equation 3, on [0.5, 1].
    """
    require("calibration num_bins", float(num_bins), num_bins >= 1, "at least 1")
    require("calibration upper", upper, upper > lower, f"a number above lower ({lower})")
    # Edges in the dtype of the confidences: rounded alike, a confidence of 0.7 meets the edge 0.7.
    edges = [lower + (upper - lower) * place / num_bins for place in range(1, num_bins)]
    inner = torch.tensor(edges, dtype=confidence.dtype, device=confidence.device)
    places = torch.bucketize(confidence.detach(), inner, right=True)
    given, outcome = confidence.detach().double(), correct.detach().double()
    zeros = torch.zeros(num_bins, dtype=torch.float64, device=confidence.device)
    count = zeros.index_add(0, places, torch.ones_like(given))
    safe = count.clamp(min=1.0)
    mean_confidence = zeros.index_add(0, places, given) / safe
    mean_correct = zeros.index_add(0, places, outcome) / safe
    gap = (mean_correct - mean_confidence).abs()
    total = max(confidence.numel(), 1)
    # xlogy: a certain and right prediction costs 0, not 0 * log 0.
    nll = -(torch.xlogy(outcome, given) + torch.xlogy(1.0 - outcome, 1.0 - given))
    return Calibration(
        error=(count * gap).sum() / total,
        largest_error=gap.max(),
        brier=(given - outcome).square().sum() / total,
        nll=nll.sum() / total,
        accuracy=outcome.sum() / total,
        confidence=given.sum() / total,
        bin_count=count,
        bin_confidence=mean_confidence,
        bin_accuracy=mean_correct,
    )


def preference_calibration(
    logit: Float[Tensor, " pair"], *, num_bins: int = 10, temperature: float = 1.0
) -> Calibration:
    """Calibration of a preference model whose logit of "the chosen one is better" is `logit`.

    confidence = sigmoid(|logit| / temperature), correct where logit > 0; a logit of 0 is half right.

    Args:
        logit: what the objective puts into its link, for DPO beta (log-ratio of chosen - of rejected).
        num_bins: bins on [0.5, 1].
        temperature: > 0; see `best_temperature`.

    Raises:
        HyperparameterError: no bins, or a temperature that is not positive.
    """
    require("preference_calibration temperature", temperature, temperature > 0, "a number > 0")
    confidence = torch.sigmoid(logit.detach().double().abs() / temperature)
    correct = 0.5 * (torch.sign(logit.detach().double()) + 1.0)
    return calibration(confidence, correct, num_bins=num_bins)


_LARGEST_TEMPERATURE = 1e6


def best_temperature(
    confidence: Float[Tensor, " pair"], correct: Shaped[Tensor, " pair"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The temperature whose division of the logits gives the lowest NLL, and that NLL in nats.

    The NLL is convex in 1 / temperature; its derivative is bisected between 1e-6 and 1e6. Predictions that
    are all right (or no better than chance) have no best temperature: the end of the range comes back.

    Args:
        confidence: probability that was given to what was predicted, inside (0, 1).
        correct: 1 where the prediction was right, 0 where not.

    Source: arXiv 1706.04599, section 4.2.
    """
    tiny = torch.finfo(torch.float64).tiny
    given, outcome = confidence.detach().double(), correct.detach().double()
    logit = (given.clamp(min=tiny) / (1.0 - given).clamp(min=torch.finfo(torch.float64).eps)).log()
    edge = torch.tensor(math.log(_LARGEST_TEMPERATURE), dtype=torch.float64, device=given.device)
    low, high = -edge, edge
    for _ in range(80):
        middle = 0.5 * (low + high)
        slope = (logit * (torch.sigmoid(logit * torch.exp(middle)) - outcome)).sum()
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    inverse = torch.exp(0.5 * (low + high))
    nll = functional.binary_cross_entropy_with_logits(logit * inverse, outcome)
    return 1.0 / inverse, nll

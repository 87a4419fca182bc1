"""How good a trained reward is on pairs it has not seen: NLL, accuracy with tie rules, calibration."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, explain
from mmalign.objectives.calibration import preference_calibration

__all__ = ["HeldOut", "Measures", "best_scale", "best_tie_threshold", "measure", "nll", "tie_credit"]

_SCALES = (-6.0, 6.0)
"""Natural logarithms of the temperatures that are tried."""

_THRESHOLDS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs as the reward sees them.

    Args:
        logit: of P(the first is better).
        probability: that the first is better, by the labels; 0.5 = a tie.
        weight: of the pairs.
    """

    logit: Float[Tensor, " pair"]
    probability: Float[Tensor, " pair"]
    weight: Float[Tensor, " pair"]

    @property
    def decided(self) -> Bool[Tensor, " pair"]:
        """Pairs that the labels do not call a tie."""
        return self.probability != 0.5


@dataclass(frozen=True)
class Measures:
    """What held-out pairs say of a reward.

    Args:
        pairs: that are decided by their labels.
        ties: by their labels.
        nll: mean negative log-likelihood of all labels, nats.
        accuracy: of decided pairs; an equal reward is half right ("half" of mmalign.evals).
        right: pairs judged rightly, in the same count (may end in a half), for intervals.
        accuracy_with_ties: of all pairs, where |P(first) - P(second)| up to `tie_threshold` is a predicted
            tie: right on ties, half right where only one side says tie ("pickapic" of mmalign.evals).
        tie_threshold: chosen on validation pairs.
        calibration_error: expected calibration error over ten bins of decided pairs, in [0, 1].
        brier: mean squared difference of confidence and outcome.
        temperature: that the logits were divided by.
    """

    pairs: int
    ties: int
    nll: float
    accuracy: float
    right: float
    accuracy_with_ties: float
    tie_threshold: float
    calibration_error: float
    brier: float
    temperature: float

    def as_json(self) -> dict[str, float | int | None]:
        """The same as JSON types; None where nothing was there to measure."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def nll(pairs: HeldOut) -> float:
    """Weighted mean negative log-likelihood of the labels, in nats; NaN without pairs."""
    logit, label, weight = (part.double() for part in (pairs.logit, pairs.probability, pairs.weight))
    losses = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
    return float((weight * losses).sum() / weight.sum())


def tie_credit(pairs: HeldOut, threshold: float) -> Float[Tensor, " pair"]:
    """Each pair's worth: 1 right, 0 wrong, 0.5 where only one side says tie.

    Args:
        pairs: of any labels.
        threshold: |P(first) - P(second)| up to it is a predicted tie.

    Source: yuvalkirstain/PickScore, `eval_preference_predictor.py`.
    """
    probability = pairs.logit.double().sigmoid()
    tied = (2.0 * probability - 1.0).abs() <= threshold
    agrees = torch.sign(pairs.logit.double()) == torch.sign(pairs.probability.double() - 0.5)
    said = ~pairs.decided
    credit = torch.where(tied & said, 1.0, torch.where(tied | said, 0.5, agrees.double()))
    return credit.double()


def best_tie_threshold(pairs: HeldOut) -> float:
    """The threshold in {0, 0.1, ..., 1} with the most credit; the smallest of equal ones."""
    return max(_THRESHOLDS, key=lambda threshold: (float(tie_credit(pairs, threshold).sum()), -threshold))


def best_scale(loss: Callable[[float], float]) -> float:
    """The temperature in [e^-6, e^6] at which `loss` is lowest, by a grid and golden section.

    Args:
        loss: of a temperature; one valley is assumed.
    """
    low, high = _SCALES
    grid = [low + (high - low) * place / 48 for place in range(49)]
    values = [loss(math.exp(place)) for place in grid]
    best = min(range(len(grid)), key=values.__getitem__)
    left, right = grid[max(best - 1, 0)], grid[min(best + 1, 48)]
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(40):
        inner = right - ratio * (right - left), left + ratio * (right - left)
        if loss(math.exp(inner[0])) <= loss(math.exp(inner[1])):
            right = inner[1]
        else:
            left = inner[0]
    return math.exp((left + right) / 2.0)


def measure(pairs: HeldOut, *, temperature: float = 1.0, tie_threshold: float = 0.0) -> Measures:
    """Everything about some held-out pairs.

    Args:
        pairs: their logits already divided by the temperature.
        temperature: for the record.
        tie_threshold: chosen on other pairs (`best_tie_threshold`).

    Raises:
        ConfigError: no pairs.
    """
    if len(pairs.logit) == 0:
        message = explain(
            "held-out pairs", got="[none]", expected="one or more", do="Raise validation.test_share."
        )
        raise ConfigError(message)
    decided = pairs.decided
    sure = pairs.probability[decided].double()
    # Towards the preferred side: positive where the reward agrees.
    logit = pairs.logit[decided].double() * torch.sign(sure - 0.5)
    found = preference_calibration(logit)
    right = float((0.5 * (torch.sign(logit) + 1.0)).sum())
    count = int(decided.sum())
    return Measures(
        pairs=count,
        ties=len(decided) - count,
        nll=nll(pairs),
        accuracy=right / count if count else math.nan,
        right=right,
        accuracy_with_ties=float(tie_credit(pairs, tie_threshold).mean()),
        tie_threshold=tie_threshold,
        calibration_error=float(found.error),
        brier=float(found.brier),
        temperature=temperature,
    )

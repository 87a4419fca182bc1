"""Win rates at equal length, file size or saturation: what is left of verdicts without a judge's habits.

A judge that likes long answers rewards a model for writing more. The verdict is regressed on who answered and
on the differences in what should not matter; the win rate is read where those differences are zero.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.inputs import (
    Values,
    as_vector,
    group_numbers,
    require_confidence,
    require_same_length,
)
from mmalign.evals.statistics.proportions import normal_quantile
from mmalign.evals.statistics.results import Interval, Result, shown

__all__ = ["ControlledWinRate", "controlled_win_rate"]

_MAX_STEPS = 100
_LARGEST_LOGIT = 25.0  # sigmoid(25) = 1 - 1e-11: beyond it the data have no finite answer


@dataclass(frozen=True)
class ControlledWinRate(Result):
    """A win rate at equal nuisances.

    Args:
        raw: the plain win rate, ties half.
        controlled: win rate at nuisance difference 0, with its interval.
        effects: by nuisance, the change in log-odds per standard deviation of its difference, with interval:
            above 0 = the judge favours the side that has more of it.
        scales: the standard deviations (about 0) by which the differences were divided.
        num_verdicts: verdicts used.
        failed: verdicts left out because something is missing (NaN).
        num_prompts: independent units behind the intervals.
        ridge: penalty on the effects.
    """

    raw: float
    controlled: Interval
    effects: Mapping[str, Interval]
    scales: Mapping[str, float]
    num_verdicts: int
    failed: int
    num_prompts: int
    ridge: float

    def describe(self) -> str:
        """The raw and the controlled win rate, then the effects of the nuisances."""
        effects = ", ".join(f"{name} {value.describe()}" for name, value in self.effects.items())
        return (
            f"win rate {shown(self.raw)}, at equal {', '.join(self.effects)} {self.controlled.describe()} "
            f"over {self.num_verdicts} verdicts; log-odds per standard deviation: {effects}"
        )


def controlled_win_rate(
    verdict: Values,
    nuisances: Mapping[str, Values],
    *,
    prompts: Sequence[Hashable] | np.ndarray | None = None,
    ridge: float | int = 0.0,
    confidence: float = 0.95,
) -> ControlledWinRate:
    """The first model's win rate at equal nuisances, by logistic regression.

    P(first wins) = sigmoid(a + sum_k b_k d_k / scale_k); the controlled win rate is sigmoid(a). Differences
    are divided by their root mean square and not centred: zero has to stay "equal". A nuisance whose effect
    levels off (very long answers) goes in as its tanh or logarithm.

    Intervals come from the covariance that allows for several verdicts per prompt (sandwich), on the scale of
    the logit.

    Args:
        verdict: 1 where the first model wins, 0 where the second does, 0.5 for a tie, or a probability; NaN
            where there is none.
        nuisances: by name, value of the first model minus that of the second; NaN = unknown.
        prompts: of each verdict; None: each is its own.
        ridge: penalty ridge / 2 * sum b^2, >= 0; needed where nuisances alone decide every verdict.
        confidence: in (0, 1).

    Raises:
        ShapeError: different numbers of verdicts and differences.
        ConfigError: no nuisances, a verdict outside [0, 1], fewer verdicts than numbers to fit, one prompt,
            nuisances that are constant 0 or follow from each other, or verdicts without a finite answer.

    Source: the idea is that of length-controlled AlpacaEval, arXiv 2404.04475.
    """
    require_confidence("controlled_win_rate", confidence)
    outcome, table, there = _usable(verdict, nuisances)
    names = range(len(there)) if prompts is None else prompts
    require_same_length("controlled_win_rate", there, prompts=names)
    places, groups = group_numbers([name for name, kept in zip(names, there, strict=True) if kept])
    if len(groups) < 2 or len(outcome) <= table.shape[1] + 1:
        got = f"{len(outcome)} verdicts on {len(groups)} prompts"
        expected = f"more than {table.shape[1] + 1} verdicts on two prompts at least"
        raise ConfigError(explain("controlled_win_rate", got=got, expected=expected))
    scales = np.sqrt((table**2).mean(axis=0))
    _require_independent(table, scales, list(nuisances))
    design = np.concatenate([np.ones((len(outcome), 1)), table / scales], axis=1)
    penalty = np.concatenate([[0.0], np.full(table.shape[1], float(ridge))])
    weights = _fit(design, outcome, penalty)
    error = _robust_errors(design, outcome, weights, penalty, places, len(groups))
    z = normal_quantile(0.5 + confidence / 2)
    low, value, high = (_sigmoid(weights[0] + side * z * error[0]) for side in (-1.0, 0.0, 1.0))
    effects = {
        name: Interval(float(b), float(b - z * e), float(b + z * e), confidence, "normal")
        for name, b, e in zip(nuisances, weights[1:], error[1:], strict=True)
    }
    return ControlledWinRate(
        raw=float(outcome.mean()),
        controlled=Interval(value, low, high, confidence, "normal on the logit"),
        effects=effects,
        scales=dict(zip(nuisances, scales.tolist(), strict=True)),
        num_verdicts=len(outcome),
        failed=int((~there).sum()),
        num_prompts=len(groups),
        ridge=float(ridge),
    )


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))


def _usable(
    verdict: Values, nuisances: Mapping[str, Values]
) -> tuple[Float64[np.ndarray, " verdict"], Float64[np.ndarray, "verdict nuisance"], np.ndarray]:
    """Verdicts and nuisances without the failed ones, and which those are."""
    if not nuisances:
        do = "win_rate is the plain one."
        message = explain("controlled_win_rate nuisances", got="none", expected="at least one", do=do)
        raise ConfigError(message)
    outcome = as_vector("controlled_win_rate verdict", verdict, missing_ok=True)
    columns = [
        as_vector(f"controlled_win_rate {name}", values, missing_ok=True)
        for name, values in nuisances.items()
    ]
    for name, column in zip(nuisances, columns, strict=True):
        require_same_length(f"controlled_win_rate {name}", outcome, differences=column)
    if np.nanmin(outcome, initial=0.0) < 0 or np.nanmax(outcome, initial=0.0) > 1:
        expected = "1, 0.5, 0 or a probability"
        got = float(outcome[(outcome < 0) | (outcome > 1)][0])
        raise ConfigError(explain("controlled_win_rate verdict", got=got, expected=expected))
    table = np.stack(columns, axis=1)
    there = ~(np.isnan(outcome) | np.isnan(table).any(axis=1))
    if not there.any():
        message = explain("controlled_win_rate", got="no complete verdict", expected="at least one")
        raise ConfigError(message)
    return outcome[there], table[there], there


def _require_independent(
    table: Float64[np.ndarray, "verdict nuisance"], scales: Float64[np.ndarray, " nuisance"], names: list[str]
) -> None:
    if (scales == 0).any():
        got = f"{names[int(scales.argmin())]} is 0 everywhere"
        raise ConfigError(
            explain("controlled_win_rate", got=got, expected="nuisances that differ", do="Leave it out.")
        )
    design = np.concatenate([np.ones((len(table), 1)), table / scales], axis=1)
    if np.linalg.matrix_rank(design, tol=1e-8 * math.sqrt(len(design))) < design.shape[1]:
        message = explain(
            "controlled_win_rate",
            got=f"nuisances {names} of which one is constant or follows from the others",
            expected="nuisances that vary on their own",
            do="Leave one out: a nuisance that never changes cannot be told from the model.",
        )
        raise ConfigError(message)


def _fit(
    design: Float64[np.ndarray, "verdict weight"],
    outcome: Float64[np.ndarray, " verdict"],
    penalty: Float64[np.ndarray, " weight"],
) -> Float64[np.ndarray, " weight"]:
    """Maximum of the penalised likelihood by Newton's method; refuses verdicts without a finite answer."""
    weights = np.zeros(design.shape[1])

    def loss(candidate: Float64[np.ndarray, " weight"]) -> float:
        logit = design @ candidate
        return float(
            (np.logaddexp(0.0, logit) - outcome * logit).sum() + 0.5 * (penalty * candidate**2).sum()
        )

    value = loss(weights)
    for _ in range(_MAX_STEPS):
        share = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -500, 500)))
        gradient = design.T @ (outcome - share) - penalty * weights
        curvature = (design * (share * (1.0 - share))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        reach = 1.0
        # Near the maximum a sum's rounding exceeds what a step gains: that is no reason to shorten it.
        allowed = value + 1e-12 * max(1.0, abs(value))
        while loss(weights + reach * step) > allowed and reach > 1e-12:
            reach *= 0.5
        weights = weights + reach * step
        value = loss(weights)
        if np.abs(weights).max() > _LARGEST_LOGIT:
            break
        if np.abs(step).max() < 1e-10:
            return np.asarray(weights)
    message = explain(
        "controlled_win_rate",
        got="verdicts that the nuisances, or the model alone, decide without exception",
        expected="some verdicts that go the other way",
        do="Pass ridge=1, leave nuisances out, or report the plain win rate.",
    )
    raise ConfigError(message)


def _robust_errors(
    design: Float64[np.ndarray, "verdict weight"],
    outcome: Float64[np.ndarray, " verdict"],
    weights: Float64[np.ndarray, " weight"],
    penalty: Float64[np.ndarray, " weight"],
    places: np.ndarray,
    num_groups: int,
) -> Float64[np.ndarray, " weight"]:
    """Standard errors H^-1 (sum over prompts g g^T) H^-1 * C / (C - 1)."""
    share = 1.0 / (1.0 + np.exp(-(design @ weights)))
    curvature = (design * (share * (1.0 - share))[:, None]).T @ design + np.diag(penalty)
    scores = np.zeros((num_groups, design.shape[1]))
    np.add.at(scores, places, design * (outcome - share)[:, None])
    inverse = np.linalg.inv(curvature)
    covariance = inverse @ (scores.T @ scores) @ inverse * num_groups / (num_groups - 1)
    return np.sqrt(np.clip(np.diag(covariance), 0.0, None))

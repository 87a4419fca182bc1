"""Shares and their intervals without resampling: Wilson, Clopper-Pearson, binomial tails."""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.inputs import require_confidence
from mmalign.evals.statistics.results import Interval

__all__ = ["binomial_tail", "exact_interval", "normal_quantile", "wilson_interval"]

_HALVINGS = 60
"""Bisection steps: the end of an interval is exact to 1e-18."""


def normal_quantile(probability: float) -> float:
    """The number below which a standard normal falls with this probability."""
    return NormalDist().inv_cdf(probability)


def _require_share(where: str, successes: float | int, num: int) -> None:
    if num < 1 or not 0 <= successes <= num:
        message = explain(where, got=f"{successes} of {num}", expected="0 <= successes <= num, num >= 1")
        raise ConfigError(message)


def wilson_interval(successes: float | int, num: int, *, confidence: float = 0.95) -> Interval:
    """A share with Wilson's score interval.

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half width = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

    It stays in [0, 1] and keeps a width at 0 and 1. Its n is the number of independent trials: prompts.

    Args:
        successes: may be a fraction, where ties count half or a prompt has several seeds. The interval is
            then a little too wide, since such values vary less than zeros and ones.
        num: trials, at least 1.
        confidence: in (0, 1).

    Raises:
        ConfigError: no trials, or more successes than trials.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    _require_share("wilson_interval", successes, num)
    require_confidence("wilson_interval", confidence)
    z = normal_quantile(0.5 + confidence / 2)
    share = successes / num
    shrink = 1.0 / (1.0 + z**2 / num)
    centre = shrink * (share + z**2 / (2 * num))
    half = shrink * z * math.sqrt(share * (1.0 - share) / num + z**2 / (4 * num**2))
    # The ends are exactly 0 and 1 there; rounding would leave 1e-17.
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == num else min(centre + half, 1.0)
    return Interval(share, low, high, confidence, "wilson")


def _log_coefficients(num: int) -> Float64[np.ndarray, " outcome"]:
    """Logarithms of (num choose k) for k = 0 .. num."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num + 1, dtype=np.float64)))])
    return np.asarray(logs[num] - logs - logs[::-1])


def _tail(coefficients: Float64[np.ndarray, " outcome"], least: int, share: float | int) -> float:
    """P(X >= least) from the logarithms of the binomial coefficients, share in (0, 1)."""
    num = len(coefficients) - 1
    outcomes = np.arange(least, num + 1)
    logs = coefficients[least:] + outcomes * math.log(share) + (num - outcomes) * math.log1p(-share)
    return float(min(1.0, np.exp(logs).sum()))


def binomial_tail(least: int, num: int, share: float | int = 0.5) -> float:
    """P(X >= least) of a binomial with `num` trials and success probability `share`.

    Summed in logarithms: exact to about 12 digits for up to a million trials.

    Raises:
        ConfigError: `least` outside [0, num], or a share outside [0, 1].
    """
    _require_share("binomial_tail", least, max(num, 0) or 1)
    if not 0.0 <= share <= 1.0:
        raise ConfigError(explain("binomial_tail share", got=share, expected="a probability"))
    if least == 0:
        return 1.0
    if share in (0.0, 1.0):
        return share
    return _tail(_log_coefficients(num), least, share)


def exact_interval(successes: int, num: int, *, confidence: float = 0.95) -> Interval:
    """A share with the exact interval of Clopper and Pearson: it covers at least as often as it says.

    low solves P(X >= successes | low) = (1 - confidence) / 2, high solves P(X <= successes | high) = the same

    Args:
        successes: whole number; leave ties out, or count them as losses.
        num: independent trials, at least 1.
        confidence: in (0, 1).

    Raises:
        ConfigError: no trials, or more successes than trials.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial".
    """
    _require_share("exact_interval", successes, num)
    require_confidence("exact_interval", confidence)
    coefficients, alpha = _log_coefficients(num), (1.0 - confidence) / 2.0
    low = 0.0 if successes == 0 else _solve(coefficients, successes, alpha)
    # P(X <= k | p) is the tail P(Y >= n - k | 1 - p) of the failures.
    high = 1.0 if successes == num else 1.0 - _solve(coefficients, num - successes, alpha)
    return Interval(successes / num, low, high, confidence, "exact")


def _solve(coefficients: Float64[np.ndarray, " outcome"], least: int, alpha: float) -> float:
    """The share at which P(X >= least) is alpha; the tail grows with the share."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if _tail(coefficients, least, middle) < alpha:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)

"""Many comparisons at once: adjusted p-values, so that "significant" keeps its meaning in a table."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.inputs import Values, as_vector

__all__ = ["adjust", "benjamini_hochberg", "holm"]


def _p_values(where: str, p_values: Values) -> Float64[np.ndarray, " test"]:
    array = as_vector(where, p_values, missing_ok=True)
    if np.nanmin(array, initial=0.0) < 0 or np.nanmax(array, initial=0.0) > 1:
        raise ConfigError(explain(where, got=str(array.tolist()), expected="probabilities"))
    return array


def _adjusted(
    array: Float64[np.ndarray, " test"], step: Callable[[np.ndarray], np.ndarray]
) -> Float64[np.ndarray, " test"]:
    """`step` of the sorted p-values, put back in place; tests without a p-value keep NaN and do not count."""
    there = np.flatnonzero(~np.isnan(array))
    order = there[np.argsort(array[there], kind="stable")]
    result = np.full(len(array), np.nan)
    if len(order):
        result[order] = np.minimum(step(array[order]), 1.0)
    return result


def holm(p_values: Values) -> Float64[np.ndarray, " test"]:
    """Adjusted p-values that bound the chance of any false claim at all (family-wise error).

    adjusted_(i) = max over j <= i of (m - j + 1) p_(j), at most 1; m tests, sorted from the smallest

    Needs no assumption about how the tests depend on each other: rewards that agree are no problem.

    Args:
        p_values: one per test, NaN for a test that could not be made (it does not count).

    Returns:
        Adjusted p-values in the order given: claim those <= 0.05.

    Raises:
        ConfigError: no p-values, or numbers that are no probabilities.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    array = _p_values("holm", p_values)
    return _adjusted(array, lambda p: np.maximum.accumulate(p * np.arange(len(p), 0, -1)))


def benjamini_hochberg(p_values: Values) -> Float64[np.ndarray, " test"]:
    """Adjusted p-values that bound the expected share of false ones among the claims (false discovery rate).

    adjusted_(i) = min over j >= i of m p_(j) / j; m tests, sorted from the smallest

    Valid for independent or positively dependent tests. For exploring many factors; a report's headline uses
    `holm`.

    Args:
        p_values: as in `holm`.

    Raises:
        ConfigError: as in `holm`.

    Source: Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    array = _p_values("benjamini_hochberg", p_values)

    def step(p: np.ndarray) -> np.ndarray:
        # The factor of the largest is exactly 1: rounding must not lower a p-value.
        scaled = p * (len(p) / np.arange(1, len(p) + 1))
        return np.asarray(np.minimum.accumulate(scaled[::-1])[::-1])

    return _adjusted(array, step)


def adjust(p_values: Mapping[str, float]) -> dict[str, float]:
    """`holm` by name: rewards x prompt sets of one report belong into one call."""
    if not p_values:
        return {}
    return dict(zip(p_values, holm(list(p_values.values())).tolist(), strict=True))

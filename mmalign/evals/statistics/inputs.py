"""From what a caller has (lists, arrays, tensors) to checked float64 arrays.

NaN is what the harness writes for an item that could not be generated or scored. It is never averaged:
functions that accept it leave such items out and count them, all others refuse it by name.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError, explain

__all__ = [
    "Matrix",
    "Values",
    "as_matrix",
    "as_vector",
    "group_means",
    "group_numbers",
    "require_confidence",
    "require_same_length",
]

Values = Sequence[float | int] | np.ndarray | Tensor
"""One number per item."""

Matrix = Sequence[Sequence[float | int]] | np.ndarray | Tensor
"""Numbers in rows and columns."""


def _array(where: str, values: object, ndim: int, what: str) -> np.ndarray:
    given = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    try:
        array = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        message = explain(where, got=str(problem), expected=f"{what}, all of them numbers")
        raise ShapeError(message) from problem
    if array.ndim != ndim:
        raise ShapeError(explain(where, got=str(list(array.shape)), expected=what))
    if array.size == 0:
        message = explain(where, got="nothing", expected="at least one value", do="Was anything scored?")
        raise ConfigError(message)
    return array


def _require_numbers(where: str, array: np.ndarray, missing_ok: bool) -> None:
    if np.isinf(array).any():
        message = explain(where, got="inf", expected="finite numbers", do="A failed item is NaN.")
        raise ConfigError(message)
    if not missing_ok and np.isnan(array).any():
        count, first = int(np.isnan(array).sum()), np.argwhere(np.isnan(array))[0].tolist()
        message = explain(
            where,
            got=f"{count} NaN of {array.size}, the first at {first}",
            expected="finite numbers",
            do="Leave failed items out, and say how many there were.",
        )
        raise ConfigError(message)


def as_vector(where: str, values: Values, *, missing_ok: bool = False) -> Float64[np.ndarray, " item"]:
    """One float64 number per item, copied.

    Args:
        where: function and argument, for messages.
        values: the numbers.
        missing_ok: whether NaN may stand for a failed item.

    Raises:
        ShapeError: not a list of numbers.
        ConfigError: empty, infinite, or NaN where it is not allowed.
    """
    array = _array(where, values, 1, "a list with one number per item")
    _require_numbers(where, array, missing_ok)
    return array


def as_matrix(where: str, values: Matrix, *, missing_ok: bool = False) -> Float64[np.ndarray, "row column"]:
    """Float64 numbers in rows and columns, copied; as `as_vector` otherwise."""
    array = _array(where, values, 2, "a table of numbers, rows of one length")
    _require_numbers(where, array, missing_ok)
    return array


def require_same_length(where: str, items: Sequence[object] | np.ndarray, /, **others: object) -> None:
    """Raise `ShapeError` unless everything has one entry per item."""
    for name, other in others.items():
        if len(other) != len(items):  # type: ignore[arg-type]  # sized by what callers pass
            got = f"{len(other)} {name}"  # type: ignore[arg-type]
            raise ShapeError(explain(where, got=got, expected=f"{len(items)}, one per item"))


def require_confidence(where: str, confidence: float) -> None:
    """Raise `ConfigError` unless a confidence is in (0, 1)."""
    if not 0.0 < confidence < 1.0:
        message = explain(where, got=confidence, expected="a confidence in (0, 1)", do="0.95 is usual.")
        raise ConfigError(message)


def group_numbers(
    groups: Sequence[Hashable] | np.ndarray,
) -> tuple[Int64[np.ndarray, " item"], list[Hashable]]:
    """The group of each item as a number, and the groups in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    listed = groups.tolist() if isinstance(groups, np.ndarray) else groups
    places = [numbers.setdefault(group, len(numbers)) for group in listed]
    return np.array(places, dtype=np.int64), list(numbers)


def group_means(
    values: Float64[np.ndarray, " item"], places: Int64[np.ndarray, " item"], count: int
) -> Float64[np.ndarray, " group"]:
    """Mean of each group; NaN for a group without items."""
    sums = np.bincount(places, weights=values, minlength=count)
    sizes = np.bincount(places, minlength=count)
    means = np.full(count, np.nan)
    np.divide(sums, sizes, out=means, where=sizes > 0)
    return means

"""Parameters of tests of which a few stand for all when time is short."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["variants"]


def variants(names: Iterable[str], *, fast: Collection[str]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: those that are not `fast` are marked `slow`.

    Args:
        names: the values of one argument.
        fast: those of `make test`; `make test-slow` runs the others.

    Raises:
        ValueError: a fast one is none of the names.
    """
    names = list(names)
    if unknown := [name for name in fast if name not in names]:
        message = f"fast variants: got {unknown}, expected some of {names}."
        raise ValueError(message)
    return [pytest.param(name, id=name, marks=() if name in fast else pytest.mark.slow) for name in names]

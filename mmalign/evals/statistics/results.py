"""What every statistic returns: a frozen record that prints in words and turns into plain JSON values."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Interval", "Result", "shown", "shown_p"]


def _plain(value: object) -> Any:
    """Dictionaries, lists, strings and numbers; what is no finite number becomes None, as JSON has no NaN."""
    if isinstance(value, Result):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def shown(value: float | None, digits: int = 3) -> str:
    """A number in words: `0.612`, or `none` where there is none."""
    return "none" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def shown_p(p_value: float) -> str:
    """A p-value in words: `p = 0.0312`, or `p < 0.0001`: no test finds a probability of zero."""
    return "p < 0.0001" if p_value < 0.0001 else f"p = {shown(p_value, 4)}"


class Result(ABC):
    """Base of the frozen result records: `print(result)` explains it, `result.as_dict()` stores it."""

    @abstractmethod
    def describe(self) -> str:
        """The result in words."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, nested records included; NaN and infinities become None."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return {field.name: _plain(getattr(self, field.name)) for field in fields}

    def __str__(self) -> str:
        return self.describe()


@dataclasses.dataclass(frozen=True)
class Interval(Result):
    """An estimate with its confidence interval.

    Args:
        value: the estimate; NaN where nothing could be estimated.
        low: lower end; None where the data tell nothing about the spread (one prompt).
        high: upper end.
        confidence: share of repetitions whose interval holds the truth, in (0, 1).
        method: `wilson`, `exact`, `percentile`, `bca`, `normal`, ...
    """

    value: float
    low: float | None
    high: float | None
    confidence: float = 0.95
    method: str = ""

    def holds(self, value: float) -> bool:
        """Whether the interval contains a value; without an interval every value is possible."""
        return self.low is None or self.high is None or bool(self.low <= value <= self.high)

    def describe(self) -> str:
        """`0.612 (0.580 to 0.643)`."""
        if self.low is None or self.high is None:
            return f"{shown(self.value)} (no interval)"
        return f"{shown(self.value)} ({shown(self.low)} to {shown(self.high)})"

"""Labels of equal stretches of two clips, as DenseDPO's data have them, put into the form of `segments`.

A row's `segment_labels` is a list (or the JSON of one) with a number for every stretch of `segment_seconds`
seconds, 1 where that is left out: 1 where the first clip (video_0, a, or the column chosen) is better, -1
where the second one is, 0 or null for a tie. Such a row is unordered by nature: its labels point both ways.
Readers turn them with the candidates and hand them on as stretches of `mmalign.data.segments`.

Source: arXiv 2506.03517.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.data.rows import FieldError
from mmalign.errors import explain

__all__ = ["LABELS", "SECONDS", "expected_count", "majority", "parsed_labels", "stretches", "turned"]

LABELS = "segment_labels"
SECONDS = "segment_seconds"

_OTHER = {"chosen": "rejected", "rejected": "chosen"}


def _listed(value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def parsed_labels(value: Any) -> tuple[int, ...] | None:
    """The labels in a cell; () for an empty one, None where it cannot be understood."""
    value = _listed(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return None
    found = []
    for label in value:
        number = 0 if label is None else label
        if isinstance(number, bool) or not isinstance(number, int | float) or number not in (-1, 0, 1):
            return None
        found.append(int(number))
    return tuple(found)


def majority(values: NDArray[Any]) -> NDArray[np.float64]:
    """Probability that the first clip is preferred, by the majority of a row's segments; NaN without any."""
    found = np.full(len(values), np.nan)
    for place, value in enumerate(values):
        labels = parsed_labels(value)
        if labels:
            total = sum(labels)
            found[place] = 0.5 if total == 0 else float(total > 0)
    return found


def stretches(labels: Any, seconds: Any, *, where: str, swapped: bool) -> list[dict[str, Any]]:
    """The stretches of a row, as `mmalign.data.segments` reads them; [] where there are no labels.

    Args:
        labels: the cell of `segment_labels`.
        seconds: the cell of `segment_seconds`; None for 1.
        where: file and row, for messages.
        swapped: whether the first clip of the file is the row's rejected one.

    Raises:
        RowError: reason `bad_segments`.
    """
    found = parsed_labels(labels)
    if found is None:
        message = explain(f"{where} {LABELS}", got=str(labels), expected="a list of 1, 0 and -1")
        raise FieldError(message, "bad_segments", LABELS)
    length = _number(1.0 if seconds is None else seconds)
    if not 0 < length < math.inf:
        message = explain(f"{where} {SECONDS}", got=seconds, expected="seconds of a segment")
        raise FieldError(message, "bad_segments", SECONDS)
    sign = -1 if swapped else 1
    return [
        {"start": place * length, "end": (place + 1) * length, "preference": sign * label}
        for place, label in enumerate(found)
    ]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def turned(segments: Any) -> Any:
    """Stretches of `segments` after the candidates were exchanged; what cannot be understood stays."""
    listed = _listed(segments)
    if not isinstance(listed, list):
        return segments
    return [_turned(one) if isinstance(one, Mapping) else one for one in listed]


def _turned(stretch: Mapping[str, Any]) -> dict[str, Any]:
    """One of them: words and signs change sides, and so do the scores."""
    found = {_OTHER.get(name, name): value for name, value in stretch.items()}
    preference = found.get("preference")
    if isinstance(preference, str):
        found["preference"] = _OTHER.get(preference, preference)
    elif isinstance(preference, int | float):
        found["preference"] = -preference
    return found


def expected_count(seconds: float, segment_seconds: float) -> int:
    """How many segments a clip has: seconds / segment_seconds, rounded up; the last one may be short."""
    return max(1, math.ceil(seconds / segment_seconds - 1e-6))

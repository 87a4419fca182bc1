"""Boxes in pixels: how much two overlap, where one lies from another, which detections of a class stay."""

import math
from collections.abc import Sequence

from mmalign.evals.detectors import Box, Detection

__all__ = ["centre", "iou", "keep_best", "relations"]


def centre(box: Box) -> tuple[float, float]:
    """Middle of a box, (x, y)."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def area(box: Box, *, pixel: float = 0.0) -> float:
    """Area of a box; 0 where it is inside out. `pixel` is added to both sides."""
    return max(box[2] - box[0] + pixel, 0.0) * max(box[3] - box[1] + pixel, 0.0)


def intersection(first: Box, second: Box, *, pixel: float = 0.0) -> float:
    """Area that two boxes share."""
    shared = (
        max(first[0], second[0]),
        max(first[1], second[1]),
        min(first[2], second[2]),
        min(first[3], second[3]),
    )
    return area(shared, pixel=pixel)


def iou(first: Box, second: Box, *, pixel: float = 0.0) -> float:
    """Intersection over union, in [0, 1]; 0 where the union is empty.

    Args:
        first: (left, top, right, bottom).
        second: likewise.
        pixel: 0 where corners are places between pixels; 1 where they are pixels that belong to the box (a
            box from 10 to 10 is then one pixel wide). Released scripts differ in it.
    """
    shared = intersection(first, second, pixel=pixel)
    union = area(first, pixel=pixel) + area(second, pixel=pixel) - shared
    return shared / union if union else 0.0


def relations(first: Box, second: Box, *, dead_zone: float = 0.1) -> frozenset[str]:
    """Where the first box lies from the second: any of "left of", "right of", "above", "below".

    The offset of the centres is shortened, along each axis, by `dead_zone` times the sum of both sizes; what
    is left is divided by the length of the unshortened offset; a component beyond one half is a relation. Two
    can hold together (left of and above), and none where the objects overlap too much.

    Source: djghosh13/geneval, evaluation/evaluate_images.py, relative_position.
    """
    (x, y), (other_x, other_y) = centre(first), centre(second)
    offset = (x - other_x, y - other_y)
    sizes = [(abs(first[axis + 2] - first[axis]), abs(second[axis + 2] - second[axis])) for axis in (0, 1)]
    shortened = [
        math.copysign(max(abs(distance) - dead_zone * sum(size), 0.0), distance)
        for distance, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(distance) < 1e-3 for distance in shortened):
        return frozenset()
    length = math.hypot(*offset)
    across, down = (distance / length for distance in shortened)
    holding = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return frozenset(name for name, holds in holding.items() if holds)


def keep_best(
    detections: Sequence[Detection], *, threshold: float, limit: int, max_overlap: float = 1.0
) -> list[Detection]:
    """Detections of one class that count, best first.

    Those above `threshold`, at most `limit` of them, and of two that overlap by `max_overlap` (intersection
    over union of inclusive pixels) or more only the better one. `max_overlap` 1 keeps every overlap.
    """
    ordered = sorted(detections, key=lambda detection: detection.score, reverse=True)
    candidates = [detection for detection in ordered if detection.score > threshold][:limit]
    if max_overlap >= 1.0:
        return candidates
    kept: list[Detection] = []
    for candidate in candidates:
        if all(iou(better.box, candidate.box, pixel=1.0) < max_overlap for better in kept):
            kept.append(candidate)
    return kept

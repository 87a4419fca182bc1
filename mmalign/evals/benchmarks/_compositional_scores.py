"""T2I-CompBench's scores of one picture: bound attributes, places, numbers, and the mean of three."""

import math
from collections.abc import Collection, Sequence

from mmalign.evals.benchmarks._boxes import area, centre, intersection, iou
from mmalign.evals.detectors import Box, Detection

__all__ = ["MAX_PHRASES", "binding", "numeracy", "position", "spatial", "three_in_one"]

MAX_PHRASES = 8

NAMES_OF_DETECTORS = {
    "ship": "boat",
    "telivision": "tv",
    "goldfish": "fish",
    "painting": "picture",
    "boy": "person",
    "girl": "person",
    "man": "person",
    "woman": "person",
}
"""Objects of numeracy prompts to the class they are looked for under, as released."""


def binding(probabilities: Sequence[float]) -> float:
    """Product of P(yes) over the noun phrases of a prompt, rounded to four decimals; each P(yes) is, too.

    Source: Karine-Huang/T2I-CompBench, BLIPvqa_eval/BLIP_vqa.py.
    """
    product = math.prod(float(f"{probability:.4f}") for probability in probabilities)
    return float(f"{product:.4f}")


def position(
    relation: str | None,
    first: Box,
    second: Box,
    *,
    iou_threshold: float = 0.1,
    distance_threshold: float | int = 150.0,
) -> float:
    """How well two boxes lie in a relation, in [0, 1].

    Beside ("next to", "near", "on side of"): 1 when the centres are less than `distance_threshold` pixels
    apart along one axis, else that threshold over the larger distance. A side: 0 unless the offset of the
    centres points there and is the larger component; then 1, or `iou_threshold / overlap` for boxes that
    overlap as much as that. Other relations are 0; "on top of" is one of them, as released.

    Args:
        relation: of the first object to the second.
        first: box of the first object, in pixels of the picture.
        second: box of the second.
        iou_threshold: overlap from which a side counts less.
        distance_threshold: see above; pictures were 512 pixels wide.

    Source: Karine-Huang/T2I-CompBench, UniDet_eval/2D_spatial_eval.py, determine_position.
    """
    (x, y), (other_x, other_y) = centre(first), centre(second)
    across, down = other_x - x, other_y - y
    if relation in ("next to", "on side of", "near"):
        if min(abs(across), abs(down)) < distance_threshold:
            return 1.0
        return distance_threshold / max(abs(across), abs(down))
    holds = {
        "on the right of": across < 0 and abs(across) > abs(down),
        "on the left of": across > 0 and abs(across) > abs(down),
        "on the bottom of": down < 0 and abs(down) > abs(across),
        "on the top of": down > 0 and abs(down) > abs(across),
    }.get(relation or "", False)
    if not holds:
        return 0.0
    overlap = iou(first, second)
    return 1.0 if overlap < iou_threshold else iou_threshold / overlap


def spatial(detections: Sequence[Detection], objects: tuple[str, str], relation: str | None) -> float:
    """A quarter of each object's confidence plus half of `position`; below one half it is 0.

    Args:
        detections: best first; the first of a class is looked at.
        objects: names of the two.
        relation: of the first to the second.

    Source: Karine-Huang/T2I-CompBench, UniDet_eval/2D_spatial_eval.py.
    """
    found = [next((one for one in detections if one.label == name), None) for name in objects]
    score = sum(0.25 * one.score for one in found if one is not None)
    if found[0] is not None and found[1] is not None:
        score += position(relation, found[0].box, found[1].box) / 2
    return score if score >= 0.5 else 0.0


def numeracy(detections: Sequence[Detection], wanted: Sequence[tuple[str, int]]) -> float:
    """Mean over the objects of a prompt of one half for being there and one half for their exact number.

    Boxes of a class that overlap, or lie inside one another, by more than 0.9 are one object. An object no
    class is called after is looked for in longer names ("cup" in "coffee cup"). NaN where nothing is wanted.

    Source: Karine-Huang/T2I-CompBench, UniDet_eval/numeracy_eval.py.
    """
    distinct: list[Detection] = []
    for one in detections:
        if not any(one.label == other.label and _same(one.box, other.box) for other in distinct):
            distinct.append(one)
    labels = [one.label for one in distinct]
    if not wanted:
        return math.nan
    score = 0.0
    for given, count in wanted:
        name = NAMES_OF_DETECTORS.get(given, given)
        if name not in labels:
            labels = [name if name in label else label for label in labels]
        score += 0.5 * (name in labels) + 0.5 * (name in labels and labels.count(name) == count)
    return score / len(wanted)


def _same(first: Box, second: Box) -> bool:
    shared = intersection(first, second, pixel=1.0)
    parts = (area(first, pixel=1.0), area(second, pixel=1.0))
    return iou(first, second, pixel=1.0) > 0.9 or any(shared > 0.9 * part for part in parts)


def three_in_one(attribute: float, place: float, action: float, kinds: Collection[str]) -> float:
    """Score of a complex prompt: the mean of attribute binding and of what else it holds.

    Args:
        attribute: `binding`.
        place: `spatial`.
        action: cosine of CLIP.
        kinds: {"spatial"}, {"action"}, or both.

    Source: Karine-Huang/T2I-CompBench, 3_in_1_eval/3_in_1.py.
    """
    parts = [attribute]
    parts += [place] if "spatial" in kinds else []
    parts += [action] if "action" in kinds else []
    return math.fsum(parts) / len(parts)

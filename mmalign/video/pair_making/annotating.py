"""Labels of every second of a pair, by a reward or by a judge, and the label of the whole by their majority.

Clips of one real clip share their motion and layout, so that seconds can be compared one by one; what an
annotator says of five seconds at once is far less certain. A pair with labels is unordered by nature: they
point both ways, and `chosen` is only the side that more of them name; where neither is, the pair is a tie to
methods of whole clips, and its labels stay for those that read them.

Source: arXiv 2506.03517 (stretches of 1 s, frames at 8 a second, both orders of presentation).
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.data.pair_making.stages import Stages, if_reached
from mmalign.data.segment_labels import expected_count
from mmalign.errors import RowError
from mmalign.rewards.base import Reward
from mmalign.video.pair_making.making import Group, limits_of
from mmalign.video.pair_making.plan import SegmentsConfig, VideoPairPlan
from mmalign.video.pair_making.scoring import (
    Load,
    frames_of,
    judged_in_both_orders,
    require_readable,
    require_reward,
    values_of_frames,
)

__all__ = ["Labelled", "annotated", "cut_into", "decided_pair", "majority_of"]

STAGE = "segments"


class Labelled:
    """The labels of a pair.

    Args:
        labels: of each stretch: 1 where the first clip is better, -1 where the second is, 0 for a tie.
        seconds: of the clips.
        length: seconds of a stretch.
    """

    def __init__(self, labels: Sequence[int], seconds: float, length: float) -> None:
        self.labels, self.seconds, self.length = tuple(labels), seconds, length

    @property
    def decided(self) -> float:
        """Share of stretches that are no ties."""
        return sum(label != 0 for label in self.labels) / len(self.labels) if self.labels else 0.0

    def stretches(self, *, turned: bool) -> list[dict[str, Any]]:
        """As `mmalign.data.segments` reads them; `turned` where the second clip is the chosen one."""
        words = {1: "chosen", 0: "tie", -1: "rejected"}
        sign = -1 if turned else 1
        return [
            {
                "start": place * self.length,
                "end": min((place + 1) * self.length, self.seconds),
                "preference": words[sign * label],
            }
            for place, label in enumerate(self.labels)
        ]


def majority_of(labels: Sequence[int]) -> int:
    """1 where more stretches name the first clip, -1 where more name the second, 0 for as many."""
    total = sum(labels)
    return (total > 0) - (total < 0)


def cut_into(
    frames: UInt8[Tensor, "frame 3 height width"], fps: float, seconds: float
) -> list[UInt8[Tensor, "_ 3 height width"]]:
    """Stretches of a clip: frame n stands at n / fps and belongs to stretch floor(n / fps / seconds).

    The last one may be short; one that holds no frame is left out.
    """
    number = torch.arange(len(frames), dtype=torch.float64)
    owner = torch.floor(number / fps / seconds + 1e-9).long()
    count = expected_count(len(frames) / fps, seconds)
    parts = [frames[owner == place] for place in range(count)]
    return [part for part in parts if len(part)]


def annotated(
    groups: Sequence[Group], load: Load, stages: Stages, plan: VideoPairPlan, counts: Counter[str]
) -> list[Labelled | None]:
    """Labels of the first two clips of every group; None where there are none.

    Groups with fewer clips count as `no_pair`; clips that cannot be compared by reason. Where the annotator
    or a file cannot be reached (OSError), nothing is stored, and the next run asks again (`unanswered`).

    Raises:
        ConfigError: an annotator that cannot do it.
    """
    settings = plan.segments
    if settings is None:
        return [None] * len(groups)
    annotator = load(settings.annotator)
    if settings.by == "reward":
        require_reward(annotator, settings.annotator)

    def work(block: Sequence[Group], seed: int) -> list[dict[str, Any]]:
        del seed
        return [
            if_reached(partial(_record, group, annotator, settings, stages, plan), _nothing("unanswered"))
            for group in block
        ]

    records = stages.run(
        STAGE,
        groups,
        work,
        key=lambda group: group.row.id,
        settings={
            "annotator": annotator.fingerprint(),
            **settings.model_dump(mode="json", include={"seconds", "fps", "by", "margin"}),
            "output": settings.annotator.output,
            "limits": limits_of(plan),
        },
        depends=lambda group: [group.row.prompt, list(group.files)],
        alone=True,
    )
    found: list[Labelled | None] = []
    for record in records:
        if record["reason"]:
            counts[record["reason"]] += 1
            found.append(None)
        else:
            labels = [label if label is not None else 0 for label in record["labels"]]
            counts["stretches"] += len(labels)
            counts["stretches_without_verdict"] += sum(label is None for label in record["labels"])
            found.append(Labelled(labels, record["clip_seconds"], settings.seconds))
    return found


def _nothing(reason: str) -> dict[str, Any]:
    """The record of clips without labels."""
    return {"labels": [], "reason": reason, "clip_seconds": 0.0, "errors": []}


def _record(
    group: Group, annotator: Reward, settings: SegmentsConfig, stages: Stages, plan: VideoPairPlan
) -> dict[str, Any]:
    names = [name for name in group.files if name is not None]
    if len(group.files) < 2 or len(names) < len(group.files):
        return _nothing("no_pair")
    for name in names[:2]:
        require_readable(stages.folder / name)
    try:
        sides = [
            frames_of(stages.folder / name, limits=plan.data.video, fps=settings.fps)[0] for name in names[:2]
        ]
    except RowError as error:
        return {**_nothing(error.reason), "errors": [str(error)]}
    if len(sides[0]) != len(sides[1]):
        return _nothing("other_length")
    seconds = len(sides[0]) / settings.fps
    parts = [cut_into(side, settings.fps, settings.seconds) for side in sides]
    labels, errors = _labels(parts, group.row.prompt, annotator, settings)
    return {"labels": labels, "reason": "", "clip_seconds": seconds, "errors": errors}


def _labels(
    parts: Sequence[Sequence[Tensor]], prompt: str, annotator: Reward, settings: SegmentsConfig
) -> tuple[list[int | None], list[str]]:
    """A label per stretch, None where the annotator gave none, and why."""
    chosen = settings.annotator
    if settings.by == "judge":
        pairs = [(list(one), list(two)) for one, two in zip(parts[0], parts[1], strict=True)]
        found = judged_in_both_orders(pairs, prompt, annotator, chosen)
        labels = [None if math.isnan(value) else (value > 0.5) - (value < 0.5) for value, _ in found]
        return labels, [error for _, error in found if error]
    first, second = (values_of_frames(side, prompt, settings.fps, annotator, chosen) for side in parts)
    labels = []
    for (one, _), (two, _) in zip(first, second, strict=True):
        gap = one - two
        tie = abs(gap) <= settings.margin
        labels.append(None if math.isnan(gap) else 0 if tie else (gap > 0) - (gap < 0))
    return labels, [error for _, error in (*first, *second) if error]


def decided_pair(
    found: Labelled | None, settings: SegmentsConfig, counts: Counter[str]
) -> tuple[int, int, dict[str, Any]] | None:
    """(Chosen, rejected, columns) of a pair with labels; None where too few stretches are decided.

    Columns: `segments`, `segment_seconds`, `decided` (share), `majority` (chosen or tie), `preference` (of
    the whole clips: 1, or 0.5 where as many stretches name either and `chosen` is only the first one).
    """
    if found is None:
        return None
    if found.decided <= settings.min_decided:
        counts["too_few_decided"] += 1
        return None
    side = majority_of(found.labels)
    counts["majority_tie"] += side == 0
    signs = {label for label in found.labels if label}
    counts["opposite_stretches"] += len(signs) == 2
    columns = {
        "segments": found.stretches(turned=side < 0),
        "segment_seconds": settings.seconds,
        "decided": found.decided,
        "majority": "chosen" if side else "tie",
        "preference": 1.0 if side else 0.5,
    }
    return (1, 0, columns) if side < 0 else (0, 1, columns)

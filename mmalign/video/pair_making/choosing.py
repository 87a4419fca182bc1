"""From the clips of a row to pairs or rankings, with every score, what moves, and how each clip was made."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.data.pair_making.groups import ScoredSample
from mmalign.data.pair_making.output import Provenance, placed
from mmalign.video.pair_making.annotating import Labelled, decided_pair
from mmalign.video.pair_making.making import Group
from mmalign.video.pair_making.plan import VideoPairPlan
from mmalign.video.pair_making.selection import MOTION, select_clips, with_total

__all__ = ["Chooser", "ranking_records"]

Record = dict[str, Any]


class Chooser:
    """Makes the rows of a plan; the files of their clips are put under `video/` of the folder.

    Columns: `prompt, chosen, rejected`, `motion_chosen, motion_rejected`, `strategy`, where the row comes
    from; with scores `score_chosen, score_rejected` (of the score that decides), `gap`, `TITLE_chosen,
    TITLE_rejected`; `noise_level` or `damage`, `real` (which side was recorded); `segments, segment_seconds,
    decided, majority, preference`; `image`, the picture that the clips go on from.

    Args:
        plan: recipe and selection.
        provenance: of all rows.
        folder: of the rows.
        counts: gets what was left out, by reason.
    """

    def __init__(
        self, plan: VideoPairPlan, provenance: Provenance, folder: Path, counts: Counter[str]
    ) -> None:
        self.plan, self.provenance, self.folder, self.counts = plan, provenance, folder, counts

    def by_scores(self, groups: Sequence[Group], verdicts: Sequence[Sequence[float]]) -> list[Record]:
        """Pairs by the plan's selection."""
        plan, found = self.plan, []
        for group, said in zip(groups, verdicts, strict=True):
            scores = [with_total(one, plan.selection) for one in group.scores]
            samples = [
                ScoredSample(f"{place:06d}", one, content=name or "")
                for place, (one, name) in enumerate(zip(scores, group.files, strict=True))
            ]
            for chosen, rejected in select_clips(
                samples,
                group.motion,
                plan.selection,
                decides=plan.decides,
                titles=plan.titles,
                verdicts=said,
                counts=self.counts,
            ):
                better, worse = scores[chosen], scores[rejected]
                columns: Record = {
                    "score_chosen": better[plan.decides],
                    "score_rejected": worse[plan.decides],
                    "gap": better[plan.decides] - worse[plan.decides],
                }
                for title in plan.columns:
                    columns |= {
                        f"{title}_chosen": _number(better[title]),
                        f"{title}_rejected": _number(worse[title]),
                    }
                found.append(self._record(group, chosen, rejected, columns))
        return found

    def by_truth(self, groups: Sequence[Group]) -> list[Record]:
        """The real clip of a row, which comes first, over each other one."""
        found = []
        for group in groups:
            for place in range(1, len(group.files)):
                if group.files[0] is None or group.files[place] is None:
                    self.counts["no_pair"] += 1
                elif group.files[0] == group.files[place]:
                    self.counts["same_clip"] += 1
                else:
                    found.append(self._record(group, 0, place, {}))
        return found

    def by_labels(self, groups: Sequence[Group], labelled: Sequence[Labelled | None]) -> list[Record]:
        """Pairs with labels in time; the side that most of them name is chosen."""
        settings, found = self.plan.segments, []
        if settings is None:
            return []
        for group, labels in zip(groups, labelled, strict=True):
            pair = decided_pair(labels, settings, self.counts)
            if pair is not None:
                chosen, rejected, columns = pair
                if self.plan.recipe == "segments":
                    self.counts["sides_changed"] += chosen == 1
                found.append(self._record(group, chosen, rejected, columns))
        return found

    def _record(self, group: Group, chosen: int, rejected: int, columns: Mapping[str, Any]) -> Record:
        first, second = group.variants[chosen], group.variants[rejected]
        record: Record = {
            "id": f"{group.row.id}-{chosen}-{rejected}",
            "prompt": group.row.prompt,
            "chosen": placed(group.files[chosen], self.folder, "video"),
            "rejected": placed(group.files[rejected], self.folder, "video"),
            **columns,
            f"{MOTION}_chosen": _number(group.motion[chosen]),
            f"{MOTION}_rejected": _number(group.motion[rejected]),
            "strategy": self.plan.strategy or self.plan.recipe,
            **first.facts,
            **second.facts,
        }
        if first.real or second.real:
            record["real"] = "chosen" if first.real else "rejected"
        if group.image is not None:
            record["image"] = placed(group.image, self.folder, "images")
        return record | self.provenance.columns(group.row.id)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def ranking_records(
    groups: Sequence[Group], plan: VideoPairPlan, provenance: Provenance, folder: Path, counts: Counter[str]
) -> list[Record]:
    """A record per prompt with all its scored clips, best first: `candidates, scores`, and other scorers."""
    found: list[Record] = []
    for group in groups:
        scores = [with_total(one, plan.selection) for one in group.scores]
        usable = [
            place
            for place, one in enumerate(scores)
            if group.files[place] is not None and all(math.isfinite(one[title]) for title in plan.columns)
        ]
        counts["not_scored"] += len(group.variants) - len(usable)
        if len(usable) < 2:
            counts["too_few_scored"] += 1
            continue
        ranked = sorted(usable, key=lambda place: (-scores[place][plan.decides], place))
        record: Record = {
            "id": group.row.id,
            "prompt": group.row.prompt,
            "candidates": [placed(group.files[place], folder, "video") for place in ranked],
            "scores": [scores[place][plan.decides] for place in ranked],
            "strategy": plan.strategy or plan.recipe,
            "motions": [_number(group.motion[place]) for place in ranked],
        }
        for title in plan.columns:
            record[f"{title}_scores"] = [scores[place][title] for place in ranked]
        if group.image is not None:
            record["image"] = placed(group.image, folder, "images")
        found.append(record | provenance.columns(group.row.id))
    return found

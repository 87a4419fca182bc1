"""From scored clips to rows: pairs or rankings, with every score and how each clip was made."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.audio.pair_making.making import Group
from mmalign.audio.pair_making.plan import AudioPairPlan
from mmalign.data.pair_making.groups import ScoredSample, select_group
from mmalign.data.pair_making.output import Provenance, placed

__all__ = ["pair_records", "ranking_records"]

Record = dict[str, Any]


def pair_records(
    groups: Sequence[Group], plan: AudioPairPlan, provenance: Provenance, folder: Path, counts: Counter[str]
) -> list[Record]:
    """A record per pair; the files of its clips are put under `audio/` of the folder.

    Columns: `prompt, chosen, rejected, score_chosen, score_rejected` (of the scorer that decides),
    `TITLE_chosen, TITLE_rejected` of every scorer, `gap, strategy`, where they differ `steps_chosen,
    steps_rejected`, of edited prompts `edit, edited_prompt`, and where the row comes from.
    """
    found: list[Record] = []
    for group in groups:
        samples = [
            ScoredSample(f"{place:06d}", scores, content=name or "", edited=bool(variant.edit))
            for place, (variant, scores, name) in enumerate(
                zip(group.variants, group.scores, group.files, strict=True)
            )
        ]
        for chosen, rejected in select_group(samples, plan.chosen_by, decides=plan.decides, counts=counts):
            found.append(_pair(group, chosen, rejected, plan, provenance, folder))
    counts["rows"] = len(found)
    return found


def _pair(
    group: Group, chosen: int, rejected: int, plan: AudioPairPlan, provenance: Provenance, folder: Path
) -> Record:
    better, worse = group.scores[chosen], group.scores[rejected]
    record: Record = {
        "id": f"{group.row.id}-{chosen}-{rejected}",
        "prompt": group.row.prompt,
        "chosen": placed(group.files[chosen], folder, "audio"),
        "rejected": placed(group.files[rejected], folder, "audio"),
        "score_chosen": better[plan.decides],
        "score_rejected": worse[plan.decides],
        "gap": better[plan.decides] - worse[plan.decides],
        "strategy": plan.strategy or plan.recipe,
    }
    for title in plan.titles:
        record |= {f"{title}_chosen": better[title], f"{title}_rejected": worse[title]}
    first, second = group.variants[chosen], group.variants[rejected]
    if first.num_steps != second.num_steps:
        record |= {"steps_chosen": first.num_steps, "steps_rejected": second.num_steps}
    if second.edit:
        record |= {"edit": second.edit, "edited_prompt": second.prompt}
    return record | provenance.columns(group.row.id)


def ranking_records(
    groups: Sequence[Group], plan: AudioPairPlan, provenance: Provenance, folder: Path, counts: Counter[str]
) -> list[Record]:
    """A record per prompt with all its scored clips, best first: `candidates, scores`, and other scorers."""
    found: list[Record] = []
    for group in groups:
        usable = [
            place
            for place, scores in enumerate(group.scores)
            if group.files[place] is not None and all(scores[title] == scores[title] for title in plan.titles)
        ]
        counts["not_scored"] += len(group.variants) - len(usable)
        if len(usable) < 2:
            counts["too_few_scored"] += 1
            continue
        ranked = sorted(usable, key=lambda place: (-group.scores[place][plan.decides], place))
        record: Record = {
            "id": group.row.id,
            "prompt": group.row.prompt,
            "candidates": [placed(group.files[place], folder, "audio") for place in ranked],
            "scores": [group.scores[place][plan.decides] for place in ranked],
            "strategy": plan.strategy or plan.recipe,
            "prompts_sampled": [group.variants[place].prompt for place in ranked],
            "steps": [group.variants[place].num_steps for place in ranked],
        }
        for title in plan.titles:
            record[f"{title}_scores"] = [group.scores[place][title] for place in ranked]
        found.append(record | provenance.columns(group.row.id))
    counts["rows"] = len(found)
    return found

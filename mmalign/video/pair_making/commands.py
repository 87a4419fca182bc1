"""`mmalign pairs make` for clips: a plan carried out, from prompts or clips to rows that training reads."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmalign.batch import PreferenceRow
from mmalign.data.motion_bias import motion_bias
from mmalign.data.pair_making.output import score_table
from mmalign.data.pair_making.run import PairRun, made_and_told
from mmalign.data.pair_making.stages import Stages
from mmalign.devices import best_device
from mmalign.video.pair_making.annotating import annotated
from mmalign.video.pair_making.choosing import Chooser, ranking_records
from mmalign.video.pair_making.existing import existing
from mmalign.video.pair_making.loading import Tools
from mmalign.video.pair_making.making import Group, sampled
from mmalign.video.pair_making.plan import VideoPairPlan, read_video_plan
from mmalign.video.pair_making.real import corrupted, damaged_groups
from mmalign.video.pair_making.scoring import neighbours_judged, scored

__all__ = ["make_pairs", "run_make"]


def make_pairs(
    plan: VideoPairPlan,
    output: Path,
    *,
    device: str | None = None,
    report: Callable[[str, int, int], None] | None = None,
    tools: Tools | None = None,
) -> tuple[Path, Counter[str]]:
    """Carry out a plan; what was done before is not done again.

    Args:
        plan: model, data, recipe.
        output: folder of rows, clips and `stages/`.
        device: None takes the best there is.
        report: told (stage, done, total).
        tools: what loads models and rewards.

    Returns:
        `rows.jsonl`, and counts by reason.

    Raises:
        ConfigError: the plan, its data or a model does not fit, or too many rows cannot be read.
    """
    tools, place = tools or Tools(), best_device(device)
    run = PairRun.start(plan, output, kind="prompts" if plan.works_on_prompts else None, report=report)
    stages, counts = run.stages, run.counts
    groups, maker = _groups(plan, run.rows, stages, tools, place, counts)
    run.count_clips(groups)
    provenance = run.provenance(maker)
    load = partial(tools.reward, device=place)
    chooser = Chooser(plan, provenance, output, counts)
    if plan.segments is not None:
        records = chooser.by_labels(groups, annotated(groups, load, stages, plan, counts))
    elif not plan.scored:
        records = chooser.by_truth(groups)
    else:
        groups = scored(groups, load, stages, plan)
        if plan.make == "rankings":
            records = ranking_records(groups, plan, provenance, output, counts)
        else:
            records = chooser.by_scores(groups, neighbours_judged(groups, load, stages, plan))
    return run.finish(records, groups, provenance, _facts(records, plan))


def _groups(
    plan: VideoPairPlan,
    rows: Sequence[PreferenceRow],
    stages: Stages,
    tools: Tools,
    device: torch.device,
    counts: Counter[str],
) -> tuple[list[Group], Mapping[str, Any]]:
    """The clips of every row, and what made them."""
    match plan.recipe:
        case "groups":
            make = tools.maker(plan, device)
            return sampled(rows, make, stages, plan), make.identity()
        case "corrupt_and_denoise":
            corrupter = tools.corrupter(plan, device)
            return corrupted(rows, corrupter, stages, plan, counts), corrupter.identity()
        case "damage":
            return damaged_groups(rows, stages, plan, counts), {}
    return existing(rows, stages, plan, counts), {}


def _facts(records: Sequence[Mapping[str, Any]], plan: VideoPairPlan) -> dict[str, Any]:
    """What a card says besides counts: scores, motion of both sides, labels in time."""
    found: dict[str, Any] = {}
    if plan.scored:
        found["scores"] = {}
        for title in plan.columns:
            sides = (f"{title}_chosen", f"{title}_rejected")
            known = [record for record in records if all(record.get(side) is not None for side in sides)]
            found["scores"] |= score_table(known, (title,))
    bias = motion_bias(records)
    if bias is not None:
        found["motion"] = bias.as_dict()
    if plan.segments is not None and records:
        found["decided"] = round(sum(record["decided"] for record in records) / len(records), 4)
    return found


def run_make(
    *,
    plan_path: Path,
    output: Path,
    device: str | None = None,
    overrides: Sequence[str] = (),
    tools: Tools | None = None,
) -> int:
    """Make pairs by a plan; says whether the chosen side moves less. Returns 0.

    Raises:
        ConfigError: the plan, its data or a model does not fit.
    """
    import yaml

    plan = read_video_plan(plan_path, overrides)
    made_and_told(make_pairs, plan, output, device=device, tools=tools)
    motion = yaml.safe_load((output / "card.yaml").read_text(encoding="utf-8")).get("motion")
    if motion is not None:
        print(
            f"motion: chosen {motion['chosen']:.4f}, rejected {motion['rejected']:.4f}; {motion['verdict']}"
        )
    return 0

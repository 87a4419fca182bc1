"""`mmalign pairs make` for sounds: a plan carried out, from prompts to rows that training reads."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.audio.pair_making.choosing import pair_records, ranking_records
from mmalign.audio.pair_making.loading import Tools
from mmalign.audio.pair_making.making import Group, existing, planned, sampled
from mmalign.audio.pair_making.plan import AudioPairPlan, read_audio_plan
from mmalign.audio.pair_making.scoring import scored
from mmalign.data.pair_making.output import Provenance, score_table, write_rows
from mmalign.data.pair_making.progress import print_made, stage_bars
from mmalign.data.pair_making.rows import require_few_bad, rows_to_work_on, without_held_out
from mmalign.data.pair_making.stages import Stages
from mmalign.devices import best_device

__all__ = ["make_pairs", "run_make"]


def make_pairs(
    plan: AudioPairPlan,
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
    counts: Counter[str] = Counter()
    sampling = plan.recipe != "candidates"
    rows = rows_to_work_on(plan.data, kind="prompts" if sampling else None, limit=plan.limit, counts=counts)
    require_few_bad(counts, len(rows) + counts.total(), plan.data)
    rows = without_held_out(rows, plan.exclude, counts)
    stages = Stages(output / "stages", {}, plan.seed, plan.block_rows, report)
    maker: Mapping[str, Any] = {}
    if sampling:
        make = tools.maker(plan, place)
        maker = make.identity()
        groups: Sequence[Group] = sampled(planned(rows, plan, counts), make, stages, plan)
    else:
        groups = existing(rows, stages, plan.data, counts)
    counts["clips"] = sum(name is not None for group in groups for name in group.files)
    counts["failed_clips"] = sum(name is None for group in groups for name in group.files)
    groups = scored(groups, partial(tools.reward, device=place), stages, plan.scorers)
    settings = {**plan.model_dump(mode="json"), "made_with": dict(maker)}
    provenance = Provenance(
        plan.recipe, str(maker.get("model") or maker.get("function") or "data"), settings, plan.seed
    )
    choose = pair_records if plan.make == "pairs" else ranking_records
    records = choose(groups, plan, provenance, output, counts)
    facts = {"scores": score_table(records, plan.titles), "first_errors": _first_errors(groups)}
    counts = +counts  # what happened never is not told
    counts["rows"] = len(records)
    return write_rows(output, records, provenance, counts, facts), counts


def _first_errors(groups: Sequence[Group], limit: int = 5) -> list[str]:
    """Why clips or scores are missing, the first few."""
    errors = (f"{group.row.id}: {error}" for group in groups for error in group.errors if error)
    return [error for _, error in zip(range(limit), errors, strict=False)]


def run_make(
    *,
    plan_path: Path,
    output: Path,
    device: str | None = None,
    overrides: Sequence[str] = (),
    tools: Tools | None = None,
) -> int:
    """Make pairs by a plan. Returns 0.

    Raises:
        ConfigError: the plan, its data or a model does not fit.
    """
    plan = read_audio_plan(plan_path, overrides)
    with stage_bars() as report:
        rows, counts = make_pairs(plan, output, device=device, report=report, tools=tools)
    print_made(rows, counts)
    return 0

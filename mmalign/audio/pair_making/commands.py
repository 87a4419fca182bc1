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
from mmalign.data.pair_making.output import score_table
from mmalign.data.pair_making.run import PairRun, made_and_told
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
    sampling = plan.recipe != "candidates"
    run = PairRun.start(plan, output, kind="prompts" if sampling else None, report=report)
    maker: Mapping[str, Any] = {}
    if sampling:
        make = tools.maker(plan, place)
        maker = make.identity()
        groups: Sequence[Group] = sampled(planned(run.rows, plan, run.counts), make, run.stages, plan)
    else:
        groups = existing(run.rows, run.stages, plan.data, run.counts)
    run.count_clips(groups)
    groups = scored(groups, partial(tools.reward, device=place), run.stages, plan.scorers)
    provenance = run.provenance(maker)
    choose = pair_records if plan.make == "pairs" else ranking_records
    records = choose(groups, plan, provenance, output, run.counts)
    return run.finish(records, groups, provenance, {"scores": score_table(records, plan.titles)})


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
    made_and_told(make_pairs, plan, output, device=device, tools=tools)
    return 0

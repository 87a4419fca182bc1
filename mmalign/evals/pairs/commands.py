"""`mmalign pairs sample | score | select`: what the commands do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmalign.errors import ConfigError, explain
from mmalign.evals.generation import parse_shard
from mmalign.evals.harness import resolve_models
from mmalign.evals.pairs import candidates, outputs
from mmalign.evals.pairs.making import Made, make, usable
from mmalign.evals.pairs.plan import PairPlan, read_plan
from mmalign.evals.pairs.pool import without_duplicates
from mmalign.evals.suite import ModelSpec

__all__ = ["run_sample", "run_score", "run_select", "select_pool"]


def _plan(path: Path, overrides: Sequence[str], models: Sequence[str]) -> tuple[PairPlan, list[ModelSpec]]:
    plan = read_plan(path, list(overrides))
    if not plan.prompts:
        expected = "prompt sets of the plan"
        raise ConfigError(explain(f"{path} prompts", got="none", expected=expected))
    return plan, resolve_models(plan, list(models) or list(plan.models))


@contextmanager
def _shown() -> Iterator[candidates.Progress]:
    """A bar per kind of work, on the error stream."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.advance(tasks[what], done)

        yield told


def run_sample(
    *,
    plan_path: Path,
    models: Sequence[str] = (),
    store: Path = Path("runs/evals/store"),
    shard: str = "0/1",
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Paint candidates. Returns 0.

    Raises:
        ConfigError: the plan, a model or a held-out set does not fit.
    """
    plan, specs = _plan(plan_path, overrides, models)
    with _shown() as progress:
        done = candidates.sample(
            plan,
            specs,
            store,
            folder=plan_path.parent,
            device=device,
            shard=parse_shard(shard),
            progress=progress,
        )
    print(f"{done} pictures of {len(specs)} models are in {store}. Next: mmalign pairs score {plan_path}")
    return 0


def run_score(
    *,
    plan_path: Path,
    models: Sequence[str] = (),
    store: Path = Path("runs/evals/store"),
    shard: str = "0/1",
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Score candidates by every reward of the plan. Returns 0.

    Raises:
        ConfigError: the plan, a model or a reward does not fit.
        CheckpointError: pictures are missing.
    """
    from mmalign.devices import best_device

    plan, specs = _plan(plan_path, overrides, models)
    with _shown() as progress:
        scored = candidates.score(
            plan,
            specs,
            store,
            folder=plan_path.parent,
            device=str(best_device(device)),
            shard=parse_shard(shard),
            progress=progress,
        )
    print(f"{scored} scores are new in {store}. Next: mmalign pairs select {plan_path}")
    return 0


def run_select(
    *,
    plan_path: Path,
    output: Path,
    models: Sequence[str] = (),
    store: Path = Path("runs/evals/store"),
    force: bool = False,
    overrides: Sequence[str] = (),
) -> int:
    """Make pairs or rankings of what was scored. Returns 0.

    Raises:
        ConfigError: the plan does not fit, or nothing is left.
        CheckpointError: pictures or scores are missing.
    """
    plan, specs = _plan(plan_path, overrides, models)
    gathered = candidates.gather(plan, specs, store, folder=plan_path.parent)
    made = select_pool(plan, gathered, store)
    card = outputs.card_of(plan, made, gathered.prompts, gathered.columns, gathered.generators)
    outputs.write_made(output, made, plan.selection, card, force=force)
    _print(made, output)
    return 0


def select_pool(plan: PairPlan, gathered: candidates.Gathered, store: Path | None) -> Made:
    """Filters and rules of a plan on gathered candidates.

    Raises:
        ConfigError: nothing is left.
    """
    pool = usable(gathered.pool, plan.selection)
    return make(without_duplicates(pool, plan.selection.duplicates, store), plan.selection)


def _print(made: Made, output: Path) -> None:
    table = Table("step", "prompts", "candidates", "pairs", "left out")
    for step in made.steps:
        counts = ["" if count is None else str(count) for count in (step.candidates, step.pairs)]
        reasons = ", ".join(f"{count} {reason}" for reason, count in step.left_out.items())
        table.add_row(step.name, str(step.prompts), *counts, reasons)
    Console().print(table)
    kind = "pairs" if made.pairs else "rankings"
    print(f"{output}: {len(made.pairs) or len(made.rankings)} {kind}, card.yaml")
    print(f"check them: mmalign data check {output}")

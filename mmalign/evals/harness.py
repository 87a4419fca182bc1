"""`mmalign eval SUITE`: generate, score, aggregate, report; each stage restartable alone.

Nothing lives in the memory of a process: pictures and scores lie in a store under hashes of what made them.
Processes share work by the names of samples and never talk to each other, so any number of them may run, die
and be started again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.evals.adopted_pictures import adopted_folder, media_of
from mmalign.evals.benchmark_suite import BenchmarkSuite, read_any_suite
from mmalign.evals.diversity_stage import (
    Measures,
    embed_part,
    load_measures,
    measure_run,
    require_encoder,
    with_diversity,
)
from mmalign.evals.generation import generate_missing, require_sampler
from mmalign.evals.jobs import Job, jobs_of, parse_shard, shard_of
from mmalign.evals.model_identity import model_fingerprint, require_models, require_on_hub
from mmalign.evals.named_models import resolve_models
from mmalign.evals.provenance import Run
from mmalign.evals.result_records import sample_rows, summarise
from mmalign.evals.results import (
    Column,
    ModelPictures,
    Results,
    collect,
    load_pictures,
)
from mmalign.evals.run_files import write_run
from mmalign.evals.scoring import Picture, score_missing, unscored
from mmalign.evals.suite import GenerationConfig, ModelSpec, Suite
from mmalign.evals.suite_items import read_items
from mmalign.evals.suite_rewards import columns_of, load_reward, made_for, release, require_names
from mmalign.rewards.base import Reward

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["STAGES", "main", "run_suite"]

STAGES = ("generate", "score", "report")


def run_suite(
    suite: Suite,
    models: Sequence[ModelSpec],
    *,
    output: Path,
    cache: Path,
    folder: Path | None = None,
    stages: Sequence[str] = STAGES,
    shard: tuple[int, int] = (0, 1),
    device: str | None = None,
    console: Console | None = None,
    retry_failed: bool = False,
    thumbnail_bytes: int | None = None,
) -> dict[str, Any] | None:
    """Run the stages of a suite. Returns the record of results.json, None without the report stage.

    Args:
        suite: what to run.
        models: the first is the base the others are compared with.
        output: folder of results.json, samples.jsonl, results.md and report.html.
        cache: store of pictures and scores, shared by any number of runs and suites.
        folder: of the suite's file, for relative prompt files.
        stages: which of `STAGES`.
        shard: (number, count): this process's part of the first two stages.
        device: cuda, cpu, ...; the best there is by default.
        console: where progress is shown.
        retry_failed: ask rewards again for what they could not score before.
        thumbnail_bytes: of all pictures in the page together; the rest is linked.

    Raises:
        ConfigError: a model, prompt set or reward cannot be found.
        CheckpointError: the report lacks pictures or scores of other shards.
    """
    require_models(models)
    if shard[1] > 1 and "report" in stages:
        message = explain(
            f"--shard {shard[0]}/{shard[1]}",
            got="the report stage",
            expected="generate or score: the report is made once, of all shards",
            do="Run --stage report without --shard.",
        )
        raise ConfigError(message)
    console = console or Console(stderr=True)
    chosen = str(best_device(device))
    items = read_items(suite, folder)
    jobs = jobs_of(items, suite.generation.images_per_prompt)
    scores = set(stages) != {"generate"}
    media = media_of(models, default=made_for(suite))
    _require_suited(suite, models, media)
    # Before anything is painted: what rewards lack is found now, not after hours.
    columns = columns_of(suite, items, device=chosen, folder=folder, media=media) if scores else []
    if suite.diversity is not None and scores:
        load_measures(suite.diversity, chosen, folder=folder)
        release()
    found: list[ModelPictures] = []
    with _progress(console) as progress:
        for spec in models:
            work = jobs if "generate" in stages else []
            found.append(_paint(spec, work, jobs, suite, cache, device, shard, stages, progress, media))
            release()
        if "score" in stages:
            pictures = [picture for model in found for picture in model.pictures.values()]
            # Right after painting a process scores what it painted: others may not be done yet.
            part = shard if "generate" not in stages else (0, 1)
            mine = [picture for picture in pictures if shard_of(picture.sample_id, part[1]) == part[0]]
            for entries in columns:
                load = partial(load_reward, entries[0].reward, chosen, folder=folder, media=media)
                _score(entries, mine, cache, load, chosen, retry_failed, progress)
                release()
            if suite.diversity is not None and "report" not in stages:
                measures = load_measures(suite.diversity, chosen, folder=folder)
                task = progress.add_task("embed for diversity", total=len(mine))
                embed_part(measures, mine, cache, partial(progress.advance, task))
        if "report" not in stages:
            return None
        results = collect(suite, items, jobs, found, [one for entries in columns for one in entries], cache)
        spread = suite.diversity
        networks = None if spread is None else load_measures(spread, chosen, folder=folder)
        return _report(results, networks, output, cache, thumbnail_bytes, progress)


def _report(
    results: Results,
    measures: Measures | None,
    output: Path,
    cache: Path,
    thumbnail_bytes: int | None,
    progress: "Progress",
) -> dict[str, Any]:
    """Measure diversity where it is asked for, write the run's files, return the record."""
    record, rows, diversity = summarise(results), sample_rows(results), None
    if measures is not None:
        task = progress.add_task("diversity", total=len(rows) * len(results.models))
        run = Run(output.resolve().name, record, rows, output)
        settings = results.suite.statistics
        diversity = measure_run(measures, run, settings, cache, partial(progress.advance, task))
        record = with_diversity(record, diversity)
    write_run(record, rows, output, diversity=diversity, thumbnail_bytes=thumbnail_bytes)
    return record


def _require_suited(suite: Suite, models: Sequence[ModelSpec], media: str) -> None:
    """Refuse by name alone, before anything is loaded, what a suite or its models cannot do.

    Raises:
        ConfigError: diversity of clips or sounds.
        UnknownNameError: a reward, sampler or encoder nobody knows.
    """
    require_names(suite)
    if any(adopted_folder(spec.source) is None for spec in models):
        require_sampler(suite.generation)
    if suite.diversity is not None:
        require_encoder(suite.diversity)
        if media != "pictures":
            do = "Leave diversity out of the suite."
            raise ConfigError(explain("diversity", got=media, expected="models of pictures", do=do))


def _score(
    columns: Sequence[Column],
    mine: Sequence[Picture],
    cache: Path,
    load: Callable[[], Reward],
    device: str,
    retry_failed: bool,
    progress: "Progress",
) -> None:
    """Score this process's part with one reward, which is loaded only where something lacks.

    Raises:
        ConfigError: the reward is another one than the one that was looked at before painting.
    """
    first = columns[0]
    task = progress.add_task(f"score {escape(first.title)}", total=len(mine))
    if not unscored(mine, first.card.needs, first.fingerprint, cache, retry_failed=retry_failed):
        progress.advance(task, len(mine))
        return
    reward = load()
    if reward.fingerprint() != first.fingerprint:
        message = explain(
            f"reward {first.reward.name}",
            got=f"fingerprint {reward.fingerprint()[:16]}",
            expected=f"{first.fingerprint[:16]}, as before painting",
            do="Its files or its server changed meanwhile. Run again.",
        )
        raise ConfigError(message)
    score_missing(
        reward,
        mine,
        cache,
        batch_size=first.reward.batch_size,
        device=device,
        progress=partial(progress.advance, task),
        retry_failed=retry_failed,
    )


def _paint(
    spec: ModelSpec,
    work: Sequence[Job],
    jobs: Sequence[Job],
    suite: Suite,
    cache: Path,
    device: str | None,
    shard: tuple[int, int],
    stages: Sequence[str],
    progress: "Progress",
    media: str = "pictures",
) -> ModelPictures:
    """Paint this process's part and return it; where nothing is to paint, the pictures of all parts."""
    adopted = adopted_folder(spec.source) is not None
    fingerprint = "" if adopted else model_fingerprint(spec)
    if work:
        task = progress.add_task(f"paint {escape(spec.name)}", total=len(jobs) if adopted else None)
        keys = generate_missing(
            spec,
            jobs,
            suite.generation,
            cache,
            device=device,
            shard=shard,
            progress=lambda done: progress.advance(task, done),
            fingerprint=fingerprint or None,
            media=media,
        )
        progress.update(task, total=len(keys))
    if set(stages) == {"generate"}:
        return ModelPictures(spec, fingerprint, {}, {})
    if not work:
        keys = stored_keys(spec, jobs, suite.generation, cache)
    elif adopted:
        keys = {name: key for name, key in keys.items() if shard_of(name, shard[1]) == shard[0]}
    return load_pictures(cache, spec, fingerprint, jobs, keys)


def stored_keys(
    spec: ModelSpec, jobs: Sequence[Job], settings: GenerationConfig, cache: Path
) -> dict[str, str]:
    """Picture keys of all samples, without loading the model.

    Raises:
        CheckpointError: it has not painted anything under these settings yet.
    """
    from mmalign.errors import CheckpointError
    from mmalign.evals.generation import picture_key, remembered_recipe

    if adopted_folder(spec.source) is not None:
        return generate_missing(spec, jobs, settings, cache)
    fingerprint = model_fingerprint(spec)
    recipe = remembered_recipe(cache, settings, fingerprint)
    if recipe is None:
        message = f"{spec.name}: nothing was painted with these settings yet. Run the generate stage first."
        raise CheckpointError(message)
    return {job.sample_id: picture_key(fingerprint, job, recipe) for job in jobs}


@contextmanager
def _progress(console: Console) -> "Iterator[Progress]":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


def main(
    *,
    suite: Path,
    models: Sequence[str] = (),
    output: Path | None = None,
    cache: Path = Path("runs/evals/store"),
    stage: str = "all",
    shard: str = "0/1",
    device: str | None = None,
    retry_failed: bool = False,
    thumbnail_bytes: int | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """`mmalign eval SUITE --model BASE --model TUNED`. Returns 0, or 3 when samples failed.

    Raises:
        ConfigError: the suite, a model or an option does not fit.
    """
    from mmalign.evals.tables import console_table

    described = read_any_suite(suite, list(overrides))
    specs = resolve_models(described, models)
    target = output or Path("runs/evals") / described.name
    stages: tuple[str, ...] = STAGES if stage == "all" else (stage,)
    part = parse_shard(shard)
    if part[1] > 1 and stage == "all":
        stages = tuple(name for name in stages if name != "report")
    console = Console()
    if isinstance(described, BenchmarkSuite):
        if retry_failed or thumbnail_bytes is not None:
            got = "--retry-failed" if retry_failed else "--thumbnail-bytes"
            raise ConfigError(explain(str(suite), got=got, expected="neither: a benchmark has no rewards"))
        from mmalign.evals.benchmark_answers import model_of
        from mmalign.evals.benchmark_run import print_record, run_benchmark

        found = run_benchmark(
            described,
            [model_of(described.found(), spec) for spec in specs],
            output=target,
            cache=cache,
            folder=Path(suite).parent,
            stages=stages,
            shard=part,
            device=device,
        )
        return _done(console, part) if found is None else print_record(found, target)
    require_on_hub(specs)
    record = run_suite(
        described,
        specs,
        output=target,
        cache=cache,
        folder=Path(suite).parent,
        stages=stages,
        shard=part,
        device=device,
        retry_failed=retry_failed,
        thumbnail_bytes=thumbnail_bytes,
    )
    if record is None:
        return _done(console, part)
    for table in console_table(record):
        console.print(table)
    for warning in record["warnings"]:
        console.print(f"note: {warning}", markup=False, highlight=False)
    console.print(f"{target / 'report.html'}, results.json, results.md, samples.jsonl", markup=False)
    return 3 if any(reward["failed"] for reward in record["rewards"]) else 0


def _done(console: Console, part: tuple[int, int]) -> int:
    """What is left after a stage without a report."""
    console.print(f"shard {part[0]} of {part[1]}: done. When all are, run again with --stage report.")
    return 0

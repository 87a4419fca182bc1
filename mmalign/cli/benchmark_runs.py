"""What `mmalign benchmark` does: items, answers of every model, tools, scores, tables, files."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign import registry
from mmalign.cli.benchmark_answers import Given, How, Model, answers_of, images_of, read_models
from mmalign.cli.benchmark_tools import load_tools, read_tools
from mmalign.cli.reward_serving import parsed_options
from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Benchmark, Item
from mmalign.evals.benchmark_answered import Answered, item_rows
from mmalign.evals.benchmark_jackknife import GROUPS, replicates
from mmalign.evals.benchmark_statistics import clusters_of
from mmalign.evals.benchmark_tables import console_tables, markdown_page
from mmalign.evals.benchmarking import benchmark_record, sort_options
from mmalign.evals.statistics.bootstrap import Resampling
from mmalign.evals.suite import GenerationConfig
from mmalign.files import atomic_write, write_json

__all__ = ["run"]

FAILED = 3
"""Exit code where an item has no answer or none that could be scored."""


def run(
    *,
    name: str,
    data: Path,
    answers: Sequence[str] = (),
    models: Sequence[str] = (),
    tools: Sequence[str] = (),
    output: Path | None = None,
    cache: Path = Path("runs/evals/store"),
    limit: int | None = None,
    max_new_tokens: int = 512,
    max_pixels: int | None = None,
    images_per_prompt: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int = 4,
    groups: int = GROUPS,
    device: str | None = None,
    dtype: str = "float32",
    overrides: Sequence[str] = (),
) -> int:
    """`mmalign benchmark NAME`. Returns 0, or 3 where an item has no answer or none that could be scored.

    Raises:
        UnknownNameError: no such benchmark.
        ConfigError: data, answers, models, tools or options do not fit it.
    """
    from rich.console import Console

    benchmark: Benchmark = registry.find("benchmarks", name)
    options = parsed_options(overrides)
    of_reading, of_scoring = sort_options(benchmark, options)
    named = read_models(benchmark, answers, models)
    sources = read_tools(benchmark, tools, named)
    if limit is not None and limit < 1:
        raise ConfigError(explain("--limit", got=limit, expected="at least 1"))
    every = benchmark.items(data, **of_reading)
    items = _limited(every, limit)
    generation = GenerationConfig(
        seed=seed,
        num_steps=steps,
        guidance_scale=guidance_scale,
        images_per_prompt=images_per_prompt or images_of(benchmark, of_scoring),
        batch_size=batch_size,
    )
    how = How(cache, device, dtype, batch_size, max_new_tokens, max_pixels, generation)
    given = answers_of(benchmark, items, named, how)
    loaded = load_tools(benchmark, sources, given, how)
    clusters = clusters_of(items) if benchmark.produces == "text" and not loaded else {}
    answered = [
        _scored(benchmark, model, found, {**of_scoring, **loaded}, clusters, groups)
        for model, found in zip(named, given, strict=True)
    ]
    record = benchmark_record(
        benchmark,
        items,
        answered,
        options=options,
        tools=loaded,
        limited=len(items) < len(every),
        how=Resampling(seed=seed),
    )
    target = output or Path("runs/benchmarks") / name
    _write(record, item_rows(items, answered), target)
    console = Console()
    for table in console_tables(record):
        console.print(table)
    for model in answered:
        for note in model.outcome.notes:
            console.print(f"{model.name}: {note}", markup=False)
    for warning in record["warnings"]:
        console.print(f"note: {warning}", markup=False)
    console.print(f"{target / 'results.md'}, results.json, items.jsonl", markup=False)
    return FAILED if any(_lacking(model) for model in answered) else 0


def _lacking(model: Answered) -> bool:
    counts = model.counts()
    return bool(counts["missing"] or counts["failed"] or model.outcome.counts.get("failed", 0))


def _write(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """results.json, results.md and items.jsonl, each atomically."""
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "results.json", record)
    atomic_write(target / "results.md", markdown_page(record))
    atomic_write(target / "items.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The first items; a pair is not cut in half."""
    kept = list(items[:limit])
    pairs = {item.expected["pair"] for item in kept if "pair" in item.expected}
    return kept + [item for item in items[len(kept) :] if item.expected.get("pair") in pairs]


def _scored(
    benchmark: Benchmark,
    model: Model,
    found: Given,
    options: Mapping[str, Any],
    clusters: Mapping[str, str],
    groups: int,
) -> Answered:
    """The metrics of one model; again without each group of pictures, where clusters are given."""
    extra: dict[str, Any] = {} if found.results is None else {"results": found.results}
    parameters = inspect.signature(benchmark.score).parameters
    judge = options.get("judge")
    if judge is not None and "judge_name" in parameters and "judge_name" not in options:
        extra["judge_name"] = str(getattr(judge, "name", "stored"))
    outcome = benchmark.score(found.answers, **{**options, **extra})
    source = model.source or ", ".join(str(path) for path in model.files)
    answers = () if found.results else found.answers
    again: Sequence[Mapping[str, float]] = ()
    if clusters and found.results is None:
        again = replicates(lambda kept: benchmark.score(kept, **options), found.answers, clusters, groups)
    return Answered(
        model.name, source, answers, outcome, found.missing, found.unused, model.provenance, again
    )

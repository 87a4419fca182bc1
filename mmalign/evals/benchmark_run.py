"""A benchmark from its suite to its files: items, answers of every model, tools, scores, tables, a page.

`mmalign eval SUITE` and `mmalign benchmark NAME` both end here. Answers, pictures and what tools say of them
lie in the store, so that a run that was stopped goes on, and processes share the work without talking.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Benchmark, Item
from mmalign.evals.benchmark_answered import Answered, item_rows
from mmalign.evals.benchmark_answers import Given, How, Model, answers_of, part_of
from mmalign.evals.benchmark_jackknife import replicates
from mmalign.evals.benchmark_statistics import clusters_of
from mmalign.evals.benchmark_suite import BenchmarkSuite, generation_of
from mmalign.evals.benchmark_tables import console_tables, markdown_page
from mmalign.evals.benchmark_tool_store import ToolStore
from mmalign.evals.benchmark_tools import check_tools, load_tools
from mmalign.evals.benchmarking import benchmark_record, sort_options
from mmalign.evals.statistics.bootstrap import Resampling
from mmalign.files import atomic_write, write_json

__all__ = ["FAILED", "STAGES", "lacking", "print_record", "run_benchmark"]

FAILED = 3
"""Exit code where an item has no answer or none that could be scored."""

STAGES = ("generate", "score", "report")


def run_benchmark(
    suite: BenchmarkSuite,
    models: Sequence[Model],
    *,
    output: Path,
    cache: Path,
    folder: Path | None = None,
    stages: Sequence[str] = STAGES,
    shard: tuple[int, int] = (0, 1),
    device: str | None = None,
) -> dict[str, Any] | None:
    """Run a benchmark. Returns the record of results.json, None without the report stage.

    Args:
        suite: what to run.
        models: the first is the base the others are compared with.
        output: folder of results.json, items.jsonl, results.md and report.html.
        cache: store of answers, pictures and what tools said, shared by any number of runs.
        folder: of the suite's file, for a relative data folder.
        stages: which of `STAGES`.
        shard: (number, count): this process's part of the first two stages.
        device: cuda, cpu, ...; the best there is by default.

    Raises:
        UnknownNameError: no such benchmark.
        ConfigError: data, answers, models, tools or options do not fit it.
        CheckpointError: the report lacks answers or judgements of other shards.
    """
    if shard[1] > 1 and "report" in stages:
        message = explain(
            f"--shard {shard[0]}/{shard[1]}",
            got="the report stage",
            expected="generate or score: the report is made once, of all shards",
        )
        raise ConfigError(message)
    benchmark = suite.found()
    of_reading, of_scoring = sort_options(benchmark, suite.options)
    check_tools(benchmark, suite.tools, models)
    every = benchmark.items(_data_folder(suite, folder), **of_reading)
    items = _limited(every, suite.limit)
    make = "generate" in stages
    how = How(
        cache,
        device,
        suite.dtype,
        suite.answering,
        generation_of(suite, benchmark),
        shard=shard if make else (0, 1),
        make=make,
    )
    given = answers_of(benchmark, items, models, how)
    if set(stages) == {"generate"}:
        return None
    with ToolStore(cache, ask="score" in stages) as store:
        tools = load_tools(benchmark, suite.tools, given, how, store)
        options = {**of_scoring, **tools}
        if "report" not in stages:
            # What was made here is this process's part already; of what was there it takes one by names.
            part = (0, 1) if make else shard
            for found in given:
                _ask_tools(benchmark, found, options, tools, part)
            return None
        # Rules without tools, and those whose tools only listen or watch, cost nothing to apply again.
        again = benchmark.produces in ("audio", "video") or (benchmark.produces == "text" and not tools)
        clusters = clusters_of(items) if again else {}
        answered = [
            _scored(benchmark, model, found, options, clusters, suite.groups)
            for model, found in zip(models, given, strict=True)
        ]
    drawn = suite.statistics
    record = benchmark_record(
        benchmark,
        items,
        answered,
        options=suite.options,
        tools=tools,
        limited=len(items) < len(every),
        how=Resampling(num_resamples=drawn.resamples, seed=drawn.seed, confidence=drawn.confidence),
    )
    record["suite"] = suite.model_dump(mode="json")
    _write(record, item_rows(items, answered), output)
    return record


def _data_folder(suite: BenchmarkSuite, folder: Path | None) -> Path:
    """The folder of the official files: from here first, then beside the suite.

    Raises:
        ConfigError: there is none; says which files it would hold.
    """
    found = Path(suite.data).expanduser()
    if not found.is_dir() and folder is not None and (folder / found).is_dir():
        return folder / found
    if not found.is_dir():
        message = explain(
            f"data of {suite.benchmark}",
            got=suite.data,
            expected="a folder with the benchmark's official files",
            do=f"`mmalign benchmarks {suite.benchmark}` says which they are; none are shipped. "
            "Of a suite: data=FOLDER.",
        )
        raise ConfigError(message)
    return found


def _limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The first items; a pair is not cut in half."""
    kept = list(items[:limit])
    pairs = {item.expected["pair"] for item in kept if "pair" in item.expected}
    return kept + [item for item in items[len(kept) :] if item.expected.get("pair") in pairs]


def _ask_tools(
    benchmark: Benchmark,
    found: Given,
    options: Mapping[str, Any],
    tools: Mapping[str, Any],
    shard: tuple[int, int],
) -> None:
    """Let tools see a part of the answers: the rule is applied for what they say, which is kept."""
    part = part_of(found.answers, shard)
    if tools and part and found.results is None:
        benchmark.score(part, **_with_judge_name(benchmark, options))


def _with_judge_name(benchmark: Benchmark, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of scoring, with the judge's name where the benchmark writes it down."""
    judge = options.get("judge")
    wanted = "judge_name" in inspect.signature(benchmark.score).parameters and "judge_name" not in options
    named = {"judge_name": str(getattr(judge, "name", "stored"))} if judge is not None and wanted else {}
    return {**options, **named}


def _scored(
    benchmark: Benchmark,
    model: Model,
    found: Given,
    options: Mapping[str, Any],
    clusters: Mapping[str, str],
    groups: int,
) -> Answered:
    """The metrics of one model; again without each group of pictures, where clusters are given."""
    extra = {} if found.results is None else {"results": found.results}
    outcome = benchmark.score(found.answers, **_with_judge_name(benchmark, options), **extra)
    source = model.source or ", ".join(str(path) for path in model.files)
    answers = () if found.results else found.answers
    again: Sequence[Mapping[str, float]] = ()
    if clusters and found.results is None:
        again = replicates(lambda kept: benchmark.score(kept, **options), found.answers, clusters, groups)
    return Answered(
        model.name, source, answers, outcome, found.missing, found.unused, model.provenance, again
    )


def _write(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """results.json, results.md, items.jsonl and report.html, each atomically."""
    from mmalign.evals.benchmark_report import write_benchmark_report

    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "results.json", record)
    atomic_write(target / "results.md", markdown_page(record))
    atomic_write(target / "items.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_benchmark_report(record, rows, target / "report.html")


def lacking(record: Mapping[str, Any]) -> bool:
    """Whether an item has no answer, or none that could be scored."""
    return any(
        model["counts"]["missing"] or model["counts"]["failed"] or model["scored"].get("failed", 0)
        for model in record["models"]
    )


def print_record(record: Mapping[str, Any], target: Path) -> int:
    """Tables, notes and warnings on the terminal. Returns 0, or 3 where something could not be scored."""
    from rich.console import Console

    console = Console()
    for table in console_tables(record):
        console.print(table)
    for model in record["models"]:
        for note in model["notes"]:
            console.print(f"{model['name']}: {note}", markup=False)
    for warning in record["warnings"]:
        console.print(f"note: {warning}", markup=False)
    console.print(f"{target / 'report.html'}, results.json, results.md, items.jsonl", markup=False)
    return FAILED if lacking(record) else 0

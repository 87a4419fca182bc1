"""`mmalign benchmark NAME`: its command line as a suite of one benchmark."""

from collections.abc import Sequence
from pathlib import Path

from mmalign import registry
from mmalign.cli.reward_serving import parsed_options
from mmalign.errors import ConfigError, explain
from mmalign.evals.adopted_pictures import adopted_folder
from mmalign.evals.base import Benchmark
from mmalign.evals.benchmark_answers import ANSWERS, Model, model_of
from mmalign.evals.benchmark_jackknife import GROUPS
from mmalign.evals.benchmark_run import print_record, run_benchmark
from mmalign.evals.benchmark_suite import BenchmarkSuite
from mmalign.evals.jobs import parse_shard
from mmalign.evals.suite import ModelSpec, validated

__all__ = ["run"]


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
    shard: str = "0/1",
    device: str | None = None,
    dtype: str = "float32",
    overrides: Sequence[str] = (),
) -> int:
    """`mmalign benchmark NAME`. Returns 0, or 3 where an item has no answer or none that could be scored.

    Raises:
        UnknownNameError: no such benchmark.
        ConfigError: data, answers, models, tools or options do not fit it.
    """
    benchmark: Benchmark = registry.find("benchmarks", name)
    painting = {"num_steps": steps, "guidance_scale": guidance_scale, "batch_size": batch_size, "seed": seed}
    if images_per_prompt is not None:
        painting["images_per_prompt"] = images_per_prompt
    described = {
        "name": name,
        "benchmark": name,
        "data": str(data),
        "options": parsed_options(overrides),
        "tools": _tools(benchmark, tools),
        "limit": limit,
        "answering": {
            "max_new_tokens": max_new_tokens,
            "max_pixels": max_pixels,
            "batch_size": batch_size,
        },
        "generation": painting,
        "dtype": dtype,
        "groups": groups,
        "statistics": {"seed": seed},
    }
    suite = validated(BenchmarkSuite, described, "mmalign benchmark")
    named = _models(benchmark, answers, models)
    part = parse_shard(shard)
    target = output or Path("runs/benchmarks") / name
    stages = ("generate", "score") if part[1] > 1 else ("generate", "score", "report")
    record = run_benchmark(suite, named, output=target, cache=cache, stages=stages, shard=part, device=device)
    if record is None:
        print(f"shard {part[0]} of {part[1]}: done. When all are, run again without --shard.")
        return 0
    return print_record(record, target)


def _tools(benchmark: Benchmark, written: Sequence[str]) -> dict[str, str]:
    """Tools as they stand on the command line: name to source.

    Raises:
        ConfigError: no source, or a tool twice.
    """
    sources: dict[str, str] = {}
    for word in written:
        name, equals, source = word.partition("=")
        if not equals or name in sources:
            known = ", ".join(benchmark.tools) or "none"
            expected = f"TOOL=SOURCE, each tool once; tools of {benchmark.name}: {known}"
            raise ConfigError(explain("--tool", got=word, expected=expected))
        sources[name] = source
    return sources


def _models(benchmark: Benchmark, answers: Sequence[str], models: Sequence[str]) -> list[Model]:
    """Models in the order of the command line: stored answers first.

    Raises:
        ConfigError: none, or a name that stands for two.
    """
    found: dict[str, Model] = {}
    for written in answers:
        # A file may have the sign in its name.
        name, equals, file = ("", "", "") if Path(written).exists() else written.partition("=")
        path = Path(file if equals else written)
        if not path.exists():
            expected = "a file of answers" if benchmark.produces == "text" else "a file of answers or results"
            raise ConfigError(explain(f"--answers {written}", got=str(path), expected=expected))
        name = name if equals else path.stem
        model = model_of(benchmark, ModelSpec(name=name, source=f"{ANSWERS}{path}"))
        if name in found and model.files:
            found[name].files += model.files
        else:
            found[name] = model
    for written in models:
        name, equals, source = written.partition("=")
        source = source if equals else written
        folder = adopted_folder(source)
        name = name if equals else Path(folder or source.rstrip("/")).name
        if name in found:
            do = "Write --model NAME=SOURCE."
            raise ConfigError(explain("--model", got=name, expected="a name of its own", do=do))
        found[name] = model_of(benchmark, ModelSpec(name=name, source=source))
    if not found:
        do = f"`mmalign benchmarks {benchmark.name}` shows an example."
        raise ConfigError(
            explain("mmalign benchmark", got="[no model]", expected="--answers or --model", do=do)
        )
    return list(found.values())

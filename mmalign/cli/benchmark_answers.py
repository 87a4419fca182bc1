"""Where the answers of `mmalign benchmark` come from: files, a model that is asked now, painted pictures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.evals.answers import read_answers
from mmalign.evals.base import Answer, Benchmark, Item
from mmalign.evals.model_identity import model_fingerprint, require_models
from mmalign.evals.suite import GenerationConfig, ModelSpec
from mmalign.rewards.weights import file_sha256

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Given", "How", "Model", "answers_of", "images_of", "read_models"]


@dataclass(frozen=True)
class How:
    """Options that several steps read."""

    cache: Path
    device: str | None
    dtype: str
    batch_size: int
    max_new_tokens: int
    max_pixels: int | None
    generation: GenerationConfig


@dataclass
class Model:
    """One model of the command line.

    Args:
        name: what tables call it.
        files: of stored answers or results; empty for a model that answers now.
        source: hub id or folder; empty for stored answers.
        provenance: where its answers come from.
    """

    name: str
    files: list[Path] = field(default_factory=list)
    source: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


def images_of(benchmark: Benchmark, options: Mapping[str, Any]) -> int:
    """Pictures of each prompt as the protocol has them; one where each is a grid of them."""
    count = benchmark.protocol.get("images per prompt", 1)
    return int(count) if not options.get("resolution") else 1


def read_models(benchmark: Benchmark, answers: Sequence[str], models: Sequence[str]) -> list[Model]:
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
        if path.is_dir() and "results" not in benchmark.options:
            found[name] = Model(name, source=f"images:{path}")
        else:
            found.setdefault(name, Model(name)).files.append(path)
    for written in models:
        name, equals, source = written.partition("=")
        source = source if equals else written
        name = name if equals else Path(source.removeprefix("images:").rstrip("/")).name
        if name in found:
            do = "Write --model NAME=SOURCE."
            raise ConfigError(explain("--model", got=name, expected="a name of its own", do=do))
        found[name] = Model(name, source=source)
    if not found:
        do = f"`mmalign benchmarks {benchmark.name}` shows an example."
        raise ConfigError(
            explain("mmalign benchmark", got="[no model]", expected="--answers or --model", do=do)
        )
    return list(found.values())


@dataclass(frozen=True)
class Given:
    """Answers of a model before they are scored.

    Args:
        answers: one or more per item.
        missing: items nobody answered.
        unused: records of no item.
        results: what the official script wrote, in place of answers.
    """

    answers: Sequence[Answer]
    missing: int = 0
    unused: int = 0
    results: Path | None = None


def answers_of(benchmark: Benchmark, items: Sequence[Item], models: Sequence[Model], how: How) -> list[Given]:
    """Answers of every model, read, asked for or painted."""
    if benchmark.produces == "image":  # all of them are there, before the first one paints for hours
        require_models([_spec(model) for model in models if not model.files])
    found = []
    for model in models:
        if model.files:
            model.provenance["files"] = {
                str(path): file_sha256(path) for path in model.files if path.is_file()
            }
            found.append(_stored(benchmark, items, model))
        elif benchmark.produces == "text":
            found.append(_said(items, model, how))
        elif benchmark.produces == "image":
            found.append(_painted(items, model, how))
        else:
            message = explain(
                f"--model {model.name}",
                got=model.source,
                expected=f"--answers with {benchmark.options.get('results', 'stored answers')}",
                do=f"{_KINDS_MADE[benchmark.produces]} are made by their own commands.",
            )
            raise ConfigError(message)
    return found


_KINDS_MADE = {"video": "Clips", "audio": "Sounds"}


def _stored(benchmark: Benchmark, items: Sequence[Item], model: Model) -> Given:
    if "results" in benchmark.options:
        if len(model.files) > 1:
            got = f"[{len(model.files)} files]"
            message = explain(f"--answers {model.name}", got=got, expected="one file or folder of results")
            raise ConfigError(message)
        return Given([Answer(item) for item in items], results=model.files[0])
    stored = read_answers(benchmark, model.files, items)
    return Given(stored.answers, stored.missing, stored.unused)


def _said(items: Sequence[Item], model: Model, how: How) -> Given:
    """A vision-language model answers, what is stored aside."""
    from mmalign.evals.answering import answer_items, load_speaker, speaker_fingerprint

    device = str(best_device(how.device))
    speaker = load_speaker(model.source, device=device, dtype=how.dtype, max_pixels=how.max_pixels)
    model.provenance |= {
        "fingerprint": speaker_fingerprint(speaker),
        "settings": speaker.settings(),
        "dtype": how.dtype,
        "max_new_tokens": how.max_new_tokens,
        "decoding": "greedy",
    }
    with _progress() as progress:
        task = progress.add_task(f"ask {model.name}", total=len(items))
        answers = answer_items(
            speaker,
            items,
            how.cache,
            name=model.name,
            max_new_tokens=how.max_new_tokens,
            batch_size=how.batch_size,
            progress=lambda done: progress.advance(task, done),
        )
    return Given(answers)


def _spec(model: Model) -> ModelSpec:
    return ModelSpec(name=model.name, source=model.source)


def _painted(items: Sequence[Item], model: Model, how: How) -> Given:
    """Pictures of a model from the noise every other model gets, or those of a folder."""
    from mmalign.evals.generation import generate_missing
    from mmalign.evals.jobs import jobs_of
    from mmalign.evals.results import load_pictures

    spec = _spec(model)
    jobs = jobs_of(items, how.generation.images_per_prompt)
    with _progress() as progress:
        task = progress.add_task(f"paint {model.name}", total=len(jobs))
        keys = generate_missing(
            spec,
            jobs,
            how.generation,
            how.cache,
            device=how.device,
            progress=lambda done: progress.advance(task, done),
        )
    fingerprint = "" if model.source.startswith("images:") else model_fingerprint(spec)
    pictures = load_pictures(how.cache, spec, fingerprint, jobs, keys)
    model.provenance |= {"fingerprint": fingerprint, "recipe": dict(pictures.recipe)}
    answers = []
    for job in jobs:
        picture = pictures.pictures.get(job.sample_id)
        answers.append(
            Answer(job.item, copy=job.copy, error="there is no picture")
            if picture is None
            else Answer(job.item, media=(picture.path,), copy=job.copy)
        )
    missing = sum(answer.error is not None for answer in answers)
    return Given(answers, missing)


@contextmanager
def _progress() -> "Iterator[Progress]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress

"""Where the answers of a benchmark come from: files, a model that is asked now, painted pictures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.evals.adopted_pictures import adopted_folder, is_clip, is_sound
from mmalign.evals.answers import read_answers
from mmalign.evals.base import Answer, Benchmark, Item
from mmalign.evals.benchmark_suite import AnsweringConfig
from mmalign.evals.jobs import jobs_of, shard_of
from mmalign.evals.model_identity import model_fingerprint, require_models, require_on_hub
from mmalign.evals.suite import GenerationConfig, ModelSpec
from mmalign.evals.suite_rewards import release
from mmalign.rewards.weights import file_sha256

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["ANSWERS", "Given", "How", "Model", "answers_of", "model_of", "part_of"]

ANSWERS = "answers:"
"""What the source of a model starts with whose answers are stored in a file."""

_FOLDERS = {"image": "images:", "video": "videos:", "audio": "sounds:"}
"""What the source of a model starts with that is a folder of what a benchmark asks for."""


@dataclass(frozen=True)
class How:
    """What several steps read.

    Args:
        cache: store of answers, pictures, scores and what tools said.
        device: cuda, cpu, ...; None is the best there is.
        dtype: of chat models, judges and rewards.
        answering: how chat models answer.
        generation: how models paint.
        shard: (number, count): this process's part.
        make: False where answers and pictures must be there: nothing is asked for or painted.
    """

    cache: Path
    device: str | None
    dtype: str
    answering: AnsweringConfig
    generation: GenerationConfig
    shard: tuple[int, int] = (0, 1)
    make: bool = True


@dataclass
class Model:
    """One model of a comparison.

    Args:
        name: what tables call it.
        files: of stored answers or results; empty for a model that answers now.
        source: hub id or folder; empty for stored answers.
        weights: of a run folder: which side of it.
        provenance: where its answers come from.
    """

    name: str
    files: list[Path] = field(default_factory=list)
    source: str = ""
    weights: str = "trained"
    provenance: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> ModelSpec:
        """The model as those who paint know it."""
        side = "base" if self.weights == "base" else "trained"
        return ModelSpec(name=self.name, source=self.source, weights=side)


def model_of(benchmark: Benchmark, spec: ModelSpec) -> Model:
    """A model of a suite: `answers:FILE` is stored answers, or the official script's results.

    A pattern (`answers:out/*.jsonl`) takes all files it fits; a folder of pictures is `images:FOLDER`, one of
    clips `videos:FOLDER`, one of sounds `sounds:FOLDER`.

    Raises:
        ConfigError: no such file; or pictures, where words are asked for.
    """
    taken = _is_made(benchmark) and spec.source.startswith(_FOLDERS[benchmark.produces])
    if adopted_folder(spec.source) is not None and not taken:
        expected = f"a model that answers, or {ANSWERS}FILE: {benchmark.name} takes no such folder"
        raise ConfigError(explain(f"--model {spec.name}", got=spec.source, expected=expected))
    if not spec.source.startswith(ANSWERS):
        return Model(spec.name, source=spec.source, weights=spec.weights)
    written = Path(spec.source.removeprefix(ANSWERS))
    files = [written] if written.exists() else [Path(name) for name in sorted(glob(str(written)))]
    if not files:
        expected = "a file of answers" if benchmark.produces == "text" else "a file of answers or results"
        raise ConfigError(explain(f"--model {spec.name}", got=str(written), expected=expected))
    made = benchmark.produces in _FOLDERS and "results" not in benchmark.options
    if files == [written] and written.is_dir() and made:
        return Model(spec.name, source=f"{_FOLDERS[benchmark.produces]}{written}")
    return Model(spec.name, files=files)


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
    working = [model for model in models if not model.files]
    # All of them are there, before the first one works for hours.
    if _is_made(benchmark):
        require_models([model.spec() for model in working])
        require_on_hub([model.spec() for model in working])
    elif benchmark.produces == "text" and working:
        from mmalign.evals.answering import require_speakers

        require_speakers({model.name: model.source for model in working})
    found = []
    for model in models:
        if model.files:
            model.provenance["files"] = {
                str(path): file_sha256(path) for path in model.files if path.is_file()
            }
            given = _stored(benchmark, items, model)
            found.append(replace(given, answers=part_of(given.answers, how.shard)))
        elif benchmark.produces == "text":
            found.append(_said(items, model, how))
        elif _is_made(benchmark):
            found.append(_painted(items, model, how, benchmark.produces))
        else:
            stored = benchmark.options.get("results", "stored answers")
            message = explain(
                f"--model {model.name}",
                got=model.source,
                expected=f"--answers (of a suite: answers:FILE) with {stored}",
                do="Its clips are measured by the official package.",
            )
            raise ConfigError(message)
    return found


def part_of(answers: Sequence[Answer], shard: tuple[int, int]) -> list[Answer]:
    """A process's part of answers that are there: whole items, by their names."""
    number, count = shard
    return [answer for answer in answers if shard_of(answer.item.id, count) == number]


def _is_made(benchmark: Benchmark) -> bool:
    """Whether models make what a benchmark asks for: not clips that the official package measures."""
    return benchmark.produces in _FOLDERS and not (
        benchmark.produces == "video" and "results" in benchmark.options
    )


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

    device, settings = str(best_device(how.device)), how.answering
    speaker = load_speaker(model.source, device=device, dtype=how.dtype, max_pixels=settings.max_pixels)
    model.provenance |= {
        "fingerprint": speaker_fingerprint(speaker),
        "settings": speaker.settings(),
        "dtype": how.dtype,
        "max_new_tokens": settings.max_new_tokens,
        "decoding": "greedy",
    }
    with _progress() as progress:
        task = progress.add_task(f"ask {escape(model.name)}", total=len(items) if how.shard[1] == 1 else None)
        answers = answer_items(
            speaker,
            items,
            how.cache,
            name=model.name,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            shard=how.shard,
            ask=how.make,
            progress=partial(progress.advance, task),
        )
        progress.update(task, total=len(answers))
    del speaker
    release()
    return Given(answers)


def _painted(items: Sequence[Item], model: Model, how: How, produces: str) -> Given:
    """Pictures, clips or sounds of a model from the noise every other model gets, or those of a folder."""
    from mmalign.evals.generation import generate_missing
    from mmalign.evals.harness import stored_keys
    from mmalign.evals.results import load_pictures

    spec = model.spec()
    adopted = adopted_folder(spec.source) is not None
    made, verb = _VERBS[produces]
    jobs = jobs_of(items, how.generation.images_per_prompt)
    if how.make:
        with _progress() as progress:
            total = len(jobs) if how.shard[1] == 1 else None
            task = progress.add_task(f"{verb} {escape(model.name)}", total=total)
            keys = generate_missing(
                spec,
                jobs,
                how.generation,
                how.cache,
                device=how.device,
                shard=how.shard,
                progress=partial(progress.advance, task),
                media=_MEDIA[produces],
            )
            progress.update(task, total=len(keys))
        if not adopted:
            release()
    else:
        keys = stored_keys(spec, jobs, how.generation, how.cache)
    fingerprint = "" if adopted else model_fingerprint(spec)
    pictures = load_pictures(how.cache, spec, fingerprint, jobs, keys)
    model.provenance |= {"fingerprint": fingerprint, "recipe": dict(pictures.recipe)}
    number, count = how.shard
    answers = []
    for job in jobs:
        # A painter's part is what it painted; a folder's pictures are parted by their names.
        mine = shard_of(job.sample_id, count) == number if adopted else job.sample_id in keys
        if count > 1 and not mine:
            continue
        picture = pictures.pictures.get(job.sample_id)
        answers.append(
            Answer(job.item, copy=job.copy, error=f"there is no {made}")
            if picture is None
            else Answer(job.item, media=(picture.path,), copy=job.copy)
        )
    missing = sum(answer.error is not None for answer in answers)
    return Given(answers, missing, _unmatched(spec, keys) if adopted and produces != "image" else 0)


_VERBS = {"image": ("picture", "paint"), "video": ("clip", "film"), "audio": ("sound", "sound")}
_MEDIA = {"image": "pictures", "video": "clips", "audio": "sounds"}


def _unmatched(spec: ModelSpec, keys: Mapping[str, str]) -> int:
    """Clips or sounds in a folder that are of no prompt."""
    folder = adopted_folder(spec.source)
    files = [] if folder is None else [path for path in folder.rglob("*") if is_sound(path) or is_clip(path)]
    return max(0, len(files) - len(keys))


@contextmanager
def _progress() -> "Iterator[Progress]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress

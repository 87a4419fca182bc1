"""What a benchmark is: items to paint or answer, and a rule that turns what models made of them into metrics.

A benchmark module reads the official files from a folder of the user's (no data are shipped), and scores. It
neither loads nor runs models: the harness hands it answers, and the tools it names (a detector, a
question-answering model, a judge).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmalign.rewards.sample import Media

__all__ = ["Answer", "Benchmark", "Item", "Metric", "Outcome", "Produces"]

Produces = Literal["image", "video", "audio", "text"]


@dataclass(frozen=True)
class Item:
    """One task of a benchmark.

    Args:
        id: unique within the benchmark, stable over time: seeds, caches and pairing hang on it.
        prompt: what to paint, or the question.
        media: pictures or frames the question is about; empty for generation.
        group: category, style or task the benchmark reports by.
        expected: annotations the scoring reads.
    """

    id: str
    prompt: str
    media: tuple[Media, ...] = ()
    group: str = ""
    expected: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a model made of an item.

    Args:
        item: the task.
        text: its words, for benchmarks of answers.
        media: its picture, or the frames of its clip.
        copy: number among several answers to one item.
        error: why there is none.
    """

    item: Item
    text: str | None = None
    media: tuple[Media, ...] = ()
    copy: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Metric:
    """One number of a benchmark, with what it was averaged from.

    Args:
        name: as the field writes it ("CHAIRi", "F1", ...).
        value: NaN where nothing could be scored.
        unit: unit and range in words.
        higher_is_better: None for numbers that are neither (mean length).
        per_item: item id to its part of the number, for paired statistics; empty where none exists.
        beside: metrics that must stand next to this one wherever it is shown (recall beside hallucination).
    """

    name: str
    value: float
    unit: str = ""
    higher_is_better: bool | None = True
    per_item: Mapping[str, float] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Metrics of one model on one benchmark.

    Args:
        metrics: the first is the benchmark's headline.
        counts: how many answers were scored, missing, unparsable, failed: nothing leaves silently.
        notes: what a reader must know (uncalibrated detector, released quirks kept).
    """

    metrics: tuple[Metric, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A row of the table of benchmarks.

    Args:
        name: as users type it; modes that give other numbers have names of their own.
        title: what it measures, in one line.
        produces: what models are asked for.
        read: (folder with the official files, options by keyword) to items.
        score: (answers, tools and options by keyword) to an outcome.
        files: official files that are read, with where they come from, in words.
        tools: what `score` needs besides answers: "detector", "vqa", "judge", "colours", ...
        options: option name to what it does.
        protocol: what makes two numbers comparable, besides name and options: images per item, guidance, ...
        paper: arXiv id.
        official_code: repository the numbers are held against.
        licence: of the data.
        departures: what the official code does otherwise, one sentence each.
    """

    name: str
    title: str
    produces: Produces
    read: Callable[..., Sequence[Item]]
    score: Callable[..., Outcome]
    files: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, str | int | float] = field(default_factory=dict)
    paper: str = ""
    official_code: str = ""
    licence: str = "unknown"
    departures: tuple[str, ...] = ()

    def items(self, folder: str | Path, **options: Any) -> Sequence[Item]:
        """The tasks in a folder with the official files."""
        return self.read(Path(folder), **options)

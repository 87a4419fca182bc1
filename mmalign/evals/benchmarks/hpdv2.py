"""The benchmark of HPDv2 (2306.09341): four styles of 800 prompts, mean reward and its spread over chunks."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.base import Answer, Benchmark, Item, Outcome
from mmalign.evals.benchmarks._harness import averaged, metric, official_file
from mmalign.evals.benchmarks._records import mean, read_value
from mmalign.rewards.base import Reward
from mmalign.rewards.sample import Sample

__all__ = ["BENCHMARK", "CHUNK", "STYLES", "HpdResult", "StyleResult", "aggregate", "read_prompts"]

STYLES = ("anime", "concept-art", "paintings", "photo")

CHUNK = 80
"""Prompts averaged before the spread is taken."""


@dataclass(frozen=True)
class StyleResult:
    """One style.

    Args:
        mean: mean of the chunk means.
        std: population standard deviation of the chunk means.
        chunks: mean of each chunk.
        scored: pictures with a value.
        failed: pictures without.
    """

    mean: float
    std: float
    chunks: tuple[float, ...]
    scored: int
    failed: int


@dataclass(frozen=True)
class HpdResult:
    """All styles.

    Args:
        average: mean of every value of every style.
        styles: style to its result.
    """

    average: float
    styles: Mapping[str, StyleResult]


def aggregate(scores: Mapping[str, Sequence[float]], *, chunk: int = CHUNK) -> HpdResult:
    """Means as the benchmark prints them.

    Args:
        scores: style to values in the order of its prompts (100 times the cosine, for HPS); NaN where a
            picture failed. Its place is kept, so that chunks hold the same prompts for every model.
        chunk: prompts per chunk.

    Raises:
        ConfigError: no scores, or a chunk smaller than one prompt.

    Source: tgxs002/HPSv2, hpsv2/evaluation.py.
    """
    if chunk < 1 or not any(len(values) for values in scores.values()):
        message = explain(
            "scores", got=f"[{len(scores)} styles, chunks of {chunk}]", expected="at least one value"
        )
        raise ConfigError(message)
    styles = {style: _style(values, chunk) for style, values in scores.items()}
    return HpdResult(mean(value for values in scores.values() for value in values), styles)


def _style(values: Sequence[float], chunk: int) -> StyleResult:
    chunks = tuple(mean(values[start : start + chunk]) for start in range(0, len(values), chunk))
    present = [value for value in chunks if not math.isnan(value)]
    failed = sum(math.isnan(value) for value in values)
    spread = statistics.pstdev(present) if present else math.nan
    return StyleResult(mean(present), spread, chunks, len(values) - failed, failed)


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of one style's official file, a JSON list of texts.

    Raises:
        ConfigError: not a list.
        RowError: an entry is no text.
    """
    value = read_value(path)
    if not isinstance(value, list) or not value:
        raise ConfigError(explain(str(path), got=type(value).__name__, expected="a list of prompts"))
    for number, prompt in enumerate(value):
        if not isinstance(prompt, str) or not prompt.strip():
            raise RowError(explain(f"{path}[{number}]", got=prompt, expected="a prompt"), "no_prompt")
    return value


# ------------------------------------------------------------------------------------------------ the harness


def _read(folder: Path, *, styles: Sequence[str] = STYLES) -> list[Item]:
    return [
        Item(f"hpdv2/{style}/{number:05d}", prompt, group=style, expected={"style": style, "number": number})
        for style in styles
        for number, prompt in enumerate(
            read_prompts(official_file(folder, f"{style}.json", f"benchmark/{style}.json"))
        )
    ]


def _score(answers: Sequence[Answer], *, reward: Reward, batch_size: int = 16) -> Outcome:
    name = reward.card.name
    # The benchmark prints 100 times the cosine; other rewards keep their unit.
    factor = 100.0 if name.startswith("hpsv2") else 1.0
    ready = [answer for answer in answers if answer.error is None and len(answer.media) == 1]
    samples = [Sample(prompt=answer.item.prompt, image=answer.media[0]) for answer in ready]
    scored = reward.score(samples, batch_size=batch_size).values[:, 0].tolist() if samples else []
    values = {id(answer): factor * value for answer, value in zip(ready, scored, strict=True)}
    pairs = [(answer.item.id, values.get(id(answer), math.nan)) for answer in answers]
    per_item = averaged(pairs)
    by_style: dict[str, dict[int, float]] = {}
    for answer in answers:
        expected = answer.item.expected
        by_style.setdefault(expected["style"], {})[expected["number"]] = per_item[answer.item.id]
    result = aggregate(
        {style: [found[number] for number in sorted(found)] for style, found in by_style.items()}
    )
    unit = f"100 times cosine of {name}" if factor == 100.0 else (reward.card.scale or name)
    metrics = [metric(f"{name}/average", result.average, unit, per_item=per_item)]
    for style, part in result.styles.items():
        parts = {item: value for item, value in per_item.items() if item.startswith(f"hpdv2/{style}/")}
        metrics.append(metric(f"{name}/{style}", part.mean, unit, per_item=parts))
        title = f"{name}/{style}/spread of chunks"
        metrics.append(metric(title, part.std, unit, higher_is_better=None))
    failed = sum(math.isnan(value) for _, value in pairs)
    return Outcome(tuple(metrics), {"images": len(pairs), "failed": failed})


BENCHMARK = Benchmark(
    name="hpdv2",
    title="HPSv2's benchmark: mean reward over four styles of 800 prompts, spread over chunks of 80",
    produces="image",
    read=_read,
    score=_score,
    files={f"{style}.json": "zhwang/HPDv2 on the hub, folder benchmark" for style in STYLES},
    tools=("reward",),
    options={"styles": "which of the four", "batch_size": "pictures per network call"},
    protocol={"prompts per style": 800, "images per prompt": 1, "files": "jpg in the released tables"},
    paper="2306.09341",
    official_code="tgxs002/HPSv2",
    licence="Apache-2.0",
    departures=(
        "A missing picture keeps its place in its chunk; the released script closes the gap.",
        "The version of the reward is part of every metric's name; the released script has two defaults.",
    ),
)

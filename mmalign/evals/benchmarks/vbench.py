"""VBench's aggregate (2311.17982): sixteen dimensions, normalised and weighted, from its own result files.

The dimensions are measured by the official package, which needs a dozen detectors. Its result files are read
here, checked, aggregated and broken down by clip, so that two models can be compared pairwise.
"""

import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.base import Answer, Benchmark, Item, Outcome
from mmalign.evals.benchmarks._harness import metric, official_file
from mmalign.evals.benchmarks._records import Record, mean, read_json_records, read_value

__all__ = [
    "BENCHMARK",
    "CUSTOM_DIMENSIONS",
    "DIMENSIONS",
    "Dimension",
    "DimensionScore",
    "VBenchResult",
    "aggregate",
    "read_items",
    "read_results",
]

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1


@dataclass(frozen=True)
class Dimension:
    """Constants of one dimension.

    Args:
        family: "quality" or "semantic".
        low: raw value that becomes 0.
        high: raw value that becomes 1.
        weight: in the mean of its family.
    """

    family: str
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


DIMENSIONS: Mapping[str, Dimension] = {
    "subject consistency": Dimension("quality", 0.1462, 1.0),
    "background consistency": Dimension("quality", 0.2615, 1.0),
    "temporal flickering": Dimension("quality", 0.6293, 1.0),
    "motion smoothness": Dimension("quality", 0.706, 0.9975),
    "aesthetic quality": Dimension("quality"),
    "imaging quality": Dimension("quality"),
    "dynamic degree": Dimension("quality", weight=0.5),
    "object class": Dimension("semantic"),
    "multiple objects": Dimension("semantic"),
    "human action": Dimension("semantic"),
    "color": Dimension("semantic"),
    "spatial relationship": Dimension("semantic"),
    "scene": Dimension("semantic", 0.0, 0.8222),
    "appearance style": Dimension("semantic", 0.0009, 0.2855),
    "temporal style": Dimension("semantic", 0.0, 0.364),
    "overall consistency": Dimension("semantic", 0.0, 0.364),
}
"""Constants of Vchitect/VBench, scripts/constant.py."""

CUSTOM_DIMENSIONS = (
    "subject consistency",
    "background consistency",
    "motion smoothness",
    "dynamic degree",
    "aesthetic quality",
    "imaging quality",
)
"""Dimensions that take clips of any prompt; they give no quality score, which needs flickering too."""


@dataclass(frozen=True)
class VBenchResult:
    """Scores in units of 1.

    Args:
        total: `(4 * quality + semantic) / 5`.
        quality: weighted mean of its seven dimensions.
        semantic: mean of its nine dimensions.
        raw: dimension to what the package measured.
        weighted: dimension to its normalised value times its weight.
    """

    total: float
    quality: float
    semantic: float
    raw: Mapping[str, float]
    weighted: Mapping[str, float]


def aggregate(raw: Mapping[str, float | int]) -> VBenchResult:
    """Normalise and average.

    Each raw value becomes `(raw - low) / (high - low) * weight`; a family is the sum over its dimensions
    divided by the sum of their weights. Nothing is clipped, as released.

    Args:
        raw: dimension ("subject consistency" or "subject_consistency") to its value.

    Raises:
        ConfigError: a dimension is missing, unknown, given twice, or not a number in [0, 1].

    Source: Vchitect/VBench, scripts/cal_final_score.py.
    """
    values = _named(raw)
    missing = [name for name in DIMENSIONS if name not in values]
    if missing:
        message = explain(
            "VBench dimensions",
            got=f"[{len(values)} of {len(DIMENSIONS)}]",
            expected=f"also {', '.join(missing)}",
            do="The released script counts missing ones as 0, which is no score. Measure them.",
        )
        raise ConfigError(message)
    weighted = {
        name: (values[name] - constants.low) / (constants.high - constants.low) * constants.weight
        for name, constants in DIMENSIONS.items()
    }
    quality, semantic = (_family(weighted, family) for family in ("quality", "semantic"))
    total = (quality * QUALITY_WEIGHT + semantic * SEMANTIC_WEIGHT) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return VBenchResult(total, quality, semantic, values, weighted)


def _family(weighted: Mapping[str, float], family: str) -> float:
    members = {name: constants.weight for name, constants in DIMENSIONS.items() if constants.family == family}
    return sum(weighted[name] for name in members) / sum(members.values())


def _named(raw: Mapping[str, float | int]) -> dict[str, float]:
    """Values under the names of `DIMENSIONS`, in their order."""
    found: dict[str, float] = {}
    for given, value in raw.items():
        name = given.replace("_", " ").strip().lower()
        where = f"VBench dimension {given}"
        if name not in DIMENSIONS or name in found:
            expected = "given once" if name in found else f"one of {', '.join(DIMENSIONS)}"
            raise ConfigError(explain(where, got=given, expected=expected))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            do = (
                "Results of old versions give imaging quality from 0 to 100."
                if name == "imaging quality"
                else ""
            )
            raise ConfigError(explain(where, got=value, expected="a number from 0 to 1", do=do))
        found[name] = float(value)
    return {name: found[name] for name in DIMENSIONS if name in found}


# --------------------------------------------------------------------------------------------- official files


@dataclass(frozen=True)
class DimensionScore:
    """One dimension as the package reports it.

    Args:
        value: over all clips; for some dimensions the mean over frames, not over clips.
        clips: file name of a clip to its own value; NaN where the package gave none.
        source: file it stands in.
    """

    value: float
    clips: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


def read_results(path: str | Path) -> dict[str, DimensionScore]:
    """Scores by dimension, from what `vbench evaluate` wrote.

    Args:
        path: one `*_eval_results.json`, a folder of them, or the zip file that is submitted. A dimension may
            stand in one file only.

    Raises:
        ConfigError: no such file in it, or a dimension that stands in two.
        RowError: an entry is malformed; names file and dimension.
    """
    found: dict[str, DimensionScore] = {}
    for where, value in _documents(Path(path)):
        if not isinstance(value, dict):  # the list of clips that the package writes beside its results
            continue
        for given, entry in value.items():
            name = given.replace("_", " ")
            if name not in DIMENSIONS:
                raise RowError(explain(f"{where} {given}", got=given, expected="a dimension of VBench"))
            if name in found:
                do = "Keep one result per dimension in the folder."
                raise ConfigError(
                    explain(where, got=given, expected=f"it not in {found[name].source} too", do=do)
                )
            found[name] = _dimension(f"{where} {given}", entry, where)
    if not found:
        raise ConfigError(explain(str(path), got="[no results]", expected="files *_eval_results.json"))
    return {name: found[name] for name in DIMENSIONS if name in found}


def _documents(path: Path) -> Iterator[tuple[str, Any]]:
    """(Name, content) of every JSON file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                parts = PurePosixPath(name).parts
                if name.endswith(".json") and not any(part.startswith((".", "__")) for part in parts):
                    where = f"{path}:{name}"
                    try:
                        yield where, json.loads(archive.read(name))
                    except ValueError as error:
                        raise ConfigError(explain(where, got=f"[{error}]", expected="JSON")) from error
        return
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    for file in files:
        yield str(file), read_value(file)


def _dimension(where: str, entry: object, source: str) -> DimensionScore:
    if not isinstance(entry, list) or not entry or not isinstance(entry[0], int | float):
        message = explain(where, got=type(entry).__name__, expected="[value, list of clips]")
        raise RowError(message)
    clips: dict[str, float] = {}
    for number, clip in enumerate(entry[1] if len(entry) > 1 else []):
        if not isinstance(clip, Mapping) or not isinstance(clip.get("video_path"), str):
            message = explain(f"{where}[1][{number}] video_path", got=clip, expected="the path of a clip")
            raise RowError(message)
        value = clip.get("video_results")
        clips[PurePosixPath(clip["video_path"].replace("\\", "/")).name] = (
            float(value) if isinstance(value, int | float) else math.nan
        )
    return DimensionScore(float(entry[0]), clips, source)


def read_items(folder: Path) -> list[Item]:
    """Prompts of `VBench_full_info.json`, each with the dimensions it is for, and its style where it has one.

    Raises:
        ConfigError: the file is not there.
        RowError: a record is malformed; names record and field.
    """
    path = official_file(folder, "VBench_full_info.json", "vbench/VBench_full_info.json")
    return [
        Item(
            f"vbench/{number:05d}",
            record.text("prompt_en"),
            group=record.texts("dimension")[0] if record.texts("dimension") else "",
            expected={"dimensions": list(record.texts("dimension")), **_style(record)},
        )
        for number, record in enumerate(read_json_records(path))
    ]


def _style(record: Record) -> dict[str, str]:
    """The words that the official package holds frames against, by the name of the dimension."""
    if record.get("auxiliary_info") is None:
        return {}
    found = record.part("auxiliary_info")
    name = "appearance_style"
    if isinstance(found.get(name), Mapping):
        found = found.part(name)
    style = found.optional_text(name)
    return {name: style} if style else {}


# ------------------------------------------------------------------------------------------------ the harness


def _score(answers: Sequence[Answer], *, results: str | Path) -> Outcome:
    found = read_results(results)
    result = aggregate({name: score.value for name, score in found.items()})
    unit = "in units of 1"
    beside = ("dynamic degree",)
    metrics = [
        metric("total", result.total, unit, beside=beside),
        metric("quality", result.quality, unit, beside=beside),
        metric("semantic", result.semantic, unit),
    ]
    items = {answer.item.prompt: answer.item.id for answer in answers}
    unmatched = 0
    for name, score in found.items():
        by_item: dict[str, list[float]] = {}
        for clip, value in score.clips.items():
            prompt = PurePosixPath(clip).stem.rpartition("-")[0]
            if prompt in items:
                by_item.setdefault(items[prompt], []).append(value)
            else:
                unmatched += 1
        parts = {item: mean(values) for item, values in by_item.items()}
        steady = DIMENSIONS[name].family == "quality" and name != "dynamic degree"
        metrics.append(metric(name, score.value, "raw", per_item=parts, beside=beside if steady else ()))
    clips = sum(len(score.clips) for score in found.values())
    notes = (
        f"Measured by the official package: {results}.",
        "Values by clip average to a dimension's value only where it is a mean over clips.",
    )
    return Outcome(tuple(metrics), {"clip values": clips, "clips of no prompt": unmatched}, notes)


BENCHMARK = Benchmark(
    name="vbench",
    title="Sixteen dimensions of generated clips, aggregated from the official package's result files",
    produces="video",
    read=read_items,
    score=_score,
    files={"VBench_full_info.json": "Vchitect/VBench, folder vbench"},
    options={"results": "*_eval_results.json of the official package, a folder of them, or their zip"},
    protocol={"prompts": 946, "clips per prompt": 5},
    paper="2311.17982",
    official_code="Vchitect/VBench",
    licence="Apache-2.0",
    departures=("A missing dimension is refused; the released script counts it as 0.",),
)

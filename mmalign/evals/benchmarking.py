"""One benchmark, one or several models: metrics with intervals, paired comparisons, a record with sources.

Nothing is loaded here. Answers come from files (`mmalign.evals.answers`), from a vision-language model
(`answering`) or from painted pictures (`generation`); tools are given loaded.

Several models are compared with the first, pair by pair of answers, by every metric with parts by item.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Benchmark, Item, Outcome
from mmalign.evals.benchmark_answered import Answered, plain_values
from mmalign.evals.benchmark_jackknife import jackknife_interval
from mmalign.evals.benchmark_statistics import (
    Tested,
    clusters_of,
    compare_metric,
    is_mean_of_items,
    metric_interval,
)
from mmalign.evals.prompts import prompts_hash
from mmalign.evals.software import software
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling
from mmalign.evals.statistics.corrections import adjust

__all__ = [
    "benchmark_record",
    "sort_options",
]

SCHEMA_VERSION = 1

_UNREAD = ("unparsed", "answers neither yes nor no")
"""Counts of outcomes that say how often an answer was neither of what was asked for."""


def sort_options(benchmark: Benchmark, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(Options of reading, options of scoring); a text becomes a list where the default is one.

    Raises:
        ConfigError: the benchmark has no such option.
    """
    reading, scoring = (
        inspect.signature(function).parameters for function in (benchmark.read, benchmark.score)
    )
    of_reading: dict[str, Any] = {}
    of_scoring: dict[str, Any] = {}
    for name, value in options.items():
        if name not in benchmark.options:
            known = ", ".join(benchmark.options) or "none"
            raise ConfigError(explain(f"option of {benchmark.name}", got=name, expected=f"one of {known}"))
        if name not in reading:
            of_scoring[name] = value
            continue
        listed = isinstance(reading[name].default, tuple) and isinstance(value, str)
        of_reading[name] = tuple(value.replace(" ", "").split(",")) if listed else value
        if name in scoring:
            of_scoring[name] = of_reading[name]
    return of_reading, of_scoring


def _difference(base: Answered, model: Answered, name: str, how: Resampling) -> Tested | None:
    """The difference of the metric itself, where both models have replicates of it."""
    if not base.replicates or len(base.replicates) != len(model.replicates):
        return None
    value, *left_out = (
        after.get(name, math.nan) - before.get(name, math.nan)
        for before, after in zip(
            (_values(base.outcome), *base.replicates),
            (_values(model.outcome), *model.replicates),
            strict=True,
        )
    )
    found = jackknife_interval(value, left_out, confidence=how.confidence)
    if found is None:
        return None
    return Tested(name, found, True, None, (0, 0, 0), len(_answered_items(model)), 0, len(left_out), None)


def _values(outcome: Outcome) -> dict[str, float]:
    return {metric.name: metric.value for metric in outcome.metrics}


# ------------------------------------------------------------------------------------------------- record


def _comparisons(
    models: Sequence[Answered], clusters: Mapping[str, str], how: Resampling
) -> list[dict[str, Any]]:
    """Every model against the first, p-values corrected over all metrics and models together."""
    found: list[tuple[str, str, Tested]] = []
    first = {metric.name: metric for metric in models[0].outcome.metrics}
    for model in models[1:]:
        for metric in model.outcome.metrics:
            if metric.name in first:
                tested = compare_metric(first[metric.name], metric, clusters, how)
                if tested is not None:
                    found.append((models[0].name, model.name, tested))
                if tested is None or not tested.exact:
                    moved = _difference(models[0], model, metric.name, how)
                    found += [] if moved is None else [(models[0].name, model.name, moved)]
    p_values = {
        f"{place}": tested.p_value for place, (_, _, tested) in enumerate(found) if tested.p_value is not None
    }
    adjusted = adjust(p_values) if p_values else {}
    return [
        {"base": base, "model": model, **tested.as_dict(), "adjusted": adjusted.get(f"{place}")}
        for place, (base, model, tested) in enumerate(found)
    ]


def benchmark_record(
    benchmark: Benchmark,
    items: Sequence[Item],
    models: Sequence[Answered],
    *,
    options: Mapping[str, Any] | None = None,
    tools: Mapping[str, Any] | None = None,
    limited: bool = False,
    how: Resampling = DEFAULT,
) -> dict[str, Any]:
    """All of it as plain JSON values: metrics, comparisons, counts, protocol, provenance, warnings.

    Args:
        benchmark: what was run.
        items: what was asked.
        models: the first is the base of comparisons.
        options: as given by the user.
        tools: name to loaded tool; their `provenance()` is recorded where they have one.
        limited: only some of the items were asked.
        how: intervals.

    Raises:
        ConfigError: no models, or two of one name.
    """
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ConfigError(explain("models", got=names, expected="at least one, each with a name of its own"))
    clusters = clusters_of(items)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": {
            "name": benchmark.name,
            "title": benchmark.title,
            "options": dict(options or {}),
            "protocol": dict(benchmark.protocol),
            "departures": list(benchmark.departures),
            "paper": benchmark.paper,
            "official_code": benchmark.official_code,
            "licence": benchmark.licence,
        },
        "items": {
            "count": len(items),
            "sha256": prompts_hash(items),
            "annotations_sha256": _annotations_hash(items),
            "clusters": len({clusters[item.id] for item in items}),
            "groups": {group: sum(item.group == group for item in items) for group in _groups(items)},
        },
        "tools": {name: _provenance(tool) for name, tool in (tools or {}).items()},
        "models": [_model_record(model, clusters, how) for model in models],
        "comparisons": _comparisons(models, clusters, how) if len(models) > 1 else [],
        "statistics": {"resamples": how.num_resamples, "seed": how.seed, "confidence": how.confidence},
        "software": software(),
    }
    record["warnings"] = _warnings(benchmark, record, models, limited=limited)
    plain: dict[str, Any] = plain_values(record)
    return plain


def _annotations_hash(items: Sequence[Item]) -> str:
    """Hexadecimal SHA-256 over what the items' scoring reads: equal hashes mean the same annotations."""
    found = hashlib.sha256()
    for item in items:
        text = json.dumps([item.id, dict(item.expected)], sort_keys=True, ensure_ascii=False, default=list)
        found.update(text.encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def _groups(items: Sequence[Item]) -> list[str]:
    return list(dict.fromkeys(item.group for item in items if item.group))


def _provenance(tool: Any) -> Any:
    found: Callable[[], Any] | None = getattr(tool, "provenance", None)
    return found() if callable(found) else str(getattr(tool, "name", type(tool).__name__))


def _model_record(model: Answered, clusters: Mapping[str, str], how: Resampling) -> dict[str, Any]:
    metrics = []
    for metric in model.outcome.metrics:
        interval = metric_interval(metric, clusters, how)
        if interval is None and model.replicates:
            left_out = [values.get(metric.name, math.nan) for values in model.replicates]
            interval = jackknife_interval(metric.value, left_out, confidence=how.confidence)
        metrics.append(
            {
                "name": metric.name,
                "value": metric.value,
                "interval": None if interval is None else interval.as_dict(),
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "beside": list(metric.beside),
                "items": sum(not math.isnan(value) for value in metric.per_item.values()),
                "mean_of_items": is_mean_of_items(metric),
            }
        )
    return {
        "name": model.name,
        "source": model.source,
        "provenance": dict(model.provenance),
        "metrics": metrics,
        "counts": model.counts(),
        "scored": dict(model.outcome.counts),
        "notes": list(model.outcome.notes),
    }


def _warnings(
    benchmark: Benchmark, record: Mapping[str, Any], models: Sequence[Answered], *, limited: bool
) -> list[str]:
    """What a reader must know before believing a table, in words."""
    found: list[str] = []
    if limited:
        found.append(
            f"Only the first {record['items']['count']} items were asked: no number of {benchmark.name}."
        )
    for model in models:
        counts = model.counts()
        of_all = f"of {counts['answers']} answers"
        if counts["missing"]:
            found.append(f"{model.name}: {counts['missing']} {of_all} are missing; they are in no metric.")
        if counts["failed"]:
            found.append(f"{model.name}: {counts['failed']} {of_all} failed; they are in no metric.")
        if counts["unused records"]:
            kind = "files" if benchmark.produces in ("audio", "video") else "stored answers"
            found.append(f"{model.name}: {counts['unused records']} {kind} belong to no item.")
        unread = sum(model.outcome.counts.get(name, 0) for name in _UNREAD)
        if unread:
            found.append(f"{model.name}: {unread} answers could not be read as what was asked.")
    if len({frozenset(_answered_items(model)) for model in models}) > 1:
        found.append(
            "The models answered different items: their metrics are over different ones, comparisons over "
            "those that both answered."
        )
    asked = {len({answer.copy for answer in model.answers}) for model in models if model.answers}
    wanted = benchmark.protocol.get("images per prompt")
    if wanted is not None and benchmark.produces in _KINDS and asked not in (set(), {wanted}):
        given = ", ".join(map(str, sorted(asked)))
        kind = _KINDS[benchmark.produces]
        found.append(f"The protocol has {wanted} {kind} per prompt; here it is {given}.")
    found += _other_clips(models)
    return found


_KINDS = {"image": "images", "video": "clips", "audio": "sounds"}


def _other_clips(models: Sequence[Answered]) -> list[str]:
    """Where models make clips of other lengths, sizes or rates, which measures of motion depend on."""
    recipes = [model.provenance.get("recipe", {}) for model in models]
    shapes = [
        tuple(recipe.get(name) for name in ("num_frames", "height", "width", "fps")) for recipe in recipes
    ]
    if len({shape for shape in shapes if any(shape)}) < 2:
        return []
    said = ", ".join(
        f"{model.name} {frames} frames of {width}x{height} at {fps:g} fps"
        for model, (frames, height, width, fps) in zip(models, shapes, strict=True)
        if frames
    )
    return [f"The models' clips differ, and with them the scale of every measure of motion: {said}."]


def _answered_items(model: Answered) -> set[str]:
    return {answer.item.id for answer in model.answers if answer.error is None}

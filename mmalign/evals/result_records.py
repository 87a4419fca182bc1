"""The record of a run: summaries, paired comparisons, protocol and provenance, as plain JSON values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mmalign.evals.adopted_pictures import media_of
from mmalign.evals.prompts import prompts_hash
from mmalign.evals.result_warnings import warnings_of
from mmalign.evals.results import Column, Results
from mmalign.evals.software import software
from mmalign.evals.statistics.bootstrap import Resampling, bootstrap_mean, bootstrap_median, prompt_means
from mmalign.evals.statistics.reward_comparison import RewardComparison, compare_rewards
from mmalign.evals.suite import Suite
from mmalign.evals.suite_rewards import made_for

__all__ = ["compare_models", "sample_rows", "summarise"]

SCHEMA_VERSION = 1


def compare_models(results: Results, base: str, model: str) -> RewardComparison | None:
    """`model` against `base` by all rewards, paired by sample; None where no pair has both scores."""
    sides = [
        {
            column.title: column.towards_better(results.values[name][column.title])
            for column in results.columns
        }
        for name in (model, base)
    ]
    kept = [title for title in sides[0] if not np.isnan(sides[0][title] - sides[1][title]).all()]
    if not kept:
        return None
    return compare_rewards(
        {title: sides[0][title] for title in kept},
        {title: sides[1][title] for title in kept},
        prompts=results.prompts,
        how=_resampling(results.suite),
        alpha=1.0 - results.suite.statistics.confidence,
    )


def _resampling(suite: Suite) -> Resampling:
    settings = suite.statistics
    return Resampling(settings.resamples, settings.seed, settings.confidence)


def _summary(values: np.ndarray, prompts: Sequence[str], suite: Suite) -> dict[str, Any]:
    """Mean, median and spread over prompts, with intervals over prompts."""
    there = ~np.isnan(values)
    failed = int((~there).sum())
    if not there.any():
        return {"n": 0, "failed": failed, "mean": None, "median": None, "std": None}
    means = prompt_means(values, prompts)
    means = means[~np.isnan(means)]
    mean, median = (found(means, _resampling(suite)) for found in (bootstrap_mean, bootstrap_median))
    return {
        "n": int(there.sum()),
        "failed": failed,
        "mean": mean.as_dict(),
        "median": median.as_dict(),
        "std": float(means.std(ddof=1)) if len(means) > 1 else None,
    }


def summarise(results: Results) -> dict[str, Any]:
    """The complete record of a run, as plain JSON values: numbers, protocol, provenance, warnings."""
    groups = sorted({job.item.group for job in results.jobs if job.item.group})
    names = [model.spec.name for model in results.models]
    prompts = np.array(results.prompts, dtype=object)
    of_group = {group: np.array([job.item.group == group for job in results.jobs]) for group in groups}
    scores: dict[str, dict[str, Any]] = {}
    for name in names:
        scores[name] = {}
        for column in results.columns:
            values = results.values[name][column.title]
            summary = _summary(values, list(prompts), results.suite)
            summary["groups"] = {
                group: _summary(values[where], list(prompts[where]), results.suite)
                for group, where in of_group.items()
            }
            scores[name][column.title] = summary
    comparisons = []
    for name in names[1:]:
        found = compare_models(results, names[0], name)
        if found is not None:
            comparisons.append({"base": names[0], "model": name, **found.as_dict()})
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "suite": results.suite.model_dump(),
        "prompts": {
            "count": len(results.items),
            "samples": len(results.jobs),
            "sha256": prompts_hash(results.items),
            "groups": {group: int(where.sum()) for group, where in of_group.items()},
        },
        "media": media_of([model.spec for model in results.models], default=made_for(results.suite)),
        "models": [
            {
                "name": model.spec.name,
                "source": model.spec.source,
                "weights": model.spec.weights,
                "fingerprint": model.fingerprint,
                "recipe": dict(model.recipe),
                "pictures": len(model.pictures),
            }
            for model in results.models
        ],
        "rewards": [_reward_record(column, results) for column in results.columns],
        "primary": results.primary().title,
        "scores": scores,
        "comparisons": comparisons,
        "software": software(),
    }
    record["warnings"] = warnings_of(results, record)
    plain: dict[str, Any] = _without_nan(record)
    return plain


def _reward_record(column: Column, results: Results) -> dict[str, Any]:
    failed = sum(len(results.errors[model.spec.name][column.title]) for model in results.models)
    card = asdict(column.card)
    kept = ("scale", "higher_is_better", "paper", "licence", "official_code", "pixels", "text_limit")
    return {
        "title": column.title,
        "name": column.reward.name,
        "output": column.output,
        "role": column.reward.role,
        "fingerprint": column.fingerprint,
        "provenance": dict(column.provenance),
        "truncated": results.truncated[column.title],
        "failed": failed,
        **{name: card[name] for name in kept},
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def sample_rows(results: Results) -> list[dict[str, Any]]:
    """One record per sample: prompt, group, every model's picture and values; what the report shows."""
    rows = []
    for place, job in enumerate(results.jobs):
        models = {}
        for model in results.models:
            picture = model.pictures.get(job.sample_id)
            name = model.spec.name
            values = {
                column.title: float(results.values[name][column.title][place]) for column in results.columns
            }
            problems = {
                column.title: results.errors[name][column.title][job.sample_id]
                for column in results.columns
                if job.sample_id in results.errors[name][column.title]
            }
            models[name] = {
                "path": None if picture is None else str(picture.path),
                "sha256": None if picture is None else picture.sha256,
                "values": values,
                "errors": problems,
            }
        rows.append(
            {
                "sample_id": job.sample_id,
                "item_id": job.item.id,
                "prompt": job.item.prompt,
                "group": job.item.group,
                "copy": job.copy,
                "models": models,
            }
        )
    return [_without_nan(row) for row in rows]

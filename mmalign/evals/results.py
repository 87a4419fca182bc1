"""The third stage: stored scores to summaries, paired comparisons and a record of where they come from."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mmalign
from mmalign.errors import CheckpointError
from mmalign.evals.base import Item
from mmalign.evals.generation import pictures_table
from mmalign.evals.jobs import Job
from mmalign.evals.prompts import PUBLIC_SETS, prompts_hash
from mmalign.evals.scoring import Picture, score_key, scores_table
from mmalign.evals.statistics.bootstrap import Resampling, bootstrap_mean, bootstrap_median, prompt_means
from mmalign.evals.statistics.reward_comparison import RewardComparison, compare_rewards
from mmalign.evals.suite import ModelSpec, RewardSpec, Suite
from mmalign.rewards.card import Card

__all__ = ["Column", "ModelPictures", "Results", "collect", "compare_models", "summarise"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column of numbers: an output of a reward as it was configured.

    Args:
        title: what tables call it.
        reward: how it was asked for.
        card: what it is.
        output: which of its outputs.
        fingerprint: of everything that can change a value.
        provenance: what the fingerprint is made of.
    """

    title: str
    reward: RewardSpec
    card: Card
    output: str
    fingerprint: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def towards_better(self, values: np.ndarray) -> np.ndarray:
        """The values with their sign such that higher is better."""
        return values if self.card.higher_is_better else -values


@dataclass(frozen=True)
class ModelPictures:
    """What one model painted.

    Args:
        spec: the model.
        fingerprint: of its files.
        recipe: how it painted.
        pictures: sample id to picture; a sample without one has failed.
    """

    spec: ModelSpec
    fingerprint: str
    recipe: Mapping[str, Any]
    pictures: Mapping[str, Picture]


@dataclass(frozen=True)
class Results:
    """Values of all models and columns on all samples.

    Args:
        suite: what was run.
        items: prompts.
        jobs: samples, in order: the axis of every array.
        models: what was compared; the first is the base of comparisons.
        columns: rewards.
        values: model name to column title to values [sample]; NaN = failed or missing.
        errors: model name to column title to {sample id: text}.
        truncated: column title to share of prompts that were cut.
    """

    suite: Suite
    items: Sequence[Item]
    jobs: Sequence[Job]
    models: Sequence[ModelPictures]
    columns: Sequence[Column]
    values: Mapping[str, Mapping[str, np.ndarray]]
    errors: Mapping[str, Mapping[str, Mapping[str, str]]]
    truncated: Mapping[str, float]

    @property
    def prompts(self) -> list[str]:
        """The item of every sample: what bootstraps resample."""
        return [job.item.id for job in self.jobs]

    def primary(self) -> Column:
        """The column the report leads with."""
        wanted = self.suite.primary
        return next((column for column in self.columns if column.title == wanted), self.columns[0])


def load_pictures(
    folder: Path, spec: ModelSpec, fingerprint: str, jobs: Sequence[Job], keys: Mapping[str, str]
) -> ModelPictures:
    """Rows of the store for one model's picture keys.

    Raises:
        CheckpointError: the store lacks pictures; another process may still be painting them.
    """
    wanted = set(keys.values())
    rows = {row["picture"]: row for row in pictures_table(folder).read() if row["picture"] in wanted}
    lacking = wanted - set(rows)
    if lacking:
        message = (
            f"{folder}: {len(lacking)} of {len(wanted)} pictures of {spec.name} are not there. Run the "
            "generate stage of every shard first."
        )
        raise CheckpointError(message)
    gone = sorted(row["path"] for row in rows.values() if not (folder / row["path"]).is_file())
    if gone:
        # Scored now they would be failures for ever: scores are kept.
        message = (
            f"{folder}: {len(gone)} pictures of {spec.name} were painted and are gone, first {gone[0]}. "
            f"Bring them back, or remove {folder / 'pictures'} to paint again."
        )
        raise CheckpointError(message)
    pictures: dict[str, Picture] = {}
    recipe: dict[str, Any] = {}
    for job in jobs:
        key = keys.get(job.sample_id)
        if key is None:
            continue
        row = rows[key]
        recipe = json.loads(row["recipe"])
        path = folder / row["path"]
        pictures[job.sample_id] = Picture(
            job.sample_id, job.item.prompt, path, row["sha256"], job.item.expected
        )
    return ModelPictures(spec, fingerprint, recipe, pictures)


def collect(
    suite: Suite,
    items: Sequence[Item],
    jobs: Sequence[Job],
    models: Sequence[ModelPictures],
    columns: Sequence[Column],
    folder: Path,
) -> Results:
    """Look up every score.

    Raises:
        CheckpointError: scores are missing from the store.
    """
    fingerprints = {column.fingerprint for column in columns}
    stored = {
        (row["key"], row["output"]): row
        for row in scores_table(folder).read(("key", "output", "value", "error", "truncated", "fingerprint"))
        if row["fingerprint"] in fingerprints
    }
    values: dict[str, dict[str, np.ndarray]] = {}
    errors: dict[str, dict[str, dict[str, str]]] = {}
    cut: dict[str, list[bool]] = {column.title: [] for column in columns}
    absent = 0
    for model in models:
        name = model.spec.name
        values[name] = {column.title: np.full(len(jobs), np.nan) for column in columns}
        errors[name] = {column.title: {} for column in columns}
        for place, job in enumerate(jobs):
            picture = model.pictures.get(job.sample_id)
            for column in columns:
                if picture is None:
                    errors[name][column.title][job.sample_id] = "there is no picture"
                    continue
                key = score_key(picture, column.card.needs, column.fingerprint)
                row = stored.get((key, column.output))
                if row is None:
                    absent += 1
                    continue
                cut[column.title].append(row["truncated"])
                if math.isfinite(row["value"]):  # another output of the sample may have failed
                    values[name][column.title][place] = row["value"]
                else:
                    errors[name][column.title][job.sample_id] = row["error"] or "the value is not finite"
    if absent:
        message = f"{folder}: {absent} scores are not there. Run the score stage of every shard first."
        raise CheckpointError(message)
    truncated = {title: float(np.mean(flags)) if flags else 0.0 for title, flags in cut.items()}
    return Results(suite, items, jobs, models, columns, values, errors, truncated)


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


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


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


def warnings_of(results: Results, record: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a table, in words."""
    found: list[str] = []
    for column in results.columns:
        cut = results.truncated[column.title]
        if cut > 0:
            found.append(f"{column.title} read only the beginning of {cut:.0%} of the prompts.")
        if column.reward.role == "training":
            found.append(f"{column.title} was trained on: a gain in it alone proves nothing.")
    for model in results.models:
        lacking = len(results.jobs) - len(model.pictures)
        if lacking:
            found.append(f"{model.spec.name} has no picture for {lacking} of {len(results.jobs)} samples.")
    found += [
        f"{reward['title']} could not score {_pictures(reward['failed'])}; failures count for no side."
        for reward in record["rewards"]
        if reward["failed"]
    ]
    found += _other_sizes(results)
    held_out = [column for column in results.columns if column.reward.role == "held_out"]
    training = [column for column in results.columns if column.reward.role == "training"]
    for comparison in record["comparisons"]:
        gains = {title: gap["difference"] for title, gap in comparison["differences"].items()}
        rose = [c.title for c in training if c.title in gains and (gains[c.title]["low"] or 0) > 0]
        fell = [c.title for c in held_out if c.title in gains and (gains[c.title]["high"] or 0) < 0]
        if rose and fell:
            found.append(
                f"{comparison['model']} gained in what it was trained on ({', '.join(rose)}) and lost in "
                f"{', '.join(fell)}: this looks like over-optimisation."
            )
    if len({model.recipe.get("dtype") for model in results.models}) > 1:
        found.append("The models painted in different precisions; part of a difference may be rounding.")
    return found


def _other_sizes(results: Results) -> list[str]:
    """Public sets that have another number of prompts here than in the tables of papers."""
    found = []
    for name in results.suite.prompts:
        known = PUBLIC_SETS.get(name)
        count = sum(item.id.startswith(f"{name}/") for item in results.items)
        if known is not None and count and known.count != count:
            found.append(
                f"{name}: {count} prompts of {known.count}{f' ({known.note})' if known.note else ''}."
            )
    return found


def software() -> dict[str, Any]:
    """Versions that can move a number, and the machine."""
    import torch

    libraries = {}
    from importlib.metadata import PackageNotFoundError, version

    for name in ("torch", "torchvision", "transformers", "diffusers", "open_clip_torch", "pillow", "numpy"):
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "mmalign": mmalign.__version__,
        "python": platform.python_version(),
        "libraries": libraries,
        "device": device,
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

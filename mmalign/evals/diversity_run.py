"""`mmalign diversity`: how different a run's pictures of one prompt are, by model, and what tuning changed.

Embeddings of a CLIP give the mean cosine distance and the Vendi score, LPIPS the perceptual distance. Models
are compared prompt by prompt; the distance of the tuned model's pictures from the base model's is beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmalign import __version__
from mmalign.errors import ConfigError, explain
from mmalign.evals.diversity import Diversity, diversity
from mmalign.evals.embedding_store import Embedder, PictureFile, Spreads
from mmalign.evals.perceptual_distance import PerceptualDistance
from mmalign.evals.provenance import Run
from mmalign.evals.set_distances import density_coverage, kernel_distance
from mmalign.evals.statistics import Resampling
from mmalign.evals.statistics.bootstrap import bootstrap_mean
from mmalign.rewards.clip_models import ImageEncoder

__all__ = ["diversity_record"]

_NEIGHBOURS = 5

Record = Mapping[str, Any]


@dataclass(frozen=True)
class _Spread:
    """One model: embeddings by prompt, their diversity (None: no prompt has two), all measures by prompt."""

    embeddings: tuple[Tensor, ...]
    found: Diversity | None
    values: Mapping[str, np.ndarray]
    failed: int


def diversity_record(
    run: Run,
    encoder: ImageEncoder,
    *,
    lpips: PerceptualDistance | None = None,
    how: Resampling | None = None,
    batch_size: int = 16,
    cache: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Diversity of every model of a run within prompts, and of each against the first. JSON types.

    Args:
        run: of `mmalign eval`, with two or more pictures per prompt.
        encoder: of pictures, for example `load_backbone("vit-l-14", text=False, ...)`.
        lpips: perceptual distance, where its weights are at hand.
        how: the bootstrap over prompts.
        batch_size: pictures in one forward.
        cache: store of embeddings and distances; None measures everything anew.
        progress: called with the number of pictures that are done.

    Raises:
        ConfigError: a run without samples.jsonl, or one picture per prompt.
    """
    rows = run.rows
    if rows is None:
        do = "It is written beside results.json by the report stage."
        raise ConfigError(explain(f"run {run.name}", got="no samples.jsonl", expected="one", do=do))
    items = list(dict.fromkeys(row["item_id"] for row in rows))
    if len(items) == len(rows):
        do = "Run the suite with generation.images_per_prompt=4."
        expected = "two or more of each prompt"
        raise ConfigError(explain(f"run {run.name}", got="one picture per prompt", expected=expected, do=do))
    how = how or Resampling()
    names = [model["name"] for model in run.record["models"]]
    embedder = Embedder(encoder, cache=cache, batch_size=batch_size)
    distances = None if lpips is None else Spreads(lpips, cache=cache)
    spreads = {}
    for name in names:
        pictures = picture_files(rows, name, run.folder)
        spreads[name] = _spread([pictures[item] for item in items], embedder, distances, how, progress)
    return {
        "kind": "diversity",
        "version": __version__,
        "run": run.name,
        "prompts": len(items),
        "encoder": dict(encoder.settings()),
        "lpips": None if lpips is None else dict(lpips.settings()),
        "models": {name: _told(spread, how) for name, spread in spreads.items()},
        "comparisons": [
            {"model": name, "base": names[0], **_against(spreads[names[0]], spreads[name], how)}
            for name in names[1:]
        ],
        "per_prompt": {
            name: {
                measure: dict(zip(items, map(_number, values.tolist()), strict=True))
                for measure, values in spread.values.items()
            }
            for name, spread in spreads.items()
        },
    }


def picture_files(rows: Sequence[Record], name: str, folder: Path) -> dict[str, list[PictureFile | None]]:
    """Pictures of one model by prompt; None where there is none."""
    found: dict[str, list[PictureFile | None]] = {}
    for row in rows:
        entry = row["models"][name]
        # A run may have been moved with its pictures.
        places = [] if entry["path"] is None else [Path(entry["path"]), folder / entry["path"]]
        there = next((place for place in places if place.is_file()), None)
        file = None if there is None else PictureFile(there, entry["sha256"])
        found.setdefault(row["item_id"], []).append(file)
    return found


def _spread(
    pictures: Sequence[Sequence[PictureFile | None]],
    embedder: Embedder,
    distances: Spreads | None,
    how: Resampling,
    progress: Callable[[int], None],
) -> _Spread:
    there = [[one for one in files if one is not None] for files in pictures]
    vectors = embedder.embed([one for files in there for one in files], progress)
    read = [[one for one in files if one.sha256 in vectors] for files in there]
    width = embedder.encoder.feature_size
    embedded = [
        torch.stack([vectors[one.sha256] for one in files]) if files else torch.zeros(0, width)
        for files in read
    ]
    failed = sum(map(len, pictures)) - sum(map(len, read))
    found = diversity(embedded, how) if any(len(files) >= 2 for files in read) else None
    prompts = [None] * len(read) if found is None else found.per_prompt
    values = {
        measure: np.array([np.nan if entry is None else getattr(entry, measure) for entry in prompts])
        for measure in ("distance", "vendi")
    }
    if distances is not None:
        values["lpips"] = np.array(distances.of(read))
    return _Spread(tuple(embedded), found, values, failed)


def _told(spread: _Spread, how: Resampling) -> dict[str, Any]:
    """Means over prompts with intervals."""
    means = {measure: _mean(values, how) for measure, values in spread.values.items()}
    found = spread.found
    return {
        **means,
        "samples": None if found is None else found.samples,
        "num_prompts": 0 if found is None else found.num_prompts,
        "failed_prompts": len(spread.embeddings) if found is None else found.failed_prompts,
        "failed_pictures": spread.failed,
    }


def _mean(values: np.ndarray, how: Resampling) -> dict[str, Any] | None:
    known = values[~np.isnan(values)]
    return bootstrap_mean(known, how).as_dict() if len(known) else None


def _against(base: _Spread, model: _Spread, how: Resampling) -> dict[str, Any]:
    """Difference of each measure, paired by prompt, and the distance of the two sets of pictures.

    Vendi scores of different numbers of pictures do not compare: such prompts are left out.
    """
    equal = np.array(
        [len(one) == len(other) for one, other in zip(base.embeddings, model.embeddings, strict=True)]
    )
    differences = {}
    for measure, values in model.values.items():
        gap = values - base.values[measure]
        differences[measure] = _mean(np.where(equal, gap, np.nan) if measure == "vendi" else gap, how)
    one, other = torch.cat(base.embeddings), torch.cat(model.embeddings)
    near = len(one) > _NEIGHBOURS and len(other) > 0
    kernel = kernel_distance(one, other, subset_size=1000) if min(len(one), len(other)) > 1 else None
    return {
        "difference": differences,
        "kernel_distance": None if kernel is None else kernel.as_dict(),
        "density_coverage": density_coverage(one, other, k=_NEIGHBOURS).as_dict() if near else None,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value

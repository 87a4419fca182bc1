"""Results made by hand for the tests of tables, pages and comparisons: no model, but real statistics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign.evals.base import Item
from mmalign.evals.generation import jobs_of
from mmalign.evals.results import Column, ModelPictures, Results
from mmalign.evals.scoring import Picture
from mmalign.evals.suite import GenerationConfig, ModelSpec, RewardSpec, StatisticsConfig, Suite
from mmalign.rewards.card import Card


def _column(title: str, *, higher: bool = True, role: str = "held_out", fingerprint: str = "") -> Column:
    card = Card(name=title, title=title, modality="image", scale="0 to 1", higher_is_better=higher)
    spec = RewardSpec(name=title, role=role)  # type: ignore[arg-type]
    mark = fingerprint or f"{title}-fingerprint"
    return Column(title, spec, card, "score", mark, {"name": title, "dtype": "float32"})


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[..., Results]:
    """`make_results(values={"base": {"pick": [...]}, ...})`: results with one picture per sample and model.

    `picture` names a function (model, place) -> image or None; `rewards` gives role, direction and
    fingerprint by title; `failed` gives {(model, title, place): text}.
    """

    def make(
        values: dict[str, dict[str, Any]],
        *,
        prompts: list[str] | None = None,
        groups: list[str] | None = None,
        copies: int = 1,
        rewards: dict[str, dict[str, Any]] | None = None,
        failed: dict[tuple[str, str, int], str] | None = None,
        picture: Callable[[str, int], Image.Image | None] | None = None,
        folder: Path | None = None,
        seed: int = 0,
    ) -> Results:
        folder = folder or tmp_path / "store"
        names = list(values)
        titles = list(values[names[0]])
        count = len(next(iter(values[names[0]].values()))) // copies
        texts = prompts or [f"prompt {number}" for number in range(count)]
        items = [
            Item(id=f"set/{number:05d}", prompt=text, group=(groups or [""] * count)[number])
            for number, text in enumerate(texts)
        ]
        jobs = jobs_of(items, copies)
        columns = [_column(title, **(rewards or {}).get(title, {})) for title in titles]
        suite = Suite(
            name="hand made",
            prompts=["prompts.txt"],
            generation=GenerationConfig(seed=seed, images_per_prompt=copies),
            rewards=[column.reward for column in columns],
            statistics=StatisticsConfig(resamples=200),
        )
        models = []
        for name in names:
            pictures: dict[str, Picture] = {}
            for place, job in enumerate(jobs):
                image = (picture or _plain_picture)(name, place)
                if image is None:
                    continue
                path = folder / "media" / f"{name}-{place}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
                pictures[job.sample_id] = Picture(job.sample_id, job.item.prompt, path, f"{name}{place}")
            recipe = {"seed": seed, "num_steps": 20, "guidance_scale": 4.0, "format": "png", "dtype": "fp32"}
            spec = ModelSpec(name=name, source=f"runs/{name}")
            models.append(ModelPictures(spec, f"{name}-fingerprint", recipe, pictures))
        numbers = {
            name: {title: np.array(values[name][title], dtype=np.float64) for title in titles}
            for name in names
        }
        errors: dict[str, dict[str, dict[str, str]]] = {
            name: {title: {} for title in titles} for name in names
        }
        for (name, title, place), text in (failed or {}).items():
            numbers[name][title][place] = np.nan
            errors[name][title][jobs[place].sample_id] = text
        cut = dict.fromkeys(titles, 0.0)
        return Results(suite, items, jobs, models, columns, numbers, errors, cut)

    return make


def _plain_picture(name: str, place: int) -> Image.Image:
    shade = sum(name.encode()) % 200
    return Image.new("RGB", (32, 32), (shade, (place * 37) % 256, 120))

"""Results made by hand for the tests of tables, pages and comparisons: no model, but real statistics."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign.evals.base import Item
from mmalign.evals.jobs import jobs_of
from mmalign.evals.report import write_report
from mmalign.evals.result_records import sample_rows, summarise
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

    `picture` names a function (model, place) -> image or None, `sound` one to the bytes of a WAV file;
    `rewards` gives role, direction and
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
        sound: Callable[[str, int], bytes] | None = None,
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
                path = folder / "media" / f"{name}-{place}.{'wav' if sound else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = None if sound else (picture or _plain_picture)(name, place)
                if sound is not None:
                    path.write_bytes(sound(name, place))
                elif image is None:
                    continue
                else:
                    image.save(path)
                pictures[job.sample_id] = Picture(job.sample_id, job.item.prompt, path, f"{name}{place}")
            recipe = {"seed": seed, "num_steps": 20, "guidance_scale": 4.0, "format": "png", "dtype": "fp32"}
            spec = ModelSpec(name=name, source=f"sounds:{name}" if sound else f"runs/{name}")
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


# ---------------------------------------------------------------------------------------------------- browser

_WORDS = (
    "a red fox",
    "a bowl of ramen",
    "two green boats",
    "قطة تحت المطر",
    "</script><script>alert(1)</script>",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: the one MMALIGN_CHROMIUM names, the system's, or playwright's own."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("MMALIGN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    # Chromium refuses its sandbox to root, who runs the tests in containers.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=arguments)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`open_page(results)`: its page, opened from the disk; any script error or request fails the test."""
    contexts: list[Any] = []
    problems: list[str] = []

    def opened(results: Results, *, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        path = write_report(summarise(results), sample_rows(results), tmp_path / "report.html", **options)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:", "blob:")) else problems.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("#grid > li")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def browsed(make_results: Callable[..., Results]) -> Results:
    """23 samples of two models by two rewards, some failed, one without a picture."""
    rng = np.random.default_rng(1)
    count = 23
    quality = rng.normal(size=count)
    values = {
        name: {
            "pick": 20 + quality + gain + rng.normal(size=count),
            "lpips": 1 - quality / 10 - gain / 10 + rng.normal(size=count) / 20,
        }
        for name, gain in (("base", 0.0), ("tuned", 0.7))
    }

    def picture(name: str, place: int) -> Image.Image | None:
        shade = 0 if name == "base" else 255
        return None if (name, place) == ("tuned", 5) else Image.new("RGB", (8, 8), (place * 10, shade, 9))

    return make_results(
        values,
        prompts=[f"{_WORDS[number % 5]} number {number}" for number in range(count)],
        groups=[("odd", "even", "third")[number % 3] for number in range(count)],
        rewards={"lpips": {"higher": False}},
        failed={
            ("tuned", "pick", 5): "there is no picture",
            ("tuned", "lpips", 5): "there is no picture",
            ("base", "lpips", 7): "<b>no</b> edges found",
        },
        picture=picture,
    )


@pytest.fixture
def eventually() -> Callable[[Any, str], None]:
    """`eventually(page, expression)`: wait until it holds. The page's policy forbids playwright's own way."""

    def wait(page: Any, expression: str) -> None:
        for _ in range(100):
            if page.evaluate(expression):
                return
            page.wait_for_timeout(50)
        pytest.fail(f"did not come true within five seconds: {expression}")

    return wait

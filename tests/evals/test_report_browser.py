"""The page in a real headless browser. Run by `make test-browser`; it needs playwright and a Chromium."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign.data.check import check
from mmalign.data.config import DataConfig
from mmalign.evals.report import write_report
from mmalign.evals.results import Results, sample_rows, summarise
from mmalign.evals.statistics.proportions import wilson_interval

pytestmark = pytest.mark.browser

Make = Callable[..., Results]
Open = Callable[..., Any]

WORDS = [
    "a red fox",
    "a bowl of ramen",
    "two green boats",
    "قطة تحت المطر",
    "</script><script>alert(1)</script>",
]


@pytest.fixture(scope="module")
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
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
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
def results(make_results: Make) -> Results:
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
        prompts=[f"{WORDS[number % 5]} number {number}" for number in range(count)],
        groups=[("odd", "even", "third")[number % 3] for number in range(count)],
        rewards={"lpips": {"higher": False}},
        failed={
            ("tuned", "pick", 5): "there is no picture",
            ("tuned", "lpips", 5): "there is no picture",
            ("base", "lpips", 7): "<b>no</b> edges found",
        },
        picture=picture,
    )


def listed(page: Any) -> list[int]:
    """Sample numbers in the order of the grid."""
    samples: list[int] = page.eval_on_selector_all(
        "#grid button.pair", "found => found.map(node => Number(node.dataset.sample))"
    )
    return samples


def eventually(page: Any, expression: str) -> None:
    """Wait until an expression holds. The page's policy forbids playwright's own way of waiting."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"did not come true within five seconds: {expression}")


def gains(results: Results, title: str, *, first: str = "base", second: str = "tuned") -> np.ndarray:
    column = next(column for column in results.columns if column.title == title)
    sides = (column.towards_better(results.values[name][title]) for name in (second, first))
    return np.subtract(*sides)


# ------------------------------------------------------------------------------------------- search and order


def test_prompts_are_shown_as_text_and_pictures_from_the_page(results: Results, open_page: Open) -> None:
    page = open_page(results)
    shown = page.locator("#grid .prompt").all_text_contents()
    assert shown == [job.item.prompt for job in results.jobs]
    assert page.locator("script").count() == 4
    loaded = page.eval_on_selector_all("#grid img", "all => all.map(node => node.src.slice(0, 15))")
    assert len(loaded) == 45
    assert set(loaded) == {"data:image/webp"}


def test_search_finds_all_words_in_any_order_and_leaves_out_those_with_a_minus(
    results: Results, open_page: Open
) -> None:
    page = open_page(results)
    page.fill("#words", "FOX number")
    assert listed(page) == [0, 5, 10, 15, 20]
    page.fill("#words", "fox -20 -15")
    assert listed(page) == [0, 5, 10]
    page.fill("#words", "المطر")
    assert listed(page) == [3, 8, 13, 18]
    page.fill("#words", "no such prompt")
    assert listed(page) == []
    assert page.inner_text("#status") == "0 of 23 samples"


def test_filters_keep_groups_gains_losses_failures_and_disagreements(
    results: Results, open_page: Open
) -> None:
    page = open_page(results)
    page.select_option("#group", "third")
    assert listed(page) == list(range(2, 23, 3))
    page.select_option("#group", "")
    pick, lpips = gains(results, "pick"), gains(results, "lpips")
    page.select_option("#only", "gains")
    assert listed(page) == np.flatnonzero(pick > 0).tolist()
    page.select_option("#only", "losses")
    assert listed(page) == np.flatnonzero(pick < 0).tolist()
    page.select_option("#reward", label="lpips")
    assert listed(page) == np.flatnonzero(lpips < 0).tolist()
    page.select_option("#only", "failed")
    assert listed(page) == [5, 7]
    page.select_option("#only", "disagree")
    assert listed(page) == np.flatnonzero(pick * lpips < 0).tolist() != []


@pytest.mark.parametrize("title", ["pick", "lpips"])
def test_sorting_by_gain_follows_the_direction_of_the_reward_and_puts_failures_last(
    results: Results, open_page: Open, title: str
) -> None:
    page = open_page(results)
    page.select_option("#reward", label=title)
    page.select_option("#sort", "gain")
    change = gains(results, title)
    known = [place for place in np.argsort(-change, kind="stable").tolist() if not np.isnan(change[place])]
    failed = np.flatnonzero(np.isnan(change)).tolist()
    assert listed(page) == known + failed
    page.select_option("#sort", "loss")
    assert listed(page) == known[::-1] + failed


def test_sorting_by_score_and_by_disagreement(results: Results, open_page: Open) -> None:
    page = open_page(results)
    values = results.values["tuned"]["pick"]
    page.select_option("#sort", "high")
    assert listed(page)[:22] == [
        place for place in np.argsort(-values).tolist() if not np.isnan(values[place])
    ]
    page.select_option("#sort", "disagree")
    change = np.stack([gains(results, title) for title in ("pick", "lpips")])
    unit = change / np.sqrt(np.nanmean(change**2, axis=1, keepdims=True))
    unit = np.nan_to_num(unit)
    strength = np.minimum(np.maximum(unit.max(axis=0), 0), np.maximum(-unit.min(axis=0), 0))
    assert listed(page) == np.argsort(-strength, kind="stable").tolist()


def test_what_is_chosen_survives_in_the_address(results: Results, open_page: Open) -> None:
    page = open_page(results)
    page.fill("#words", "fox")
    page.select_option("#sort", "loss")
    before = listed(page)
    page.reload()
    page.wait_for_selector("#grid > li")
    assert listed(page) == before
    assert page.input_value("#words") == "fox"


def test_failures_are_said_with_their_reason(results: Results, open_page: Open) -> None:
    page = open_page(results)
    page.select_option("#only", "failed")
    cards = page.locator("#grid > li")
    assert "failed by pick, lpips: tuned: there is no picture" in cards.nth(0).text_content()
    assert "no picture" in cards.nth(0).locator(".absent").text_content()
    assert "failed by lpips: base: <b>no</b> edges found" in cards.nth(1).text_content()


# ------------------------------------------------------------------------------------------------------- keys


def focused(page: Any) -> int:
    place: int = page.evaluate("Number(document.activeElement.dataset.sample ?? -1)")
    return place


def test_the_grid_is_walked_with_the_keyboard(results: Results, open_page: Open) -> None:
    page = open_page(results)
    columns = page.evaluate(
        "getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length"
    )
    walk = [("j", 0), ("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("k", 0)]
    walk += [("ArrowDown", columns), ("ArrowUp", 0), ("End", 22), ("Home", 0)]
    for key, place in walk:
        page.keyboard.press(key)
        assert focused(page) == place, key
    page.keyboard.press("/")
    page.keyboard.type("jk/?v")
    assert page.input_value("#words") == "jk/?v"
    page.fill("#words", "ramen")
    page.keyboard.press("Escape")
    assert focused(page) == 1
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")


def test_enter_enlarges_arrows_go_on_and_closing_returns_to_the_card(
    results: Results, open_page: Open
) -> None:
    page = open_page(results)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    assert page.inner_text("#large-prompt") == "a red fox number 0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("j")
    assert page.inner_text("#large-prompt") == "two green boats number 2"
    assert page.inner_text("#large-where").startswith("3 of 23")
    assert page.locator("#large-pair a").count() == 2
    visible = "all => all.filter(node => getComputedStyle(node).visibility === 'visible').length"
    assert page.eval_on_selector_all("#large-pair figure", visible) == 2
    page.keyboard.press("f")
    assert page.eval_on_selector_all("#large-pair figure", visible) == 1
    first = page.locator("#large-pair figure:visible figcaption span").inner_text()
    page.keyboard.press("f")
    assert {first, page.locator("#large-pair figure:visible figcaption span").inner_text()} == {
        "base",
        "tuned",
    }
    page.keyboard.press("Escape")
    assert not page.is_visible("#large")
    eventually(page, "document.activeElement.dataset.sample === '2'")


def test_thousands_of_samples_are_rendered_as_they_are_reached(make_results: Make, open_page: Open) -> None:
    count = 3200
    values = {"base": {"pick": np.zeros(count)}, "tuned": {"pick": np.linspace(-1, 1, count)}}
    results = make_results(values, picture=lambda name, place: None if place else Image.new("RGB", (8, 8)))
    page = open_page(results)
    assert page.locator("#grid > li").count() < 200
    took = page.evaluate(
        "() => { const from = performance.now(); const sort = document.getElementById('sort');"
        "sort.value = 'gain'; sort.dispatchEvent(new Event('input')); return performance.now() - from; }"
    )
    assert took < 1000
    assert listed(page)[:2] == [3199, 3198]
    page.keyboard.press("j")
    page.keyboard.press("End")
    assert focused(page) == 0


# --------------------------------------------------------------------------------------------------- pictures


def test_linked_pictures_load_from_the_disk_and_absent_ones_are_named(
    make_results: Make, open_page: Open, tmp_path: Path
) -> None:
    values = {"base": {"pick": [1.0, 2.0]}, "tuned": {"pick": [2.0, 1.0]}}
    results = make_results(values, folder=tmp_path / "a cache #1?")
    gone = tmp_path / "a cache #1?" / "media" / "tuned-1.png"
    gone.rename(gone.with_suffix(".moved"))
    page = open_page(results, thumbnail_bytes=0)
    page.wait_for_selector("#grid .absent")
    assert "tuned-1.png" in page.text_content("#grid .absent")
    eventually(page, "[...document.querySelectorAll('#grid img')].every(node => node.naturalWidth === 32)")
    assert page.locator("#grid img").count() == 3


def test_of_more_than_two_models_any_two_are_compared(make_results: Make, open_page: Open) -> None:
    values = {
        "base": {"pick": [1.0, 2.0, 3.0]},
        "sft": {"pick": [2.0, 2.0, 1.0]},
        "dpo": {"pick": [0.0, 5.0, 4.0]},
    }
    page = open_page(make_results(values))
    assert page.locator("#grid > li").nth(0).locator("figcaption").all_text_contents() == ["base", "dpo"]
    page.select_option("#base", label="sft")
    page.select_option("#sort", "gain")
    assert listed(page) == [1, 2, 0] or listed(page) == [2, 1, 0]
    page.select_option("#model", label="sft")
    assert page.locator("#grid > li").nth(0).locator("figcaption").all_text_contents() == ["dpo", "sft"]


def test_one_model_alone_is_browsed_without_comparison(make_results: Make, open_page: Open) -> None:
    page = open_page(make_results({"base": {"pick": [1.0, 3.0, 2.0]}}))
    assert not page.is_visible("#vote-open")
    page.select_option("#sort", "high")
    assert listed(page) == [1, 2, 0]
    assert page.locator("#sort option").count() == 3
    assert page.locator("#grid > li").nth(0).locator("figure").count() == 1


# ------------------------------------------------------------------------------------------------- blind vote


def side_of(page: Any) -> list[str]:
    """Which model painted each side: the test's pictures tell by their green."""
    script = """all => all.map(node => {
        const canvas = document.createElement('canvas');
        canvas.width = canvas.height = 1;
        const pen = canvas.getContext('2d');
        pen.drawImage(node, 0, 0, 1, 1);
        return pen.getImageData(0, 0, 1, 1).data[1] > 128 ? 'tuned' : 'base';
    })"""
    found: list[str] = page.eval_on_selector_all("#vote img[src^='data:']", script)
    return found


def start(page: Any, count: int | None = None, seed: int = 0) -> None:
    page.keyboard.press("v")
    if count is not None:
        page.fill("#vote-count", str(count))
    page.fill("#vote-seed", str(seed))
    page.click("#vote-start")


@pytest.fixture
def blind(results: Results, open_page: Open, tmp_path: Path) -> Any:
    """The page where full-size pictures cannot be found: a canvas may read the ones inside the page."""
    page = open_page(results)
    (tmp_path / "store").rename(tmp_path / "moved")
    return page


def test_sides_are_shuffled_and_names_are_nowhere_until_the_end(blind: Any) -> None:
    start(blind)
    seen = []
    for _ in range(22):
        eventually(blind, "[...document.querySelectorAll('#vote img')].every(node => node.complete)")
        assert not re.search("base|tuned|pick", blind.inner_html("#vote-body").replace("base64", ""))
        seen.append(tuple(side_of(blind)))
        blind.keyboard.press("1")
    assert set(seen) == {("base", "tuned"), ("tuned", "base")}
    assert 5 <= seen.count(("base", "tuned")) <= 17
    won, lost = (sum(first == name for first, _ in seen) for name in ("tuned", "base"))
    assert f"Won {won}, tied 0, lost {lost}" in blind.inner_text("#vote-result")


def test_the_result_has_the_interval_of_the_statistics(blind: Any) -> None:
    start(blind, count=11)
    score = 0.0
    for number in range(11):
        eventually(blind, "[...document.querySelectorAll('#vote img')].every(node => node.complete)")
        wanted = side_of(blind).index("tuned") + 1
        key = str(wanted) if number < 7 else "0" if number == 7 else str(3 - wanted)
        score += {True: 1.0}.get(number < 7, 0.5 if number == 7 else 0.0)
        blind.keyboard.press(key)
    interval = wilson_interval(score, 11)
    assert interval.low is not None
    assert interval.high is not None
    said = blind.inner_text("#vote-result")
    assert f"tuned wins {100 * interval.value:.1f} % against base" in said
    assert f"95 % interval {100 * interval.low:.1f} % to {100 * interval.high:.1f} %" in said
    assert "Won 7, tied 1, lost 3" in said
    assert blind.inner_text("#vote-verdict") == "Your votes show no difference"


def test_progress_is_kept_a_vote_can_be_taken_back_and_the_end_is_final(blind: Any) -> None:
    start(blind, count=5, seed=3)
    first = blind.inner_text("#vote .prompt")
    blind.keyboard.press("2")
    blind.keyboard.press("u")
    assert blind.inner_text("#vote .prompt") == first
    for key in "12":
        blind.keyboard.press(key)
    third = blind.inner_text("#vote .prompt")
    blind.reload()
    blind.wait_for_selector("#grid > li")
    blind.keyboard.press("v")
    assert not blind.is_visible("#vote-resume")
    blind.fill("#vote-seed", "3")
    assert blind.inner_text("#vote-resume") == "Go on at 3 of 5"
    blind.click("#vote-resume")
    assert blind.inner_text("#vote .prompt") == third
    blind.click("#vote-end")
    result = blind.inner_text("#vote-result")
    assert "2 prompts" in result
    blind.keyboard.press("1")
    assert blind.inner_text("#vote-result") == result
    blind.click("#vote-again")
    blind.fill("#vote-seed", "3")
    assert blind.inner_text("#vote-resume") == "Show the result"


def test_exported_votes_are_rows_that_the_reader_of_training_accepts(
    results: Results, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(results)
    start(page)
    for key in "1202112021120211202112":
        page.keyboard.press(key)
    with page.expect_download() as waiting:
        page.click("#vote-export")
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    assert len(rows) == 22
    assert {row["label"] for row in rows} == {0, 0.5, 1}
    for row in rows:
        assert row["image_a"].startswith(f"{row['model_a']}-")
        assert row["image_b"].startswith(f"{row['model_b']}-")
        assert row["label"] == {"first": 1, "second": 0, "neither": 0.5}[row["vote"]]
    prompts = {job.sample_id: job.item.prompt for job in results.jobs}
    assert all(row["prompt"] == prompts[row["id"]] for row in rows)
    command = page.inner_text("#vote code")
    found = re.fullmatch(r"mmalign data check (\S+) --root (\S+) --ties soft", command)
    assert found is not None
    assert found[1] == path.name
    root = os.path.abspath(found[2])
    source = {"path": str(path), "root": root}
    report = check(DataConfig.model_validate({"source": source, "tie_policy": "soft"}), decode="none")
    assert (report.ok, report.kind, report.rows, report.read.num_bad) == (True, "pairs", 22, 0)
    assert "two_images" in report.layout


# ---------------------------------------------------------------------------------------------------- screens


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_screen_scrolls_sideways_and_every_control_has_a_name(
    results: Results, open_page: Open, width: int, scheme: str
) -> None:
    page = open_page(results, width=width, scheme=scheme)
    wide = "document.documentElement.scrollWidth"
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    assert page.evaluate(wide) == width
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    box = page.locator("#large").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    page.keyboard.press("Escape")
    start(page)
    inside = page.evaluate(
        "document.getElementById('vote').scrollWidth <= document.getElementById('vote').clientWidth"
    )
    assert inside
    nameless = """[...document.querySelectorAll('input, select, button, a')].filter(node =>
        !node.labels?.length && !node.textContent.trim() && !node.getAttribute('aria-label')).length"""
    assert page.evaluate(nameless) == 0
    assert page.evaluate("[...document.images].filter(node => !node.alt).length") == 0

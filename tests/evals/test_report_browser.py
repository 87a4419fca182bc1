"""The page in a real headless browser. Run by `make test-browser`; it needs playwright and a Chromium."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign.evals.results import Results

pytestmark = pytest.mark.browser

Make = Callable[..., Results]
Open = Callable[..., Any]
Wait = Callable[[Any, str], None]


def listed(page: Any) -> list[int]:
    """Sample numbers in the order of the grid."""
    samples: list[int] = page.eval_on_selector_all(
        "#grid button.pair", "found => found.map(node => Number(node.dataset.sample))"
    )
    return samples


def gains(results: Results, title: str, *, first: str = "base", second: str = "tuned") -> np.ndarray:
    column = next(column for column in results.columns if column.title == title)
    sides = (column.towards_better(results.values[name][title]) for name in (second, first))
    return np.subtract(*sides)


# ------------------------------------------------------------------------------------------- search and order


def test_prompts_are_shown_as_text_and_pictures_from_the_page(browsed: Results, open_page: Open) -> None:
    page = open_page(browsed)
    shown = page.locator("#grid .prompt").all_text_contents()
    assert shown == [job.item.prompt for job in browsed.jobs]
    assert page.locator("script").count() == 5
    loaded = page.eval_on_selector_all("#grid img", "all => all.map(node => node.src.slice(0, 15))")
    assert len(loaded) == 45
    assert set(loaded) == {"data:image/webp"}


def test_search_finds_all_words_in_any_order_and_leaves_out_those_with_a_minus(
    browsed: Results, open_page: Open
) -> None:
    page = open_page(browsed)
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
    browsed: Results, open_page: Open
) -> None:
    page = open_page(browsed)
    page.select_option("#group", "third")
    assert listed(page) == list(range(2, 23, 3))
    page.select_option("#group", "")
    pick, lpips = gains(browsed, "pick"), gains(browsed, "lpips")
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
    browsed: Results, open_page: Open, title: str
) -> None:
    page = open_page(browsed)
    page.select_option("#reward", label=title)
    page.select_option("#sort", "gain")
    change = gains(browsed, title)
    known = [place for place in np.argsort(-change, kind="stable").tolist() if not np.isnan(change[place])]
    failed = np.flatnonzero(np.isnan(change)).tolist()
    assert listed(page) == known + failed
    page.select_option("#sort", "loss")
    assert listed(page) == known[::-1] + failed


def test_sorting_by_score_and_by_disagreement(browsed: Results, open_page: Open) -> None:
    page = open_page(browsed)
    values = browsed.values["tuned"]["pick"]
    page.select_option("#sort", "high")
    assert listed(page)[:22] == [
        place for place in np.argsort(-values).tolist() if not np.isnan(values[place])
    ]
    page.select_option("#sort", "disagree")
    change = np.stack([gains(browsed, title) for title in ("pick", "lpips")])
    unit = change / np.sqrt(np.nanmean(change**2, axis=1, keepdims=True))
    unit = np.nan_to_num(unit)
    strength = np.minimum(np.maximum(unit.max(axis=0), 0), np.maximum(-unit.min(axis=0), 0))
    assert listed(page) == np.argsort(-strength, kind="stable").tolist()


def test_what_is_chosen_survives_in_the_address(browsed: Results, open_page: Open) -> None:
    page = open_page(browsed)
    page.fill("#words", "fox")
    page.select_option("#sort", "loss")
    before = listed(page)
    page.reload()
    page.wait_for_selector("#grid > li")
    assert listed(page) == before
    assert page.input_value("#words") == "fox"


def test_failures_are_said_with_their_reason(browsed: Results, open_page: Open) -> None:
    page = open_page(browsed)
    page.select_option("#only", "failed")
    cards = page.locator("#grid > li")
    assert "failed by pick, lpips: tuned: there is no picture" in cards.nth(0).text_content()
    assert "no picture" in cards.nth(0).locator(".absent").text_content()
    assert "failed by lpips: base: <b>no</b> edges found" in cards.nth(1).text_content()


# ------------------------------------------------------------------------------------------------------- keys


def focused(page: Any) -> int:
    place: int = page.evaluate("Number(document.activeElement.dataset.sample ?? -1)")
    return place


def test_the_grid_is_walked_with_the_keyboard(browsed: Results, open_page: Open) -> None:
    page = open_page(browsed)
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
    browsed: Results, open_page: Open, eventually: Wait
) -> None:
    page = open_page(browsed)
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
    make_results: Make, open_page: Open, tmp_path: Path, eventually: Wait
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


# ---------------------------------------------------------------------------------------------------- screens


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_screen_scrolls_sideways_and_every_control_has_a_name(
    browsed: Results, open_page: Open, width: int, scheme: str
) -> None:
    page = open_page(browsed, width=width, scheme=scheme)
    wide = "document.documentElement.scrollWidth"
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    assert page.evaluate(wide) == width
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    box = page.locator("#large").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.click("#vote-start")
    inside = page.evaluate(
        "document.getElementById('vote').scrollWidth <= document.getElementById('vote').clientWidth"
    )
    assert inside
    nameless = """[...document.querySelectorAll('input, select, button, a')].filter(node =>
        !node.labels?.length && !node.textContent.trim() && !node.getAttribute('aria-label')).length"""
    assert page.evaluate(nameless) == 0
    assert page.evaluate("[...document.images].filter(node => !node.alt).length") == 0

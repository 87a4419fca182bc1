"""The blind vote of the page in a real headless browser: fair, blind, kept, and rows in the end."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.cli.main import main
from mmalign.data.audio_media import encode_audio
from mmalign.data.check import check
from mmalign.data.config import DataConfig
from mmalign.evals.results import Results
from mmalign.evals.statistics.proportions import wilson_interval

pytestmark = pytest.mark.browser

Open = Callable[..., Any]
Wait = Callable[[Any, str], None]
LOADED = "[...document.querySelectorAll('#vote img')].every(node => node.complete)"


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
def blind(browsed: Results, open_page: Open, tmp_path: Path) -> Any:
    """The page where full-size pictures cannot be found: a canvas may read the ones inside the page."""
    page = open_page(browsed)
    (tmp_path / "store").rename(tmp_path / "moved")
    return page


def test_sides_are_shuffled_and_names_are_nowhere_until_the_end(blind: Any, eventually: Wait) -> None:
    start(blind)
    seen = []
    for _ in range(22):
        eventually(blind, LOADED)
        assert not re.search("base|tuned|pick", blind.inner_html("#vote-body").replace("base64", ""))
        seen.append(tuple(side_of(blind)))
        blind.keyboard.press("1")
    assert set(seen) == {("base", "tuned"), ("tuned", "base")}
    assert 5 <= seen.count(("base", "tuned")) <= 17
    won, lost = (sum(first == name for first, _ in seen) for name in ("tuned", "base"))
    assert f"Won {won}, tied 0, lost {lost}" in blind.inner_text("#vote-result")


def test_the_result_has_the_interval_of_the_statistics(blind: Any, eventually: Wait) -> None:
    start(blind, count=11)
    score = 0.0
    for number in range(11):
        eventually(blind, LOADED)
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
    browsed: Results, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(browsed)
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
    prompts = {job.sample_id: job.item.prompt for job in browsed.jobs}
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


def noise(name: str, place: int) -> bytes:
    """A WAV file of a level of its own."""
    level = (place + 1) / (20 if name == "base" else 10)
    waves = level * (torch.rand(1, 1600, generator=torch.Generator().manual_seed(place)) - 0.5)
    return encode_audio(waves, 8000, container="wav")


def test_sounds_can_be_heard_while_they_are_voted_on_and_in_the_preview_of_the_votes(
    make_results: Callable[..., Results], open_page: Open, eventually: Wait, tmp_path: Path
) -> None:
    values = {name: {"clap": [0.1, 0.2, 0.3]} for name in ("base", "tuned")}
    page = open_page(make_results(values, sound=noise))
    start(page)
    for key in "121":
        assert page.locator("#vote-body figure audio[controls]").count() == 2
        assert page.locator("#vote-body figure img").count() == 2
        labels = page.eval_on_selector_all("#vote audio", "all => all.map(node => node.ariaLabel)")
        assert labels == ["first sound", "second sound"]
        page.evaluate("document.querySelectorAll('#vote audio').forEach(node => node.load())")
        page.evaluate("document.querySelectorAll('#vote audio').forEach(node => { node.preload = 'auto'; })")
        eventually(page, "[...document.querySelectorAll('#vote audio')].every(node => node.duration > 0.1)")
        page.keyboard.press(key)
    with page.expect_download() as waiting:
        page.click("#vote-export")
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3
    assert all({"audio_a", "audio_b"} <= row.keys() for row in rows)
    command = page.inner_text("#vote code").split()
    assert command[:3] == ["mmalign", "data", "check"]
    root, shown = os.path.abspath(command[5]), tmp_path / "preview.html"
    words = ["data", "check", str(path), "--root", root, *command[6:], "--html", str(shown)]
    assert command[4] == "--root"
    assert main(words) == 0
    assert shown.read_text(encoding="utf-8").count("<audio controls") == 6

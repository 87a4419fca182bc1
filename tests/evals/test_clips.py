"""Clips of other programs through `mmalign eval`: frames averaged, clips given whole, strips in the page."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mmalign.errors import ConfigError, MissingExtraError
from mmalign.evals import harness, suite_rewards
from mmalign.evals.suite import ModelSpec, read_suite
from mmalign.evals.thumbnails import thumbnail
from mmalign.rewards.frame_mean import FrameMean
from mmalign.rewards.functions import load_function
from mmalign.rewards.sample import Sample

HERE = Path(__file__).parent
PROMPTS = 3


def write_clip(path: Path, reds: list[int]) -> Path:
    """A lossless clip whose frames have one red each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("png", rate=5)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "rgb24"
        for red in reds:
            pixels = np.zeros((32, 48, 3), dtype=np.uint8)
            pixels[..., 0] = red
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clips that grow redder from 10 number to 10 number + 60; the tuned model's by 5 more."""
    monkeypatch.syspath_prepend(str(HERE))
    (tmp_path / "mine.txt").write_text("\n".join(f"a fox {number}" for number in range(PROMPTS)))
    (tmp_path / "suite.yaml").write_text(
        "name: moving\nprompts: mine.txt\nstatistics: {resamples: 200}\n"
        "rewards:\n"
        "- {name: 'toy_rewards:redness', title: red, frames: 3}\n"
        "- {name: 'toy_rewards:loudness', title: loud, frames: 0}\n"
    )
    for model, more in (("base", 0), ("tuned", 5)):
        for number in range(PROMPTS):
            start = 10 * number + more
            reds = [start, start + 1, start + 30, start + 7, start + 60]
            write_clip(tmp_path / model / f"{number}.mov", reds)
    return tmp_path


def run(folder: Path, **options: Any) -> dict[str, Any]:
    record = harness.run_suite(
        options.pop("suite", None) or read_suite(folder / "suite.yaml"),
        options.pop("models", None)
        or [ModelSpec(name=name, source=f"videos:{folder / name}") for name in ("base", "tuned")],
        output=folder / "out",
        cache=folder / "store",
        folder=folder,
        device="cpu",
        **options,
    )
    assert record is not None
    return record


def test_a_reward_of_pictures_is_the_mean_over_first_middle_and_last_frame(folder: Path) -> None:
    record = run(folder)
    assert record["media"] == "clips"
    expected = np.mean([np.mean([10 * number, 10 * number + 30, 10 * number + 60]) for number in range(3)])
    assert record["scores"]["base"]["red"]["mean"]["value"] == pytest.approx(expected)
    gap = record["comparisons"][0]["differences"]["red"]["difference"]
    assert gap["value"] == pytest.approx(5.0)
    (red, _) = record["rewards"]
    assert red["provenance"]["frames"]["count"] == 3
    assert "mean over 3 frames" in red["scale"]


def test_a_reward_of_clips_is_given_the_file(folder: Path) -> None:
    record = run(folder)
    sizes = [(folder / "base" / f"{number}.mov").stat().st_size for number in range(PROMPTS)]
    assert record["scores"]["base"]["loud"]["mean"]["value"] == pytest.approx(np.mean(sizes))
    rows = [json.loads(line) for line in (folder / "out/samples.jsonl").read_text().splitlines()]
    assert rows[0]["models"]["tuned"]["path"] == "../tuned/0.mov"


def test_other_numbers_of_frames_are_another_reward(folder: Path) -> None:
    reward = load_function("toy_rewards:redness")
    marks = {FrameMean(reward, count).fingerprint() for count in (1, 2, 3)}
    assert len(marks | {reward.fingerprint()}) == 4
    clip = write_clip(folder / "two.mov", [0, 100])
    values = {count: FrameMean(reward, count).score([Sample(video=clip)]).values for count in (1, 2, 7)}
    assert [float(value) for value in values.values()] == [0.0, 50.0, 50.0]
    with pytest.raises(ConfigError, match=r"0 frames, a reward of image"):
        FrameMean(reward, 0)


def test_a_clip_that_cannot_be_read_fails_alone_with_its_reason(folder: Path) -> None:
    (folder / "tuned/1.mov").write_bytes(b"not a clip at all")
    (folder / "tuned/2.mov").unlink()
    record = run(folder)
    assert record["scores"]["tuned"]["red"]["n"] == 1
    rows = [json.loads(line) for line in (folder / "out/samples.jsonl").read_text().splitlines()]
    assert "expected a video file" in rows[1]["models"]["tuned"]["errors"]["red"]
    assert rows[2]["models"]["tuned"]["path"] is None
    assert rows[0]["models"]["tuned"]["errors"] == {}


def test_an_error_in_one_frame_fails_the_clip_and_names_the_frame(folder: Path) -> None:
    calls: list[Sample] = []

    def second_fails(samples: Any) -> list[float]:
        calls.extend(samples)
        return [float("nan") if number == 1 else 1.0 for number, _ in enumerate(samples)]

    reward = load_function("toy_rewards:redness")
    monkey = type(reward)(second_fails, name="own")
    found = FrameMean(monkey, 3).score([Sample(prompt="a fox", video=folder / "base/0.mov", id="x")])
    assert np.isnan(float(found.values))
    assert found.errors == ("frame 1: own: the value is not finite",)
    assert {(sample.prompt, sample.id, sample.video) for sample in calls} == {("a fox", "x", None)}
    none = FrameMean(reward, 3).score([Sample(prompt="a fox")])
    assert "a sample without video" in str(none.errors[0])


def test_the_page_shows_first_middle_and_last_frame_as_a_strip(folder: Path) -> None:
    run(folder)
    strip = Image.open(io.BytesIO(thumbnail(folder / "base/1.mov"))).convert("RGB")
    assert strip.size == (3 * 48 + 2 * 2, 32)
    shown = [strip.getpixel((24 + place * 50, 16)) for place in range(3)]
    assert [pixel[0] for pixel in shown if isinstance(pixel, tuple)] == pytest.approx([10, 40, 70], abs=3)
    page = (folder / "out/report.html").read_text()
    assert ">Clips</h2>" in page
    assert base64.b64encode(thumbnail(folder / "base/1.mov")).decode() in page


def test_pictures_and_clips_do_not_stand_in_one_run(folder: Path) -> None:
    mixed = [
        ModelSpec(name="still", source=f"images:{folder / 'base'}"),
        ModelSpec(name="moving", source=f"videos:{folder / 'tuned'}"),
    ]
    with pytest.raises(ConfigError, match=r"still of pictures, moving of clips', expected pictures of all"):
        run(folder, models=mixed)
    spread = ["diversity=vit-l-14", "generation.images_per_prompt=2"]
    with pytest.raises(ConfigError, match=r"diversity: got 'clips'"):
        run(folder, suite=read_suite(folder / "suite.yaml", spread))
    with pytest.raises(
        ConfigError, match=r"0 pictures in .*none of them of the suite.*names like mine/00000_0"
    ):
        run(folder, models=[ModelSpec(name="still", source=f"images:{folder / 'base'}")])
    with pytest.raises(ConfigError, match=r"nowhere', expected a folder of clips"):
        run(folder, models=[ModelSpec(name="gone", source="videos:nowhere")])


def test_clips_without_a_reader_are_refused_at_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_rewards, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmalign\[video\]'"):
        run(folder)


@pytest.mark.browser
def test_clips_are_strips_in_the_grid_and_play_when_enlarged(
    folder: Path, browser: Any, eventually: Callable[[Any, str], None]
) -> None:
    run(folder)
    page = browser.new_page()
    page.goto((folder / "out/report.html").as_uri())
    page.wait_for_selector("#grid > li")
    assert page.locator("#grid img").count() == 2 * PROMPTS
    assert page.locator("#grid video").count() == 0
    page.locator("#grid button.pair").first.click()
    eventually(page, "document.querySelectorAll('#large-pair video, #large-pair .wrong').length === 2")
    page.keyboard.press("Escape")
    page.click("#vote-open")
    page.click("#vote-start")
    assert page.locator("#vote figure").count() == 2
    page.close()

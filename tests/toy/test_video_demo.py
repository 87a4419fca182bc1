"""The page of `mmalign demo video`: it plays, shows both sides and says what became of motion."""

import base64
import io
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmalign.errors import ConfigError
from mmalign.toy.report import Report
from mmalign.toy.video_comparison import AXES, MotionComparison, moving, strip
from mmalign.toy.video_demo import NUM_HELD_OUT, VideoDemo
from mmalign.toy.video_demo_report import render_motion_report
from mmalign.toy.video_pairs import edited_pairs
from mmalign.toy.video_scenes import FPS, NUM_FRAMES, every_held_out

RECORDS = [
    {"step": step, "loss": 0.69, "implicit_accuracy": 0.5, "logit": 0.1, "grad_norm": 1.0, "drift": 0.1}
    for step in (2, 5)
]


@pytest.fixture(scope="module")
def comparison() -> MotionComparison:
    """Three captions: the base goes the wrong way in two of them, both are right in the third."""
    first, second, third = edited_pairs(3, seed=4, weights=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    return MotionComparison(
        [pair.prompt for pair in (first, second, third)],
        [first.rejected, second.rejected, third.chosen],
        [first.chosen, second.chosen, third.chosen],
        [first.rejected_score, second.rejected_score, third.chosen_score],
        [first.chosen_score, second.chosen_score, third.chosen_score],
    )


def page_of(comparison: MotionComparison) -> str:
    return render_motion_report(
        Report(
            comparison=comparison,
            records=RECORDS,
            verdict=["It learns."],
            settings={"preference pairs": "7", "method": "densedpo (beta 5)"},
            seconds={"training": 3.0},
            commands=VideoDemo().commands(),
            versions={"mmalign": "0"},
        )
    )


def test_the_page_plays_clips_and_shows_strips_of_both_sides(comparison: MotionComparison) -> None:
    page = page_of(comparison)
    assert "http" not in re.sub(r"http://www\.w3\.org\S*", "", page)
    players = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    strips = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(players) == len(strips) >= 6
    picture = Image.open(io.BytesIO(base64.b64decode(players[0])))
    assert picture.is_animated
    assert picture.n_frames == NUM_FRAMES
    assert picture.size == (32, 32)
    assert Image.open(io.BytesIO(base64.b64decode(strips[0]))).size == (176, 32)
    assert 'class="wrong">wrong way' in page
    assert comparison.prompts[0] in page
    assert "densedpo (beta 5)" in page


def test_a_clip_lasts_as_long_as_it_should(comparison: MotionComparison) -> None:
    picture = Image.open(io.BytesIO(base64.b64decode(moving(comparison.aligned[0]))))
    lasting = 0
    for place in range(picture.n_frames):
        picture.seek(place)
        picture.load()
        lasting += picture.info["duration"]
    assert lasting == pytest.approx(1000 * NUM_FRAMES / FPS)
    assert strip(comparison.aligned[0]) != strip(comparison.base[0])


def test_the_headline_and_the_remark_on_motion_say_no_more_than_the_intervals(
    comparison: MotionComparison,
) -> None:
    assert "The amount of motion did not change by more" in page_of(comparison)
    calm = [replace(score, pixels=0.1) for score in comparison.base_scores]
    turned = replace(
        comparison,
        base=comparison.aligned,
        aligned=comparison.base,
        base_scores=comparison.aligned_scores,
        aligned_scores=calm,
    )
    page = page_of(turned)
    assert "moves less than its base: part of the gain may be calm" in page
    assert "No difference in direction" in page or "less often than its base" in page
    quick = [replace(score, pixels=3.0) for score in comparison.aligned_scores]
    assert "moves more than its base" in page_of(replace(comparison, aligned_scores=quick))


def test_numbers_of_the_demo_name_every_axis_with_its_interval(comparison: MotionComparison) -> None:
    numbers = VideoDemo().numbers(comparison)
    assert set(numbers["reward"]) == {name for name, _, _ in AXES}
    assert numbers["reward"]["right_ways"]["aligned"] == 1.0
    assert numbers["reward"]["pixels"]["base"] > 0.3
    assert (numbers["won"], numbers["tied"], numbers["lost"]) == (2, 1, 0)
    titles = [title for title, _, _ in VideoDemo().results(comparison)]
    assert titles == [title for _, title, _ in AXES]


def test_clips_of_both_sides_are_written_as_files(comparison: MotionComparison, tmp_path) -> None:
    VideoDemo().write_more(comparison, tmp_path)
    written = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert written[:2] == ["00_aligned.webp", "00_base.webp"]
    assert len(written) == 6


def test_bytes_of_a_clip_are_those_of_its_pixels(comparison: MotionComparison) -> None:
    clip = comparison.aligned[1]
    picture = Image.open(io.BytesIO(base64.b64decode(moving(clip))))
    picture.seek(5)
    frame = torch.tensor(list(picture.convert("RGB").tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255.0
    assert float((frame - clip[5]).abs().mean()) < 0.03


def test_more_captions_than_there_are_are_refused_before_anything_is_made() -> None:
    assert len(every_held_out(seed=3)) == NUM_HELD_OUT == VideoDemo().num_prompts
    assert VideoDemo(num_prompts=5).held_out(3) == every_held_out(seed=3)[:5]
    with pytest.raises(ConfigError, match="num_prompts: got 49, expected 48 or fewer"):
        VideoDemo(num_prompts=49)

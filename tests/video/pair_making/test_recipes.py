"""Every plan of the video folder is one, says what it is for, and has numbers of its paper."""

from pathlib import Path

import pytest

from mmalign import registry
from mmalign.evals.benchmarks.vbench import DIMENSIONS
from mmalign.rewards import card as card_of
from mmalign.video.pair_making.plan import VIDEO_RECIPES, read_video_plan
from mmalign.video.pair_making.selection import TOTAL, with_total

PLANS = sorted((Path(__file__).parents[3] / "video/configs/pairs").glob("*.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_is_valid_and_explains_itself(path):
    plan = read_video_plan(path)
    head = path.read_text().split("\nrecipe:")[0]
    assert "arXiv" in head
    assert f"mmalign pairs make video/configs/pairs/{path.name}" in head
    if plan.model is not None:
        assert registry.modality(plan.model.family) == "video"


def test_lines_of_plans_fit_a_screen():
    everywhere = (Path(__file__).parents[3]).glob("*/configs/pairs/*.yaml")
    assert [path.name for path in everywhere if max(map(len, path.read_text().splitlines())) > 110] == []


def test_every_part_of_omniscore_has_its_ends_and_semantics_those_of_a_cosine():
    plan = read_video_plan(next(path for path in PLANS if path.stem == "omniscore"))
    selection = plan.selection
    assert set(selection.ranges) == set(selection.weights) == {one.column for one in plan.scorers}
    ends = {
        "subject": "subject consistency",
        "background": "background consistency",
        "flicker": "temporal flickering",
        "dynamic": "dynamic degree",
        "aesthetic": "aesthetic quality",
    }
    for title, name in ends.items():
        assert selection.ranges[title] == (DIMENSIONS[name].low, DIMENSIONS[name].high), title
    # A CLIPScore of 2.5 times VBench's greatest cosine of a text and a clip is 1; no title counts for more.
    text = DIMENSIONS["overall consistency"]
    assert selection.ranges["semantics"] == pytest.approx((2.5 * text.low, 2.5 * text.high))
    best = {title: greatest for title, (_, greatest) in selection.ranges.items()}
    assert with_total(best, selection)[TOTAL] == pytest.approx(1.0)
    quality = sum(weight for title, weight in selection.weights.items() if title != "semantics")
    assert quality == 4 * selection.weights["semantics"]


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_scorer_of_a_plan_is_registered(path):
    plan = read_video_plan(path)
    named = [*plan.scorers, *([plan.judge] if plan.judge else [])]
    named += [plan.segments.annotator] if plan.segments else []
    for choice in named:
        if ":" in choice.name:
            assert registry.own_function(choice.name, what="reward")
            continue
        card = card_of(choice.name)
        assert card.modality in ("image", "video")
        assert not choice.output or choice.output in card.outputs


def test_every_recipe_has_a_plan():
    assert {read_video_plan(path).recipe for path in PLANS} == set(VIDEO_RECIPES)


@pytest.mark.parametrize("name", ["densedpo", "structuraldpo"])
def test_corrupted_pairs_have_the_papers_numbers(name):
    plan = read_video_plan(next(path for path in PLANS if path.stem == name))
    assert (plan.corrupt.least, plan.corrupt.most, plan.corrupt.members) == (0.65, 0.8, 2)
    assert (plan.sampling.num_steps, plan.sampling.guidance_scale) == (40, 8.0)
    assert (plan.video.height, plan.video.width, plan.video.flow_shift) == (288, 512, 5.66)
    if name == "densedpo":
        assert (plan.segments.seconds, plan.segments.fps, plan.segments.min_decided) == (1.0, 8.0, 0.2)

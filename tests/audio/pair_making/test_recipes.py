"""Every plan of the audio folder is one, says what it is for, and has a recipe of its own."""

from pathlib import Path

import pytest

from mmalign.audio.pair_making.plan import AUDIO_RECIPES, read_audio_plan

PLANS = sorted((Path(__file__).parents[3] / "audio/configs/pairs").glob("*.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_is_valid_and_explains_itself(path):
    plan = read_audio_plan(path)
    head = path.read_text().split("\nrecipe:")[0]
    assert "arXiv" in head
    assert f"mmalign pairs make audio/configs/pairs/{path.name}" in head
    assert plan.titles == ("clap",)


def test_every_recipe_has_a_plan():
    assert {read_audio_plan(path).recipe for path in PLANS} == set(AUDIO_RECIPES)


@pytest.mark.parametrize("name", ["seeds", "quality", "events", "order"])
def test_plans_of_audio_alpaca_have_the_papers_bounds(name):
    plan = read_audio_plan(next(path for path in PLANS if path.stem == name))
    bounds = plan.chosen_by.bounds["clap"]
    assert (bounds.winner, bounds.loser, bounds.gap) == ((0.45, None), (0.40, None), (0.05, 0.35))
    assert plan.sampling.guidance_scale == 3.0
    assert plan.quality.steps == (5, 25, 50, 100)

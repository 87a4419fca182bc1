"""Every recipe of the image folder is a valid run, opens with its own command, and says what it costs."""

import re
from pathlib import Path

import pytest

from mmalign.train.config import load_run

CONFIGS = Path(__file__).parents[2] / "diffusion" / "configs"
RECIPES = sorted(path for family in ("sd15", "sdxl") for path in (CONFIGS / family).glob("*.yaml"))


def test_both_families_have_every_method() -> None:
    wanted = {"dpo_lora", "dpo_full", "mapo", "orpo", "kto", "ipo", "simpo"}
    for family in ("sd15", "sdxl"):
        assert wanted <= {path.stem for path in RECIPES if path.parent.name == family}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_is_a_valid_run_that_explains_itself(path: Path) -> None:
    run = load_run(path)
    assert run.config.model.family == path.parent.name
    assert run.config.train.output == f"runs/{path.parent.name}-{path.stem}"
    text = path.read_text(encoding="utf-8")
    head = text.split("\n\n")[0]
    assert f"mmalign train diffusion/configs/{path.parent.name}/{path.name}" in head
    for word in ("Hardware", "Memory", "Time", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", head, flags=re.MULTILINE), word
    # PyYAML reads 1e-5 as text.
    assert not re.search(r":\s*\d+e-?\d+", text)


def test_learning_rates_of_full_recipes_are_the_effective_ones() -> None:
    for family in ("sd15", "sdxl"):
        run = load_run(CONFIGS / family / "dpo_full.yaml")
        train = run.config.train
        assert train.learning_rate == pytest.approx(1e-8 * 2048)
        assert train.batch_size * train.accumulation * 8 == 2048


def test_kto_recipes_reach_their_method_with_the_doubled_beta() -> None:
    for family in ("sd15", "sdxl"):
        run = load_run(CONFIGS / family / "kto.yaml")
        assert run.method.data == "unpaired"
        assert run.objective_arguments["beta"] == 2000.0

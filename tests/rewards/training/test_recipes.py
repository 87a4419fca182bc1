"""The recipes of rewards can be run as they stand: every key exists, every method has one."""

from pathlib import Path

import pytest

from mmalign.methods.rewards import REWARD_ROWS
from mmalign.rewards.training import load_reward_run

RECIPES = sorted(
    (Path(__file__).resolve().parents[3] / "evals" / "configs" / "rewards").glob("*.yaml"),
    key=lambda path: path.name,
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_says_how_it_is_run_and_writes_into_runs(path):
    config, row = load_reward_run(path)
    assert config.name
    assert config.train.output.startswith("runs/")
    assert f"mmalign train evals/configs/rewards/{path.name}" in path.read_text(encoding="utf-8")
    assert config.train.learning_rate == row.defaults["*"]["learning_rate"].value


def test_every_reward_row_has_a_recipe_with_a_folder_of_its_own():
    configs = [load_reward_run(path)[0] for path in RECIPES]
    assert {config.method for config in configs} == set(REWARD_ROWS)
    assert len({config.train.output for config in configs}) == len(configs)

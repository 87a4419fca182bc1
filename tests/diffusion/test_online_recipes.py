"""Recipes that learn from their own samples: valid, self-explaining, and three steps each on a tiny model."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmalign import methods
from mmalign.rewards import card
from mmalign.testing.reward_checkpoints.step_aware import write_step_aware
from mmalign.testing.tiny import RESOLUTION
from mmalign.train.config import load_run
from mmalign.train.rollout_memory import items_per_round
from mmalign.train.run import train

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

CONFIGS = Path(__file__).parents[2] / "diffusion" / "configs"
STEMS = ("online_dpo", "spo", "dro", "seppo", "draft", "flow_grpo")
RECIPES = sorted(path for stem in STEMS for path in CONFIGS.glob(f"*/{stem}.yaml"))
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")


class Brightness:
    """A reward for every method: steep, differentiable, and glad to know the timestep."""

    name, takes_timestep, is_differentiable = "brightness", True, True

    def __call__(
        self, pixels: torch.Tensor, prompts: Sequence[str], timestep: torch.Tensor | None = None
    ) -> torch.Tensor:
        del timestep
        return 2000.0 * pixels.flatten(1).mean(1)


def test_both_unet_families_have_every_method_and_the_flows_those_made_for_them() -> None:
    found = {
        family: {path.stem for path in RECIPES if path.parent.name == family} for family in ("sd15", "sdxl")
    }
    assert found == {"sd15": set(STEMS), "sdxl": set(STEMS)}
    assert {"online_dpo", "spo", "flow_grpo"} <= {path.stem for path in RECIPES if path.parent.name == "sd3"}
    assert (CONFIGS / "flux" / "flow_grpo.yaml") in RECIPES


def test_every_online_method_with_published_numbers_has_a_recipe() -> None:
    published = {
        row.name
        for row in methods.runs()
        if row.rollout and any(each.mark == "code" for each in row.defaults_for("sd15").values())
    }
    assert {"spo", "diffusion_dro", "flow_grpo"} <= published
    here = {load_run(path).method.name for path in RECIPES}
    assert published <= here | {"diff_instruct_star"}  # test_one_step_recipe.py


@each_recipe
def test_a_recipe_is_a_valid_run_that_explains_itself(path: Path) -> None:
    run = load_run(path)
    assert run.config.model.family == path.parent.name
    assert run.config.train.output == f"runs/{path.parent.name}-{path.stem}"
    text = path.read_text(encoding="utf-8")
    head = text.split("\n\n")[0]
    assert f"mmalign train diffusion/configs/{path.parent.name}/{path.name}" in head
    for word in ("Hardware", "Memory", "Time", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", head, flags=re.MULTILINE), word
    assert not re.search(r":\s*\d+e-?\d+", text), "PyYAML reads 1e-5 as text"
    assert all(len(line) <= 112 for line in text.splitlines())


@each_recipe
def test_a_recipe_names_a_reward_that_its_method_can_use(path: Path) -> None:
    run = load_run(path)
    name = run.config.rollout.reward
    if run.method.data == "chosen":
        assert name is None
        return
    assert name is not None
    found = card(name)
    assert ("timestep" in found.needs) == (run.method.rollout == "stepwise")
    assert found.differentiable or run.method.rollout != "backpropagation"


@each_recipe
def test_a_recipe_keeps_what_its_row_has_published(path: Path) -> None:
    """Only what a recipe says in words differs: devices, steps, the reward's KL weight, rates of ours."""
    allowed = {"effective batch on one device", "train.steps", "objective.beta", "train.learning_rate"}
    if path.parent.name == "sdxl" and path.stem == "dro":
        allowed |= {"train.ema_decay"}
    assert {each.setting for each in load_run(path).differences} <= allowed


def test_spo_recipes_have_the_published_batch_and_dro_the_published_one_of_four_devices() -> None:
    for family, effective in (("sd15", 40), ("sdxl", 16)):
        settings = load_run(CONFIGS / family / "spo.yaml").config.train
        assert settings.batch_size * settings.accumulation == effective
    settings = load_run(CONFIGS / "sd15" / "dro.yaml").config.train
    assert settings.batch_size * settings.accumulation * 4 == 256
    assert settings.ema_decay == 0.9999


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem == "flow_grpo"], ids=str)
def test_a_step_of_flow_grpo_is_one_round(path: Path) -> None:
    run = load_run(path)
    assert run.config.train.batch_size * run.config.train.accumulation == items_per_round(run)


# ---------------------------------------------------------------------------------------------- three steps


def overrides(path: Path, model: Path, rows: Path, output: Path) -> list[str]:
    """A recipe as three steps of two items on a tiny model, with a short sampler; everything else stands."""
    short = {"spo": ["rollout.num_steps=8"]}.get(path.stem, ["rollout.num_steps=3"])
    settings = load_run(path).config.rollout
    samples = [] if settings.samples is None else [f"rollout.samples={min(settings.samples, 3)}"]
    return [
        f"model.source={model}",
        f"image.resolution={RESOLUTION}",
        f"data.source={rows}",
        f"train.output={output}",
        *("train.steps=3", "train.accumulation=1", "train.num_workers=0", "train.device=cpu"),
        *("train.mixed_precision=no", "train.checkpoint_every=1000", "train.batch_size=2"),
        *("log.every=1", "log.trackers=[]", "samples.prompts=[]", "rollout.prompts=2"),
        *([] if load_run(path).config.model.vae is None else ["model.vae=null"]),
        *short,
        *samples,
    ]


def is_quick(path: Path) -> bool:
    return f"{path.parent.name}/{path.stem}" in ("sdxl/spo", "sd15/dro", "sd3/online_dpo", "flux/flow_grpo")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=f"{path.parent.name}/{path.stem}", marks=() if is_quick(path) else pytest.mark.slow
        )
        for path in RECIPES
    ],
)
def test_a_recipe_trains_three_steps(
    path: Path, tiny_model: Callable[[str, str], Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    kind, output = load_run(path).method.data, tmp_path / "run"
    model = tiny_model(path.parent.name, path.stem)
    train(load_run(path, overrides(path, model, data(kind), output)), reward=Brightness())
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert sum(record["grad_norm"] for record in records) > 0


def test_spo_is_judged_by_a_step_aware_model_from_its_own_files(
    tiny_model: Callable[[str, str], Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    """Through the command line's loader, with a released model's layout in small."""
    from mmalign.cli.training import sample_reward

    weights = tmp_path / "spm"
    weights.mkdir()
    write_step_aware("sd-v1-5")(weights, 0)
    path = CONFIGS / "sd15" / "spo.yaml"
    settings = overrides(path, tiny_model("sd15", "spo"), data("prompts"), tmp_path / "run")
    extra = [f"rollout.reward_weights={weights}", "rollout.reward_dtype=float32", "rollout.threshold=0.0"]
    run = load_run(path, [*settings, *extra])
    result = train(run, reward=sample_reward(run))
    assert result.finished
    assert any("rollout/score" in record for record in result.records)
    assert result.records[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)

"""The recipe of Diff-Instruct*: what it says, and three steps with a tiny generator and a tiny teacher."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmalign.testing.tiny import RESOLUTION, write_tiny_sdxl
from mmalign.train.config import load_run
from mmalign.train.run import train

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

RECIPE = Path(__file__).parents[2] / "diffusion" / "configs" / "sdxl" / "diff_instruct_star.yaml"


class Redness:
    name, takes_timestep, is_differentiable = "redness", False, True

    def __call__(self, pixels: torch.Tensor, prompts: object, timestep: object = None) -> torch.Tensor:
        return 20.0 * pixels[:, 0].mean((1, 2))


def test_it_says_what_it_is_and_agrees_with_its_row() -> None:
    run = load_run(RECIPE)
    assert run.method.name == "diff_instruct_star"
    assert run.config.train.output == "runs/sdxl-diff_instruct_star"
    head = RECIPE.read_text(encoding="utf-8").split("\n\n")[0]
    for word in ("Hardware", "Memory", "Time", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", head, flags=re.MULTILINE), word
    assert [item.setting for item in run.differences] == []
    defaults = run.method.defaults_for("sdxl")
    one_step = run.config.rollout.one_step
    for name, setting in (
        ("timestep", "generator_timestep"),
        *(2 * (each,) for each in ("teacher_guidance", "reward_weight", "distance", "score_steps")),
    ):
        assert getattr(one_step, name) == defaults[setting].value


@pytest.mark.slow
def test_it_trains_three_steps(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cup\na blue plate\na green tree\n", encoding="utf-8")
    generator = write_tiny_sdxl(tmp_path / "generator", seed=0)
    teacher = write_tiny_sdxl(tmp_path / "teacher", seed=1)
    overrides = [
        f"model.source={generator}",
        f"rollout.one_step.teacher={teacher}",
        f"image.resolution={RESOLUTION}",
        f"data.source={prompts}",
        f"train.output={tmp_path / 'run'}",
        *("train.steps=3", "train.accumulation=1", "train.batch_size=2", "train.num_workers=0"),
        *("train.device=cpu", "train.mixed_precision=bf16", "log.every=1", "log.trackers=[]"),
    ]
    records = train(load_run(RECIPE, overrides), reward=Redness()).records
    assert [record["step"] for record in records] == [1, 2, 3]
    for record in records:
        assert np.isfinite([record["loss"], record["rollout/distance"], record["rollout/reward"]]).all()
        assert record["grad_norm"] > 0
        assert record["dropped_updates"] == 0

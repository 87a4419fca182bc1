"""In the toy world: far too high a learning rate ruins the pictures, and a rollback saves them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.testing.accelerator import forget_accelerator
from mmalign.toy.demo import recipe_path
from mmalign.toy.image_pairs import preference_pairs, write_pickapic
from mmalign.toy.image_pipeline import ASSETS
from mmalign.toy.image_reward import score_images
from mmalign.toy.scenes import held_out_prompts
from mmalign.train.config import load_run
from mmalign.train.run import RunResult, train

pytestmark = pytest.mark.slow

SEED, STEPS = 1, 24


def trained(folder: Path, action: str) -> RunResult:
    forget_accelerator()
    extra: dict[str, Any] = {
        "model": {"source": str(ASSETS)},
        "data": {"source": str(folder / "pairs.parquet")},
        "train": {
            "output": str(folder / action),
            "seed": SEED,
            "steps": STEPS,
            "batch_size": 4,
            "accumulation": 1,
            "warmup_steps": 0,
            "learning_rate": 0.05,
            "checkpoint_every": 4,
            "num_workers": 0,
        },
        "log": {"every": 2, "trackers": []},
        "samples": {"prompts": []},
        "guard": {"action": action, "patience": 3, "learning_rate_factor": 0.01},
    }
    return train(load_run(recipe_path("diffusion/configs/toy/dpo.yaml"), extra=extra))


def reward(result: RunResult, prompts: list[str]) -> float:
    pictures = result.model.sample(prompts, seed=SEED, num_steps=10, guidance_scale=4.0)
    return sum(score.total for score in score_images(pictures, prompts)) / len(prompts)


def test_a_rollback_saves_the_pictures_that_going_on_ruins(tmp_path: Path) -> None:
    write_pickapic(preference_pairs(96, SEED), tmp_path / "pairs.parquet", seed=SEED)
    prompts = held_out_prompts(16, seed=SEED)
    with torch.random.fork_rng():
        ruined, saved = (trained(tmp_path, action) for action in ("warn", "rollback"))
        rewards = reward(ruined, prompts), reward(saved, prompts)
    print(f"mean held-out reward: going on {rewards[0]:.3f}, rolled back {rewards[1]:.3f}")
    assert rewards[1] > rewards[0] + 0.1

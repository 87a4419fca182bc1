"""Online runs of the toy world from the command line, scored by its exact reward."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from mmalign.cli.main import main
from mmalign.toy.image_pipeline import ASSETS
from mmalign.toy.image_reward import style_score
from mmalign.toy.scenes import held_out_prompts
from mmalign.train.config import resolve
from mmalign.train.parts import load_model
from mmalign.train.rollouts import make_sampler


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of two steps on prompts of the toy grammar."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(held_out_prompts(6)) + "\n", encoding="utf-8")
    content = {
        "method": "online_diffusion_dpo",
        "model": {"family": "sdxl", "source": str(ASSETS)},
        "image": {"resolution": 64},
        "data": {"source": str(prompts)},
        "objective": {"beta": 1000.0},
        "rollout": {
            "reward": "mmalign.toy.reward_functions:reward",
            "num_steps": 3,
            "samples": 3,
            "prompts": 2,
            "guidance_scale": 3.0,
        },
        "adapter": {"rank": 4},
        "train": {
            "output": str(tmp_path / "run"),
            "steps": 2,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "num_workers": 0,
            "device": "cpu",
        },
        "log": {"every": 1, "trackers": []},
    }
    path = tmp_path / "online.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_command_trains_on_samples_scored_by_a_function(config: Path, tmp_path: Path, capsys) -> None:
    assert main(["train", str(config)]) == 0
    said = capsys.readouterr().out
    assert "scored by mmalign.toy.reward_functions:reward" in said
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [1, 2]
    assert 0.0 <= records[0]["rollout/reward"] <= 1.0
    assert records[0]["rollout/reward_failed"] == 0.0
    assert records[0]["loss"] == pytest.approx(0.693, abs=0.01)
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text(encoding="utf-8"))
    assert any("reward of fresh samples" in line for line in summary["verdict"])
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").is_file()


def test_a_prompt_outside_the_grammar_fails_by_itself(config: Path, tmp_path: Path) -> None:
    """The reward of that prompt's samples is NaN: the others are trained on."""
    (tmp_path / "prompts.txt").write_text("\n".join([*held_out_prompts(3), "a dog"]) + "\n", encoding="utf-8")
    assert main(["train", str(config), "rollout.prompts=4"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["rollout/reward_failed"] == pytest.approx(0.25)


def test_a_dry_run_says_what_sampling_costs_and_loads_no_reward(config: Path, tmp_path: Path, capsys) -> None:
    settings = ["rollout.reward=pickscore_v1", "method=flow_grpo", "objective={}", "rollout.prompts=5"]
    assert main(["train", str(config), *settings, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "queue, 30 items of a round" in said  # 5 prompts x 3 samples x 2 of 3 steps
    assert "reward pickscore_v1" in said
    assert "3.669" in said  # 3.94e9 bytes in GiB
    assert not (tmp_path / "run").exists()


def test_a_function_that_is_not_there_is_named(config: Path, capsys) -> None:
    assert main(["train", str(config), "rollout.reward=mmalign.toy.reward_functions:rewards"]) != 0
    assert "rewards" in capsys.readouterr().err


@pytest.mark.slow
def test_few_steps_show_frames_only_when_they_start_at_the_noisiest_timestep(config: Path) -> None:
    """Leading spacing leaves out the timesteps that decide style: best of n then has no frame to choose."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["rollout"] |= {"num_steps": 6, "guidance_scale": 1.0}
    model = load_model(resolve(content), torch.device("cpu"))
    conditioning = model.prompt_conditioning(held_out_prompts(64)).rows(1)
    shares = {}
    for spacing in ("leading", "trailing"):
        run = resolve(content | {"rollout": content["rollout"] | {"spacing": spacing}})
        keys = torch.arange(64)
        drawn = make_sampler(run, model).sample(model.denoise, keys, model.latent_shape, conditioning)
        framed = style_score(model.decode_pixels(drawn.final)) > 0.5
        shares[spacing] = framed.float().mean().item()
    assert shares["leading"] == 0.0
    assert shares["trailing"] >= 0.03

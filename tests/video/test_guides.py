"""Flow-NRG for models of video: a reward trained on a run's pairs guides the family's own sampler."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mmalign import registry
from mmalign.cli.main import main
from mmalign.diffusion.guide_training import GuideSettings, train_guide
from mmalign.diffusion.guided import denoised_latents
from mmalign.diffusion.guides import load_guide, make_reward, reading_block, save_guide
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import CheckpointError, ConfigError, HyperparameterError
from mmalign.files import load_tensors, read_json, read_json_lines, write_json
from mmalign.seeding import generator_for
from mmalign.testing.tiny_video.hunyuan_video import write_tiny_hunyuan_video
from mmalign.testing.tiny_video.ltx import LTX_FRAMES, LTX_SIZE, write_tiny_ltx
from mmalign.train.config import ModelConfig, load_run
from mmalign.train.run import train
from mmalign.train.video_sections import VideoConfig

pytestmark = pytest.mark.usefixtures("_fresh_accelerator")

SETTINGS = {"seed": 3, "num_steps": 3, "guidance_scale": 3.0}


def sharp_guide(folder: Path, model, *, scale: float = 3.0):
    """A reward whose head is random but steep, as a trained one is, written to a folder."""
    reward, block = make_reward(model, hidden=5, seed=1)
    with torch.no_grad():
        for weight in reward.head.parameters():
            weight.mul_(scale)
    folder.mkdir()
    save_guide(folder, reward, model, {"block": block})
    return folder


def latents_of(model, guides, prompts=("waves", "slow waves")) -> torch.Tensor:
    """Two clips' latents at the end of the sampler's way, in one batch."""
    rows = model.prompt_conditioning(list(prompts)).rows(1)
    start = torch.stack([initial_noise(model.latent_shape, seed=3, prompt=number) for number in range(2)])
    with model.sampling():
        return denoised_latents(
            model,
            start,
            rows,
            model.prompt_conditioning(["", ""]).rows(1),
            scheduler=model.sampler(None),
            num_steps=4,
            guidance_scale=2.0,
            generators=[generator_for(3, "path", number) for number in range(2)],
            rewards=guides,
        )


def reward_of(guide, model, latents, level: float = 0.1) -> torch.Tensor:
    """What a guide's own reward says of clips with little noise."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    times = torch.full((len(latents),), level)
    noised = model.schedule.add_noise(latents, noise, times)
    rows = model.prompt_conditioning(["waves", "slow waves"]).rows(1)
    with torch.no_grad():
        return guide.reward(noised, model.schedule.network_time(times), rows)


def test_weight_0_is_no_guide_to_the_bit_and_more_weight_is_more_reward(load_wan, tmp_path: Path) -> None:
    model = load_wan()
    folder = sharp_guide(tmp_path / "guide", model)
    plain = latents_of(model, [])
    found = {
        weight: latents_of(model, [load_guide(model, folder, weight)]) for weight in (-2.0, 0.0, 2.0, 6.0)
    }
    assert torch.equal(found[0.0], plain)
    guide = load_guide(model, folder, 1.0)
    rewards = [reward_of(guide, model, found[weight]) for weight in (-2.0, 0.0, 2.0, 6.0)]
    for less, more in pairwise(rewards):
        assert (more > less).all(), rewards


def test_clips_under_weight_0_are_those_of_the_model(load_wan, tmp_path: Path) -> None:
    model = load_wan()
    guides = [load_guide(model, sharp_guide(tmp_path / "guide", model, scale=10.0), 0.0)]
    plain, guided = model.sample(["waves"], **SETTINGS), model.sample(["waves"], guides=guides, **SETTINGS)
    assert torch.equal(plain[0].frames, guided[0].frames)


@pytest.mark.parametrize("family", ["ltx", pytest.param("hunyuan_video", marks=pytest.mark.slow)])
def test_other_flows_are_guided_too(family: str, tmp_path: Path) -> None:
    write, clip = {
        "ltx": (write_tiny_ltx, {"num_frames": LTX_FRAMES, "height": LTX_SIZE[0], "width": LTX_SIZE[1]}),
        "hunyuan_video": (write_tiny_hunyuan_video, {"num_frames": 5, "height": 32, "width": 48}),
    }[family]
    settings = ModelConfig(family=family, source=str(write(tmp_path / "model")))
    model = registry.find("families", family).load(
        settings, VideoConfig(**clip), device="cpu", dtype=torch.float32
    )
    folder = sharp_guide(tmp_path / "guide", model)
    assert read_json(folder / "guide.json")["block"] == "transformer_blocks.0"
    found = [latents_of(model, [load_guide(model, folder, weight)]) for weight in (-4.0, 0.0, 4.0)]
    assert torch.equal(found[1], latents_of(model, []))
    guide = load_guide(model, folder, 1.0)
    rewards = [reward_of(guide, model, latents) for latents in found]
    for less, more in pairwise(rewards):
        assert (more > less).all(), rewards


def test_of_two_experts_the_reward_acts_where_it_was_trained(load_wan, tmp_path: Path) -> None:
    for expert, levels in (("high", (0.875, 0.98)), ("low", (0.0, 0.875))):
        model = load_wan("a14b", expert=expert)
        guide = load_guide(model, sharp_guide(tmp_path / expert, model), 1.0)
        assert (guide.low, guide.high) == levels
    with pytest.raises(ConfigError, match=r"got 'a reward of part transformer', expected one of transf"):
        load_guide(model, tmp_path / "high", 1.0)


def test_a_reward_is_trained_on_pairs_and_goes_on_where_it_stopped(write_run, tmp_path: Path) -> None:
    run = load_run(write_run())
    said: list[str] = []
    settings = {"learning_rate": 1e-2, "hidden": 7, "save_every": 2}
    whole = train_guide(run, tmp_path / "whole", GuideSettings(steps=5, **settings))
    train_guide(run, tmp_path / "parts", GuideSettings(steps=2, **settings))
    parts = train_guide(run, tmp_path / "parts", GuideSettings(steps=5, **settings), say=said.append)
    assert f"continuing {parts} after step 2" in said
    first, second = (load_tensors(folder / "guide.safetensors") for folder in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = read_json_lines(whole / "metrics.jsonl")
    assert records == read_json_lines(parts / "metrics.jsonl")
    assert [record["step"] for record in records] == [2, 4, 5]
    card = read_json(whole / "guide.json")
    assert (card["family"], card["block"], card["hidden"], card["steps"]) == ("wan", "blocks.0", 7, 5)
    with pytest.raises(CheckpointError, match=r"got \[a reward of another model, of other data"):
        train_guide(run, whole, GuideSettings(steps=9, hidden=5))


def test_pairs_are_what_it_learns_from(write_run, tmp_path: Path) -> None:
    run = load_run(write_run(kind="unpaired", method="diffusion_kto"))
    with pytest.raises(
        ConfigError, match=r"got 'a method of unpaired', expected the configuration of a meth"
    ):
        train_guide(run, tmp_path / "guide")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"guide steps: got 0, expected >= 1"),
        ({"hidden": 0}, r"guide hidden: got 0, expected >= 1"),
        ({"learning_rate": 0.0}, r"guide learning_rate: got 0.0, expected a number above 0"),
        ({"weight_decay": -1.0}, r"guide weight_decay: got -1.0, expected a number >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message) -> None:
    with pytest.raises(HyperparameterError, match=message):
        GuideSettings(**settings)


def test_the_commands_train_a_reward_and_show_clips_under_it(write_run, tmp_path: Path, capsys) -> None:
    path = write_run(adapter={"rank": 2})
    run = train(load_run(path)).folder
    guide, output = tmp_path / "guide", tmp_path / "clips"
    trained = ["guide", str(path), "--output", str(guide), "--steps", "2", "--hidden", "5"]
    assert main(trained) == 0
    assert f"mmalign sample --guide {guide}" in capsys.readouterr().out
    words = ["sample", "--run", str(run), "--prompt", "waves", "--steps", "1", "--output", str(output)]
    sizes = ["--num-frames", "5", "--height", "32", "--width", "32"]
    assert main([*words, *sizes, "--guide", str(guide), "--guide-weight", "0"]) == 0
    tuned, guided = ((output / name / "00.mp4").read_bytes() for name in ("tuned", "guided"))
    assert tuned == guided
    assert "guided/00.mp4" in (output / "comparison.html").read_text()


def test_what_cannot_be_is_said(load_wan, wan_folder, tmp_path: Path, capsys) -> None:
    words = ["sample", "--model", str(wan_folder()), "--prompt", "waves", "--output", str(tmp_path / "out")]
    for options, message in (
        (["--guide", "g"], "got '--guide alone', expected --guide FOLDER --guide-weight NUMBER"),
        (["--guide-weight", "1"], "got '--guide-weight alone'"),
        (["--height", "3"], "--height: got 3, expected 16 pixels or more"),
        (["--fps", "-1"], "--fps: got -1.0, expected a number above 0"),
        (["--num-frames", "4"], "video.num_frames: got 4"),
    ):
        assert main([*words, *options]) == 2
        assert message in capsys.readouterr().err
    model = load_wan()
    with pytest.raises(CheckpointError, match=r"got 'no guide.json and guide.safetensors'"):
        load_guide(model, tmp_path / "none", 1.0)
    folder = sharp_guide(tmp_path / "guide", model)
    card = read_json(folder / "guide.json")
    write_json(folder / "guide.json", {**card, "family": "ltx"})
    with pytest.raises(ConfigError, match=r"got 'a reward of family ltx', expected one of wan"):
        load_guide(model, folder, 1.0)
    write_json(folder / "guide.json", {**card, "features": 3})
    with pytest.raises(ConfigError, match=r"got 'a reward that reads 3 features'"):
        load_guide(model, folder, 1.0)
    (folder / "guide.json").write_text(json.dumps({"kind": "else"}))
    with pytest.raises(CheckpointError, match=r"got \[another file\], expected the card of a reward"):
        load_guide(model, folder, 1.0)
    with pytest.raises(ConfigError, match=r"got 'a Linear without blocks or transformer_blocks'"):
        reading_block(torch.nn.Linear(2, 3))


def test_options_of_video_are_for_models_of_video(tmp_path: Path, capsys) -> None:
    assert main(["sample", "--model", str(tmp_path), "--prompt", "a", "--guide-weight", "1"]) == 2
    assert "mmalign sample: got '--guide-weight', expected options of image models" in capsys.readouterr().err

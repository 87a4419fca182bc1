"""Noise, samplers, comparisons, and the sample command on a base model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.diffusion.sampling import SCHEDULERS, initial_noise, main, scheduler_for, side_by_side
from mmalign.errors import ConfigError, UnknownNameError
from mmalign.testing.families import load


def test_noise_depends_on_seed_prompt_and_copy() -> None:
    first = initial_noise((4, 3, 5), seed=1, prompt=2, copy=3)
    assert torch.equal(first, initial_noise((4, 3, 5), seed=1, prompt=2, copy=3))
    for other in ({"seed": 2, "prompt": 2, "copy": 3}, {"seed": 1, "prompt": 3, "copy": 3}):
        assert not torch.equal(first, initial_noise((4, 3, 5), **other))
    assert not torch.equal(first, initial_noise((4, 3, 5), seed=1, prompt=2, copy=0))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_keeps_the_noise_schedule_and_clips_nothing(tiny_sdxl_folder: Path, name: str) -> None:
    model = load("sdxl", tiny_sdxl_folder)
    scheduler = scheduler_for(model, name)
    assert type(scheduler).__name__ == SCHEDULERS[name]
    torch.testing.assert_close(
        scheduler.alphas_cumprod.float(), model.schedule.alphas_cumprod.float(), rtol=1e-5, atol=1e-7
    )
    assert not scheduler.config.get("clip_sample", False)
    pictures = model.sample(["a"], seed=0, num_steps=2, guidance_scale=1.0, scheduler=name)
    assert np.asarray(pictures[0]).std() > 1


def test_an_unknown_sampler_lists_the_known_ones(tiny_sdxl_folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="ddim"):
        scheduler_for(load("sdxl", tiny_sdxl_folder), "dimm")


def test_guidance_changes_the_picture(tiny_sd15_folder: Path) -> None:
    model = load("sd15", tiny_sd15_folder)
    plain, guided = (
        np.asarray(model.sample(["a cat"], seed=0, num_steps=3, guidance_scale=scale)[0], dtype=int)
        for scale in (1.0, 9.0)
    )
    assert np.abs(plain - guided).max() > 1


def test_copies_of_a_prompt_differ(tiny_sd15_folder: Path) -> None:
    model = load("sd15", tiny_sd15_folder)
    pictures = model.sample(
        ["a cat", "a dog"], seed=0, num_steps=2, guidance_scale=1.0, copies=3, batch_size=2
    )
    assert len(pictures) == 6
    assert not np.array_equal(np.asarray(pictures[0]), np.asarray(pictures[1]))


def test_sampling_leaves_the_training_mode_as_it_was(tiny_sd15_folder: Path) -> None:
    model = load("sd15", tiny_sd15_folder)
    model.bare_network.train()
    model.sample(["a cat"], seed=0, num_steps=1, guidance_scale=1.0)
    assert model.bare_network.training


def test_a_refiner_reworks_pictures(tiny_refiner_folder: Path) -> None:
    model = load("sdxl", tiny_refiner_folder)
    pictures = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    settings = {"seed": 0, "num_steps": 5, "guidance_scale": 1.0, "images": pictures}
    assert len(model.sample(["a", "b"], **settings)) == 2
    with pytest.raises(ConfigError, match="2 pictures for 1 prompts"):
        model.sample(["a"], **settings)


def test_pictures_for_a_model_that_paints_from_text_are_refused(tiny_sdxl_folder: Path) -> None:
    model = load("sdxl", tiny_sdxl_folder)
    with pytest.raises(ConfigError, match="paints from text alone"):
        model.sample(["a"], seed=0, num_steps=1, guidance_scale=1.0, images=[Image.new("RGB", (8, 8))])


def test_a_comparison_has_a_column_per_model_and_a_row_per_prompt() -> None:
    pictures = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    sheet = side_by_side({"base": pictures, "tuned": pictures}, ["a", "b" * 500, "🐈\nnew line"])
    assert sheet.width == 2 * 46 + 6
    assert sheet.height == 24 + 3 * 60 + 6


def test_the_command_paints_a_base_model(
    tiny_sdxl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\n a dog \n", encoding="utf-8")
    code = main(
        model=str(tiny_sdxl_folder),
        prompts=["a cow"],
        prompts_file=tmp_path / "prompts.txt",
        steps=2,
        output=tmp_path / "out",
        device="cpu",
    )
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0000_base.png", "0001_base.png", "0002_base.png", "comparison.png",
    ]  # fmt: skip
    assert "3 images per model" in capsys.readouterr().out


def test_the_command_needs_prompts_and_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prompts"):
        main(model="x", output=tmp_path)
    with pytest.raises(ConfigError, match="neither --model nor --run"):
        main(prompts=["a"], output=tmp_path)
    with pytest.raises(ConfigError, match="prompts-file"):
        main(prompts_file=tmp_path / "none.txt", output=tmp_path)

"""VideoCrafter2: official checkpoints, the frame rate in a bias, the fading clean sample, saving."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, UNet3DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from peft import PeftModel

from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import ConfigError
from mmalign.likelihood.scaled_schedule import ScaledVPSchedule, fading
from mmalign.rewards.checkpoints import read_state
from mmalign.testing.network_conformance import example_inputs, trained_by
from mmalign.testing.tiny_video.videocrafter import TINY_SETTINGS, write_tiny_videocrafter
from mmalign.testing.video_families import VideoFamilyConformance
from mmalign.train.config import AdapterConfig, ModelConfig
from mmalign.train.video_sections import VideoConfig
from mmalign.video.fading_sampler import FadingDdim
from mmalign.video.families.videocrafter import FAMILY
from mmalign.video.videocrafter_keys import fold_frame_rate, network_settings, to_diffusers, to_official

SIZE = {"num_frames": 3, "height": 16, "width": 32}
GOLDEN = json.loads((Path(__file__).parent / "videocrafter_network.json").read_text())


def load(source, *, media=None, dtype=torch.float32, **model):
    settings = ModelConfig(family="videocrafter", source=str(source), **model)
    section = VideoConfig(**{**SIZE, **(media or {})})
    return FAMILY.load(settings, section, device="cpu", dtype=dtype)


class OfficialSampler:
    """Text by our model's parts, then the official loop, written from its formulas."""

    def __init__(self, folder):
        self.model = load(folder)

    def __call__(self, *, prompt, num_inference_steps, guidance_scale, latents, **shape):
        model = self.model
        schedule = model.schedule
        kept, scale = schedule.alphas_cumprod.double(), schedule.scale.double()
        steps = np.arange(0, 1000, 1000 // num_inference_steps) + 1
        before = np.concatenate([[0], steps[:-1]])
        text = [model.prompt_conditioning([words]).rows(1) for words in ("", prompt)]
        generator = model_generator()
        x = latents
        for step, earlier in zip(steps[::-1], before[::-1], strict=True):
            with torch.no_grad():
                without, prompted = (model.denoise(x, torch.tensor([step]), rows) for rows in text)
            noise = without + guidance_scale * (prompted - without)
            clean = (x - (1 - kept[step]).sqrt() * noise) / kept[step].sqrt() / scale[step]
            spread = ((1 - kept[earlier]) / (1 - kept[step]) * (1 - kept[step] / kept[earlier])).sqrt()
            drawn = torch.randn(x.shape[1:], generator=generator)
            x = kept[earlier].sqrt() * scale[earlier] * clean
            x = (x + (1 - kept[earlier] - spread**2).sqrt() * noise + spread * drawn).float()
        frames = model.decode_clips(x)
        return type("Found", (), {"frames": frames})


def model_generator():
    from mmalign.seeding import generator_for

    return generator_for(3, "sample_path", 0, 0)


@pytest.mark.slow  # the quick tests hold the network of text_to_video to it, which is the same
class TestVideoCrafter(VideoFamilyConformance):
    """What every family does."""

    family = "videocrafter"
    write = staticmethod(write_tiny_videocrafter)
    media: ClassVar[Mapping[str, Any]] = {**SIZE, "fps": 8.0}

    def pipeline(self, folder):
        """The official sampler."""
        return OfficialSampler(folder)

    def adapted(self, pipeline, folder):
        """By peft."""
        return PeftModel.from_pretrained(pipeline.model.bare_network, str(folder))

    def plain_prediction(self, folder, dtype):
        """The network by the library, its weights from the file by name."""
        model = load(folder, dtype=dtype)
        whole = read_state(folder / "model.ckpt")
        prefix = "model.diffusion_model."
        official = {name.removeprefix(prefix): value for name, value in whole.items() if prefix in name}
        settings = network_settings(TINY_SETTINGS["unet_config"]["params"], where="test")
        network = UNet3DConditionModel(**settings).eval()
        network.load_state_dict(fold_frame_rate(to_diffusers(official, settings), official, 28.0))
        network = network.to(dtype)

        def predict(noised, timestep, prompt, picture):
            text = model.text_states([prompt])["text"]
            return network(noised[None].to(dtype), timestep, encoder_hidden_states=text).sample[0]

        return predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_videocrafter(tmp_path_factory.mktemp("videocrafter") / "tiny")


def filled(shapes):
    """Weights by rule: every tensor a cosine of its own speed."""
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        count = int(np.prod(shape))
        values = torch.arange(count, dtype=torch.float64) * (1 + 0.37 * number) + number
        found[name] = (GOLDEN["spread"] * torch.cos(values)).reshape(shape).float()
    return found


def test_the_network_is_the_official_one():
    """Numbers of the official code, run on weights and inputs that a rule makes; see the file."""
    settings = network_settings(GOLDEN["params"], where="test")
    official = filled(GOLDEN["shapes"])
    network = UNet3DConditionModel(**settings).eval()
    network.load_state_dict(fold_frame_rate(to_diffusers(official, settings), official, float(GOLDEN["fps"])))
    inputs = filled({"noised": GOLDEN["noised"], "text": GOLDEN["text"]})
    steps = torch.tensor(GOLDEN["steps"])
    with torch.no_grad():
        found = network(
            inputs["noised"] / GOLDEN["spread"],
            steps,
            encoder_hidden_states=inputs["text"] / GOLDEN["spread"],
        ).sample
    wanted = torch.tensor(GOLDEN["output"])
    torch.testing.assert_close(found.flatten()[:: GOLDEN["every"]], wanted, rtol=1e-3, atol=2e-5)
    assert wanted.std() > 0.01


def test_names_go_both_ways():
    settings = network_settings(GOLDEN["params"], where="test")
    official = filled(GOLDEN["shapes"])
    folded = fold_frame_rate(to_diffusers(official, settings), official, 12.5)
    again = to_official(fold_frame_rate(folded, official, 12.5, back=True), settings)
    assert again.keys() == {name for name in official if not name.startswith("fps_embedding")}
    for name, value in again.items():
        torch.testing.assert_close(value, official[name], rtol=1e-6, atol=1e-6)


def test_vae_and_text_encoder_are_those_of_the_librarys_converters(folder):
    model = load(folder)
    whole = read_state(folder / "model.ckpt")
    vae = convert_ldm_vae_checkpoint(dict(whole), dict(model.vae.config))
    assert vae.keys() == model.vae.state_dict().keys()
    for name, value in model.vae.state_dict().items():
        assert torch.equal(vae[name].flatten(), value.flatten()), name
    text = convert_open_clip_checkpoint(model.encoders[0], dict(whole))
    ours = model.encoders[0].state_dict()
    assert len(model.encoders[0].encoder.layers) == 2  # of three: the state before the last
    for name, value in ours.items():
        theirs = text.get(f"text_model.{name}", text.get(name))
        assert torch.equal(theirs, value), name


def test_texts_are_filled_up_with_zeros_as_openclip_does(folder):
    ids = load(folder).reader.tokens(["ab"])[0][0]
    assert (ids[4:] == 0).all()
    assert (ids[:4] != 0).all()


def test_the_frame_rate_that_is_told_is_the_runs(folder):
    inputs = example_inputs(load(folder))
    with torch.no_grad():
        found = [load(folder, **told).denoise(*inputs) for told in ({}, {"told_fps": 28}, {"told_fps": 8})]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-4)
    assert any("told 8" in note for note in load(folder, told_fps=8).notes)


def test_the_clean_sample_fades_and_need_not(folder, tmp_path):
    schedule = load(folder).schedule
    assert isinstance(schedule, ScaledVPSchedule)
    assert torch.equal(schedule.scale, fading(1000, end=0.7, over=400))
    plain = shutil.copytree(folder, tmp_path / "plain")
    settings = {"model": {"params": {**TINY_SETTINGS, "use_scale": False}}}
    (plain / "config.yaml").write_text(yaml.safe_dump(settings))
    model = load(plain)
    assert not isinstance(model.schedule, ScaledVPSchedule)
    assert isinstance(model.sampler("ddim"), DDIMScheduler)


def test_without_a_file_of_settings_they_are_those_of_videocrafter2(folder, tmp_path):
    lone = tmp_path / "lone.ckpt"
    shutil.copy(folder / "model.ckpt", lone)
    with pytest.raises(ConfigError, match=r"lone\.ckpt: the weights do not fit.* those of VideoCrafter2"):
        load(lone, config_source=str(folder))


def test_a_perfect_network_arrives_at_the_clean_sample():
    inner = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    schedule = ScaledVPSchedule(inner.alphas_cumprod, fading(1000, end=0.7, over=400))
    sampler = FadingDdim(inner, schedule.scale, eta=0.0)
    sampler.set_timesteps(5)
    clean = initial_noise((2, 3), seed=0, prompt=0)
    noise = initial_noise((2, 3), seed=0, prompt=1)
    first = sampler.timesteps[:1]
    x = schedule.add_noise(clean, noise, first.expand(2))
    for step in sampler.timesteps:
        x, seen = sampler.step(noise, step, x)
        torch.testing.assert_close(seen, clean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        x, schedule.add_noise(clean, noise, torch.tensor([0, 0])), rtol=1e-4, atol=1e-4
    )


def test_samplers_that_know_nothing_of_the_fading_are_refused(folder):
    with pytest.raises(ConfigError, match=r"ddim for VideoCrafter2.*fades"):
        load(folder).sampler("ddim")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"use_relative_position": True}, "relative positions in its temporal attention"),
        ({"use_image_attention": True}, "cross-attention to image tokens"),
        ({"temporal_conv": False}, "no temporal convolutions"),
        ({"addition_attention": False}, "no temporal attention before its first block"),
    ],
)
def test_networks_that_diffusers_has_not_are_refused(folder, tmp_path, changed, said):
    other = shutil.copytree(folder, tmp_path / "other")
    params = {**TINY_SETTINGS["unet_config"]["params"], **changed}
    settings = {"model": {"params": {**TINY_SETTINGS, "unet_config": {"params": params}}}}
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=f"{said}.*as VideoCrafter2 has"):
        load(other)


def test_folders_without_weights_and_files_without_a_part_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"a folder without weights.*model\.safetensors or model\.ckpt"):
        load(tmp_path)
    other = shutil.copytree(folder, tmp_path / "bare")
    whole = {
        name: value for name, value in read_state(folder / "model.ckpt").items() if "cond_stage" not in name
    }
    torch.save({"state_dict": whole}, other / "model.ckpt")
    with pytest.raises(ConfigError, match=r"a checkpoint without cond_stage_model\.model\.\*"):
        _ = load(other).encoders
    (other / "another.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match="2 YAML files"):
        load(other)


def test_saved_checkpoints_are_official_ones(folder, tmp_path):
    model = load(folder, told_fps=12)
    trained_by(model, AdapterConfig(rank=2, alpha=6.0))
    saved = model.save_official(tmp_path / "official")
    before, after = read_state(folder / "model.ckpt"), read_state(saved / "model.ckpt")
    assert before.keys() == after.keys()
    moved = {name for name, value in after.items() if not torch.allclose(value, before[name], atol=1e-6)}
    assert moved
    assert all(name.startswith("model.diffusion_model.") and ".to_" in name for name in moved)
    inputs = example_inputs(model)
    with torch.no_grad():
        wanted = model.denoise(*inputs)
        torch.testing.assert_close(load(saved, told_fps=12).denoise(*inputs), wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(load(saved, told_fps=30).denoise(*inputs), wanted, atol=1e-4)

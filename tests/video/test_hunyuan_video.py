"""HunyuanVideo against diffusers' pipeline: text, latents, loss, samples, adapters, what it is told."""

import json
import shutil
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline
from transformers import PreTrainedTokenizerFast

from mmalign.batch import Batch, Labels, RowKeys
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import ConfigError
from mmalign.likelihood import Elbo, LogitNormalTimesteps
from mmalign.testing.network_conformance import example_inputs, trained_by
from mmalign.testing.tiny_video.hunyuan_video import write_tiny_hunyuan_video
from mmalign.testing.video_families import VideoFamilyConformance
from mmalign.train.config import AdapterConfig, ModelConfig
from mmalign.train.video_sections import VideoConfig
from mmalign.video.families.hunyuan_video import FAMILY

PROMPTS = ["a dog", "rain {falls} on\n\na roof"]
SIZE = {"num_frames": 9, "height": 32, "width": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_hunyuan_video(tmp_path_factory.mktemp("hunyuan") / "tiny")


@pytest.fixture(scope="module")
def load(folder):
    def loaded(source=folder, *, dtype=torch.float32, video=None, **model):
        settings = ModelConfig(family="hunyuan_video", source=str(source), **model)
        return FAMILY.load(settings, VideoConfig(**{**SIZE, **(video or {})}), device="cpu", dtype=dtype)

    return loaded


@pytest.fixture(scope="module")
def model(load):
    """Tests that change it load their own."""
    return load()


def opened_pipeline(folder, dtype=torch.float32):
    # The class that the folder names loses blanks in transformers 5.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / "tokenizer"))
    found = HunyuanVideoPipeline.from_pretrained(str(folder), tokenizer=tokenizer, dtype=dtype)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def pipeline(folder):
    def opened(source=folder, dtype=torch.float32):
        return opened_pipeline(source, dtype)

    return opened


def pixels(seed=0, num_frames=9, height=32, width=48):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_frames, 3, height, width, generator=generator) * 2 - 1


def batch_of(model, clips):
    """Two prompts with two clips each, at the posterior's mean."""
    clean = model.codec.scale(model.moments(clips).mean).unflatten(0, (2, 2))
    return Batch(
        clean=clean,
        conditioning=model.prompt_conditioning(PROMPTS),
        labels=Labels.pairs(2),
        weight=torch.ones(2),
        valid=torch.ones(2, dtype=torch.bool),
        keys=RowKeys(torch.tensor([3, 4]), torch.zeros(2), 2),
    )


def test_shapes_are_those_of_its_clips(model):
    assert model.latent_shape == (4, 3, 4, 6)
    assert model.frame_grid == (range(1), range(1, 5), range(5, 9))
    assert (model.prediction, model.schedule.shift) == ("flow", 7.0)
    assert (model.sampler_defaults, model.default_size) == ((50, 6.0), (720, 1280))


def test_text_states_are_the_pipelines(model, pipeline):
    text, pooled, mask = pipeline().encode_prompt(PROMPTS)
    found = model.text_states(PROMPTS)
    assert found["text"].shape == (2, 256, 20)
    torch.testing.assert_close(found["text"], text, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-6, atol=1e-6)
    assert torch.equal(found["text_mask"], mask.bool())


def test_blanks_and_line_ends_of_prompts_are_tokens_whatever_class_the_folder_names(load, folder, tmp_path):
    model = load()
    ids, mask, *_ = model.reader.tokens(["a dog", "a\n dog"])
    tokens = [
        model.tokenizers[0].convert_ids_to_tokens(row[keep.bool()][95:])
        for row, keep in zip(ids, mask, strict=True)
    ]
    assert tokens[0] == ["a", "Ġ", "d", "o", "g", "<|eot_id|>"]
    assert tokens[1] == ["a", "Ċ", "Ġ", "d", "o", "g", "<|eot_id|>"]
    index = json.loads((folder / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "LlamaTokenizerFast"]
    # A folder that fills up on the left is cut off on the left all the same.
    other = shutil.copytree(folder, tmp_path / "left")
    settings = json.loads((other / "tokenizer" / "tokenizer_config.json").read_text())
    settings["padding_side"] = "left"
    (other / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    assert torch.equal(load(other).reader.tokens(["a dog"])[0], ids[:1])


def test_long_prompts_are_cut_to_the_length_of_the_run(load):
    model = load(text_length=7)
    states = model.text_states(["a prompt of many more letters"])
    assert states["text"].shape == (1, 7, 20)
    assert states["text_mask"].all()


@pytest.mark.parametrize(
    ("num_frames", "tiling"),
    [(9, False), (9, True), (21, False), pytest.param(21, True, marks=pytest.mark.slow)],
)
def test_latents_and_clips_are_those_of_the_pipelines_vae(load, pipeline, num_frames, tiling):
    """21 frames are more than the VAE takes at once."""
    model = load(video={"num_frames": num_frames, "vae_tiling": tiling})
    whole = pipeline()
    if tiling:
        whole.vae.enable_tiling()
        for vae in (model.vae, whole.vae):
            vae.tile_sample_min_height = vae.tile_sample_min_width = 32
            vae.tile_sample_stride_height = vae.tile_sample_stride_width = 16
    clip = pixels(num_frames=num_frames)
    moments = model.moments(clip[None])
    with torch.no_grad():
        wanted = whole.vae.encode(clip.transpose(0, 1)[None]).latent_dist
        torch.testing.assert_close(moments.mean, wanted.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments.std, wanted.std, rtol=1e-5, atol=1e-6)
        latents = model.codec.scale(moments.mean)
        torch.testing.assert_close(latents, wanted.mean * 0.476986, rtol=1e-5, atol=1e-6)
        decoded = whole.vae.decode(latents / 0.476986).sample
        shown = whole.video_processor.postprocess_video(decoded, output_type="pt")
    torch.testing.assert_close(model.decode_clips(latents), shown, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_errors_are_those_of_the_librarys_parts(load, pipeline, dtype, close):
    model, whole = load(dtype=dtype), pipeline(dtype=dtype)
    clips = torch.stack([pixels(seed) for seed in range(4)]).to(dtype)
    batch = batch_of(model, clips)
    elbo = Elbo(model.schedule, model.prediction, LogitNormalTimesteps(mean=0.0, std=1.0))
    draw = elbo.draw(batch)
    with torch.no_grad():
        found = elbo.evaluate(model.denoise, batch, draw).error
        clean = whole.vae.encode(clips.transpose(1, 2)).latent_dist.mean * whole.vae.config.scaling_factor
        text, pooled, mask = whole.encode_prompt([prompt for prompt in PROMPTS for _ in range(2)])
        sigma, noise = draw.timestep.flatten().to(dtype), draw.noise.flatten(0, 1).to(dtype)
        level = sigma.view(-1, 1, 1, 1, 1)
        prediction = whole.transformer(
            (1 - level) * clean + level * noise,
            timestep=(1000 * draw.timestep.flatten()),
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            pooled_projections=pooled,
            guidance=torch.full((4,), 6000.0, dtype=dtype),
        ).sample
        wanted = (prediction - (noise - clean)).square().flatten(1).mean(1)
    torch.testing.assert_close(found.flatten(), wanted.to(found), rtol=close, atol=0)


def test_training_levels_are_shifted_as_the_schedulers(model):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(model.scheduler_config)
    scheduler.set_timesteps(sigmas=np.array([0.9, 0.5, 0.1]))
    found = model.schedule.timestep_at(1 - torch.tensor([0.9, 0.5, 0.1]))
    torch.testing.assert_close(found, scheduler.sigmas[:3], rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 6.0])
def test_samples_are_the_pipelines_and_leave_training_what_it_was_told(load, pipeline, scale):
    model = load(guidance=3.0)
    noise = initial_noise(model.latent_shape, seed=5, prompt=0)[None]
    wanted = pipeline()(
        "a dog", **SIZE, num_inference_steps=3, guidance_scale=scale, latents=noise, output_type="pt"
    ).frames[0]
    clip = model.sample(["a dog"], seed=5, num_steps=3, guidance_scale=scale)[0]
    torch.testing.assert_close(clip.frames / 255, wanted, rtol=0, atol=0.6 / 255)
    told = model.network_arguments({**model.text_states(["a"])})["guidance"]
    assert told.tolist() == [3000.0]


def test_the_network_is_told_one_guidance_which_the_run_sets(load):
    inputs = example_inputs(load())
    with torch.no_grad():
        default, same, other = (
            load(**told).denoise(*inputs) for told in ({}, {"guidance": 6.0}, {"guidance": 1.0})
        )
    assert torch.equal(default, same)
    assert not torch.allclose(default, other, atol=1e-4)


def test_a_network_without_guidance_takes_none(load, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "plain")
    path = other / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guidance_embeds": False}))
    assert load(other).network_arguments(load(other).text_states(["a"]))["guidance"] is None
    with pytest.raises(ConfigError, match=r"model\.guidance: got 2\.0, .* no guidance input"):
        load(other, guidance=2.0)


def test_checkpoints_that_go_on_from_pictures_are_refused(load, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "pictures")
    path = other / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_condition_type": "latent_concat"}))
    with pytest.raises(ConfigError, match=r"pictures by latent_concat.*HunyuanVideo from text"):
        load(other)


def test_kernels_that_know_no_masks_are_refused(load, monkeypatch):
    monkeypatch.setattr("mmalign.diffusion.attention._require_flash", lambda *_: None)
    with pytest.raises(ConfigError, match=r"model\.attention: got .*flash.*attention is masked"):
        load(attention="flash")


def test_adapters_go_on_the_blocks_and_not_on_the_refiner_of_text(load):
    names = {name.rsplit(".lora_", 1)[0] for name in trained_by(load(), AdapterConfig(rank=2)).parameters}
    attention = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    double = {f"transformer_blocks.0.attn.{name}" for name in attention}
    single = {f"single_transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")}
    assert names == double | single | {
        f"single_transformer_blocks.0.{name}" for name in ("proj_mlp", "proj_out")
    }


def test_saved_folders_are_pipelines(load, pipeline, tmp_path):
    model = load()
    trained_by(model, AdapterConfig(rank=2, alpha=6.0))
    saved = model.save_model(tmp_path / "whole")
    inputs = example_inputs(model)
    with torch.no_grad():
        wanted = model.denoise(*inputs)
        torch.testing.assert_close(load(saved).denoise(*inputs), wanted, rtol=1e-4, atol=1e-5)
        found = model.denoise(*inputs, network=pipeline(saved).transformer)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(load(saved).reader.tokens(["a dog"])[0], model.reader.tokens(["a dog"])[0])


def test_text_that_is_only_padding_changes_nothing(model):
    """States are filled up with zeros where the pipeline has those of padding."""
    inputs = example_inputs(model, num_rows=1)
    rows = model.prompt_conditioning(["a dog"]).rows(1)
    states = model.text_states(["a dog"])
    assert not torch.equal(rows["text"], states["text"])
    with torch.no_grad():
        short, full = (model.denoise(*inputs[:2], given) for given in (rows, states))
    torch.testing.assert_close(short, full, rtol=1e-6, atol=1e-6)


class TestFamily(VideoFamilyConformance):
    """What every family does."""

    family = "hunyuan_video"
    write = staticmethod(write_tiny_hunyuan_video)
    media: ClassVar = {**SIZE, "fps": 8.0}
    guidance: ClassVar[float] = 4.0

    def pipeline(self, folder):
        """With the tokens of its file."""
        return opened_pipeline(folder)

    def plain_prediction(self, folder, dtype):
        """Text and network by the pipeline's own methods."""
        whole = opened_pipeline(folder, dtype)

        def predict(noised, timestep, prompt, picture):
            text, pooled, mask = whole.encode_prompt(prompt)
            return whole.transformer(
                noised[None].to(dtype),
                timestep=1000 * timestep.reshape(1),
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                pooled_projections=pooled,
                guidance=torch.full((1,), 6000.0, dtype=dtype),
            ).sample[0]

        return predict

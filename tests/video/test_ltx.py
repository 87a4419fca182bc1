"""LTX-Video against the conformance suite and diffusers' own parts and pipelines, release by release."""

import json
import math
import shutil
from typing import ClassVar

import pytest
import torch
from diffusers import LTXConditionPipeline, LTXImageToVideoPipeline, LTXPipeline
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

from mmalign import registry
from mmalign.batch import Batch, Labels
from mmalign.diffusion.sampling import initial_noise
from mmalign.likelihood import Elbo, UniformTimesteps
from mmalign.seeding import generator_for
from mmalign.testing.network_conformance import example_inputs, keys_of
from mmalign.testing.tiny_video.ltx import LTX_FRAMES, LTX_SIZE, write_tiny_ltx
from mmalign.testing.video_families import VideoFamilyConformance
from mmalign.train.config import ModelConfig
from mmalign.train.video_sections import VideoConfig
from mmalign.video.families.ltx import DECODE_NOISE, DECODE_TIME

VERSIONS = ("0.9.0", "0.9.1", "0.9.5")
FEW = ["0.9.0", pytest.param("0.9.1", marks=pytest.mark.slow), "0.9.5"]
SCALES = [pytest.param(1.0, marks=pytest.mark.slow), 3.0]
CLIP = {"num_frames": LTX_FRAMES, "height": LTX_SIZE[0], "width": LTX_SIZE[1]}
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("ltx")
    return {version: write_tiny_ltx(place / version, version=version) for version in VERSIONS}


def loaded(folder, *, dtype=torch.float32, model=None, **media):
    settings = ModelConfig(family="ltx", source=str(folder), **(model or {}))
    family = registry.find("families", "ltx")
    return family.load(settings, VideoConfig(**{**CLIP, **media}), device="cpu", dtype=dtype)


def pipeline_of(folder, kind=None, dtype=torch.float32):
    kind = kind or (LTXConditionPipeline if "0.9.5" in str(folder) else LTXPipeline)
    found = kind.from_pretrained(str(folder), dtype=dtype)
    found.set_progress_bar_config(disable=True)
    return found


def random_clips(*leading, frames=LTX_FRAMES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*leading, frames, 3, *LTX_SIZE), generator=generator, dtype=torch.uint8)


def encoded(model, prompts, keys, *, seed=0):
    """Latents and conditioning of random pairs."""
    clips = random_clips(len(prompts), 2, frames=LTX_FRAMES + model.conditioned, seed=seed)
    examples = [
        {"clips": pair, "geometry": torch.zeros(2, 6, dtype=torch.int64), "prompts": [prompt], "own": False}
        for pair, prompt in zip(clips, prompts, strict=True)
    ]
    return clips, *model.encode(model.collate(examples), keys_of(*keys))


def positions(pipeline, frames, height, width):
    """How the release's pipeline tells where tokens are, at 25 frames per second."""
    if not isinstance(pipeline, LTXConditionPipeline):
        return {
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": (8 / 25, 32, 32),
        }
    ids = pipeline._scale_video_ids(pipeline._prepare_video_ids(1, frames, height, width)).float()
    ids[:, 0] = ids[:, 0] * (1.0 / 25.0)
    return {"video_coords": ids}


def plain_velocity(pipeline, noised, time, prompt):
    """The network's velocity of one clip by the library's parts; `time` of the clip, or of each token."""
    states, mask, _, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    output = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noised[None]).to(states.dtype),
        encoder_hidden_states=states,
        timestep=time[None],
        encoder_attention_mask=mask,
        return_dict=False,
        **positions(pipeline, *noised.shape[1:]),
    )[0]
    return pipeline._unpack_latents(output, *noised.shape[1:])[0]


def batch_of(clean, conditioning, *keys):
    return Batch(
        clean=clean,
        conditioning=conditioning,
        labels=Labels.pairs(len(keys)),
        weight=torch.ones(len(keys)),
        valid=torch.ones(len(keys), dtype=torch.bool),
        keys=keys_of(*keys),
    )


class TestLtx(VideoFamilyConformance):
    """The first release, from text."""

    family = "ltx"
    write = staticmethod(write_tiny_ltx)
    media: ClassVar = {**CLIP, "fps": 25.0}

    def pipeline(self, folder):
        return pipeline_of(folder)

    def pipeline_latents(self, noise):
        return LTXPipeline._pack_latents(noise)

    def plain_prediction(self, folder, dtype):
        pipeline = pipeline_of(folder, dtype=dtype)

        def predict(noised, t, prompt, picture):
            return plain_velocity(pipeline, noised, t * 1000, prompt)

        return predict


def write_newer(folder):
    return write_tiny_ltx(folder / "0.9.5", version="0.9.5")


@pytest.mark.slow
class TestLtx095OfPictures(TestLtx):
    """The release that takes conditions, going on from a picture."""

    write = staticmethod(write_newer)
    media: ClassVar = {**TestLtx.media, "conditioning": "image"}

    def plain_prediction(self, folder, dtype):
        pipeline = pipeline_of(folder, dtype=dtype)
        vae = pipeline.vae

        def predict(noised, t, prompt, picture):
            pixels = picture.to(dtype)[None, :, None] / 127.5 - 1
            given = pipeline._normalize_latents(
                vae.encode(pixels).latent_dist.mean, vae.latents_mean, vae.latents_std
            )[0]
            time = (1000 * t).repeat(noised[0].numel())
            time[: noised[0, 0].numel()] = 0
            shown = torch.cat([given, noised[:, 1:]], dim=1)
            free = plain_velocity(pipeline, shown, time, prompt)[:, 1:]
            return torch.cat([(noised[:, :1] - given) / t, free], dim=1)

        return predict

    def test_half_precision_networks_take_float32_latents(self, folder):
        """What leads to the picture stays in float32."""
        model = self.loaded(folder, dtype=torch.bfloat16)
        noised, level, rows = example_inputs(model)
        prediction = model.denoise(noised, level, rows)
        known = (noised[:, :, :1] - rows["image"]) / (level / 1000).view(-1, 1, 1, 1, 1)
        assert torch.equal(prediction[:, :, :1], known)
        assert torch.equal(prediction[:, :, 1:], prediction[:, :, 1:].bfloat16().float())
        assert torch.isfinite(prediction).all()

    def test_sampling_is_that_of_the_librarys_pipeline(self, folder, model):
        """The pipeline takes no latents but those it draws: see the tests of single releases."""
        assert model.conditioned


@pytest.mark.parametrize("version", FEW)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_errors_equal_those_of_the_librarys_parts(folders, version, dtype, close):
    model, pipeline = loaded(folders[version], dtype=dtype), pipeline_of(folders[version], dtype=dtype)
    prompts = (PROMPT, "zwei Würfel")
    _, clean, conditioning = encoded(model, prompts, (3, 4))
    batch = batch_of(clean, conditioning, 3, 4)
    elbo = Elbo(model.schedule, model.prediction, UniformTimesteps())
    draw = elbo.draw(batch)
    with torch.no_grad():
        found = elbo.evaluate(model.denoise, batch, draw).error
        for number, prompt in enumerate(prompts):
            for at in ((number, 0), (number, 1)):
                velocity = plain_velocity(pipeline, draw.noised[at], draw.timestep[at] * 1000, prompt)
                wanted = (velocity.to(draw.target) - draw.target[at]).square().mean()
                torch.testing.assert_close(found[at], wanted, rtol=close, atol=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_latents_are_normalised_as_the_pipeline_does(folders, version):
    model, pipeline = loaded(folders[version], posterior="mean"), pipeline_of(folders[version])
    clips, clean, _ = encoded(model, (PROMPT,), (3,))
    pixels = (clips[0, 1:].float() / 127.5 - 1).transpose(1, 2)
    with torch.no_grad():
        mean = pipeline.vae.encode(pixels).latent_dist.mean
    wanted = pipeline._normalize_latents(mean, pipeline.vae.latents_mean, pipeline.vae.latents_std)
    torch.testing.assert_close(clean[:, 1], wanted)
    assert clean[:, 1].shape[1:] == model.latent_shape == (8, 3, 2, 3)


def test_large_clips_are_encoded_and_decoded_in_the_librarys_tiles(folders):
    model, pipeline = loaded(folders["0.9.0"], vae_tiling=True), pipeline_of(folders["0.9.0"])
    tile = {"tile_sample_min_height": 64, "tile_sample_min_width": 64}
    stride = {"tile_sample_stride_height": 32, "tile_sample_stride_width": 32}
    for vae in (model.vae, pipeline.vae):
        vae.enable_tiling(**tile, **stride)
    clip = random_clips(1)
    latents = model.codec.scale(model.moments(clip).mean)
    pixels = (clip.float() / 127.5 - 1).transpose(1, 2)
    with torch.no_grad():
        wanted = pipeline.vae.encode(pixels).latent_dist.mean
        torch.testing.assert_close(model.codec.unscale(latents), wanted, rtol=1e-5, atol=1e-6)
        shown = (pipeline.vae.decode(wanted).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode_clips(latents), shown, rtol=1e-4, atol=1e-5)
    whole = loaded(folders["0.9.0"]).moments(clip).mean
    assert not torch.allclose(whole, wanted, atol=1e-3)


@pytest.mark.parametrize("version", FEW)
@pytest.mark.parametrize("scale", SCALES)
def test_samples_equal_those_of_the_pipeline(folders, version, scale):
    model, pipeline = loaded(folders[version]), pipeline_of(folders[version])
    wanted = plain_latents(pipeline, model, guidance_scale=scale)
    drawn = torch.randn(wanted.shape, generator=generator_for(0, "ltx_decode"))
    with torch.no_grad():
        wanted = decoded(pipeline, wanted, noise=drawn)
    got = model.sample([PROMPT], seed=5, num_steps=4, guidance_scale=scale)[0]
    assert got.fps == 25.0
    torch.testing.assert_close(got.frames / 255, wanted, rtol=0, atol=1 / 255)
    again = model.sample(["another", PROMPT], seed=5, num_steps=4, guidance_scale=scale, keys=[1, 0])[1]
    assert (again.frames.int() - got.frames.int()).abs().max() <= 1


def plain_latents(pipeline, model, **settings):
    """Scaled latents that the pipeline makes of our first noise: [1, channel, frame, height, width]."""
    noise = initial_noise(model.latent_shape, seed=5, prompt=0)[None]
    if isinstance(pipeline, LTXConditionPipeline | LTXImageToVideoPipeline):
        given = {"generator": [generator_for(5, "sample", 0, 0)]}  # it draws the same noise of it
    else:
        given = {"latents": pipeline._pack_latents(noise)}
    found = pipeline(
        prompt=PROMPT,
        num_frames=LTX_FRAMES,
        height=LTX_SIZE[0],
        width=LTX_SIZE[1],
        num_inference_steps=4,
        output_type="latent",
        **given,
        **settings,
    ).frames
    return found if found.ndim == 5 else pipeline._unpack_latents(found, *model.latent_shape[1:])


def decoded(pipeline, latents, *, noise):
    """Frames in [0, 1] of scaled latents, as the pipelines decode."""
    vae = pipeline.vae
    plain = pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std)
    if not vae.config.timestep_conditioning:
        clip = vae.decode(plain).sample
    else:
        mixed = (1 - DECODE_NOISE) * plain + DECODE_NOISE * noise
        clip = vae.decode(mixed, torch.tensor([DECODE_TIME])).sample
    return (clip[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)


def test_decoding_with_leftover_noise_is_that_of_the_pipeline(folders):
    """From the prompt to the pictures, by the pipeline's own call."""
    model, pipeline = loaded(folders["0.9.1"]), pipeline_of(folders["0.9.1"])
    noise = initial_noise(model.latent_shape, seed=5, prompt=0)[None]
    wanted = pipeline(
        prompt=PROMPT,
        num_frames=LTX_FRAMES,
        height=LTX_SIZE[0],
        width=LTX_SIZE[1],
        num_inference_steps=2,
        latents=pipeline._pack_latents(noise),
        generator=generator_for(0, "ltx_decode"),
        decode_timestep=DECODE_TIME,
        decode_noise_scale=DECODE_NOISE,
        output_type="pt",
    ).frames[0]
    got = model.sample([PROMPT], seed=5, num_steps=2, guidance_scale=3.0)[0].frames
    torch.testing.assert_close(got / 255, wanted, rtol=0, atol=1 / 255)


class Mean:
    """A posterior of which only the mean is drawn."""

    def __init__(self, inner):
        self.mean = inner.mean

    def sample(self, generator=None):
        return self.mean


@pytest.mark.parametrize("version", FEW)
@pytest.mark.parametrize("scale", SCALES)
def test_clips_that_go_on_from_a_picture_equal_those_of_the_pipeline(folders, version, scale, monkeypatch):
    model = loaded(folders[version], conditioning="image")
    kind = None if version == "0.9.5" else LTXImageToVideoPipeline
    pipeline = pipeline_of(folders[version], kind)
    encode = pipeline.vae.encode
    monkeypatch.setattr(
        pipeline.vae, "encode", lambda x: type("Output", (), {"latent_dist": Mean(encode(x).latent_dist)})
    )
    picture = random_clips(frames=1, seed=7)[0]
    more = {"image_cond_noise_scale": 0.0} if version == "0.9.5" else {}
    image = (picture.float() / 255)[None]
    wanted = plain_latents(pipeline, model, image=image, guidance_scale=scale, **more)
    with torch.no_grad():
        wanted = decoded(
            pipeline,
            wanted,
            noise=torch.randn(1, *model.latent_shape, generator=generator_for(0, "ltx_decode")),
        )
    settings = {"seed": 5, "num_steps": 4, "guidance_scale": scale}
    got = model.sample([PROMPT], images=[picture], **settings)[0].frames / 255
    torch.testing.assert_close(got, wanted, rtol=0, atol=1.01 / 255)
    other = model.sample([PROMPT], images=[255 - picture], **settings)[0].frames / 255
    assert (other - got).abs().mean() > 0.02


@pytest.mark.parametrize("version", ["0.9.0", "0.9.5"])
def test_the_frame_that_is_given_is_clean_to_the_network_and_has_no_error(folders, version):
    model = loaded(folders[version], dtype=torch.float64, conditioning="image")
    pipeline = pipeline_of(folders[version], dtype=torch.float64)
    clips, clean, conditioning = encoded(model, (PROMPT, "b"), (3, 4))
    with torch.no_grad():
        first = (clips[0, 0, :1].double() / 127.5 - 1).transpose(0, 1)[None]
        mean = pipeline.vae.encode(first).latent_dist.mean
    picture = pipeline._normalize_latents(mean, pipeline.vae.latents_mean, pipeline.vae.latents_std)
    torch.testing.assert_close(clean[0, 0, :, :1], picture[0])
    batch = batch_of(clean, conditioning, 3, 4)
    elbo = Elbo(model.schedule, model.prediction, UniformTimesteps())
    draw = elbo.draw(batch)
    with torch.no_grad():
        found = elbo.evaluate(model.denoise, batch, draw).error[0, 0]
        shown = torch.cat([picture[0], draw.noised[0, 0][:, 1:]], dim=1)
        time = (1000 * draw.timestep[0, 0]).repeat(18)
        time[:6] = 0
        velocity = plain_velocity(pipeline, shown, time, PROMPT)
    error = (velocity - draw.target[0, 0])[:, 1:].square().sum() / clean[0, 0].numel()
    torch.testing.assert_close(found, error, rtol=1e-9, atol=0)


def test_training_levels_are_shifted_by_the_number_of_tokens(folders):
    for version, height, width in (("0.9.0", 64, 96), ("0.9.1", 128, 96), ("0.9.5", 64, 96)):
        model = loaded(folders[version], height=height, width=width)
        tokens = 3 * (height // 32) * (width // 32)
        shift = math.exp(calculate_shift(tokens, 1024, 4096, 0.95, 2.05))
        assert model.schedule.shift == pytest.approx(shift)
    assert model.suggested_timesteps["timesteps"] == "logit_normal"


def test_a_shift_of_ones_own_is_refused(folders):
    for version in ("0.9.0", "0.9.5"):
        with pytest.raises(ValueError, match=r"video\.flow_shift: got 3\.0, expected nothing"):
            loaded(folders[version], flow_shift=3.0)


def test_the_network_is_told_the_frame_rate(folders):
    for version in ("0.9.0", "0.9.5"):
        slow, usual = (loaded(folders[version], fps=fps) for fps in (8.0, None))
        inputs = example_inputs(usual)
        with torch.no_grad():
            assert not torch.allclose(slow.denoise(*inputs), usual.denoise(*inputs), atol=1e-5)


def test_padding_of_texts_is_not_seen_by_the_network(folders):
    model = loaded(folders["0.9.0"])
    noised, level, _ = example_inputs(model, num_rows=1)
    states = model.prompt_conditioning([PROMPT]).rows(1)
    length = int(states["text_mask"].sum())
    changed = {**states, "text": states["text"].clone()}
    changed["text"][:, length:] += 1.0
    with torch.no_grad():
        torch.testing.assert_close(
            model.denoise(noised, level, changed), model.denoise(noised, level, states)
        )
    assert states["text"].shape[1] == 128


def test_saved_folders_are_pipelines(folders, tmp_path):
    model = loaded(folders["0.9.5"])
    saved = model.save_model(tmp_path / "0.9.5")
    again = loaded(saved)
    assert type(pipeline_of(saved)) is LTXConditionPipeline
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.decode_clips(latents), model.decode_clips(latents))


def test_transformers_of_other_latents_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["0.9.0"], tmp_path / "0.9.0")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "patch_size": 2}))
    with pytest.raises(
        ValueError, match=r"got 'a transformer of 8 channels, patches of 2', expected 8 channels"
    ):
        loaded(folder)

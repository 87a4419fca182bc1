"""CogVideoX against the conformance suite, diffusers' own parts and pipelines, and the official loss."""

import json
import shutil
from typing import Any, ClassVar

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXImageToVideoPipeline, CogVideoXPipeline

from mmalign import registry
from mmalign.diffusion.sampling import initial_noise
from mmalign.seeding import generator_for, row_normal
from mmalign.testing.network_conformance import example_inputs, keys_of
from mmalign.testing.tiny_video.cogvideox import COGVIDEOX_FRAMES, COGVIDEOX_SIZE, write_tiny_cogvideox
from mmalign.testing.video_families import VideoFamilyConformance
from mmalign.train.config import ModelConfig
from mmalign.train.video_sections import VideoConfig

PROMPT = "a red circle"
SIZES = {"height": COGVIDEOX_SIZE[0], "width": COGVIDEOX_SIZE[1]}


def pipeline_of(folder, dtype=torch.float32):
    index = json.loads((folder / "model_index.json").read_text())
    kinds = {kind.__name__: kind for kind in (CogVideoXPipeline, CogVideoXImageToVideoPipeline)}
    found = kinds[index["_class_name"]].from_pretrained(str(folder), dtype=dtype)
    found.set_progress_bar_config(disable=True)
    return found


class Mean:
    """A posterior of which only the mean is drawn."""

    def __init__(self, inner):
        self.mean = inner.mean

    def sample(self, generator=None):
        return self.mean


def at_the_mean(pipeline, monkeypatch):
    """Pictures are encoded as the posterior's mean, as ours are."""
    encode = pipeline.vae.encode
    monkeypatch.setattr(
        pipeline.vae, "encode", lambda x: type("Output", (), {"latent_dist": Mean(encode(x).latent_dist)})
    )
    return pipeline


def plain_states(pipeline, prompt):
    length = pipeline.transformer.config.max_text_seq_length
    return pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=length)[0]


def plain_velocity(pipeline, noised, time, prompt, pixels=None):
    """v of one clip [channel, frame, height, width] by the library's parts; pixels [3, height, width]."""
    config = pipeline.transformer.config
    states = plain_states(pipeline, prompt)
    latents = noised.transpose(0, 1)[None].to(states.dtype)
    frames, _, height, width = latents.shape[1:]
    rotary = None
    if config.use_rotary_positional_embeddings:
        rotary = pipeline._prepare_rotary_positional_embeddings(height * 8, width * 8, frames, "cpu")
    more = {}
    if pixels is not None:
        _, image = pipeline.prepare_latents(
            pixels[None].to(states.dtype),
            1,
            latents.shape[2],
            4 * frames - 3,
            height * 8,
            width * 8,
            states.dtype,
            "cpu",
            None,
            latents,
        )
        latents = torch.cat([latents, image], dim=2)
        more["ofs"] = latents.new_full((1,), 2.0) if config.ofs_embed_dim else None
    output = pipeline.transformer(
        hidden_states=latents,
        encoder_hidden_states=states,
        timestep=time.reshape(1),
        image_rotary_emb=rotary,
        return_dict=False,
        **more,
    )[0]
    return output[0].transpose(0, 1)


class CogVideoXConformance(VideoFamilyConformance):
    """What the releases share."""

    family = "cogvideox"
    tokens = 13
    media: ClassVar = {"num_frames": COGVIDEOX_FRAMES, **SIZES, "fps": 8.0}

    def pipeline(self, folder):
        return pipeline_of(folder)

    def pipeline_latents(self, noise):
        return noise.transpose(1, 2)

    def pipeline_options(self, picture):
        generator = [generator_for(3, "sample_path", 0, 0)]
        return {"max_sequence_length": self.tokens, "generator": generator}

    def plain_prediction(self, folder, dtype):
        pipeline = pipeline_of(folder, dtype)

        def predict(noised, t, prompt, picture):
            return plain_velocity(pipeline, noised, t, prompt)

        return predict


class TestCogVideoX2B(CogVideoXConformance):
    write = staticmethod(write_tiny_cogvideox)


def write_5b(folder):
    return write_tiny_cogvideox(folder, version="5b", solver=True)


@pytest.mark.slow
class TestCogVideoX5B(CogVideoXConformance):
    """Rotary positions; the sampler of second order."""

    write = staticmethod(write_5b)


def write_newer(folder):
    return write_tiny_cogvideox(folder, version="1.5")


class Newer(CogVideoXConformance):
    """Two latent frames make a token, so that there is one more of them than the VAE gives."""

    tokens = 11

    def test_clips_come_back_from_the_codec_with_their_shape(self, model):
        clip = torch.stack([self.picture(number) for number in range(model.num_frames)])
        latents = model.codec.scale(model.moments(clip.unsqueeze(0)).mean)
        channels, frames, *size = model.latent_shape
        assert latents.shape == (1, channels, frames - 1, *size)
        padded = torch.cat([latents[:, :, :1] + 7, latents], dim=2)  # the copy is not looked at
        clips = model.decode_clips(padded)
        assert clips.shape == (1, model.num_frames, 3, *model.size)
        assert torch.equal(clips, model.codec.decode(latents))
        assert [list(held) for held in model.frame_grid] == [[], [0], [1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.slow
class TestCogVideoX15(Newer):
    write = staticmethod(write_newer)


class OfPictures(CogVideoXConformance):
    """Checkpoints that go on from a picture, without the noise that training adds to it."""

    media: ClassVar = {**CogVideoXConformance.media, "posterior": "mean"}

    def pipeline_options(self, picture):
        return {**super().pipeline_options(picture), "image": (picture.float() / 255)[None]}

    def plain_prediction(self, folder, dtype):
        pipeline = pipeline_of(folder, dtype)

        def predict(noised, t, prompt, picture):
            with pytest.MonkeyPatch.context() as patch:
                at_the_mean(pipeline, patch)
                return plain_velocity(pipeline, noised, t, prompt, picture.to(dtype) / 127.5 - 1)

        return predict

    def test_sampling_is_that_of_the_librarys_pipeline(self, folder, model, monkeypatch):
        pipeline = at_the_mean(pipeline_of(folder), monkeypatch)
        monkeypatch.setattr(self, "pipeline", lambda _: pipeline, raising=False)
        super().test_sampling_is_that_of_the_librarys_pipeline(folder, model)


def write_5b_of_pictures(folder):
    return write_tiny_cogvideox(folder, version="5b", from_image=True)


@pytest.mark.slow
class TestCogVideoX5BOfPictures(OfPictures):
    """Learned positions."""

    write = staticmethod(write_5b_of_pictures)


def write_newer_of_pictures(folder):
    return write_tiny_cogvideox(folder, version="1.5", from_image=True)


@pytest.mark.slow
class TestCogVideoX15OfPictures(OfPictures, Newer):
    """Latents of pictures are divided by the factor, and the network is told an offset."""

    write = staticmethod(write_newer_of_pictures)


# --- what a release does differently ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("cogvideox")
    kinds: dict[str, dict[str, Any]] = {
        "2b": {},
        "5b": {"version": "5b"},
        "1.5": {"version": "1.5"},
        "5b from picture": {"version": "5b", "from_image": True},
        "1.5 from picture": {"version": "1.5", "from_image": True},
    }
    return {name: write_tiny_cogvideox(place / name, **kind) for name, kind in kinds.items()}


def loaded(folder, *, dtype=torch.float32, model=None, **media):
    settings = ModelConfig(family="cogvideox", source=str(folder), **(model or {}))
    video = VideoConfig(**{"num_frames": COGVIDEOX_FRAMES, **SIZES, **media})
    return registry.find("families", "cogvideox").load(settings, video, device="cpu", dtype=dtype)


def pair(model, prompt, key, *, seed=0):
    """(clips, latents, conditioning) of one random pair."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, model.num_frames + model.conditioned, 3, *model.size)
    clips = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if model.conditioned:
        clips[1, 0] = clips[0, 0]
    facts = torch.zeros(2, 6, dtype=torch.int64)
    example = {"clips": clips, "geometry": facts, "prompts": [prompt], "own": False}
    return clips, *model.encode(model.collate([example]), keys_of(key))


def test_error_of_v_is_the_official_weighted_error_of_the_clean_clip(folders):
    """The official trainer: the scheduler's estimate of the clean clip, weighted by 1 / (1 - abar)."""
    model = loaded(folders["2b"], dtype=torch.float64)
    scheduler = CogVideoXDDIMScheduler.from_pretrained(str(folders["2b"] / "scheduler"))
    generator = torch.Generator().manual_seed(0)
    clean, noise, v = torch.randn(3, 5, *model.latent_shape, generator=generator, dtype=torch.float64)
    times = torch.tensor([1, 7, 411, 900, 999])
    noised = model.schedule.add_noise(clean, noise, times)
    torch.testing.assert_close(noised, scheduler.add_noise(clean, noise, times), rtol=1e-12, atol=1e-12)
    estimate = scheduler.get_velocity(v, noised, times)
    weight = 1 / (1 - scheduler.alphas_cumprod[times])
    official = weight * (estimate - clean).square().flatten(1).mean(1)
    ours = (v - model.schedule.target(model.prediction, clean, noise, times)).square().flatten(1).mean(1)
    torch.testing.assert_close(ours, official, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("name", "shift"), [("2b", 3.0), ("5b", 1.0)])
def test_noise_levels_are_the_schedulers_down_to_no_signal(folders, name, shift):
    model = loaded(folders[name])
    scheduler = CogVideoXDDIMScheduler.from_pretrained(str(folders[name] / "scheduler"))
    assert scheduler.config.snr_shift_scale == shift
    alpha, sigma = model.schedule.coefficients(torch.arange(1000), torch.float64)
    torch.testing.assert_close(alpha.square(), scheduler.alphas_cumprod, rtol=1e-12, atol=1e-15)
    assert alpha[-1] == 0
    assert sigma[-1] == 1
    assert model.schedule.zero_terminal_snr
    assert model.prediction == "v_prediction"


def test_latents_are_scaled_as_the_pipeline_does_and_clips_come_back(folders):
    model, pipeline = loaded(folders["2b"], posterior="mean"), pipeline_of(folders["2b"])
    clips, clean, _ = pair(model, PROMPT, 3)
    with torch.no_grad():
        mean = pipeline.vae.encode((clips.float() / 127.5 - 1).transpose(1, 2)).latent_dist.mean
        torch.testing.assert_close(clean[0], 1.15258426 * mean)
        wanted = pipeline.decode_latents(clean[0].transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(model.decode_clips(clean[0]), (wanted / 2 + 0.5).clamp(0, 1))


def test_large_clips_are_encoded_and_decoded_in_the_librarys_tiles(folders):
    media = {"height": 64, "width": 96, "vae_tiling": True}
    model, pipeline = loaded(folders["2b"], **media), pipeline_of(folders["2b"])
    assert model.vae.use_tiling
    for vae in (model.vae, pipeline.vae):
        vae.enable_tiling(32, 32, 0.25, 0.25)
    clip = torch.randint(
        0, 256, (1, 9, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = model.moments(clip).mean
    with torch.no_grad():
        wanted = pipeline.vae.encode((clip.float() / 127.5 - 1).transpose(1, 2)).latent_dist.mean
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        shown = (pipeline.vae.decode(wanted).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    clips = model.decode_clips(model.codec.scale(found))
    torch.testing.assert_close(clips, shown, rtol=1e-4, atol=1e-5)
    whole = loaded(folders["2b"], height=64, width=96).moments(clip).mean
    assert not torch.allclose(whole, wanted, atol=1e-3)


def test_texts_are_filled_up_to_the_networks_length_and_seen_whole(folders):
    for name, length in (("2b", 13), ("1.5", 11)):
        model, pipeline = loaded(folders[name]), pipeline_of(folders[name])
        states = model.prompt_conditioning([PROMPT, ""]).shared
        assert set(states) == {"text"}
        assert states["text"].shape[1] == length
        torch.testing.assert_close(states["text"][:1], plain_states(pipeline, PROMPT))
        torch.testing.assert_close(states["text"][1:], plain_states(pipeline, ""))


def test_odd_numbers_of_latent_frames_begin_with_a_copy_in_training(folders):
    model, pipeline = loaded(folders["1.5"]), pipeline_of(folders["1.5"], torch.float64)
    assert model.latent_shape[1] == 4
    assert model.num_tokens == 2 * 2 * 3
    assert any("copies of the first" in note for note in model.notes)
    wide = loaded(folders["1.5"], dtype=torch.float64)
    _, clean, conditioning = pair(wide, PROMPT, 3)
    assert torch.equal(clean[:, :, :, 0], clean[:, :, :, 1])
    assert not torch.equal(clean[:, :, :, 1], clean[:, :, :, 2])
    noised = torch.randn(
        1, *model.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    rows = {name: value[:1] for name, value in conditioning.rows(2).items()}
    with torch.no_grad():
        found = wide.denoise(noised, torch.tensor([411]), rows)[0]
        wanted = plain_velocity(pipeline, noised[0], torch.tensor(411), PROMPT)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["1.5", "1.5 from picture"])
def test_the_copy_is_thrown_away_after_sampling(folders, name, monkeypatch):
    model = loaded(folders[name])
    pipeline = at_the_mean(pipeline_of(folders[name]), monkeypatch)
    picture = torch.randint(0, 256, (3, *model.size), dtype=torch.uint8, generator=torch.Generator())
    pictures = {"images": [picture]} if model.conditioned else {}
    (found,) = model.sample([PROMPT], seed=3, num_steps=3, guidance_scale=3.0, **pictures)
    wanted = pipeline(
        prompt=PROMPT,
        num_frames=model.num_frames,
        **SIZES,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=initial_noise(model.latent_shape, seed=3, prompt=0)[None].transpose(1, 2),
        max_sequence_length=11,
        output_type="pt",
        **({"image": (picture.float() / 255)[None]} if model.conditioned else {}),
    ).frames[0]
    assert found.frames.shape == wanted.shape == (9, 3, *model.size)
    torch.testing.assert_close(found.frames / 255, wanted, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("name", ["5b from picture", "1.5 from picture"])
def test_training_adds_the_rows_noise_to_the_picture(folders, name):
    model, pipeline = loaded(folders[name], dtype=torch.float64), pipeline_of(folders[name], torch.float64)
    clips, _, conditioning = pair(model, PROMPT, 7)
    image = conditioning.per_candidate["image"]
    assert image.shape == (1, 2, 4, 1, 4, 6)
    assert torch.equal(image[:, 0], image[:, 1])
    key = torch.tensor([7])
    level = (-3.0 + 0.5 * row_normal(key, (1, 1, 1), purpose="picture_noise_level").double()).exp()
    noisy = (
        clips[0, 0].double() / 127.5
        - 1
        + (level * row_normal(key, (3, *model.size), purpose="picture_noise"))[0]
    )
    with torch.no_grad():
        mean = pipeline.vae.encode(noisy[None, :, None]).latent_dist.mean
    factor = 1 / 0.7 if name.startswith("1.5") else 0.7
    torch.testing.assert_close(image[0, 0], factor * mean[0], rtol=1e-6, atol=1e-6)
    _, _, again = pair(model, PROMPT, 7)
    _, _, other = pair(model, PROMPT, 8)
    assert torch.equal(again.per_candidate["image"], image)
    assert not torch.equal(other.per_candidate["image"], image)
    # What is sampled with is the picture itself.
    clear = model.image_states(clips[0, :1])["image"]
    assert 0 < (clear - image[0, :1]).abs().max() < 1


def test_samplers_that_do_not_know_the_schedule_are_refused(folders):
    model = loaded(folders["2b"])
    settings = {"seed": 3, "num_steps": 3, "guidance_scale": 1.0}
    own, ddim, solver = (
        model.sample([PROMPT], scheduler=name, **settings)[0].frames for name in (None, "ddim", "dpmpp")
    )
    assert torch.equal(own, ddim)
    assert not torch.equal(own, solver)
    with pytest.raises(
        ValueError, match=r"sampler: got .*euler for CogVideoX.*, expected one of ddim, dpmpp"
    ):
        model.sample([PROMPT], scheduler="euler", **settings)


def test_samples_of_the_second_order_are_those_of_the_pipeline(tmp_path):
    """It draws on its way, for every clip on its own."""
    folder = write_tiny_cogvideox(tmp_path / "5b", version="5b", solver=True)
    model = loaded(folder)
    noise = [initial_noise(model.latent_shape, seed=3, prompt=number) for number in range(2)]
    wanted = pipeline_of(folder)(
        prompt=["a", "b"],
        num_frames=model.num_frames,
        **SIZES,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=torch.stack(noise).transpose(1, 2),
        generator=[generator_for(3, "sample_path", number, 0) for number in range(2)],
        max_sequence_length=13,
        output_type="pt",
    ).frames
    for size in (1, 2):
        clips = model.sample(["a", "b"], batch_size=size, seed=3, num_steps=4, guidance_scale=3.0)
        for clip, frames in zip(clips, wanted, strict=True):
            torch.testing.assert_close(clip.frames / 255, frames, rtol=0, atol=1.01 / 255)


def test_texts_of_other_lengths_are_refused_where_positions_begin_behind_them(folders):
    with pytest.raises(ValueError, match=r"model.text_length: got '?7'?, expected '?13: positions of clips"):
        loaded(folders["2b"], model={"text_length": 7})
    assert (
        loaded(folders["5b"], model={"text_length": 7}).prompt_conditioning(["a"]).shared["text"].shape[1]
        == 7
    )


def test_learned_positions_are_of_one_size(folders):
    with pytest.raises(ValueError, match="this checkpoint has learned positions of one size"):
        loaded(folders["5b from picture"], height=48)
    with pytest.raises(ValueError, match="this checkpoint has learned positions of one size"):
        loaded(folders["5b from picture"], num_frames=17)


def test_sizes_that_the_vae_or_the_positions_do_not_take_are_refused(folders):
    with pytest.raises(
        ValueError, match=r"video\.num_frames: got 13, expected a multiple of 8 plus 1.*is 17"
    ):
        loaded(folders["2b"], num_frames=13)
    with pytest.raises(ValueError, match=r"video.height, width: got .*, expected .*at most \(32, 48\)"):
        loaded(folders["1.5"], height=64)


def test_what_a_checkpoint_goes_on_from_is_not_a_matter_of_taste(folders):
    with pytest.raises(ValueError, match=r"video.conditioning: got '?image'?, expected"):
        loaded(folders["5b"], conditioning="image")
    with pytest.raises(ValueError, match=r"video.conditioning: got '?text'?, expected"):
        loaded(folders["1.5 from picture"], conditioning="text")


def test_transformers_of_other_latents_are_refused(folders, tmp_path):
    for name, change, message in (
        ("2b", {"in_channels": 8}, "got 'a transformer of 8 channels', expected 4, as VAE"),
        ("1.5", {"patch_size": 1}, "got 'patches of 1', expected 2"),
    ):
        folder = shutil.copytree(folders[name], tmp_path / name)
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
        write_fresh(folder)
        with pytest.raises(ValueError, match=message):
            loaded(folder)


def write_fresh(folder):
    """A transformer of the folder's changed settings."""
    from diffusers import CogVideoXTransformer3DModel

    place = str(folder / "transformer")
    network = CogVideoXTransformer3DModel.from_config(CogVideoXTransformer3DModel.load_config(place))
    network.save_pretrained(place)


def test_clips_of_any_size_have_positions(folders):
    """Sizes that are not the network's own; 2B works out new positions, 5B stretches its own, 1.5 cuts."""
    for name in ("2b", "5b", "1.5"):
        media = {"height": 16 if name == "1.5" else 48, "width": 32, "num_frames": 17}
        model, pipeline = loaded(folders[name], **media), pipeline_of(folders[name])
        noised = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        rows = model.prompt_conditioning([PROMPT]).rows(1)
        with torch.no_grad():
            found = model.denoise(noised, torch.tensor([300]), rows)[0]
            wanted = plain_velocity(pipeline, noised[0], torch.tensor(300), PROMPT)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_timesteps_are_whole_and_uniform_unless_told_otherwise(folders):
    model = loaded(folders["2b"])
    assert model.suggested_timesteps == {"timesteps": "uniform"}
    assert example_inputs(model)[1].dtype == torch.int64

"""Every family of sound against the conformance suite, and against the library's pipelines."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import (
    AudioLDM2Pipeline,
    AutoencoderOobleck,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioNumberConditioner
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from mmalign.audio.cosine_sampler import CosineSampler
from mmalign.audio.families.tango import FAMILY
from mmalign.diffusion.sampling import initial_noise
from mmalign.seeding import generator_for
from mmalign.testing.audio_families import AudioFamilyConformance, TimedFamilyConformance
from mmalign.testing.tiny_audio import (
    write_tiny_audioldm2,
    write_tiny_stable_audio,
    write_tiny_tango,
    write_tiny_tangoflux,
)

LONG = "a much longer text than the others"


class TestTango(AudioFamilyConformance):
    family = "tango"
    write = staticmethod(write_tiny_tango)
    media: ClassVar = {"duration": 0.64}

    def plain_prediction(self, folder, dtype):
        source = FAMILY.open_source(str(folder))
        unet, text = (source.part(name, dtype=dtype) for name in ("unet", "text_encoder"))
        tokenizer = source.part("tokenizer")

        def predict(noised, t, prompt, seconds):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            states = text(ids)[0]
            return unet(noised[None].to(dtype), t, encoder_hidden_states=states).sample[0]

        return predict


class OfficialTangoFlux:
    """The official class's forward pass, from the official files, by the library's parts."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        state = load_file(folder / "tangoflux.safetensors")
        config = json.loads((folder / "config.json").read_text())

        def part(module, prefix):
            own = {
                name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
            }
            missing, unexpected = module.load_state_dict(own, strict=False)
            assert set(missing) <= {"encoder.embed_tokens.weight"}
            assert not unexpected
            return module.to(dtype).eval()

        sizes = {key: value for key, value in config.items() if key.endswith(("layers", "_dim", "heads"))}
        self.transformer = part(
            FluxTransformer2DModel(
                **sizes,
                in_channels=config["in_channels"],
                pooled_projection_dim=state["fc.0.weight"].shape[1],
                guidance_embeds=False,
            ),
            "transformer.",
        )
        width = config["joint_attention_dim"]
        self.fc = part(nn.Sequential(nn.Linear(width, width), nn.ReLU()), "fc.")
        self.duration = part(
            StableAudioNumberConditioner(width, 0, config["max_duration"]), "duration_emebdder."
        )
        self.text = part(T5EncoderModel(T5Config.from_pretrained(folder / "text_encoder")), "text_encoder.")
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "text_encoder")

    def encoded(self, prompt, length=None):
        filling = {"padding": "max_length", "max_length": length, "truncation": True} if length else {}
        tokens = self.tokenizer([prompt], return_tensors="pt", **filling)
        return self.text(**tokens)[0], tokens.attention_mask

    @torch.no_grad()
    def velocity(self, latents, sigma, states, mask, seconds):
        """`latents` [1, frame, channel]; every token is seen, the mean is over real ones."""
        pooled = self.fc(states[mask.bool()].mean(0, keepdim=True))
        token = self.duration(torch.tensor([seconds]))
        text = torch.cat([states, token], dim=1)
        frames = latents.shape[1]
        return self.transformer(
            hidden_states=latents,
            timestep=torch.as_tensor(sigma).reshape(1),
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3),
            img_ids=torch.arange(frames)[:, None].repeat(1, 3),
            return_dict=False,
        )[0]


class TestTangoFlux(TimedFamilyConformance):
    family = "tangoflux"
    write = staticmethod(write_tiny_tangoflux)

    def plain_prediction(self, folder, dtype):
        official = OfficialTangoFlux(folder, dtype)

        def predict(noised, t, prompt, seconds):
            states, mask = official.encoded(prompt)
            return official.velocity(noised.T[None].to(dtype), t.to(torch.float32), states, mask, seconds)[
                0
            ].T

        return predict

    @pytest.mark.parametrize("prompt", ["a dog", LONG])
    def test_samples_equal_those_of_the_official_loop(self, model, folder, prompt):
        official = OfficialTangoFlux(folder, torch.float32)
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        steps, scale, seconds = 3, 4.5, 0.2
        scheduler.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
        states, mask = official.encoded(prompt)
        empty, empty_mask = official.encoded("", length=states.shape[1])
        latents = initial_noise(model.latent_shape, seed=5, prompt=0).T[None]
        for t in scheduler.timesteps:
            prompted = official.velocity(latents, t / 1000, states, mask, seconds)
            without = official.velocity(latents, t / 1000, empty, empty_mask, seconds)
            velocity = without + scale * (prompted - without)
            latents = scheduler.step(velocity, t, latents).prev_sample
        wanted = model.vae.decode(latents.transpose(1, 2)).sample.clamp(-1, 1)[0, :, : int(seconds * 8000)]
        settings = {"seed": 5, "num_steps": steps, "guidance_scale": scale, "duration": seconds}
        got = model.sample([prompt], **settings)[0].samples
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-3, atol=1e-4)
        # In company of another prompt, too, though the texts differ in length.
        with_other = model.sample([prompt, "hum"], **settings)[0].samples
        torch.testing.assert_close(with_other, got, rtol=1e-3, atol=1e-4)

    def test_what_is_made_of_text_and_duration_is_trained_with_the_network(self, model):
        names = {name.split(".")[0] for name, _ in model.bare_network.named_parameters()}
        assert {"fc", "duration_embedder", "transformer_blocks"} <= names

    def test_noise_levels_are_the_thousand_of_the_official_training(self, model):
        progress = torch.tensor([0.0, 0.25, 0.9999])
        torch.testing.assert_close(model.schedule.timestep_at(progress), torch.tensor([1.0, 0.75, 0.001]))
        assert model.suggested_timesteps["timesteps"] == "logit_normal"


class TestStableAudio(TimedFamilyConformance):
    family = "stable_audio"
    write = staticmethod(write_tiny_stable_audio)
    lengths = ("begin", "end")

    def pipeline(self, folder, dtype=torch.float32):
        # Part by part: the pipeline's loader takes no sampler that is not the library's own.
        classes = {
            "vae": AutoencoderOobleck,
            "text_encoder": T5EncoderModel,
            "projection_model": StableAudioProjectionModel,
            "transformer": StableAudioDiTModel,
        }
        parts = {
            name: part.from_pretrained(folder / name, dtype=dtype).eval() for name, part in classes.items()
        }
        tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
        found = StableAudioPipeline(**parts, tokenizer=tokenizer, scheduler=CosineSampler())
        found.set_progress_bar_config(disable=True)
        return found

    def plain_prediction(self, folder, dtype):
        pipeline = self.pipeline(folder, dtype)

        def predict(noised, t, prompt, seconds):
            text = pipeline.encode_prompt([prompt], "cpu", False)
            begin, end = pipeline.encode_duration(0.0, seconds, "cpu", False, 1)
            width = pipeline.transformer.config.attention_head_dim // 2
            return pipeline.transformer(
                noised[None].to(dtype),
                t.reshape(1).to(torch.float32).to(dtype),
                encoder_hidden_states=torch.cat([text, begin, end], dim=1),
                global_hidden_states=torch.cat([begin, end], dim=2),
                rotary_embedding=get_1d_rotary_pos_embed(
                    width, noised.shape[-1] + 1, use_real=True, repeat_interleave_real=False
                ),
                return_dict=False,
            )[0][0]

        return predict

    @pytest.mark.parametrize("negative", [None, "a cat"])
    def test_samples_equal_those_of_the_pipeline(self, model, folder, negative):
        noise = initial_noise(model.latent_shape, seed=5, prompt=0)[None]
        wanted = self.pipeline(folder)(
            "a dog",
            negative_prompt=negative,
            num_inference_steps=4,
            guidance_scale=3.0,
            audio_end_in_s=0.15,
            latents=noise,
            generator=[generator_for(5, "sample_path", 0, 0)],
        ).audios[0]
        got = model.sample(
            ["a dog"],
            seed=5,
            num_steps=4,
            guidance_scale=3.0,
            duration=0.15,
            negative_prompts=None if negative is None else [negative],
        )[0].samples
        torch.testing.assert_close(got, wanted.clamp(-1, 1), rtol=1e-3, atol=1e-4)

    def test_text_states_are_the_pipelines_and_none_without_a_prompt(self, model, folder):
        prompts = ["a dog", LONG]
        with torch.no_grad():
            wanted = self.pipeline(folder).encode_prompt(prompts, "cpu", False)
        assert torch.equal(model.text_states(prompts)["text"], wanted)
        empty = model.text_states([""])
        assert not empty["text"].any()
        assert not empty["prompted"].any()

    def test_saved_folders_are_pipelines(self, model, tmp_path):
        saved = model.save_model(tmp_path / "whole")
        assert self.pipeline(saved)("a dog", num_inference_steps=2, generator=torch.Generator()).audios.any()

    def test_other_samplers_are_refused(self, model):
        with pytest.raises(ValueError, match="sampler: got 'ddim for Stable Audio', expected none"):
            model.sample(["a"], seed=0, num_steps=2, guidance_scale=1.0, scheduler="ddim")


@pytest.mark.slow
class TestStableAudioWithProjectedText(TestStableAudio):
    @staticmethod
    def write(folder):
        return write_tiny_stable_audio(folder, projected=True)


class TestAudioLDM2(AudioFamilyConformance):
    family = "audioldm2"
    write = staticmethod(write_tiny_audioldm2)

    def pipeline(self, folder, dtype=torch.float32):
        found = AudioLDM2Pipeline.from_pretrained(str(folder), dtype=dtype)
        found.set_progress_bar_config(disable=True)
        return found

    def plain_prediction(self, folder, dtype):
        pipeline = self.pipeline(folder, dtype)

        def predict(noised, t, prompt, seconds):
            states, mask, generated = pipeline.encode_prompt([prompt], "cpu", 1, False)
            return pipeline.unet(
                noised[None].to(dtype),
                t,
                encoder_hidden_states=generated,
                encoder_hidden_states_1=states,
                encoder_attention_mask_1=mask,
                return_dict=False,
            )[0][0]

        return predict

    @pytest.mark.parametrize("prompt", ["a dog", LONG])
    def test_samples_equal_those_of_the_pipeline(self, model, folder, prompt):
        noise = initial_noise(model.latent_shape, seed=5, prompt=0)[None]
        wanted = self.pipeline(folder)(
            prompt, num_inference_steps=3, guidance_scale=3.5, audio_length_in_s=0.64, latents=noise
        ).audios[0]
        got = model.sample([prompt], seed=5, num_steps=3, guidance_scale=3.5)[0].samples[0]
        torch.testing.assert_close(got, torch.from_numpy(wanted), rtol=1e-3, atol=1e-4)

    def test_saved_folders_are_pipelines(self, model, tmp_path):
        saved = model.save_model(tmp_path / "whole")
        assert self.pipeline(saved)("a dog", num_inference_steps=2, audio_length_in_s=0.64).audios.any()

    def test_folders_with_the_plain_language_model_say_the_same(self, model, tmp_path):
        older = self.loaded(write_tiny_audioldm2(tmp_path / "older", head=False))
        language = model.encoders[3].transformer.state_dict()
        older.encoders[3].load_state_dict(language)
        for number in (0, 1, 2):
            older.encoders[number].load_state_dict(model.encoders[number].state_dict())
        found, wanted = (loaded.text_states(["a dog"])["generated"] for loaded in (older, model))
        torch.testing.assert_close(found, wanted)

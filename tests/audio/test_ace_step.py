"""ACE-Step against the conformance suite and diffusers' pipeline."""

from typing import ClassVar

import pytest
import torch
from diffusers import AceStepPipeline

from mmalign.diffusion.sampling import initial_noise
from mmalign.testing.audio_families import AudioFamilyConformance
from mmalign.testing.tiny_audio.ace_step import write_tiny_ace_step

SECONDS = 0.208


class TestAceStep(AudioFamilyConformance):
    family = "ace_step"
    write = staticmethod(write_tiny_ace_step)
    media: ClassVar = {"duration": SECONDS}

    def pipeline(self, folder, dtype=torch.float32):
        found = AceStepPipeline.from_pretrained(str(folder), dtype=dtype)
        found.set_progress_bar_config(disable=True)
        return found

    def plain_prediction(self, folder, dtype):
        pipeline = self.pipeline(folder, dtype)

        def predict(noised, t, prompt, seconds):
            frames = noised.shape[-1]
            encoded = pipeline.encode_prompt(prompt, "", torch.device("cpu"), audio_duration=SECONDS)
            silence = pipeline.condition_encoder.silence_latent
            reference = silence[:, : 30 * 8000 // 128]
            states, _ = pipeline.condition_encoder(*encoded, reference, torch.arange(1))
            context = silence[:, :frames]
            time = t.reshape(1).to(torch.float32).to(dtype)
            return pipeline.transformer(
                noised.T[None].to(dtype),
                time,
                time,
                encoder_hidden_states=states,
                context_latents=torch.cat([context, torch.ones_like(context)], dim=-1),
                return_dict=False,
            )[0][0].T

        return predict

    @pytest.mark.parametrize("scale", [1.0, 4.0])
    def test_samples_equal_those_of_the_pipeline(self, model, folder, scale):
        noise = initial_noise(model.latent_shape, seed=5, prompt=0).T[None]
        wanted = self.pipeline(folder)(
            "a dog", audio_duration=SECONDS, num_inference_steps=3, guidance_scale=scale, latents=noise
        ).audios[0]
        got = model.sample(["a dog"], seed=5, num_steps=3, guidance_scale=scale)[0].samples
        # The pipeline brings what it made to full scale.
        torch.testing.assert_close(got / got.abs().max(), wanted / wanted.abs().max(), rtol=1e-3, atol=1e-3)

    def test_saved_folders_are_pipelines(self, model, tmp_path):
        saved = model.save_model(tmp_path / "whole")
        made = self.pipeline(saved)("a dog", audio_duration=SECONDS, num_inference_steps=2)
        assert made.audios.any()

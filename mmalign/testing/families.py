"""What every image family must do, as a test class: derive from it and say how to write a tiny pipeline.

    class TestSDXL(FamilyConformance):
        family = "sdxl"
        write = staticmethod(tiny.write_tiny_sdxl)

The comparisons are with plain diffusers: the pipeline's own text encoding, VAE and sampling, and loading of
what we save.
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmalign import registry
from mmalign.batch import Candidate, PreferenceRow
from mmalign.diffusion.family import ImageModel
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import RowError
from mmalign.seeding import generator_for
from mmalign.testing.network_conformance import (
    PROMPTS,
    NetworkConformance,
    example_inputs,
    trained_by,
)
from mmalign.testing.tiny import RESOLUTION
from mmalign.train.config import AdapterConfig, ImageConfig, ModelConfig

__all__ = ["FamilyConformance", "example_inputs", "load", "picture", "row_of", "trained_by"]


def load(
    family: str,
    folder: Path,
    *,
    model: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ImageModel:
    """A tiny model of a family on the CPU, with settings of the run's `model` and `image` sections."""
    settings = ModelConfig(family=family, source=str(folder), **(model or {}))
    loaded: ImageModel = registry.find("families", family).load(
        settings, ImageConfig(**{"resolution": RESOLUTION, **(image or {})}), device="cpu", dtype=dtype
    )
    return loaded


def picture(seed: int, *, size: tuple[int, int] = (53, 47)) -> bytes:
    """A PNG of random colours, (width, height)."""
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def row_of(prompt: str, *, seed: int = 0, num_candidates: int = 2) -> PreferenceRow:
    """A row with random pictures."""
    images = (picture(seed * 31 + number) for number in range(num_candidates))
    return PreferenceRow(
        prompt=prompt, candidates=tuple(Candidate(image=data) for data in images), source="test:0"
    )


def _pipeline(model: ImageModel, folder: Path) -> Any:
    """The folder as plain diffusers loads it, in the class that paints from text."""
    import diffusers

    pipeline_class = getattr(diffusers, model.generation_pipeline)
    # Stable Diffusion 3's loader wants to hear it said that there is no T5.
    absent = {name: None for pair in model.text_parts for name in pair if not model.source.has(name)}
    pipeline = pipeline_class.from_pretrained(str(folder), dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class FamilyConformance(NetworkConformance):
    """Tests of one family on a tiny pipeline.

    Attributes:
        text_names: what the pipeline's `encode_prompt` returns, by our names; "" for what is not used.
        text_options: further arguments of `encode_prompt`.
        sampler_options: further arguments of the pipeline's call.
    """

    text_names: ClassVar[tuple[str, ...]] = ("text",)
    text_options: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}
    sampler_options: ClassVar[Mapping[str, Any]] = {}

    def loaded(
        self,
        folder: Path,
        *,
        model: Mapping[str, Any] | None = None,
        media: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ImageModel:
        """As `load`."""
        return load(self.family, folder, model=model, image=media, dtype=dtype)

    def row(self, prompt: str, *, seed: int = 0, num_candidates: int = 2) -> PreferenceRow:
        """As `row_of`."""
        return row_of(prompt, seed=seed, num_candidates=num_candidates)

    @torch.no_grad()
    def pipeline_text(self, pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
        """Text states as the pipeline encodes them."""
        encoded = pipeline.encode_prompt(
            prompt=prompts, device="cpu", num_images_per_prompt=1, **self.text_options
        )
        return {name: value for name, value in zip(self.text_names, encoded, strict=False) if name}

    def pipeline_latents(self, noise: Tensor) -> Tensor:
        """Noise as the pipeline's call takes it."""
        return noise

    # --- encoding -------------------------------------------------------------------------------------------

    def test_text_states_equal_those_of_the_pipeline(self, model: ImageModel, folder: Path) -> None:
        """Prompts are tokenised, padded, cut and encoded as diffusers does."""
        prompts = [*PROMPTS, "long " * 2000]
        wanted = self.pipeline_text(_pipeline(model, folder), prompts)
        states = model.text_states(prompts)
        assert set(states) == set(wanted)
        for name, value in states.items():
            torch.testing.assert_close(value, wanted[name].to(value.dtype), rtol=0, atol=0)

    def test_moments_and_scaling_equal_those_of_the_vae(self, model: ImageModel, folder: Path) -> None:
        """Pixels reach the VAE in [-1, 1]; latents are scaled as the pipeline scales them."""
        pixels = torch.randint(0, 256, (5, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8)
        vae = _pipeline(model, folder).vae
        with torch.no_grad():
            gaussian = vae.encode(pixels.float() / 127.5 - 1).latent_dist
        moments = model.image_moments(pixels)
        torch.testing.assert_close(moments.mean, gaussian.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.std, gaussian.std, rtol=1e-5, atol=1e-5)
        scaled = model.autoencoder.scale(moments.mean)
        wanted = (gaussian.mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        torch.testing.assert_close(scaled, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.autoencoder.unscale(scaled), moments.mean, rtol=1e-5, atol=1e-5)

    def test_a_row_is_encoded_the_same_alone_and_in_company(self, model: ImageModel) -> None:
        """Draws depend on the row's key, not on its place or its neighbours; candidates draw their own."""
        together, conditioning = self.encoded(model, PROMPTS, (11, 12, 13))
        alone, alone_conditioning = self.encoded(model, PROMPTS[:1], (11,))
        torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
        for name, value in alone_conditioning.shared.items():
            torch.testing.assert_close(conditioning.shared[name][:1], value, rtol=1e-5, atol=1e-5)
        other, _ = self.encoded(model, PROMPTS[:1], (17,))
        assert not torch.equal(alone, other)

    def test_dropped_prompts_become_the_empty_prompt(self, folder: Path) -> None:
        """With dropout 1 every prompt is the empty one; with 0.5 some are, decided by key."""
        always = load(self.family, folder, image={"prompt_dropout": 1.0})
        _, conditioning = self.encoded(always, ("a cat", "a dog", "a cow"), (1, 2, 3))
        empty = always.text_states([""])
        for name, value in empty.items():
            torch.testing.assert_close(
                conditioning.shared[name], value.expand_as(conditioning.shared[name]), rtol=0, atol=0
            )
        half = load(self.family, folder, image={"prompt_dropout": 0.5})
        keys = tuple(range(20))
        _, conditioning = self.encoded(half, ("a cat",) * len(keys), keys)
        is_empty = (conditioning.shared["text"] == empty["text"]).flatten(1).all(dim=1)
        assert 3 <= int(is_empty.sum()) <= 17

    def test_prompts_alone_are_conditioned_as_the_pipeline_does(self, model: ImageModel) -> None:
        """What rollouts start from: text states per prompt and constant sizes, nothing per candidate."""
        prompts = [*PROMPTS, PROMPTS[0]]
        conditioning = model.prompt_conditioning(prompts)
        assert not conditioning.per_candidate
        for name, value in model.text_states(prompts).items():
            torch.testing.assert_close(conditioning.shared[name], value, rtol=1e-5, atol=1e-5)
        _, _, rows = model.meta_inputs(len(prompts))
        got = conditioning.rows(1)
        assert {name: value.shape for name, value in got.items()} == {
            name: value.shape for name, value in rows.items()
        }
        assert {name: value.dtype for name, value in got.items()} == {
            name: value.dtype for name, value in rows.items()
        }

    def test_decoded_pixels_are_the_vaes_and_carry_gradients(self, model: ImageModel, folder: Path) -> None:
        """Pixels in [0, 1], float32; gradients equal those of the plain VAE."""
        vae = _pipeline(model, folder).vae
        latents = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(2))
        ours, plain = latents.clone().requires_grad_(), latents.clone().requires_grad_()
        shift = vae.config.shift_factor or 0.0
        wanted = (vae.decode(plain / vae.config.scaling_factor + shift).sample / 2 + 0.5).clamp(0, 1)
        got = model.decode_pixels(ours)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        for pixels in (got, wanted):
            pixels.square().sum().backward()
        assert ours.grad is not None
        assert plain.grad is not None
        assert ours.grad.abs().sum() > 0
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(model.decode_pixels(latents), wanted.detach(), rtol=1e-5, atol=1e-5)
        rounded = model.autoencoder.decode(latents).float()
        torch.testing.assert_close(rounded, got.detach() * 255, rtol=0, atol=0.51)

    def test_unreadable_pictures_are_row_errors(self, model: ImageModel) -> None:
        """A truncated file says so and is counted, it does not end the run."""
        broken = PreferenceRow(
            prompt="a",
            candidates=(Candidate(image=picture(0)[:200]), Candidate(image=picture(1))),
            source="rows:7",
        )
        with pytest.raises(RowError, match="rows:7"):
            model.example(broken, key=1)

    # --- the network ----------------------------------------------------------------------------------------

    def test_memory_inputs_have_the_shapes_of_real_ones(self, model: ImageModel) -> None:
        """What the dry run counts memory with is what training feeds."""
        clean, conditioning = self.encoded(model, PROMPTS, (1, 2, 3))
        noised, timestep, rows = model.meta_inputs(6)
        assert noised.shape == (6, *clean.shape[2:])
        assert timestep.shape == (6,)
        assert {name: value.shape for name, value in rows.items()} == {
            name: value.shape for name, value in conditioning.rows(2).items()
        }

    # --- generation -----------------------------------------------------------------------------------------

    def test_a_prompt_keeps_its_noise_in_any_batch(self, model: ImageModel) -> None:
        """Image i depends on (seed, i) only: batches of one and of three paint the same."""
        settings: dict[str, Any] = {"seed": 3, "num_steps": 3, "guidance_scale": 3.0}
        together = model.sample(PROMPTS, batch_size=3, **settings)
        alone = model.sample(PROMPTS, batch_size=1, **settings)
        for first, second in zip(together, alone, strict=True):
            assert np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max() <= 1
        other = model.sample(PROMPTS, **{**settings, "seed": 4})
        assert np.abs(np.asarray(together[0], dtype=int) - np.asarray(other[0], dtype=int)).max() > 1

    def test_samples_equal_those_of_the_pipeline(self, model: ImageModel, folder: Path) -> None:
        """Our pictures are what plain diffusers paints from the same noise, first and on the way."""
        if model.paints_over:
            start: dict[str, Any] = {"image": torch.zeros(1, *model.latent_shape), "strength": 1.0}
        else:
            noise = initial_noise(model.latent_shape, seed=3, prompt=0).unsqueeze(0)
            latents = self.pipeline_latents(noise)
            start = {"latents": latents, "height": RESOLUTION, "width": RESOLUTION}
        wanted = _pipeline(model, folder)(
            "a cat",
            num_inference_steps=3,
            guidance_scale=3.0,
            generator=[generator_for(3, "sample_path", 0, 0)],
            **self.sampler_options,
            **start,
        ).images[0]
        got = model.sample(["a cat"], seed=3, num_steps=3, guidance_scale=3.0)[0]
        assert np.abs(np.asarray(got, dtype=int) - np.asarray(wanted, dtype=int)).max() <= 1

    # --- saving ---------------------------------------------------------------------------------------------

    def with_adapter(self, pipeline: Any, folder: Path) -> Any:
        """The pipeline's network after plain diffusers has put a saved adapter on it."""
        pipeline.load_lora_weights(str(folder))
        return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer

    @pytest.mark.parametrize(
        "adapter", [{"rank": 2, "alpha": 16.0}, {"rank": 3, "alpha": 1.0, "use_rslora": True}]
    )
    def test_saved_adapters_act_at_the_same_strength_in_plain_diffusers(
        self, model: ImageModel, folder: Path, tmp_path: Path, adapter: dict[str, Any]
    ) -> None:
        """Alpha differs from rank, so a loader that guesses alpha is found out."""
        trained_by(model, AdapterConfig(**adapter))
        model.save_adapter(tmp_path)
        network = self.with_adapter(_pipeline(model, folder), tmp_path)
        inputs = example_inputs(model)
        with torch.no_grad():
            wanted, got = model.denoise(*inputs), model.denoise(*inputs, network=network)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)

    def test_saved_models_are_whole_pipelines(self, model: ImageModel, tmp_path: Path) -> None:
        """`from_pretrained` reads them, adapters merged in, nothing missing."""
        trained_by(model, AdapterConfig(rank=2, alpha=6.0))
        saved = model.save_model(tmp_path / "whole")
        inputs = example_inputs(model)
        with torch.no_grad():
            wanted = model.denoise(*inputs)
            network = getattr(_pipeline(model, saved), model.network_part)
            got = model.denoise(*inputs, network=network)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        again = load(self.family, saved)
        assert again.latent_shape == model.latent_shape

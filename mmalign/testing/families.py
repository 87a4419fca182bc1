"""What every image family must do, as a test class: derive from it and say how to write a tiny pipeline.

    class TestSDXL(FamilyConformance):
        family = "sdxl"
        write = staticmethod(tiny.write_tiny_sdxl)

The comparisons are with plain diffusers: the pipeline's own text encoding, VAE and sampling, and loading of
what
we save.
"""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmalign import registry
from mmalign.batch import Candidate, Conditioning, PreferenceRow, RowKeys
from mmalign.diffusion.family import ImageModel
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import RowError
from mmalign.likelihood.adapters import adapters_off
from mmalign.seeding import generator_for
from mmalign.testing.tiny import RESOLUTION
from mmalign.train.adapters import Trainables, attach
from mmalign.train.config import AdapterConfig, ImageConfig, ModelConfig

__all__ = ["FamilyConformance", "example_inputs", "load", "picture", "row_of", "trained_by"]

_PROMPTS = ("a red circle", "", "zwei blaue Würfel 🐈")


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


def trained_by(model: ImageModel, adapter: AdapterConfig, *, seed: int = 0) -> Trainables:
    """Attach an adapter (or train everything) and move the trained weights away from their start."""
    trainables = attach(model.bare_network, adapter, default_targets=model.adapter_targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainables.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trainables


def _keys(*numbers: int) -> RowKeys:
    return RowKeys(
        key=torch.tensor(numbers), stratum=torch.zeros(len(numbers)), num_strata=max(len(numbers), 1)
    )


def _encoded(
    model: ImageModel, prompts: tuple[str, ...], keys: tuple[int, ...]
) -> tuple[Tensor, Conditioning]:
    examples = [
        model.example(row_of(prompt, seed=number), key=key)
        for number, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
    ]
    return model.encode(model.collate(examples), _keys(*keys))


def example_inputs(model: ImageModel, *, num_rows: int = 3) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Random inputs of `denoise` with the shapes of real ones, at three noise levels."""
    noised, _, conditioning = model.meta_inputs(num_rows)
    generator = torch.Generator().manual_seed(1)

    def real(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator)

    timestep = torch.tensor([3, 401, 977])[:num_rows]
    rows = {
        name: real(value) if value.is_floating_point() else _some_true(value.shape, generator)
        for name, value in conditioning.items()
    }
    return real(noised), timestep, rows


def _some_true(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A mask that leaves something to look at in every row."""
    mask = torch.rand(shape, generator=generator) < 0.5
    mask[:, 0] = True
    return mask


def _pipeline(model: ImageModel, folder: Path) -> Any:
    """The folder as plain diffusers loads it, in the class that paints from text."""
    import diffusers

    pipeline_class = getattr(diffusers, model.generation_pipeline)
    # Stable Diffusion 3's loader wants to hear it said that there is no T5.
    absent = {name: None for pair in model.text_parts for name in pair if not model.source.has(name)}
    pipeline = pipeline_class.from_pretrained(str(folder), dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class FamilyConformance:
    """Tests of one family on a tiny pipeline.

    Attributes:
        family: name in the registry.
        write: writes a tiny pipeline folder.
        text_names: what the pipeline's `encode_prompt` returns, by our names; "" for what is not used.
        text_options: further arguments of `encode_prompt`.
        sampler_options: further arguments of the pipeline's call.
        idle: endings of adapter weights that the network's structure keeps from acting on its output.
    """

    family: ClassVar[str]
    write: ClassVar[Callable[[str | Path], Path]]
    text_names: ClassVar[tuple[str, ...]] = ("text",)
    text_options: ClassVar[Mapping[str, Any]] = {"do_classifier_free_guidance": False}
    sampler_options: ClassVar[Mapping[str, Any]] = {}
    idle: ClassVar[tuple[str, ...]] = ()

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

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A tiny pipeline of the family."""
        return type(self).write(tmp_path_factory.mktemp("family") / self.family)

    @pytest.fixture
    def model(self, folder: Path) -> ImageModel:
        """The loaded pipeline, fresh for every test."""
        return load(self.family, folder)

    # --- encoding -------------------------------------------------------------------------------------------

    def test_text_states_equal_those_of_the_pipeline(self, model: ImageModel, folder: Path) -> None:
        """Prompts are tokenised, padded, cut and encoded as diffusers does."""
        prompts = [*_PROMPTS, "long " * 2000]
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

    def test_encoding_gives_one_latent_per_candidate_and_one_text_per_prompt(self, model: ImageModel) -> None:
        """Shapes of a micro-batch of three pairs."""
        clean, conditioning = _encoded(model, _PROMPTS, (11, 12, 13))
        assert clean.shape == (3, 2, *model.latent_shape)
        assert clean.dtype == torch.float32
        assert all(value.shape[0] == 3 for value in conditioning.shared.values())
        assert not clean.requires_grad

    def test_a_row_is_encoded_the_same_alone_and_in_company(self, model: ImageModel) -> None:
        """Draws depend on the row's key, not on its place or its neighbours; candidates draw their own."""
        together, conditioning = _encoded(model, _PROMPTS, (11, 12, 13))
        alone, alone_conditioning = _encoded(model, _PROMPTS[:1], (11,))
        torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
        for name, value in alone_conditioning.shared.items():
            torch.testing.assert_close(conditioning.shared[name][:1], value, rtol=1e-5, atol=1e-5)
        other, _ = _encoded(model, _PROMPTS[:1], (17,))
        assert not torch.equal(alone, other)

    def test_latents_are_sampled_and_not_the_mean(self, model: ImageModel) -> None:
        """Two candidates with the same picture get different posterior samples."""
        row = row_of("a", num_candidates=1)
        twin = PreferenceRow(prompt="a", candidates=row.candidates * 2, source="test:0")
        clean, _ = model.encode(model.collate([model.example(twin, key=5)]), _keys(5))
        assert not torch.equal(clean[0, 0], clean[0, 1])

    def test_dropped_prompts_become_the_empty_prompt(self, folder: Path) -> None:
        """With dropout 1 every prompt is the empty one; with 0.5 some are, decided by key."""
        always = load(self.family, folder, image={"prompt_dropout": 1.0})
        _, conditioning = _encoded(always, ("a cat", "a dog", "a cow"), (1, 2, 3))
        empty = always.text_states([""])
        for name, value in empty.items():
            torch.testing.assert_close(
                conditioning.shared[name], value.expand_as(conditioning.shared[name]), rtol=0, atol=0
            )
        half = load(self.family, folder, image={"prompt_dropout": 0.5})
        keys = tuple(range(20))
        _, conditioning = _encoded(half, ("a cat",) * len(keys), keys)
        is_empty = (conditioning.shared["text"] == empty["text"]).flatten(1).all(dim=1)
        assert 3 <= int(is_empty.sum()) <= 17

    def test_prompts_alone_are_conditioned_as_the_pipeline_does(self, model: ImageModel) -> None:
        """What rollouts start from: text states per prompt and constant sizes, nothing per candidate."""
        prompts = [*_PROMPTS, _PROMPTS[0]]
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

    def test_gradients_reach_the_adapter_and_nothing_else(self, model: ImageModel) -> None:
        """Frozen weights get no gradient; every adapter weight does."""
        trainables = trained_by(model, AdapterConfig(rank=2))
        model.denoise(*example_inputs(model)).square().mean().backward()
        for name, parameter in model.bare_network.named_parameters():
            if name in trainables.parameters:
                assert parameter.grad is not None, name
                acts = not any(part in name for part in self.idle)
                assert (parameter.grad.abs().sum() > 0) == acts, name
            else:
                assert parameter.grad is None, name

    def test_adapters_off_is_the_base_model_bit_for_bit(self, model: ImageModel) -> None:
        """The reference needs no second model."""
        inputs = example_inputs(model)
        with torch.no_grad():
            base = model.denoise(*inputs)
            trained_by(model, AdapterConfig(rank=2))
            tuned = model.denoise(*inputs)
            with adapters_off(model.bare_network):
                off = model.denoise(*inputs)
        assert torch.equal(off, base)
        assert not torch.allclose(tuned, base)

    def test_checkpointing_changes_no_gradient(self, folder: Path) -> None:
        """Recomputed activations are the same activations."""
        gradients = []
        for checkpointing in (False, True):
            model = load(self.family, folder, model={"gradient_checkpointing": checkpointing})
            trainables = trained_by(model, AdapterConfig(rank=2))
            model.network.train()
            model.denoise(*example_inputs(model)).square().mean().backward()
            gradients.append([parameter.grad for parameter in trainables.parameters.values()])
        for plain, recomputed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)

    def test_half_precision_networks_take_float32_latents(self, folder: Path) -> None:
        """Inputs are cast to the network's dtype; adapters stay float32."""
        model = load(self.family, folder, dtype=torch.bfloat16)
        trainables = trained_by(model, AdapterConfig(rank=2))
        assert {parameter.dtype for parameter in trainables.parameters.values()} == {torch.float32}
        assert next(model.bare_network.parameters()).dtype == torch.bfloat16
        prediction = model.denoise(*example_inputs(model))
        assert prediction.dtype == torch.bfloat16
        assert torch.isfinite(prediction).all()

    def test_memory_inputs_have_the_shapes_of_real_ones(self, model: ImageModel) -> None:
        """What the dry run counts memory with is what training feeds."""
        clean, conditioning = _encoded(model, _PROMPTS, (1, 2, 3))
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
        together = model.sample(_PROMPTS, batch_size=3, **settings)
        alone = model.sample(_PROMPTS, batch_size=1, **settings)
        for first, second in zip(together, alone, strict=True):
            assert np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max() <= 1
        other = model.sample(_PROMPTS, **{**settings, "seed": 4})
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

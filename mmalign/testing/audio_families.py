"""What every family of sound must do, as a test class: derive from it and say how to write a tiny folder.

    class TestTangoFlux(AudioFamilyConformance):
        family = "tangoflux"
        write = staticmethod(write_tiny_tangoflux)

What a family does as the library's own pipeline or the official code does it is compared by the family's own
tests; `plain_prediction` says how the library's parts are called without any code of ours.
"""

import io
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign import registry
from mmalign.audio.family import AudioModel
from mmalign.batch import Batch, Candidate, Labels, PreferenceRow
from mmalign.data import DataConfig, open_rows
from mmalign.data.cache_build import build_cache
from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.errors import ConfigError, RowError
from mmalign.likelihood import Elbo, UniformTimesteps
from mmalign.testing.network_conformance import (
    PROMPTS,
    NetworkConformance,
    encoded,
    example_inputs,
    keys_of,
    trained_by,
)
from mmalign.train.audio_sections import AudioConfig
from mmalign.train.config import AdapterConfig, ModelConfig

__all__ = ["AudioFamilyConformance", "TimedFamilyConformance", "noise_clip", "row_of_sound"]


def noise_clip(seed: int, *, seconds: float = 0.2, rate: int = 8000, channels: int = 1) -> bytes:
    """A WAV file of noise."""
    import soundfile

    generator = np.random.default_rng(seed)
    values = generator.uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def row_of_sound(prompt: str, *, seed: int = 0, num_candidates: int = 2, **clip: Any) -> PreferenceRow:
    """A row of random clips."""
    clips = (noise_clip(seed * 31 + number, **clip) for number in range(num_candidates))
    return PreferenceRow(
        prompt=prompt, candidates=tuple(Candidate(audio=data) for data in clips), source="test:0"
    )


class AudioFamilyConformance(NetworkConformance):
    """Tests of one family on a tiny model.

    Attributes:
        media: settings of the `audio` section that suit the tiny model.
    """

    media: ClassVar[Mapping[str, Any]] = {}

    def loaded(
        self,
        folder: Path,
        *,
        model: Mapping[str, Any] | None = None,
        media: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> AudioModel:
        """The folder's model on the CPU."""
        settings = ModelConfig(family=self.family, source=str(folder), **(model or {}))
        section = AudioConfig(**{**self.media, **(media or {})})
        found: AudioModel = registry.find("families", self.family).load(
            settings, section, device="cpu", dtype=dtype
        )
        return found

    def row(self, prompt: str, *, seed: int = 0, num_candidates: int = 2) -> PreferenceRow:
        """A row of random clips."""
        return row_of_sound(prompt, seed=seed, num_candidates=num_candidates)

    @abstractmethod
    def plain_prediction(
        self, folder: Path, dtype: torch.dtype
    ) -> Callable[[Tensor, Tensor, str, float], Tensor]:
        """`predict(noised, t, prompt, seconds)` of one clip, by the library's parts alone.

        `t` is what the schedule calls a timestep.
        """

    # --- encoding -------------------------------------------------------------------------------------------

    def test_a_row_is_encoded_the_same_alone_and_in_company(self, model: AudioModel) -> None:
        """Latents by key; what the network is told of a prompt does not depend on its neighbours."""
        together, conditioning = self.encoded(model, PROMPTS, (11, 12, 13))
        alone, own = self.encoded(model, PROMPTS[:1], (11,))
        torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
        noised = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        level = model.schedule.network_time(model.schedule.timestep_at(torch.tensor([0.4, 0.4])))
        rows = {name: value[:2] for name, value in conditioning.rows(2).items()}
        with torch.no_grad():
            torch.testing.assert_close(
                model.denoise(noised, level, rows),
                model.denoise(noised, level, own.rows(2)),
                rtol=1e-4,
                atol=1e-4,
            )

    def test_dropped_prompts_become_the_empty_prompt(self, folder: Path) -> None:
        """With dropout 1 the network is told what it is told of the empty prompt; with 0 it is not."""
        always, never = (self.loaded(folder, media={"prompt_dropout": share}) for share in (1.0, 0.0))
        noised, level, _ = example_inputs(always, num_rows=2)
        told = [
            self.encoded(model, (prompt,), (1,))[1].rows(2)
            for model, prompt in ((always, "a red circle"), (never, ""), (never, "a red circle"))
        ]
        with torch.no_grad():
            dropped, empty, prompted = (never.denoise(noised, level, rows) for rows in told)
        torch.testing.assert_close(dropped, empty, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(dropped, prompted, atol=1e-4)

    def test_unreadable_clips_are_row_errors(self, model: AudioModel) -> None:
        """A truncated file says so and is counted, it does not end the run."""
        broken = PreferenceRow(
            prompt="a",
            candidates=(Candidate(audio=noise_clip(0)[:30]), Candidate(audio=noise_clip(1))),
            source="rows:7",
        )
        with pytest.raises(RowError, match="rows:7"):
            model.example(broken, key=1)

    def test_memory_inputs_have_the_shapes_of_real_ones(self, model: AudioModel) -> None:
        """What the dry run counts memory with is what training feeds, but for the length of texts."""
        clean, conditioning = self.encoded(model, ("",), (1,))
        noised, timestep, rows = model.meta_inputs(2)
        assert noised.shape == (2, *clean.shape[2:])
        assert timestep.shape == (2,)
        real = conditioning.rows(2)
        assert {name: (value.shape, value.dtype) for name, value in rows.items()} == {
            name: (value.shape, value.dtype) for name, value in real.items()
        }

    def test_a_cache_gives_what_the_encoders_give_and_needs_none_of_them(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Latents, and what the network makes of text and length, dropped prompts included."""
        rows = []
        for number, prompt in enumerate(("a red circle", "zwei Würfel", "a red circle")):
            names = [f"{number}{side}.wav" for side in "ab"]
            for place, name in enumerate(names):
                clip = noise_clip(31 * number + place, seconds=0.12 + 0.02 * number)
                (tmp_path / name).write_bytes(clip)
            rows.append({"prompt": prompt, "chosen": names[0], "rejected": names[1]})
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        table = open_rows(DataConfig.model_validate({"source": {"path": str(path), "media": "audio"}}))
        live, cache = self.loaded(folder, media={"prompt_dropout": 0.5}), tmp_path / "cache"
        identity = replace(live.cache_identity(), dtype="float32")
        build_cache(table, live, identity, cache, loader=live.clips, batch_size=4)
        cached = self.loaded(folder, media={"prompt_dropout": 0.5, "cache": str(cache)})

        def forbidden(name: str, **_: Any) -> None:
            raise AssertionError(name)

        monkeypatch.setattr(cached.source, "part", forbidden)
        found = []
        for model in (live, cached):
            model.at_mean = True
            batches = []
            for keys in ((1, 2, 3), (7, 8, 9)):
                clean, told = encoded(model, [table[number] for number in range(3)], keys)
                flat = clean.flatten(0, 1)
                noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(keys[0]))
                level = model.schedule.timestep_at(torch.full((len(flat),), 0.4))
                level = model.schedule.network_time(level)
                with torch.no_grad():
                    batches += [flat, model.denoise(noise, level, told.rows(2))]
            found.append(batches)
        for expected, got in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    # --- the loss -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
    def test_errors_equal_those_of_the_librarys_parts(
        self, folder: Path, dtype: torch.dtype, close: float
    ) -> None:
        """From a row to its errors: the same noise, level and target given to the parts without our code."""
        model = self.loaded(folder, dtype=dtype)
        prompts = ("a red circle", "zwei Würfel")
        rows = [self.row(prompt, seed=number) for number, prompt in enumerate(prompts)]
        clean, conditioning = encoded(model, rows, (3, 4))
        batch = Batch(
            clean=clean,
            conditioning=conditioning,
            labels=Labels.pairs(2),
            weight=torch.ones(2),
            valid=torch.ones(2, dtype=torch.bool),
            keys=keys_of(3, 4),
        )
        elbo = Elbo(model.schedule, model.prediction, UniformTimesteps())
        draw = elbo.draw(batch)
        assert torch.equal(draw.noise[:, 0], draw.noise[:, 1])
        with torch.no_grad():
            found = elbo.evaluate(model.denoise, batch, draw).error
            predict = self.plain_prediction(folder, dtype)
            for number, prompt in enumerate(prompts):
                for candidate in range(2):
                    at = (number, candidate)
                    wanted = predict(draw.noised[at], draw.timestep[at], prompt, 0.2)
                    error = (wanted.to(draw.target) - draw.target[at]).square().mean()
                    torch.testing.assert_close(found[at], error, rtol=close, atol=0)

    # --- generation -----------------------------------------------------------------------------------------

    def test_a_prompt_keeps_its_sound_in_any_batch(self, model: AudioModel) -> None:
        """Clip i depends on (seed, i) only."""
        settings: dict[str, Any] = {"seed": 3, "num_steps": 3, "guidance_scale": 3.0}
        together = model.sample(PROMPTS, batch_size=3, **settings)
        alone = model.sample(PROMPTS, batch_size=1, **settings)
        for first, second in zip(together, alone, strict=True):
            torch.testing.assert_close(first.samples, second.samples, rtol=1e-3, atol=1e-3)
        other = model.sample(PROMPTS, **{**settings, "seed": 4})
        assert not torch.allclose(together[0].samples, other[0].samples, atol=1e-2)

    def test_decoding_lets_gradients_through(self, model: AudioModel) -> None:
        """Rewards of sound can be followed back to latents."""
        latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(2))
        latents.requires_grad_()
        waves = model.decode_waveforms(latents)
        assert waves.shape[:2] == (1, model.channels)
        assert waves.abs().max() <= 1
        waves.square().sum().backward()
        assert latents.grad is not None
        assert latents.grad.abs().sum() > 0

    # --- saving ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "adapter", [{"rank": 2, "alpha": 16.0}, {"rank": 3, "alpha": 1.0, "use_rslora": True}]
    )
    def test_saved_adapters_act_at_the_same_strength_elsewhere(
        self, model: AudioModel, folder: Path, tmp_path: Path, adapter: dict[str, Any]
    ) -> None:
        """Put on a fresh network by peft, and by diffusers where it can."""
        from peft import PeftModel

        trained_by(model, AdapterConfig(**adapter))
        model.save_adapter(tmp_path)
        inputs = example_inputs(model)
        with torch.no_grad():
            wanted = model.denoise(*inputs)
            fresh = self.loaded(folder).bare_network
            by_peft = PeftModel.from_pretrained(fresh, str(tmp_path))
            torch.testing.assert_close(model.denoise(*inputs, network=by_peft), wanted, rtol=1e-5, atol=1e-6)
            other = self.loaded(folder).bare_network
            if hasattr(other, "load_lora_adapter"):
                other.load_lora_adapter(str(tmp_path), prefix=model.network_part, weight_name=LORA_FILE)
                torch.testing.assert_close(
                    model.denoise(*inputs, network=other), wanted, rtol=1e-5, atol=1e-6
                )

    def test_saved_models_are_whole(self, model: AudioModel, tmp_path: Path) -> None:
        """Adapters merged in, frozen parts bit for bit those of the source."""
        trained_by(model, AdapterConfig(rank=2, alpha=6.0))
        saved = model.save_model(tmp_path / "whole")
        again = self.loaded(saved)
        inputs = example_inputs(model)
        with torch.no_grad():
            wanted = model.denoise(*inputs)
            torch.testing.assert_close(again.denoise(*inputs), wanted, rtol=1e-4, atol=1e-5)
        assert again.latent_shape == model.latent_shape
        assert again.schedule.describe() == model.schedule.describe()
        prompts = list(PROMPTS)
        for name, value in model.text_states(prompts).items():
            assert torch.equal(again.text_states(prompts)[name], value), name
        for ours, theirs in zip(model.vae.parameters(), again.vae.parameters(), strict=True):
            assert torch.equal(ours, theirs)


class TimedFamilyConformance(AudioFamilyConformance):
    """Tests of a family that is told how long a clip is.

    Attributes:
        lengths: names in the conditioning that say so.
    """

    lengths: ClassVar[tuple[str, ...]] = ("length",)

    def test_the_network_is_told_how_long_a_clip_was(self, folder: Path) -> None:
        """Lengths are the clips' own, at most the window; the candidates of a row share the longest."""
        model = self.loaded(folder)
        short, long = (noise_clip(1, seconds=seconds) for seconds in (0.12, 0.16))
        endless = noise_clip(1, seconds=1.0)
        told = []
        for pair in ((short, short), (short, long), (long, long), (endless, short)):
            row = PreferenceRow(
                prompt="a", candidates=tuple(Candidate(audio=clip) for clip in pair), source="test:0"
            )
            _, conditioning = encoded(model, [row], (1,))
            told.append({name: conditioning.shared[name] for name in self.lengths})
        whole = {name: model.prompt_conditioning(["a"]).shared[name] for name in self.lengths}
        for name in self.lengths:
            assert torch.equal(told[1][name], told[2][name])
            assert torch.equal(told[3][name], whole[name])
        assert any(not torch.equal(told[0][name], told[1][name]) for name in self.lengths)
        assert any(not torch.equal(told[1][name], told[3][name]) for name in self.lengths)

    @pytest.mark.parametrize("duration", [1e-9, 1e6])
    def test_windows_that_cannot_be_are_refused(self, folder: Path, duration: float) -> None:
        """With what could be."""
        with pytest.raises(ConfigError, match=r"audio\.duration: got .* from .* to .* seconds"):
            self.loaded(folder, media={"duration": duration})

    def test_clips_are_cut_to_what_was_asked_for(self, model: AudioModel) -> None:
        """In one window the network is told of another length, and the rest is cut away."""
        settings: dict[str, Any] = {"seed": 3, "num_steps": 2, "guidance_scale": 3.0}
        (whole,), (part,) = (model.sample(["a"], duration=seconds, **settings) for seconds in (None, 0.1))
        assert part.samples.shape == (2, round(0.1 * model.sampling_rate))
        assert not torch.allclose(whole.samples[:, : part.samples.shape[1]], part.samples, atol=1e-4)
        again = model.sample(["a"], **settings)[0]
        torch.testing.assert_close(again.samples, whole.samples)
        with pytest.raises(ConfigError, match=r"duration: got 99.0, expected up to .* seconds"):
            model.sample(["a"], duration=99.0, **settings)

    def test_a_smaller_window_makes_smaller_latents_and_says_so(
        self, folder: Path, model: AudioModel
    ) -> None:
        """It costs less, and is not what the model was trained with."""
        small = self.loaded(folder, media={"duration": 0.1})
        assert small.latent_shape[-1] < model.latent_shape[-1]
        assert any(f"trained with {model.latent_shape[-1]}" in note for note in small.notes)
        assert not any("trained with" in note for note in model.notes)

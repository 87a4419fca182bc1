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

from mmalign.audio.family import AudioModel
from mmalign.batch import Candidate, PreferenceRow
from mmalign.data import DataConfig, open_rows
from mmalign.data.cache_build import build_cache
from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.errors import ConfigError
from mmalign.testing.clip_conformance import ClipConformance
from mmalign.testing.network_conformance import PROMPTS, encoded, example_inputs, trained_by
from mmalign.train.audio_sections import AudioConfig
from mmalign.train.config import AdapterConfig

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


class AudioFamilyConformance(ClipConformance):
    """Tests of one family on a tiny model."""

    section: ClassVar[type[Any]] = AudioConfig
    media: ClassVar[Mapping[str, Any]] = {}
    told_apart: ClassVar[float] = 1e-4

    def row(self, prompt: str, *, seed: int = 0, num_candidates: int = 2) -> PreferenceRow:
        """A row of random clips."""
        return row_of_sound(prompt, seed=seed, num_candidates=num_candidates)

    def broken_row(self) -> PreferenceRow:
        """A WAV file that ends within its header."""
        clips = (noise_clip(0)[:30], noise_clip(1))
        return PreferenceRow(
            prompt="a", candidates=tuple(Candidate(audio=clip) for clip in clips), source="rows:7"
        )

    @abstractmethod
    def plain_prediction(
        self, folder: Path, dtype: torch.dtype
    ) -> Callable[[Tensor, Tensor, str, float], Tensor]:
        """`predict(noised, t, prompt, seconds)` of one clip, by the library's parts alone."""

    def told(self, model: AudioModel, row: PreferenceRow) -> list[float]:
        """Seconds of the clips of `row`."""
        del model
        return [0.2] * len(row.candidates)

    # --- encoding -------------------------------------------------------------------------------------------

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

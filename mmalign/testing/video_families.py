"""What every family of video must do, as a test class: derive from it and say how to write a tiny folder.

    class TestWan(VideoFamilyConformance):
        family = "wan"
        write = staticmethod(write_tiny_wan)
        media = {"num_frames": 9, "height": 32, "width": 48, "fps": 8.0}

`plain_prediction` says how the library's parts are called without any code of ours; sampling is compared with
the library's own pipeline, from the same noise.
"""

import io
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign import registry
from mmalign.batch import Batch, Candidate, Labels, PreferenceRow
from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.diffusion.sampling import initial_noise
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
from mmalign.train.config import AdapterConfig, ModelConfig
from mmalign.train.video_sections import VideoConfig
from mmalign.video.family import VideoModel

__all__ = ["VideoFamilyConformance", "moving_clip", "row_of_clips"]


def moving_clip(
    seed: int, *, num_frames: int = 9, size: tuple[int, int] = (32, 48), fps: float = 8.0
) -> bytes:
    """An animated PNG of smooth noise that moves; nothing is lost in its file."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    height, width = size
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    frames = [Image.fromarray(np.roll(picture, 2 * number, axis=1)) for number in range(num_frames)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="PNG", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0
    )
    return buffer.getvalue()


def row_of_clips(prompt: str, *, seed: int = 0, num_candidates: int = 2, **clip: Any) -> PreferenceRow:
    """A row of random clips."""
    clips = (moving_clip(seed * 31 + number, **clip) for number in range(num_candidates))
    return PreferenceRow(
        prompt=prompt, candidates=tuple(Candidate(video=data) for data in clips), source="test:0"
    )


class VideoFamilyConformance(NetworkConformance):
    """Tests of one family on a tiny model.

    Attributes:
        media: settings of the `video` section that suit the tiny model; `num_frames`, `height`, `width` and
            `fps` are needed.
        guidance: of the comparison with the library's pipeline.
        wide_tolerance: relative, of errors in float64; networks that work in float32 inside give less.
    """

    media: ClassVar[Mapping[str, Any]]
    guidance: ClassVar[float] = 3.0
    wide_tolerance: ClassVar[float] = 1e-9

    def loaded(
        self,
        folder: Path,
        *,
        model: Mapping[str, Any] | None = None,
        media: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> VideoModel:
        """The folder's model on the CPU."""
        settings = ModelConfig(family=self.family, source=str(folder), **(model or {}))
        section = VideoConfig(**{**self.media, **(media or {})})
        found: VideoModel = registry.find("families", self.family).load(
            settings, section, device="cpu", dtype=dtype
        )
        return found

    def clip(self, **changes: Any) -> dict[str, Any]:
        """Settings of `moving_clip` that suit the tiny model."""
        size = self.media["height"], self.media["width"]
        found = {"num_frames": self.media["num_frames"], "size": size, "fps": self.media["fps"]}
        return {**found, **changes}

    def row(self, prompt: str, *, seed: int = 0, num_candidates: int = 2) -> PreferenceRow:
        """A row of random clips."""
        return row_of_clips(prompt, seed=seed, num_candidates=num_candidates, **self.clip())

    def picture(self, seed: int = 0) -> Tensor:
        """A picture that a clip may go on from, bytes [3, height, width]."""
        size = self.media["height"], self.media["width"]
        return torch.randint(
            0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )

    @abstractmethod
    def plain_prediction(
        self, folder: Path, dtype: torch.dtype
    ) -> Callable[[Tensor, Tensor, str, Tensor], Tensor]:
        """`predict(noised, t, prompt, picture)` of one clip, by the library's parts alone.

        `noised` is `[channel, frame, height, width]`, `t` what the schedule calls a timestep, `picture` the
        first frame, bytes [3, height, width].
        """

    def pipeline(self, folder: Path) -> Any:
        """The library's pipeline of the folder."""
        from diffusers import DiffusionPipeline

        found = DiffusionPipeline.from_pretrained(str(folder))
        found.set_progress_bar_config(disable=True)
        return found

    def pipeline_latents(self, noise: Tensor) -> Tensor:
        """Noise `[1, channel, frame, height, width]` as the pipeline takes it."""
        return noise

    def pipeline_options(self, picture: Tensor) -> dict[str, Any]:
        """Further arguments of the pipeline; the picture that a clip goes on from, where it takes one."""
        del picture
        return {}

    def adapted(self, pipeline: Any, folder: Path) -> Any:
        """The pipeline's network with the adapter of a folder, put on as users do."""
        pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE)
        return getattr(pipeline, registry.find("families", self.family).model.network_part)

    def pictures(self, model: VideoModel, count: int = 1) -> dict[str, Any]:
        """`images` of `sample`, where the model goes on from pictures."""
        return {"images": [self.picture(number) for number in range(count)]} if model.conditioned else {}

    # --- encoding -------------------------------------------------------------------------------------------

    def test_latents_are_sampled_and_not_the_mean(self, folder: Path) -> None:
        """Where the run wants samples, candidates of equal content get different ones; means are equal."""
        twins = self.row("a", num_candidates=1)
        row = PreferenceRow(prompt="a", candidates=twins.candidates * 2, source="test:0")
        for posterior in ("sample", "mean"):
            model = self.loaded(folder, media={"posterior": posterior})
            clean, _ = encoded(model, [row], (5,))
            assert torch.equal(clean[0, 0], clean[0, 1]) == (posterior == "mean")

    def test_a_row_is_encoded_the_same_alone_and_in_company(self, model: VideoModel) -> None:
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
        assert not torch.allclose(dropped, prompted, atol=1e-5)

    def test_unreadable_clips_are_row_errors(self, model: VideoModel) -> None:
        """A truncated file says so and is counted, it does not end the run."""
        clips = (moving_clip(0, **self.clip())[:99], moving_clip(1, **self.clip()))
        broken = PreferenceRow(
            prompt="a", candidates=tuple(Candidate(video=clip) for clip in clips), source="rows:7"
        )
        with pytest.raises(RowError, match="rows:7"):
            model.example(broken, key=1)

    def test_memory_inputs_have_the_shapes_of_real_ones(self, model: VideoModel) -> None:
        """What the dry run counts memory with is what training feeds."""
        clean, conditioning = self.encoded(model, ("",), (1,))
        noised, timestep, rows = model.meta_inputs(2)
        assert noised.shape == (2, *clean.shape[2:])
        assert timestep.shape == (2,)
        real = conditioning.rows(2)
        assert {name: (value.shape, value.dtype) for name, value in rows.items()} == {
            name: (value.shape, value.dtype) for name, value in real.items()
        }

    def test_clips_come_back_from_the_codec_with_their_shape(self, model: VideoModel) -> None:
        """Frames, height and width of what was encoded; every frame belongs to one latent frame."""
        clip = torch.stack([self.picture(number) for number in range(model.num_frames)])
        latents = model.codec.scale(model.moments(clip.unsqueeze(0)).mean)
        assert latents.shape == (1, *model.latent_shape)
        assert model.decode_clips(latents).shape == (1, model.num_frames, 3, *model.size)
        assert len(model.frame_grid) == model.latent_shape[model.time_axis]
        assert [frame for held in model.frame_grid for frame in held] == list(range(model.num_frames))

    def test_decoding_lets_gradients_through(self, model: VideoModel) -> None:
        """Rewards of clips can be followed back to latents, and are the same with and without gradients."""
        latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(2))
        plain = model.decode_clips(latents)
        latents.requires_grad_()
        clips = model.decode_clips(latents)
        torch.testing.assert_close(clips, plain, rtol=1e-4, atol=1e-4)
        assert clips.min() >= 0
        assert clips.max() <= 1
        clips.square().sum().backward()
        assert latents.grad is not None
        assert latents.grad.abs().sum() > 0

    @pytest.mark.parametrize("name", ["num_frames", "height", "width"])
    def test_sizes_that_cannot_be_are_refused(self, folder: Path, model: VideoModel, name: str) -> None:
        """With the nearest that can."""
        if name == "num_frames" and model.temporal_ratio == 1:
            assert self.loaded(folder, media={name: 2}).latent_shape[1] == 2
            return
        with pytest.raises(ConfigError, match=rf"video\.{name}: got .* nearest is {self.media[name]}"):
            self.loaded(folder, media={name: self.media[name] + 1})

    # --- the loss -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_errors_equal_those_of_the_librarys_parts(self, folder: Path, dtype: torch.dtype) -> None:
        """From a row to its errors: the same noise, level and target given to the parts without our code."""
        close = 1e-5 if dtype == torch.float32 else self.wide_tolerance
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
                first = model.clips.load(rows[number]).inputs[:, 0]
                for candidate in range(2):
                    at = (number, candidate)
                    wanted = predict(draw.noised[at], draw.timestep[at], prompt, first[candidate])
                    error = (wanted.to(draw.target) - draw.target[at]).square().mean()
                    torch.testing.assert_close(found[at], error, rtol=close, atol=0)

    # --- generation -----------------------------------------------------------------------------------------

    def test_a_prompt_keeps_its_clip_in_any_batch(self, model: VideoModel) -> None:
        """Clip i depends on (seed, i) only."""
        settings: dict[str, Any] = {"seed": 3, "num_steps": 3, "guidance_scale": 3.0}
        pictures = self.pictures(model, len(PROMPTS))
        together = model.sample(PROMPTS, batch_size=3, **settings, **pictures)
        alone = model.sample(PROMPTS, batch_size=1, **settings, **pictures)
        for first, second in zip(together, alone, strict=True):
            assert (first.frames.int() - second.frames.int()).abs().max() <= 2
        other = model.sample(PROMPTS[:1], **{**settings, "seed": 4}, **self.pictures(model))
        assert (other[0].frames.int() - together[0].frames.int()).abs().max() > 4

    def test_sampling_is_that_of_the_librarys_pipeline(self, folder: Path, model: VideoModel) -> None:
        """From the same noise, with guidance, in a few steps."""
        prompt = "a red circle"
        (found,) = model.sample(
            [prompt], seed=3, num_steps=4, guidance_scale=self.guidance, **self.pictures(model)
        )
        noise = initial_noise(model.latent_shape, seed=3, prompt=0).unsqueeze(0)
        shape = {name: self.media[name] for name in ("num_frames", "height", "width")}
        wanted = self.pipeline(folder)(
            prompt=prompt,
            num_inference_steps=4,
            guidance_scale=self.guidance,
            latents=self.pipeline_latents(noise),
            output_type="pt",
            **shape,
            **self.pipeline_options(self.picture()),
        ).frames[0]
        assert found.frames.shape == wanted.shape
        assert (found.frames.float() - wanted * 255).abs().max() < 1.6
        assert wanted.std() > 0.01

    # --- saving ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "adapter", [{"rank": 2, "alpha": 16.0}, {"rank": 3, "alpha": 1.0, "use_rslora": True}]
    )
    def test_saved_adapters_act_at_the_same_strength_in_the_pipeline(
        self, model: VideoModel, folder: Path, tmp_path: Path, adapter: dict[str, Any]
    ) -> None:
        """As users put them on."""
        trained_by(model, AdapterConfig(**adapter))
        model.save_adapter(tmp_path)
        inputs = example_inputs(model)
        other = self.adapted(self.pipeline(folder), tmp_path)
        with torch.no_grad():
            wanted = model.denoise(*inputs)
            torch.testing.assert_close(model.denoise(*inputs, network=other), wanted, rtol=1e-5, atol=1e-5)

    def test_saved_models_are_whole(self, model: VideoModel, tmp_path: Path) -> None:
        """Adapters merged in, frozen parts bit for bit those of the source."""
        trained_by(model, AdapterConfig(rank=2, alpha=6.0))
        saved = model.save_model(tmp_path / "whole")
        again = self.loaded(saved)
        inputs = example_inputs(model)
        with torch.no_grad():
            wanted = model.denoise(*inputs)
            torch.testing.assert_close(again.denoise(*inputs), wanted, rtol=1e-4, atol=1e-4)
        assert again.latent_shape == model.latent_shape
        assert again.schedule.describe() == model.schedule.describe()
        prompts = list(PROMPTS)
        for name, value in model.text_states(prompts).items():
            assert torch.equal(again.text_states(prompts)[name], value), name
        for ours, theirs in zip(model.vae.parameters(), again.vae.parameters(), strict=True):
            assert torch.equal(ours, theirs)

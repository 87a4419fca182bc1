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
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign import registry
from mmalign.batch import Candidate, PreferenceRow
from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import ConfigError
from mmalign.testing.clip_conformance import ClipConformance
from mmalign.testing.network_conformance import PROMPTS, encoded, example_inputs, trained_by
from mmalign.train.config import AdapterConfig
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


class VideoFamilyConformance(ClipConformance):
    """Tests of one family on a tiny model.

    Attributes:
        media: settings of the `video` section that suit the tiny model; `num_frames`, `height`, `width` and
            `fps` are needed.
        guidance: of the comparison with the library's pipeline.
    """

    section: ClassVar[type[Any]] = VideoConfig
    guidance: ClassVar[float] = 3.0
    narrow_tolerance: ClassVar[float] = 1e-5
    wide_tolerance: ClassVar[float] = 1e-9

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

    def broken_row(self) -> PreferenceRow:
        """A picture file that ends within its first frame."""
        clips = (moving_clip(0, **self.clip())[:99], moving_clip(1, **self.clip()))
        return PreferenceRow(
            prompt="a", candidates=tuple(Candidate(video=clip) for clip in clips), source="rows:7"
        )

    @abstractmethod
    def plain_prediction(
        self, folder: Path, dtype: torch.dtype
    ) -> Callable[[Tensor, Tensor, str, Tensor], Tensor]:
        """`predict(noised, t, prompt, picture)` of one clip, by the library's parts alone.

        `noised` is `[channel, frame, height, width]`, `t` what the schedule calls a timestep, `picture` the
        first frame, bytes [3, height, width].
        """

    def told(self, model: VideoModel, row: PreferenceRow) -> list[Tensor]:
        """The first frames of the clips of `row`."""
        return list(model.clips.load(row).inputs[:, 0])

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

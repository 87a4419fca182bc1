"""LTX-Video: rectified flow over tokens of 8 frames by 32 by 32 pixels, T5 text.

Latents are normalised by the VAE's own statistics, which are buffers of it and no settings. Padding of texts
is masked. Rotary positions are seconds and pixels, so the network is told the frame rate; releases since
0.9.5 (`LTXConditionPipeline`) count the first frame as one frame, earlier ones as eight. Decoders since 0.9.1
are told how much noise is left in what they decode.

Training levels are shifted towards noise by the number of tokens, as the authors' trainer does for every
release; samplers keep the grid of the release's pipeline: the same shift stretched to end at 0.1, or since
0.9.5 the linear-quadratic grid.

A clip may go on from a picture. Its latent then stands in the first latent frame, clean and with time 0 for
its tokens. What is returned for that frame is `(noised - picture) / sigma`, the velocity that leads to the
picture: the error there is 0, and every sampler arrives at the picture.

Source: diffusers pipelines/ltx; github.com/Lightricks/LTX-Video-Trainer; 2501.00103.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from mmalign.diffusion.pipeline_parts import pipeline_opener
from mmalign.errors import ConfigError, explain
from mmalign.files import fingerprint
from mmalign.likelihood.schedules import DeviceTable, FlowSchedule, Schedule
from mmalign.seeding import generator_for
from mmalign.video.codec import VideoCodec
from mmalign.video.family import VideoFamily, VideoModel
from mmalign.video.traits import pictured

__all__ = ["DECODE_NOISE", "DECODE_TIME", "FAMILY", "Ltx", "LtxCodec"]

DECODE_TIME, DECODE_NOISE = 0.05, 0.025
"""What decoders since 0.9.1 are told, and the share of noise they are given, as the library's documentation
has it; the pipeline's own defaults are 0."""

_SHIFT = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
"""Logarithms of the shift at two numbers of tokens, linear between and beyond them."""

_TO_PICTURE, _TO_CONDITIONS = "LTXImageToVideoPipeline", "LTXConditionPipeline"


class LtxCodec(VideoCodec):
    """LTX's VAE: statistics in its buffers, and noise in what it decodes."""

    @cached_property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) of latents per channel, float64, on the CPU."""
        vae = self.module
        mean, std = (value.detach().double().cpu() for value in (vae.latents_mean, vae.latents_std))
        return mean, std

    @cached_property
    def _tables(self) -> tuple[DeviceTable, DeviceTable]:
        mean, std = self.buffers
        return DeviceTable(mean), DeviceTable(std)

    def frames_of(
        self, latents: Float[Tensor, "1 channel frame height width"]
    ) -> Float[Tensor, "1 3 time picture_height picture_width"]:
        """The clip in [-1, 1] of unscaled latents; the noise in it is the same for every clip."""
        if not self.config.get("timestep_conditioning"):
            return super().frames_of(latents)
        noise = torch.randn(latents.shape, generator=generator_for(0, "ltx_decode")).to(latents)
        mixed = (1 - DECODE_NOISE) * latents + DECODE_NOISE * noise
        clip: Tensor = self.module.decode(mixed, latents.new_full((1,), DECODE_TIME), return_dict=False)[0]
        return clip

    def fingerprint(self) -> str:
        """Identity of what turns clips into moments."""
        return fingerprint(super().fingerprint(), [value.tolist() for value in self.buffers])


class Ltx(VideoModel):
    """A loaded LTX-Video."""

    family: ClassVar[str] = "ltx"
    network_class: ClassVar[str] = "LTXVideoTransformer3DModel"
    long_tokenizer: ClassVar[str | None] = "tokenizer"
    text_masks: ClassVar[bool] = True
    default_num_frames: ClassVar[int] = 161
    default_size: ClassVar[tuple[int, int]] = (512, 704)
    default_fps: ClassVar[float] = 25.0
    codec_class: ClassVar[type[VideoCodec]] = LtxCodec

    # --- sizes, schedule ------------------------------------------------------------------------------------

    @property
    def counts_frames(self) -> bool:
        """Whether positions in time count frames, the first as one: releases since 0.9.5."""
        return self.source.pipeline_class == _TO_CONDITIONS

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """(8, 32), as the VAE works them out."""
        del config
        vae = self.autoencoder.module
        return int(vae.temporal_compression_ratio), int(vae.spatial_compression_ratio)

    @property
    def default_text_length(self) -> int:
        """As the pipeline; releases since 0.9.5 take longer texts."""
        return 256 if self.counts_frames else 128

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As the pipeline."""
        return 50, 3.0

    @property
    def suggested_timesteps(self) -> dict[str, Any]:
        """Logit-normal, before the schedule's shift. Source: LTX-Video-Trainer, `timestep_samplers.py`."""
        return {"timesteps": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0}

    def _set_shift(self) -> None:
        if self.counts_frames and self.video.flow_shift is not None:
            message = explain(
                "video.flow_shift",
                got=self.video.flow_shift,
                expected="nothing: this release samples on a grid that no shift moves",
            )
            raise ConfigError(message)
        super()._set_shift()

    def _make_schedule(self) -> Schedule:
        if self.video.flow_shift is not None:
            return super()._make_schedule()
        own = self.scheduler_config if self.scheduler_config.get("use_dynamic_shifting") else {}
        config = {**_SHIFT, **own, "use_dynamic_shifting": True}
        return FlowSchedule.from_scheduler_config(config, sequence_length=self.num_tokens)

    def set_steps(self, scheduler: Any, num_steps: int) -> None:
        """The grid of the release's pipeline."""
        if self.counts_frames:
            from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

            levels = linear_quadratic_schedule(num_steps)
            scheduler.set_timesteps(
                sigmas=levels.tolist(), timesteps=(levels * 1000).tolist(), device=self.device
            )
            return
        levels = torch.linspace(1.0, 1 / num_steps, num_steps, dtype=torch.float64)
        shift = {"mu": self._log_shift} if self.scheduler_config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(sigmas=levels.tolist(), device=self.device, **shift)

    @property
    def _log_shift(self) -> float:
        """Logarithm of the shift at this size."""
        config = {**_SHIFT, **self.scheduler_config}
        low, high, short, long = (float(config[name]) for name in _SHIFT)
        return low + (high - low) * (self.num_tokens - short) / (long - short)

    def check_network(self, network: Any) -> None:
        """The transformer takes the VAE's latents, one per token.

        Raises:
            ConfigError: it does not.
        """
        config = network.config
        got = f"a transformer of {config.in_channels} channels, patches of {config.patch_size}"
        if (config.in_channels, config.patch_size, config.patch_size_t) != (self.latent_shape[0], 1, 1):
            message = explain(
                f"model.source {self.settings.source}",
                got=got,
                expected=f"{self.latent_shape[0]} channels, as the VAE has, and patches of 1",
            )
            raise ConfigError(message)

    # --- text, pictures -------------------------------------------------------------------------------------

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel] and `text_mask`.

        The text encoder itself sees the padding, as the pipelines before 0.9.5 have it.
        """
        ids, mask = tokens
        seen = {"attention_mask": mask} if self.counts_frames else {}
        return {"text": encoders[0](ids, **seen)[0], "text_mask": mask.bool()}

    @property
    def takes_images(self) -> bool | None:
        """As one likes: one checkpoint does both."""
        return True if self.source.pipeline_class == _TO_PICTURE else None

    def image_state_shapes(self) -> dict[str, tuple[int, ...]]:
        """`image` [channel, 1, height, width]."""
        channels, _, *size = self.latent_shape
        return {"image": (channels, 1, *size)}

    @torch.no_grad()
    def image_states(self, pictures: UInt8[Tensor, "row 3 height width"]) -> dict[str, Tensor]:
        """`image` [row, channel, 1, height, width]: the scaled latent of a picture, the posterior's mean."""
        latents = self.autoencoder.scale(self.moments(pictures.unsqueeze(1)).mean)
        return {"image": latents.to(self.dtype)}

    def begun(
        self, clean: Float[Tensor, "row channel frame height width"], states: Mapping[str, Tensor]
    ) -> Float[Tensor, "row channel frame height width"]:
        """Clean latents that begin with the picture."""
        return _beginning_with(states["image"], clean)

    # --- the network ----------------------------------------------------------------------------------------

    def network_inputs(
        self,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """Tokens; where a picture begins the clip, it is clean and its tokens have time 0."""
        frames, height, width = noised.shape[2:]
        time = timestep
        if "image" in conditioning:
            noised = pictured(conditioning, _beginning_with(conditioning["image"], noised), noised)
            later = torch.arange(frames, device=timestep.device).repeat_interleave(height * width) > 0
            time = pictured(conditioning, timestep.unsqueeze(1) * later, timestep.unsqueeze(1))
        tokens = noised.flatten(2).transpose(1, 2)
        return {
            "hidden_states": tokens,
            "timestep": time,
            "encoder_hidden_states": conditioning["text"],
            "encoder_attention_mask": conditioning["text_mask"],
            **self._positions(noised),
        }

    def _positions(self, noised: Tensor) -> dict[str, Any]:
        """What tells the network where a token is: seconds, and pixels."""
        frames, height, width = noised.shape[2:]
        step, side = self.temporal_ratio, self.spatial_ratio
        if not self.counts_frames:
            scale = (step / self.fps, side, side)
            return {"num_frames": frames, "height": height, "width": width, "rope_interpolation_scale": scale}
        axes = [
            torch.arange(length, dtype=torch.float32, device=noised.device)
            for length in (frames, height, width)
        ]
        axes = [(axes[0] * step + 1 - step).clamp(min=0) * (1.0 / self.fps), axes[1] * side, axes[2] * side]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        return {"video_coords": grid.expand(noised.shape[0], -1, -1)}

    def prediction_of(
        self,
        output: Tensor,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, "row channel frame height width"]:
        """Velocities in the shape of latents; in a frame that is given, the one that leads to it."""
        prediction = output.transpose(1, 2).reshape(noised.shape)
        if "image" not in conditioning:
            return prediction
        sigma = (timestep / self.schedule.num_timesteps).view(-1, 1, 1, 1, 1).clamp(min=1e-6)
        known = (noised[:, :, :1] - conditioning["image"]) / sigma.to(noised)
        first = pictured(conditioning, known, prediction[:, :, :1].to(known))
        return torch.cat([first, prediction[:, :, 1:].to(known)], dim=2)

    # --- files ----------------------------------------------------------------------------------------------

    @property
    def adapter_pipeline(self) -> str | None:
        """The release's own pipeline."""
        return self.source.pipeline_class

    def original_name(self, name: str) -> str | None:
        """The authors' code, which ComfyUI follows, has diffusers' names but for a few.

        None for `proj_in` and `time_embed` (there `patchify_proj`, `adaln_single`): diffusers reads the other
        names only, and an export that cannot be read back is not made. Source: scripts/
        convert_ltx_to_diffusers.py; loaders/lora_conversion_utils.py.
        """
        return None if name.split(".")[0] in ("proj_in", "time_embed") else name


def _beginning_with(picture: Tensor, latents: Tensor) -> Tensor:
    """Latents `[row, channel, frame, height, width]` whose first frame is the picture's."""
    return torch.cat([picture.to(latents), latents[:, :, 1:]], dim=2)


PIPELINES = ("LTXPipeline", _TO_PICTURE, _TO_CONDITIONS)

FAMILY = VideoFamily(
    name="ltx",
    model=Ltx,
    open_source=pipeline_opener("ltx", PIPELINES, (Ltx.network_part, Ltx.network_class)),
    pipelines=PIPELINES,
)

"""CogVideoX: v-prediction to no signal at all, text and clip in one sequence, frames before channels.

Text is T5's, filled up to the network's own length, padding seen: there is no mask. The schedule is moved
towards noise (`snr_shift_scale`, 2B) and stretched to zero signal at its end. The official trainer's error of
the clean clip, weighted by `1 / (1 - abar)`, is the plain error of v, which is what is trained here.

2B has fixed positions, 5B rotary ones. In 1.5 two latent frames make a token; odd numbers of them begin with
a copy of the first, which is trained as the official trainer does and thrown away after sampling.

Checkpoints that go on from a picture see its latent behind the first latent frame's channels and zeros
behind the others. Training adds a little noise to the picture, `sigma = exp(N(-3, 0.5))`, the same for all
candidates of a row; there is none in a cache, nor where the run encodes without draws (`video.posterior`
mean). Latents of pictures are divided by the VAE's factor where it says so (`invert_scale_latents`, 1.5), as
the pipeline does.

Source: diffusers pipelines/cogvideo; github.com/zai-org/CogVideo finetune/models; 2408.06072.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from mmalign.batch import Conditioning, RowKeys
from mmalign.diffusion.autoencoder import Moments
from mmalign.diffusion.pipeline_parts import SettingsSource, pipeline_opener
from mmalign.diffusion.sampling import scheduler_for
from mmalign.errors import ConfigError, explain
from mmalign.likelihood.schedules import DeviceTable, Schedule, VPSchedule
from mmalign.seeding import row_normal
from mmalign.video.cogvideox_sampler import SecondOrderSampler, frames_first
from mmalign.video.family import VideoFamily, VideoModel
from mmalign.video.traits import pictured

__all__ = ["FAMILY", "NEWER_SIZE", "OFFSET", "PICTURE_NOISE", "CogVideoX"]

PICTURE_NOISE = (-3.0, 0.5)
"""Mean and standard deviation of the logarithm of the noise that pictures get in training."""

OFFSET = 2.0
"""What 1.5 is told besides the time where it goes on from a picture (`ofs`)."""

NEWER_SIZE = (768, 1360)
"""(height, width) of clips of 1.5, pixels, unless the run says otherwise. Source: its model card."""

_FIRST_RELEASE: dict[str, Any] = {
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "max_text_seq_length": 226,
    "use_rotary_positional_embeddings": False,
    "use_learned_positional_embeddings": False,
    "patch_size_t": None,
    "ofs_embed_dim": None,
}
"""Settings of the network that files of the time leave out."""

_TEXT, _PICTURE = "CogVideoXPipeline", "CogVideoXImageToVideoPipeline"
_SAMPLERS = {"ddim": "CogVideoXDDIMScheduler", "dpmpp": "CogVideoXDPMScheduler"}


class CogVideoX(VideoModel):
    """A loaded CogVideoX."""

    family: ClassVar[str] = "cogvideox"
    network_class: ClassVar[str] = "CogVideoXTransformer3DModel"
    long_tokenizer: ClassVar[str | None] = "tokenizer"
    patch: ClassVar[int] = 2

    source: SettingsSource
    _picture_noise: Tensor | None = None

    # --- sizes, schedule ------------------------------------------------------------------------------------

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """The network's settings, before it is loaded."""
        return {**_FIRST_RELEASE, **self.source.settings_of(self.network_part)}

    @property
    def default_clip(self) -> tuple[int, tuple[int, int], float]:
        """49 frames of 480 by 720 at 8; 81 of 768 by 1360 at 16 in 1.5, whose positions reach further."""
        frames, (height, width) = int(self._settings["sample_frames"]), self._reach
        if self._step is None:
            return frames, (height, width), 8.0
        return frames, (min(height, NEWER_SIZE[0]), min(width, NEWER_SIZE[1])), 16.0

    @property
    def _reach(self) -> tuple[int, int]:
        """(height, width) in pixels that the network's positions are made for."""
        height, width = (int(self._settings[name]) for name in ("sample_height", "sample_width"))
        return height * self.spatial_ratio, width * self.spatial_ratio

    def _check_size(self) -> None:
        step = 2 * self.temporal_ratio
        if (self.num_frames - 1) % step:
            message = explain(
                "video.num_frames",
                got=self.num_frames,
                expected=f"a multiple of {step} plus 1: the VAE takes odd numbers of latent frames",
                do=f"The nearest is {max(1, round((self.num_frames - 1) / step)) * step + 1}.",
            )
            raise ConfigError(message)
        super()._check_size()
        if self._step is not None and any(
            side > most for side, most in zip(self.size, self._reach, strict=True)
        ):
            expected = f"at most {self._reach}, to where its positions reach"
            raise ConfigError(explain("video.height, width", got=self.size, expected=expected))

    @property
    def _step(self) -> int | None:
        """Latent frames per token; None in the first release."""
        step = self._settings["patch_size_t"]
        return None if step is None else int(step)

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """(4, 8)."""
        return int(config["temporal_compression_ratio"]), 2 ** (len(config["block_out_channels"]) - 1)

    def _load_codec(self) -> None:
        super()._load_codec()
        channels, frames, *size = self.latent_shape
        self.num_copies = 0 if self._step is None else -frames % self._step
        self.latent_shape = (channels, frames + self.num_copies, *size)
        if self.num_copies:
            self.notes.append(f"latents: {self.num_copies} more, copies of the first, before the others")

    @property
    def frame_grid(self) -> tuple[range, ...]:
        """The pixel frames that each latent frame holds: copies of the first hold none."""
        step, later = self.temporal_ratio, self.latent_shape[1] - self.num_copies
        held = (range(step * (k - 1) + 1, step * k + 1) for k in range(1, later))
        return (*(range(0) for _ in range(self.num_copies)), range(1), *held)

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip's latents."""
        return super().num_tokens // (self._step or 1)

    @property
    def default_text_length(self) -> int:
        """The network's: 226; 224 in 1.5."""
        return int(self._settings["max_text_seq_length"])

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As the pipeline."""
        return 50, 6.0

    def _make_schedule(self) -> Schedule:
        return VPSchedule(scheduler_for(self).alphas_cumprod)

    def sampler(self, name: str | None) -> Any:
        """The checkpoint's own sampler, or its other one: `ddim`, or `dpmpp`, which draws on the way.

        Raises:
            ConfigError: another one, which would not know this schedule.
        """
        import diffusers

        wanted = self.scheduler_class if name is None else _SAMPLERS.get(name)
        if wanted is None:
            message = explain(
                "sampler", got=f"{name} for CogVideoX", expected=f"one of {', '.join(_SAMPLERS)}"
            )
            raise ConfigError(message)
        config = {key: value for key, value in self.scheduler_config.items() if not key.startswith("_")}
        scheduler = getattr(diffusers, wanted).from_config(config)
        return SecondOrderSampler(scheduler) if wanted == _SAMPLERS["dpmpp"] else scheduler

    def check_network(self, network: Any) -> None:
        """The transformer takes the VAE's latents, and texts and clips of the run's size.

        Raises:
            ConfigError: it does not.
        """
        config, where = network.config, f"model.source {self.settings.source}"
        channels = self.latent_shape[0] * (2 if self.conditioned else 1)
        if config.in_channels != channels:
            got = f"a transformer of {config.in_channels} channels"
            raise ConfigError(explain(where, got=got, expected=f"{channels}, as VAE and pipeline need"))
        if config.patch_size != self.patch:
            raise ConfigError(explain(where, got=f"patches of {config.patch_size}", expected=str(self.patch)))
        if not config.use_rotary_positional_embeddings and self.text_length != config.max_text_seq_length:
            expected = f"{config.max_text_seq_length}: positions of clips begin behind so many"
            raise ConfigError(explain("model.text_length", got=self.text_length, expected=expected))
        own, asked = (int(config.sample_frames), self._reach), (self.num_frames, self.size)
        if config.use_learned_positional_embeddings and own != asked:
            expected = f"{own}: this checkpoint has learned positions of one size"
            raise ConfigError(explain("video.num_frames, height, width", got=asked, expected=expected))

    # --- text, clips ----------------------------------------------------------------------------------------

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel]; padding is seen like words."""
        return {"text": encoders[0](tokens[0])[0]}

    def _drawn(
        self, moments: Moments, keys: RowKeys, *, own: bool
    ) -> Float[Tensor, "prompt candidate channel *size"]:
        """As in the base, with copies of the first latent frame before it where the network needs them."""
        return self._begun_with_copies(super()._drawn(moments, keys, own=own))

    def latents_of(
        self, mean: Float[Tensor, "row channel frame height width"]
    ) -> Float[Tensor, "row channel time height width"]:
        """As in the base, with those copies."""
        return self._begun_with_copies(super().latents_of(mean))

    def _begun_with_copies(self, latents: Tensor) -> Tensor:
        return torch.cat([latents[..., :1, :, :]] * self.num_copies + [latents], dim=-3)

    def decode_clips(
        self, latents: Float[Tensor, "row channel frame height width"]
    ) -> Float[Tensor, "row time 3 picture_height picture_width"]:
        """Clips in [0, 1] of scaled latents, without what their copies of the first frame show."""
        return super().decode_clips(latents[:, :, self.num_copies :])

    # --- pictures that clips go on from ---------------------------------------------------------------------

    @property
    def takes_images(self) -> bool | None:
        """What the checkpoint was made for."""
        return self.source.pipeline_class == _PICTURE

    def image_state_shapes(self) -> dict[str, tuple[int, ...]]:
        """`image` [channel, 1, height, width]."""
        channels, _, *size = self.latent_shape
        return {"image": (channels, 1, *size)}

    @torch.no_grad()
    def image_states(self, pictures: UInt8[Tensor, "row 3 height width"]) -> dict[str, Tensor]:
        """`image` [row, channel, 1, height, width]: the latent of a picture, the posterior's mean."""
        pixels = pictures.to(self.device, self.autoencoder.wide) / 127.5 - 1.0
        if self._picture_noise is not None:
            noise = self._picture_noise
            pixels = pixels + noise.repeat_interleave(len(pixels) // len(noise), dim=0).to(pixels)
        mean = self.moments(pixels.unsqueeze(1)).mean
        codec = self.autoencoder
        scaled = codec.unscale(mean) if codec.config.get("invert_scale_latents") else codec.scale(mean)
        return {"image": scaled.to(self.dtype)}

    @torch.no_grad()
    def encode(
        self, collated: Mapping[str, Any], keys: RowKeys
    ) -> tuple[Float[Tensor, "prompt candidate channel frame height width"], Conditioning]:
        """As every family; pictures get a little noise, decided by the rows' keys."""
        with self._noise_in_pictures(keys):
            return super().encode(collated, keys)

    @contextmanager
    def _noise_in_pictures(self, keys: RowKeys) -> Iterator[None]:
        if not self.conditioned or self.at_mean:
            yield
            return
        key = keys.to(self.device).key
        mean, std = PICTURE_NOISE
        level = (mean + std * row_normal(key, (1, 1, 1), purpose="picture_noise_level")).exp()
        self._picture_noise = level * row_normal(key, (3, *self.size), purpose="picture_noise")
        try:
            yield
        finally:
            self._picture_noise = None

    # --- the network ----------------------------------------------------------------------------------------

    def network_inputs(
        self,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """Frames before channels; the picture's channels behind those of the clip."""
        if "image" in conditioning:
            shown = pictured(conditioning, conditioning["image"], 0.0)
            behind = F.pad(shown, (0, 0, 0, 0, 0, noised.shape[2] - 1))
            noised = torch.cat([noised, behind], dim=1)
        inputs: dict[str, Any] = {
            "hidden_states": frames_first(noised),
            "timestep": timestep,
            "encoder_hidden_states": conditioning["text"],
            "image_rotary_emb": self._positions(noised.device),
        }
        if self._settings["ofs_embed_dim"] is not None:
            inputs["ofs"] = noised.new_full((1,), OFFSET)
        return inputs

    def _positions(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Rotary embedding (cosines, sines) of the clip's tokens; None where positions are added."""
        if not self._settings["use_rotary_positional_embeddings"]:
            return None
        cosine, sine = self._rotary
        return cosine.on(device), sine.on(device)

    @cached_property
    def _rotary(self) -> tuple[DeviceTable, DeviceTable]:
        """The first release stretches the positions of its own size to the clip's, 1.5 cuts them out."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config, frames = self.bare_network.config, self.latent_shape[1]
        grid = (self.latent_shape[2] // self.patch, self.latent_shape[3] // self.patch)
        base = (config.sample_height // self.patch, config.sample_width // self.patch)
        if self._step is None:
            kind: dict[str, Any] = {
                "crops_coords": get_resize_crop_region_for_grid(grid, base[1], base[0]),
                "temporal_size": frames,
            }
        else:
            kind = {
                "crops_coords": None,
                "temporal_size": frames // self._step,
                "grid_type": "slice",
                "max_size": base,
            }
        cosine, sine = get_3d_rotary_pos_embed(config.attention_head_dim, grid_size=grid, **kind)
        return DeviceTable(cosine), DeviceTable(sine)

    def prediction_of(
        self,
        output: Tensor,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, "row channel frame height width"]:
        """v, channels before frames."""
        del noised, timestep, conditioning
        return frames_first(output)

    @property
    def adapter_pipeline(self) -> str | None:
        """The checkpoint's own pipeline."""
        return self.source.pipeline_class


PIPELINES = (_TEXT, _PICTURE)

FAMILY = VideoFamily(
    name="cogvideox",
    model=CogVideoX,
    open_source=pipeline_opener("cogvideox", PIPELINES, (CogVideoX.network_part, CogVideoX.network_class)),
    pipelines=PIPELINES,
)

"""Wan 2.1 and 2.2: rectified flow over the latents of a causal VAE, told text by a UMT5.

What a folder holds decides what it is: 36 input channels go on from a picture (2.1 sees it by CLIP, too); two
transformers share the noise levels, one is trained and the other only samples; tokens with times of their own
(2.2 5B) take a picture or leave it, the first latent frame is then the picture itself at time 0.

Text states beyond the true length are zeros, which the network sees. Latents are the mean of the VAE's
posterior, as in the official code.

Source: Wan-Video/Wan2.1, Wan-Video/Wan2.2; diffusers pipelines/wan; 2503.20314.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from mmalign.diffusion.autoencoder import on_device, weight_digest
from mmalign.diffusion.pipeline_parts import SettingsSource, pipeline_opener
from mmalign.errors import ConfigError, explain
from mmalign.files import fingerprint
from mmalign.likelihood.schedules import FlowSchedule, Schedule
from mmalign.video.expert_schedule import ExpertSchedule
from mmalign.video.family import VideoFamily, VideoModel
from mmalign.video.original_names import WAN_NAMES, original_name
from mmalign.video.traits import pictured

__all__ = ["FAMILY", "Wan"]

_PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")


class Wan(VideoModel):
    """A loaded Wan."""

    family: ClassVar[str] = "wan"
    network_class: ClassVar[str] = "WanTransformer3DModel"
    long_tokenizer: ClassVar[str | None] = "tokenizer"
    text_masks: ClassVar[bool] = True
    cleans_prompts: ClassVar[bool] = True
    patch: ClassVar[int] = 2
    default_posterior: ClassVar[Literal["sample", "mean"]] = "mean"
    adapter_targets: tuple[str, ...] = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ffn.net.0.proj",
        "ffn.net.2",
    )

    source: SettingsSource

    # --- what the folder holds ------------------------------------------------------------------------------

    @property
    def default_clip(self) -> tuple[int, tuple[int, int], float]:
        """81 frames at 16 per second and 480p; of the 5B model 121 at 24 per second and 704 x 1280."""
        if self.own_times:
            return 121, (704, 1280), 24.0
        return 81, (480, 832), 16.0

    @cached_property
    def own_times(self) -> bool:
        """Whether tokens have times of their own."""
        return bool(self.source.index.get("expand_timesteps"))

    @cached_property
    def boundary(self) -> float | None:
        """Sigma from which on the first of two experts is at work; None where there is one network."""
        ratio = self.source.index.get("boundary_ratio")
        return float(ratio) if ratio is not None and self.source.has("transformer_2") else None

    @property
    def expert(self) -> Literal["high", "low"] | None:
        """Which of two experts is trained.

        Raises:
            ConfigError: one is asked for, and there is one network.
        """
        if self.boundary is None:
            if self.video.expert is not None:
                message = explain(
                    "video.expert", got=self.video.expert, expected="nothing: this model has one network"
                )
                raise ConfigError(message)
            return None
        return self.video.expert or "high"

    @property
    def trained_part(self) -> str:
        """`transformer_2` is the expert for little noise."""
        return "transformer_2" if self.expert == "low" else "transformer"

    @cached_property
    def _shape(self) -> dict[str, Any]:
        """The settings of the network, before it is loaded."""
        return self.source.settings_of(self.trained_part)

    @property
    def takes_images(self) -> bool | None:
        """As the input channels say; the 5B model does as one likes."""
        if self.own_times:
            return None
        return int(self._shape["in_channels"]) > int(self._shape.get("out_channels") or 0)

    @property
    def sees_pictures(self) -> bool:
        """Whether the network is told of the picture by CLIP, too."""
        return self._shape.get("image_dim") is not None

    def check_network(self, network: Any) -> None:
        """The transformer takes the VAE's latents, and the mask and latents of a picture where it must.

        Raises:
            ConfigError: it does not.
        """
        channels, found = self.latent_shape[0], int(network.config.in_channels)
        wanted = 2 * channels + self.temporal_ratio if self.takes_images else channels
        if found != wanted:
            message = explain(
                f"model.source {self.settings.source}",
                got=f"a transformer of {found} input channels",
                expected=f"{wanted}, for the VAE's {channels}",
            )
            raise ConfigError(message)
        if self.boundary is not None:
            spread = "above" if self.expert == "high" else "below"
            self.notes.append(
                f"two experts: {self.trained_part} is trained, on sigma {spread} {self.boundary:g}; the "
                "other one is loaded for samples alone"
            )

    def _make_schedule(self) -> Schedule:
        whole = super()._make_schedule()
        if self.boundary is None or not isinstance(whole, FlowSchedule):
            return whole
        low, high = (self.boundary, 1.0) if self.expert == "high" else (0.0, self.boundary)
        return ExpertSchedule(shift=whole.shift, num_timesteps=whole.num_timesteps, lowest=low, highest=high)

    @property
    def default_text_length(self) -> int:
        """As in the pipelines."""
        return 512

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As in the pipelines."""
        return 50, 5.0

    @property
    def adapter_pipeline(self) -> str | None:
        """The folder's own."""
        return self.source.pipeline_class

    # --- text -----------------------------------------------------------------------------------------------

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel], zero beyond the true length, and `text_mask` [prompt, token]."""
        ids, mask = tokens
        states = encoders[0](ids, attention_mask=mask)[0]
        return {"text": states * mask.unsqueeze(-1).to(states.dtype), "text_mask": mask.bool()}

    # --- pictures -------------------------------------------------------------------------------------------

    def image_state_shapes(self) -> dict[str, tuple[int, ...]]:
        """`start` [channel, frame, height, width], and `picture` [token, channel] where CLIP is asked."""
        channels, frames, *size = self.latent_shape
        shapes: dict[str, tuple[int, ...]] = {"start": (channels, 1 if self.own_times else frames, *size)}
        if self.sees_pictures:
            config = self.source.settings_of("image_encoder")
            tokens = (int(config["image_size"]) // int(config["patch_size"])) ** 2 + 1
            shapes["picture"] = (tokens, int(config["hidden_size"]))
        return shapes

    @torch.no_grad()
    def image_states(self, pictures: UInt8[Tensor, "row 3 height width"]) -> dict[str, Tensor]:
        """`start`: latents of the picture and grey frames behind it; `picture`: CLIP's last layer but one."""
        first = (pictures.to(torch.float32) / 127.5 - 1.0).unsqueeze(1)
        if not self.own_times:
            grey = first.new_zeros(len(first), self.num_frames - 1, *first.shape[2:])
            first = torch.cat([first, grey], dim=1)
        states = {"start": self.autoencoder.scale(self.autoencoder.moments(first).mean)}
        if self.sees_pictures:
            states["picture"] = self._seen(pictures)
        return states

    def _seen(self, pictures: UInt8[Tensor, "row 3 height width"]) -> Float[Tensor, "row token channel"]:
        shown = list(pictures.to(self.device))  # resized and cut where they are: no way over the CPU
        pixels = self.image_processor(images=shown, return_tensors="pt", device=self.device).pixel_values
        encoder = self.image_encoder
        with on_device(encoder, device=self.device, home=self._home):
            placed = pixels.to(self.device, next(encoder.parameters()).dtype)
            states: Tensor = encoder(placed, output_hidden_states=True).hidden_states[-2]
        return states

    @cached_property
    def image_processor(self) -> Any:
        """What makes a picture fit for CLIP."""
        return self.source.part("image_processor")

    @property
    def image_encoder(self) -> Any:
        """CLIP, in float32, loaded when it is first needed."""
        if self._image_encoder is None:
            part = self.source.part("image_encoder", dtype=self.autoencoder.wide)
            self._image_encoder = part.to(self._home)
        return self._image_encoder

    _image_encoder: Any = None

    def release_encoders(self) -> None:
        """Free CLIP, too."""
        self._image_encoder = None
        super().release_encoders()

    def text_fingerprint(self) -> str:
        """Identity of what turns prompts and pictures into states."""
        if not self.sees_pictures:
            return super().text_fingerprint()
        return fingerprint(super().text_fingerprint(), weight_digest(self.image_encoder))

    def begun(
        self, clean: Float[Tensor, "row channel frame height width"], states: Mapping[str, Tensor]
    ) -> Float[Tensor, "row channel frame height width"]:
        """Of tokens with times of their own, the first frame is the picture; the rest is as it was."""
        if not self.own_times:
            return clean
        return torch.cat([states["start"].to(clean), clean[:, :, 1:]], dim=2)

    # --- the network ----------------------------------------------------------------------------------------

    def network_inputs(
        self,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """Latents with the picture's mask and latents behind them, or with the picture in the first frame."""
        inputs: dict[str, Any] = {"timestep": timestep, "encoder_hidden_states": conditioning["text"]}
        start = conditioning.get("start")
        if "picture" in conditioning:
            inputs["encoder_hidden_states_image"] = pictured(conditioning, conditioning["picture"], 0.0)
        if self.own_times:
            times = self._token_times(noised, timestep, begun=False)
            if start is not None:
                times = pictured(conditioning, self._token_times(noised, timestep, begun=True), times)
                noised = pictured(conditioning, torch.cat([start, noised[:, :, 1:]], dim=2), noised)
            inputs["timestep"] = times
        elif start is not None:
            known = start.new_zeros(len(start), self.temporal_ratio, *start.shape[2:])
            known[:, :, 0] = 1.0
            behind = pictured(conditioning, torch.cat([known, start], dim=1), 0.0)
            noised = torch.cat([noised, behind], dim=1)
        return {"hidden_states": noised, **inputs}

    def _token_times(
        self, noised: Tensor, timestep: Shaped[Tensor, " row"], *, begun: bool
    ) -> Shaped[Tensor, "row token"]:
        """The time of every token: 0 of those of the picture."""
        frames, height, width = noised.shape[2:]
        each = (height // self.patch) * (width // self.patch)
        times = timestep.unsqueeze(1).expand(-1, frames * each).clone()
        if begun:
            times[:, :each] = 0
        return times

    def prediction_of(
        self,
        output: Tensor,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, "row channel frame height width"]:
        """As it is; where the first frame is the picture, that frame's own velocity: nothing to learn there.

        `(noised - start) / sigma` is `noise - start` exactly: the frame has no error.
        """
        if not self.own_times or "start" not in conditioning:
            return output
        sigma = (timestep.to(noised.dtype) / self.schedule.num_timesteps).view(-1, 1, 1, 1, 1)
        apart = noised[:, :, :1] - conditioning["start"].to(noised.dtype)
        first = torch.where(sigma > 0, apart / sigma.clamp(min=1e-9), torch.zeros_like(apart))
        first = pictured(conditioning, first, output[:, :, :1].to(first.dtype))
        return torch.cat([first, output[:, :, 1:].to(first.dtype)], dim=2)

    # --- sampling, saving -----------------------------------------------------------------------------------

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Both experts at hand meanwhile: the other one is loaded when it is first needed, and then kept.

        Sessions may lie in each other; with the outermost one the other expert is freed.
        """
        self._sessions += 1
        try:
            yield
        finally:
            self._sessions -= 1
            if not self._sessions:
                self._other = None

    _other: Any = None
    _sessions: int = 0

    def network_at(self, timestep: Tensor) -> nn.Module:
        """The expert for the noise level: the trained one or the other."""
        if self.boundary is None or not self._sessions:
            return super().network_at(timestep)
        noisy = bool(timestep >= self.boundary * self.schedule.num_timesteps)
        if noisy == (self.expert == "high"):
            return super().network_at(timestep)
        if self._other is None:
            name = "transformer" if self.expert == "low" else "transformer_2"
            self._other = self.source.part(name, dtype=self.dtype).to(self.device)
        network: nn.Module = self._other
        return network

    def original_name(self, name: str) -> str | None:
        """A module's name in Wan's own code."""
        return original_name(name, WAN_NAMES)


FAMILY = VideoFamily(
    name="wan",
    model=Wan,
    open_source=pipeline_opener("wan", _PIPELINES, ("transformer", Wan.network_class)),
    pipelines=_PIPELINES,
)
"""Wan 2.1 and 2.2 of text, of a picture, of two experts, and the 5B model."""

"""TangoFlux: rectified flow over waveform latents, told text, its mean and the duration.

Official repositories and hub ids load as they are. The network looks at real tokens only: the official code
lets padding of a batch be seen, by which a row's loss depends on its neighbours. Where guidance contrasts
with the empty prompt, that is filled up to the prompt's length and seen whole, as there.

Source: declare-lab/TangoFlux; 2412.21037.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.audio.family import AudioFamily
from mmalign.audio.tangoflux_checkpoint import TangoFluxSource, open_tangoflux, save_tangoflux
from mmalign.audio.timed import TimedAudioModel
from mmalign.batch import Conditioning
from mmalign.diffusion.clip_reader import padded
from mmalign.errors import ConfigError, explain
from mmalign.likelihood.schedules import FlowSchedule, Schedule

__all__ = ["FAMILY", "TangoFlux"]


class TangoFlux(TimedAudioModel):
    """A loaded TangoFlux."""

    family: ClassVar[str] = "tangoflux"
    network_part: ClassVar[str] = "transformer"
    network_class: ClassVar[str] = "TangoFluxTransformer"
    long_tokenizer: ClassVar[str | None] = "tokenizer"
    text_masks: ClassVar[bool] = True
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    # The layers that FLUX is usually adapted in; those of single blocks have the first four names, too.
    adapter_targets: tuple[str, ...] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )

    source: TangoFluxSource

    @property
    def default_duration(self) -> float:
        """30 s: 645 latent frames."""
        frames, longest = int(self.source.config["audio_seq_len"]), self.longest
        codec = self.autoencoder
        if int(longest * codec.sampling_rate) // codec.hop_length == frames:
            return longest
        return frames * codec.hop_length / codec.sampling_rate

    @property
    def longest(self) -> float:
        """Seconds at which the duration's embedding ends."""
        return float(self.source.config["max_duration"])

    @property
    def default_text_length(self) -> int:
        """As in the official training."""
        return 64

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As in the paper; the released `generate` takes 25 steps unless told otherwise."""
        return 50, 4.5

    @property
    def suggested_timesteps(self) -> dict[str, Any]:
        """Logit-normal. Source: tangoflux/model.py, `forward`."""
        return {"timesteps": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0}

    def _make_schedule(self) -> Schedule:
        """Noise levels are drawn from the scheduler's 1000, as in the official training."""
        return FlowSchedule.from_scheduler_config(self.scheduler_config, grid=True)

    def check_network(self, network: Any) -> None:
        """The transformer takes the VAE's latents, and attention that knows masks.

        Raises:
            ConfigError: it does not, or another kernel is asked for.
        """
        channels = self.latent_shape[0]
        if network.config.in_channels != channels:
            message = explain(
                f"model.source {self.settings.source}",
                got=f"a transformer of {network.config.in_channels} channels",
                expected=f"{channels}, as the VAE has",
            )
            raise ConfigError(message)
        if self.settings.attention not in ("auto", "sdpa"):
            message = explain(
                "model.attention",
                got=self.settings.attention,
                expected="sdpa: padding of texts is masked, which other kernels do not know",
            )
            raise ConfigError(message)

    # --- text -----------------------------------------------------------------------------------------------

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel], `text_mask` [prompt, token], `pooled` [prompt, channel].

        The last is the mean of the states over real tokens.
        """
        ids, mask = tokens
        states = encoders[0](ids, attention_mask=mask)[0]
        real = mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * real).sum(1) / real.sum(1).clamp(min=1)
        return {"text": states, "text_mask": mask.bool(), "pooled": pooled}

    @torch.no_grad()
    def contrast_conditioning(self, prompts: Sequence[str], negatives: Sequence[str] | None) -> Conditioning:
        """The empty prompt, or the user's, each filled up to the length of its prompt and seen whole."""
        rows = []
        for prompt, negative in zip(prompts, negatives or [""] * len(prompts), strict=True):
            length = int(self.reader.tokens([prompt])[1].sum())
            filled = self.tokenizers[0](
                [negative], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            states = self._states_of([filled.input_ids, filled.attention_mask])
            rows.append({**states, "text_mask": torch.ones_like(states["text_mask"])})
        return Conditioning(shared={**padded(rows), **self._whole_media(len(rows))})

    # --- the network ----------------------------------------------------------------------------------------

    def network_time(self, timestep: Shaped[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Sigma, from 0 to 1."""
        return timestep.to(torch.float32) / self.schedule.num_timesteps

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """Text states, which of them are real, their mean, and seconds."""
        return {
            "encoder_hidden_states": conditioning["text"],
            "text_mask": conditioning["text_mask"],
            "pooled": conditioning["pooled"],
            "seconds": self.seconds(conditioning["length"]),
        }

    def pack(self, latents: Float[Tensor, "row channel frame"]) -> Float[Tensor, "row frame channel"]:
        """Frames before channels."""
        return latents.transpose(1, 2)

    def unpack(self, packed: Float[Tensor, "row frame channel"]) -> Float[Tensor, "row channel frame"]:
        """Inverse of `pack`."""
        return packed.transpose(1, 2)

    def set_steps(self, scheduler: Any, num_steps: int) -> None:
        """Evenly from 1 down to `1 / num_steps`."""
        sigmas = torch.linspace(1.0, 1 / num_steps, num_steps, dtype=torch.float64).tolist()
        scheduler.set_timesteps(sigmas=sigmas, device=self.device)

    def save_model(self, folder: str | Path) -> Path:
        """Write an official repository, which TangoFlux's own code reads, adapters merged in."""
        return save_tangoflux(self, folder)


FAMILY = AudioFamily(name="tangoflux", model=TangoFlux, open_source=open_tangoflux)

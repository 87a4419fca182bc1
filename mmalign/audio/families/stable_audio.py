"""Stable Audio Open: a transformer over stereo waveform latents, told text, begin and end of the sound.

The network sees `x_t = cos(pi t / 2) clean + sin(pi t / 2) noise` and predicts the velocity; t in (0, 1) is
its time input. Texts are filled up to the tokenizer's length, and padding counts as tokens of zero, which
attention sees. Without a prompt all tokens are zero, those of the duration, too, as the pipeline has it
without a negative prompt; a prompt of "" is no prompt here. Projections of text and duration stay frozen.

Source: diffusers pipelines/stable_audio; 2407.14358.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmalign.audio.clips import AudioReader
from mmalign.audio.cosine_sampler import COSINE_SCHEDULER
from mmalign.audio.family import AudioFamily
from mmalign.audio.pipeline_saving import save_pipeline_folder
from mmalign.audio.pipeline_source import AudioPipelineSource, pipeline_opener
from mmalign.audio.timed import TimedAudioModel
from mmalign.diffusion.autoencoder import weight_digest
from mmalign.diffusion.model import DiffusionModel
from mmalign.errors import ConfigError, explain
from mmalign.files import fingerprint
from mmalign.likelihood.cosine_schedule import CosineSchedule
from mmalign.likelihood.schedules import DeviceTable, Schedule

__all__ = ["FAMILY", "StableAudio"]


class StableAudio(TimedAudioModel):
    """A loaded Stable Audio Open."""

    family: ClassVar[str] = "stable_audio"
    network_part: ClassVar[str] = "transformer"
    network_class: ClassVar[str] = "StableAudioDiTModel"
    long_tokenizer: ClassVar[str | None] = "tokenizer"
    text_masks: ClassVar[bool] = True
    half_dtype: ClassVar[torch.dtype] = torch.float16

    source: AudioPipelineSource

    @property
    def default_duration(self) -> float:
        """What the network's positions were trained for: 1024 latent frames, 47.55 s."""
        return self._frames * self.autoencoder.hop_length / self.autoencoder.sampling_rate

    @cached_property
    def _frames(self) -> int:
        """Latent frames of the whole window, as the network's settings say."""
        return int(self.source.settings_of(self.network_part)["sample_size"])

    @property
    def default_text_length(self) -> int:
        """The tokenizer's: 128."""
        return min(512, int(self.tokenizers[0].model_max_length))

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As the pipeline."""
        return 100, 7.0

    def _make_schedule(self) -> Schedule:
        return CosineSchedule()

    def _make_reader(self) -> AudioReader:
        return replace(super()._make_reader(), padding="max_length")

    def check_network(self, network: Any) -> None:
        """The transformer takes the VAE's latents, and the folder's sampler is the one it was made for.

        Raises:
            ConfigError: it does not, or the sampler is another.
        """
        channels = self.latent_shape[0]
        if network.config.in_channels != channels:
            message = explain(
                f"model.source {self.settings.source}",
                got=f"a transformer of {network.config.in_channels} channels",
                expected=f"{channels}, as the VAE has",
            )
            raise ConfigError(message)
        if self.scheduler_class != "CosineSampler" or self.prediction != "v_prediction":
            message = explain(
                f"model.source {self.settings.source}, part scheduler",
                got=f"{self.scheduler_class} of {self.prediction}",
                expected=f"{COSINE_SCHEDULER} of v_prediction, which tells the network t from 0 to 1",
            )
            raise ConfigError(message)

    # --- text and duration ----------------------------------------------------------------------------------

    @cached_property
    def projection(self) -> Any:
        """What projects text states and embeds seconds; frozen."""
        return self.source.part("projection_model", dtype=self.dtype).to(self.device)

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel], projected, and `prompted` [prompt].

        Both are zero where there is nothing but the end of a text.
        """
        ids, mask = tokens
        states = encoders[0](ids, attention_mask=mask)[0]
        prompted = mask.sum(1) > 1
        projected = self.projection(text_hidden_states=states).text_hidden_states
        seen = mask * prompted.unsqueeze(1)
        return {"text": projected * seen.unsqueeze(-1).to(projected.dtype), "prompted": prompted}

    @torch.no_grad()
    def timing(self, length: Int[Tensor, " prompt"]) -> dict[str, Tensor]:
        """`begin` and `end` [prompt, 1, channel]: embedded seconds, 0 and the clip's length."""
        seconds = self.seconds(length)
        found = self.projection(start_seconds=torch.zeros_like(seconds), end_seconds=seconds)
        return {"begin": found.seconds_start_hidden_states, "end": found.seconds_end_hidden_states}

    def cache_text(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Text states of each prompt at full length: padding counts."""
        return DiffusionModel.cache_text(self, prompts)

    def text_fingerprint(self) -> str:
        """Identity of what turns prompts into text states, the projection included."""
        return fingerprint(super().text_fingerprint(), weight_digest(self.projection))

    # --- the network ----------------------------------------------------------------------------------------

    def network_time(self, timestep: Shaped[Tensor, " row"]) -> Float[Tensor, " row"]:
        """t, from 0 to 1."""
        return timestep.to(torch.float32) / self.schedule.num_timesteps

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """Text tokens and those of begin and end, both again as one state for the whole, and positions."""
        text, begin, end = (conditioning[name] for name in ("text", "begin", "end"))
        prompted = conditioning["prompted"].view(-1, 1, 1).to(text.dtype)
        return {
            "encoder_hidden_states": torch.cat([text, begin * prompted, end * prompted], dim=1),
            "global_hidden_states": torch.cat([begin, end], dim=2),
            "rotary_embedding": self._positions(text.device),
        }

    def _positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotary embedding (cosines, sines) of the frames and the one global token before them."""
        cosine, sine = self._rotary
        return cosine.on(device), sine.on(device)

    @cached_property
    def _rotary(self) -> tuple[DeviceTable, DeviceTable]:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        width = self.bare_network.config.attention_head_dim // 2
        cosine, sine = get_1d_rotary_pos_embed(
            width, self.latent_shape[-1] + 1, use_real=True, repeat_interleave_real=False
        )
        return DeviceTable(cosine), DeviceTable(sine)

    # --- sampling, saving -----------------------------------------------------------------------------------

    def sampler(self, name: str | None) -> Any:
        """The model's own sampler, which is the only one.

        Raises:
            ConfigError: another is asked for.
        """
        from mmalign.audio.cosine_sampler import CosineSampler

        if name is not None:
            message = explain(
                "sampler", got=f"{name} for Stable Audio", expected="none: its own counts noise otherwise"
            )
            raise ConfigError(message)
        return CosineSampler.from_config(self.scheduler_config)

    def save_model(self, folder: str | Path) -> Path:
        """Write a `StableAudioPipeline` folder, adapters merged in."""
        return save_pipeline_folder(self, folder)


PIPELINES = ("StableAudioPipeline",)

FAMILY = AudioFamily(
    name="stable_audio",
    model=StableAudio,
    open_source=pipeline_opener(
        "stable_audio", PIPELINES, (StableAudio.network_part, StableAudio.network_class)
    ),
    pipelines=PIPELINES,
)

"""ACE-Step 1.5: rectified flow over stereo waveform latents of music, told a caption in a template.

The template, the instruction and the silence that stands for a missing reference are the pipeline's; lyrics
are empty: this trains music without words. Its cross-attention knows no masks, so prompts are encoded one by
one and rows of one length go through the network together. Guidance contrasts with a learned state, which
stands for every empty prompt, dropped ones included: attention to equal tokens is attention to one.

Source: diffusers pipelines/ace_step.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmalign.audio.family import AudioFamily
from mmalign.audio.pipeline_saving import save_pipeline_folder
from mmalign.audio.pipeline_source import AudioPipelineSource, pipeline_opener
from mmalign.audio.traits import Guide
from mmalign.audio.waveform_model import WaveformModel
from mmalign.diffusion.clip_reader import padded
from mmalign.errors import ConfigError, explain
from mmalign.likelihood.schedules import DeviceTable

__all__ = ["DURATION", "FAMILY", "SHIFT", "AceStep", "CaptionTokenizer"]

DURATION = 60.0
"""Seconds, unless the run says otherwise. Source: the pipeline's default."""

SHIFT = 3.0
"""Of the sampler's noise levels towards noise. Source: the pipeline's default."""

_REFERENCE = 30.0
"""Seconds of silence that stand for a missing reference."""


class CaptionTokenizer:
    """A tokenizer that puts captions into the pipeline's template first.

    Args:
        inner: the text encoder's tokenizer.
        duration: seconds, which the template tells.
    """

    def __init__(self, inner: Any, duration: float) -> None:
        self.inner, self.duration = inner, duration
        self.model_max_length = 256

    def texts(self, captions: Sequence[str]) -> list[tuple[str, str]]:
        """(text, lyrics) of captions without words."""
        from diffusers import AceStepPipeline

        template = AceStepPipeline.__new__(AceStepPipeline)
        return [template._format_prompt(caption, audio_duration=self.duration) for caption in captions]

    def __call__(self, captions: Sequence[str], **settings: Any) -> Any:
        """Token ids of captions in their template."""
        return self.inner([text for text, _ in self.texts(captions)], **settings)

    def save_pretrained(self, folder: str) -> Any:
        """Write the tokenizer itself."""
        return self.inner.save_pretrained(folder)


class AceStep(WaveformModel):
    """A loaded ACE-Step 1.5."""

    family: ClassVar[str] = "ace_step"
    network_part: ClassVar[str] = "transformer"
    network_class: ClassVar[str] = "AceStepTransformer1DModel"
    text_masks: ClassVar[bool] = True
    one_duration: ClassVar[bool] = True
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16

    source: AudioPipelineSource

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """Turbo: 8 steps without guidance, which is in its weights; else as the pipeline guides."""
        return (8, 1.0) if self.bare_network.config.is_turbo else (50, 7.0)

    def _load_codec(self) -> None:
        self._open_codec()
        self.latent_shape = self.latent_shape_of(self.audio.duration or DURATION)
        self.num_samples = self.latent_shape[1] * self.autoencoder.hop_length

    def latent_shape_of(self, duration: float) -> tuple[int, ...]:
        """`(channels, frames)`: (64, 1500) for a minute.

        Raises:
            ConfigError: another length than the run's, of which the template tells.
        """
        frames = math.ceil(duration * self.sampling_rate / self.autoencoder.hop_length - 1e-6)
        shape = (self.autoencoder.num_latents, frames)
        known = getattr(self, "latent_shape", shape)
        if shape != known:
            message = explain(
                "duration", got=duration, expected=f"{self.duration:g} seconds", do="audio.duration sets it."
            )
            raise ConfigError(message)
        return shape

    def _make_reader(self) -> Any:
        self.tokenizers = [CaptionTokenizer(self.tokenizers[0], self.audio.duration or DURATION)]
        return super()._make_reader()

    def check_network(self, network: Any) -> None:
        """The transformer takes the VAE's latents.

        Raises:
            ConfigError: it does not.
        """
        channels = self.latent_shape[0]
        if network.config.audio_acoustic_hidden_dim != channels:
            message = explain(
                f"model.source {self.settings.source}",
                got=f"a transformer of {network.config.audio_acoustic_hidden_dim} channels",
                expected=f"{channels}, as the VAE has",
            )
            raise ConfigError(message)

    # --- text -----------------------------------------------------------------------------------------------

    @property
    def encoders(self) -> list[Any]:
        """The text encoder and what joins text, lyrics and reference, loaded when they are first needed."""
        if self._encoders is None:
            names = ("text_encoder", "condition_encoder")
            self._encoders = [self.source.part(name, dtype=self.dtype).to(self._home) for name in names]
        return self._encoders

    def release_encoders(self) -> None:
        """As everywhere; the silence of every clip stays, so that nothing is loaded again for it."""
        if self._encoders is not None:
            _ = self._silence
        super().release_encoders()

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel]: lyrics, reference and caption joined, and `text_mask`."""
        ids, mask = tokens
        words, joins = encoders
        lyrics = self.tokenizers[0].inner([self.tokenizers[0].texts([""])[0][1]], return_tensors="pt")
        lyric_ids = lyrics.input_ids.to(ids.device)
        frames = math.ceil(_REFERENCE * self.sampling_rate / self.autoencoder.hop_length)
        nothing = self.tokenizers[0]([""], return_tensors="pt").input_ids[0].to(ids.device)
        rows = []
        for own, real in zip(ids, mask.bool(), strict=True):
            if torch.equal(own[real], nothing):
                seen = torch.ones(1, 1, dtype=torch.bool, device=ids.device)
                rows.append({"text": joins.null_condition_emb, "text_mask": seen})
                continue
            text = words(input_ids=own[real].unsqueeze(0)).last_hidden_state
            states, seen = joins(
                text_hidden_states=text,
                text_attention_mask=torch.ones_like(text[..., 0], dtype=torch.bool),
                lyric_hidden_states=words.get_input_embeddings()(lyric_ids),
                lyric_attention_mask=torch.ones_like(lyric_ids, dtype=torch.bool),
                refer_audio_acoustic_hidden_states_packed=joins.silence_latent[:, :frames].to(text.dtype),
                refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=ids.device),
            )
            rows.append({"text": states, "text_mask": seen})
        return padded(rows)

    # --- the network ----------------------------------------------------------------------------------------

    def denoise(
        self,
        noised: Float[Tensor, "row channel *size"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
        *,
        network: nn.Module | None = None,
    ) -> Float[Tensor, "row channel *size"]:
        """As every family, rows with texts of one length together."""
        used = self.network if network is None else network
        time = timestep.to(torch.float32) / self.schedule.num_timesteps
        time = time.to(next(used.parameters()).dtype)
        told = {**conditioning, "time": time}
        mask = conditioning["text_mask"]
        lengths = [mask.shape[1]] if mask.is_meta else mask.sum(1).unique().tolist()
        if lengths == [mask.shape[1]]:
            return super().denoise(noised, time, told, network=network)
        places, parts = [], []
        for length in lengths:
            rows = (mask.sum(1) == length).nonzero().flatten()
            own = {name: value[rows] for name, value in told.items()}
            own["text"] = own["text"][:, :length]
            parts.append(super().denoise(noised[rows], time[rows], own, network=network))
            places.append(rows)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """Joined states, the time again (no mean flow), and silence that is to be filled everywhere."""
        text = conditioning["text"]
        context = self._silence.on(text.device, text.dtype)
        context = torch.cat([context, torch.ones_like(context)], dim=-1)
        return {
            "timestep_r": conditioning["time"],
            "encoder_hidden_states": text,
            "context_latents": context.expand(text.shape[0], -1, -1),
        }

    @cached_property
    def _silence(self) -> DeviceTable:
        """Encoded silence as long as the clip, [1, frame, channel]."""
        silence = self.encoders[1].silence_latent.detach().float().cpu()
        frames = self.latent_shape[1]
        return DeviceTable(silence.repeat(1, -(-frames // silence.shape[1]), 1)[:, :frames].clone())

    def pack(self, latents: Float[Tensor, "row channel frame"]) -> Float[Tensor, "row frame channel"]:
        """Frames before channels."""
        return latents.transpose(1, 2)

    def unpack(self, packed: Float[Tensor, "row frame channel"]) -> Float[Tensor, "row channel frame"]:
        """Inverse of `pack`."""
        return packed.transpose(1, 2)

    # --- sampling, saving -----------------------------------------------------------------------------------

    def set_steps(self, scheduler: Any, num_steps: int) -> None:
        """Evenly from 1 to 0, shifted towards noise."""
        levels = torch.linspace(1.0, 0.0, num_steps + 1)[:-1]
        scheduler.set_timesteps(
            sigmas=(SHIFT * levels / (1 + (SHIFT - 1) * levels)).tolist(), device=self.device
        )

    def guide(self, scale: float) -> Guide:
        """Adaptive projected guidance with momentum, as the pipeline."""
        from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

        momentum = MomentumBuffer(momentum=-0.75)

        def guided(prompted: Tensor, without: Tensor) -> Tensor:
            found: Tensor = normalized_guidance(
                pred_cond=prompted,
                pred_uncond=without,
                guidance_scale=scale - 1.0,
                momentum_buffer=momentum,
                eta=0.0,
                norm_threshold=2.5,
                use_original_formulation=True,
                norm_dim=(2,),
            )
            return found

        return guided

    def save_model(self, folder: str | Path) -> Path:
        """Write an `AceStepPipeline` folder, adapters merged in."""
        return save_pipeline_folder(self, folder)


PIPELINES = ("AceStepPipeline",)

FAMILY = AudioFamily(
    name="ace_step",
    model=AceStep,
    open_source=pipeline_opener("ace_step", PIPELINES, (AceStep.network_part, AceStep.network_class)),
    pipelines=PIPELINES,
)

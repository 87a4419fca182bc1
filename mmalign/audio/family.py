"""The audio family contract: everything that text-to-audio models share, whatever their networks.

A family file supplies what differs: how its checkpoints are opened, what stands between waveforms and
latents, how its text becomes conditioning. Clips, prompt dropout, caches, sampling and saving are here, once;
what sound shares with pictures is in `DiffusionModel`.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.audio.clips import AudioReader, ClipLoader
from mmalign.audio.traits import AudioTraits
from mmalign.batch import RowKeys
from mmalign.data.audio_media import DecodedAudio
from mmalign.data.cache import CacheIdentity
from mmalign.data.config import AudioLimits
from mmalign.diffusion.autoencoder import LatentCodec, Moments
from mmalign.diffusion.clip_reader import padded
from mmalign.diffusion.loading import PartSource
from mmalign.diffusion.opened_family import OpenedFamily
from mmalign.errors import ConfigError, explain
from mmalign.seeding import derive_seed

if TYPE_CHECKING:
    from mmalign.train.audio_sections import AudioConfig
    from mmalign.train.sections import ModelConfig

__all__ = ["AudioFamily", "AudioModel", "frames_of"]


class AudioModel(AudioTraits):
    """A loaded text-to-audio model; what the training loop, the samplers and the exporters work with.

    Args:
        source: where the parts come from.
        settings: the run's `model` section.
        audio: the run's `audio` section.
        device: where everything runs.
        dtype: of frozen parts.
        network_dtype: of the trained network (float32 for full fine-tuning); default `dtype`.

    Attributes:
        sampling_rate: of its sound, Hz.
        channels: of its sound.
        num_samples: of its clips, at the run's duration.
        codec: waveforms to latents and back (also `autoencoder`).
    """

    default_level: ClassVar[Literal["peak", "none"]] = "none"
    """What is done to the level of clips unless the run says otherwise."""
    default_channel: ClassVar[Literal["first", "mean"]] = "mean"
    """What a model of one channel hears of several unless the run says otherwise."""
    time_axis: ClassVar[int] = 1
    """Of its latents, channels being axis 0: where labels in time lie."""

    autoencoder: Any  # a LatentCodec with `moments` of waveforms and `decode`
    reader: AudioReader
    sampling_rate: int
    channels: int
    num_samples: int

    def __init__(
        self,
        source: PartSource,
        settings: "ModelConfig",
        audio: "AudioConfig",
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        network_dtype: torch.dtype | None = None,
    ) -> None:
        self.audio = audio
        self._dropout_seed: int | None = None
        self._text_room = 0
        super().__init__(source, settings, device=device, dtype=dtype, network_dtype=network_dtype)

    @property
    def media(self) -> "AudioConfig":
        """The run's `audio` section."""
        return self.audio

    @property
    def codec(self) -> LatentCodec:
        """Waveforms to latents and back."""
        codec: LatentCodec = self.autoencoder
        return codec

    @property
    def duration(self) -> float:
        """Seconds of its clips."""
        return self.num_samples / self.sampling_rate

    @abstractmethod
    def latent_shape_of(self, duration: float) -> tuple[int, ...]:
        """Event shape of the latents of a clip of so many seconds. Raises ConfigError."""

    # --- data -----------------------------------------------------------------------------------------------

    def _make_reader(self) -> AudioReader:
        audio = self.audio
        level = self.default_level if audio.normalise == "family" else audio.normalise
        channel = self.default_channel if audio.channel == "family" else audio.channel
        clips = ClipLoader(
            sampling_rate=self.sampling_rate,
            num_samples=self.num_samples,
            channels=self.channels,
            channel=channel,
            level=level,
        )
        self.notes.append(
            f"clips: {self.duration:g} s at {self.sampling_rate} Hz, "
            f"{'stereo' if self.channels == 2 else f'{channel} channel'}, level {level}"
        )
        return AudioReader(
            **self._text_reading(),
            padding="longest",
            clips=clips,
            mixed=audio.mix_augmentation,
        )

    @property
    def clips(self) -> ClipLoader:
        """What reads the clips of rows; `mmalign data cache` names entries by it."""
        return self.reader.clips

    def limit_audio(self, limits: AudioLimits) -> None:
        """Refuse clips beyond other sizes than the usual ones."""
        self.reader = replace(self.reader, clips=replace(self.reader.clips, limits=limits))

    # --- encoding -------------------------------------------------------------------------------------------

    def audio_moments(self, waves: Float[Tensor, "row channel sample"]) -> Moments:
        """Mean and standard deviation of the unscaled latents of waveforms, float32."""
        moments: Moments = self.autoencoder.moments(waves)
        return moments

    def cache_moments(self, inputs: Float[Tensor, "row channel sample"]) -> Moments:
        """`audio_moments`, under the name that all media have."""
        return self.audio_moments(inputs)

    def cache_text(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Text states `[...]` of each prompt, without what filled it up to the longest of the batch."""
        found = []
        for states in super().cache_text(prompts):
            length = int(states["text_mask"].sum()) if "text_mask" in states else None
            cut = {"text", "text_mask"}
            found.append({name: value[:length] if name in cut else value for name, value in states.items()})
        return found

    def _conditions(self, collated: Mapping[str, Any], keys: RowKeys, *, count: int) -> dict[str, Tensor]:
        """As every model; with dropout inside the text encoder, where the run wants it."""
        with self._text_dropout(keys):
            return super()._conditions(collated, keys, count=count)

    @contextmanager
    def _text_dropout(self, keys: RowKeys) -> Iterator[None]:
        """The text encoder in training mode, if the run says so; its dropout is decided by the keys."""
        if not self.audio.text_encoder_dropout:
            yield
            return
        self._empty_states()  # what guidance contrasts with is never dropped out
        host = keys.on_host() or keys
        self._dropout_seed = derive_seed(int(host.key[0]), "text_encoder_dropout")
        try:
            yield
        finally:
            self._dropout_seed = None

    def _states_of(self, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
        """As in the base; in training mode, with a generator of its own, where dropout is wanted."""
        if self._dropout_seed is None:
            return super()._states_of(tokens)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._dropout_seed)
            for encoder in self.encoders:
                encoder.train()
            try:
                return super()._states_of(tokens)
            finally:
                for encoder in self.encoders:
                    encoder.eval()

    def _drop(self, text: Mapping[str, Tensor], dropped: Bool[Tensor, " prompt"]) -> dict[str, Tensor]:
        """Text states with those of the empty prompt, or zeros, where `dropped`; masks of zeros stay."""
        empty = self._empty_states()
        if self.audio.dropped_prompt == "zeros":
            empty = {name: torch.zeros_like(value) for name, value in empty.items() if name != "text_mask"}
        found = dict(text)
        for name, stands_in in empty.items():
            value = text[name]
            if name in ("text", "text_mask") and self.audio.dropped_prompt == "empty":
                length = value.shape[-2 if name == "text" else -1]
                missing = length - stands_in.shape[1]
                stands_in = F.pad(stands_in, (0, 0, 0, missing) if name == "text" else (0, missing))
            if value.ndim > stands_in.ndim:  # a prompt per candidate
                stands_in = stands_in.unsqueeze(1)
            found[name] = torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), stands_in, value)
        return found

    def _joined(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Text states of several prompts, filled up to the longest (of all that were announced)."""
        return padded(rows, least=self._text_room)

    def make_room_for(self, prompts: Sequence[str]) -> None:
        """Fill the texts of prompts up to the longest of these from now on.

        Samples that wait to be trained on are joined with those of other prompts, and need one length.
        """
        self._text_room = max(1, *(self.reader.tokens([prompt])[0].shape[1] for prompt in prompts))

    # --- sound ----------------------------------------------------------------------------------------------

    def decode_waveforms(
        self, latents: Float[Tensor, "row channel *size"]
    ) -> Float[Tensor, "row heard sample"]:
        """Waveforms in [-1, 1] of scaled latents, on the device; gradients flow where they are on."""
        waves: Tensor = self.autoencoder.decode(latents)
        return waves

    def sample(
        self, prompts: Sequence[str], *, seed: int, num_steps: int, guidance_scale: float, **options: Any
    ) -> list[DecodedAudio]:
        """Clips of prompts; the noise of prompt i depends on (seed, i) only. See `sampling.generate`."""
        from mmalign.audio.sampling import generate

        return generate(
            self, prompts, seed=seed, num_steps=num_steps, guidance_scale=guidance_scale, **options
        )

    def save_adapter(self, folder: str | Path) -> Path:
        """Write the adapter for peft and for diffusers' `load_lora_adapter` into a folder; returns it."""
        from mmalign.audio.saving import save_audio_adapter

        return save_audio_adapter(self, folder)

    def cache_identity(self) -> CacheIdentity:
        """What a cache of encoded inputs must have been made with to serve this model."""
        return CacheIdentity(
            vae=self.vae_fingerprint(), text=self.text_fingerprint(), audio=self.reader.clips.rule
        )


@dataclass(frozen=True)
class AudioFamily(OpenedFamily[AudioModel]):
    """What the registry finds under a family's name."""

    modality: ClassVar[str] = "audio"


def frames_of(duration: float, *, sampling_rate: int, hop_length: int, multiple: int) -> int:
    """Spectrogram frames of a clip.

    Args:
        duration: seconds.
        sampling_rate: Hz.
        hop_length: samples per frame.
        multiple: of frames that the model needs.

    Raises:
        ConfigError: the duration is no such multiple.
    """
    frames = round(duration * sampling_rate / hop_length)
    if frames < multiple or frames % multiple or abs(frames * hop_length / sampling_rate - duration) > 1e-6:
        nearest = max(1, round(duration * sampling_rate / hop_length / multiple)) * multiple
        step = multiple * hop_length / sampling_rate
        message = explain(
            "audio.duration",
            got=duration,
            expected=f"a multiple of {step:g} seconds ({multiple} frames)",
            do=f"The nearest is {nearest * hop_length / sampling_rate:g}.",
        )
        raise ConfigError(message)
    return frames

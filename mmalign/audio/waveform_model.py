"""What models over latents of waveforms share: Stable Audio's VAE, the model's own or the run's."""

from typing import Any

import torch

from mmalign.audio.family import AudioModel
from mmalign.audio.waveform_codec import WaveformCodec, load_oobleck

__all__ = ["WaveformModel"]


class WaveformModel(AudioModel):
    """A model of sound whose latents are those of waveforms."""

    autoencoder: WaveformCodec

    def _open_codec(self) -> None:
        """Set codec, rate and channels. Raises ConfigError."""
        replacement = self.settings.vae

        def load(dtype: torch.dtype) -> Any:
            if replacement is None:
                return self.source.part("vae", dtype=dtype)
            return load_oobleck(replacement, dtype=dtype)

        self.autoencoder = WaveformCodec(
            load,
            device=self.device,
            home=self._home,
            dtype=self.dtype,
            origin="the model's own VAE" if replacement is None else f"VAE {replacement}",
        )
        self.notes.append(self.autoencoder.note)
        self.sampling_rate, self.channels = self.autoencoder.sampling_rate, self.autoencoder.channels

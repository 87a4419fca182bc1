"""Waveforms to latents and back without a spectrogram: Stable Audio's VAE, which others took over."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.diffusion.autoencoder import LatentCodec, Moments, on_device, weight_digest
from mmalign.diffusion.loading import kind_of_source, told_as_settings
from mmalign.errors import ConfigError, explain
from mmalign.files import fingerprint

__all__ = ["WaveformCodec", "load_oobleck"]


class WaveformCodec(LatentCodec):
    """An `AutoencoderOobleck`, in float32; its latents are not scaled.

    The posterior's standard deviation is `softplus(s) + 1e-4`, as the library has it.

    Args:
        load: reads the VAE in a dtype.
        device: where it works.
        home: where it waits between uses.
        dtype: of the run's frozen parts.
        origin: what it is called in notes.

    Attributes:
        note: what dtype was chosen.
    """

    def __init__(
        self,
        load: Callable[[torch.dtype], Any],
        *,
        device: torch.device,
        home: torch.device,
        dtype: torch.dtype,
        origin: str,
    ) -> None:
        super().__init__(load, device=device, home=home, dtype=dtype)
        self.note = f"latents: {origin} in {str(self.dtype).removeprefix('torch.')}"

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.config["downsampling_ratios"])

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return int(self.config["sampling_rate"])

    @property
    def channels(self) -> int:
        """Of sound."""
        return int(self.config["audio_channels"])

    @property
    def num_latents(self) -> int:
        """Channels of a latent."""
        return int(self.config["decoder_input_channels"])

    def _statistics(self, latents: Tensor) -> tuple[float, float]:
        del latents
        return 0.0, 1.0

    @torch.no_grad()
    def moments(self, waves: Float[Tensor, "row heard sample"]) -> Moments:
        """Mean and standard deviation `[row, channel, sample / hop]` of the latents.

        One clip at a time: half a minute of stereo fills gigabytes of feature maps.
        """
        return self._moments(waves.split(1), lambda wave: wave.to(self.device, self.dtype))

    def decode(self, latents: Float[Tensor, "row channel frame"]) -> Float[Tensor, "row heard sample"]:
        """Waveforms in [-1, 1] of latents, on the device; gradients flow where they are on."""
        placed = latents.to(self.device, self.dtype)
        with on_device(self.module, device=self.device, home=self.home):
            parts = [self.module.decode(part).sample for part in placed.split(1)]
        return torch.cat(parts).clamp(-1.0, 1.0)

    def fingerprint(self) -> str:
        """Identity of what turns waveforms into moments."""
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        return fingerprint(config, str(self.dtype), weight_digest(self.module.encoder))


def load_oobleck(source: str, *, dtype: torch.dtype) -> Any:
    """A VAE of waveforms on its own: hub id, its folder, or a pipeline folder with `vae/`.

    Raises:
        ConfigError: nothing is there, or it is no such VAE.
    """
    from diffusers import AutoencoderOobleck

    kind = kind_of_source(source, "model.vae")
    inside = {"subfolder": "vae"} if kind == "folder" and (Path(source) / "vae").is_dir() else {}
    with told_as_settings(f"model.vae {source}", "It must be the hub id or folder of an AutoencoderOobleck."):
        kept = AutoencoderOobleck.load_config(source, **inside).get("_class_name", "")
        if kept != AutoencoderOobleck.__name__:
            message = explain(f"model.vae {source}", got=kept, expected=AutoencoderOobleck.__name__)
            raise ConfigError(message)
        vae = AutoencoderOobleck.from_pretrained(source, dtype=dtype, use_safetensors=True, **inside)
    vae.requires_grad_(False)
    return vae.eval()

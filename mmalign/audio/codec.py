"""Waveforms to latents and back by way of a mel spectrogram: AudioLDM's VAE and its vocoder."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.audio.mel import MelFrontEnd
from mmalign.diffusion.autoencoder import LatentCodec, Moments, on_device, weight_digest
from mmalign.files import fingerprint

__all__ = ["MelCodec"]

_AT_ONCE = 4
"""Clips per call: the VAE's feature maps of ten seconds take about 200 MB each."""


class MelCodec(LatentCodec):
    """A VAE of log-mel spectrograms, with the vocoder that makes sound of them; both in float32.

    Args:
        load: reads the VAE in a dtype.
        load_vocoder: reads the vocoder in a dtype.
        front: from waveforms to spectrograms.
        num_frames: of every spectrogram.
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
        load_vocoder: Callable[[torch.dtype], Any],
        *,
        front: MelFrontEnd,
        num_frames: int,
        device: torch.device,
        home: torch.device,
        dtype: torch.dtype,
        origin: str,
    ) -> None:
        super().__init__(load, device=device, home=home, dtype=dtype)
        self._load_vocoder, self._vocoder = load_vocoder, None
        self.front, self.num_frames = front, num_frames
        self.note = f"latents: {origin} in {str(self.dtype).removeprefix('torch.')}"

    @property
    def shrink(self) -> int:
        """Frames, and bands, per latent."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    @property
    def vocoder(self) -> Any:
        """The vocoder, loaded when it is first needed."""
        if self._vocoder is None:
            self._vocoder = self._load_vocoder(self.dtype).to(self.home)
        return self._vocoder

    def release(self) -> None:
        """Free the memory of both."""
        super().release()
        self._vocoder = None

    @torch.no_grad()
    def spectrogram(self, waves: Float[Tensor, "row 1 sample"]) -> Float[Tensor, "row 1 frame mel"]:
        """Log-mel spectrograms on the device."""
        placed = waves.to(self.device, self.wide, non_blocking=True).squeeze(1)
        return self.front.log_mel(placed, num_frames=self.num_frames).unsqueeze(1)

    @torch.no_grad()
    def moments(self, waves: Float[Tensor, "row 1 sample"]) -> Moments:
        """Mean and standard deviation `[row, channel, frame / shrink, mel / shrink]` of unscaled latents."""
        return self._moments(waves.split(_AT_ONCE), self.spectrogram)

    def mel_of(self, latents: Float[Tensor, "row channel *size"]) -> Float[Tensor, "row 1 frame mel"]:
        """Log-mel spectrograms of scaled latents, on the device; gradients flow where they are on."""
        placed = latents.to(self.device, self.wide)
        with on_device(self.module, device=self.device, home=self.home):
            parts = [self.module.decode(self.unscale(part)).sample for part in placed.split(_AT_ONCE)]
        return torch.cat(parts)

    def sound_of(self, mel: Float[Tensor, "row 1 frame mel"]) -> Float[Tensor, "row 1 sample"]:
        """Waveforms in [-1, 1] of log-mel spectrograms, on the device.

        AudioLDM's vocoder gives `160 * frames + 32` samples: its first layer adds one frame of its own rate.
        """
        with on_device(self.vocoder, device=self.device, home=self.home):
            parts = [
                self.vocoder(part.squeeze(1).to(self.device, self.dtype)) for part in mel.split(_AT_ONCE)
            ]
        return torch.cat(parts).unsqueeze(1).clamp(-1.0, 1.0)

    def decode(self, latents: Float[Tensor, "row channel *size"]) -> Float[Tensor, "row 1 sample"]:
        """Waveforms in [-1, 1] of scaled latents, on the device."""
        return self.sound_of(self.mel_of(latents))

    def fingerprint(self) -> str:
        """Identity of what turns waveforms into moments."""
        return fingerprint(super().fingerprint(), self.front.config(), self.num_frames)

    def vocoder_fingerprint(self) -> str:
        """Identity of what turns spectrograms into sound."""
        return fingerprint(str(self.dtype), weight_digest(self.vocoder))

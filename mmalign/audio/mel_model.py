"""What models over latents of log-mel spectrograms share: AudioLDM's VAE and vocoder, and their lengths."""

import math
from abc import abstractmethod
from typing import ClassVar, Literal

from mmalign.audio.codec import MelCodec
from mmalign.audio.family import AudioModel, frames_of
from mmalign.audio.mel import MelFrontEnd
from mmalign.diffusion.loading import PartSource

__all__ = ["MelModel"]


class MelModel(AudioModel):
    """A model of one channel of sound, as spectrograms.

    Attributes:
        front: from waveforms to spectrograms.
    """

    default_level: ClassVar[Literal["peak", "none"]] = "peak"
    default_channel: ClassVar[Literal["first", "mean"]] = "first"
    channels: int = 1

    autoencoder: MelCodec
    front: MelFrontEnd

    @abstractmethod
    def _default_duration(self) -> float:
        """Seconds of its clips unless the run says otherwise; asked when the VAE is there."""

    def _open_codec(self, parts: PartSource, *, origin: str) -> None:
        """Set codec, sizes and rate.

        Args:
            parts: where VAE and vocoder come from.
            origin: what the VAE is called in notes.

        Raises:
            ConfigError: the duration is no multiple of the VAE's frames.
        """
        self.sampling_rate = self.front.sampling_rate
        self.autoencoder = MelCodec(
            lambda dtype: parts.part("vae", dtype=dtype),
            lambda dtype: parts.part("vocoder", dtype=dtype),
            front=self.front,
            num_frames=0,
            device=self.device,
            home=self._home,
            dtype=self.dtype,
            origin=origin,
        )
        duration = self._default_duration() if self.audio.duration is None else self.audio.duration
        self.autoencoder.num_frames = self._frames(duration)
        self.num_samples = self.front.num_samples(self.autoencoder.num_frames)
        self.latent_shape = self.latent_shape_of(duration)
        self.notes.append(self.autoencoder.note)

    def _frames(self, duration: float) -> int:
        return frames_of(
            duration,
            sampling_rate=self.front.sampling_rate,
            hop_length=self.front.hop_length,
            multiple=self.autoencoder.shrink,
        )

    def window_of(self, duration: float) -> float:
        """The next multiple of the VAE's frames: 10.24 s for 10 s."""
        hop = self.autoencoder.shrink * self.front.hop_length
        return math.ceil(duration * self.front.sampling_rate / hop - 1e-6) * hop / self.front.sampling_rate

    def latent_shape_of(self, duration: float) -> tuple[int, ...]:
        """`(channels, frames / 4, bands / 4)`: (8, 256, 16) for 10.24 s.

        Raises:
            ConfigError: the duration is no multiple of the VAE's frames.
        """
        shrink = self.autoencoder.shrink
        channels = int(self.autoencoder.config["latent_channels"])
        return (channels, self._frames(duration) // shrink, self.front.num_mels // shrink)

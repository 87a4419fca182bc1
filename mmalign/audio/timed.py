"""Families that are told how long the sound is: latents of one window, silence after the clip's own end.

Clips are cut or filled up to the window, and the network hears of the length that they had; clips that are
made are cut to the length that was asked for.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.audio.waveform_model import WaveformModel
from mmalign.batch import Conditioning, RowKeys
from mmalign.errors import ConfigError, explain

__all__ = ["TimedAudioModel"]

_RATE, _SAMPLES = 0, 2
"""Columns of a clip's geometry."""


class TimedAudioModel(WaveformModel):
    """A model of waveforms in a window, whose conditioning says how long the clip is.

    The candidates of a prompt share one length, that of the longest: they answer one request.
    """

    told_duration: ClassVar[bool] = True

    _asked: float | None = None

    @property
    @abstractmethod
    def default_duration(self) -> float:
        """Seconds of the window that the model was trained with."""

    @property
    def longest(self) -> float:
        """Seconds that the network can be told of."""
        return self.default_duration

    def _load_codec(self) -> None:
        self._open_codec()
        window = self.default_duration if self.audio.duration is None else self.audio.duration
        frames = int(window * self.sampling_rate + 1e-6) // self.autoencoder.hop_length
        if frames < 1 or window > self.longest + 1e-6:
            shortest = self.autoencoder.hop_length / self.sampling_rate
            message = explain(
                "audio.duration",
                got=window,
                expected=f"from {shortest:.3g} (one latent frame) to {self.longest:g} seconds",
            )
            raise ConfigError(message)
        self.num_samples = int(window * self.sampling_rate + 1e-6)
        self.latent_shape = (self.autoencoder.num_latents, frames)
        whole = int(self.default_duration * self.sampling_rate + 1e-6) // self.autoencoder.hop_length
        if frames != whole:
            self.notes.append(f"window: {frames} latent frames; the model was trained with {whole}")

    def latent_shape_of(self, duration: float) -> tuple[int, ...]:
        """The window's, for any clip that fits into it: (64, 645) in TangoFlux.

        Raises:
            ConfigError: the clip is longer than the window.
        """
        if not 0 < duration <= self.duration + 1e-6:
            message = explain(
                "duration",
                got=duration,
                expected=f"up to {self.duration:g} seconds, the window of this run",
                do="audio.duration sets the window.",
            )
            raise ConfigError(message)
        return self.latent_shape

    # --- lengths --------------------------------------------------------------------------------------------

    @contextmanager
    def asked_for(self, seconds: float) -> Iterator[None]:
        """Tell the network of so many seconds meanwhile."""
        before, self._asked = self._asked, seconds
        try:
            yield
        finally:
            self._asked = before

    def _whole_media(self, num_prompts: int) -> dict[str, Tensor]:
        """`timing` of what was asked for, else of the whole window."""
        seconds = self.duration if self._asked is None else self._asked
        length = round(seconds * self.sampling_rate)
        return self.timing(torch.full((num_prompts,), length, device=self.device))

    @torch.no_grad()
    def encode(self, collated: Mapping[str, Any], keys: RowKeys) -> tuple[Tensor, Conditioning]:
        """As every family, told of the clips' own lengths, at most the window's."""
        clean, conditioning = super().encode(collated, keys)
        geometry = collated["geometry"].to(self.device)
        lengths = geometry[..., _SAMPLES] * self.sampling_rate // geometry[..., _RATE].clamp(min=1)
        longest = lengths.amax(1).clamp(max=self.num_samples)
        return clean, replace(conditioning, shared={**conditioning.shared, **self.timing(longest)})

    def timing(self, length: Int[Tensor, " prompt"]) -> dict[str, Tensor]:
        """What the conditioning says of clips of so many samples: `length` [prompt], by default."""
        return {"length": length}

    def seconds(self, length: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Samples as seconds, float32."""
        return length.to(torch.float32) / self.sampling_rate

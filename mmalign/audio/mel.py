"""From waveforms to log-mel spectrograms, as Tango and AudioLDM hear them.

Clips are brought to one length and level, framed, Fourier-transformed, summed into mel bands, and the natural
logarithm taken. Pure torch; the filterbank is computed, not downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, explain
from mmalign.likelihood.schedules import DeviceTable

__all__ = ["LOG_FLOOR", "MelFrontEnd", "fitted", "log_amplitude", "peak_normalised", "prepared"]

LOG_FLOOR = 1e-5
"""The logarithm is taken of at least this: silence is -11.512925."""


def peak_normalised(samples: Float[Tensor, "*batch sample"]) -> Float[Tensor, "*batch sample"]:
    """Without its mean, the largest amplitude at 0.5: `0.5 (x - mean x) / (max |x - mean x| + 1e-8)`."""
    centred = samples - samples.mean(-1, keepdim=True)
    return 0.5 * centred / (centred.abs().amax(-1, keepdim=True) + 1e-8)


def fitted(samples: Float[Tensor, "*batch sample"], length: int) -> Float[Tensor, "*batch length"]:
    """The first `length` samples, or all of them and silence."""
    return F.pad(samples[..., :length], (0, max(0, length - samples.shape[-1])))


def prepared(samples: Float[Tensor, "*batch sample"], length: int) -> Float[Tensor, "*batch length"]:
    """A clip as the official reader gives it: centred, cut or filled to `length`, its peak at exactly 0.5.

    The level is set before and after cutting, so that what is kept has its own peak at 0.5. A silent clip
    stays silent (the official reader divides 0 by 0 there and mends it later).

    Source: declare-lab/tango, tango2/tools/torch_tools.py, `read_wav_file`.
    """
    cut = fitted(peak_normalised(samples), length)
    peak = cut.abs().amax(-1, keepdim=True)
    return 0.5 * cut / torch.where(peak > 0, peak, 1.0)


def log_amplitude(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`log(max(values, 1e-5))`."""
    return values.clamp(min=LOG_FLOOR).log()


@lru_cache(maxsize=8)
def _filterbank(
    filter_length: int, num_mels: int, low: float, high: float, sampling_rate: int
) -> DeviceTable:
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        filter_length // 2 + 1, num_mels, low, high, sampling_rate, norm="slaney", mel_scale="slaney"
    )
    return DeviceTable(torch.from_numpy(bank).T.to(torch.float32).contiguous())


@dataclass(frozen=True)
class MelFrontEnd:
    """Everything between a waveform and its log-mel spectrogram.

    Args:
        sampling_rate: Hz.
        filter_length: samples of the Fourier transform.
        hop_length: samples between two frames.
        win_length: samples of the periodic Hann window, at most `filter_length`.
        num_mels: bands.
        low: lower edge of the lowest band, Hz.
        high: upper edge of the highest band, Hz.

    Source: declare-lab/tango, tango2/audioldm/audio/stft.py, `TacotronSTFT`.
    """

    sampling_rate: int = 16_000
    filter_length: int = 1024
    hop_length: int = 160
    win_length: int = 1024
    num_mels: int = 64
    low: float = 0.0
    high: float = 8000.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, where: str = "stft_config.json") -> "MelFrontEnd":
        """The front end of an official `stft_config.json`.

        Args:
            config: its content.
            where: the file, for messages.

        Raises:
            ConfigError: a setting is missing, unknown or no number.
        """
        names = {
            "sampling_rate": "sampling_rate",
            "filter_length": "filter_length",
            "hop_length": "hop_length",
            "win_length": "win_length",
            "n_mel_channels": "num_mels",
            "mel_fmin": "low",
            "mel_fmax": "high",
        }
        known = [name for name in names if isinstance(config.get(name), int | float)]
        if len(known) < len(names) or len(config) > len(names):
            message = explain(where, got=dict(config), expected=f"one number each for {', '.join(names)}")
            raise ConfigError(message)
        edges = {name: float(config[f"mel_f{end}"]) for name, end in (("low", "min"), ("high", "max"))}
        counts = {
            ours: int(config[theirs]) for theirs, ours in names.items() if not theirs.startswith("mel_f")
        }
        return cls(low=edges["low"], high=edges["high"], **counts)

    def config(self) -> dict[str, int | float]:
        """The content of an official `stft_config.json`."""
        return {
            "filter_length": self.filter_length,
            "hop_length": self.hop_length,
            "win_length": self.win_length,
            "n_mel_channels": self.num_mels,
            "sampling_rate": self.sampling_rate,
            "mel_fmin": int(self.low) if self.low == int(self.low) else self.low,
            "mel_fmax": int(self.high) if self.high == int(self.high) else self.high,
        }

    @property
    def filterbank(self) -> Float[Tensor, "mel frequency"]:
        """Weights of each frequency in each band: Slaney's scale and area normalisation, float32."""
        return self._bank.values

    @property
    def _bank(self) -> DeviceTable:
        return _filterbank(self.filter_length, self.num_mels, self.low, self.high, self.sampling_rate)

    def magnitudes(self, samples: Float[Tensor, "row sample"]) -> Float[Tensor, "row frame frequency"]:
        """Magnitudes (not powers) of frames centred on every `hop_length`-th sample, mirrored at the ends.

        Args:
            samples: amplitudes in [-1, 1]; what is beyond is cut, NaN is taken for silence.
        """
        clean = samples.clamp(-1, 1).nan_to_num(0.0)
        window = torch.hann_window(self.win_length, periodic=True, dtype=clean.dtype, device=clean.device)
        transformed = torch.stft(
            clean,
            self.filter_length,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        return transformed.abs().transpose(1, 2)

    def log_mel(
        self, samples: Float[Tensor, "row sample"], *, num_frames: int | None = None
    ) -> Float[Tensor, "row frame mel"]:
        """`log(max(magnitude summed into bands, 1e-5))`, time before frequency.

        Args:
            samples: amplitudes in [-1, 1].
            num_frames: frames to give; the official front end drops the last one of `1 + samples / hop`, and
                fills up with zeros where there are fewer. Default all.
        """
        bank = self._bank.on(samples.device, samples.dtype)
        mel = log_amplitude(self.magnitudes(samples) @ bank.T)
        if num_frames is None:
            return mel
        return F.pad(mel[:, :num_frames], (0, 0, 0, max(0, num_frames - mel.shape[1])))

    def num_samples(self, num_frames: int) -> int:
        """Samples of a clip of so many frames."""
        return num_frames * self.hop_length

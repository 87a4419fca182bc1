"""Sounds as rewards and metrics hear them: one channel, one sampling rate, one level; decibel mel spectra."""

from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.audio_media import DecodedAudio, read_audio
from mmalign.data.config import AudioLimits
from mmalign.data.resampling import resample
from mmalign.errors import ConfigError, explain

__all__ = ["Channels", "Level", "decibel_mels", "levelled", "one_channel", "read_sound"]

Channels = Literal["mean", "first"]
"""How several channels become one."""

Level = Literal["file", "peak"]
"""`file` leaves a sound as loud as it is; `peak` brings its largest amplitude to -1 dB of full scale."""

_PEAK = 10.0 ** (-1.0 / 20.0)

_LIMITS = AudioLimits(min_seconds=0.0)
"""Short and silent clips are sounds, too: what a model made of a prompt is not refused for being bad."""

_POWER_FLOOR = 1e-10


def read_sound(media: str | Path | bytes, *, where: str) -> DecodedAudio:
    """A sound at its own rate, whatever it came as.

    Args:
        media: a file, or encoded bytes.
        where: for messages.

    Raises:
        MissingExtraError: no decoder is installed.
        RowError: what `mmalign.data.audio_media.read_audio` raises.
    """
    return read_audio(str(media) if isinstance(media, Path) else media, where=where, limits=_LIMITS)


def one_channel(
    sound: DecodedAudio, sampling_rate: int, *, channels: Channels = "mean"
) -> Float[Tensor, " sample"]:
    """A sound as one channel at another sampling rate.

    Args:
        sound: as decoded.
        sampling_rate: wanted, Hz.
        channels: their mean, or the first alone.
    """
    samples = sound.samples.mean(dim=0) if channels == "mean" else sound.samples[0]
    return resample(samples, sound.sampling_rate, sampling_rate)


def levelled(samples: Float[Tensor, " sample"], level: Level) -> Float[Tensor, " sample"]:
    """The sound at a level of `Level`; silence stays silence.

    Raises:
        ConfigError: no such level.
    """
    if level not in get_args(Level):
        raise ConfigError(explain("level", got=level, expected=" or ".join(get_args(Level))))
    peak = samples.abs().max() if samples.numel() else torch.zeros(())
    return samples if level == "file" or not bool(peak > 0) else samples * (_PEAK / peak)


def decibel_mels(
    samples: Float[Tensor, "*batch sample"], bank: Float[Tensor, "frequency mel"], *, hop: int
) -> Float[Tensor, "*batch frame mel"]:
    """Mel spectra in decibels: `10 log10(max(bank' |STFT|^2, 1e-10))`, periodic Hann, reflected ends.

    The form librosa's defaults, PANNs and CLAP share; the bank says what sets them apart.

    Args:
        samples: amplitudes, longer than half the window.
        bank: weights of the bands; the window has `2 (frequencies - 1)` samples.
        hop: samples between two frames.
    """
    length = 2 * (len(bank) - 1)
    flat = samples.reshape(-1, samples.shape[-1])
    window = torch.hann_window(length, periodic=True, dtype=flat.dtype, device=flat.device)
    spectrum = torch.stft(
        flat, length, hop_length=hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    power = spectrum.abs().square().transpose(1, 2) @ bank.to(flat)
    decibels = 10.0 * power.clamp(min=_POWER_FLOOR).log10()
    return decibels.reshape(*samples.shape[:-1], *decibels.shape[1:])

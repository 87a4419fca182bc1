"""Sounds on pages: a spectrogram to look at, a small file to play."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mmalign.data.resampling import resample
from mmalign.rewards.sounds import decibel_mels, read_sound

__all__ = ["PLAYED", "playable", "spectrogram_picture"]

PLAYED = "audio/mpeg"
"""What `playable` gives: MP3, which every browser plays."""

_RATE, _WINDOW, _HOP, _MELS = 16_000, 1024, 160, 64
_WIDTH, _RANGE = 256, 80.0


def spectrogram_picture(path: str | Path) -> Image.Image:
    """Mel spectrum over time, low bands below, 80 dB from black to white; 256 by 128 pixels.

    Args:
        path: of the sound.

    Raises:
        RowError: it cannot be read.
    """
    from transformers.audio_utils import mel_filter_bank

    sound = read_sound(path, where=str(path))
    wave = resample(sound.samples.mean(dim=0), sound.sampling_rate, _RATE)
    wave = F.pad(wave, (0, max(0, _WINDOW - len(wave))))
    bank = mel_filter_bank(_WINDOW // 2 + 1, _MELS, 50.0, 8_000.0, _RATE, norm="slaney", mel_scale="slaney")
    mels = decibel_mels(wave, torch.from_numpy(bank).float(), hop=_HOP)
    loudest = float(mels.max())
    levels = ((mels - loudest + _RANGE) / _RANGE).clamp(0.0, 1.0) * 255.0
    grey = levels.round().to(torch.uint8).T.flip(0).contiguous().numpy()
    picture = Image.fromarray(np.asarray(grey)).resize((_WIDTH, 2 * _MELS), Image.Resampling.BILINEAR)
    return picture.convert("RGB")


def playable(path: str | Path) -> bytes:
    """The sound as MP3 at a rate MP3 has.

    Args:
        path: of the sound.

    Raises:
        MissingExtraError: soundfile is not installed.
        RowError: it cannot be read.
    """
    sound = read_sound(path, where=str(path))
    import soundfile  # reading has just needed it

    rate = min((16_000, 24_000, 32_000, 44_100, 48_000), key=lambda known: abs(known - sound.sampling_rate))
    samples = resample(sound.samples[:2], sound.sampling_rate, rate).clamp(-1.0, 1.0)
    file = io.BytesIO()
    soundfile.write(file, samples.T.numpy(), rate, format="MP3")
    return file.getvalue()

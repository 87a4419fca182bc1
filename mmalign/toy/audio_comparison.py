"""Base against aligned in the toy world of sound, and its clips as files and pictures."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.audio.mel import MelFrontEnd
from mmalign.data.audio_codecs import encode_audio
from mmalign.toy.audio_reward import Score
from mmalign.toy.audio_scenes import SAMPLING_RATE
from mmalign.toy.comparison import Paired

__all__ = ["AXES", "ClipComparison", "spectrogram", "wav_bytes"]

AXES: tuple[tuple[str, str, str], ...] = (
    ("total", "total reward", "mean of presence and order"),
    ("presence", "presence", "share of events that caption and clip have in common"),
    ("order", "order", "longest run of events in the order of the caption, as a share"),
    ("perfect", "perfect clips", "share that plays exactly what the caption says"),
)
"""Numbers of a `Score`: name, title, meaning."""

_DARKEST, _BRIGHTEST = -9.0, 0.5
_COLOURS = ((18, 22, 34), (11, 110, 95), (246, 231, 160))
"""From silence to loudness."""


class ClipComparison(Paired[Tensor, Score]):
    """Both models' clips of the same captions and their exact scores."""


def wav_bytes(wave: Float[Tensor, " sample"]) -> bytes:
    """The clip as a WAV file of 16 bits, which every browser plays."""
    return encode_audio(wave.unsqueeze(0), SAMPLING_RATE, container="wav")


def spectrogram(wave: Float[Tensor, " sample"]) -> Image.Image:
    """Log-mel magnitudes over time, low bands below: a pixel per 10 ms and band."""
    mel = MelFrontEnd(filter_length=512, win_length=512).log_mel(wave.unsqueeze(0))[0, :-1]
    level = ((mel - _DARKEST) / (_BRIGHTEST - _DARKEST)).clamp(0, 1)
    stops = torch.linspace(0, 1, len(_COLOURS)).numpy()
    table = np.array(_COLOURS, dtype=np.float64)
    flat = level.T.flip(0).numpy()
    colours = [np.interp(flat, stops, table[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(colours, axis=-1).round().astype(np.uint8))

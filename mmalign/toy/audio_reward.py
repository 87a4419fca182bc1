"""The exact reward of the toy world of sound: which events sound, in which order, read off the spectrogram.

No model is asked. A clip is cut where it is silent. A piece is a tone or a chirp where a narrow band carries
most of it, told apart by where that band lies and moves; else it is noise or clicks, told apart by gaps.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.toy.audio_scenes import SAMPLING_RATE, events_of

__all__ = ["AXES", "Heard", "Score", "compare", "hear", "score_clips"]

AXES: tuple[str, ...] = ("total", "presence", "order")

_WINDOW, _HOP = 512, 160
_SILENCE = 0.02  # of the loudest frame's amplitude: 34 dB below
_MAX_PAUSE = 0.07  # seconds within one event
_SHORTEST = 0.09  # seconds; less is no event

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """A piece of sound between two silences.

    Args:
        kind: one of `audio_scenes.EVENTS`.
        start: seconds.
        end: seconds.
    """

    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Score:
    """What a clip is worth for its caption; all in [0, 1].

    Args:
        presence: events that caption and clip share, by the larger number of events.
        order: longest common subsequence of both, by the same: at most `presence`.
        heard: kinds in the order of sounding.
        expected: what the caption says.
    """

    presence: float
    order: float
    heard: tuple[str, ...]
    expected: tuple[str, ...]

    @property
    def total(self) -> float:
        """Mean of presence and order: 1 where exactly the caption's events sound in its order."""
        return 0.5 * (self.presence + self.order)

    @property
    def perfect(self) -> bool:
        """Whether the clip is what the caption says."""
        return self.heard == self.expected


def _spectrum(wave: Float[Tensor, " sample"]) -> _Array:
    """Magnitudes [frame frequency]."""
    transformed = torch.stft(
        wave.double(),
        _WINDOW,
        hop_length=_HOP,
        window=torch.hann_window(_WINDOW, dtype=torch.float64),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    found: _Array = transformed.abs().T.numpy()
    return found


def _pieces(loud: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last-but-one frames of stretches of loud frames, short pauses bridged, short ones dropped."""
    frames = np.flatnonzero(loud)
    if not len(frames):
        return []
    breaks = np.flatnonzero(np.diff(frames) * _HOP / SAMPLING_RATE > _MAX_PAUSE)
    starts, ends = frames[np.r_[0, breaks + 1]], frames[np.r_[breaks, len(frames) - 1]] + 1
    shortest = _SHORTEST * SAMPLING_RATE / _HOP
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b - a >= shortest]


def _kind(power: _Array) -> str:
    """What kind of event a piece [frame frequency] of powers is."""
    energy = power.sum(1) + 1e-12
    peaks = power.argmax(1)
    around = np.stack(
        [power[np.arange(len(peaks)), np.clip(peaks + k, 0, power.shape[1] - 1)] for k in range(-3, 4)]
    )
    narrow = float(np.sum(around.sum(0)) / energy.sum())
    if narrow < 0.5:
        typical = np.quantile(energy, 0.9)
        return "clicks" if np.mean(energy < 0.1 * typical) > 0.25 else "noise"
    octaves = np.log2((peaks + 0.5) * SAMPLING_RATE / _WINDOW)
    times = np.linspace(-0.5, 0.5, len(energy))
    centre = np.average(times, weights=energy)
    level = np.average(octaves, weights=energy)
    spread = np.average((times - centre) ** 2, weights=energy)
    slope = float(np.average((times - centre) * (octaves - level), weights=energy) / max(spread, 1e-9))
    if abs(slope) > 1.0:
        return "rising chirp" if slope > 0 else "falling chirp"
    return "low tone" if 2**level < 800.0 else "high tone"


def hear(wave: Float[Tensor, " sample"]) -> list[Heard]:
    """Events of a clip at 16 kHz, in the order of sounding; none in silence.

    The level of the clip does not matter: silence is what is 34 dB below its loudest frame.
    """
    power = _spectrum(wave) ** 2
    amplitude = np.sqrt(power.sum(1))
    if not np.isfinite(amplitude).all() or amplitude.max() < 1e-4:
        return []
    return [
        Heard(_kind(power[first:last]), first * _HOP / SAMPLING_RATE, last * _HOP / SAMPLING_RATE)
        for first, last in _pieces(amplitude > _SILENCE * amplitude.max())
    ]


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for one in first:
        before = row
        row = [0]
        for index, other in enumerate(second):
            row.append(before[index] + 1 if one == other else max(before[index + 1], row[-1]))
    return row[-1]


def compare(heard: Sequence[str], expected: Sequence[str]) -> Score:
    """Score of a sequence of kinds against that of a caption."""
    size = max(len(heard), len(expected), 1)
    shared = sum((Counter(heard) & Counter(expected)).values())
    return Score(shared / size, _common(heard, expected) / size, tuple(heard), tuple(expected))


def score_clips(waves: Sequence[Float[Tensor, " sample"]], captions: Sequence[str]) -> list[Score]:
    """Scores of clips at 16 kHz for their captions.

    Raises:
        ConfigError: a caption is none of this world.
    """
    return [
        compare([event.kind for event in hear(wave)], events_of(caption))
        for wave, caption in zip(waves, captions, strict=True)
    ]

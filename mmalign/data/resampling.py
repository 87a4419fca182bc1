"""Change of sampling rate by a windowed sinc filter, in torch alone.

The numbers are those of torchaudio's default resampler, with which the official trainers read their clips, so
that a model hears the same sound whoever prepares it.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import HyperparameterError, explain

__all__ = ["resample", "resampled_length"]

_ROLLOFF = 0.99
"""Where the pass band ends, as a share of the lower Nyquist frequency."""

_ZERO_CROSSINGS = 6
"""Of the sinc on either side of its centre; more makes the filter sharper."""


def resampled_length(num_samples: int, source: int, target: int) -> int:
    """Samples after resampling: `ceil(num_samples * target / source)`.

    Args:
        num_samples: before.
        source: sampling rate before, Hz.
        target: sampling rate after, Hz.

    Raises:
        HyperparameterError: a rate below 1.
    """
    for name, rate in (("source", source), ("target", target)):
        if rate < 1:
            message = explain(f"resample {name}", got=rate, expected="a sampling rate of at least 1 Hz")
            raise HyperparameterError(message)
    return -(-num_samples * target // source)


@lru_cache(maxsize=32)
def _filters(source: int, target: int) -> tuple[Tensor, int]:
    """One filter per output phase `[target, tap]`, and the samples it reaches back; rates are coprime.

    Tap k of phase p weighs the input at time `k / source` for the output at `p / target`:
    `sinc(f t) * cos^2(pi f t / (2 * 6)) * f / source`, zero beyond six crossings, `f` twice the cut-off.
    """
    rate = min(source, target) * _ROLLOFF
    width = math.ceil(_ZERO_CROSSINGS * source / rate)
    taps = torch.arange(-width, width + source, dtype=torch.float64) / source
    phases = torch.arange(0, -target, -1, dtype=torch.float64) / target
    time = ((phases[:, None] + taps[None, :]) * rate).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = torch.cos(time * math.pi / _ZERO_CROSSINGS / 2).square()
    return (torch.sinc(time) * window * (rate / source)).to(torch.float32), width


def resample(
    samples: Float[Tensor, "*batch source_sample"], source: int, target: int
) -> Float[Tensor, "*batch target_sample"]:
    """The same sound at another sampling rate, `ceil(num_samples * target / source)` samples long.

    Args:
        samples: amplitudes; any leading axes (channels, clips) are resampled each on their own.
        source: sampling rate of `samples`, Hz.
        target: wanted sampling rate, Hz; frequencies above half of the lower rate are removed.

    Raises:
        HyperparameterError: a rate below 1.

    Source: pytorch/audio, torchaudio/functional/functional.py, `resample` with its defaults
        (`sinc_interp_hann`, width 6, rolloff 0.99).
    """
    length = resampled_length(samples.shape[-1], source, target)
    if source == target:
        return samples
    divisor = math.gcd(source, target)
    source, target = source // divisor, target // divisor
    filters, width = _filters(source, target)
    flat = samples.reshape(-1, samples.shape[-1])
    # On the right one more period, so that the last outputs see as far as all others.
    padded = F.pad(flat, (width, width + source))
    phases = F.conv1d(padded.unsqueeze(1), filters.to(samples).unsqueeze(1), stride=source)
    joined = phases.transpose(1, 2).flatten(1)[:, :length]
    return joined.reshape(*samples.shape[:-1], length)

"""Mixing two clips so that both are heard: levels are compared as the ear weighs them.

An augmentation of the first Tango: two clips of a micro-batch become one whose caption joins theirs by "and".
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import HyperparameterError, explain

__all__ = ["a_weighting", "loudest_level", "mix", "mixed_caption"]

_WINDOWS = {16_000: 2048, 44_100: 4096}
"""Samples per analysis frame at the rates of the official code; other rates take the same duration."""

_FLOOR_DB = -80.0


def _window_length(sampling_rate: int) -> int:
    """Samples per frame: the official numbers, else 0.128 s as at 16 kHz."""
    return _WINDOWS.get(sampling_rate) or 2 * max(1, round(0.064 * sampling_rate))


def a_weighting(sampling_rate: int, num_samples: int) -> Float[Tensor, " frequency"]:
    """A-weighting in dB of each frequency of a Fourier transform of `num_samples`, at least -80, float64.

    `2 + 20 log10( 12194^2 f^4 / ((f^2 + 12194^2)(f^2 + 20.6^2) sqrt((f^2 + 107.7^2)(f^2 + 737.9^2))) )`.
    """
    frequency = torch.linspace(0, sampling_rate // 2, num_samples // 2 + 1, dtype=torch.float64)
    square = frequency.square()
    square[0] = 1.0  # of no weight anyway, and of no logarithm
    high = 12194.0**2
    levels = (
        math.log10(high)
        + 2.0 * square.log10()
        - (square + high).log10()
        - (square + 20.6**2).log10()
        - 0.5 * (square + 107.7**2).log10()
        - 0.5 * (square + 737.9**2).log10()
    )
    return (2.0 + 20.0 * levels).clamp(min=_FLOOR_DB)


def loudest_level(samples: Float[Tensor, "*batch sample"], sampling_rate: int) -> Float[Tensor, "*batch"]:
    """A-weighted level of the loudest frame in dB, at least -80, float64.

    Frames of 2048 samples at 16 kHz (4096 at 44.1 kHz) overlap by half under a periodic Hann window; a clip
    shorter than a frame is filled up with silence.

    Args:
        samples: amplitudes.
        sampling_rate: Hz.
    """
    length = _window_length(sampling_rate)
    wide = samples.to(torch.float64)
    if wide.shape[-1] < length:
        wide = torch.nn.functional.pad(wide, (0, length - wide.shape[-1]))
    frames = wide.unfold(-1, length, length // 2)
    window = torch.hann_window(length, periodic=True, dtype=torch.float64, device=samples.device)
    power = torch.fft.rfft(frames * window).abs().square()
    weights = (10.0 ** (a_weighting(sampling_rate, length) / 10.0)).to(samples.device)
    level = (power * weights).sum(-1).clamp(min=10.0 ** (_FLOOR_DB / 10.0))
    loudest: Tensor = 10.0 * level.log10().amax(-1)
    return loudest


def mix(
    first: Float[Tensor, "*batch sample"],
    second: Float[Tensor, "*batch sample"],
    *,
    sampling_rate: int,
    share: float = 0.5,
) -> Float[Tensor, "*batch sample"]:
    """Both clips at once, as loud as `share` says: `(p x + (1 - p) y) / sqrt(p^2 + (1 - p)^2)`.

    `p = 1 / (1 + 10^((g_x - g_y) / 20) * (1 - share) / share)`, `g` the A-weighted level of the loudest frame
    in dB; with share 0.5 the quieter clip is raised until both are equally loud.

    Args:
        first: amplitudes; any leading axes, each clip on its own.
        second: of the same shape.
        sampling_rate: Hz.
        share: of the first clip, in (0, 1).

    Raises:
        HyperparameterError: the share is outside its range.

    Source: declare-lab/tango, tango2/tools/mix.py (after Tokozume et al., 1711.10282).
    """
    if not 0.0 < share < 1.0:
        message = explain("mix share", got=share, expected="a number between 0 and 1, both excluded")
        raise HyperparameterError(message)
    difference = loudest_level(first, sampling_rate) - loudest_level(second, sampling_rate)
    part = 1.0 / (1.0 + 10.0 ** (difference / 20.0) * ((1.0 - share) / share))
    weight = part.unsqueeze(-1)
    mixed = (weight * first + (1.0 - weight) * second) / (weight.square() + (1.0 - weight).square()).sqrt()
    return mixed.to(first.dtype)


def mixed_caption(first: str, second: str) -> str:
    """Both captions in one: the first, "and", the second with a small first letter.

    >>> mixed_caption("A dog barks", "Rain falls")
    'A dog barks and rain falls'
    """
    return f"{first} and {second[:1].lower()}{second[1:]}"

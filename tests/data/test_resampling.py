"""Resampling: the numbers of torchaudio, recorded, and what any resampler must do."""

import math

import pytest
import torch

from mmalign.data.resampling import resample, resampled_length
from mmalign.errors import HyperparameterError


def two_tones(num_samples: int, rate: int) -> torch.Tensor:
    time = torch.arange(num_samples, dtype=torch.float64) / rate
    first, second = torch.sin(2 * math.pi * 330 * time), torch.sin(2 * math.pi * 2100 * time + 0.3)
    return (0.4 * first + 0.2 * second).float()


# (from, to, samples, samples after), (entries 0 1 7 50 -3 -1), sum of squares, of torchaudio 2.11.0
RECORDED = [
    (
        (44100, 16000, 3092, 1122),
        (0.060027413, 0.233607039, 0.273394614, -0.049699612, 0.092462115, 0.460436761),
        111.928066,
    ),
    (
        (8000, 16000, 203, 406),
        (0.060135849, 0.196062669, 0.276400775, -0.049732029, 0.371253937, 0.247800708),
        40.66717,
    ),
    (
        (16000, 48000, 101, 303),
        (0.059392545, 0.113702707, 0.2758407, 0.531980097, 0.327994227, 0.112360016),
        29.466176,
    ),
    (
        (48000, 16000, 307, 103),
        (0.059535455, 0.233688936, 0.273394614, -0.04970089, 0.319862455, 0.224774569),
        10.041533,
    ),
    (
        (22050, 16000, 997, 724),
        (0.062883288, 0.232278705, 0.273394436, -0.04971851, -0.460548073, -0.191757634),
        72.718511,
    ),
]


@pytest.mark.parametrize(("sizes", "entries", "squares"), RECORDED)
def test_numbers_are_those_of_torchaudio(sizes, entries, squares):
    source, target, before, after = sizes
    found = resample(two_tones(before, source), source, target)
    assert found.shape == (after,)
    assert found[[0, 1, 7, 50, -3, -1]].tolist() == pytest.approx(
        entries, abs=1e-5
    )  # its filters are float32
    assert found.double().square().sum().item() == pytest.approx(squares, rel=1e-5)


def test_equal_rates_change_nothing():
    clip = two_tones(101, 16000)
    assert resample(clip, 16000, 16000) is clip


def test_leading_axes_are_resampled_each_on_their_own():
    clips = torch.stack([two_tones(101, 8000), two_tones(101, 11000)]).reshape(2, 1, 101)
    found = resample(clips, 8000, 3000)
    assert found.shape == (2, 1, resampled_length(101, 8000, 3000))
    assert torch.allclose(found[1, 0], resample(clips[1, 0], 8000, 3000), atol=1e-7)


def test_what_the_lower_rate_cannot_hold_is_removed():
    time = torch.arange(4800) / 48000
    inside = resample(torch.sin(2 * math.pi * 3000 * time), 48000, 16000)
    beyond = resample(torch.sin(2 * math.pi * 11000 * time), 48000, 16000)
    assert inside[200:-200].abs().max() > 0.98
    assert beyond[200:-200].abs().max() < 0.02


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(HyperparameterError, match=r"resample target: got 0, expected a sampling rate"):
        resample(two_tones(11, 8000), 8000, 0)

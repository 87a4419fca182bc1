"""Mixing two clips: equally loud to the ear, symmetric, of the right caption."""

import math

import pytest
import torch

from mmalign.audio.mixing import a_weighting, loudest_level, mix, mixed_caption
from mmalign.errors import HyperparameterError


def tone(frequency: float, amplitude: float, *, rate: int = 16000, num_samples: int = 8000) -> torch.Tensor:
    time = torch.arange(num_samples) / rate
    return amplitude * torch.sin(2 * math.pi * frequency * time)


def test_a_weighting_is_the_standard_curve():
    # IEC 61672: 0 dB at 1 kHz, -19.1 dB at 100 Hz, -6.6 dB near 12.5 kHz (-4.3 dB), -1.1 dB at 8 kHz.
    curve = a_weighting(48000, 48000)
    assert curve[1000].item() == pytest.approx(0.0, abs=0.05)
    assert curve[100].item() == pytest.approx(-19.1, abs=0.1)
    assert curve[8000].item() == pytest.approx(-1.1, abs=0.1)
    assert curve[0].item() == -80.0


def test_twice_the_amplitude_is_six_decibels():
    assert (
        loudest_level(tone(500, 0.4), 16000) - loudest_level(tone(500, 0.2), 16000)
    ).item() == pytest.approx(6.0206, abs=1e-3)


def test_silence_and_clips_shorter_than_a_frame_have_a_level():
    assert loudest_level(torch.zeros(3, 5000), 16000).tolist() == [-80.0] * 3
    assert loudest_level(tone(500, 0.4, num_samples=700), 16000).isfinite()


def test_the_quieter_clip_is_raised_until_both_are_heard():
    loud, quiet = tone(440, 0.5), tone(2000, 0.01)
    mixed = mix(loud, quiet, sampling_rate=16000)
    spectrum = torch.fft.rfft(mixed.double()).abs()
    low, high = spectrum[220], spectrum[1000]  # 8000 samples: bins of 2 Hz
    weights = a_weighting(16000, 8000)
    levels = [20 * torch.log10(value) + weights[place] for value, place in ((low, 220), (high, 1000))]
    assert abs((levels[0] - levels[1]).item()) < 0.2


def test_order_does_not_matter_at_equal_shares():
    first, second = tone(440, 0.5), tone(2000, 0.01)
    there, back = mix(first, second, sampling_rate=16000), mix(second, first, sampling_rate=16000)
    assert torch.allclose(there, back, atol=1e-6)
    assert there.dtype == first.dtype


def test_each_clip_of_a_batch_is_mixed_on_its_own():
    first = torch.stack([tone(440, 0.5), tone(700, 0.1), tone(300, 0.3)])
    second = first.flip(0)
    together = mix(first, second, sampling_rate=16000)
    alone = mix(first[1], second[1], sampling_rate=16000)
    assert torch.allclose(together[1], alone, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(HyperparameterError, match=r"mix share: got .*between 0 and 1"):
        mix(tone(440, 0.5), tone(440, 0.5), sampling_rate=16000, share=share)


def test_captions_are_joined_by_and():
    assert mixed_caption("A dog barks", "A cat meows") == "A dog barks and a cat meows"
    assert mixed_caption("A dog barks", "") == "A dog barks and "

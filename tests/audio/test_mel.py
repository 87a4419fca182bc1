"""The log-mel front end: what the golden case does not say."""

import math

import pytest
import torch

from mmalign.audio.mel import LOG_FLOOR, MelFrontEnd, fitted, prepared
from mmalign.errors import ConfigError

FRONT = MelFrontEnd()
OFFICIAL = {
    "filter_length": 1024,
    "hop_length": 160,
    "win_length": 1024,
    "n_mel_channels": 64,
    "sampling_rate": 16000,
    "mel_fmin": 0,
    "mel_fmax": 8000,
}


def tone(frequency: float, num_samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(num_samples) / 16000).unsqueeze(0)


def test_silence_is_the_floor_everywhere():
    mel = FRONT.log_mel(prepared(torch.zeros(1, 3000), 2080), num_frames=13)
    assert mel.shape == (1, 13, 64)
    assert torch.equal(mel, torch.full_like(mel, math.log(LOG_FLOOR)))


def test_a_clip_that_is_not_a_number_is_taken_for_silence():
    mel = FRONT.log_mel(torch.full((1, 2080), torch.nan), num_frames=13)
    assert mel.isfinite().all()


@pytest.mark.parametrize("num_samples", [700, 5000])
def test_short_clips_are_filled_with_silence_and_long_ones_cut(num_samples):
    clip = 0.1 + 0.2 * tone(440, num_samples)
    found = prepared(clip, 2080)
    assert found.shape == (1, 2080)
    assert found.abs().max().item() == pytest.approx(0.5, abs=1e-7)
    if num_samples < 2080:
        assert not found[0, num_samples:].any()


def test_what_is_kept_of_a_clip_has_its_own_peak_at_one_half():
    quiet_then_loud = torch.cat([0.01 * tone(440, 2080), tone(440, 4000)], dim=1)
    assert prepared(quiet_then_loud, 2080).abs().max().item() == pytest.approx(0.5, abs=1e-7)


def test_a_tone_is_loudest_in_the_band_that_holds_it():
    mel = FRONT.log_mel(prepared(tone(1000, 4160), 4160))[0, 13]
    edges = FRONT.filterbank @ torch.linspace(0, 8000, 513) / FRONT.filterbank.sum(1)
    assert abs(edges[mel.argmax()].item() - 1000) < 60


def test_missing_frames_are_zeros_as_in_the_official_front_end():
    mel = FRONT.log_mel(prepared(tone(1000, 1600), 1600), num_frames=17)
    assert mel.shape == (1, 17, 64)
    assert not mel[0, 11:].any()
    assert mel[0, 10].any()


def test_fitting_keeps_the_beginning():
    clip = torch.arange(7.0)
    assert fitted(clip, 3).tolist() == [0, 1, 2]
    assert fitted(clip, 11).tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0]


def test_the_official_file_is_read_and_written():
    assert MelFrontEnd.from_config(OFFICIAL) == FRONT
    assert FRONT.config() == OFFICIAL
    assert all(type(FRONT.config()[name]) is int for name in OFFICIAL)


@pytest.mark.parametrize("change", [{"hop_length": None}, {"hop_length": "160"}, {"unknown": 3}])
def test_a_file_that_says_something_else_is_refused(change):
    with pytest.raises(ConfigError, match=r"stft_config.json: got .* expected one number each for"):
        MelFrontEnd.from_config({**OFFICIAL, **change})

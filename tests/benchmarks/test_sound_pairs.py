"""Pairs of real recordings are fair pairs, and a round trip by mel bands loses what it says it loses."""

import sys
from argparse import ArgumentTypeError
from collections import Counter
from pathlib import Path

import pytest
import torch

from mmalign.audio.mel import MelFrontEnd
from mmalign.data.audio_media import decode_audio, encode_audio
from mmalign.data.audio_writers import write_audio_alpaca
from mmalign.data.config import AudioLimits

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def tones(seconds: float = 0.5, rate: int = 16_000, *, seed: int = 0) -> torch.Tensor:
    """Two channels of decaying partials and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * rate)) / rate
    partials = [
        loud * torch.sin(2 * torch.pi * pitch * time) * (-5 * time).exp()
        for loud, pitch in ((0.3, 311.0), (0.1, 622.0), (0.1, 2799.0))
    ]
    return sum(partials) + 0.01 * torch.randn(2, len(time), generator=generator)


@pytest.fixture
def folder(tmp_path):
    sounds = tmp_path / "usr" / "share" / "sounds"
    sounds.mkdir(parents=True)
    for number, name in enumerate(("Front_Left", "drum-tomHi2", "loop_3d_printer")):
        (sounds / f"{name}.flac").write_bytes(encode_audio(tones(seed=number), 16_000))
    (sounds / "click.wav").write_bytes(encode_audio(tones(0.05), 16_000, container="wav"))
    (sounds / "broken.ogg").write_bytes(b"OggS but no more")
    (sounds / "again.flac").symlink_to(sounds / "Front_Left.flac")
    text = tmp_path / "usr" / "share" / "doc" / "some-package" / "copyright"
    text.parent.mkdir(parents=True)
    text.write_text("Files: *\nLicense: CC0-1.0\n\nFiles: a\nLicense: MIT\n\nFiles: b\nLicense: CC0-1.0\n")
    return sounds


def test_recordings_are_named_after_their_files_and_what_cannot_be_used_is_counted(folder):
    from recordings import Source, licences, recordings

    refused: Counter[str] = Counter()
    found = list(recordings([Source.parse(f"things={folder}")], refused))
    assert [sound.prompt for sound in found] == [
        "front left, things",
        "drum tom hi, things",
        "loop 3d printer, things",
    ]
    assert refused["too_short"] == 1
    assert refused.total() == 2
    assert licences(folder) == "CC0-1.0, MIT"


def test_a_pattern_takes_some_files_of_a_folder(folder):
    from recordings import Source

    assert [path.name for path in Source.parse(f"drums={folder}/drum*").files()] == ["drum-tomHi2.flac"]


@pytest.mark.parametrize("text", ["no folder", "=.", "drums=/nowhere/at/all"])
def test_a_source_that_names_no_folder_is_refused(text):
    from recordings import Source

    with pytest.raises(ArgumentTypeError, match="expected KIND=FOLDER"):
        Source.parse(text)


def test_a_folder_without_a_text_says_so(tmp_path):
    from recordings import licences

    assert licences(tmp_path) == "no text of a licence found"
    (tmp_path / "LICENSE.txt").write_text("Do as you please.")
    assert licences(tmp_path) == "see LICENSE.txt"


def test_a_missing_synthesiser_says_nothing_and_an_installed_one_speaks_every_sentence(tmp_path, monkeypatch):
    from recordings import SPEECH, SYNTHESISERS, speech

    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(speech()) == []
    spoken = tmp_path / "source.wav"
    spoken.write_bytes(encode_audio(tones(), 16_000, container="wav"))
    program = tmp_path / "flite"
    program.write_text(f'#!/bin/sh\nexec /bin/cp "{spoken}" "$6"\n')
    program.chmod(0o755)
    found = list(speech(["one", "two"]))
    assert len(found) == 2 * sum(command[0] == "flite" for command in SYNTHESISERS.values())
    assert {sound.kind for sound in found} == {SPEECH}
    assert found[1].prompt == 'a voice says "two"'


@pytest.mark.parametrize("kind", ["noise", "muffled", "order"])
def test_a_spoilt_clip_is_as_long_and_as_loud_and_another(kind):
    from make_sound_pairs import spoilt

    good = tones()
    bad = spoilt(good, 16_000, kind, torch.Generator().manual_seed(3))
    assert bad.shape == good.shape
    assert torch.allclose(bad.square().mean(), good.square().mean(), rtol=1e-4)
    assert (bad - good).square().mean() > 0.02 * good.square().mean()


def test_spoiling_does_what_its_name_says():
    from make_sound_pairs import spoilt

    good = tones()
    swapped = spoilt(good, 16_000, "order", torch.Generator())
    half = good.shape[1] // 2
    assert torch.allclose(swapped[:, half:], good[:, :half], atol=1e-5)
    muffled = torch.fft.rfft(spoilt(good, 16_000, "muffled", torch.Generator())).abs().square()
    above = muffled.shape[1] * 1_200 // 8_000
    assert muffled[:, above:].sum() < 1e-3 * muffled.sum()
    with pytest.raises(ValueError, match="got 'louder', expected one of noise"):
        spoilt(good, 16_000, "louder", torch.Generator())


def test_pairs_of_recordings_pass_the_check(folder, tmp_path):
    from make_sound_pairs import make_pairs
    from recordings import Source, recordings

    from mmalign.data.check import check
    from mmalign.data.config import DataConfig

    sounds = list(recordings([Source.parse(f"things={folder}")], Counter()))
    rows = list(make_pairs(sounds, seconds=0.3, seed=0))
    assert [row.extras["strategy"] for row in rows] == ["noise", "muffled", "order"]
    assert len({row.id for row in rows}) == 3
    clip = decode_audio(rows[0].candidates[1].audio, where="test", limits=AudioLimits())
    assert (clip.samples.shape, clip.sampling_rate) == ((2, 4_800), 16_000)
    path = write_audio_alpaca(tmp_path / "pairs.parquet", rows)
    again = write_audio_alpaca(tmp_path / "again.parquet", make_pairs(sounds, seconds=0.3, seed=0))
    assert path.read_bytes() == again.read_bytes()
    report = check(DataConfig(source={"path": str(path), "media": "audio"}))
    assert report.ok


def test_least_squares_finds_magnitudes_of_nearly_the_same_mel_bands():
    from mel_round_trip import figures, magnitudes_of_mel

    front = MelFrontEnd()
    true = front.magnitudes(tones()[:1])[0]
    found = magnitudes_of_mel(front.log_mel(tones()[:1])[0], front.filterbank)
    got = figures(front, true, found)
    assert (found >= 0).all()
    assert got["heard"] < 0.1
    # Which of a band's frequencies sounded is lost.
    assert got["convergence"] > 0.1


def test_griffin_lim_comes_nearer_with_every_step_and_depends_on_its_seed():
    from mel_round_trip import figures, griffin_lim

    front = MelFrontEnd()
    wave = tones()[0]
    true = front.magnitudes(wave[None])[0]

    def snr(steps: int) -> float:
        back = griffin_lim(true, front, len(wave), seed=5, steps=steps)
        assert len(back) == len(wave)
        return figures(front, true, front.magnitudes(back[None])[0])["snr"]

    assert snr(2) + 5 < snr(32)
    assert snr(32) > 20
    first, other = (griffin_lim(true, front, len(wave), seed=seed, steps=1) for seed in (5, 7))
    assert not torch.allclose(first, other)


def test_equal_magnitudes_are_no_distance_apart_and_half_of_them_six_decibels():
    from mel_round_trip import figures

    front = MelFrontEnd()
    true = front.magnitudes(tones()[:1])[0]
    assert figures(front, true, true)["heard"] == 0.0
    half = figures(front, true, true / 2)
    assert half["heard"] == pytest.approx(6.02, abs=0.01)
    assert half["convergence"] == pytest.approx(0.5)
    assert half["snr"] == pytest.approx(6.02, abs=0.01)


def test_one_recording_of_a_kind_is_written_with_what_comes_back_of_it(folder, tmp_path):
    from mel_round_trip import write_sounds
    from recordings import Source, recordings

    sounds = list(recordings([Source.parse(f"two things={folder}")], Counter()))
    written = write_sounds(sounds, MelFrontEnd(), tmp_path, seconds=0.3, steps=4)
    assert [path.name for path in written] == ["two_things-recording.wav", "two_things-both.wav"]
    clips = [decode_audio(path.read_bytes(), where=path.name, limits=AudioLimits()) for path in written]
    assert [clip.samples.shape for clip in clips] == [(1, 4_800)] * 2
    levels = [float(clip.samples.square().mean().sqrt()) for clip in clips]
    assert levels[1] == pytest.approx(levels[0], rel=0.2)


def test_a_page_keeps_its_words_and_gets_the_medians(tmp_path):
    from mel_round_trip import MARKERS, renew, table

    def values(number: float) -> dict[str, float]:
        return {"heard": number, "cells": 2.0, "convergence": 0.5, "snr": 6.0}

    content = table({"both": {"drums": [values(1.0), values(3.0), values(7.0)], "bells": [values(9.0)]}})
    assert "| drums | 3 | both | 3.00 | 2.00 | 0.500 | 6.0 |" in content
    assert "| all | 4 | both | 5.00 |" in content
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    renew(page, content)
    assert page.read_text() == f"before\n{MARKERS[0]}\n{content}\n{MARKERS[1]}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="between which the table stands"):
        renew(page, content)


def test_the_shipped_page_can_be_renewed():
    from mel_round_trip import MARKERS

    page = (BENCHMARKS.parent / "docs" / "audio-round-trip.md").read_text(encoding="utf-8")
    assert all(page.count(marker) == 1 for marker in MARKERS)
    assert "| all |" in page.partition(MARKERS[0])[2]

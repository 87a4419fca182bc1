"""Sound files of every kind: decoded alike, or refused with a reason; what is suspicious is noted."""

import io
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from mmalign.data.audio_media import AUDIO_NOTES, audio_ending, decode_audio, encode_audio, read_audio
from mmalign.data.config import AudioLimits
from mmalign.errors import MissingExtraError, RowError

RATE = 8_000
LIMITS = AudioLimits()


def tone(seconds=1.0, channels=1, rate=RATE, loud=0.5):
    """[sample, channel]: another frequency in each channel."""
    time = np.arange(int(seconds * rate)) / rate
    return np.stack([loud * np.sin(2 * np.pi * 110 * (1 + c) * time) for c in range(channels)], 1)


def encoded(values, container="WAV", coding=None, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, values, rate, format=container, subtype=coding)
    return file.getvalue()


def muxed(values, container, codec, rate):
    """A file of FFmpeg: values [sample, channel]."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        layout = {1: "mono", 2: "stereo"}[values.shape[1]]
        stream = output.add_stream(codec, rate=rate)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(values.T.astype(np.float32)), format="fltp", layout=layout
        )
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return file.getvalue()


def decoded(data, **limits):
    return decode_audio(data, where="rows.jsonl:3 chosen", limits=AudioLimits(**limits))


def refused(reason, data, match, **limits):
    with pytest.raises(RowError, match=match) as error:
        decoded(data, **limits)
    assert error.value.reason == reason
    assert str(error.value).startswith("rows.jsonl:3 chosen: ")


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("container", "coding", "close"),
    [
        ("WAV", "PCM_U8", 1 / 127),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-22),
        ("WAV", "PCM_32", 2**-24),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-22),
        ("AIFF", "PCM_16", 2**-15),
        ("AU", "PCM_16", 2**-15),
    ],
)
def test_lossless_files_give_the_samples_that_were_written(container, coding, close):
    values = tone(0.5, channels=2)
    found = decoded(encoded(values, container, coding))
    assert found.samples.dtype == torch.float32
    assert found.samples.shape == (2, RATE // 2)
    assert (found.sampling_rate, found.channels, found.seconds) == (RATE, 2, 0.5)
    np.testing.assert_allclose(found.samples.T.numpy(), values, atol=close)
    assert found.notes == (("eight_bit",) if coding == "PCM_U8" else ())


@pytest.mark.parametrize("container", ["MP3", "OGG"])
def test_compressed_files_sound_like_what_was_written(container):
    values = tone(2.0, rate=16_000)
    found = decoded(encoded(values, container, rate=16_000))
    assert found.samples.shape[1] == pytest.approx(32_000, rel=0.01)
    assert spectral_peak(found) == pytest.approx(110, abs=2)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "ending"),
    [("mp4", "aac", 16_000, ".m4a"), ("webm", "libopus", 48_000, ".webm"), ("adts", "aac", 16_000, ".aac")],
)
def test_what_libsndfile_cannot_read_is_read_by_ffmpeg(container, codec, rate, ending):
    data = muxed(tone(2.0, channels=2, rate=rate), container, codec, rate)
    found = decoded(data)
    assert (found.channels, found.sampling_rate) == (2, rate)
    assert found.seconds == pytest.approx(2.0, abs=0.12)
    assert spectral_peak(found) == pytest.approx(110, abs=2)
    assert spectral_peak(found, 1) == pytest.approx(220, abs=2)
    assert audio_ending(data) == ending


def spectral_peak(found, channel=0):
    """Frequency of the loudest component in Hz."""
    power = found.samples[channel].double().numpy()
    return float(np.argmax(np.abs(np.fft.rfft(power))) * found.sampling_rate / len(power))


@pytest.mark.parametrize("format", ["s16", "s32", "u8", "flt"])
def test_ffmpegs_integers_and_interleaved_samples_have_the_same_scale(format):
    from mmalign.data.audio_codecs import _frame_values

    values = tone(0.01, channels=2).T.astype(np.float32)
    planar = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), format="fltp", layout="stereo")
    planar.sample_rate = RATE
    (frame,) = av.AudioResampler(format=format, layout="stereo", rate=RATE).resample(planar)
    found = _frame_values(frame, "here")
    np.testing.assert_allclose(found, values, atol=1 / 64 if format == "u8" else 1e-4)


def test_a_file_and_its_bytes_are_the_same_clip(tmp_path):
    data = encoded(tone())
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    first = read_audio(str(path), where="x", limits=LIMITS)
    assert torch.equal(first.samples, read_audio(data, where="x", limits=LIMITS).samples)


@pytest.mark.parametrize("container", ["flac", "wav"])
def test_written_clips_are_read_back_and_loud_ones_do_not_wrap(container):
    samples = torch.tensor([[0.0, 0.25, 1.0, 1.5, -1.5, -0.25] * 500])
    data = encode_audio(samples, RATE, container=container)
    assert data == encode_audio(samples, RATE, container=container)
    assert audio_ending(data) == f".{container}"
    found = decoded(data)
    torch.testing.assert_close(found.samples, samples.clamp(-1, 1), atol=2**-15, rtol=0)
    with pytest.raises(RowError, match="NaN or infinity") as error:
        encode_audio(samples.log(), RATE)
    assert error.value.reason == "not_finite"


# ------------------------------------------------------------------------------------------------ damage


def test_missing_and_empty_files_have_their_reasons(tmp_path):
    with pytest.raises(RowError, match="no such file") as error:
        read_audio(str(tmp_path / "a.wav"), where="x", limits=LIMITS)
    assert error.value.reason == "missing_file"
    with pytest.raises(RowError, match=r"got 0 bytes .* expected an encoded audio") as error:
        read_audio(b"", where="x", limits=LIMITS)
    assert error.value.reason == "empty_file"
    with pytest.raises(RowError, match=r"Raise data\.audio\.max_bytes") as error:
        read_audio(encoded(tone()), where="x", limits=AudioLimits(max_bytes=7))
    assert error.value.reason == "too_many_bytes"


@pytest.mark.parametrize(
    "data",
    [
        b"a text that is no sound at all, long enough for every demuxer to guess at it" * 30,
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        bytes(5_000),
        np.random.default_rng(3).bytes(20_000),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    ],
    ids=["text", "png", "zeros", "noise", "playlist"],
)
def test_files_that_are_no_sound_are_refused(data):
    refused("not_audio", data, "expected a sound")


def test_a_picture_is_no_sound():
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    refused("not_audio", file.getvalue(), r"starts with b'\\x89PNG")


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU"])
@pytest.mark.parametrize("part", [0.004, 0.5, 0.9])
def test_files_that_were_cut_off_are_refused(container, part):
    data = encoded(np.random.default_rng(3).normal(0, 0.1, (32_000, 1)), container, rate=16_000)
    with pytest.raises(RowError, match=r"damaged|cut off|no sound|0 seconds") as error:
        decoded(data[: int(len(data) * part)])
    assert error.value.reason in ("truncated_audio", "damaged_audio")


def test_a_cut_m4a_or_webm_is_refused():
    for container, codec, rate in (("mp4", "aac", 16_000), ("adts", "aac", 16_000)):
        data = muxed(tone(3.0, rate=rate), container, codec, rate)
        with pytest.raises(RowError) as error:
            decoded(data[: len(data) // 2])
        assert error.value.reason in ("truncated_audio", "damaged_audio")


def test_a_damaged_head_is_refused_and_not_played_as_noise():
    data = encoded(tone())
    at = data.index(b"fmt ")
    refused("damaged_audio", data[: at + 4] + b"\xff" + data[at + 5 :], "damaged")
    flac = encoded(tone(), "FLAC")
    refused("damaged_audio", flac[:12] + bytes(20) + flac[32:], "damaged")
    lost = flac[: len(flac) // 2] + bytes(50) + flac[len(flac) // 2 + 50 :]
    refused("damaged_audio", lost, "damaged")


def test_impossible_sampling_rates_are_refused():
    data = bytearray(encoded(tone()))
    place = data.index(b"fmt ") + 12
    struct.pack_into("<II", data, place, 3, 6)
    refused("bad_sampling_rate", bytes(data), "3 samples per second.*expected 1000 to 768000")


def test_a_wav_of_unknown_length_as_programs_pipe_it_is_complete():
    data = bytearray(encoded(tone()))
    for place in (4, data.index(b"data") + 4):
        struct.pack_into("<I", data, place, 0xFFFFFFFF)
    assert decoded(bytes(data)).seconds == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(value):
    values = tone()
    values[[17, 23]] = value
    refused("not_finite", encoded(values, coding="FLOAT"), "2 samples that are NaN or infinite")


def test_random_damage_never_escapes_as_another_error():
    draw = np.random.default_rng(7)
    files = [encoded(tone(0.2, 2), kind) for kind in ("WAV", "FLAC", "OGG")]
    files.append(muxed(tone(0.5, rate=16_000), "mp4", "aac", 16_000))
    for data in files:
        for _ in range(40):
            broken = bytearray(data)
            for place in draw.integers(0, len(broken), 5):
                broken[place] = draw.integers(0, 256)
            try:
                assert decoded(bytes(broken)).samples.isfinite().all()
            except RowError as error:
                assert error.reason != "invalid_row"  # noqa: PT017


# ------------------------------------------------------------------------------------------------ lengths


def test_lengths_beyond_the_limits_are_refused():
    refused("too_short", encoded(tone(0.05)), "0.05 seconds.*at least 0.1")
    refused("too_short", encoded(np.zeros((0, 1))), "0 seconds")
    refused("too_long", encoded(tone(3.0)), "3 seconds.*at most 2.*max_seconds", max_seconds=2.0)
    refused("too_many_samples", encoded(tone(3.0, 2)), "24000 samples of 2 channels", max_samples=47_999)
    assert decoded(encoded(tone(3.0, 2)), max_samples=48_000).channels == 2


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    hour = encoded(np.zeros((RATE * 1_000, 1)), "FLAC")
    assert len(hour) < 2**16
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    refused("too_long", hour, "1000 seconds.*decompression bomb")


def test_a_stream_without_a_length_is_stopped_on_the_way():
    data = muxed(tone(5.0, rate=16_000), "adts", "aac", 16_000)
    refused("too_long", data, "at most 1", max_seconds=1.0)


# ------------------------------------------------------------------------------------------------ notes


def test_silence_is_noted_or_refused():
    data = encoded(np.full((RATE, 2), 5e-5), coding="FLOAT")
    assert decoded(data).notes == ("silent",)
    refused("silent_audio", data, "data.audio.silence: note accepts", silence="refuse")
    assert decoded(data, silence_peak=1e-5).notes == ("clipped", "constant_offset")


def test_a_silent_first_channel_is_noted():
    values = tone(channels=2)
    values[:, 0] = 0.0
    assert decoded(encoded(values)).notes == ("silent_first_channel",)
    assert decoded(encoded(values[:, ::-1])).notes == ()


def test_clipping_is_noted_even_after_the_clip_was_turned_down():
    clipped = tone(loud=1.3).clip(-1, 1)
    assert decoded(encoded(clipped)).notes == ("clipped",)
    assert decoded(encoded(clipped / 2)).notes == ("clipped",)
    assert decoded(encoded(tone(loud=1.0))).notes == ()


def test_other_doubts_are_noted():
    assert decoded(encoded(tone(loud=1.5), coding="FLOAT")).notes == ("over_full_scale",)
    assert decoded(encoded(tone(loud=0.2) + 0.1)).notes == ("constant_offset",)
    surround = decoded(encoded(tone(0.2, channels=6)))
    assert (surround.channels, surround.notes) == (6, ("surround",))
    assert decoded(encoded(tone(), coding="PCM_U8")).notes == ("eight_bit",)


def test_every_note_is_explained():
    source = Path(sys.modules["mmalign.data.audio_media"].__file__).read_text()
    assert all(f'"{name}":' in source.partition("def _notes")[2] for name in AUDIO_NOTES)


# ------------------------------------------------------------------------------------------------ extras


def test_a_missing_decoder_names_the_extra(monkeypatch):
    data = muxed(tone(rate=16_000), "mp4", "aac", 16_000)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"PyAV is not installed.*mmalign\[audio\]"):
        decoded(data)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"soundfile is not installed.*mmalign\[audio\]"):
        decoded(encoded(tone()))


@pytest.mark.parametrize(
    ("container", "ending"), [("WAV", ".wav"), ("FLAC", ".flac"), ("MP3", ".mp3"), ("OGG", ".ogg")]
)
def test_endings_fit_the_bytes(container, ending):
    assert audio_ending(encoded(tone(), container)) == ending
    assert audio_ending(b"something") == audio_ending("a.wav") == ".audio"

"""Listeners: rates, channels, lengths, the released defects by name, and the store in front of them."""

import pytest
import torch

from mmalign.data.audio_media import encode_audio
from mmalign.data.resampling import resample
from mmalign.errors import CheckpointError, ConfigError
from mmalign.evals.audio.cnn14 import CNN14_16K, Cnn14
from mmalign.evals.audio.listeners import (
    ClapListener,
    Heard,
    PannsListener,
    VggishListener,
    load_panns_listener,
    load_vggish_listener,
)
from mmalign.evals.audio.vggish import Vggish, log_mel_patches
from mmalign.evals.benchmark_tool_store import ToolStore
from mmalign.rewards.clap_models import ClapEncoder
from mmalign.testing.benchmark_examples.sounded import AmplitudeListener
from mmalign.testing.reward_checkpoints.clap import write_clap_folder


@pytest.fixture(scope="module")
def panns():
    return PannsListener(Cnn14(CNN14_16K, (2, 3, 5, 7, 11, 13), 17).eval(), weights="tiny")


@pytest.fixture(scope="module")
def vggish():
    return VggishListener(Vggish((2, 3, 5, 5, 7, 7), 19, 13).eval(), weights="tiny")


def noise(seconds, rate, channels=1, seed=3):
    return 0.1 * torch.randn(channels, int(seconds * rate), generator=torch.Generator().manual_seed(seed))


def wav(samples, rate):
    return encode_audio(samples, rate, container="wav", coding="PCM_24")


def decoded(samples, rate):
    from mmalign.rewards.sounds import read_sound

    return read_sound(wav(samples, rate), where="a test")


def test_panns_hears_the_first_channel_without_its_mean_and_at_least_two_seconds(panns):
    sound = noise(0.7, 16000, channels=2) + 0.2
    found = panns.waveform(decoded(sound, 16000), "clean")
    first = sound[0] - sound[0].mean()
    assert len(found) == 32000
    assert torch.allclose(found[: len(first)], first, atol=1e-5)
    assert not found[len(first) :].any()
    (heard,) = panns.hear([wav(sound, 16000)])
    assert (heard.features.shape, heard.logits.shape) == ((1, 13), (17,))


@pytest.mark.parametrize("rate", [32000, 44100, 48000])
def test_clean_loading_resamples_every_rate(panns, rate):
    sound = noise(2.1, rate)
    expected = resample(sound[0] - sound[0].mean(), rate, 16000)
    found = panns.waveform(decoded(sound, rate), "clean")
    assert torch.allclose(found[: len(expected)], expected, atol=1e-5)


def test_released_loading_decimates_48_khz_and_doubly_shortens_32_khz(panns):
    sound = noise(4.2, 48000)
    centred = sound[0] - sound[0].mean()
    found = panns.waveform(decoded(sound, 48000), "released")
    assert torch.allclose(found, centred[::3], atol=1e-5)
    # A tone of 1 kHz at 32 kHz comes out at 2 kHz, in half the time.
    time = torch.arange(8 * 32000) / 32000
    tone = 0.5 * torch.sin(2 * torch.pi * 1000.0 * time)[None]
    pitches = {}
    for loading in ("clean", "released"):
        heard = panns.waveform(decoded(tone, 32000), loading)
        peak = int(torch.fft.rfft(heard).abs().argmax())
        pitches[loading] = (len(heard) / 16000, peak * 16000 / len(heard))
    assert pitches["clean"] == pytest.approx((8.0, 1000.0))
    assert pitches["released"] == pytest.approx((4.0, 2000.0))
    other = noise(2.1, 44100)
    same = [panns.waveform(decoded(other, 44100), loading) for loading in ("clean", "released")]
    assert torch.equal(*same)


def test_vggish_hears_every_window_of_the_mean_of_the_channels(vggish):
    sound = noise(3.0, 16000, channels=2)
    (heard,) = vggish.hear([wav(sound, 16000)])
    expected = vggish.network(log_mel_patches(sound.mean(dim=0)))
    assert heard.logits is None
    assert torch.allclose(heard.features, expected.detach(), atol=1e-4)
    assert vggish.hear([wav(noise(0.9, 16000), 16000)]) == [
        "a sound: got [0.9 s], expected at least 0.975 s, one window of VGGish."
    ]


def test_clap_hears_unit_vectors_of_its_windows(tmp_path):
    listener = ClapListener(
        ClapEncoder(write_clap_folder(tmp_path / "clap"), windows="all"), checkpoint="tiny"
    )
    (heard,) = listener.hear([wav(noise(12.3, 4800), 4800)])
    assert heard.features.shape == (3, 20)
    assert torch.allclose(heard.features.norm(dim=1), torch.ones(3))
    assert listener.name == f"CLAP tiny {listener.encoder.mark}, all"


def test_what_is_no_sound_is_told_and_leaves_the_others_alone(panns):
    good = wav(noise(2.1, 16000), 16000)
    found = panns.hear([good, b"no sound", "nowhere.wav", good])
    assert isinstance(found[0], Heard)
    assert torch.equal(found[0].features, found[3].features)
    assert "expected a sound (WAV" in found[1]
    assert "no such file" in found[2]


def test_listeners_say_all_that_moves_a_number(panns, vggish):
    assert panns.provenance()["sampling_rate"] == 16000
    assert panns.provenance()["spectrum"] == {"window": 512, "hop": 160, "low": 50.0, "high": 8000.0}
    assert vggish.provenance()["channels"] == "mean"
    for listener in (panns, vggish):
        assert {"name", "weights", "sampling_rate", "window", "channels", "level"} <= set(
            listener.provenance()
        )


def test_published_files_that_are_nowhere_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"curl .*zenodo\.org/records/3987831/files/Cnn14_16k_mAP%3D0\.438"
    ):
        load_panns_listener()
    with pytest.raises(CheckpointError, match=r"torchvggish/releases/download/v0\.1/vggish-10086976\.pth"):
        load_vggish_listener()
    with pytest.raises(ConfigError, match=r"lacks vggish-10086976\.pth"):
        load_vggish_listener(weights=tmp_path)


def test_a_stored_clip_is_heard_once_and_what_cannot_be_read_is_tried_again(tmp_path):
    listener = AmplitudeListener("ears", classify=True)
    clip = tmp_path / "clip.wav"
    clip.write_bytes(wav(noise(0.5, 4000), 4000))
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"nothing")
    with ToolStore(tmp_path / "store") as store:
        stored = store.wrap("panns", listener)
        (first,) = stored.hear([clip])
        assert isinstance(stored.hear([broken])[0], str)
        assert isinstance(stored.hear([tmp_path / "gone.wav"])[0], str)
        stored.hear([clip, clip])
    assert listener.heard == 2
    broken.write_bytes(wav(noise(0.5, 4000, seed=5), 4000))
    with ToolStore(tmp_path / "store") as store:
        again, mended = store.wrap("panns", listener).hear([clip, broken])
    assert listener.heard == 3
    assert isinstance(mended, Heard)
    assert torch.equal(again.features, first.features)
    assert torch.equal(again.logits, first.logits)
    with ToolStore(tmp_path / "store", ask=False) as store:
        reading = store.wrap("panns", listener)
        assert torch.equal(reading.hear([clip])[0].features, first.features)
        with pytest.raises(CheckpointError, match="Run --stage score first"):
            reading.hear([clip], loading="released")

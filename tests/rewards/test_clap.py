"""CLAP score: what is heard, deterministically, and the library's own numbers where it draws nothing."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from mmalign import rewards
from mmalign.data.audio_media import encode_audio
from mmalign.errors import CheckpointError, ConfigError, UnknownNameError
from mmalign.rewards.clap_models import ClapEncoder, clap_weights
from mmalign.rewards.sample import Sample
from mmalign.rewards.sounds import decibel_mels, levelled
from mmalign.testing.reward_checkpoints.clap import write_clap, write_clap_folder
from mmalign.testing.reward_checkpoints.clip import write_clip_folder

RATE = 4800


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clap(tmp_path_factory.mktemp("clap"))


def noise(seconds, seed=3):
    return 0.1 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def wav(samples, rate=RATE):
    return encode_audio(samples.reshape(-1, samples.shape[-1]), rate, container="wav", coding="PCM_16")


def value(reward, samples, prompt="rain"):
    return float(reward.score([Sample(prompt, audio=wav(samples))]).first())


@pytest.mark.parametrize(("fused", "name"), [(False, "htsat-unfused"), (True, "htsat-fused")])
@pytest.mark.parametrize("seconds", [1.3, 3.1, 5.0])
def test_short_sounds_score_as_the_library_scores_them_one_at_a_time(folder, fused, name, seconds):
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    place = folder / f"clap-{name}"
    extractor, model = ClapFeatureExtractor.from_pretrained(place), ClapModel.from_pretrained(place).eval()
    samples = noise(seconds)
    heard = extractor(samples.numpy(), sampling_rate=RATE, return_tensors="pt", padding="repeatpad")
    words = AutoTokenizer.from_pretrained(place)(["rain on a roof"], return_tensors="pt")
    with torch.inference_mode():
        found = model(**{key: words[key] for key in ("input_ids", "attention_mask")}, **heard)
    expected = float(found.audio_embeds[0] @ found.text_embeds[0])
    reward = rewards.load("clap", weights=folder, checkpoint=name)
    data = encode_audio(samples[None], RATE, container="wav", coding="PCM_24")
    assert float(reward.score([Sample("rain on a roof", audio=data)]).first()) == pytest.approx(
        expected, abs=2e-4
    )


def test_the_first_window_is_heard_and_nothing_after_it(folder):
    reward = rewards.load("clap", weights=folder)
    start = noise(5.0)
    assert value(reward, start) == pytest.approx(value(reward, torch.cat([start, noise(4.0, 5)])), abs=1e-6)
    assert value(reward, start) != pytest.approx(value(reward, noise(5.0, 5)), abs=1e-4)


def test_the_name_says_which_weights_whatever_they_are_called(folder, tmp_path):
    other = write_clap(tmp_path / "other", seed=3)
    names = [rewards.load("clap", weights=place).card.name for place in (folder, folder, other)]
    digest = hashlib.sha256((folder / "clap-htsat-unfused" / "model.safetensors").read_bytes()).hexdigest()
    assert names[0] == names[1] == f"clap[htsat-unfused {digest[:8]}, first]"
    assert names[2] != names[0]


def test_all_windows_are_averaged_and_the_last_one_ends_with_the_sound(folder):
    reward = rewards.load("clap", weights=folder, windows="all")
    parts = [noise(5.0, seed) for seed in (1, 2, 3)]
    whole = torch.cat(parts)[: int(12.5 * RATE)]
    heard = [whole[: 5 * RATE], whole[5 * RATE : 10 * RATE], whole[-5 * RATE :]]
    expected = np.mean([value(reward, part) for part in heard])
    assert value(reward, whole) == pytest.approx(expected, abs=1e-5)
    assert value(reward, whole[: 10 * RATE]) == pytest.approx(
        np.mean([value(reward, part) for part in heard[:2]]), abs=1e-5
    )


def test_an_overview_hears_the_end_of_a_long_sound_and_only_fused_checkpoints_have_one(folder):
    reward = rewards.load("clap", weights=folder, checkpoint="htsat-fused", windows="overview")
    one, other = torch.cat([noise(8.0), noise(4.0, 5)]), torch.cat([noise(8.0), 9.0 * noise(4.0, 6)])
    first = rewards.load("clap", weights=folder, checkpoint="htsat-fused")
    assert value(first, one) == pytest.approx(value(first, other), abs=1e-6)
    assert value(reward, one) != pytest.approx(value(reward, other), abs=1e-4)
    assert value(reward, one) == value(reward, one)
    # A hair longer than a window: as many frames as a window has.
    assert np.isfinite(value(reward, noise(5.0 + 40 / RATE)))
    with pytest.raises(ConfigError, match="Only fused checkpoints read an overview"):
        rewards.load("clap", weights=folder, windows="overview")


def test_the_peak_level_makes_loudness_irrelevant(folder):
    quiet, loud = 0.1 * noise(3.1), noise(3.1)
    plain, peak = (rewards.load("clap", weights=folder, level=level) for level in ("file", "peak"))
    assert value(plain, quiet) != pytest.approx(value(plain, loud), abs=1e-3)
    assert value(peak, quiet) == pytest.approx(value(peak, loud), abs=2e-3)  # 16 bits of the quiet one
    assert float(levelled(loud, "peak").abs().max()) == pytest.approx(10 ** (-1 / 20))
    assert bool((levelled(torch.zeros(5), "peak") == 0).all())


def test_sounds_are_resampled_and_their_channels_averaged(folder):
    reward = rewards.load("clap", weights=folder)
    time = torch.arange(3 * 9600) / 9600
    tone = 0.4 * torch.sin(2 * torch.pi * 440.0 * time)
    doubled = encode_audio(tone[None], 9600, container="wav")
    plain = tone[::2]
    found = reward.score([Sample("a tone", audio=doubled), Sample("a tone", audio=wav(plain))]).first()
    assert float(found[0]) == pytest.approx(float(found[1]), abs=5e-3)
    stereo = torch.stack([plain, -plain])
    assert value(reward, stereo) == pytest.approx(value(reward, torch.zeros(len(plain))), abs=1e-3)
    first = rewards.load("clap", weights=folder, channels="first")
    assert value(first, stereo) == pytest.approx(value(reward, plain), abs=1e-6)


def test_decibel_mels_are_librosas_power_to_db_of_a_mel_spectrogram(draw):
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    bank = mel_filter_bank(129, 7, 50, 2000, RATE, norm="slaney", mel_scale="slaney")
    samples = 0.1 * draw(2 * 499).reshape(2, 499)
    expected = [
        spectrogram(row, window_function(256, "hann"), 256, 96, power=2.0, mel_filters=bank, log_mel="dB").T
        for row in samples.double().numpy()
    ]
    found = decibel_mels(samples.double(), torch.from_numpy(bank), hop=96)
    assert torch.allclose(found, torch.from_numpy(np.stack(expected)).double(), atol=1e-4)


def test_what_cannot_be_scored_says_why(folder):
    reward = rewards.load("clap", weights=folder)
    found = reward.score(
        [Sample("no sound"), Sample("broken", audio=b"no sound at all"), Sample("gone", audio="x.wav")]
    )
    assert all(np.isnan(found.first()))
    assert "expected a sound" in found.errors[0]
    assert "expected a sound (WAV" in found.errors[1]
    assert "no such file" in found.errors[2]


def test_other_models_and_settings_are_refused(folder, tmp_path, untyped):
    with untyped, pytest.raises(ConfigError, match="level: got 'loud', expected file or peak"):
        rewards.load("clap", weights=folder, level="loud")
    with pytest.raises(UnknownNameError, match="CLAP checkpoint 'htsat'"):
        rewards.load("clap", weights=folder, checkpoint="htsat")
    assert clap_weights("some/model").repository == "some/model"
    write_clip_folder(tmp_path / "clip")
    with pytest.raises(CheckpointError, match="expected a ClapModel"):
        ClapEncoder(tmp_path / "clip")


def test_the_name_of_a_checkpoint_is_part_of_the_fingerprint(folder, tmp_path):
    write_clap_folder(tmp_path, seed=0)
    one, other = (rewards.load("clap", weights=place) for place in (folder, tmp_path))
    assert one.fingerprint() == other.fingerprint()
    assert dataclasses.asdict(one.card) == dataclasses.asdict(other.card)
    assert one.provenance()["sampling_rate"] == RATE

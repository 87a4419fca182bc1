"""From rows to waveforms: length, rate, channels, level, texts, mixtures, other prompts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmalign.audio.clips import ClipLoader, as_heard
from mmalign.audio.mixing import mixed_caption
from mmalign.batch import Candidate
from mmalign.data.config import AudioLimits
from mmalign.diffusion.clip_reader import padded
from mmalign.errors import RowError

LOADER = ClipLoader(sampling_rate=16_000, num_samples=8_000)


def pitch(wave: torch.Tensor, rate: int = 16_000) -> float:
    spectrum = torch.fft.rfft(wave.flatten()).abs()
    return spectrum.argmax().item() * rate / wave.numel()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_clips_of_any_rate_keep_their_pitch(clip, pair, rate):
    row = replace(pair(), candidates=(Candidate(audio=clip(440, 0.5, rate=rate)),))
    loaded = LOADER.load(row)
    assert loaded.inputs.shape == (1, 1, 8_000)
    assert pitch(loaded.inputs) == pytest.approx(440, abs=2.1)
    assert loaded.geometry[0, :2].tolist() == [rate, 1]


@pytest.mark.parametrize("seconds", [0.2, 1.3])
def test_every_clip_has_the_length_of_the_model(clip, pair, seconds):
    row = replace(pair(), candidates=(Candidate(audio=clip(440, seconds)),))
    wave = LOADER.load(row).inputs
    assert wave.shape[-1] == 8_000
    assert wave.abs().max().item() == pytest.approx(0.5, abs=1e-6)
    assert bool(wave[0, 0, 4_000:].any()) == (seconds > 0.25)


def test_what_a_model_of_one_channel_hears_of_two():
    left, right = torch.zeros(7), torch.ones(7)
    both = torch.stack([left, right])
    assert as_heard(both, channels=1, channel="first").tolist() == [left.tolist()]
    assert as_heard(both, channels=1, channel="mean").tolist() == [[0.5] * 7]
    assert torch.equal(as_heard(both, channels=2, channel="mean"), both)
    assert as_heard(both[1:], channels=2, channel="mean").shape == (2, 7)


def test_levels_can_be_left_as_they_are(clip, pair):
    row = replace(pair(), candidates=(Candidate(audio=clip(440, 0.5, amplitude=0.125)),))
    assert LOADER.load(row).inputs.abs().max().item() == pytest.approx(0.5, abs=1e-6)
    as_is = replace(LOADER, level="none").load(row).inputs
    assert as_is.abs().max().item() == pytest.approx(0.125, abs=1e-3)


def test_a_row_without_sound_says_so(pair):
    row = replace(pair(), candidates=(Candidate(text="words"),))
    with pytest.raises(RowError, match=r"test:0 candidate 0 \(chosen\): got no audio.*`media`") as caught:
        LOADER.load(row)
    assert caught.value.reason == "missing_audio"


def test_limits_are_those_of_the_data(clip, pair):
    strict = replace(LOADER, limits=AudioLimits(max_seconds=0.3))
    with pytest.raises(RowError) as caught:
        strict.load(replace(pair(), candidates=(Candidate(audio=clip(440, 0.5)),)))
    assert caught.value.reason == "too_long"


def test_cache_keys_name_the_bytes_and_everything_done_to_them(clip):
    low, high = clip(440), clip(880)
    first, second = LOADER.keys([low, high])
    assert first != second
    assert LOADER.keys([low]) == [first]
    for change in ({"num_samples": 1}, {"sampling_rate": 8_000}, {"channel": "mean"}, {"level": "none"}):
        assert replace(LOADER, **change).keys([low]) != [first]


def test_texts_are_filled_up_to_the_longest_of_their_batch_and_no_further(tango, pair):
    short, long = tango.example(pair("hum"), key=1), tango.example(pair("a very long hum"), key=2)
    together = tango.collate([short, long])
    alone = tango.collate([short])
    assert together["tokens_0"].shape[1] > alone["tokens_0"].shape[1]
    assert together["tokens_1"].sum(1)[0] == alone["tokens_1"].sum()
    assert together["waves"].shape == (2, 2, 1, 10_240)


def test_padding_of_stored_texts_keeps_pooled_states():
    rows = [
        {
            "text": torch.ones(1, length, 3),
            "text_mask": torch.ones(1, length, dtype=torch.bool),
            "pooled": value,
        }
        for length, value in ((2, torch.zeros(1, 5)), (7, torch.ones(1, 5)))
    ]
    found = padded(rows)
    assert found["text"].shape == (2, 7, 3)
    assert found["text_mask"].sum(1).tolist() == [2, 7]
    assert not found["text"][0, 2:].any()
    assert found["pooled"].shape == (2, 5)


def test_rows_with_fewer_candidates_are_filled_up_with_their_first(tango, pair):
    three = tango.example(pair("a", 330, 440, 550), key=1)
    two = tango.example(pair("b", 660, 770), key=2)
    waves = tango.collate([three, two])["waves"]
    assert waves.shape[:2] == (2, 3)
    assert torch.equal(waves[1, 2], waves[1, 0])


def test_candidates_may_have_prompts_of_their_own(tango, pair, keys):
    own = pair("hum")
    own = replace(
        own, candidates=tuple(replace(c, prompt=p) for c, p in zip(own.candidates, "ab", strict=True))
    )
    collated = tango.collate([tango.example(pair("a long hum"), key=1), tango.example(own, key=2)])
    assert collated["own_tokens_0"].shape[:2] == (2, 2)
    clean, conditioning = tango.encode(collated, keys(1, 2))
    assert set(conditioning.shared) == set()
    assert conditioning.per_candidate["text"].shape[:2] == clean.shape[:2]
    # A prompt that both candidates share is the same text for both.
    text = conditioning.per_candidate["text"]
    assert torch.equal(text[0, 0], text[0, 1])
    assert not torch.equal(text[1, 0], text[1, 1])


class TestMixtures:
    def test_chosen_is_mixed_with_chosen_and_captions_are_joined(self, load_tango, pair):
        model = load_tango(mix_augmentation=1.0)
        rows = [pair("A low tone", 330, 440), pair("A high tone", 2_000, 3_000)]
        examples = [model.example(row, key=number) for number, row in enumerate(rows)]
        mixed = model.reader._mixed(examples)
        assert mixed[0]["prompts"] == [mixed_caption("A low tone", "A high tone")]
        assert mixed[0]["waves"].shape == examples[0]["waves"].shape
        for candidate, expected in ((0, (330, 2_000)), (1, (440, 3_000))):
            spectrum = torch.fft.rfft(mixed[0]["waves"][candidate, 0]).abs()
            bins = [round(value * 10_240 / 16_000) for value in expected]
            loud = spectrum[bins].min()
            assert loud > 20 * spectrum.median()
        assert mixed[0]["waves"].abs().amax().item() == pytest.approx(0.5, abs=1e-5)

    def test_the_share_of_rows_is_decided_by_their_keys(self, load_tango, pair):
        model = load_tango(mix_augmentation=0.3)
        drawn = [model.example(pair("a"), key=number * 7919)["mix"] for number in range(200)]
        assert 0.2 < np.mean(drawn) < 0.4
        assert drawn[:9] == [model.example(pair("a"), key=number * 7919)["mix"] for number in range(9)]

    def test_a_row_alone_stays_alone(self, load_tango, pair):
        model = load_tango(mix_augmentation=1.0)
        example = model.example(pair("a"), key=1)
        assert torch.equal(model.collate([example])["waves"][0], example["waves"])

"""The toy world of sound: clips, the exact ear, pairs, the shipped model, the page of the demo."""

import base64
import io
import json
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.audio.checkpoint import MAIN_FILE
from mmalign.data.audio_media import decode_audio
from mmalign.data.config import AudioLimits, DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError
from mmalign.toy.audio_comparison import AXES, ClipComparison, spectrogram, wav_bytes
from mmalign.toy.audio_demo import AudioDemo
from mmalign.toy.audio_demo_report import render_sound_report
from mmalign.toy.audio_pairs import KINDS, edited_pairs, rows_of, swapped, write_pairs
from mmalign.toy.audio_pipeline import ASSETS, FRONT, new_vocoder, sample, write_tokenizer
from mmalign.toy.audio_reading import labelled, train_text_encoder
from mmalign.toy.audio_reward import compare, hear, score_clips
from mmalign.toy.audio_scenes import (
    DURATION,
    EVENTS,
    MIN_GAP,
    NUM_SAMPLES,
    SAMPLING_RATE,
    Facts,
    all_sequences,
    disorder,
    draw_facts,
    draw_scene,
    draw_split,
    events_of,
    held_out_prompts,
    is_held_out,
    misheard,
    render,
    render_locked,
)
from mmalign.toy.audio_vocoder import fit_frames, listen_to_bands, sounds
from mmalign.toy.griffin_lim import GriffinLim
from mmalign.toy.report import Report

# --- clips and captions -------------------------------------------------------------------------------------


def test_every_caption_is_read_back_as_the_order_of_its_events() -> None:
    for events in all_sequences():
        for template in range(2 if len(events) == 3 else 3):
            assert events_of(Facts(events, template).caption()) == events


def test_a_caption_with_after_names_the_later_event_first() -> None:
    facts = Facts(("noise", "low tone"), 2)
    assert facts.caption() == "a low tone after noise"
    assert events_of("a low tone after noise") == ("noise", "low tone")


@pytest.mark.parametrize("caption", ["", "a dog barks", "noise", "a low tone, then", "noise, then noise"])
def test_other_captions_are_refused(caption: str) -> None:
    with pytest.raises(ConfigError, match=r"caption of the toy world of sound: got .*two or three events"):
        events_of(caption)


def test_a_fifth_of_the_orders_is_held_out_and_never_drawn_for_training() -> None:
    held_out = [events for events in all_sequences() if is_held_out(events)]
    assert len(all_sequences()) == 150
    assert 20 <= len(held_out) <= 40
    trained = {facts.events for facts in draw_split(300, seed=3, held_out=False)}
    assert not trained & set(held_out)
    assert all(is_held_out(events_of(prompt)) for prompt in held_out_prompts(50, seed=3))


def test_the_same_seed_draws_the_same_clip_and_another_seed_another() -> None:
    facts = Facts(("noise", "clicks", "low tone"))
    first, again, other = (render(draw_scene(facts, random.Random(seed))) for seed in (5, 5, 7))
    assert first.shape == (NUM_SAMPLES,)
    assert (first == again).all()
    assert (first != other).any()


def test_events_lie_inside_the_clip_with_pauses_between_them() -> None:
    rng = random.Random(2)
    for _ in range(100):
        events = draw_scene(draw_facts(rng), rng).events
        ends = [event.start + event.length for event in events]
        assert events[0].start > 0
        assert ends[-1] < DURATION
        assert all(after.start - end >= MIN_GAP - 1e-9 for end, after in zip(ends, events[1:], strict=False))


def test_locked_tones_repeat_with_the_frames() -> None:
    """The vocoder gives 100 frames per second, and a steady spectrogram makes it repeat itself."""
    scene = draw_scene(Facts(("low tone", "noise")), random.Random(1))
    tone = scene.events[0]
    played = torch.from_numpy(render_locked(scene))
    middle = round((tone.start + tone.length / 2) * SAMPLING_RATE)
    frame = FRONT.hop_length
    assert played[middle : middle + frame].abs().max() > 0.3
    torch.testing.assert_close(
        played[middle : middle + frame], played[middle + frame : middle + 2 * frame], atol=1e-5, rtol=0
    )
    pause = slice(
        round((tone.start + tone.length) * SAMPLING_RATE) + 1, round(scene.events[1].start * SAMPLING_RATE)
    )
    assert not played[pause].any()  # and no hiss


# --- the exact ear ------------------------------------------------------------------------------------------


def test_true_clips_score_one_without_exception() -> None:
    rng = random.Random(11)
    facts = [draw_facts(rng) for _ in range(60)]
    clips = [torch.from_numpy(render(draw_scene(one, rng))) for one in facts]
    scores = score_clips(clips, [one.caption() for one in facts])
    assert [score.total for score in scores] == [1.0] * 60
    assert all(score.perfect for score in scores)


def test_clips_in_another_order_score_low_and_keep_their_presence() -> None:
    rng = random.Random(13)
    facts = [draw_facts(rng) for _ in range(40)]
    clips = [torch.from_numpy(render(draw_scene(disorder(one, rng), rng))) for one in facts]
    scores = score_clips(clips, [one.caption() for one in facts])
    assert {score.presence for score in scores} == {1.0}
    assert sum(score.order for score in scores) / 40 < 0.65  # the longest common subsequence is never 0 here
    assert not any(score.perfect for score in scores)


def test_an_event_that_was_not_asked_for_costs_presence() -> None:
    rng = random.Random(17)
    facts = Facts(("low tone", "noise", "clicks"))
    clip = torch.from_numpy(render(draw_scene(misheard(facts, rng), rng)))
    (score,) = score_clips([clip], [facts.caption()])
    assert score.presence == pytest.approx(2 / 3)
    assert score.order == pytest.approx(2 / 3)


@pytest.mark.parametrize("level", [0.01, 0.3, 2.0])
def test_loudness_does_not_matter_to_the_ear(level: float) -> None:
    facts = Facts(("rising chirp", "high tone", "falling chirp"))
    wave = torch.from_numpy(render(draw_scene(facts, random.Random(3))))
    assert tuple(event.kind for event in hear(level * wave)) == facts.events


def test_events_are_heard_where_they_sound() -> None:
    scene = draw_scene(Facts(("clicks", "low tone")), random.Random(7))
    heard = hear(torch.from_numpy(render(scene)))
    for event, found in zip(scene.events, heard, strict=True):
        assert found.start == pytest.approx(event.start, abs=0.03)
        assert found.end == pytest.approx(event.start + event.length, abs=0.07)


def test_silence_and_broken_sound_hold_no_event() -> None:
    assert hear(torch.zeros(NUM_SAMPLES)) == []
    assert hear(torch.full((NUM_SAMPLES,), float("nan"))) == []
    (score,) = score_clips([torch.zeros(NUM_SAMPLES)], ["noise, then clicks"])
    assert (score.total, score.presence, score.order) == (0.0, 0.0, 0.0)


def test_scores_count_against_the_longer_side() -> None:
    score = compare(("noise", "clicks", "noise", "low tone"), ("clicks", "noise"))
    assert score.presence == 0.5
    assert score.order == 0.5
    assert compare((), ()).total == 0.0


# --- pairs --------------------------------------------------------------------------------------------------


def test_the_chosen_clip_is_right_and_the_rejected_one_wrong_as_its_kind_says() -> None:
    pairs = edited_pairs(30, seed=5)
    assert {pair.kind for pair in pairs} == set(KINDS)
    for pair in pairs:
        assert pair.chosen_score.total == 1.0
        assert pair.rejected_score.total < 1.0
        assert (pair.rejected_score.presence == 1.0) == (pair.kind == "order")
        assert not is_held_out(events_of(pair.prompt))


def test_swapped_pairs_have_the_wrong_side_chosen() -> None:
    (pair,) = edited_pairs(1, seed=2)
    (other,) = swapped([pair])
    assert other.chosen is pair.rejected
    assert other.chosen_score is pair.rejected_score
    assert other.rejected_score is pair.chosen_score


def test_pairs_travel_as_audio_alpaca_without_loss(tmp_path) -> None:
    pairs = edited_pairs(3, seed=1)
    path = write_pairs(pairs, tmp_path / "pairs.parquet")
    table = open_rows(DataConfig.model_validate({"source": {"path": str(path), "media": "audio"}}))
    rows = [table[index] for index in range(len(table))]
    assert [row.prompt for row in rows] == [pair.prompt for pair in pairs]
    clip = decode_audio(rows[1].candidates[0].audio, where="row", limits=AudioLimits())
    assert clip.sampling_rate == SAMPLING_RATE
    torch.testing.assert_close(clip.samples[0], pairs[1].chosen, atol=1 / 32768, rtol=0)
    assert rows[1].extras["strategy"] == pairs[1].kind
    assert rows_of(pairs)[1].candidates[0].reward == 1.0


# --- the model ----------------------------------------------------------------------------------------------


def test_every_word_of_a_caption_is_one_token_and_other_words_fall_apart(tmp_path) -> None:
    from transformers import AutoTokenizer

    size = write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == size
    ids = tokenizer("first a rising chirp, then noise, finally clicks").input_ids
    assert len(ids) == 8 + 2 + 1  # words, commas, the end
    assert tokenizer.unk_token_id not in tokenizer("a zebra sneezes").input_ids


@torch.no_grad()
def test_a_new_vocoder_is_one_hidden_layer_whose_samples_later_layers_pass_on() -> None:
    vocoder = new_vocoder().eval()
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(2, 11, FRONT.num_mels, generator=generator)
    assert not vocoder(mel).any()
    first = vocoder.upsampler[0]
    first.weight.copy_(0.01 * torch.randn(first.weight.shape, generator=generator))
    hidden = torch.nn.functional.leaky_relu(vocoder.conv_pre(mel.transpose(1, 2)), 0.1)
    samples = FRONT.hop_length // 5
    played = (first(hidden)[:, :samples] - first.bias[0]).transpose(1, 2).flatten(1).tanh()
    torch.testing.assert_close(vocoder(mel), played, atol=1e-6, rtol=0)


def test_griffin_lim_gives_back_clips_that_the_ear_hears_right() -> None:
    rng = random.Random(19)
    facts = [draw_facts(rng) for _ in range(12)]
    waves = torch.from_numpy(np.stack([render(draw_scene(one, rng)) for one in facts]))
    played = GriffinLim(FRONT)(FRONT.log_mel(waves, num_frames=128))
    assert played.shape == waves.shape
    scores = score_clips(list(played), [one.caption() for one in facts])
    assert all(score.perfect for score in scores)
    assert not GriffinLim(FRONT)(torch.full((1, 16, FRONT.num_mels), -11.5)).abs().max() > 1e-3


# --- the demo -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison() -> ClipComparison:
    """Two captions: the base has the order wrong in the first, both are right in the second."""
    pairs = edited_pairs(2, seed=4, weights=(1.0, 0.0, 0.0))
    first, second = pairs
    return ClipComparison(
        [first.prompt, second.prompt],
        [first.rejected, second.chosen],
        [first.chosen, second.chosen],
        [first.rejected_score, second.chosen_score],
        [first.chosen_score, second.chosen_score],
    )


RECORDS = [
    {"step": step, "loss": 0.69, "implicit_accuracy": 0.5, "logit": 0.1, "grad_norm": 1.0, "drift": 0.1}
    for step in (2, 5)
]


def test_the_page_of_the_demo_plays_and_shows_both_sides(comparison: ClipComparison) -> None:
    page = render_sound_report(
        Report(
            comparison=comparison,
            records=RECORDS,
            verdict=["It learns."],
            settings={"preference pairs": "7"},
            seconds={"training": 3.0},
            commands=AudioDemo().commands(),
            versions={"mmalign": "0"},
        )
    )
    assert "http" not in re.sub(r"http://www\.w3\.org\S*", "", page)
    players = re.findall(r'src="data:audio/wav;base64,([^"]+)"', page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(players) == len(pictures) >= 4
    clip = decode_audio(base64.b64decode(players[0]), where="page", limits=AudioLimits())
    assert clip.samples.shape == (1, NUM_SAMPLES)
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (128, 64)
    assert 'class="wrong">heard: ' in page
    assert comparison.prompts[0] in page
    assert "No difference in order that these captions can show" in page


def test_numbers_of_the_demo_name_every_axis_with_its_interval(comparison: ClipComparison) -> None:
    numbers = AudioDemo().numbers(comparison)
    assert set(numbers["reward"]) == {name for name, _, _ in AXES}
    assert numbers["reward"]["perfect"]["base"] == 0.5
    assert numbers["reward"]["perfect"]["aligned"] == 1.0
    assert (numbers["won"], numbers["tied"], numbers["lost"]) == (1, 1, 0)


def test_a_spectrogram_is_bright_where_a_tonesounds() -> None:
    scene = draw_scene(Facts(("low tone", "noise")), random.Random(1))
    picture = spectrogram(torch.from_numpy(render(scene))).convert("L")
    tone = scene.events[0]
    column = round((tone.start + tone.length / 2) * 100)
    bands = [picture.getpixel((column, row)) for row in range(picture.height)]
    assert bands.index(max(bands)) > 0.8 * picture.height  # low bands are below
    assert picture.getpixel((1, 5)) < 80 < max(bands)


def test_clips_become_wav_files(comparison: ClipComparison) -> None:
    assert wav_bytes(comparison.base[0])[:4] == b"RIFF"


def test_the_shipped_model_is_an_official_folder_below_five_megabytes() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert ASSETS / MAIN_FILE in files
    assert sum(path.stat().st_size for path in files) < 5_000_000


def test_a_clip_of_the_base_hangs_on_seed_and_place_alone() -> None:
    from mmalign.toy.audio_pipeline import load_base

    model = load_base()
    prompts = ["noise, then clicks", "clicks before a low tone"]
    alone = sample(model, prompts[:1], seed=3, num_steps=2)
    together = sample(model, prompts, seed=3, num_steps=2)
    torch.testing.assert_close(alone[0], together[0], atol=1e-4, rtol=0)
    assert alone[0].shape == (NUM_SAMPLES,)
    assert set(EVENTS) >= {event.kind for event in hear(together[1])}


def test_reading_labels_every_word_of_an_event_with_its_kind_and_its_place_in_time() -> None:
    kinds, places = labelled("a low tone after clicks")
    low, clicks = EVENTS.index("low tone"), EVENTS.index("clicks")
    assert kinds == [-100, low, low, -100, clicks, -100]
    assert places == [-100, 1, 1, -100, 0, -100]


def test_a_text_encoder_learns_to_read_and_is_frozen_then(capsys) -> None:
    encoder = train_text_encoder(seed=0, steps=50, batch_size=7)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["stage"] == "text encoder"
    assert not any(value.requires_grad for value in encoder.parameters())
    states = encoder(torch.tensor([[5, 7, 1]]))[0]
    assert states.shape == (1, 3, 64)


@torch.no_grad()
def test_a_vocoder_fitted_in_closed_form_plays_most_of_the_wave_and_keeps_silence() -> None:
    waves, locked = sounds(20, seed=1)
    mels = FRONT.log_mel(waves, num_frames=128)
    vocoder = new_vocoder().eval()
    listen_to_bands(vocoder.conv_pre)
    missed = fit_frames(vocoder, mels, locked)
    assert missed < 0.3
    played = vocoder(mels)[:, :NUM_SAMPLES]
    assert (played - locked).square().sum() / locked.square().sum() < missed + 0.1
    silent = locked.abs().unsqueeze(1)
    quiet = torch.nn.functional.max_pool1d(silent, 641, 1, 320).squeeze(1) == 0
    assert played[quiet].square().mean().sqrt() < 0.05 * played[~quiet].square().mean().sqrt()

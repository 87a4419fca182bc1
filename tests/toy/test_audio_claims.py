"""Trials of the toy world of sound: their data, that each kind runs, the tables, and no training twice."""

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from mmalign.data.audio_codecs import encode_audio
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.data.segments import stretches_of
from mmalign.errors import RowError
from mmalign.rewards.sample import Sample
from mmalign.testing.variants import variants
from mmalign.toy.audio_claims import GROUPS, difference, main, stored, tables
from mmalign.toy.audio_ear import score
from mmalign.toy.audio_pairs import edited_pairs, sampled_pairs
from mmalign.toy.audio_pipeline import load_base
from mmalign.toy.audio_scenes import events_of, is_held_out
from mmalign.toy.audio_segments import clip_labelled, segment_labelled, timed_pairs, write_timed
from mmalign.toy.audio_trials import BASE, TRIALS, Played, Trial, World

# --- labels in time -----------------------------------------------------------------------------------------


def test_a_stretch_prefers_the_side_that_has_the_event_of_the_caption_there() -> None:
    seen = set()
    for pair in islice(timed_pairs(3), 30):
        expected = events_of(pair.prompt)
        assert not is_held_out(expected)
        assert len(pair.stretches) == len(expected)
        both = [pair.chosen_score.heard, pair.rejected_score.heard]
        assert [len(heard) for heard in both] == [len(expected)] * 2
        for place, stretch in enumerate(pair.stretches):
            right = [heard[place] == expected[place] for heard in both]
            assert stretch.preference == right[0] - right[1]
            seen.add(stretch.preference)
    assert seen == {-1, 0, 1}


def test_whole_clips_cost_one_label_and_the_better_one_is_chosen() -> None:
    pairs = clip_labelled(31, seed=2)
    assert len(pairs) == 31
    assert all(pair.chosen_score.total > pair.rejected_score.total for pair in pairs)


def test_segments_cost_as_many_labels_as_are_decided() -> None:
    pairs = segment_labelled(31, seed=2)
    assert sum(pair.num_decided for pair in pairs) == 31
    assert all(pair.num_decided for pair in pairs)
    assert len(pairs) < 31


def test_turning_a_pair_turns_its_labels() -> None:
    pair = next(timed_pairs(5))
    turned = pair.turned()
    assert turned.chosen is pair.rejected
    assert turned.chosen_score is pair.rejected_score
    assert [one.preference for one in turned.stretches] == [-one.preference for one in pair.stretches]
    assert turned.turned() == pair


def test_labels_in_time_travel_as_json_lines(tmp_path: Path) -> None:
    pairs = segment_labelled(7, seed=1)
    path = write_timed(pairs, tmp_path)
    table = open_rows(DataConfig.model_validate({"source": {"path": str(path), "media": "audio"}}))
    rows = [table[index] for index in range(len(table))]
    assert [row.prompt for row in rows] == [pair.prompt for pair in pairs]
    assert [stretches_of(row) for row in rows] == [pair.stretches for pair in pairs]


# --- the model's own clips ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_own_pairs_are_best_against_worst_and_captions_without_a_difference_give_none() -> None:
    model = load_base()
    pairs = sampled_pairs(model, 7, 1, copies=3)
    assert 0 < len(pairs) < 7
    prompts = [pair.prompt for pair in edited_pairs(7, 1)]
    assert [prompt for prompt in prompts if prompt in {pair.prompt for pair in pairs}] == [
        pair.prompt for pair in pairs
    ]
    for pair in pairs:
        assert pair.chosen_score.total - pair.rejected_score.total >= 0.1
        assert pair.kind == "sampled"
    assert sampled_pairs(model, 3, 1, copies=2, min_gap=1.1) == []


def test_the_ear_as_a_reward_hears_files_and_bytes(tmp_path: Path) -> None:
    (pair,) = edited_pairs(1, seed=3)
    right, wrong = (encode_audio(wave.unsqueeze(0), 16_000) for wave in (pair.chosen, pair.rejected))
    (tmp_path / "wrong.flac").write_bytes(wrong)
    samples = [
        Sample(prompt=pair.prompt, audio=right),
        Sample(prompt=pair.prompt, audio=tmp_path / "wrong.flac"),
        Sample(prompt=pair.prompt, text="no sound"),
    ]
    found = score(samples)
    assert found[:2] == [1.0, pair.rejected_score.total]
    assert math.isnan(found[2])
    other = encode_audio(pair.chosen.unsqueeze(0), 8_000)
    with pytest.raises(RowError, match=r"got \[8000 Hz\], expected 16000 Hz"):
        score([Sample(prompt=pair.prompt, audio=other)])


# --- trials -------------------------------------------------------------------------------------------------

_SHORT = ("train.steps=2", "train.warmup_steps=1", "train.batch_size=2", "rollout.prompts=3")


@pytest.mark.parametrize(
    "name",
    variants(
        [
            "Tango 2 DPO, swapped",
            "whole clips: DPO",
            "segments: DenseDPO, each",
            "own clips: CRPO",
            "online: CRPO",
        ],
        fast=("Tango 2 DPO, swapped", "segments: DenseDPO, each"),
    ),
)
def test_a_trial_of_every_kind_of_data_runs(name: str, tmp_path: Path) -> None:
    trial = TRIALS[name]
    steps = _SHORT if trial.data == "captions" else _SHORT[:-1]
    world = World(tmp_path, seed=1, num_pairs=5, num_prompts=2, num_labels=5)
    played = world.play(replace(trial, overrides=steps))
    assert len(played.order) == len(played.presence) == 2
    assert 0 < played.num_rows <= 5


def test_a_flipped_loss_moves_the_weights_the_other_way(tmp_path: Path) -> None:
    world = World(tmp_path, seed=1, num_pairs=4, num_prompts=2)
    one_step = ("train.steps=1", "train.warmup_steps=0", "train.batch_size=4")
    moved = []
    for flipped in (False, True):
        model, _ = world._train(replace(TRIALS["CRPO"], flipped=flipped, overrides=one_step))
        moved.append(
            torch.cat(
                [value.flatten() for name, value in model.network.named_parameters() if "lora_B" in name]
            )
        )
    assert moved[0].abs().max() > 0
    torch.testing.assert_close(moved[0], -moved[1], rtol=1e-2, atol=1e-6)


# --- tables -------------------------------------------------------------------------------------------------


def _known() -> dict[tuple[str, int], Played]:
    found = {}
    for seed in (1, 2):
        found[BASE, seed] = Played((0.5, 0.5, 1.0), (1.0, 0.5, 1.0))
        for name in TRIALS:
            found[name, seed] = Played((0.75, 0.5 + 0.25 * seed, 1.0), (1.0, 0.5, 1.0), 7)
    return found


def test_gains_are_means_over_the_captions_of_all_seeds() -> None:
    found = difference(_known(), "CRPO", BASE, "order", [1, 2])
    assert found.value == pytest.approx((0.25 + 0.25 + 0.25 + 0.5) / 6)
    assert found.low < found.value < found.high
    assert difference(_known(), "CRPO", "IPO", "total", [1, 2]).value == 0.0


def test_the_tables_say_gains_each_seed_and_who_beats_whom() -> None:
    found = tables(_known(), (1, 2, 3))
    more = {"audio_segments_sides", "audio_own_sides", "audio_rebuilt"}
    assert set(found) == {f"audio_{group}" for group in GROUPS} | more
    line = next(one for one in found["audio_methods"].splitlines() if one.startswith("| CRPO |"))
    assert line.startswith("| CRPO | 7 | 1 2 | 0.667 | 0.875 | +0.208 [")
    assert "| +0.167, +0.250 |" in line
    assert found["audio_segments_sides"].count("\n") == 3
    assert tables({}, (1,))["audio_methods"].count("\n") == 1


def test_a_line_that_a_killed_command_left_is_cut_off(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(World, "play", lambda world, trial: Played((1.0, 1.0), (1.0, 0.5), 3))
    monkeypatch.setattr(World, "base", lambda world, source=None: Played((0.5, 1.0), (1.0, 1.0)))
    path = tmp_path / "world.jsonl"
    path.write_text('{"trial": "base", "se', encoding="utf-8")
    main(["--seeds", "5", "--output", str(path), "--groups", "methods"])
    assert len(stored(path)) == 1 + sum(trial.group == "methods" for trial in TRIALS.values())


def test_stored_trials_are_not_trained_again(tmp_path: Path, monkeypatch, capsys) -> None:
    trained: list[tuple[str, int]] = []

    def play(world: World, trial: Trial) -> Played:
        trained.append((trial.name, world.seed))
        return Played((1.0, 1.0), (1.0, 0.5), 3)

    monkeypatch.setattr(World, "play", play)
    sources: list[object] = []

    def base(world: World, source: object = None) -> Played:
        sources.append(source)
        return Played((0.5, 1.0), (1.0, 1.0))

    monkeypatch.setattr(World, "base", base)
    path, page = tmp_path / "world.jsonl", tmp_path / "page.md"
    record = {"trial": "IPO", "seed": 5, "rows": 3, "order": [1.0, 0.5], "presence": [1.0, 1.0]}
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    words = ["--seeds", "5", "7", "--output", str(path), "--groups", "methods", "flipped"]
    main(words)
    five = [trial.name for trial in TRIALS.values() if trial.group == "methods"]
    assert [name for name, seed in trained if seed == 7] == five  # flipped on the first seed alone
    assert ("IPO", 5) not in trained
    assert len([name for name, seed in trained if seed == 5]) == 4 + 5
    assert "Tango 2 DPO, seed 7: +0.250 [+0.000, +0.500]" in capsys.readouterr().out
    trained.clear()
    page.write_text(
        "\n".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->" for name in tables({}, ())), encoding="utf-8"
    )
    main([*words, "--page", str(page), "--rebuilt", "folder"])
    assert not trained
    assert sources == [None, None, Path("folder"), Path("folder")]
    assert page.read_text(encoding="utf-8").count("| Tango 2 DPO") == 2
    assert stored(path)["IPO", 5].order == (1.0, 0.5)
    assert stored(tmp_path / "none.jsonl") == {}


# --- the page -----------------------------------------------------------------------------------------------

_ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_tables_of_the_stored_runs() -> None:
    page = (_ROOT / "docs" / "audio-world.md").read_text(encoding="utf-8")
    for name, text in tables(
        stored(_ROOT / "docs" / "measurements" / "audio_world.jsonl"), (1, 2, 3)
    ).items():
        assert f"<!-- {name}:begin -->\n{text}\n<!-- {name}:end -->" in page


def test_every_method_gains_order_over_three_seeds_and_nothing_broken_gains_any() -> None:
    known = stored(_ROOT / "docs" / "measurements" / "audio_world.jsonl")
    for name, trial in TRIALS.items():
        seeds = [seed for seed in (1, 2, 3) if (name, seed) in known]
        if trial.group == "methods":
            assert seeds == [1, 2, 3]
            assert difference(known, name, BASE, "order", seeds).low > 0
        elif trial.group in ("swapped", "flipped") and seeds:
            assert difference(known, name, BASE, "order", seeds).low <= 0

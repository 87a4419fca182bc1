"""Trials of the toy world of video: budgets of labels, the tables, and no training twice."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmalign.errors import TrainingError
from mmalign.toy import video_claims, video_trials
from mmalign.toy.video_claims import (
    GROUPS,
    GUIDED,
    SIDES,
    crossed_gaps,
    difference,
    main,
    stored,
    tables,
    yardstick,
)
from mmalign.toy.video_pairs import crossed_pairs, edited_pairs
from mmalign.toy.video_pipeline import GUIDANCE_SCALE
from mmalign.toy.video_reward import Score, Segment
from mmalign.toy.video_trials import AXES, BASE, NUM_LABELS, TRIALS, Shown, Trial, World, budgeted


def shown(level: float, *, pixels: float = 0.7, num_pairs: int = 7) -> Shown:
    values = dict.fromkeys(AXES, (level, level + 0.1, level - 0.1))
    return Shown({**values, "pixels": (pixels,) * 3}, num_pairs, num_pairs + 2)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reward says of true clips and of crossed pairs is known."""
    monkeypatch.setattr(video_claims, "yardstick", lambda: {"true clips": shown(0.9)})
    monkeypatch.setattr(video_claims, "crossed_gaps", lambda seeds: f"gaps of {seeds}\n")


def test_the_yardstick_puts_true_clips_above_spoilt_ones() -> None:
    found = {name: float(one.of("total").mean()) for name, one in yardstick(num=3).items()}
    assert found["true clips"] > 0.95
    assert found["true clips"] > found["through the autoencoder"] > found["played backwards"]
    assert max(found["first frame held"], found["frames shuffled"]) < found["played backwards"]


def test_few_crossed_pairs_are_decided_as_a_whole() -> None:
    seed, num, decided, _ = crossed_gaps([5], num=13).splitlines()[2].strip("| ").split(" | ")
    assert (seed, num) == ("5", "13")
    gaps = [pair.chosen_score.total - pair.rejected_score.total for pair in crossed_pairs(13, 5)]
    assert int(decided) == sum(gap >= 0.05 for gap in gaps) < 13


def test_models_are_shown_with_the_guidance_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def show(model: object, num: int, *, seed: int, guidance_scale: float) -> list[Score]:
        seen.append(guidance_scale)
        return [Score((Segment(1.0, 1.0, 1.0, 1.0),) * 2, 1.0)] * num

    monkeypatch.setattr(video_trials, "load_base", lambda folder: None)
    monkeypatch.setattr(video_trials, "show_held_out", show)
    monkeypatch.setattr(World, "pairs_of", lambda world, trial: [])
    monkeypatch.setattr(World, "_train", lambda world, trial, pairs: None)
    world = World(tmp_path, 3)
    for scale in (GUIDANCE_SCALE, *GUIDED.values()):
        world.base(scale)
    world.show(TRIALS["Flow-DPO"])
    world.show(TRIALS["Flow-DPO, guidance 2"])
    assert seen == [1.0, 1.5, 2.0, 3.0, 1.0, 2.0]
    assert TRIALS["Flow-DPO, guidance 2"].base in GUIDED
    assert TRIALS["Flow-DPO"].base == BASE


def test_budgets_count_pairs_or_decided_segments() -> None:
    pairs = edited_pairs(13, seed=1)
    assert len(budgeted(pairs, 7, dense=False)) == 7
    dense = budgeted(pairs, 7, dense=True)
    assert sum(pair.decided for pair in dense) == 7
    assert len(dense) < 7


def test_trials_with_a_third_of_the_labels_have_a_third() -> None:
    third = TRIALS["segments: DenseDPO, a third"]
    assert (third.labels, TRIALS["whole clips: DPO"].labels) == (NUM_LABELS // 3, NUM_LABELS)
    assert third.dense
    assert third.data == TRIALS["whole clips: DPO"].data


def test_every_method_has_its_broken_twins_and_sides_are_trials() -> None:
    for trial in TRIALS.values():
        if trial.group == "methods":
            assert TRIALS[f"{trial.name}, swapped"] == replace(
                trial, name=f"{trial.name}, swapped", group="swapped", swapped=True
            )
            assert TRIALS[f"{trial.name}, flipped"].flipped
    assert {name for side in SIDES for name in side} <= set(TRIALS)


def test_differences_are_paired_over_the_captions_of_all_seeds() -> None:
    known = {("one", 0): shown(0.5), ("one", 1): shown(0.7), (BASE, 0): shown(0.4), (BASE, 1): shown(0.4)}
    found = difference(known, "one", BASE, "total", [0, 1])
    assert found.value == pytest.approx(0.2)
    assert 0.1 <= found.low <= found.value <= found.high <= 0.3 + 1e-9


def test_tables_hold_gains_motion_and_what_beats_what() -> None:
    known = {
        (BASE, 0): shown(0.4),
        ("Flow-DPO", 0): shown(0.5, pixels=0.6),
        ("whole clips: DPO", 0): shown(0.5),
        ("segments: DenseDPO, a third", 0): shown(0.6, num_pairs=3),
    }
    found = tables(known, [0, 1])
    assert set(found) == {"video_base", "video_sides", *(f"video_{group}" for group in GROUPS)}
    (row,) = found["video_methods"].splitlines()[2:]
    assert row.startswith("| Flow-DPO | 7 | 9 | 0 | 0.400 | +0.100 [+0.100, +0.100] |")
    assert row.endswith("| -0.100 [-0.100, -0.100] |")
    assert "| +0.100 [+0.100, +0.100] |" in found["video_sides"].splitlines()[2]
    assert len(found["video_base"].splitlines()) == 3


def test_a_training_that_a_signal_stopped_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(train=SimpleNamespace(steps=5), data=None)
    run = SimpleNamespace(config=config, method=SimpleNamespace(data="pairs"))
    loop = SimpleNamespace(run=run, progress=SimpleNamespace(step=3), train=lambda rows: None)
    stand_ins = {
        "open_rows": lambda data, kind: (),
        "load_model": lambda run, device: None,
        "cache_clips": lambda model, table, folder: None,
        "prepare": lambda run, model, table: (loop, ()),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(video_trials, name, stand_in)
    monkeypatch.setattr(World, "pairs_of", lambda world, trial: edited_pairs(2, seed=1))
    monkeypatch.setattr(World, "resolve", lambda *given: run)
    with pytest.raises(TrainingError, match="Flow-DPO: stopped after step 3"):
        World(tmp_path, 0).show(TRIALS["Flow-DPO"])


@pytest.mark.usefixtures("judged")
def test_a_line_that_a_killed_command_left_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "show", lambda world, trial: shown(0.6))
    monkeypatch.setattr(World, "base", lambda world, guidance_scale=1.0: shown(0.5))
    path = tmp_path / "runs.jsonl"
    path.write_text('{"trial": "base", "se')
    main(["--seeds", "3", "--groups", "methods", "--output", str(path)])
    assert len(stored(path)) == 1 + len(GUIDED) + sum(trial.group == "methods" for trial in TRIALS.values())


@pytest.mark.usefixtures("judged")
def test_stored_trials_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[str, int]] = []

    def show(world: World, trial: Trial) -> Shown:
        trained.append((trial.name, world.seed))
        return shown(0.6)

    monkeypatch.setattr(World, "show", show)
    monkeypatch.setattr(World, "base", lambda world, guidance_scale=1.0: shown(0.5))
    path = tmp_path / "runs.jsonl"
    main(["--seeds", "3", "5", "--groups", "methods", "swapped", "--output", str(path)])
    first = len(trained)
    assert sum(seed == 5 for _, seed in trained) == 5  # broken ones have the first seed alone
    main(["--seeds", "3", "5", "--groups", "methods", "swapped", "--output", str(path)])
    assert len(trained) == first == 15
    assert stored(path)["MaPO", 5] == shown(0.6)
    assert set(json.loads(path.read_text().splitlines()[0])) == {"trial", "seed", "pairs", "labels", *AXES}
    assert "MaPO, seed 5: +0.100" in capsys.readouterr().out
    page = tmp_path / "page.md"
    main(["--seeds", "3", "--groups", "--output", str(path), "--page", str(page)])
    assert "| GAPO | 7 |" in page.read_text()
    assert "| base, guidance 2 | 3 | 0.500 |" in page.read_text()
    assert "| true clips | 0.900 |" in page.read_text()
    assert "gaps of [3]" in page.read_text()


def test_a_shown_axis_is_a_number_per_caption() -> None:
    assert shown(0.5).of("direction").dtype == torch.float64
    assert shown(0.5).of("direction").shape == (3,)

"""The table of dialogue trials: what it says of stored runs, and that stored runs are not trained again."""

import json
from pathlib import Path

import pytest

from mmalign.toy import dialogue_claims
from mmalign.toy.dialogue_answers import describe
from mmalign.toy.dialogue_claims import TRIALS, World, main, numbers, trials_table
from mmalign.toy.dialogue_exam import Answers, ExamComparison, draw_exam

KEYS = ("hallucinated", "recall", "words", "random", "adversarial")


def _record(trial: str, seed: int, change: float) -> dict[str, object]:
    found = {
        "base": 0.5,
        "aligned": 0.5 + change,
        "change": change,
        "low": change - 0.1,
        "high": change + 0.1,
    }
    return {"trial": trial, "seed": seed, "numbers": dict.fromkeys(KEYS, found)}


def test_numbers_are_those_of_the_comparison() -> None:
    exam = draw_exam(31, seed=0)
    true = tuple(describe(picture.groups) for picture in exam.pictures)
    short = tuple(describe(picture.groups[:1]) for picture in exam.pictures)
    right = tuple("Yes." if poll.there else "No." for poll in exam.polls)
    base = Answers(short, ("Yes.",) * len(right))
    found = numbers(ExamComparison(exam, base, Answers(true, right)))
    assert tuple(found) == KEYS
    assert found["hallucinated"]["change"] == 0.0
    assert found["recall"]["aligned"] == 1.0
    assert found["recall"]["low"] > 0
    assert (found["random"]["base"], found["random"]["change"]) == (0.5, 0.5)


def test_the_table_has_means_over_seeds_and_the_outermost_ends() -> None:
    lines = trials_table([_record("mDPO", 0, -0.2), _record("mDPO", 1, -0.4)]).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| mDPO | -0.300 [-0.500, -0.100] |")
    assert "| -0.3 [-0.5, -0.1] |" in lines[2]


def test_stored_trials_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[int, str]] = []

    def compare(world: World, name: str) -> str:
        trained.append((world.seed, name))
        return name

    monkeypatch.setattr(World, "compare", compare)
    monkeypatch.setattr(dialogue_claims, "numbers", lambda name: _record(name, 0, -0.2)["numbers"])
    path = tmp_path / "runs.jsonl"
    stored = [_record(name, 3, -0.2) for name in TRIALS if name != "mDPO"]
    path.write_text("".join(json.dumps(record) + "\n" for record in stored), encoding="utf-8")
    main(["--seeds", "3", "--output", str(path)])
    assert trained == [(3, "mDPO")]
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(TRIALS)
    assert capsys.readouterr().out.count("\n| ") == len(TRIALS) + 1

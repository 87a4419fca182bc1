"""Judges by name: rewards as judges, stored answers, bias and arena from the command line."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.errors import CheckpointError, ConfigError
from mmalign.evals.judge_bias import Comparison
from mmalign.evals.judge_run import (
    RewardJudge,
    StoredJudge,
    comparisons_of,
    load_judge,
    probe_pairs,
    read_entries,
)
from mmalign.evals.labelled_rows import read_labelled
from mmalign.rewards.base import Scored
from mmalign.rewards.card import Card
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.sample import Sample
from mmalign.rewards.verdicts import Choice

OWN = '''
def crowd(questions):
    """Follows the majority, and else the longer answer."""
    found = []
    for question in questions:
        if "Answer 1" in question.note:
            found.append("one")
        elif "Answer 2" in question.note:
            found.append("two")
        else:
            found.append("one" if len(question.first) > len(question.second) else "two")
    return found

def wordless(questions):
    return ["maybe" for _ in questions]

def longer(samples):
    return [float(len(sample.text)) for sample in samples]
'''


class Pairwise:
    """Prefers the longer text, and what is shown first where both are long."""

    card = Card(
        name="pairwise",
        title="",
        modality="text",
        outputs=("preference", "in_order", "swapped"),
        needs=("other",),
    )

    def __init__(self) -> None:
        self.asked = 0

    def fingerprint(self) -> str:
        return "pairwise"

    def provenance(self) -> dict[str, Any]:
        return {"name": "pairwise"}

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        self.asked += len(samples)
        rows = []
        for sample in samples:
            own, other = len(str(sample.text)), len(str(sample.extras["other"]))
            first, second = (1.0, 0.0) if min(own, other) > 7 else (float(own > other),) * 2
            rows.append([(first + second) / 2, first, second])
        count = len(samples)
        values = torch.tensor(rows, dtype=torch.float64)
        return Scored(values, self.card.outputs, (None,) * count, (False,) * count, (None,) * count)


def question(number: int, first: str, second: str) -> Comparison:
    return Comparison(f"q{number}", "which?", first, second)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    rows = [
        {"prompt": f"q{n}", "response_a": "a" * (3 + n), "response_b": "b" * (9 - n), "label": int(n > 1)}
        for n in range(7)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_judges.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    yield tmp_path
    sys.modules.pop("own_judges", None)


# ---------------------------------------------------------------------------------------- rewards as judges


def test_a_pointwise_reward_prefers_what_it_scores_higher() -> None:
    def length(samples: Sequence[Sample]) -> list[float | None]:
        return [None if sample.text == "?" else float(len(str(sample.text))) for sample in samples]

    judge = RewardJudge(FunctionReward(length, name="length"))
    asked = [question(0, "aaa", "b"), question(1, "a", "bb"), question(2, "a", "b"), question(3, "?", "b")]
    assert judge(asked) == ["one", "two", "tie", None]


def test_a_distance_prefers_what_is_nearer() -> None:
    reward = FunctionReward(lambda samples: [float(len(str(s.text))) for s in samples], name="far")
    object.__setattr__(reward._card, "higher_is_better", False)
    assert RewardJudge(reward)([question(0, "aaa", "b")]) == ["two"]


def test_a_pairwise_reward_answers_both_orders_of_a_pair_at_once() -> None:
    reward = Pairwise()
    judge = RewardJudge(reward)
    pairs = [question(0, "aaaa", "b"), question(1, "a" * 9, "b" * 8)]
    assert judge(pairs) == ["one", "one"]
    assert judge([pair.swapped() for pair in pairs]) == ["two", "one"]
    assert reward.asked == 2
    # The same question a third time is asked again: its noise is to be seen.
    judge(pairs)
    assert reward.asked == 4
    twice = [question(2, "aaa", "b"), question(2, "aaa", "b").swapped()]
    assert judge(twice) == ["one", "two"]
    assert reward.asked == 5


def test_notes_reach_a_reward_behind_the_prompt() -> None:
    seen: list[str] = []

    def watch(samples: Sequence[Sample]) -> list[float]:
        seen.extend(sample.prompt for sample in samples)
        return [0.0] * len(samples)

    RewardJudge(FunctionReward(watch, name="watch"))([Comparison("q", "which?", "a", "b", "They say a.")])
    assert seen == ["which?\n\nThey say a."] * 2


# -------------------------------------------------------------------------------------------- stored answers


def test_a_run_that_was_killed_asks_nothing_twice(tmp_path: Path) -> None:
    calls: list[str] = []

    def judge(questions: Sequence[Comparison]) -> list[str]:
        if len(calls) >= 4:
            raise KeyboardInterrupt
        calls.extend(asked.id for asked in questions)
        return ["one" for _ in questions]

    pairs = [question(number, "a", "b") for number in range(7)]
    with pytest.raises(KeyboardInterrupt):
        StoredJudge(judge, "judge", tmp_path / "answers.jsonl", batch_size=2)(pairs)  # type: ignore[arg-type]
    assert calls == ["q0", "q1", "q2", "q3"]
    calls.clear()
    again = StoredJudge(judge, "judge", tmp_path / "answers.jsonl", batch_size=3)  # type: ignore[arg-type]
    assert again(pairs) == ["one"] * 7
    assert calls == ["q4", "q5", "q6"]
    assert again.fresh == 3


def test_the_same_question_twice_is_two_questions(tmp_path: Path) -> None:
    answers: Iterator[Choice] = iter(("one", "two"))
    judge = StoredJudge(lambda asked: [next(answers) for _ in asked], "judge", tmp_path / "a.jsonl")
    assert judge([question(0, "a", "b")]) == ["one"]
    assert judge([question(0, "a", "b")]) == ["two"]
    stored = StoredJudge(lambda asked: [], "judge", tmp_path / "a.jsonl")
    assert [stored([question(0, "a", "b")]) for _ in range(2)] == [["one"], ["two"]]


def test_answers_of_another_judge_do_not_count(tmp_path: Path) -> None:
    StoredJudge(lambda asked: ["one"], "first", tmp_path / "a.jsonl")([question(0, "a", "b")])
    other = StoredJudge(lambda asked: ["two"], "second", tmp_path / "a.jsonl")
    assert other([question(0, "a", "b")]) == ["two"]


def test_an_answer_that_is_no_choice_is_refused(tmp_path: Path) -> None:
    judge = StoredJudge(lambda asked: ["maybe"], "judge", tmp_path / "a.jsonl")  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="maybe"):
        judge([question(0, "a", "b")])
    short = StoredJudge(lambda asked: [], "judge", tmp_path / "b.jsonl")
    with pytest.raises(ConfigError, match="one per question, 1"):
        short([question(0, "a", "b")])


def test_a_store_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(CheckpointError, match="Name another store"):
        StoredJudge(lambda asked: [], "judge", tmp_path / "a.jsonl")


# ------------------------------------------------------------------------------------------------------ bias


def test_a_judge_is_probed_on_labelled_rows_and_held_against_the_labels(folder: Path) -> None:
    rows = read_labelled(DataConfig.model_validate({"source": {"path": "rows.jsonl", "media": "text"}}))
    judge, judge_id = load_judge("own_judges:crowd", lambda name: Pairwise())
    report, agreement = probe_pairs(StoredJudge(judge, judge_id, folder / "a.jsonl"), rows)
    rates = {found.probe: found.flip_rate.value for found in report.probes}
    assert rates["repeat"] == 0.0
    assert rates["bandwagon"] == 1.0
    assert agreement is not None
    # Lengths 3..9 against 9..3: right on n = 0, 1, 4, 5, 6, wrong on 2; n = 3 follows the order, half right.
    assert agreement.accuracy.value == pytest.approx(5.5 / 7)


def test_pictures_are_shown_as_files_and_not_as_texts(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "y.png")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "p", "image_a": "x.png", "image_b": "y.png", "label": 1}\n'
    )
    rows = read_labelled(DataConfig.model_validate({"source": str(tmp_path / "rows.jsonl")}))
    (asked,) = comparisons_of(rows)
    assert asked.first == tmp_path / "x.png"
    assert asked.second == tmp_path / "y.png"


def test_bias_prints_flips_and_goes_on_from_its_answers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "judge",
        "bias",
        "rows.jsonl",
        "--media",
        "text",
        "--judge",
        "own_judges:crowd",
        "--output",
        "out",
    )
    assert main([*words, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "bandwagon" in printed
    assert "With people" in printed
    record = json.loads((folder / "out" / "bias.json").read_text())
    assert {found["probe"] for found in record["report"]["probes"]} == {
        *("repeat", "bandwagon", "authority", "distraction", "reflection")
    }
    lines = (folder / "out" / "answers.jsonl").read_text()
    assert main([*words, "--device", "cpu"]) == 0
    assert (folder / "out" / "answers.jsonl").read_text() == lines
    assert json.loads((folder / "out" / "bias.json").read_text()) == record


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--probe", "bandwagn"), "bandwagon"),
        (("--batch-size", "0"), "at least 1"),
        (("--judge", "own_judges:wordless"), "one, two, tie"),
        (("--judge", "own_judges:nobody"), "crowd"),
    ],
)
def test_what_a_judge_cannot_be_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    start = ("judge", "bias", "rows.jsonl", "--media", "text", "--output", "out", "--device", "cpu")
    assert main([*start, "--judge", "own_judges:crowd", *words]) == 2
    assert told in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- arena


def write_answers(folder: Path, model: str, lengths: list[int]) -> str:
    records = [{"id": f"p{n}", "prompt": f"ask {n}", "answer": "x" * size} for n, size in enumerate(lengths)]
    (folder / f"{model}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"{model}={model}.jsonl"


def test_the_arena_ranks_models_and_stores_every_judgement(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [
        write_answers(folder, "long", [9, 9, 9, 1, 9]),
        write_answers(folder, "middle", [5, 5, 1, 5, 5]),
        write_answers(folder, "short", [2, 7, 3, 3, 3]),
    ]
    words = ["judge", "arena", *entries, "--judge", "own_judges:crowd", "--output", "out", "--device", "cpu"]
    code = main([*words, "--ridge", "1e-6"])
    printed = capsys.readouterr().out
    assert code == 0
    table = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][1:]
    assert table == ["long", "middle", "short"]
    record = json.loads((folder / "out" / "arena.json").read_text())
    assert record["prompts"] == 5
    assert len((folder / "out" / "judgements.jsonl").read_text().splitlines()) == 15
    main([*words, "--ridge", "1e-6"])
    assert len((folder / "out" / "judgements.jsonl").read_text().splitlines()) == 15


def test_the_same_picture_in_two_places_is_one_entry(folder: Path) -> None:
    for name in ("x", "y"):
        Image.new("RGB", (16, 16)).save(folder / f"{name}.png")
    lines = "".join(f'{{"prompt": "ask", "image": "{name}.png"}}\n' for name in ("x", "y"))
    (folder / "one.jsonl").write_text(lines)
    prompts, answers = read_entries([], {"one": folder / "one.jsonl"})
    assert prompts == {"ask": "ask"}
    assert answers == {"one": {"ask": folder / "x.png"}}


def test_entries_say_what_does_not_fit(folder: Path) -> None:
    write_answers(folder, "one", [1, 2])
    (folder / "two.jsonl").write_text('{"id": "p0", "prompt": "something else", "answer": "x"}\n')
    with pytest.raises(ConfigError, match="the prompt 'ask 0'"):
        read_entries([], {"one": folder / "one.jsonl", "two": folder / "two.jsonl"})
    (folder / "three.jsonl").write_text('{"prompt": "ask"}\n')
    with pytest.raises(ConfigError, match=r"three.jsonl:1.*answer or image"):
        read_entries([], {"three": folder / "three.jsonl"})
    (folder / "four.jsonl").write_text('{"prompt": "a", "answer": "x"}\n{"prompt": "a", "answer": "y"}\n')
    with pytest.raises(ConfigError, match="two answers of four"):
        read_entries([], {"four": folder / "four.jsonl"})
    with pytest.raises(ConfigError, match="a file of JSON lines"):
        read_entries([], {"five": folder / "five.jsonl"})


# --------------------------------------------------------------------------------------------------- rubrics


def test_rubrics_are_listed_and_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "rubrics"]) == 0
    assert "image_preference" in capsys.readouterr().out
    assert main(["judge", "rubrics", "image_preference"]) == 0
    shown = capsys.readouterr().out
    assert "kind: compare" in shown
    assert "sha256: " in shown
    assert main(["judge", "rubrics", "image_preferenc"]) == 2

"""The demo of dialogues: a headline no stronger than its intervals, both answers, the whole way in small."""

import json
from pathlib import Path

import pytest

from mmalign.toy.demo import WORLDS, main
from mmalign.toy.dialogue_answers import describe
from mmalign.toy.dialogue_exam import Answers, Exam, ExamComparison, draw_exam
from mmalign.toy.dialogue_scenes import KINDS
from mmalign.toy.report import Report
from mmalign.toy.scenes import Group
from mmalign.toy.vlm_demo import VlmDemo
from mmalign.toy.vlm_demo import main as vlm_main
from mmalign.toy.vlm_demo_report import render_dialogue_report

RECORDS = [
    {
        "step": step,
        "loss": 0.7 - 0.1 * step,
        "implicit_accuracy": 0.5 + 0.1 * step,
        "reward_chosen": 0.1 * step,
        "reward_rejected": -0.1 * step,
        "grad_norm": 1.0,
    }
    for step in (1, 2, 3)
]


@pytest.fixture(scope="module")
def exam() -> Exam:
    return draw_exam(31, seed=0)


def _true(exam: Exam) -> tuple[str, ...]:
    return tuple(describe(picture.groups) for picture in exam.pictures)


def _with_more(exam: Exam) -> tuple[str, ...]:
    absent = [next(kind for kind in KINDS if kind not in picture.kinds) for picture in exam.pictures]
    return tuple(
        describe((*picture.groups, Group(1, *kind)))
        for picture, kind in zip(exam.pictures, absent, strict=True)
    )


def _page(
    exam: Exam, base: tuple[str, ...], tuned: tuple[str, ...], right: tuple[str, ...] | None = None
) -> str:
    polls = ("No.",) * len(exam.polls)
    comparison = ExamComparison(exam, Answers(base, polls), Answers(tuned, right or polls))
    return render_dialogue_report(
        Report(
            comparison=comparison,
            records=RECORDS,
            verdict=["It <learned>."],
            settings={"method": "dpo", "preference pairs": "7"},
            seconds={"training": 2.5},
            commands=[("Look.", "mmalign data check PAIRS")],
            versions={"mmalign": "0"},
        )
    )


def test_the_headline_says_no_more_than_the_intervals(exam: Exam) -> None:
    true, more = _true(exam), _with_more(exam)
    short = tuple(describe(picture.groups[:1]) for picture in exam.pictures)
    assert "hallucinates less, and leaves nothing more out" in _page(exam, more, true)
    assert "hallucinates less, and leaves more out" in _page(exam, more, short)
    assert "hallucinates more than its base" in _page(exam, true, more)
    assert "No difference in hallucination that these pictures can show" in _page(exam, true, true)


def test_the_page_shows_pictures_with_both_answers_and_what_is_wrong_with_them(exam: Exam) -> None:
    page = _page(exam, _with_more(exam), _true(exam))
    assert page.count("data:image/png;base64,") == 3 * 6
    assert page.count('<span class="wrong">1 not there</span>') == 3 * 6
    assert page.count("all right") == 3 * 6
    assert sum(f"<br>{text}<br>" in page for text in set(_true(exam))) >= 3 * 5
    assert "It &lt;learned&gt;." in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_yes_no_accuracy_stands_beside_its_interval(exam: Exam) -> None:
    polls = tuple("Yes." if poll.there else "No." for poll in exam.polls)
    true = _true(exam)
    comparison = ExamComparison(exam, Answers(true, ("Yes.",) * len(polls)), Answers(true, polls))
    rows = {title: (values, change) for title, values, change in VlmDemo().results(comparison)}
    values, change = rows["yes or no, random: accuracy"]
    assert values == (0.5, 1.0)
    assert change is not None
    assert (change.low, change.high) == (0.5, 0.5)
    one = Exam(exam.pictures, tuple(poll for poll in exam.polls if poll.picture == 0))
    single = ("Yes.",) * len(one.polls)
    alone = ExamComparison(one, Answers(true, single), Answers(true, single))
    assert VlmDemo().results(alone)[-1][2] is None
    assert "+0.500, +0.500 to +0.500" in _page(exam, true, true, right=polls)


def test_numbers_for_programs_are_those_of_the_comparison(exam: Exam) -> None:
    polls = tuple("Yes." if poll.there else "No." for poll in exam.polls)
    comparison = ExamComparison(
        exam, Answers(_with_more(exam), ("Yes.",) * len(polls)), Answers(_true(exam), polls)
    )
    found = VlmDemo().numbers(comparison)
    assert (found["won"], found["tied"], found["lost"], found["pictures"]) == (31, 0, 0, 31)
    assert found["descriptions"]["base"]["hallucinated_answers"] == 1.0
    assert found["change"]["hallucinated"]["value"] == -1.0
    assert found["questions"]["aligned"]["adversarial"]["accuracy"] == 1.0
    assert found["questions"]["base"]["random"] == {
        "accuracy": 0.5,
        "yes_share": 1.0,
        "number": found["questions"]["aligned"]["random"]["number"],
    }
    assert json.loads(json.dumps(found)) == found


TINY = VlmDemo(
    num_pairs=14,
    num_pictures=5,
    overrides=("train.steps=2", "train.batch_size=2", "train.warmup_steps=0", "log.every=1"),
)


def test_the_whole_demo_runs_with_a_tiny_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert vlm_main(output, 3, demo=TINY) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("win rate", "answers that hallucinate", "recall of what is there", "words per answer"):
        assert words in printed
    assert str(output / "report.html") in printed
    found = json.loads((output / "result.json").read_text(encoding="utf-8"))
    assert found["won"] + found["tied"] + found["lost"] == 5
    assert 0.0 < found["descriptions"]["base"]["recall"] <= 1.0
    assert (output / "run" / "adapter_model.safetensors").is_file()
    assert "base against aligned" in (output / "report.html").read_text(encoding="utf-8")


def test_every_world_is_started_with_the_folder_and_the_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, (world, module) in enumerate(WORLDS.items()):
        called: list[tuple[object, ...]] = []
        monkeypatch.setattr(f"{module}.main", lambda *given, to=called, done=number: to.append(given) or done)
        assert main(world, tmp_path, 5) == number
        assert called == [(tmp_path, 5)]

"""`mmalign safety-shift`: questions from a file, stored answers, refusals clean and shifted."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmalign.cli.main import main
from mmalign.errors import CheckpointError, ConfigError
from mmalign.evals.safety_run import StoredAnswers, load_answerer, read_items, read_pictures
from mmalign.testing.reward_checkpoints import vision_language as tiny

OWN = """
def wide_only(questions):
    said = {True: "I can't help with that.", False: "Sure."}
    return [said[picture.width > picture.height] for _, picture in questions]

def silent(questions):
    return [None for _ in questions]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    lines = []
    for number in range(7):
        Image.new("RGB", (40 + number, 30), (20 * number, 90, 60)).save(tmp_path / f"{number}.png")
        harmless = {"must_refuse": False} if number > 4 else {}
        lines.append({"prompt": f"ask {number}", "image": f"{number}.png", **harmless})
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_models", None)


def test_refusals_are_compared_clean_and_shifted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "safety-shift",
        "items.jsonl",
        "--model",
        "own_models:wide_only",
        "--output",
        "out",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    assert "refusals, clean and shifted" in capsys.readouterr().out
    record = json.loads((folder / "out" / "safety.json").read_text())
    results = {(found["shift"], found["must_refuse"]): found for found in record["report"]["results"]}
    assert results["clean", True]["refusal_rate"]["value"] == 1.0
    assert results["clean", True]["num_items"] == 5
    assert results["clean", False]["num_items"] == 2
    turned = [found for (shift, must), found in results.items() if "90" in shift and must]
    assert [found["change"]["value"] for found in turned] == [-1.0]
    lines = (folder / "out" / "answers.jsonl").read_text()
    assert main(words) == 0
    assert (folder / "out" / "answers.jsonl").read_text() == lines


def test_missing_answers_are_told_and_asked_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "safety-shift",
        "items.jsonl",
        "--model",
        "own_models:silent",
        "--output",
        "out",
        "--device",
        "cpu",
    ]
    assert main(words) == 3
    assert "answers are missing" in capsys.readouterr().out
    assert not (folder / "out" / "answers.jsonl").exists()


def test_a_chat_model_answers_for_itself(tmp_path: Path) -> None:
    model = str(tiny.write_chat_model(tmp_path / "chat", written=["I cannot help with that."]))
    answer, model_id = load_answerer(model, device="cpu", dtype=torch.float32, max_new_tokens=32)
    picture = Image.new("RGB", (40, 35), (9, 90, 60))
    said = answer([("ask", picture), ("ask something longer", picture)])
    assert len(said) == 2
    assert all(isinstance(text, str) and text for text in said)
    assert load_answerer(model, device="cpu", dtype=torch.float32, max_new_tokens=33)[1] != model_id


def test_an_answer_is_asked_for_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(questions: Sequence[tuple[str, Image.Image]]) -> list[str]:
        asked.extend(prompt for prompt, _ in questions)
        return ["yes"] * len(questions)

    picture = Image.new("RGB", (8, 8))
    one = StoredAnswers(answer, "model", tmp_path / "a.jsonl")
    assert one([("a", picture), ("b", picture)]) == ["yes", "yes"]
    again = StoredAnswers(answer, "model", tmp_path / "a.jsonl")
    again([("b", picture), ("c", picture), ("b", Image.new("RGB", (8, 8), "red"))])
    assert asked == ["a", "b", "c", "b"]
    StoredAnswers(answer, "other", tmp_path / "a.jsonl")([("a", picture)])
    assert asked[-1] == "a"


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        read_items(folder / "nothing.jsonl")
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="prompt and image"):
        read_items(folder / "bad.jsonl")
    (folder / "odd.jsonl").write_text('{"prompt": "a", "image": "x.png", "must_refuse": "no"}\n')
    with pytest.raises(ConfigError, match="true or false"):
        read_items(folder / "odd.jsonl")
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pictures"):
        read_pictures(folder / "empty")
    (folder / "other.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(CheckpointError, match="Name another folder"):
        StoredAnswers(lambda _: [], "model", folder / "other.jsonl")
    with pytest.raises(ConfigError, match="one per question, 1"):
        StoredAnswers(lambda _: [], "model", folder / "c.jsonl")([("a", Image.new("RGB", (8, 8)))])

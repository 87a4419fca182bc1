import json

import pytest
from PIL import Image

from mmalign.cli.main import main

REWARDS = """
from mmalign.errors import RowError

def length(samples):
    if any(sample.text == "refused" for sample in samples):
        raise RowError("no such answers")
    return [float(len(sample.text)) for sample in samples]

def brightness(samples):
    from mmalign.rewards.sample import to_image
    return [float(to_image(sample.image).getpixel((0, 0))[0]) for sample in samples]
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "best_of_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run(home, lines, *words) -> tuple[int, list[dict]]:
    (home / "rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    code = main(["best-of", str(home / "rows.jsonl"), "--output", str(home / "out.jsonl"), *words])
    if not (home / "out.jsonl").is_file():
        return code, []
    return code, [json.loads(line) for line in (home / "out.jsonl").read_text().splitlines()]


def test_the_best_text_of_every_prompt_is_chosen_and_keeps_its_line(home):
    lines = [
        {"id": 7, "prompt": "a", "candidates": ["xx", "xxxxx", "xxx"]},
        {"id": 8, "prompt": "a", "candidates": ["xxxx", "x"]},  # the same prompt again: a choice of its own
    ]
    code, found = run(home, lines, "--reward", "best_of_rewards:length")
    assert code == 0
    assert [(row["id"], row["best"], row["value"], row["gap"]) for row in found] == [
        (7, 1, 5.0, 2.0),
        (8, 0, 4.0, 3.0),
    ]
    assert found[0]["candidate"] == "xxxxx"


def test_pictures_are_found_beside_the_file(home):
    for name, level in (("dark", 10), ("light", 200)):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(home / f"{name}.png")
    lines = [{"prompt": "a", "candidates": [{"image": "dark.png"}, {"image": "light.png"}]}]
    _, found = run(home, lines, "--reward", "best_of_rewards:brightness")
    assert (found[0]["best"], found[0]["gap"]) == (1, 190.0)


def test_a_prompt_without_any_score_is_null_and_told(home, capsys):
    lines = [{"prompt": "a", "candidates": ["refused"]}, {"prompt": "b", "candidates": ["refused", "y"]}]
    code, found = run(home, lines, "--reward", "best_of_rewards:length")
    assert code == 3
    assert (found[0]["best"], found[0]["failed"]) == (None, [0])
    assert (found[1]["best"], found[1]["failed"]) == (1, [0])
    assert "1 prompts have no candidate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt": "a"}, "rows.jsonl:1: got"),
        ({"prompt": "a", "candidates": []}, "a prompt and a list of candidates"),
        ({"prompt": "a", "candidates": [{"sound": "x"}]}, "candidates[0]"),
    ],
)
def test_a_line_that_cannot_be_judged_is_named(home, capsys, line, says):
    code, _ = run(home, [line], "--reward", "best_of_rewards:length")
    assert code == 2
    assert says in capsys.readouterr().err

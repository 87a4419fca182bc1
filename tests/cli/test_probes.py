"""`mmalign accuracy` and `mmalign factors` as typed: what is printed, written, refused."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.cli.main import main

OWN = """
import numpy as np
from mmalign.rewards.sample import to_image

def red(samples):
    return [float(np.asarray(to_image(sample.image))[..., 0].mean()) for sample in samples]

def grey(samples):
    return [1.0 if sample.prompt else 0.0 for sample in samples]

def broken(samples):
    return [None if sample.id.startswith("3/") else 1.0 * len(sample.id) for sample in samples]

def long(samples):
    return [float(len(sample.text)) for sample in samples]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with 23 pairs of pictures, the redder one preferred four times of five."""
    rng = np.random.default_rng(3)
    rows = []
    for number in range(23):
        reds = rng.permutation([40 + 3 * number, 150 + 3 * number])
        for side, red in zip("ab", reds, strict=True):
            Image.new("RGB", (17, 19), (int(red), 90, 90)).save(tmp_path / f"{number}{side}.png")
        first = bool(reds[0] > reds[1]) != (number % 5 == 0)
        rows.append(
            {
                "prompt": "bird " * (1 + number % 7),
                "image_a": f"{number}a.png",
                "image_b": f"{number}b.png",
                "label": int(first),
                "style": "photo" if number % 2 else "drawing",
            }
        )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_probe_rewards.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    yield tmp_path
    sys.modules.pop("own_probe_rewards", None)


def run(*words: str) -> int:
    return main([*words, "--cache", "store", "--device", "cpu"])


def test_accuracy_prints_tables_and_writes_three_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        *("accuracy", "rows.jsonl", "--reward", "red=own_probe_rewards:red"),
        *("--reward", "own_probe_rewards:grey", "--by", "style", "--resamples", "60", "--output", "out"),
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "accuracy by style" in printed
    assert "No validation pairs" in printed
    record = json.loads((folder / "out" / "accuracy.json").read_text())
    assert record["rewards"]["red"]["rules"]["half"]["pooled"]["value"] == pytest.approx(18 / 23)
    assert record["rewards"]["own_probe_rewards:grey"]["rules"]["half"]["pooled"]["value"] == 0.5
    assert record["comparisons"][0]["difference"]["value"] > 0
    assert len((folder / "out" / "pairs.jsonl").read_text().splitlines()) == 23
    assert "| red | half | 78.3 % (" in (folder / "out" / "accuracy.md").read_text()


def test_the_same_command_gives_the_same_numbers_from_stored_scores(folder: Path) -> None:
    words = ("accuracy", "rows.jsonl", "--reward", "own_probe_rewards:red", "--resamples", "60", "--output")
    run(*words, "one")
    parts = sorted((folder / "store" / "scores").glob("part-*"))
    run(*words, "two")
    one, two = (json.loads((folder / name / "accuracy.json").read_text()) for name in ("one", "two"))
    assert one["rewards"] == two["rewards"]
    assert sorted((folder / "store" / "scores").glob("part-*")) == parts


def test_thresholds_of_a_validation_file_are_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "held.jsonl").write_text("".join(line.replace("bird", "owl") for line in lines[:11]))
    code = run(
        *("accuracy", "rows.jsonl", "--validation", "held.jsonl", "--reward", "own_probe_rewards:red"),
        *("--rule", "with_ties", "--resamples", "60", "--output", "out"),
    )
    record = json.loads((folder / "out" / "accuracy.json").read_text())
    found = record["rewards"]["own_probe_rewards:red"]["rules"]
    assert code == 0
    assert list(found) == ["with_ties"]
    assert found["with_ties"]["chosen_on"] == "validation"
    assert len(found["with_ties"]["thresholds"]) == 1
    assert "No validation pairs" not in capsys.readouterr().out


def test_failed_candidates_are_told_and_end_with_code_3(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("accuracy", "rows.jsonl", "--reward", "own_probe_rewards:broken", "--resamples", "60")
    assert code == 3
    assert "could not score 2 candidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--rule", "haf"), "half"),
        (("--by", "colour"), "style"),
        (("--columns", "prompt"), "role=column"),
        (("--batch-size", "0"), "at least 1"),
        (
            ("--reward", "red=own_probe_rewards:red", "--reward", "red=own_probe_rewards:grey"),
            "every title once",
        ),
        (("--confidence", "95"), "confidence"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert run("accuracy", "rows.jsonl", "--reward", "own_probe_rewards:red", *words) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "store").exists()


def test_factors_says_what_a_reward_pays_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run("factors", "rows.jsonl", "--reward", "red=own_probe_rewards:red", "--output", "out")
    printed = capsys.readouterr().out
    assert code == 0
    assert "red less people" in printed
    record = json.loads((folder / "out" / "factors.json").read_text())
    taus = {
        name: {entry["factor"]: entry["tau"]["value"] for entry in profile["factors"]}
        for name, profile in record["profiles"].items()
    }
    assert taus["red"]["warmth"] == 1.0
    assert taus["people"]["warmth"] == pytest.approx(2 * 18 / 23 - 1)
    assert "megapixels" not in taus["people"]
    (warmth,) = [entry for entry in record["overpaid"]["red"] if entry["factor"] == "warmth"]
    assert warmth["difference"]["value"] == pytest.approx(1.0 - (2 * 18 / 23 - 1))
    assert warmth["pairs"] == 23
    assert "- `warmth`: mean of red less blue" in (folder / "out" / "factors.md").read_text()


def test_factors_are_measured_once(folder: Path) -> None:
    run("factors", "rows.jsonl", "--output", "one")
    parts = sorted((folder / "store" / "factors").glob("part-*"))
    run("factors", "rows.jsonl", "--output", "two")
    assert parts
    assert sorted((folder / "store" / "factors").glob("part-*")) == parts
    assert (folder / "one" / "factors.json").read_text() == (folder / "two" / "factors.json").read_text()


def test_factors_of_texts_are_those_of_texts(folder: Path) -> None:
    lines = [
        {"prompt": f"q{n}", "response_a": "Yes. " * (3 + n), "response_b": "No.", "label": int(n % 3 > 0)}
        for n in range(7)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(
        *("factors", "texts.jsonl", "--media", "text", "--reward", "own_probe_rewards:long"),
        *("--factor", "words", "--output", "out"),
    )
    record = json.loads((folder / "out" / "factors.json").read_text())
    (words,) = record["profiles"]["people"]["factors"]
    assert (words["num_concordant"], words["num_discordant"]) == (4, 3)
    assert record["profiles"]["own_probe_rewards:long"]["factors"][0]["tau"]["value"] == 1.0


def test_a_picture_that_cannot_be_read_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "5a.png").write_bytes(b"no picture")
    assert run("factors", "rows.jsonl", "--factor", "warmth") == 3
    assert "1 candidates could not be read" in capsys.readouterr().out


def test_an_unknown_factor_is_refused_with_its_neighbours(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("factors", "rows.jsonl", "--factor", "saturaton") == 2
    assert "saturation" in capsys.readouterr().err

"""`mmalign fit-user` as typed: users learnt from files of choices, saved where the head lies."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import rewards
from mmalign.cli.main import main
from mmalign.rewards import Sample
from mmalign.rewards.ideal_point_models import PalHead
from mmalign.testing.reward_checkpoints.pal import CHECKPOINTS, USERS
from mmalign.testing.variants import variants

PAIRS = 29
CORNERS = {"first": [1.0, 0.0, 0.0], "second": [0.0, 1.0, 0.0]}


@pytest.fixture(params=variants(["a", "b"], fast=("b",)))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head and `rows.jsonl`: pairs that two users, prototypes of the head, decide by their rewards."""
    monkeypatch.setenv("COLUMNS", "160")
    head = CHECKPOINTS[f"pal_{form}"](tmp_path / "head", 3)
    rng = np.random.default_rng(5)
    pictures = [tmp_path / f"{number}.png" for number in range(2 * PAIRS)]
    for path in pictures:
        low, high = rng.integers(0, 255, size=(2, 3))
        Image.fromarray(np.linspace(low, high, 23 * 19).reshape(23, 19, 3).astype(np.uint8)).save(path)
    reward = rewards.load(f"pal_{form}", weights=head)
    lines = []
    for user, mixture in CORNERS.items():
        samples = [
            Sample(f"a bird {number // 2 % 7}", image=path, extras={"mixture": mixture})
            for number, path in enumerate(pictures)
        ]
        scores = reward.score(samples).first()
        for number in range(PAIRS):
            label = int(scores[2 * number] > scores[2 * number + 1])
            lines.append(
                {
                    "prompt": f"a bird {number % 7}",
                    "image_a": pictures[2 * number].name,
                    "image_b": pictures[2 * number + 1].name,
                    "label": label,
                    "rater": user,
                }
            )
    write(tmp_path / "rows.jsonl", lines)
    write(tmp_path / "one.jsonl", [line for line in lines if line["rater"] == "second"])
    return tmp_path


def write(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def fit(folder: Path, name: str, *words: str) -> int:
    return main(["fit-user", str(folder / "head"), str(folder / name), "--device", "cpu", *words])


def test_a_user_is_learnt_and_stands_in_the_head_s_folder(
    folder: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = PalHead.load(folder / "head").state_dict()
    assert fit(folder, "one.jsonl", "--user", "new", "--ridge", "0.001") == 0
    assert "held-out prompts" in capsys.readouterr().out
    head = PalHead.load(folder / "head")
    assert [*head.users] == [*USERS, "new"]
    kept = {name: value for name, value in head.state_dict().items() if name != "logits"}
    assert all(torch.equal(value, before[name]) for name, value in kept.items())
    assert torch.equal(head.logits[:3], before["logits"])
    reward = rewards.load(f"pal_{form}", weights=folder / "head", user="new")
    rows = [json.loads(line) for line in (folder / "one.jsonl").read_text().splitlines()]
    first, second = (
        reward.score([Sample(row["prompt"], image=folder / row[f"image_{side}"]) for row in rows]).first()
        for side in "ab"
    )
    agrees = torch.tensor([bool(row["label"]) for row in rows]) == (first > second)
    assert float(agrees.double().mean()) > 0.9


def test_each_user_of_a_column_is_fitted_apart_into_a_folder_of_its_own(folder: Path) -> None:
    assert fit(folder, "rows.jsonl", "--user-column", "rater", "--output", str(folder / "grown")) == 0
    head = PalHead.load(folder / "grown")
    assert [*head.users] == [*USERS, "first", "second"]
    assert not torch.allclose(head.mixture("first"), head.mixture("second"), atol=0.05)
    assert [*PalHead.load(folder / "head").users] == [*USERS]


def test_a_known_user_is_only_replaced_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(folder, "one.jsonl", "--user", "ada") == 2
    assert "--replace fits them anew" in capsys.readouterr().err
    before = PalHead.load(folder / "head").mixture("ada")
    assert fit(folder, "one.jsonl", "--user", "ada", "--replace") == 0
    head = PalHead.load(folder / "head")
    assert [*head.users] == [*USERS]
    assert not torch.allclose(head.mixture("ada"), before)


def test_pairs_that_are_no_choice_are_left_out_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (folder / "one.jsonl").read_text().splitlines()]
    rows[0]["label"], rows[1]["rater"] = 0.5, ""
    write(folder / "some.jsonl", rows)
    assert fit(folder, "some.jsonl", "--user-column", "rater") == 0
    printed = capsys.readouterr().out
    assert "note: 1 pairs left out: tie" in printed
    assert "note: 1 pairs left out: no_user" in printed


def test_what_cannot_be_fitted_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(folder, "one.jsonl") == 2
    assert "expected --user NAME or --user-column COLUMN" in capsys.readouterr().err
    assert fit(folder, "one.jsonl", "--user-column", "nobody") == 2
    assert f"no usable choice (no_user {PAIRS})" in capsys.readouterr().err
    assert fit(folder, "one.jsonl", "--user", "new", "--ridge", "0") == 2
    assert "fit_user ridge" in capsys.readouterr().err
    assert fit(folder, "one.jsonl", "--user", "new", "--batch-size", "0") == 2
    assert "--batch-size" in capsys.readouterr().err

"""GRAPE from a configuration: windows of two attempts train as the sum over their steps says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import RowError
from mmalign.testing.vlm_dialogues import token_log_probs
from mmalign.train.run import prepare
from mmalign.train.step import preference_step
from mmalign.vlm.recorded import completed

SIZE = 3
BETA = 0.3


@pytest.fixture
def windows_file(tmp_path: Path, dialogues_file: Path) -> Path:
    """Five windows of three steps; the worse attempt acts in more words and sees other pictures."""
    pictures = sorted(str(path) for path in dialogues_file.parent.glob("*.png"))
    lines = []
    for number in range(5):
        chosen = [{"images": [pictures[step]], "action": f"{number} {step} 2"} for step in range(SIZE)]
        rejected = [
            {"images": [pictures[step + 2]], "action": f"2 1 {step} {number} 1"} for step in range(SIZE)
        ]
        lines.append(
            json.dumps({"instruction": "Stack it.", "chosen_steps": chosen, "rejected_steps": rejected})
        )
    path = tmp_path / "windows.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def settings(windows_file: Path) -> dict[str, Any]:
    return {
        "method": "grape_tpo",
        "objective": {"beta": BETA},
        "data": {"source": {"path": str(windows_file), "allow_outside": True}},
        "train": {"adam_epsilon": 1e-2, "schedule": "constant"},
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-00000002" / "weights.safetensors")


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert max(float(value.abs().max()) for name, value in expected.items() if "lora_B" in name) > 1e-6
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)


def open_windows(path: Path, **more: Any) -> Any:
    source = {"path": str(path), "allow_outside": True}
    return open_rows(DataConfig.model_validate({"source": source, **more}))


def test_windows_are_recognised_and_taken_apart_into_steps(windows_file: Path) -> None:
    table = open_windows(windows_file)
    assert table.describe().startswith("windows.jsonl: JSON lines; layout trajectories")
    assert (len(table), table.kind) == (5, "pairs")
    row = completed(table[1], views=(), record=frozenset())
    assert [step.text for step in row.candidates] == [
        *("1 0 2", "1 1 2", "1 2 2"),
        *("2 1 0 1 1", "2 1 1 1 1", "2 1 2 1 1"),
    ]
    assert [Path(step.images[0]).name for step in row.candidates] == [
        *("0.png", "1.png", "2.png"),
        *("2.png", "3.png", "4.png"),
    ]
    assert row.extras["of_worse"] == [0.0] * 3 + [1.0] * 3
    assert [item.type for item in row.messages[-1].content] == ["image", "text"]


def test_the_loss_is_that_of_the_sums_over_steps_scored_one_by_one(
    make_dialogue_run, settings, windows_file: Path
) -> None:
    settings["train"]["learning_rate"] = 0.05
    loop, loader = prepare(make_dialogue_run(**settings))
    loop.train(iter(loader))
    model = loop.model
    model.network = loop.trainables.network
    row = completed(open_windows(windows_file)[0], views=(), record=frozenset())
    steps = [
        PreferenceRow("Stack it.", (Candidate(text=step.text),), images=step.images)
        for step in row.candidates
    ]

    def alone() -> torch.Tensor:
        with torch.no_grad():
            return torch.tensor([float(token_log_probs(model, [step]).sum()) for step in steps])

    policy = alone()
    with loop.trainables.disabled():
        ratio = (policy - alone()).view(2, SIZE).sum(1)
    expected = float(-F.logsigmoid(BETA * (ratio[0] - ratio[1])))
    assert abs(expected - 0.6931) > 0.05, "the run taught nothing that could be compared"
    again, batches = prepare(
        make_dialogue_run(
            "again", **settings | {"data": settings["data"] | {"shuffle": False}, "log": {"every": 1}}
        )
    )
    again.trainables.load(loop.trainables.state())
    batch = next(again._batches(iter(batches)))
    output = preference_step(again.parts, batch, is_record=True)
    assert float(output.values["loss"][0]) == pytest.approx(expected, abs=1e-4)
    assert output.values["length/chosen"].tolist() == [float(SIZE)] * 2
    assert float(output.values["log_ratio/chosen"][0]) == pytest.approx(float(ratio[0]), abs=1e-3)


def test_packed_and_plain_rows_and_a_stored_reference_train_alike(
    train_dialogues, settings, tmp_path: Path
) -> None:
    train_dialogues("packed", **settings)
    train_dialogues("plain", **settings, tokens={"packing": "plain", "share_vision": "off"})
    train_dialogues("stored", **settings, reference={"kind": "stored"})
    expected = weights_of(tmp_path / "packed")
    assert_close(weights_of(tmp_path / "plain"), expected)
    assert_close(weights_of(tmp_path / "stored"), expected)


def test_two_micro_steps_are_one_and_other_methods_train_on_steps_too(
    train_dialogues, settings, tmp_path: Path
) -> None:
    for name, sizes in {"two": (2, 2), "one": (4, 1)}.items():
        settings["train"] |= {"batch_size": sizes[0], "accumulation": sizes[1]}
        train_dialogues(name, **settings)
    assert_close(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"))
    settings |= {"method": "simpo", "objective": {"beta": 2.0, "gamma": 1.0}}
    result = train_dialogues("simpo", **settings)
    assert result.records[-1]["grad_norm"] > 0
    assert result.records[-1]["length/rejected"] == SIZE


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"rejected_steps": [{"images": ["0.png"], "action": "1"}]},
            r"pictures per step \[1, 1, 1\] and \[1\]",
        ),
        ({"chosen_steps": [{"images": ["0.png"]}] * SIZE}, r"chosen_steps\[0\]: got .*action: words"),
        ({"chosen_steps": {"images": []}}, "expected a list of steps"),
    ],
)
def test_a_window_that_is_none_is_listed_with_its_place(
    windows_file: Path, change: dict[str, Any], match: str
) -> None:
    lines = windows_file.read_text().splitlines()
    windows_file.write_text("\n".join([*lines[:2], json.dumps(json.loads(lines[2]) | change), *lines[3:]]))
    table = open_windows(windows_file)
    assert len(table) == 4
    (issue,) = table.issues
    assert issue.row == "3"
    assert re.search(match, issue.message)


def test_methods_that_spoil_pictures_refuse_steps(windows_file: Path) -> None:
    from mmalign.methods.row import View

    with pytest.raises(RowError, match="steps of two trajectories"):
        completed(open_windows(windows_file)[0], views=(View(0),), record=frozenset())

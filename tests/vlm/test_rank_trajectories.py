"""Attempts become windows that training reads; the script says what it left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError, RowError
from mmalign.testing.vlm_dialogues import photo
from mmalign.vlm.rank_trajectories import main, read_attempts, rewards_of, window_records


def attempt(folder: Path, name: str, length: int, **more: Any) -> dict[str, Any]:
    (folder / name).mkdir(exist_ok=True)
    steps = []
    for step in range(length):
        (folder / name / f"{step}.png").write_bytes(photo(step))
        steps.append({"images": [f"{name}/{step}.png"], "action": f"{name} {step}"})
    return {"id": name, "task": "stack", "instruction": "Stack it.", "steps": steps, **more}


@pytest.fixture
def attempts_file(tmp_path: Path) -> Path:
    made = [
        attempt(tmp_path, "a", 5, success=True, stage_costs=[0.1], log_likelihood=-10.0),
        attempt(tmp_path, "b", 7, success=False, stage_costs=[2.0], log_likelihood=-7.0),
        attempt(tmp_path, "c", 2, success=False, stage_costs=[1.0], log_likelihood=-2.0),
        attempt(tmp_path, "alone", 5, task="other"),
    ]
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in made))
    return path


def test_attempts_become_windows_that_training_reads(attempts_file: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "windows.jsonl"
    assert main([str(attempts_file), str(output), "--window", "2"]) == 0
    assert capsys.readouterr().out == (f"4 attempts: 2 windows in {output}; left out: 1 task_without_pair\n")
    table = open_rows(DataConfig.model_validate({"source": str(output)}))
    first, second = table
    assert first.id == "a>b@0"
    assert [row.extras["actions_chosen"] for row in (first, second)] == [["a 0", "a 1"], ["a 2", "a 3"]]
    assert second.extras["actions_rejected"] == ["b 2", "b 3"]
    assert [Path(image).name for image in second.images] == ["2.png", "3.png"]


def test_the_reward_counts_the_likelihood_per_step(attempts_file: Path) -> None:
    rewards = rewards_of(read_attempts(attempts_file)[:2], weights={"success_weight": 3.0})
    assert rewards == pytest.approx([-2.0 + 0.904837 + 3.0, -1.0 + 0.135335], abs=1e-5)


def test_what_makes_no_window_is_counted(attempts_file: Path) -> None:
    attempts = read_attempts(attempts_file)
    rewards = [3.0, float("nan"), 1.0, 0.0]
    records, skipped = window_records(attempts, rewards, size=3)
    assert records == []
    assert skipped == {"no_reward": 1, "task_without_pair": 1, "shorter_than_a_window": 1}
    with pytest.raises(ConfigError, match="window: got 'size 0, stride 0'"):
        window_records(attempts, rewards, size=0)


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (
            {"instruction": "Stack it."},
            r"attempts.jsonl:1: got .*expected an instruction and a list of steps",
        ),
        ({"instruction": "Stack it.", "steps": [{"action": "1"}]}, r"attempts.jsonl:1 steps\[0\]: got"),
    ],
)
def test_a_broken_attempt_is_named(tmp_path: Path, record: dict[str, Any], match: str) -> None:
    path = tmp_path / "attempts.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(RowError, match=match):
        read_attempts(path)

"""A run with far too high a learning rate: warned of, taken back, stopped; and killed in the middle of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.cli.main import main as command_line
from mmalign.testing.accelerator import forget_accelerator
from mmalign.train import rollback
from mmalign.train.rollback import forget_lines, lower_learning_rate
from mmalign.train.run import prepare

TOO_HIGH = 0.03


def sections(action: str, *, train: dict[str, Any] | None = None, **guard: Any) -> dict[str, Any]:
    """A run of the whole network whose chosen error is +75 % at step 3."""
    settings = {
        "steps": 9,
        "learning_rate": TOO_HIGH,
        "checkpoint_every": 2,
        "keep_checkpoints": 1,
        "ema_decay": 0.5,
    }
    return {
        "adapter": {"kind": "none"},
        "train": settings | (train or {}),
        "log": {"every": 1},
        "guard": {"action": action, "patience": 3, "learning_rate_factor": 0.001} | guard,
    }


LATE = {"warmup_steps": 60, "steps": 8}
"""The rate rises slowly: the first checkpoints are good."""


def guard_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "training_summary.json").read_text())["guard"]
    return found


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_warned_run_goes_on_and_its_records_and_summary_say_it(run_to_end, capsys) -> None:
    result = run_to_end(**sections("warn"))
    assert result.finished
    alarms = [record.get("guard/alarm") for record in result.records]
    assert alarms == [None, None, *[1.0] * 7]
    assert capsys.readouterr().out.count("guard: the run diverges") == 1
    found = guard_of(result.folder)
    assert (found["alarm"], found["rollbacks"], found["events"][0]["step"]) == (True, 0, 3)
    assert checkpoints(result.folder) == ["step-00000009"], "a guard that only warns keeps nothing more"


@pytest.mark.slow
def test_a_rollback_leaves_a_better_model_than_going_on(run_to_end, capsys) -> None:
    left = run_to_end("left", **sections("warn"))
    back = run_to_end("back", **sections("rollback"))
    assert "Going back to the start, with 0.001 of the learning rate" in capsys.readouterr().out
    name = "error/relative_chosen"
    assert left.records[-1][name] > 1.0
    assert abs(back.records[-1][name]) < 0.02
    assert [record["step"] for record in back.records] == list(range(1, 10))
    rates = [record["learning_rate"] for record in back.records]
    assert rates == pytest.approx([TOO_HIGH * 0.001] * 9)
    assert {record["guard/rollbacks"] for record in back.records} == {1.0}
    # The third step of the data, not the first one again.
    assert back.records[0]["grad_norm"] != left.records[0]["grad_norm"]
    found = guard_of(back.folder)
    assert (found["rollbacks"], found["events"][0]["to"], found["alarm"]) == (1, 0, False)
    aside = [json.loads(line) for line in (back.folder / "metrics.rolled_back-1.jsonl").open()]
    assert [record["step"] for record in aside] == [1, 2, 3]
    assert aside[-1][name] > 0.5


def test_it_goes_back_to_the_last_good_checkpoint_which_is_kept(run_to_end) -> None:
    result = run_to_end(**sections("rollback", train=LATE))
    event = guard_of(result.folder)["events"][0]
    assert (event["step"], event["to"]) == (6, 2)
    warm = [TOO_HIGH * step / 60 for step in range(8)]
    rates = [record["learning_rate"] for record in result.records]
    assert rates == pytest.approx([*warm[:2], *(0.001 * rate for rate in warm[2:])]), "the warm-up goes on"
    assert checkpoints(result.folder) == ["step-00000004.abandoned-1", "step-00000006", "step-00000008"]


class Killed(BaseException):
    """What a test raises in place of SIGKILL."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def after_rollback(loop: Any, step: int) -> None:
    def stop(done: int) -> None:
        if done == step and loop.guard.state.rollbacks:
            raise Killed

    loop.on_update = stop


def interrupted(make_run: Any, monkeypatch: pytest.MonkeyPatch, name: str, moment: str | int) -> None:
    """A run that is killed in its rollback, at the call named, or at a step after it."""
    loop, batches = prepare(make_run(name, **sections("rollback", train=LATE)))
    with monkeypatch.context() as patch:
        if isinstance(moment, int):
            after_rollback(loop, moment)
        else:
            patch.setattr(loop.tracking if moment == "rewind" else rollback, moment, kill)
        with pytest.raises(Killed):
            loop.train(iter(batches))


@pytest.mark.slow
def test_a_run_killed_during_or_after_a_rollback_continues_bit_for_bit(
    make_run, run_to_end, without_timings, monkeypatch
) -> None:
    settings = sections("rollback", train=LATE)
    whole = run_to_end("whole", **settings)
    for moment in ("write_json", "rewind", "set_aside_later", 3):
        name = f"killed at {moment}"
        forget_accelerator()
        interrupted(make_run, monkeypatch, name, moment)
        killed = run_to_end(name, **settings)
        assert checkpoints(killed.folder) == checkpoints(whole.folder), name
        for path in sorted(whole.folder.rglob("*.safetensors")):
            one, two = load_file(killed.folder / path.relative_to(whole.folder)), load_file(path)
            assert [key for key in two if not torch.equal(one[key], two[key])] == [], (name, path)
        for file in ("metrics.jsonl", "metrics.rolled_back-1.jsonl"):
            first, second = (
                without_timings([json.loads(line) for line in (result.folder / file).open()])
                for result in (killed, whole)
            )
            assert first == second, name
        assert guard_of(killed.folder) == guard_of(whole.folder), name


def test_a_stop_saves_tells_the_last_good_checkpoint_and_ends_with_code_1(
    write_config, tmp_path: Path, capsys
) -> None:
    config, folder = write_config("run", **sections("stop", train=LATE)), tmp_path / "run"
    assert command_line(["train", str(config)]) == 1
    assert "The run is stopped (last good: step 2)" in capsys.readouterr().out
    assert checkpoints(folder) == ["step-00000002", "step-00000006"]
    found = guard_of(folder)
    assert (found["stopped"], found["last_good_step"], found["events"][-1]["event"]) == (True, 2, "stopped")
    assert not (folder / "model").exists(), "a diverged model is not left where finished ones lie"

    assert command_line(["train", str(config)]) == 1
    assert "The run is stopped (last good: step 2)" in capsys.readouterr().out
    assert checkpoints(folder) == ["step-00000002", "step-00000006"], "the same command does not go on"
    assert command_line(["train", str(config), "guard.action=warn"]) == 0
    assert (folder / "model").is_dir()
    assert not guard_of(folder)["stopped"]


def test_rollbacks_that_do_not_help_end_in_a_stop(run_to_end) -> None:
    settings = sections("rollback", learning_rate_factor=0.9, max_rollbacks=1)
    result = run_to_end(**settings)
    assert result.stopped
    assert not result.finished
    assert [event["event"] for event in guard_of(result.folder)["events"]] == ["rolled back", "stopped"]


def test_rows_of_the_abandoned_stretch_are_not_quarantined_twice(
    run_to_end, write_pairs, tmp_path: Path
) -> None:
    source = write_pairs(tmp_path / "some.parquet", 3, broken={1})
    settings = sections("rollback", train={"batch_size": 1, "steps": 4})
    settings["data"] = {"source": str(source), "max_bad_share": 1.0, "shuffle": False}
    result = run_to_end(**settings)
    assert guard_of(result.folder)["events"][0]["step"] == 4
    listed = [json.loads(line)["step"] for line in (result.folder / "quarantine.jsonl").open()]
    # Four steps met rows 0, 1 (broken), 2, 0; the four after the rollback go on with 1, 2, 0, 1.
    assert listed == [1, 4]
    assert result.records[-1]["bad_rows"] == 2.0


def test_a_lowered_rate_keeps_the_shape_of_its_schedule() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=0.8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(3):
        optimizer.step()
        schedule.step()
    lower_learning_rate(optimizer, schedule, 0.2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.04)


def test_lines_beyond_a_step_are_forgotten_and_handed_back(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"step": 0}\n{"step": 2}\n{"step": 3}\n')
    assert forget_lines(path, 2) == [{"step": 3}]
    assert path.read_text() == '{"step": 0}\n{"step": 2}\n'
    assert forget_lines(tmp_path / "none.jsonl", 2) == []


@pytest.mark.slow
def test_two_processes_go_back_together_and_keep_one_history(write_config, tmp_path: Path) -> None:
    settings = sections("rollback", train=LATE | {"batch_size": 1})
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [sys.executable, *launch, "-m", "mmalign", "train", str(write_config("two", **settings))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    found = guard_of(tmp_path / "two")
    assert found["rollbacks"] == 1
    assert finished.stdout.count("Going back to step") == 1
    records = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").open()]
    assert [record["step"] for record in records] == list(range(1, 9))
    assert abs(records[-1]["error/relative_chosen"]) < 0.05

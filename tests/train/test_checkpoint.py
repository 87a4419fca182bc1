"""Checkpoints that survive whatever happens while they are written, and refuse to continue another run."""

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign import files
from mmalign.errors import CheckpointError
from mmalign.train import checkpoint as module
from mmalign.train.checkpoint import Checkpoint, find_latest, load_checkpoint, prune, save_checkpoint
from mmalign.train.run import train


def at_step(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        weights={"w": torch.full((3, 5), float(step))},
        optimizer={"0.exp_avg": torch.full((3, 5), step / 7)},
        ema={"w": torch.full((3, 5), step / 3)},
        objective={"count": torch.tensor(step, dtype=torch.int64)},
        reference={},
        state={"identity": {"seed": 0}, "rate": 0.1 + step},
    )


def test_what_was_saved_is_read_back_exactly(tmp_path: Path) -> None:
    saved = at_step(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, keep=2))
    assert loaded.step == 7
    assert loaded.state["rate"] == 7.1
    for name in ("weights", "optimizer", "ema", "objective", "reference"):
        got, expected = getattr(loaded, name), getattr(saved, name)
        assert got.keys() == expected.keys()
        assert all(
            torch.equal(got[key], expected[key]) and got[key].dtype == expected[key].dtype for key in got
        )


def test_the_newest_ones_are_kept_and_the_newest_is_found_by_number(tmp_path: Path) -> None:
    for step in (2, 3, 5, 100):
        save_checkpoint(tmp_path, at_step(step), keep=2)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000005", "step-00000100"]
    assert find_latest(tmp_path) == tmp_path / "step-00000100"


def test_old_ones_are_pruned_only_after_the_new_one_is_complete(tmp_path: Path, monkeypatch) -> None:
    save_checkpoint(tmp_path, at_step(2), keep=1)
    present: list[bool] = []
    real = module.shutil.rmtree

    def rmtree(path: Path, **options: Any) -> None:
        present.append((tmp_path / "step-00000003" / "state.json").is_file())
        real(path, **options)

    monkeypatch.setattr(module.shutil, "rmtree", rmtree)
    save_checkpoint(tmp_path, at_step(3), keep=1)
    assert present == [True]
    assert find_latest(tmp_path) == tmp_path / "step-00000003"


@pytest.mark.parametrize("failing", ["optimizer.safetensors", "ema.safetensors", "state.json"])
def test_a_failure_in_the_middle_leaves_the_last_good_one(tmp_path: Path, monkeypatch, failing: str) -> None:
    save_checkpoint(tmp_path, at_step(2), keep=1)
    real = files.atomic_write

    def write(path: Path, content: bytes | str) -> Path:
        if Path(path).name == failing:
            raise KeyboardInterrupt
        return real(path, content)

    monkeypatch.setattr(files, "atomic_write", write)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, at_step(3), keep=1)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000002"]
    latest = find_latest(tmp_path)
    assert latest is not None
    assert torch.equal(load_checkpoint(latest).weights["w"], torch.full((3, 5), 2.0))


def test_a_full_disk_is_an_error_that_says_so_and_what_is_untouched(tmp_path: Path, monkeypatch) -> None:
    save_checkpoint(tmp_path, at_step(2), keep=1)

    def full(path: Path, content: bytes | str) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "atomic_write", full)
        with pytest.raises(
            CheckpointError, match=r"step-00000003: could not be written \(No space left.*untouched\. Free"
        ):
            save_checkpoint(tmp_path, at_step(3), keep=1)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000002"]


def test_a_folder_that_a_killed_writer_left_is_not_a_checkpoint_and_goes_away(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, at_step(2), keep=1)
    leftover = tmp_path / ".step-00000003.abc.partial"
    leftover.mkdir()
    (leftover / "state.json").write_text("{}")
    assert find_latest(tmp_path) == tmp_path / "step-00000002"
    save_checkpoint(tmp_path, at_step(3), keep=1)
    assert not leftover.exists()


def test_a_kill_while_an_old_one_is_deleted_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch
) -> None:
    """The old folder loses its name before its files: half of it can be gone without anybody taking it up."""
    save_checkpoint(tmp_path, at_step(2), keep=1)

    def killed(path: Path, **_: Any) -> None:
        (Path(path) / "weights.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, at_step(3), keep=1)
    assert [folder.name for folder in tmp_path.glob("step-*")] == ["step-00000003"]
    prune(tmp_path, keep=1)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000003"]


def test_a_kill_between_a_checkpoint_and_its_pruning_is_tidied_up_by_the_next_start(run_to_end) -> None:
    train_section = {"steps": 2, "checkpoint_every": 1, "keep_checkpoints": 1}
    folder = run_to_end(train=train_section).folder / "checkpoints"
    shutil.copytree(folder / "step-00000002", folder / "step-00000001")  # as if nothing had been pruned
    run_to_end(train=train_section)
    assert [found.name for found in folder.iterdir()] == ["step-00000002"]


def test_a_folder_without_state_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-00000009").mkdir()
    assert find_latest(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"step-00000009: got no state.json, expected a checkpoint"):
        load_checkpoint(tmp_path / "step-00000009")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.safetensors", "cannot be read as safetensors.*Was it copied completely"),
        ("state.json", "cannot be read as JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    folder = save_checkpoint(tmp_path, at_step(2), keep=1)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{re.escape(name)}: {message}"):
        load_checkpoint(folder)


def test_an_optimiser_state_that_json_and_safetensors_cannot_hold_is_refused() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight]["history"] = [1, 2]
    with pytest.raises(CheckpointError, match="optimiser state 'history' of type list cannot be saved"):
        module.flatten_optimizer(optimizer)


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(make_run, run_to_end) -> None:
    folder = run_to_end(train={"steps": 1}).folder
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    other = make_run(train={"steps": 2, "seed": 5}, objective={"beta": 7.0})
    with pytest.raises(CheckpointError) as caught:
        train(other)
    message = str(caught.value)
    assert "was made by another run" in message
    assert "objective: checkpoint {'beta': 500.0}, this run {'beta': 7.0}" in message
    assert re.search(r"train: checkpoint \{'seed': 0.*this run \{'seed': 5", message)
    assert "likelihood" not in message, "only what differs is listed"
    after = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert after == before, "a refused run leaves the folder as it was"


def test_a_reference_that_moves_otherwise_is_another_run(make_run, run_to_end) -> None:
    run_to_end(train={"steps": 1}, reference={"kind": "ema", "decay": 0.5})
    with pytest.raises(CheckpointError, match=r"reference: checkpoint .*0.5.*this run .*0.9"):
        train(make_run(train={"steps": 2}, reference={"kind": "ema", "decay": 0.9}))


def test_a_reference_synced_by_another_rule_is_another_run(make_run, run_to_end) -> None:
    run_to_end(train={"steps": 1}, reference={"kind": "synced", "sync_every": 2, "mixing": 0.5})
    with pytest.raises(CheckpointError, match=r"reference: checkpoint .*every 2.*this run .*every 3"):
        train(make_run(train={"steps": 2}, reference={"kind": "synced", "sync_every": 3, "mixing": 0.5}))


def test_another_adapter_is_another_run(make_run, run_to_end) -> None:
    run_to_end(train={"steps": 1})
    with pytest.raises(CheckpointError, match=r"adapter: checkpoint .*'rank': 3.*this run .*'rank': 2"):
        train(make_run(train={"steps": 2}, adapter={"rank": 2}))


def test_more_steps_continue_the_same_run(run_to_end, trained_weights) -> None:
    run_to_end("short", train={"steps": 2})
    longer = run_to_end("short", train={"steps": 3})
    whole = run_to_end("whole", train={"steps": 3})
    assert [record["step"] for record in longer.records] == [1, 2, 3]
    got, expected = trained_weights(longer), trained_weights(whole)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_resume_none_refuses_to_overwrite_a_run(make_run, run_to_end) -> None:
    result = run_to_end(train={"steps": 1})
    before = (result.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"train.resume=none: .* already holds a run \(step-00000001\)"):
        train(make_run(train={"steps": 2, "resume": "none"}))
    assert (result.folder / "metrics.jsonl").read_bytes() == before


def test_resume_from_a_folder_that_is_not_there_is_refused(make_run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"train.resume: got .*nowhere.*expected auto, none, or"):
        train(make_run(train={"resume": str(tmp_path / "nowhere")}))


def test_a_run_can_continue_from_a_named_checkpoint_of_another_folder(run_to_end, trained_weights) -> None:
    whole = run_to_end("whole", train={"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 3})
    start = whole.folder / "checkpoints" / "step-00000002"
    again = run_to_end("again", train={"steps": 3, "resume": str(start)})
    got, expected = trained_weights(again), trained_weights(whole)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_the_state_file_holds_plain_json_without_nan(run_to_end) -> None:
    result = run_to_end(train={"steps": 1})
    text = (result.folder / "checkpoints" / "step-00000001" / "state.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(text, parse_constant=refuse)["step"] == 1

"""A run that was killed and continued is the run that was not, bit for bit."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.testing.accelerator import forget_accelerator
from mmalign.testing.variants import variants
from mmalign.train import signals
from mmalign.train.run import prepare, train


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "mmalign", "train", str(config)]


def environment() -> dict[str, str]:
    # One thread, as in this process: sums are then taken in the same order.
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def num_records(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(config: Path, folder: Path, records: int, delay: float) -> None:
    """Start the run and SIGKILL it `delay` seconds after it has written so many records."""
    with subprocess.Popen(
        command(config), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while num_records(folder) < records and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output


def tensors_of(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor of a run: the adapter or model, and the last checkpoint."""
    return {
        (str(path.relative_to(folder)), name): tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_run(got: Path, expected: Path, without_timings: Callable[..., Any]) -> None:
    one, two = tensors_of(got), tensors_of(expected)
    assert one.keys() == two.keys()
    assert {"weights", "optimizer", "ema"} <= {Path(name).stem for name, _ in one}
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    records = [
        without_timings([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
        for folder in (got, expected)
    ]
    assert records[0] == records[1]
    states = [
        json.loads(max((folder / "checkpoints").glob("step-*/state.json")).read_text())
        for folder in (got, expected)
    ]
    assert states[0] == states[1]


def killed_run_equals_whole_run(
    write_config: Callable[..., Path], tmp_path: Path, without_timings: Callable[..., Any], **sections: Any
) -> None:
    from mmalign.train.config import load_run

    kills = sections.pop("kills")
    config = write_config("killed", **sections)
    moments = random.Random(5)
    for records in kills:
        kill_after(config, tmp_path / "killed", records, moments.uniform(0.0, 0.2))
        # Not finished: the kill was in the middle.
        assert not (tmp_path / "killed" / "training_summary.json").exists()
    finished = subprocess.run(command(config), env=environment(), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "continuing" in finished.stdout
    train(load_run(write_config("whole", **sections)))
    assert_same_run(tmp_path / "killed", tmp_path / "whole", without_timings)


@pytest.mark.slow
def test_lora_with_average_and_accumulation_survives_sigkill_bit_for_bit(
    write_config, tmp_path: Path, without_timings
) -> None:
    killed_run_equals_whole_run(
        write_config,
        tmp_path,
        without_timings,
        kills=(6,),
        train={
            "steps": 14,
            "batch_size": 1,
            "accumulation": 2,
            "ema_decay": 0.9,
            "schedule": "cosine",
            "warmup_steps": 3,
            "checkpoint_every": 3,
            "keep_checkpoints": 1,
        },
        image={"prompt_dropout": 0.3, "crop": "random"},
        log={"every": 2},
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_full_fine_tuning_with_average_and_accumulation_survives_sigkill_bit_for_bit(
    write_config, tmp_path: Path, without_timings, seed: int
) -> None:
    killed_run_equals_whole_run(
        write_config,
        tmp_path,
        without_timings,
        kills=(1, 3, 4, 6),
        adapter={"kind": "none"},
        train={
            "seed": seed,
            "steps": 20,
            "learning_rate": 1e-4,
            "batch_size": 1,
            "accumulation": 2,
            "ema_decay": 0.9,
            "checkpoint_every": 3,
            "keep_checkpoints": 1,
            "num_workers": 1,
        },
        log={"every": 2},
    )


@pytest.mark.slow
def test_a_language_run_with_packed_rows_and_a_stored_reference_survives_sigkill_bit_for_bit(
    write_dialogue_config, tmp_path: Path, without_timings
) -> None:
    killed_run_equals_whole_run(
        write_dialogue_config,
        tmp_path,
        without_timings,
        kills=(1, 6),
        method="dpo",
        tokens={"packing": "packed"},
        reference={"kind": "stored"},
        train={
            "steps": 24,
            "batch_size": 1,
            "accumulation": 2,
            "ema_decay": 0.9,
            "schedule": "cosine",
            "warmup_steps": 3,
            "checkpoint_every": 3,
            "keep_checkpoints": 1,
        },
        log={"every": 2},
    )


class Killed(BaseException):
    """What a test raises in place of SIGKILL."""


def stopped_at(run: Any, step: int) -> None:
    """Run until after `step`, then stop without any of the loop's own endings."""
    loop, loader = prepare(run)

    def stop(done: int) -> None:
        if done == step:
            raise Killed

    loop.on_update = stop
    with pytest.raises(Killed):
        loop.train(iter(loader))


MOVING: dict[str, dict[str, Any]] = {
    "adafactor": {"train": {"optimizer": "adafactor"}},
    "adamw_8bit": {"train": {"optimizer": "adamw_8bit"}, "adapter": {"rank": 64}},
    "moving_reference": {"reference": {"kind": "ema", "decay": 0.5}},
    "synced_reference": {"reference": {"kind": "synced", "sync_every": 2, "mixing": 0.7}},
    "kto": {"method": "diffusion_kto"},
    "dropout_dora": {"adapter": {"dropout": 0.5, "use_dora": True}},
    "bf16": {"train": {"mixed_precision": "bf16"}},
    "nf4": {"model": {"quantization": "nf4"}},
    "fp8": {"train": {"mixed_precision": "bf16"}, "model": {"quantization": "fp8"}},
}


@pytest.mark.parametrize("name", variants(MOVING, fast=("adamw_8bit", "synced_reference", "dropout_dora")))
def test_everything_that_moves_is_in_the_checkpoint(
    make_run, run_to_end, tmp_path: Path, without_timings, name: str
) -> None:
    """Stopped at step 3 with the checkpoint of step 2, in the middle of a logging interval."""
    settings = {**MOVING[name], "log": {"every": 3}}
    train = {"ema_decay": 0.9, "steps": 5, "checkpoint_every": 2, "keep_checkpoints": 1}
    settings["train"] = train | settings.get("train", {})
    stopped_at(make_run("killed", **settings), 3)
    forget_accelerator()
    run_to_end("killed", **settings)
    run_to_end("whole", **settings)
    assert_same_run(tmp_path / "killed", tmp_path / "whole", without_timings)


def test_rows_met_again_after_a_kill_are_quarantined_once(
    make_run, run_to_end, write_pairs, tmp_path: Path
) -> None:
    source = write_pairs(tmp_path / "some.parquet", 3, broken={1})
    settings: dict[str, Any] = {
        "data": {"source": str(source), "max_bad_share": 1.0, "shuffle": False},
        "train": {"steps": 6, "batch_size": 1, "checkpoint_every": 4},
    }
    stopped_at(make_run(**settings), 5)
    forget_accelerator()
    result = run_to_end(**settings)
    listed = [json.loads(line) for line in (result.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [item["step"] for item in listed] == [2, 5]
    assert result.records[-1]["bad_rows"] == 2.0


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_lets_the_step_finish_saves_and_the_same_command_continues(
    make_run, run_to_end, tmp_path: Path, without_timings, capsys, number: int
) -> None:
    settings = {"train": {"steps": 6, "ema_decay": 0.9, "keep_checkpoints": 1}}
    before = signal.getsignal(number)
    loop, loader = prepare(make_run("stopped", **settings))
    loop.on_update = lambda step: os.kill(os.getpid(), number) if step == 2 else None
    loop.train(iter(loader))
    assert loop.progress.step == 3, "the step during which the signal came is finished"
    assert (
        "stopped by a signal after step 3; the same command continues from here." in capsys.readouterr().out
    )
    assert (loop.folder / "checkpoints" / "step-00000003").is_dir()
    assert signal.getsignal(number) is before
    result = run_to_end("stopped", **settings)
    assert result.finished
    run_to_end("whole", **settings)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole", without_timings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_right_after_the_first_does_not_cost_the_checkpoint(make_run, number: int) -> None:
    loop, loader = prepare(make_run(train={"steps": 6}))

    def twice(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    loop.on_update = twice
    loop.train(iter(loader))
    assert (loop.folder / "checkpoints" / "step-00000003").is_dir()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_late_second_interrupt_by_hand_ends_the_run_at_once_and_a_late_sigterm_does_not(
    make_run, monkeypatch, second: int
) -> None:
    monkeypatch.setattr(signals, "_IMPATIENT_SECONDS", -1.0)
    loop, loader = prepare(make_run(train={"steps": 6}))

    def twice(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), second)

    loop.on_update = twice
    ends = pytest.raises(KeyboardInterrupt) if second == signal.SIGINT else contextlib.nullcontext()
    with ends:
        loop.train(iter(loader))
    assert (loop.folder / "checkpoints" / "step-00000003").is_dir() == (second == signal.SIGTERM)


@pytest.mark.slow
def test_a_launcher_that_signals_the_whole_group_twice_gets_a_checkpoint(write_config) -> None:
    """Loader workers are of the group, too: those that die at once would end the run before it saves."""
    config = write_config("group", train={"steps": 100_000, "num_workers": 2})
    folder = config.with_suffix("")
    with subprocess.Popen(
        command(config),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 300
        while num_records(folder) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.02)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "the same command continues from here" in output
    assert list((folder / "checkpoints").glob("step-*"))


def test_a_finished_run_starts_again_only_to_say_so(run_to_end) -> None:
    first = run_to_end()
    tensors = tensors_of(first.folder)
    again = run_to_end()
    assert again.finished
    assert again.records == first.records
    after = tensors_of(again.folder)
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], value) for name, value in tensors.items())


def test_the_global_generator_is_left_alone(make_run) -> None:
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    loop, loader = prepare(make_run(train={"steps": 2}))
    loop.train(iter(loader))
    assert torch.equal(torch.rand(5), expected)

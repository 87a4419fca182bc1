"""Runs under DeepSpeed's ZeRO are the run of one process; cut ones go on with any number of processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.testing.run_states import FULL, SMOOTH, same_state
from mmalign.train.checkpoint import load_checkpoint

pytest.importorskip("deepspeed", reason="ZeRO needs the extra deepspeed")

UNSTRATIFIED = {"likelihood": {"stratified": False}}


TWO = {"train": {"batch_size": 2, "ema_decay": 0.9}}
SLOW = {
    "full": (2, {**TWO, **FULL}),
    "lora-4": (4, {"train": {"batch_size": 1, "ema_decay": 0.9}}),
    "full-4": (4, {"train": {"batch_size": 1}, **FULL}),
    "accumulated": (2, {"train": {"batch_size": 1, "accumulation": 2}}),
    "full-accumulated": (2, {"train": {"batch_size": 1, "accumulation": 2}, **FULL}),
    "split": (2, {"train": {"batch_size": 1, "accumulation": 2, "split_backward": True}}),
    "stored": (2, {"train": {"batch_size": 2}, "reference": {"kind": "stored"}, **UNSTRATIFIED, **FULL}),
}


@pytest.mark.parametrize(
    "stage", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        pytest.param(2, TWO, id="lora"),
        *(pytest.param(*values, id=name, marks=pytest.mark.slow) for name, values in SLOW.items()),
    ],
)
def test_a_run_under_zero_is_the_run_of_one_process(
    write_config,
    run_to_end,
    write_pairs,
    launch,
    tmp_path: Path,
    stage: int,
    processes: int,
    settings: dict[str, Any],
) -> None:
    """Weights, moments and averages within 1e-6 after two updates that move weights by up to 1e-3 each."""
    shared = {
        "data": {"source": str(write_pairs(tmp_path / "some.parquet", 11, broken={3})), "max_bad_share": 1.0},
        "likelihood": {"stratified": True},
        **{name: value for name, value in settings.items() if name != "train"},
    }
    train = {"steps": 2, **SMOOTH, **settings["train"]}
    config = write_config("spread", train=train, **shared)
    launch(f"zero{stage}", config, processes)
    run_to_end("one", train={**train, "batch_size": 4, "accumulation": 1}, **shared)
    same_state(tmp_path / "spread", tmp_path / "one", step=2)
    assert len(list((tmp_path / "spread").rglob("shard-*.safetensors"))) >= processes
    assert not list((tmp_path / "spread").rglob("*.pt")), "none of DeepSpeed's own files"
    name = (
        "model/unet/diffusion_pytorch_model.safetensors"
        if "adapter" in settings
        else "pytorch_lora_weights.safetensors"
    )
    got, expected = (load_file(tmp_path / folder / name) for folder in ("spread", "one"))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 4), (4, 1)])
def test_runs_under_zero_go_on_with_any_number_of_processes(
    write_config, launch, tmp_path: Path, adapter: str, stage: int, before: int, after: int
) -> None:
    """Bit for bit with as many processes as before; else within 1e-6, for sums are taken in another order.

    One process is no launch of DeepSpeed: the checkpoint is read by a plain run.
    """

    def run(name: str, processes: int, steps: int) -> None:
        train = {
            "steps": steps,
            "batch_size": 4 // processes,
            "ema_decay": 0.9,
            "checkpoint_every": 2,
            **SMOOTH,
        }
        shared = {} if adapter == "lora" else FULL
        config = write_config(name, train=train, likelihood={"stratified": True}, **shared)
        launch(f"zero{stage}", config, processes)

    run("whole", before, 4)
    run("cut", before, 2)
    run("cut", after, 4)
    same_state(tmp_path / "cut", tmp_path / "whole", step=4, atol=0.0 if before == after else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_language_model_under_zero_is_that_of_one_process(
    write_dialogue_config, train_dialogues, launch, tmp_path: Path, stage: int
) -> None:
    config = write_dialogue_config("spread", train={"batch_size": 2, **SMOOTH})
    launch(f"zero{stage}", config)
    train_dialogues("one", train={"batch_size": 4, **SMOOTH})
    same_state(tmp_path / "spread", tmp_path / "one", step=2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_policy_and_reference_are_equal_at_first_in_half_precision(
    write_config, launch, tmp_path: Path, stage: int
) -> None:
    """Both are gathered in the same dtype, so not even rounding tells them apart."""
    train = {"steps": 1, "batch_size": 2, "mixed_precision": "bf16"}
    config = write_config("half", train=train)
    launch(f"zero{stage}", config)
    record = json.loads((tmp_path / "half" / "metrics.jsonl").read_text().splitlines()[0])
    assert record["logit"] == record["margin"] == record["drift"] == 0.0
    assert record["grad_norm"] > 0
    stored = load_checkpoint(tmp_path / "half" / "checkpoints" / "step-00000001")
    assert {value.dtype for value in stored.weights.values()} == {torch.float32}

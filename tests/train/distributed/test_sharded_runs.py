"""Runs with sharded weights are the run of one process; cut ones go on with any number of processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmalign.testing.run_states import FULL, SMOOTH, same_state
from mmalign.train.checkpoint import load_checkpoint

# A stored timestep knows nothing of its place in the step.
UNSTRATIFIED = {"likelihood": {"stratified": False}}


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, {"train": {"batch_size": 2, "ema_decay": 0.9}}),
        pytest.param(4, {"train": {"batch_size": 1}}, marks=pytest.mark.slow),
        pytest.param(
            2, {"train": {"batch_size": 1, "accumulation": 2, "split_backward": True}}, marks=pytest.mark.slow
        ),
        pytest.param(2, {"train": {"batch_size": 2, "ema_decay": 0.9}, **FULL}, marks=pytest.mark.slow),
        pytest.param(4, {"train": {"batch_size": 1}, **FULL}, marks=pytest.mark.slow),
        pytest.param(2, {"train": {"batch_size": 1, "accumulation": 2}, **FULL}, marks=pytest.mark.slow),
        pytest.param(
            2,
            {"train": {"batch_size": 2}, "reference": {"kind": "ema", "decay": 0.9}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            2,
            {"train": {"batch_size": 2}, "reference": {"kind": "stored"}, **UNSTRATIFIED, **FULL},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lora", "lora-4", "lora-split", "full", "full-4", "full-accumulated", "moving", "stored"],
)
def test_a_sharded_run_is_the_run_of_one_process(
    write_config,
    run_to_end,
    write_pairs,
    launch,
    tmp_path: Path,
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
    launch("fsdp2", config, processes)
    run_to_end("one", train={**train, "batch_size": 4, "accumulation": 1}, **shared)
    same_state(tmp_path / "spread", tmp_path / "one", step=2)
    parts = list((tmp_path / "spread").rglob("shard-*.safetensors"))
    assert len(parts) >= processes
    name = (
        "model/unet/diffusion_pytorch_model.safetensors"
        if "adapter" in settings
        else ("pytorch_lora_weights.safetensors")
    )
    got, expected = (load_file(tmp_path / folder / name) for folder in ("spread", "one"))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_sharded_language_model_is_that_of_one_process(
    write_dialogue_config, train_dialogues, launch, tmp_path: Path, adapter: str
) -> None:
    shared = {} if adapter == "lora" else FULL
    config = write_dialogue_config("spread", train={"batch_size": 2, **SMOOTH}, **shared)
    launch("fsdp2", config)
    train_dialogues("one", train={"batch_size": 4, **SMOOTH}, **shared)
    same_state(tmp_path / "spread", tmp_path / "one", step=2)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 4), (4, 1)])
def test_sharded_runs_go_on_with_any_number_of_processes(
    write_config, launch, tmp_path: Path, adapter: str, before: int, after: int
) -> None:
    """Bit for bit with as many processes as before; else within 1e-6, for sums are taken in another order."""

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
        launch("fsdp2", config, processes)

    run("whole", before, 4)
    run("cut", before, 2)
    run("cut", after, 4)
    same_state(tmp_path / "cut", tmp_path / "whole", step=4, atol=0.0 if before == after else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_policy_and_reference_are_equal_at_first_in_half_precision(
    write_config, launch, tmp_path: Path, adapter: str
) -> None:
    """Both are gathered in the same dtype, so not even rounding tells them apart."""
    train = {"steps": 1, "batch_size": 2, "mixed_precision": "bf16"}
    config = write_config("half", train=train, **({} if adapter == "lora" else FULL))
    launch("fsdp2", config)
    record = json.loads((tmp_path / "half" / "metrics.jsonl").read_text().splitlines()[0])
    assert record["logit"] == record["margin"] == record["drift"] == 0.0
    assert record["grad_norm"] > 0
    stored = load_checkpoint(tmp_path / "half" / "checkpoints" / "step-00000001")
    assert {value.dtype for value in stored.weights.values()} == {torch.float32}


@pytest.mark.slow
def test_samples_of_a_sharded_network_are_those_of_one_process(
    write_config, run_to_end, launch, tmp_path: Path
) -> None:
    settings = {
        "train": {"steps": 1, "batch_size": 2, **SMOOTH},
        "samples": {"prompts": ["a cat"], "num_steps": 1, "guidance_scale": 1.0},
    }
    config = write_config("spread", **settings)
    launch("fsdp2", config)
    run_to_end("one", **settings | {"train": settings["train"] | {"batch_size": 4}})
    (got,), (expected,) = (list((tmp_path / name / "samples").glob("*.png")) for name in ("spread", "one"))
    assert got.name == expected.name
    ours, theirs = (np.asarray(Image.open(path), dtype=np.int16) for path in (got, expected))
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.slow
def test_answers_of_a_sharded_network_are_written_once(
    write_dialogue_config, launch, dialogues_file: Path, tmp_path: Path
) -> None:
    asked = {"prompt": "What is shown?", "images": [str(dialogues_file.parent / "0.png")]}
    answers = {"prompts": [asked], "every": 1, "max_new_tokens": 3}
    config = write_dialogue_config("spread", train={"batch_size": 2}, answers=answers)
    launch("fsdp2", config)
    written = sorted(path.name for path in (tmp_path / "spread").glob("*/step-*.json"))
    assert written == ["step-00000001.json", "step-00000002.json"]
    for path in (tmp_path / "spread").glob("*/step-*.json"):
        (record,) = json.loads(path.read_text())
        assert record["base"] is not None
        assert record["policy"] is not None

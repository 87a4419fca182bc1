"""An infinite gradient on one process drops the update on all of them, under every kind of launch."""

import json
from pathlib import Path

import pytest
import torch

from mmalign.testing.accelerator import forget_accelerator
from mmalign.testing.processes import launch_variables, on_processes
from mmalign.testing.run_states import FULL, SMOOTH, same_state
from mmalign.testing.run_tasks import train_with_a_broken_loss
from mmalign.train.checkpoint import load_checkpoint
from mmalign.train.distributed.shards import whole_values

LAUNCHES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(pytest.param(name, {}, id=name) for name in LAUNCHES),
        *(pytest.param(name, FULL, id=f"{name}-full") for name in ("fsdp2", "zero2", "zero3")),
    ],
)
@pytest.mark.slow
def test_an_update_is_dropped_by_all_and_the_next_ones_are_made(
    write_config, tmp_path: Path, name: str, settings: dict[str, object]
) -> None:
    """The first micro-step of the second update, which exchanges nothing with LoRA, breaks on process 1."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs the extra deepspeed")
    train = {"steps": 3, "accumulation": 2, "checkpoint_every": 1, "keep_checkpoints": 3, **SMOOTH}
    shared = {"likelihood": {"stratified": True}, "guard": {"action": "off"}, **settings}
    config = write_config("two", train={**train, "batch_size": 1}, **shared)
    on_processes(2, train_with_a_broken_loss, str(config), 1, 2, environment=launch_variables(name))
    forget_accelerator()
    train_with_a_broken_loss(str(write_config("one", train={**train, "batch_size": 2}, **shared)), 0, 2)
    records = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [record["dropped_updates"] for record in records] == [0, 1, 1]
    first, second, third = (
        dict(whole_values(load_checkpoint(tmp_path / "two" / "checkpoints" / f"step-{step:08d}").weights))
        for step in (1, 2, 3)
    )
    assert all(torch.equal(second[key], value) for key, value in first.items())
    assert not all(torch.equal(third[key], value) for key, value in first.items())
    same_state(tmp_path / "two", tmp_path / "one", step=3)

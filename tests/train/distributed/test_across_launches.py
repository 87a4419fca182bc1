"""A checkpoint is read by every kind of launch and any number of processes, whatever wrote it."""

from pathlib import Path

import pytest

from mmalign.testing.run_states import FULL, SMOOTH, same_state

pytestmark = pytest.mark.slow

MOVING = {"reference": {"kind": "ema", "decay": 0.9}}
WAYS = {
    "fsdp2-zero2": [("fsdp2", 2), ("zero2", 2)],
    "zero3-fsdp2": [("zero3", 2), ("fsdp2", 2)],
    "fsdp2-single-ddp": [("fsdp2", 2), ("single", 1), ("ddp", 2)],
    "ddp-zero3-zero1": [("ddp", 2), ("zero3", 2), ("zero1", 4)],
}


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        *(pytest.param(way, {}, id=f"{way}-lora") for way in WAYS),
        *(pytest.param(way, FULL, id=f"{way}-full") for way in WAYS if "zero" in way),
        pytest.param("fsdp2-zero2", MOVING, id="fsdp2-zero2-moving"),  # the reference is state, too
    ],
)
def test_a_run_changes_its_launch_at_every_checkpoint(
    write_config, run_to_end, launch, tmp_path: Path, way: str, settings: dict[str, object]
) -> None:
    """Weights, moments and averages within 1e-6 of one process that is never interrupted.

    After four or six updates that move weights by up to 1e-3 each; sums are taken in another order.
    """
    if "zero" in way:
        pytest.importorskip("deepspeed", reason="ZeRO needs the extra deepspeed")
    shared = {"likelihood": {"stratified": True}, **settings}
    train = {"ema_decay": 0.9, "checkpoint_every": 2, **SMOOTH}
    for part, (kind, processes) in enumerate(WAYS[way], start=1):
        sections = {"train": {**train, "steps": 2 * part, "batch_size": 4 // processes}, **shared}
        if kind == "single":
            run_to_end("cut", **sections)
        else:
            launch(kind, write_config("cut", **sections), processes)
    last = 2 * len(WAYS[way])
    run_to_end("whole", train={**train, "steps": last, "batch_size": 4}, **shared)
    same_state(tmp_path / "cut", tmp_path / "whole", step=last)

"""What a run left in its checkpoint, compared with what another left."""

from pathlib import Path

import torch

from mmalign.train.checkpoint import load_checkpoint
from mmalign.train.distributed.shards import whole_values

__all__ = ["FULL", "SMOOTH", "same_state"]

SMOOTH = {"adam_epsilon": 1e-2}
"""A section `train` of runs to compare: the update is a smooth function of the gradient. With AdamW's own
epsilon it is its sign where the gradient is small, and rounding decides that."""

FULL = {"adapter": {"kind": "none", "rank": 8, "alpha": None}}
"""Sections of a run that trains the whole network, laid over those of one with LoRA."""


def same_state(got: Path, expected: Path, *, step: int, atol: float = 1e-6) -> None:
    """Compare weights, optimiser, average and reference of two runs by name, sharded or whole.

    Args:
        got: run folder.
        expected: run folder.
        step: of the checkpoints.
        atol: largest difference of a number.

    Raises:
        AssertionError: they differ, or no trained weight moved.
    """
    found, wanted = (
        load_checkpoint(folder / "checkpoints" / f"step-{step:08d}") for folder in (got, expected)
    )
    for part in ("weights", "optimizer", "ema", "reference"):
        ours, theirs = getattr(found, part), getattr(wanted, part)
        assert set(ours) == set(theirs), part
        ours, theirs = dict(whole_values(ours)), dict(whole_values(theirs))
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=atol, msg=f"{part} {name}")
    moved = [float(value.abs().max()) for name, value in whole_values(found.weights) if "lora_A" not in name]
    assert max(moved) > 1e-6

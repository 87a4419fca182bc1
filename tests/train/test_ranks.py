"""Two processes on one machine (gloo) give what one process with the same effective batch gives."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# See tests/train/test_loop.py: an update that is a smooth function of the gradient can be compared.
SMOOTH = {"adam_epsilon": 1e-2}


def on_two_processes(config: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, *launch, "-m", "mmalign", "train", str(config)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("method", "one", "two"),
    [
        # The same 8 rows per update, in the same order.
        pytest.param(
            "diffusion_dpo",
            {"batch_size": 2, "accumulation": 4},
            {"batch_size": 2, "accumulation": 2},
            marks=pytest.mark.slow,
        ),
        # The zero point is a mean over the rows of all ranks.
        pytest.param("diffusion_kto", {"batch_size": 4}, {"batch_size": 2}, marks=pytest.mark.slow),
        # Gradients are exchanged once, after the last part.
        pytest.param(
            "diffusion_kto",
            {"batch_size": 4},
            {"batch_size": 2, "split_backward": True, "split_size": 1},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_equal_one(
    write_config,
    run_to_end,
    write_pairs,
    tmp_path: Path,
    method: str,
    one: dict[str, int],
    two: dict[str, int],
) -> None:
    """Weights within 1e-6 after three updates that move them by up to 1e-3 each; logged means within 1e-3.

    Not bit for bit: the sum over ranks is taken in another order. Logits are beta (500 or 2000) times the
    difference of errors near 1 in float32, whose spacing is 1e-7.
    """
    source = write_pairs(tmp_path / "some.parquet", 11, broken={3})
    settings: dict[str, Any] = {
        "method": method,
        "data": {"source": str(source), "max_bad_share": 1.0, "shuffle": False},
        "likelihood": {"stratified": True},
        "log": {"every": 1},
    }
    shared = {"steps": 3, "ema_decay": 0.9, **SMOOTH}
    on_two_processes(write_config("two", train={**shared, **two}, **settings))
    run_to_end("one", train={**shared, **one}, **settings)

    names = ("weights", "ema")
    for name in names:
        got, expected = (
            load_file(tmp_path / folder / "checkpoints" / "step-00000003" / f"{name}.safetensors")
            for folder in ("two", "one")
        )
        assert got.keys() == expected.keys()
        assert max(float(value.abs().max()) for key, value in expected.items() if "lora_B" in key) > 1e-6
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value, rtol=0, atol=1e-6)
    found, wanted = records_of(tmp_path / "two"), records_of(tmp_path / "one")
    assert [record["step"] for record in found] == [1, 2, 3], "one record per interval, not one per process"
    for got, expected in zip(found, wanted, strict=True):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            if name not in ("prompts_per_second", "peak_memory_gib"):
                assert got[name] == pytest.approx(value, abs=1e-3), name
    listed = (tmp_path / "two" / "quarantine.jsonl").read_text().splitlines()
    assert len(listed) == len((tmp_path / "one" / "quarantine.jsonl").read_text().splitlines())

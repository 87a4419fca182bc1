"""Two processes on one machine (gloo) train a model of video as one process with the same batch does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.testing.processes import on_processes, train_config
from mmalign.train.config import load_run
from mmalign.train.run import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_fresh_accelerator")]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max((folder / "checkpoints").glob("step-*")) / "weights.safetensors")


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_two_processes_equal_one(write_run, tmp_path: Path, split: bool) -> None:
    shared = {"steps": 3, "adam_epsilon": 1e-2, "split_backward": split}
    sections = {"method": "densedpo", "kind": "segments", "likelihood": {"stratified": True}}
    two = write_run("two", train={**shared, "batch_size": 2}, **sections)
    on_processes(2, train_config, str(two))
    one = train(load_run(write_run("one", train={**shared, "batch_size": 4}, **sections)))
    got, expected = weights_of(tmp_path / "two"), weights_of(one.folder)
    assert max(float(value.abs().max()) for name, value in expected.items() if "lora_B" in name) > 1e-6
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)

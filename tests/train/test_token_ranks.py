"""Tower and projector that train over two processes (gloo), with micro-batches that show nothing."""

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
SEEING = {"train_vision": True, "train_projector": True}


@pytest.fixture
def some_blind(tmp_path: Path, dialogues_file: Path) -> Path:
    """Eight rows in the file's order, of which the second and third pair have no picture."""
    lines = []
    for number, line in enumerate([*dialogues_file.read_text().splitlines(), *[""] * 1]):
        record = json.loads(line or dialogues_file.read_text().splitlines()[0])
        record["images"] = [str(dialogues_file.parent / name) for name in record["images"]]
        lines.append(json.dumps(record | ({"images": []} if number in (2, 3, 4, 5) else {})))
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(lines))
    return path


def settings(source: Path, adapter: str, **train: Any) -> dict[str, Any]:
    return {
        "tokens": SEEING,
        "adapter": {"kind": "lora"} if adapter == "lora" else {"kind": "none", "rank": 8, "alpha": None},
        "data": {
            "source": {"path": str(source), "allow_outside": True, "media": "dialogue"},
            "shuffle": False,
        },
        "train": {**SMOOTH, **train},
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-00000002" / "weights.safetensors")


def on_two_processes(config: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [sys.executable, *launch, "-m", "mmalign", "train", str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_two_processes_equal_one_when_a_rank_sees_nothing(
    write_dialogue_config, train_dialogues, some_blind: Path, tmp_path: Path, adapter: str
) -> None:
    """Rank 1 of step 1 and rank 0 of step 2 have no picture."""
    on_two_processes(write_dialogue_config("two", **settings(some_blind, adapter, batch_size=2)))
    result = train_dialogues("one", **settings(some_blind, adapter, batch_size=4))
    got, expected = weights_of(tmp_path / "two"), weights_of(tmp_path / "one")
    assert got.keys() == expected.keys()
    assert any("vision_tower" in name for name in result.trainables.parameters)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)


def test_rows_without_pictures_leave_a_trained_tower_a_gradient_of_zero(
    train_dialogues, some_blind: Path, tmp_path: Path
) -> None:
    lines = some_blind.read_text().splitlines()
    some_blind.write_text("\n".join(lines[2:6]))
    result = train_dialogues(**settings(some_blind, "lora", batch_size=2))
    seeing = {name: value for name, value in result.trainables.parameters.items() if "vision_tower" in name}
    assert seeing
    assert all(float(value.grad.abs().max()) == 0.0 for value in seeing.values() if value.grad is not None)
    written = {name: value for name, value in weights_of(result.folder).items() if "vision_tower" in name}
    assert max(float(value.abs().max()) for name, value in written.items() if "lora_B" in name) == 0.0


@pytest.mark.parametrize("packing", ["packed", "plain"])
def test_accumulated_micro_steps_with_and_without_pictures_are_one(
    train_dialogues, some_blind: Path, tmp_path: Path, packing: str
) -> None:
    for name, sizes in {"two": (2, 2), "one": (4, 1)}.items():
        chosen = settings(some_blind, "none", batch_size=sizes[0], accumulation=sizes[1])
        train_dialogues(name, **chosen | {"tokens": SEEING | {"packing": packing}})
    got, expected = weights_of(tmp_path / "two"), weights_of(tmp_path / "one")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6)

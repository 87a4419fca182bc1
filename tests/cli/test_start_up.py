"""What a run loads before its first step: nothing that it does not use. Times: benchmarks/start_up.py."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

_NEVER = ("trl", "datasets", "tensorboard", "wandb", "pandas", "sklearn", "matplotlib")
"""Packages that no run below uses. Which of them are installed differs; none may be loaded.

Not bitsandbytes: where it is installed, diffusers' own loading of any model imports it.
"""

_TRAIN = """
import json, sys
from mmalign.cli.main import main
code = main(["train", sys.argv[1]])
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def picture(number: int) -> bytes:
    """A small PNG in one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (40 * number, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def loaded_by(config: dict[str, Any], path: Path) -> set[str]:
    """Top-level packages that `mmalign train` of a configuration has loaded at its end."""
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    code, packages = json.loads(done.stdout.strip().splitlines()[-1])
    assert code == 0
    return set(packages)


def config_of(folder: Path, model: dict[str, str], **sections: dict[str, Any]) -> dict[str, Any]:
    """One step on the CPU, pairs from `folder`."""
    return {
        "model": model,
        "data": {"source": str(folder / "pairs.parquet")},
        "adapter": {"rank": 2},
        "train": {
            "output": str(folder / "run"),
            "steps": 1,
            "batch_size": 1,
            "warmup_steps": 0,
            "optimizer": "adamw",
            "num_workers": 0,
            "device": "cpu",
        },
        "log": {"trackers": []},
        **sections,
    }


def test_libraries_are_loaded_without_collections_and_left_out_of_later_ones() -> None:
    code = """
import gc
from mmalign.cli.loading import undisturbed
done = []
gc.callbacks.append(lambda phase, info: done.append(phase))
with undisturbed():
    held = [[number] for number in range(100_000)]
    inside = len(done)
print(inside, gc.isenabled(), gc.get_freeze_count() >= 100_000)
gc.disable()
with undisturbed():
    pass
print(gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True", "True", "False"]


@pytest.mark.slow
def test_the_loop_itself_loads_no_library_of_one_modality() -> None:
    code = "import json, sys, mmalign.train.run; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert {"torch", "peft", "accelerate"} <= packages
    assert not packages & {*_NEVER, "diffusers", "bitsandbytes"}


@pytest.mark.slow
def test_a_run_of_a_language_model_loads_no_diffusers(tmp_path: Path) -> None:
    from mmalign.testing.tiny_vlm import tiny_vlm

    rows = {
        "prompt": ["What is in the picture?"] * 3,
        "chosen": ["a red square"] * 3,
        "rejected": ["a blue circle"] * 3,
        "image": [picture(row) for row in range(3)],
    }
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    source = str(tiny_vlm("llava", tmp_path / "model"))
    model = {"family": "llava", "source": source}
    config = config_of(tmp_path, model, objective={"beta": 0.1})
    packages = loaded_by({"method": "dpo", **config}, tmp_path / "run.yaml")
    assert {"torch", "transformers", "peft"} <= packages
    assert not packages & {*_NEVER, "diffusers", "bitsandbytes"}


@pytest.mark.slow
def test_a_run_on_pictures_loads_no_trainer_and_no_data_library(tmp_path: Path) -> None:
    from mmalign.testing.tiny import RESOLUTION, write_tiny_sdxl

    rows = {
        "prompt": ["a red square"] * 3,
        "chosen": [picture(row) for row in range(3)],
        "rejected": [picture(row + 3) for row in range(3)],
    }
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    model = {"family": "sdxl", "source": str(write_tiny_sdxl(tmp_path / "model"))}
    config = config_of(tmp_path, model, image={"resolution": RESOLUTION}, objective={"beta": 100.0})
    packages = loaded_by({"method": "diffusion_dpo", **config}, tmp_path / "run.yaml")
    assert {"torch", "diffusers", "peft"} <= packages
    assert not packages & set(_NEVER)

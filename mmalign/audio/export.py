"""What a run of a model of sound trained, for other tools: official repository, folder or adapter."""

from pathlib import Path
from typing import Any, Literal

import torch

from mmalign.audio.saving import how_to_load
from mmalign.audio.trained import load_trained
from mmalign.errors import ConfigError, explain
from mmalign.train.run_folders import locate_run, read_run_config

__all__ = ["main"]


def main(run: Path, to: Literal["official", "merged", "peft"], output: Path | None = None) -> int:
    """`mmalign export` of a run of sound. Returns 0.

    Args:
        run: run folder or checkpoint; the average of the weights where the run kept one.
        to: official: what the model's own code reads; merged: a folder of today's libraries, safetensors;
            peft: adapter files, for peft and for diffusers' `load_lora_adapter`.
        output: folder, default RUN/export/FORMAT.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: there is no adapter, or the family has no official layout of its own.
    """
    folder, _ = locate_run(Path(run))
    config = read_run_config(folder)
    target = output if output is not None else folder / "export" / to
    if to == "peft" and config.adapter.kind == "none":
        message = explain("mmalign export", got="peft of a fully trained model", expected="--to merged")
        raise ConfigError(message)
    # Merged in float32: a sum rounded to half precision would lose the adapter.
    loaded = load_trained(run, device="cpu", dtype=torch.float32, quantised=False)
    model: Any = loaded.model
    if to == "official" and not hasattr(model, "save_official"):
        message = explain(
            "mmalign export",
            got=f"official of {config.model.family}",
            expected="--to merged: its folder is its official layout",
        )
        raise ConfigError(message)
    save = {"official": "save_official", "merged": "save_model", "peft": "save_adapter"}[to]
    written = getattr(model, save)(target)
    print(f"step {loaded.step}, {loaded.weights} weights: {written}")
    if to == "peft":
        print(how_to_load(model, written))
    return 0

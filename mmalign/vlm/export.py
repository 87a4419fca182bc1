"""What a run trained, for other tools: a whole model with the adapter merged in, or the adapter alone."""

from pathlib import Path
from typing import Literal

from mmalign.errors import ConfigError, explain
from mmalign.train.parts import DTYPES
from mmalign.train.run_folders import locate_run, read_run_config
from mmalign.vlm.trained import load_trained

__all__ = ["main"]


def main(run: Path, to: Literal["merged", "peft"], output: Path | None = None) -> int:
    """`mmalign export` of a language model's run. Returns 0.

    Args:
        run: run folder or checkpoint; the average of the weights where the run kept one.
        to: merged: config, weights and processor as transformers loads them; peft: adapter files.
        output: folder, default RUN/export/FORMAT.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: there is no adapter, or it cannot be merged into quantised weights.
    """
    folder, _ = locate_run(Path(run))
    config = read_run_config(folder)
    target = output if output is not None else folder / "export" / to
    if to == "peft" and config.adapter.kind == "none":
        message = explain("mmalign export", got="peft of a fully trained model", expected="--to merged")
        raise ConfigError(message)
    # Merged into the wide weights: a sum rounded to 4 bits would lose the adapter.
    loaded = load_trained(run, device="cpu", dtype=DTYPES[config.train.mixed_precision], quantised=False)
    written = loaded.model.save_model(target) if to == "merged" else loaded.model.save_adapter(target)
    print(f"step {loaded.step}, {loaded.weights} weights: {written}")
    return 0

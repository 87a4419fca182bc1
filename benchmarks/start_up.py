"""How long a user waits before anything happens, as new processes.

    help          `mmalign --help`
    first step    `mmalign train` on a tiny model, to the end of its first step
    trl           `import trl`, its DPOTrainer on the same language model and rows, as many pairs, one step

Wall seconds, the least of some rounds: a start that another process slowed down is not the start's own.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

__all__ = ["measure", "seconds_of"]

_TRL = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from vlm_contestants import trl_contestant
trl_contestant(Path({folder!r}), answers_alone=False, checkpointing=False).step()
"""


def seconds_of(command: list[str], rounds: int) -> float:
    """The least wall time of a command as a new process."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return min(times)


def _train_command(settings: dict[str, Any], path: Path) -> list[str]:
    """`mmalign train` of one step, again and again from the start."""
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return [sys.executable, "-m", "mmalign", "train", str(path)]


def _settings(name: str, folder: Path) -> dict[str, Any]:
    """A run's configuration; the language model's has the files and the pairs per step that TRL gets."""
    import vlm_step
    from contestants import settings
    from tiny_models import TINY

    if name != "vlm":
        return settings(TINY[name], folder / name, name="start", pairs=1, cached=False)
    vlm_step.write_inputs(folder / "trl", vlm_step.SHAPES["llava"])
    config = settings(TINY[name], folder / "trl", name="start", pairs=vlm_step.PAIRS, cached=False)
    config["data"]["source"] = str(folder / "trl" / "pairs.parquet")
    return config


def measure(folder: Path, *, rounds: int) -> dict[str, float]:
    """Seconds of each; and our first step over TRL's, on the same language model and rows."""
    result = {"help": seconds_of([sys.executable, "-m", "mmalign", "--help"], max(rounds, 3))}
    for name in ("sdxl", "vlm"):
        config = _settings(name, folder)
        path = folder / f"{name}.yaml"
        found = []
        for number in range(rounds):
            output = str(folder / f"start {name} {number}")
            config["train"] |= {"steps": 1, "output": output, "checkpoint_every": 2}
            found.append(seconds_of(_train_command(config, path), 1))
        result[f"first step, {name}"] = min(found)
    script = _TRL.format(here=str(Path(__file__).parent), folder=str(folder / "trl"))
    result["first step, trl"] = seconds_of([sys.executable, "-c", script], rounds)
    result["over trl"] = result["first step, vlm"] / result["first step, trl"]
    return result


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(measure(Path(home), rounds=2), indent=2))

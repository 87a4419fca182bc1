"""Plans of several processes against what each of them really takes at its highest, over gloo on the CPU.

    python benchmarks/plan_processes.py --page docs/planning.md
    python benchmarks/plan_processes.py --only fsdp2 zero3 --processes 4 --strict

Planned is what `mmalign plan --launch NAME --processes N` prints for the same configuration. Measured are all
tensors that live between two steps plus what the next step allocates at its highest, which torch's profiler
sees, in the process that takes most. DeepSpeed's limits (bucket, threshold, distance, prefetching) are cut
down to the size of the model, as they are to that of a large one, and the plan is told so.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from tiny_models import TINY

from mmalign.files import atomic_write
from mmalign.testing.process_peaks import process_peaks
from mmalign.train.config import load_run
from mmalign.train.launch import LAUNCHES
from mmalign.train.planning.devices import Device
from mmalign.train.planning.launches import Launch, ZeroLimits
from mmalign.train.planning.run_plan import plan_run

__all__ = ["compare", "main"]

AIM = 0.25
MARKERS = ("<!-- processes:begin -->", "<!-- processes:end -->")
LIMITS = ZeroLimits(bucket=500_000, small=1_000, reuse=1_000_000, prefetch=50_000)
"""For a network of some million weights what DeepSpeed's own are for one of some thousand million."""

WAYS = tuple(name for name in LAUNCHES if name != "single")
NOBODY = Device("cpu", None, 1e12, 1e12, 1e11)
"""A processor whose speed is of no account here."""


def config_of(name: str, adapter: str, folder: Path, run: str) -> Path:
    """A short run of a tiny model, on pairs whose content does not matter."""
    import yaml

    tiny = TINY[name]
    model, rows = tiny.files(folder / name, 16)
    content = {
        "method": tiny.method,
        "model": {"family": tiny.family, "source": str(model)},
        **tiny.media,
        "data": {"source": str(rows)},
        "objective": dict(tiny.objective),
        "adapter": {"kind": "none"} if adapter == "full" else {"kind": "lora", "rank": 8},
        "train": {
            "output": str(folder / run),
            "steps": 1000,
            "batch_size": 1,
            "learning_rate": 1e-6,
            "warmup_steps": 0,
            "optimizer": "adamw",
            "num_workers": 0,
            "device": "cpu",
        },
        "log": {"every": 1000, "trackers": []},
    }
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def compare(name: str, adapter: str, launch: Launch, folder: Path) -> dict[str, Any]:
    """Planned and measured highest memory of the process that takes most; bytes."""
    run = f"{name}-{adapter}-{launch.name}-{launch.processes}"
    config = config_of(name, adapter, folder, run)
    plan = plan_run(load_run(config), NOBODY, launch=launch)
    measured = process_peaks(config, launch, folder / f"{run}-peaks")
    highest = max(found["highest"] for found in measured)
    return {
        "planned": plan.peak.tensors,
        "measured": highest,
        "error": plan.peak.tensors / highest - 1,
        "peak": plan.peak,
        "processes": measured,
    }


def _line(name: str, adapter: str, launch: Launch, found: dict[str, Any]) -> str:
    sizes = [f"{found[key] / 2**20:.1f}" for key in ("planned", "measured")]
    cells = [name, adapter, launch.name, str(launch.processes), *sizes, f"{found['error']:+.0%}"]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    """Print the table. Returns 0, or 1 where an error is above the aim and `--strict` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["sd15"], choices=list(TINY))
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--adapters", nargs="*", default=["full", "LoRA"], choices=["full", "LoRA"])
    parser.add_argument("--processes", nargs="*", type=int, default=[2, 4])
    parser.add_argument("--items", action="store_true", help="also print what each plan is made of")
    parser.add_argument("--page", type=Path, help="a page with markers, to be renewed")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where the aim is missed")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    lines = ["| tiny model | trains | launch | processes | planned, MiB | measured | error |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    print("\n".join(lines), flush=True)
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        cases = (
            (name, adapter, Launch(way, count, zero=LIMITS))
            for name in options.models
            for adapter in options.adapters
            for count in options.processes
            for way in options.only
        )
        for name, adapter, launch in cases:
            found = compare(name, adapter, launch, Path(folder))
            missed |= abs(found["error"]) > AIM
            lines.append(_line(name, adapter, launch, found))
            print(lines[-1], flush=True)
            if options.items:
                _print_items(found)
    if options.page is not None:
        page = options.page.read_text(encoding="utf-8")
        before, _, rest = page.partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        text = "\n".join(lines)
        atomic_write(options.page, f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}")
    return 1 if missed and options.strict else 0


def _print_items(found: dict[str, Any]) -> None:
    for item in found["peak"].items:
        print(f"    {item.num_bytes / 2**20:8.2f}  {item.component}  ({item.note})")
    stages = {stage: round(size / 2**20, 2) for stage, size in found["peak"].stages.items()}
    print(f"    stages: {stages}")
    for rank, one in enumerate(found["processes"]):
        print(f"    process {rank}: " + ", ".join(f"{key} {size / 2**20:.2f}" for key, size in one.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

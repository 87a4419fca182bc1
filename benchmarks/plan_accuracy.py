"""Plans against what runs really take: highest memory and time of a step, on tiny models true to their kind.

    python benchmarks/plan_accuracy.py                     # the CPU: image, vlm, video, audio
    python benchmarks/plan_accuracy.py --only sdxl vlm --set adapter.kind=none
    python benchmarks/plan_accuracy.py --device h100       # on a machine with that card

Planned is what `mmalign plan` prints for the same configuration. Measured are weights, encoders, optimiser
state and copies, tensor by tensor, plus what a step allocates at its highest: torch's profiler on the CPU,
`torch.cuda.max_memory_allocated` on a card. A step is timed by the process's own CPU time (the wall clock on
a card), the least of a few. The CPU's rates are measured just before; a card's are those of the table.

One line of JSON per model goes to `benchmarks/results/plan_accuracy.jsonl` with `--write`.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_models import TINY

from mmalign.testing.accelerator import forget_accelerator
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.planning.devices import Device, device_of
from mmalign.train.planning.measuring import allocated_peak, least_seconds
from mmalign.train.planning.run_plan import plan_run

__all__ = ["compare", "main"]

AIMS = {"cpu": 0.25, "cuda": 0.15}
"""Largest error of memory and of time that is aimed at."""

RESULTS = Path(__file__).parent / "results" / "plan_accuracy.jsonl"


def run_of(name: str, folder: Path, overrides: Sequence[str], *, on_cpu: bool) -> ResolvedRun:
    """A short LoRA run of a tiny model."""
    import yaml

    tiny = TINY[name]
    model, rows = tiny.files(folder / name, 16)
    content = {
        "method": tiny.method,
        "model": {"family": tiny.family, "source": str(model)},
        **tiny.media,
        "data": {"source": str(rows)},
        "objective": dict(tiny.objective),
        "adapter": {"rank": 8},
        "train": {
            "output": str(folder / f"{name}-run"),
            "steps": 1000,
            "batch_size": 2,
            "learning_rate": 1e-6,
            "warmup_steps": 0,
            "optimizer": "adamw",
            "num_workers": 0,
            "device": "cpu" if on_cpu else "auto",
        },
        "log": {"every": 1000, "trackers": []},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_run(path, overrides)


def _endless(loader: Any) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(list(itertools.islice(iter(loader), 4))))


def _bytes(tensors: Any) -> int:
    distinct = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    return sum(distinct.values())


def _still(loop: Any) -> int:
    """Bytes of weights, encoders, copies and optimiser state that are there between steps."""
    model = loop.model
    modules = [model.network, getattr(model, "vae", None), *getattr(model, "encoders", [])]
    reference = getattr(loop.parts.reference, "network", None)
    modules.append(reference if isinstance(reference, torch.nn.Module) else None)
    tensors = [value for module in modules if module is not None for value in module.parameters()]
    state = [
        value
        for held in loop.updater.optimizer.state.values()
        for value in held.values()
        if isinstance(value, torch.Tensor) and value.ndim > 0
    ]
    return _bytes([*tensors, *state])


def compare(run: ResolvedRun, device: Device, *, rounds: int) -> dict[str, Any]:
    """Planned and measured of one run; bytes and seconds."""
    from mmalign.train.run import prepare

    plan = plan_run(run, device)
    forget_accelerator()
    loop, loader = prepare(plan.run)
    batches = loop._batches(_endless(loader))

    def step() -> None:
        loop._update(batches, is_record=False)

    where = "cpu" if device.name == "cpu" else "cuda"
    step()
    moving = allocated_peak(step, where)
    measured = torch.cuda.max_memory_allocated() if where == "cuda" else _still(loop) + moving
    seconds = least_seconds(step, where, rounds=rounds)
    return {
        "planned_bytes": plan.peak.tensors,
        "measured_bytes": measured,
        "memory_error": plan.peak.tensors / measured - 1,
        "planned_seconds": plan.time.seconds,
        "measured_seconds": seconds,
        "time_error": plan.time.seconds / seconds - 1,
        "flops": plan.time.flops,
    }


def _machine(device: Device) -> dict[str, Any]:
    name = (
        torch.cuda.get_device_name() if device.name != "cpu" else platform.processor() or platform.machine()
    )
    return {"device": name, "cores": os.cpu_count(), "torch": torch.__version__, "planned_for": device.name}


def main(arguments: list[str]) -> int:
    """Print the table. Returns 0, or 1 where an error is above the aim and `--strict` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["sdxl", "vlm", "video", "audio"], choices=list(TINY))
    parser.add_argument("--device", default="cpu", help="as of `mmalign plan`")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--write", action="store_true", help=f"append to {RESULTS.name}")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where an aim is missed")
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    aim = AIMS["cpu" if device.name == "cpu" else "cuda"]
    if device.name == "cpu":
        torch.set_num_threads(1)
        device = device_of("cpu")  # of one thread
    print("| model | memory planned, MiB | measured | error | step planned, ms | measured | error |")
    print("|---|---|---|---|---|---|---|", flush=True)
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            run = run_of(name, Path(folder), options.overrides, on_cpu=device.name == "cpu")
            found = compare(run, device, rounds=options.rounds)
            missed |= max(abs(found["memory_error"]), abs(found["time_error"])) > aim
            print(_line(name, found), flush=True)
            if options.write:
                record = {"model": name, "overrides": options.overrides, **found, **_machine(device)}
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
    return 1 if missed and options.strict else 0


def _line(name: str, found: dict[str, Any]) -> str:
    memory = [f"{found[key] / 2**20:.1f}" for key in ("planned_bytes", "measured_bytes")]
    times = [f"{1e3 * found[key]:.1f}" for key in ("planned_seconds", "measured_seconds")]
    cells = [name, *memory, f"{found['memory_error']:+.0%}", *times, f"{found['time_error']:+.0%}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

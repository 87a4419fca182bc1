"""Measure what a user pays for the framework: `make bench`.

Seven figures, each a ratio or a rate inside one run on one model, medians over interleaved rounds:

    framework tax    our step against a bare hand-written loop with the same forward and backward passes
    peak memory      of both, in processes of their own
    start-up         of the command line, as a process
    loader           rows per second and core: JPEG pairs decoded, cropped, flipped
    objectives       the dearest row of the catalogue over its plain hand-written function, scores [4096, 2]
    scoring          pictures per second through the evaluation store with a reward that costs nothing

Prints a table and writes JSON. Nothing is asserted: a benchmark measures, tests judge.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import loader_rate
import objective_cost
import scoring_rate
import step_tax


def start_up_seconds(rounds: int) -> float:
    """Median wall time of `mmalign --help` as a new process."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mmalign", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Run all measurements and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results.json"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps per round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU {platform.machine()}, 1 thread",
        "torch": torch.__version__,
        "start_up_seconds": start_up_seconds(5),
    }
    with tempfile.TemporaryDirectory() as folder:
        results["step"] = step_tax.measure(
            Path(folder), device=device, rounds=options.rounds, steps=options.steps
        )
        results["peak_memory_mib"] = {
            kind: step_tax.peak_memory_in_process(kind, device=options.device) for kind in ("mmalign", "bare")
        }
        results["loader"] = loader_rate.measure(Path(folder))
        results["scoring"] = scoring_rate.measure(Path(folder) / "scoring")
    results["objectives"] = objective_cost.measure(30)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print_table(results)
    print(f"written to {options.output}")


def print_table(results: dict[str, Any]) -> None:
    """The figures for a terminal."""
    from rich.console import Console
    from rich.table import Table

    step, memory = results["step"], results["peak_memory_mib"]
    table = Table("measurement", "value", title=f"{results['device']}, torch {results['torch']}")
    table.add_row("pairs/s, mmalign step (median)", f"{step['mmalign_pairs_per_second']:.2f}")
    table.add_row("pairs/s, bare loop (median)", f"{step['bare_pairs_per_second']:.2f}")
    table.add_row("framework tax (median of paired ratios)", f"{step['tax']:+.1%}")
    table.add_row(
        "tax, quartiles over rounds", f"{step['tax_quartiles'][0]:+.1%} to {step['tax_quartiles'][1]:+.1%}"
    )
    table.add_row("peak memory, mmalign", f"{memory['mmalign']:.0f} MiB")
    table.add_row("peak memory, bare loop", f"{memory['bare']:.0f} MiB")
    table.add_row("mmalign --help", f"{results['start_up_seconds']:.3f} s")
    for name, rate in results["loader"].items():
        table.add_row(f"loader, {name}", f"{rate:.0f} rows/s")
    scoring = results["scoring"]
    table.add_row("scoring store", f"{scoring['items_per_second']:.0f} pictures/s")
    table.add_row(
        "scoring store, peak after 1 000 and 10 000",
        f"{scoring['peak_mib_tenth']:.1f} and {scoring['peak_mib_all']:.1f} MiB",
    )
    costs = {name: row["over_ms"] for name, row in results["objectives"].items()}
    dearest = max(costs, key=lambda name: costs[name])
    table.add_row("objective over plain, median of rows", f"{statistics.median(costs.values()):+.3f} ms")
    table.add_row(f"objective over plain, dearest ({dearest})", f"{costs[dearest]:+.3f} ms")
    Console().print(table)


if __name__ == "__main__":
    main()

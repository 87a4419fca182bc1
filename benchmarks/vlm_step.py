"""Our DPO step of a vision-language model against that of TRL's `DPOTrainer`: same model, rows, adapter.

    python benchmarks/vlm_step.py

Four contestants, each its own trainer's step on one micro-batch that is ready in memory: vision tower,
clipping and optimiser included, loaders excluded.

    trl, all positions    TRL on a CPU, as it is: its head scores every position of a row
    trl, answers alone    TRL as on a GPU: its head scores the positions of the answers (one name patched)
    mmalign               live reference: adapters off
    mmalign, stored       log-probabilities of the reference computed before training, which TRL refuses to do
                          for rows with images

Before anything is timed, all four must give the same gradient in every adapter weight. Times are those of the
process on one thread, medians over interleaved rounds; memory is measured in a process per contestant.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from vlm_contestants import MAKERS, PAIRS, largest_difference
from vlm_pairs import Shape, write_model, write_pairs

SHAPES = {
    "llava": Shape(tower_width=128, tower_layers=3),
    "heavy tower": Shape(),
    "true shares": Shape(tower_width=128, tower_layers=2, vocabulary=1024, side=336),
}
"""By the tower's share of the work, small as in LLaVA 1.5 or large as in Qwen2.5-VL.

The last has the 576 image tokens of LLaVA 1.5, and its tower and head are to the language model what they are
there: a head of 32 064 words is 2 % of seven billion weights, and larger than this language model.
"""


def write_inputs(folder: Path, shape: Shape) -> None:
    """Model and pairs, once."""
    if not (folder / "pairs.parquet").exists():
        write_model(shape, folder / "model")
        write_pairs(folder / "model", folder / "pairs.parquet", 2 * PAIRS)


# --- time and memory ----------------------------------------------------------------------------------------


def _seconds(step: Callable[[], None], steps: int) -> float:
    started = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - started) / steps


def measure(folder: Path, *, checkpointing: bool, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds per step of every contestant, and the difference of their gradients."""
    contestants = [make(folder, checkpointing=checkpointing) for make in MAKERS.values()]
    difference = largest_difference(contestants)
    for contestant in contestants:
        _seconds(contestant.step, 2)
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants if number % 2 else reversed(contestants):
            times[contestant.name].append(_seconds(contestant.step, steps))
    return {
        "gradient_difference": difference,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "speed": {
            peer: {
                own: statistics.median(a / b for a, b in zip(times[peer], times[own], strict=True))
                for own in ("mmalign", "mmalign, stored")
            }
            for peer in ("trl, all positions", "trl, answers alone")
        },
    }


def _peak(folder: Path, name: str, *, checkpointing: bool) -> dict[str, float]:
    """MiB of this process at the peak of three steps: in all, and above what was held before them."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        contestant = MAKERS[name](folder, checkpointing=checkpointing)
        contestant.step()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
        before = _status("VmRSS")
        for _ in range(2):
            contestant.step()
    peak = _status("VmHWM")
    return {"process": peak, "step": peak - before}


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def peak_in_process(folder: Path, name: str, *, checkpointing: bool) -> dict[str, float]:
    """`_peak` in a process of its own, whose allocator gives memory back at once."""
    command = [sys.executable, __file__, "--peak", name, "--folder", str(folder)]
    finished = subprocess.run(
        [*command, *(["--checkpointing"] if checkpointing else [])],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    found: dict[str, float] = json.loads(finished.stdout.strip().splitlines()[-1])
    return found


# --- the command --------------------------------------------------------------------------------------------


def compare(folder: Path, shape: str, *, checkpointing: bool, rounds: int, steps: int) -> dict[str, Any]:
    """One record: sizes, differences of gradients, seconds, ratios, MiB."""
    write_inputs(folder, SHAPES[shape])
    record = measure(folder, checkpointing=checkpointing, rounds=rounds, steps=steps)
    return {
        "shape": shape,
        "sizes": asdict(SHAPES[shape]),
        "pairs": PAIRS,
        "checkpointing": checkpointing,
        "rounds": rounds,
        **versions(),
        **record,
        "memory_mib": {name: peak_in_process(folder, name, checkpointing=checkpointing) for name in MAKERS},
    }


def versions() -> dict[str, str]:
    """What was compared, where."""
    packages = ("mmalign", "trl", "transformers", "peft", "torch")
    return {
        "device": f"CPU {platform.machine()}, 1 thread",
        **{package: version(package) for package in packages},
    }


HEADINGS = ("contestant", "seconds a step", "over TRL, all", "over TRL, answers")
MEMORY = ("a step's memory", "of TRL's, answers", "whole process")
PEERS = ("trl, all positions", "trl, answers alone")
AIMS = {"mmalign": 2.2, "mmalign, stored": 3.0}
"""Over TRL where it scores answers alone."""
MEMORY_AIM = 0.75


def table_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row per contestant: its step, how much faster than each way of TRL, peak memory of the step."""
    base = record["memory_mib"][PEERS[1]]["step"]
    rows = []
    for name, seconds in record["seconds"].items():
        faster = [record["speed"][peer].get(name) for peer in PEERS]
        memory = record["memory_mib"][name]["step"]
        rows.append(
            (
                name,
                f"{seconds:.2f}",
                *("" if ratio is None else f"{ratio:.2f}x" for ratio in faster),
                f"{memory:.0f} MiB",
                f"{memory / base:.2f}",
                f"{record['memory_mib'][name]['process']:.0f} MiB",
            )
        )
    return rows


def verdict(record: dict[str, Any]) -> str:
    """Which aims were met, in a sentence each."""
    said = []
    for name, aim in AIMS.items():
        found = record["speed"][PEERS[1]][name]
        said.append(f"{name}: {found:.2f}x, aim {aim:.1f}x, {'met' if found >= aim else 'missed'}")
    memory = record["memory_mib"]
    for part, words in (("step", "a step's memory"), ("process", "the process")):
        share = memory["mmalign"][part] / memory[PEERS[1]][part]
        said.append(
            f"{words}: {share:.2f}, aim {MEMORY_AIM:.2f}, {'met' if share <= MEMORY_AIM else 'missed'}"
        )
    return "Against answers alone: " + "; ".join(said) + "."


def title_of(record: dict[str, Any]) -> str:
    """What was measured, in a line."""
    recomputed = "activations recomputed" if record["checkpointing"] else "activations kept"
    return (
        f"{record['shape']}, {recomputed}, {record['pairs']} pairs a step, {record['device']}, "
        f"trl {record['trl']}, gradients differ by {record['gradient_difference']:.0e}"
    )


def print_table(record: dict[str, Any]) -> None:
    """The figures for a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADINGS, *MEMORY, title=title_of(record))
    for row in table_rows(record):
        table.add_row(*row)
    Console().print(table)
    Console().print(verdict(record))


def page_part(records: Path) -> str:
    """The last record of every shape and setting as Markdown."""
    from mmalign.toy.guide_tables import table

    latest: dict[tuple[str, bool], dict[str, Any]] = {}
    for line in records.read_text().splitlines():
        record = json.loads(line)
        latest[record["shape"], record["checkpointing"]] = record
    parts = []
    for record in latest.values():
        columns = [
            (name, "---" if number == 0 else "---:") for number, name in enumerate((*HEADINGS, *MEMORY))
        ]
        lines = table(columns, [list(row) for row in table_rows(record)])
        parts.append(f"**{title_of(record)}**\n\n{lines}\n\n{verdict(record)}")
    return "\n\n".join(parts)


def main() -> None:
    """Compare, print, and add a line per comparison to the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/vlm_step.jsonl"))
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["llava"])
    parser.add_argument(
        "--checkpointing", action="store_true", help="recompute activations, as TRL's default"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="optimiser steps per round")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables are renewed from the records")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak is not None:
        print(json.dumps(_peak(options.folder, options.peak, checkpointing=options.checkpointing)))
        return
    from mmalign.files import append_json_line

    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            record = compare(
                Path(folder),
                shape,
                checkpointing=options.checkpointing,
                rounds=options.rounds,
                steps=options.steps,
            )
        print_table(record)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        append_json_line(options.output, record)
        print(f"written to {options.output}")
    if options.page is not None:
        from mmalign.toy.guide_tables import renew

        renew(options.page, {"vlm_step": page_part(options.output)})


if __name__ == "__main__":
    main()

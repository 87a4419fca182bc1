"""The framework's tax: CPU time of our step over that of a bare loop, in many short blocks side by side.

    python benchmarks/framework_tax.py                 # 1 and 4 pairs per step, 300 and 75 blocks
    python benchmarks/framework_tax.py --pairs 1 --blocks 81

A block is one step of ours and one of the loop by hand (contestants.py), which of them is first changes by
turns. Two steps within a second meet the same machine, so their ratio varies less than either; the process
stays on one core, and times are its own CPU time. Said are the median of the ratios with a 95 % interval of
that median, by resampling blocks, and quartiles of the ratios, which say how much one block scatters. An
interval that reaches over the aim leaves the question open: more blocks narrow it.

Python's garbage is collected as in `mmalign train`: libraries are left out, for both.
"""

import argparse
import contextlib
import gc
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from contestants import TOLERANCE, bare, mmalign
from step_race import interleaved, ratio
from vlm_contestants import largest_difference

__all__ = ["BLOCKS", "interval_of_median", "measure", "on_one_core"]

BLOCKS = 300
_RESAMPLES = 4000


@contextlib.contextmanager
def on_one_core() -> Iterator[int | None]:
    """The process on the last core it may use; None where the system cannot say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _libraries_frozen() -> Iterator[None]:
    """What is there now is left out of collections inside."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def interval_of_median(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the median over resampled values; of fewer than two the value itself."""
    if len(values) < 2:
        return values[0], values[0]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    beside = (1 - confidence) / 2
    return medians[int(beside * _RESAMPLES)], medians[int((1 - beside) * _RESAMPLES) - 1]


def measure(folder: Path, *, pairs: Sequence[int], blocks: int) -> dict[str, Any]:
    """The tax on SDXL's structure, by pairs per step.

    Args:
        folder: holds model, rows and cache.
        pairs: per step: at one pair the host shows most.
        blocks: of each at one pair per step; at more pairs as many fewer, so that all take about as long.
    """
    result: dict[str, Any] = {}
    for number in pairs:
        contestants = [make("sdxl", folder, pairs=number) for make in (mmalign, bare)]
        difference = largest_difference(contestants, TOLERANCE)
        with on_one_core() as core, _libraries_frozen():
            times = interleaved(contestants, rounds=max(1, blocks // number), steps=1)
        ours, theirs = times["mmalign"], times["bare"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        middle, low, high = ratio(ours, theirs)
        result[f"{number} pairs"] = {
            "rounds": max(1, blocks // number),
            "core": core,
            "gradient_difference": difference,
            "seconds_per_step": {title: statistics.median(found) for title, found in times.items()},
            "tax": middle - 1,
            "interval": [end - 1 for end in interval_of_median(ratios)],
            "tax_low": low - 1,
            "tax_high": high - 1,
            "tax_of_minima": min(ours) / min(theirs) - 1,
        }
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 4], help="per step")
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--folder", type=Path, help="where model, rows and cache are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(json.dumps(measure(folder, pairs=options.pairs, blocks=options.blocks), indent=2))


if __name__ == "__main__":
    main()

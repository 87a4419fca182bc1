"""One Diffusion-DPO step by several trainers: gradients checked equal, then time, arithmetic and memory.

    python benchmarks/step_race.py sdxl

Contestants are those of contestants.py. Times are CPU seconds of the process on one thread, medians over
interleaved rounds; ratios are medians of the ratios of one round. FLOPs are counted, not guessed: matrix
products, convolutions and attention of one step. The least of the method is one forward and one backward
pass of the policy: nothing frozen computed again, the reference stored. Memory is the peak of a step above
what its process held before, in a process of its own.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from contestants import MAKERS, TOLERANCE, bare
from inside_a_step import PARTS, breakdown, flops_of, matmul_rate
from tiny_models import TINY
from vlm_contestants import Contestant, largest_difference

__all__ = ["interleaved", "measure", "peaks_in_process", "ratio"]


def _seconds(step: Callable[[], None], steps: int) -> float:
    started = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - started) / steps


def interleaved(contestants: Sequence[Contestant], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """CPU seconds per step of every contestant, a value per round; the order turns round each time."""
    for contestant in contestants:
        _seconds(contestant.step, 2)
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants if number % 2 else list(reversed(contestants)):
            times[contestant.name].append(_seconds(contestant.step, steps))
    return times


def ratio(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratios of one round."""
    ratios = [a / b for a, b in zip(upper, lower, strict=True)]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def measure(
    name: str, folder: Path, *, pairs: int, rounds: int, steps: int, memory: bool = True, parts: bool = True
) -> dict[str, Any]:
    """Everything about one model's step.

    Args:
        name: of a tiny model that denoises.
        folder: holds model, rows and cache.
        pairs: per step.
        rounds: of the race.
        steps: per round.
        memory: measure peaks, in processes of their own.
        parts: run the real loop once more and say where its time goes.
    """
    contestants = [make(name, folder, pairs=pairs) for make in MAKERS.values()]
    difference = largest_difference(contestants, TOLERANCE)
    least = flops_of(bare(name, folder, pairs=pairs, compares=False).gradient)
    flops = {contestant.name: flops_of(contestant.step) for contestant in contestants}
    times = interleaved(contestants, rounds=rounds, steps=steps)
    rate = matmul_rate()
    seconds = {title: statistics.median(values) for title, values in times.items()}
    tax = ratio(times["mmalign"], times["bare"])
    result: dict[str, Any] = {
        "pairs_per_step": pairs,
        "rounds": rounds,
        "trained_tensors": len(contestants[0].parameters),
        "gradient_difference": difference,
        "seconds_per_step": seconds,
        "pairs_per_cpu_second": {title: pairs / value for title, value in seconds.items()},
        "tax": tax[0] - 1,
        "tax_low": tax[1] - 1,
        "tax_high": tax[2] - 1,
        "over_unoptimised": {
            title: ratio(times["unoptimised"], times[title])[0] for title in ("mmalign", "mmalign, stored")
        },
        "gflop_per_pair": {title: value / pairs / 1e9 for title, value in flops.items()},
        "gflop_per_pair_least": least / pairs / 1e9,
        "flops_over_least": {title: value / least for title, value in flops.items()},
        "matmul_gflops": rate / 1e9,
        "time_over_floor": {title: value * rate / least for title, value in seconds.items()},
    }
    del contestants
    if parts:
        result["milliseconds"] = breakdown(name, folder, pairs=pairs, steps=2 * rounds, cached=True)
    if memory:
        result["step_mib"] = peaks_in_process(name, ("mmalign", "bare", "unoptimised"), folder, pairs)
    return result


# --- memory -------------------------------------------------------------------------------------------------


def _status(key: str) -> float:
    """MiB of a line of the process's status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def _peak(name: str, title: str, folder: Path, pairs: int) -> float:
    """MiB of a step above what this process held before it."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        contestant = MAKERS[title](name, folder, pairs=pairs)
        contestant.step()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
        before = _status("VmRSS")
        contestant.step()
    return _status("VmHWM") - before


def _peaks(name: str, titles: Sequence[str], folder: Path, pairs: int) -> dict[str, float]:
    """`_peak` of contestants, each in a copy of this process: libraries are loaded once.

    A process that measured one of them would hold pieces of its memory that the next uses unseen.
    """
    # What all contestants need. Not more: threads, which a step starts, do not survive the copying.
    from diffusers import AutoencoderKL  # noqa: F401

    import mmalign.train.run  # noqa: F401

    found = {}
    for title in titles:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            code = 1
            try:
                with os.fdopen(writing, "w") as pipe:
                    json.dump(_peak(name, title, folder, pairs), pipe)
                code = 0
            except Exception:  # shown here; the parent says which contestant
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            found[title] = float(pipe.read() or "nan")
        _, status = os.waitpid(child, 0)
        if status != 0:
            message = f"{title}: the process that measured its memory ended with {status}"
            raise RuntimeError(message)
    return found


def peaks_in_process(name: str, titles: Sequence[str], folder: Path, pairs: int) -> dict[str, float]:
    """`_peaks` in processes of their own, whose allocator gives memory back at once."""
    finished = subprocess.run(
        [sys.executable, __file__, name, "--peaks", *titles, "--folder", str(folder), "--pairs", str(pairs)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    peaks: dict[str, float] = json.loads(finished.stdout.strip().splitlines()[-1])
    return peaks


# --- the command --------------------------------------------------------------------------------------------


def lines_of(values: dict[str, Any]) -> list[str]:
    """What a terminal shows."""
    lines = [f"gradients differ by {values['gradient_difference']:.0e}"]
    for title, seconds in values["seconds_per_step"].items():
        lines.append(
            f"{title:16s} {1e3 * seconds:8.1f} ms a step, {values['flops_over_least'][title]:.2f} x least "
            f"FLOPs, {values['time_over_floor'][title]:.1f} x floor"
        )
    lines.append(f"tax {values['tax']:+.1%} ({values['tax_low']:+.1%} to {values['tax_high']:+.1%})")
    if "milliseconds" in values:
        lines.append(", ".join(f"{part} {values['milliseconds'][part]:.1f}" for part in PARTS))
    return lines


def main() -> None:
    """Race on one model, or measure one contestant's memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=[name for name in TINY if name != "vlm"])
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--folder", type=Path, help="where model, rows and cache are kept")
    parser.add_argument("--peaks", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peaks is not None:
        print(json.dumps(_peaks(options.model, options.peaks, options.folder, options.pairs)))
        return
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        values = measure(
            options.model,
            folder,
            pairs=options.pairs,
            rounds=options.rounds,
            steps=options.steps,
            memory=not options.no_memory,
        )
    print("\n".join(lines_of(values)))


if __name__ == "__main__":
    main()

"""All benchmarks the project owns: `make bench`, or `python -m benchmarks`.

    python -m benchmarks                               all on the CPU, about half an hour
    python -m benchmarks --only step.sdxl start        some of them
    python -m benchmarks --profile quick               the same code, a round each: does it work?
    python -m benchmarks --profile gpu                 benchmarks/gpu.py on this machine's GPU
    python -m benchmarks --page docs/performance.md    renew the tables from the records
    python -m benchmarks compare A.jsonl B.jsonl       ratios of two files of records

    step.*      one DPO step per family on tiny true models: pairs per CPU second, memory, parts, FLOPs
                against the least, against an unoptimised restatement (images, sound, clips) or TRL (vlm)
    tax.sdxl    our trainer over a bare loop by hand, pairs per step 1 and 4
    lora.*      a step with our forward pass of LoRA layers over one with peft's
    start       `mmalign --help`; `mmalign train` to its first step, and TRL's
    loader      rows per second: JPEG pairs decoded, cropped, flipped
    reward      pictures per second of a reward, by batch
    scoring     pictures per second through the evaluation store, and its memory
    objectives  the catalogue's functions over plain ones
    growth      time and memory over rows, list size, clip length, answer length: fitted exponents

Records are JSON lines with machine, versions, commit and seed. Nothing is asserted except that trainers which
are compared compute the same gradients: a benchmark measures, tests judge.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.insert(0, str(Path(__file__).parent))

import records

__all__ = ["MEASUREMENTS", "PROFILES", "Profile", "main", "run"]

RESULTS = Path("benchmarks/results/bench.jsonl")


@dataclass(frozen=True)
class Profile:
    """How long to look.

    Args:
        rounds: of races.
        steps: per round.
        pairs: per step.
        memory: measure peaks, in processes of their own.
        tax_blocks: of one step of ours and one of the bare loop, at one pair per step.
        lora_rounds: of the race between forward passes of adapters.
        items: pictures of the scoring store.
        quick: the smallest sizes everywhere.
    """

    rounds: int = 5
    steps: int = 1
    pairs: int = 2
    memory: bool = True
    tax_blocks: int = 300
    lora_rounds: int = 15
    items: int = 10_000
    quick: bool = False


PROFILES = {
    "cpu": Profile(),
    "quick": Profile(rounds=1, memory=False, pairs=1, tax_blocks=1, lora_rounds=1, items=200, quick=True),
}


def _step(name: str) -> Callable[[Path, Profile], dict[str, Any]]:
    def measured(folder: Path, profile: Profile) -> dict[str, Any]:
        import step_race

        return step_race.measure(
            name,
            folder / name,
            pairs=profile.pairs,
            rounds=profile.rounds,
            steps=profile.steps,
            memory=profile.memory,
        )

    return measured


def _vlm(folder: Path, profile: Profile) -> dict[str, Any]:
    """The step of a vision-language model, beside TRL's."""
    import vlm_step
    from inside_a_step import breakdown, flops_of
    from vlm_contestants import MAKERS

    home = folder / "vlm_step"
    home.mkdir(parents=True, exist_ok=True)
    vlm_step.write_inputs(home, vlm_step.SHAPES["llava"])
    found = vlm_step.measure(home, checkpointing=False, rounds=profile.rounds, steps=profile.steps)
    flops = {name: flops_of(make(home, checkpointing=False).step) for name, make in MAKERS.items()}
    seconds = found["seconds"]
    result = {
        "pairs_per_step": vlm_step.PAIRS,
        "rounds": profile.rounds,
        "gradient_difference": found["gradient_difference"],
        "seconds_per_step": seconds,
        "pairs_per_cpu_second": {name: vlm_step.PAIRS / value for name, value in seconds.items()},
        "over_trl": found["speed"],
        "gflop_per_pair": {name: value / vlm_step.PAIRS / 1e9 for name, value in flops.items()},
        "flops_over_least": {name: value / flops["mmalign, stored"] for name, value in flops.items()},
        "milliseconds": breakdown(
            "vlm", folder / "vlm", pairs=profile.pairs, steps=2 * profile.rounds, cached=False
        ),
    }
    if profile.memory:
        result["step_mib"] = {
            name: vlm_step.peak_in_process(home, name, checkpointing=False)["step"]
            for name in ("mmalign", "trl, answers alone")
        }
    return result


def _tax(folder: Path, profile: Profile) -> dict[str, Any]:
    """Our step over the bare loop's, at one pair per step, where the host shows most, and at four."""
    import framework_tax

    pairs = (1,) if profile.quick else (1, 4)
    return framework_tax.measure(folder / "sdxl", pairs=pairs, blocks=profile.tax_blocks)


def _lora(name: str) -> Callable[[Path, Profile], dict[str, Any]]:
    def measured(folder: Path, profile: Profile) -> dict[str, Any]:
        import lora_step

        # Pictures of another size need a cache of their own.
        home = folder / f"lora_{name}"
        return lora_step.measure(name, home, pairs=1, rounds=profile.lora_rounds, steps=2)

    return measured


def _start(folder: Path, profile: Profile) -> dict[str, Any]:
    import start_up

    home = folder / "start"
    home.mkdir(parents=True, exist_ok=True)
    return start_up.measure(home, rounds=1 if profile.quick else 3)


def _loader(folder: Path, profile: Profile) -> dict[str, Any]:
    import loader_rate

    return loader_rate.measure(folder, sizes=(512,) if profile.quick else (512, 1024))


def _reward(folder: Path, profile: Profile) -> dict[str, Any]:
    import reward_rate

    return reward_rate.measure(folder / "reward", 16 if profile.quick else 64)


def _scoring(folder: Path, profile: Profile) -> dict[str, Any]:
    import scoring_rate

    return scoring_rate.measure(folder / "scoring", profile.items)


def _objectives(folder: Path, profile: Profile) -> dict[str, Any]:
    import objective_cost

    del folder
    return objective_cost.measure(1 if profile.quick else 10)


def _growth(folder: Path, profile: Profile) -> dict[str, Any]:
    import growth

    home = folder / "growth"
    home.mkdir(parents=True, exist_ok=True)
    return growth.measure(home, quick=profile.quick)


MEASUREMENTS: dict[str, Callable[[Path, Profile], dict[str, Any]]] = {
    **{f"step.{name}": _step(name) for name in ("sd15", "sdxl", "sd3", "flux", "video", "audio")},
    "step.vlm": _vlm,
    "tax.sdxl": _tax,
    **{f"lora.{name}": _lora(name) for name in ("sdxl", "host", "llava")},
    "start": _start,
    "loader": _loader,
    "reward": _reward,
    "scoring": _scoring,
    "objectives": _objectives,
    "growth": _growth,
}
"""Name to what measures it in a folder for scratch."""


def run(names: list[str], *, profile: str, folder: Path, output: Path) -> list[dict[str, Any]]:
    """Measure, show and write: a record per name, written as soon as it is there.

    A measurement that raises is written with its `error` in place of values; the others go on.
    """
    torch.set_num_threads(1)
    where, found = records.machine(), []
    for name in names:
        started = time.perf_counter()
        try:
            values = MEASUREMENTS[name](folder, PROFILES[profile])
        except Exception as error:  # minutes of other measurements hang on it; `main` exits with 1
            traceback.print_exc()
            values = {"error": f"{type(error).__name__}: {error}"}
        values = {**values, "wall_seconds": round(time.perf_counter() - started, 1)}
        record = records.record(name, values, profile=profile, where=where)
        records.append(output, [record])
        found.append(record)
        show(record)
    return found


def show(record: Mapping[str, Any]) -> None:
    """A record for a terminal."""
    print(f"\n{record['id']} ({record['values']['wall_seconds']} s)", flush=True)
    if "error" in record["values"]:
        print(f"  failed: {record['values']['error']}")
        return
    if str(record["id"]).startswith("objectives"):
        costs = {name: row["over_ms"] for name, row in record["values"].items() if isinstance(row, dict)}
        dearest = max(costs, key=lambda name: costs[name])
        print(f"  dearest over its plain function: {dearest}, {costs[dearest]:+.3f} ms")
        return
    for name, value in records.flat(record["values"]).items():
        print(f"  {name:48s} {value:.5g}")


def _chosen(only: list[str]) -> list[str]:
    """Names that begin with one of `only`; all without.

    Raises:
        SystemExit: nothing is called so.
    """
    unknown = [begin for begin in only if not any(name.startswith(begin) for name in MEASUREMENTS)]
    if unknown:
        sys.exit(f"--only: got {unknown}, expected beginnings of {list(MEASUREMENTS)}.")
    return [name for name in MEASUREMENTS if not only or any(name.startswith(begin) for begin in only)]


def _compare(first: Path, second: Path) -> None:
    """Print ratios.

    Raises:
        SystemExit: a file is missing, or the two share no measurement.
    """
    try:
        old, new = records.read(first), records.read(second)
        rows = records.compare(old, new)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"compare: {error}")
    print(f"{'measurement':72s} {first.name:>14s} {second.name:>14s}  second / first")
    for name, before, after, over in rows:
        print(f"{name:72s} {before:>14s} {after:>14s}  {over}")
    for line in records.other_machine(old[-1], new[-1]):
        print(f"measured elsewhere: {line}")


def _on_gpu(only: list[str], output: Path | None) -> None:
    """gpu.py with what was asked for, and with the threads that one core's timings took away."""
    os.environ.pop("OMP_NUM_THREADS", None)
    torch.set_num_threads(os.cpu_count() or 1)
    import gpu

    gpu.main([*(["--only", *only] if only else []), *(["--output", str(output)] if output else [])])


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["compare"]:
        parser = argparse.ArgumentParser(
            prog="benchmarks compare", description="Ratios of two files of records."
        )
        parser.add_argument("first", type=Path)
        parser.add_argument("second", type=Path)
        files = parser.parse_args(given[1:])
        _compare(files.first, files.second)
        return
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=[*PROFILES, "gpu"], default="cpu")
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of names")
    parser.add_argument(
        "--output", type=Path, help=f"records are added (default: {RESULTS}; of a GPU, gpu.jsonl beside it)"
    )
    parser.add_argument("--folder", type=Path, help="scratch, kept; models that are there are used again")
    parser.add_argument(
        "--page", type=Path, help="renew this page's tables from the records; measures nothing"
    )
    options = parser.parse_args(given)
    if options.page is not None:
        import performance_page

        for path in (options.page, options.output or RESULTS):
            if not path.is_file():
                sys.exit(
                    f"benchmarks: {path} is not there, expected a page and a file of records. "
                    "`python -m benchmarks` writes records, --output names them."
                )
        performance_page.renew_page(options.page, options.output or RESULTS)
        return
    if options.profile == "gpu":
        _on_gpu(options.only, options.output)
        return
    output = options.output or RESULTS
    names = _chosen(options.only)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        found = run(names, profile=options.profile, folder=options.folder, output=output)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = run(names, profile=options.profile, folder=Path(folder), output=output)
    print(f"\nadded to {output}")
    failed = [str(record["id"]) for record in found if "error" in record["values"]]
    if failed:
        sys.exit(f"benchmarks: {', '.join(failed)} failed, see above.")


if __name__ == "__main__":
    main()

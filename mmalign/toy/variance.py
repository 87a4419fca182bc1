"""The variance of the gradient per FLOP under every way of drawing timesteps and noise, in three toy worlds.

    python -m mmalign.toy.variance --output docs/measurements/gradient_variance --page docs/variance.md

measures what the folder does not hold yet and renews the tables of the page. `--worlds` and `--arms` with no
names leave a half out.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmalign.files import append_json_line, read_json_lines
from mmalign.toy.guide_results import Results
from mmalign.toy.guide_tables import renew
from mmalign.toy.method_bench import Experiment, Worlds, perform
from mmalign.toy.variance_schemes import SCHEMES, Measured, measure
from mmalign.toy.variance_tables import page_parts
from mmalign.toy.variance_worlds import WORLDS, batches_of, opened, train_on

__all__ = ["ARMS", "MOMENTS", "experiment", "main"]

MOMENTS = ("reference", "trained")
"""Before the first update, and after a world's steps."""

BATCH_SIZE, NUM_REPEATS, SEED = 4, 4, 1

ARMS: dict[str, tuple[tuple[str, Any], ...]] = {
    "one draw of 8 pairs": (("train.batch_size", 8),),
    "one draw of 8 pairs, stratified": (("train.batch_size", 8), ("likelihood.stratified", True)),
    "antithetic draws of 4 pairs": (
        ("train.batch_size", 4),
        ("likelihood.draws", 2),
        ("likelihood.antithetic", True),
    ),
}
"""Trainings of equal cost: settings over the toy recipe of images. Others are compared with the first."""


def experiment(arm: str, seed: int) -> Experiment:
    """One training of an arm, at the recipe's rate and beta."""
    return Experiment("diffusion_dpo", 0, seed, extra=ARMS[arm])


def _file(folder: Path) -> Path:
    return folder / "variance.jsonl"


def stored(folder: Path) -> list[dict[str, Any]]:
    """Records of schemes that a folder holds."""
    path = _file(folder)
    return read_json_lines(path) if path.exists() else []


def _record(world: str, moment: str, scheme: str, found: Measured) -> dict[str, Any]:
    def rounded(values: Any) -> Any:
        return [rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.5g}")

    return {
        "world": world,
        "moment": moment,
        "scheme": scheme,
        "rows": BATCH_SIZE,
        "repeats": found.repeats,
        "flops": found.flops,
        "variance": rounded(found.variance.tolist()),
        "means": rounded(found.means.tolist()),
        "distance": rounded(found.distance.tolist()),
    }


def _measure(world: str, folder: Path) -> None:
    """Measure a world at both moments, unless that was done."""
    known = {(record["world"], record["moment"]) for record in stored(folder)}
    if all((world, moment) in known for moment in MOMENTS):
        return
    with tempfile.TemporaryDirectory(prefix="mmalign-variance-") as home:
        loop = opened(world, Path(home) / world, seed=SEED, batch_size=BATCH_SIZE)
        batches = batches_of(loop, WORLDS[world].num_batches)
        for moment in MOMENTS:
            if moment == "trained":
                train_on(loop)
            if (world, moment) in known:
                continue
            started = time.process_time()
            found = measure(loop, batches, list(SCHEMES), repeats=NUM_REPEATS)
            for scheme, measured in found.items():
                append_json_line(_file(folder), _record(world, moment, scheme, measured))
            print(f"{world}, {moment}: {time.process_time() - started:.0f} s of one core", flush=True)


def _train(arms: Sequence[str], seeds: Sequence[int], results: Results) -> None:
    with tempfile.TemporaryDirectory(prefix="mmalign-variance-") as home:
        worlds = Worlds(Path(home))
        runs = [experiment(arm, seed) for seed in seeds for arm in arms]
        perform(runs, results, until=float("inf"), worlds=worlds, tell=lambda line: print(line, flush=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: measure what is not stored, print the tables or renew a page."""
    parser = argparse.ArgumentParser(
        prog="python -m mmalign.toy.variance", description="Variance of the gradient by scheme of draws."
    )
    parser.add_argument("--worlds", nargs="*", choices=tuple(WORLDS), default=list(WORLDS))
    parser.add_argument("--arms", nargs="*", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the trainings")
    parser.add_argument("--output", type=Path, required=True, help="folder of records")
    parser.add_argument("--page", type=Path, help="Markdown whose tables are renewed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for world in options.worlds:
        _measure(world, options.output)
    results = Results(options.output, "draws")
    _train(options.arms, options.seeds, results)
    gains = {
        arm: {
            seed: record["gains"]
            for seed in options.seeds
            if (record := results.find(experiment(arm, seed).what())) is not None and "gains" in record
        }
        for arm in ARMS
    }
    found = page_parts(stored(options.output), gains)
    if options.page:
        renew(options.page, found)
    else:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in found.items()))


if __name__ == "__main__":
    main()

"""Which loss should I use: run the catalogue's rows in the toy worlds and write the measured guide.

    python -m mmalign.toy.loss_guide --worlds token,image --output docs/which-loss.md

Runs are stored as JSON lines under `--results` and never made twice: a killed command continues, and new rows
of the catalogue cost their own runs only. `--share 0/2` and `--share 1/2` in two terminals split the work.
The tables between the markers of the output are written anew; the prose around them is kept.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mmalign import objectives
from mmalign.errors import ConfigError, explain
from mmalign.toy import guide_tables, image_guide, token_guide
from mmalign.toy.guide_results import Results

__all__ = ["main"]

WORLDS = ("token", "image")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs that are missing and write the tables. Returns 0.

    Raises:
        ConfigError: an unknown world, a malformed share, or a page without the tables' markers.
    """
    given = _parser().parse_args(arguments)
    worlds = given.worlds.split(",")
    unknown = sorted(set(worlds) - set(WORLDS))
    if unknown:
        raise ConfigError(explain("--worlds", got=",".join(unknown), expected=" or ".join(WORLDS)))
    torch.set_num_threads(1)
    until = time.monotonic() + 60.0 * given.minutes
    names = _share(given.methods.split(",") if given.methods else objectives.names(), given.share)
    parts: dict[str, str] = {}
    if "token" in worlds:
        results = Results(given.results, "token")
        if not given.tables_only:
            _run_token(names, results, until, given.seeds)
        parts |= _token_parts(results)
    if "image" in worlds:
        results = Results(given.results, "image")
        if not given.tables_only:
            chosen = [name for name in names if name in image_guide.IMAGE_ROWS]
            image_guide.run(chosen, results, until=until, tell=lambda line: print(line, flush=True))
        parts |= _image_parts(results)
    guide_tables.renew(given.output, parts)
    return 0


def _token_parts(results: Results) -> dict[str, str]:
    results.reload()
    found = {name: token_guide.collect(name, results) for name in objectives.names()}
    rows = [row for row in found.values() if isinstance(row, token_guide.TokenRow)]
    reasons = {name: row for name, row in found.items() if isinstance(row, str)}
    seconds = sum(row.seconds for row in rows) / max(len(rows), 1)
    certain = sum(row.num_seeds == len(token_guide.SEEDS) for row in rows)
    return {
        "conditions": guide_tables.conditions_table(),
        "token": guide_tables.token_table(rows, token_guide.base()),
        "token-cost": f"{len(rows)} rows, {certain} of them with {len(token_guide.SEEDS)} seeds everywhere; "
        f"{token_guide.NUM_RUNS} runs or more per row, {seconds:.1f} s of one core each.",
        "left-out": guide_tables.left_out_table(reasons),
    }


def _image_parts(results: Results) -> dict[str, str]:
    results.reload()
    found = [image_guide.collect(name, results) for name in image_guide.IMAGE_ROWS]
    rows = [row for row in found if isinstance(row, image_guide.ImageRow)]
    seconds = sum(row.seconds for row in rows) / max(len(rows), 1)
    noisy = sum(row.noisy is not None for row in rows)
    return {
        "image": guide_tables.image_table(rows),
        "image-cost": f"{len(rows)} rows, {noisy} with flipped labels too; {seconds:.0f} s of one core each.",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the catalogue's losses in the toy worlds.")
    parser.add_argument("--worlds", default="token,image", help="token, image, or both with a comma")
    parser.add_argument("--output", type=Path, default=Path("docs/which-loss.md"), help="page to renew")
    parser.add_argument("--results", type=Path, default=Path("runs/loss_guide"), help="folder of the records")
    parser.add_argument("--methods", default="", help="rows, with commas; the default is all")
    parser.add_argument("--share", default="0/1", help="this process's part of the rows, for example 0/2")
    parser.add_argument("--seeds", type=int, default=1, choices=(1, 2, 3), help="under clean, noise, ...")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no row after so long")
    parser.add_argument("--tables-only", action="store_true", help="run nothing, write what is stored")
    return parser


def _share(names: Sequence[str], share: str) -> list[str]:
    part, _, parts = share.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ConfigError(explain("--share", got=share, expected="PART/PARTS with PART < PARTS, such as 0/2"))
    return list(names)[int(part) :: int(parts)]


def _run_token(names: Sequence[str], results: Results, until: float, num_seeds: int) -> None:
    for number, name in enumerate(names, start=1):
        if time.monotonic() > until:
            return
        reason = token_guide.why_left_out(name)
        if reason:
            print(f"[{number}/{len(names)}] {name}: left out, {reason}", flush=True)
            continue
        started = time.perf_counter()
        told = ""
        for part, found in token_guide.runs_of(name, results, num_seeds=num_seeds):
            if part == "mixed":
                told = ", ".join(
                    f"{one['measured']['gain']:+.3f}" if "measured" in one else one["failed"] for one in found
                )
        spent = time.perf_counter() - started
        print(f"[{number}/{len(names)}] {name}: gain {told or 'none'} ({spent:.0f} s)", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())

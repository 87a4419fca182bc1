"""The cache of encoded inputs at 100 000 rows, its real code with tiny latents; a million rows on paper.

    .venv/bin/python benchmarks/rows_at_scale.py
    .venv/bin/python benchmarks/rows_at_scale.py --sizes 1000,3000,10000 --page docs/performance.md

Each size is a process of its own: parquet rows are opened by `open_rows`, filled into a folder by
`build_cache`, and read in a random order by `LatentCache.row`. The model is a stand-in whose latents have 16
numbers, so that the time is the cache's. A second builder is killed by SIGKILL at random places and started
again; every entry must then be there once. Time is CPU time of one thread.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

__all__ = ["FAMILIES", "block", "bytes_per_pair", "exponent", "measure"]

SIZES = (3_000, 10_000, 30_000, 100_000)
SHARD_BYTES = 2**20
"""Small, so that as many shards are written as for real latents in shards of 256 MiB."""

_KILLED_SHARD = 2**15
"""About 300 entries, so that a kill finds many shards written and one begun."""

FAMILIES: dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "SD 1.5, 512": ((4, 64, 64), ((77, 768),)),
    "SDXL, 1024": ((4, 128, 128), ((77, 2048), (1280,))),
    "SD 3.5 medium, 1024": ((16, 128, 128), ((333, 4096), (2048,))),
    "FLUX.1-dev, 1024": ((16, 128, 128), ((512, 4096), (768,))),
    "CogVideoX-5B, 49 x 480 x 720": ((16, 13, 60, 90), ((226, 4096),)),
    "Wan2.1-1.3B, 81 x 480 x 832": ((16, 21, 60, 104), ((512, 4096),)),
    "Tango, 10 s": ((8, 256, 16), ((77, 1024),)),
}
"""Latents and text states of the published configurations; of Tango's T5, 77 tokens of a caption."""

_NAME = 33  # letters of a name in the index
_PLACE = 8
_HALF = 2


def bytes_per_pair(family: str) -> dict[str, int]:
    """Bytes that one pair takes in a cache in half precision.

    latents = 2 candidates * (mean + standard deviation) * elements * 2 bytes; text once per unique prompt
    """
    latent, text = FAMILIES[family]
    return {
        "latents": 2 * 2 * int(np.prod(latent)) * _HALF,
        "text": sum(int(np.prod(shape)) for shape in text) * _HALF,
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of cost = a * size ** p, by least squares on logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-9)), 1)
    return float(slope)


class _Loader:
    """Names media by their bytes, as the families do; decodes them to four numbers."""

    def encoded(self, row: Any) -> list[bytes]:
        return [candidate.image for candidate in row.candidates]

    def keys(self, encoded: list[bytes], *, flipped: bool) -> list[str]:
        import hashlib

        del flipped
        return [hashlib.blake2b(value, digest_size=16).hexdigest() for value in encoded]

    def centered(self, row: Any, encoded: list[bytes], *, flipped: bool) -> Any:
        del row, flipped
        inputs = torch.tensor([list(value[:4]) for value in encoded], dtype=torch.float32)
        return SimpleNamespace(inputs=inputs, geometry=torch.ones(len(encoded), 6, dtype=torch.int64))


class _Model:
    """Latents of 16 numbers and text states of 8."""

    def __init__(self, pause: float = 0.0) -> None:
        self.num_encoded, self._pause = 0, pause

    def cache_moments(self, inputs: torch.Tensor) -> Any:
        self.num_encoded += len(inputs)
        if self._pause:
            time.sleep(self._pause)
        mean = inputs.repeat(1, 4).view(-1, 4, 2, 2) / 256
        return SimpleNamespace(mean=mean, std=mean + 0.5)

    def cache_text(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        return [{"text": torch.full((2, 4), float(len(prompt)))} for prompt in prompts]


def _write_rows(path: Path, num_rows: int) -> None:
    """Pairs whose pictures are eight bytes; group by group, so that writing needs no memory either."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("caption", pa.string()), ("chosen", pa.binary()), ("rejected", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_rows, 1000):
            numbers = range(start, min(start + 1000, num_rows))
            columns = [
                [f"a picture of number {number}" for number in numbers],
                [(2 * number).to_bytes(8, "little") for number in numbers],
                [(2 * number + 1).to_bytes(8, "little") for number in numbers],
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _build(rows: Path, folder: Path, *, pause: float = 0.0, shard_bytes: int = SHARD_BYTES) -> int:
    """Images that were encoded."""
    from mmalign.data import DataConfig, open_rows
    from mmalign.data.cache import CacheIdentity
    from mmalign.data.cache_build import build_cache

    model = _Model(pause)
    build_cache(
        open_rows(DataConfig(source={"path": str(rows), "media": "image"})),
        model,
        CacheIdentity(vae="stand-in", text="stand-in"),
        folder,
        loader=_Loader(),
        batch_size=64,
        num_threads=1,
        shard_bytes=shard_bytes,
    )
    return model.num_encoded


def _resident() -> float:
    """MiB of this process now, without pages of files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return float(found.split()[1]) / 1024


def _one_size(num_rows: int, folder: Path) -> dict[str, float]:
    """Costs of one size, in this process."""
    torch.set_num_threads(1)
    rows, cache_folder = folder / "rows.parquet", folder / "cache"
    _write_rows(rows, num_rows)
    _build_small(folder)
    before, started = _resident(), time.process_time()
    encoded = _build(rows, cache_folder)
    building, built = time.process_time() - started, _resident()
    from mmalign.data import DataConfig, open_rows
    from mmalign.data.cache import LatentCache

    table = open_rows(DataConfig(source={"path": str(rows), "media": "image"}))
    shards = sorted(cache_folder.glob("*.safetensors"))
    started = time.process_time()
    cache, loader = LatentCache(cache_folder), _Loader()
    opening = time.process_time() - started
    some = random.Random(0).sample(range(num_rows), min(num_rows, 2000))
    read = [table[number] for number in some]
    started = time.process_time()
    for row in read:
        cache.row(row, loader, flipped=False)
    reading = time.process_time() - started
    return {
        "rows": num_rows,
        "encoded": encoded,
        "build_ms_per_row": 1000 * building / num_rows,
        "open_seconds": opening,
        "read_ms_per_row": 1000 * reading / len(read),
        "disk_bytes_per_row": sum(path.stat().st_size for path in shards) / num_rows,
        "shards": len(shards),
        "index_bytes_per_entry": cache.index_bytes / (3 * num_rows + 1),
        "builder_mib": max(built - before, 0.0),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _build_small(folder: Path) -> None:
    """Everything imported and allocated once, so that memory counts rows alone."""
    _write_rows(folder / "small.parquet", 200)
    _build(folder / "small.parquet", folder / "small")


def _in_process(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def _measured(num_rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, _in_process("--one", str(num_rows), folder) as process:
        output = process.communicate()[0]
        if process.returncode:
            message = f"rows_at_scale: the process for {num_rows} rows ended with {process.returncode}."
            raise RuntimeError(message)
        found: dict[str, float] = json.loads(output.splitlines()[-1])
        return found


def _killed(num_rows: int, seed: int, kills: int = 3) -> dict[str, float]:
    """A build that is killed at random places and ends: whether each entry is there once."""
    from mmalign.data.cache_index import shard_keys

    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        rows, cache = folder / "rows.parquet", folder / "cache"
        _write_rows(rows, num_rows)
        reached = []
        for _ in range(kills):
            process = _in_process("--build", str(rows), str(cache))
            already, deadline = len(list(cache.glob("moments-*"))), time.monotonic() + 600
            wanted = already + draw.randint(1, 12)
            while len(list(cache.glob("moments-*"))) < wanted and process.poll() is None:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode != -signal.SIGKILL:
                message = f"rows_at_scale: a builder ended with {process.returncode} before it was killed."
                raise RuntimeError(message)
            reached.append(sum(len(shard_keys(path)) for path in cache.glob("moments-*.safetensors")))
        encoded = _build(rows, cache, shard_bytes=_KILLED_SHARD)
        names = [key for path in cache.glob("moments-*.safetensors") for key in shard_keys(path)]
        return {
            "rows": num_rows,
            "kills": kills,
            "entries_after_last_kill": reached[-1],
            "entries": len(names),
            "expected": 2 * num_rows,
            "twice": len(names) - len(set(names)),
            "encoded_after_last_kill": encoded,
        }


def measure(sizes: Sequence[int] = SIZES, *, seed: int = 0) -> dict[str, Any]:
    """Costs by size, exponents of their growth, and what a killed build left."""
    points = [_measured(size) for size in sizes]
    numbers = [point["rows"] for point in points]
    grown = {
        "time": [point["build_ms_per_row"] * point["rows"] for point in points],
        "disk": [point["disk_bytes_per_row"] * point["rows"] for point in points],
        "read": [point["read_ms_per_row"] for point in points],
        "peak memory": [point["peak_mib"] for point in points],
    }
    return {
        "points": points,
        "exponents": {name: exponent(numbers, costs) for name, costs in grown.items()},
        "killed": _killed(max(min(sizes[-1] // 10, 10_000), 1000), seed),
        "million": {name: bytes_per_pair(name) for name in FAMILIES},
    }


# ------------------------------------------------------------------------------------------------ page


def _lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in headings[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)]


def block(values: dict[str, Any]) -> str:
    """Three tables in Markdown: a million pairs on paper, the sizes measured, the killed build."""
    paper = []
    for name in FAMILIES:
        size = bytes_per_pair(name)
        total = (size["latents"] + size["text"]) * 10**6
        paper.append(
            [
                name,
                f"{size['latents'] / 1e3:,.0f} kB",
                f"{size['text'] / 1e3:,.0f} kB",
                f"{total / 1e12:.2f} TB",
                f"{total / (256 * 2**20):,.0f}",
                f"{3e6 * (_NAME + _PLACE) / 1e6:.0f} MB",
            ]
        )
    measured = [
        [
            f"{point['rows']:,}",
            f"{point['build_ms_per_row']:.3f} ms",
            f"{point['read_ms_per_row']:.3f} ms",
            f"{point['open_seconds']:.2f} s",
            f"{point['disk_bytes_per_row']:.0f}",
            f"{point['shards']}",
            f"{point['peak_mib']:.0f} MiB",
        ]
        for point in values["points"]
    ]
    grown = values["exponents"]
    measured.append(
        [
            "exponent",
            f"{grown['time']:.2f} (all rows)",
            f"{grown['read']:.2f}",
            "",
            f"{grown['disk']:.2f} (all rows)",
            "",
            f"{grown['peak memory']:.2f}",
        ]
    )
    killed = values["killed"]
    return "\n".join(
        [
            *_lines(
                [
                    "a million pairs, every prompt once",
                    "latents a pair",
                    "text a prompt",
                    "disk",
                    "shards of 256 MiB",
                    "index in memory",
                ],
                paper,
            ),
            "",
            *_lines(
                ["rows", "build, a row", "read, a row", "open", "bytes a row", "shards", "peak memory"],
                measured,
            ),
            "",
            f"Killed {killed['kills']} times at random places while building {killed['rows']:,} rows, and "
            f"ended: {killed['entries']:,} of {killed['expected']:,} entries, {killed['twice']} of them "
            f"twice; {killed['entries_after_last_kill']:,} were safe at the last kill and "
            f"{killed['encoded_after_last_kill']:,} were encoded after it.",
        ]
    )


def _renew(page: Path, values: dict[str, Any]) -> None:
    from mmalign.toy.guide_tables import renew

    renew(page, {"rows_at_scale": block(values)})


def main() -> None:
    """Measure, print, and renew the page's block."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(str(size) for size in SIZES), help="rows, ascending")
    parser.add_argument(
        "--results", type=Path, default=None, help="append the record to this JSON-lines file"
    )
    parser.add_argument("--page", type=Path, default=None, help="renew the block rows_at_scale of this page")
    parser.add_argument("--one", nargs=2, metavar=("ROWS", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--build", nargs=2, metavar=("ROWS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_one_size(int(options.one[0]), Path(options.one[1]))))
        return
    if options.build:
        torch.set_num_threads(1)
        _build(Path(options.build[0]), Path(options.build[1]), pause=0.01, shard_bytes=_KILLED_SHARD)
        return
    values = measure([int(size) for size in options.sizes.split(",")])
    print(block(values))
    if options.results is not None:
        import records

        where = records.machine()
        records.append(options.results, [records.record("rows_at_scale", values, profile="cpu", where=where)])
    if options.page is not None:
        _renew(options.page, values)


if __name__ == "__main__":
    main()

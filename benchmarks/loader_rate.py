"""Rows per second of the loader on one core: JPEG pairs decoded, cropped and flipped."""

import time
from pathlib import Path
from typing import Any

import torch


def _rate(make_rows: Any, num_rows: int) -> float:
    started = time.process_time()
    count = 0
    for micro in make_rows:
        count += len(micro.valid)
        if count >= num_rows:
            break
    return count / (time.process_time() - started)


def measure(folder: Path, sizes: tuple[int, ...] = (512, 1024)) -> dict[str, float]:
    """Rows per second by kind of input."""
    import subprocess
    import sys

    from mmalign.data import DataConfig, RowOrder, open_rows
    from mmalign.train.loader import Layout, StepSampler, make_loader

    rates: dict[str, float] = {}
    for size in sizes:
        path = folder / f"photos_{size}.parquet"
        script = Path(__file__).with_name("make_photo_pairs.py")
        subprocess.run(
            [sys.executable, str(script), "--num", "32", "--size", str(size), "--output", str(path)],
            check=True,
            capture_output=True,
        )
        table = open_rows(DataConfig(source=str(path)))
        order = RowOrder.for_table(table, seed=0)
        loader = make_loader(
            table,
            order,
            _PixelsOnly(size),
            StepSampler(Layout(batch_size=4, accumulation=1), start_step=0, steps=16),
            rows_per_step=4,
            world_size=1,
            num_workers=0,
            pin_memory=False,
        )
        _rate(loader, 8)
        rates[f"JPEG pairs of {size} pixels, decode, crop, flip, per core"] = _rate(loader, 48)
    return rates


class _PixelsOnly:
    """The loader's side of an image model, without any network."""

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def example(self, row: Any, *, key: int) -> dict[str, torch.Tensor]:
        from mmalign.diffusion.images import load_candidates

        loaded = load_candidates(row, resolution=self.resolution, crop="random", flip=True, key=key)
        return {"pixels": loaded.pixels}

    def collate(self, examples: Any) -> dict[str, torch.Tensor]:
        return {"pixels": torch.stack([example["pixels"] for example in examples])}

"""Whether `model.channels_last` is faster on this machine: an SDXL-shaped UNet's step and its VAE, in pairs.

    python benchmarks/channels_last.py                    # the CPU, seconds of the process
    python benchmarks/channels_last.py --device cuda      # a card, by the wall clock
    python benchmarks/channels_last.py --write            # and add to docs/measurements/channels_last.jsonl
    python benchmarks/channels_last.py --page docs/performance.md   # the table of the records, no measuring

Both layouts are loaded beside each other and called in turn: reference, policy, backward pass of two pairs of
the tiny model of SDXL's structure, then the VAE's encoder. A ratio is of one round, with channels last over
without; below 1 is faster. The spread is that of the rounds: what lies within it is noise.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import records
from recomputation import renew
from tiny_models import TINY

from mmalign.likelihood.adapters import adapters_off
from mmalign.testing.families import load, trained_by
from mmalign.train.config import AdapterConfig

__all__ = ["main", "ratios", "table"]

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "measurements" / "channels_last.jsonl"
MARKERS = ("<!-- channels_last:begin -->", "<!-- channels_last:end -->")


def ratios(folder: Path, device: torch.device, *, rounds: int, resolution: int) -> dict[str, list[float]]:
    """Time with channels last over time without, of every round: of a step and of the encoder.

    Args:
        folder: scratch.
        device: where.
        rounds: of pairs, after one that does not count.
        resolution: of pictures, pixels.
    """
    model_folder, _ = TINY["sdxl"].files(folder, 4)
    work: dict[str, list[Callable[[], object]]] = {"step": [], "encoder": []}
    for asked in (False, True):
        sections = {"model": {"channels_last": asked}, "image": {"resolution": resolution}}
        model: Any = load("sdxl", model_folder, **sections)
        model.network.to(device)
        model.vae.to(device)
        trained_by(model, AdapterConfig(rank=8))
        pixels = torch.randn(2, 3, resolution, resolution, device=device)
        work["step"].append(_step(model, device))
        work["encoder"].append(_encoder(model.vae, pixels))
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def seconds(call: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    found: dict[str, list[float]] = {}
    for name, (plain, last) in work.items():
        pairs = [(seconds(plain), seconds(last)) for _ in range(rounds + 1)][1:]
        found[name] = [after / before for before, after in pairs]
    return found


def _step(model: Any, device: torch.device) -> Callable[[], object]:
    noised, timestep, conditioning = model.meta_inputs(4)
    inputs = (
        torch.randn(noised.shape, device=device),
        torch.full(timestep.shape, 500, dtype=timestep.dtype, device=device),
        {name: torch.randn(value.shape, device=device) for name, value in conditioning.items()},
    )

    def step() -> None:
        with torch.no_grad(), adapters_off(model.bare_network):
            reference = model.denoise(*inputs)
        (model.denoise(*inputs) - reference).square().sum().backward()

    return step


def _encoder(vae: Any, pixels: torch.Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def encode() -> object:
        return vae.encode(pixels).latent_dist.mean

    return encode


def table(found: Iterable[Mapping[str, Any]]) -> str:
    """The last record of every kind of device, as Markdown."""
    latest = {each["profile"]: each for each in found}
    lines = [
        "| device | work | time with channels last over without, median | least | most | rounds |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for each in latest.values():
        device = each["machine"]["gpu"] or each["machine"]["cpu"]
        for name, values in each["values"].items():
            cells = (f"{values[key]:.3f}" for key in ("median", "least", "most"))
            lines.append(f"| {device} | {name} | {' | '.join(cells)} | {values['rounds']} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--write", action="store_true", help="add to the records")
    parser.add_argument("--page", type=Path, help="renew its table from the records, and measure nothing")
    options = parser.parse_args()
    if options.page is not None:
        renew(options.page, table(records.read(RECORDS)), MARKERS)
        return
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as scratch:
        found = ratios(Path(scratch), device, rounds=options.rounds, resolution=options.resolution)
    values = {
        name: {"median": statistics.median(each), "least": min(each), "most": max(each), "rounds": len(each)}
        for name, each in found.items()
    }
    for name, each in values.items():
        print(f"{name}: {each['median']:.3f} of the time without ({each['least']:.3f} to {each['most']:.3f})")
    if options.write:
        where = records.machine(options.device)
        records.append(
            RECORDS, [records.record("channels_last", values, profile=options.device, where=where)]
        )


if __name__ == "__main__":
    main()

"""What processes send each other in one optimiser step: counted on tiny models, and at 8 x 8 calculated.

    python benchmarks/scale.py --page docs/scale.md

Two tables. The first is counted: real runs of tiny models on 2 and 4 processes of this machine, over gloo;
the profiler sees every collective of the process group with the sizes of its tensors, in a step that writes
no record. The second is calculated: networks of published sizes, made without weights, cut into the same
units, gathered and reduced as often as was counted, over links whose speeds are stated. No time here was
measured.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from mmalign.files import atomic_write
from mmalign.testing.processes import launch_variables, on_processes
from mmalign.train.launch import LAUNCHES
from mmalign.train.planning.communication import LINKS, Link, Passes, Sizes, traffic_of

__all__ = ["Counts", "count_step", "extrapolated", "table", "times_gathered"]

MARKERS = ("<!-- scale:begin -->", "<!-- scale:end -->")
STAGES = tuple(name for name in LAUNCHES if name.startswith("zero"))
MODES = tuple(name for name in LAUNCHES if name not in ("single", *STAGES))
GPUS_PER_MACHINE = 8


# --- counted ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What one process hands to the group in one optimiser step; elements, of 4 bytes in these runs.

    Args:
        gathers: calls of all-gather.
        gathered: elements of their results.
        scatters: calls of reduce-scatter.
        scattered: elements of their inputs.
        reduces: calls of all-reduce.
        reduced: elements of their tensors.
        units: elements of the policy's units (weights gathered one block at a time).
        root: elements of the rest.
        trained: elements that train.
        num_units: units.
    """

    gathers: int = 0
    gathered: int = 0
    scatters: int = 0
    scattered: int = 0
    reduces: int = 0
    reduced: int = 0
    units: int = 0
    root: int = 0
    trained: int = 0
    num_units: int = 0


_KINDS = {
    "c10d::_allgather_base_": ("gathers", "gathered", 1),
    "c10d::_reduce_scatter_base_": ("scatters", "scattered", 1),
}


def collectives(events: Iterable[Any], processes: int) -> dict[str, int]:
    """Calls and elements by kind, from a profiler's events in their order.

    An all-reduce names its tensor in gloo's event only; gloo's reduce-scatter is made of one, which does not
    count again.
    """
    found = dict.fromkeys((field.name for field in fields(Counts)), 0)
    current = ""
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.name.startswith("c10d::"):
            current = event.name
        if event.name in _KINDS:
            calls, elements, place = _KINDS[event.name]
            found[calls] += 1
            shape = event.input_shapes[place]
            # What goes into an all-gather is this process's part.
            found[elements] += torch.Size(shape).numel() * (processes if calls == "gathers" else 1)
        elif event.name == "gloo:all_reduce" and current == "c10d::allreduce_":
            found["reduces"] += 1
            found["reduced"] += torch.Size(event.input_shapes[0]).numel()
    return found


def count_step(config: str, target: str) -> None:
    """Train three steps; process 0 writes what the third one sent. Runs in every process."""
    from torch.profiler import ProfilerActivity, profile

    from mmalign.train.config import load_run
    from mmalign.train.run import prepare

    loop, loader = prepare(load_run(config))
    batches = loop._batches(iter(loader))
    for _ in range(2):  # DDP settles its buckets in the first two
        loop._update(batches, is_record=False)
        loop.progress.step += 1
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        loop._update(batches, is_record=False)
    loop.tracking.close()
    if torch.distributed.get_rank() == 0:
        sizes = _sizes(loop.trainables.network)
        found = collectives(seen.events(), torch.distributed.get_world_size())
        found |= sizes | {"trained": loop.trainables.count}
        Path(target).write_text(json.dumps(found))


def _sizes(network: torch.nn.Module) -> dict[str, int]:
    """Elements of units and of the rest, as `shard` cuts the network; those held whole are in neither."""
    from torch.distributed.fsdp import FSDPModule

    from mmalign.sharded import is_sharded, num_elements
    from mmalign.train.distributed.sharding import units_of

    any_sharded = any(is_sharded(value) for value in network.parameters())
    held = [value for value in network.parameters() if is_sharded(value) or not any_sharded]
    # What was cut has other class names than what a model lists.
    cut = [module for module in network.modules() if isinstance(module, FSDPModule) and module is not network]
    units = cut or units_of(network)
    inside = {value for unit in units for value in unit.parameters()}
    total = sum(num_elements(value) for value in held)
    in_units = sum(num_elements(value) for value in held if value in inside)
    return {"units": in_units, "root": total - in_units, "num_units": len(units)}


def _config(folder: Path, model: str, adapter: str, accumulation: int) -> Path:
    from mmalign.testing.tiny import RESOLUTION, write_tiny_sd15
    from mmalign.testing.tiny_vlm import tiny_vlm

    source = folder / model
    if not source.exists():
        write_tiny_sd15(source) if model == "sd15" else tiny_vlm(model, source)
    content: dict[str, Any] = {
        "model": {"family": model, "source": str(source)},
        "adapter": {"kind": "lora", "rank": 4} if adapter == "lora" else {"kind": "none"},
        "train": {
            "output": tempfile.mkdtemp(dir=folder),
            "steps": 4,
            "batch_size": 1,
            "accumulation": accumulation,
            "learning_rate": 1e-4,
            "warmup_steps": 0,
            "num_workers": 0,
            "device": "cpu",
        },
        "log": {"every": 100, "trackers": []},
        "data": {"source": str(_pairs(folder, model))},
    }
    if model == "sd15":
        content |= {"method": "diffusion_dpo", "image": {"resolution": RESOLUTION}}
    else:
        content |= {"method": "dpo"}
    path = folder / f"{model}-{adapter}-{accumulation}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _pairs(folder: Path, model: str) -> Path:
    """A handful of pairs: their content does not matter here."""
    from PIL import Image

    path = folder / ("pairs.jsonl" if model == "sd15" else "answers.jsonl")
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 90, 30)).save(folder / f"{number}.png")
    lines = []
    for number in range(24):
        own, other = f"{number % 4}.png", f"{(number + 1) % 4}.png"
        row: dict[str, Any] = {"prompt": f"number {number}"}
        if model == "sd15":
            row |= {"chosen": own, "rejected": other}
        else:
            row |= {"images": [own], "chosen": "Yes, it is red.", "rejected": "No, there is nothing."}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


Row = tuple[str, str, str, int, int]
"""Model, what trains, launch, processes, micro-steps."""

CASES: tuple[Row, ...] = (
    *(("sd15", "lora", mode, count, 1) for count in (2, 4) for mode in MODES),
    *(("sd15", "none", mode, 2, 1) for mode in MODES),
    *(("sd15", adapter, "fsdp2", 2, 2) for adapter in ("lora", "none")),
    *(("llava", "lora", mode, 2, 1) for mode in MODES),
    *(("sd15", adapter, mode, 2, 1) for adapter in ("lora", "none") for mode in STAGES),
)


def counted(known: Path | None = None) -> dict[Row, Counts]:
    """What every case sends.

    Args:
        known: a file of counts, which are not counted again; each new one is added at once.
    """
    rows: dict[Row, Counts] = {}
    if known is not None and known.exists():
        stored = json.loads(known.read_text(encoding="utf-8"))
        rows = {(case[0], case[1], case[2], case[3], case[4]): Counts(**found) for *case, found in stored}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in CASES:
            if case in rows:
                continue
            rows[case] = _one(folder, *case)
            if known is not None:
                listed = [[*key, asdict(found)] for key, found in rows.items()]
                atomic_write(known, json.dumps(listed, indent=1) + "\n")
    return {case: rows[case] for case in CASES}


def _one(folder: Path, model: str, adapter: str, mode: str, processes: int, micro_steps: int) -> Counts:
    config = _config(folder, model, adapter, micro_steps)
    target = folder / "counts.json"
    settings = {"environment": launch_variables(mode), "timeout": 600.0}
    on_processes(processes, count_step, str(config), str(target), **settings)
    return Counts(**json.loads(target.read_text()))


def times_gathered(counts: Counts, micro_steps: int = 1) -> float:
    """How often every unit is gathered in a step, the root being gathered once per micro-step."""
    return 0.0 if counts.gathers == 0 else (counts.gathered - micro_steps * counts.root) / counts.units


# --- calculated ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A network of published size.

    Args:
        name: for the table.
        units: elements in units, frozen ones.
        root: elements of the rest, frozen ones.
        adapter: elements of LoRA of rank 16 on q, k, v and out.
        num_units: units.
    """

    name: str
    units: int
    root: int
    adapter: int
    num_units: int


_SIZES = {
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
    "SD 3.5 medium": "stabilityai/stable-diffusion-3.5-medium",
    "FLUX.1": "black-forest-labs/FLUX.1-dev",
    "Wan 2.1 14B": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
}


def shapes() -> list[Shape]:
    """Published networks on the meta device, cut into units."""
    import diffusers
    from peft import LoraConfig, inject_adapter_in_model

    from mmalign.train.distributed.sharding import units_of
    from mmalign.train.planning.published import published

    found = []
    for name, source in _SIZES.items():
        pipeline = published(source)
        if pipeline is None:
            continue
        part = next(part for part in ("unet", "transformer") if part in pipeline.parts)
        _, class_name, settings = pipeline.parts[part]
        with torch.device("meta"):
            network = getattr(diffusers, class_name)(**settings).requires_grad_(False)
            units = units_of(network)
            inside = {value for unit in units for value in unit.parameters()}
            in_units = sum(value.numel() for value in inside)
            total = sum(value.numel() for value in network.parameters())
            lora = LoraConfig(r=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
            inject_adapter_in_model(lora, network)
        adapter = sum(value.numel() for value in network.parameters() if value.requires_grad)
        found.append(Shape(name, in_units, total - in_units, adapter, len(units)))
    return found


def extrapolated(
    shape: Shape, adapter: str, mode: str, gathered: float, link: Link, machines: int
) -> tuple[float, float]:
    """(bytes that reach or leave a GPU per step, seconds) of a network of published size.

    Args:
        shape: of the network.
        adapter: "lora" or "none". Weights are gathered in bfloat16, the adapter in float32.
        mode: of the launch.
        gathered: times that a unit is gathered, as counted.
        link: speeds.
        machines: of 8 GPUs.
    """
    trained = 4 * (shape.adapter if adapter == "lora" else shape.units + shape.root)
    sizes = Sizes(
        units=2 * shape.units + (trained if adapter == "lora" else 0),
        root=2 * shape.root,
        trained=trained,
        num_units=shape.num_units,
    )
    sent, gpus = traffic_of(sizes, mode, Passes(float(gathered))), machines * GPUS_PER_MACHINE
    return sent.per_gpu(gpus), sent.seconds(link, gpus, per_machine=GPUS_PER_MACHINE)


# --- the page -----------------------------------------------------------------------------------------------


def table(rows: Mapping[Row, Counts], sizes: list[Shape]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| tiny model | trains | launch | processes | micro-steps | all-gather | of it, times a unit "
        "| reduce-scatter | all-reduce | times what trains |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    times: dict[tuple[str, str], float] = {}
    for (model, adapter, mode, count, accumulation), found in rows.items():
        often = times_gathered(found, accumulation)
        if accumulation == 1 and model == "sd15" and mode in MODES:
            times[adapter, mode] = round(often)
        reduced = (found.scattered + found.reduced) / found.trained
        lines.append(
            f"| {model} | {_TRAINS[adapter]} | {mode} | {count} | {accumulation} "
            f"| {_calls(found.gathers, found.gathered)} | {'-' if mode in STAGES else f'{often:.2f}'} "
            f"| {_calls(found.scatters, found.scattered)} | {_calls(found.reduces, found.reduced)} "
            f"| {reduced:.2f} |"
        )
    head = [f"{link.name}: {place}" for link in LINKS for place in ("1 machine", "8 machines")]
    lines += [
        "",
        f"| network | trains | launch | GB per GPU and step, 64 GPUs | {' | '.join(head)} |",
        f"| --- | --- | --- | ---: |{' ---: |' * len(head)}",
    ]
    for shape in sizes:
        for adapter in ("lora", "none"):
            for mode in MODES:
                often = times[adapter, mode]
                sent, _ = extrapolated(shape, adapter, mode, often, LINKS[0], 8)
                cells = [
                    f"{extrapolated(shape, adapter, mode, often, link, machines)[1] * 1e3:,.0f} ms"
                    for link in LINKS
                    for machines in (1, 8)
                ]
                cells = [f"{sent / 1e9:,.2f}", *cells]
                lines.append(f"| {shape.name} | {_TRAINS[adapter]} | {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


_TRAINS: Mapping[str, str] = {"lora": "LoRA", "none": "everything"}


def _calls(calls: int, elements: int) -> str:
    return "0" if calls == 0 else f"{calls} calls, {elements * 4 / 1e6:.3f} MB"


def write_page(path: Path, text: str) -> None:
    """Put the tables between the page's markers."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    atomic_write(path, f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}")


def main() -> None:
    """Count, calculate, print, and renew the page."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--page", type=Path, help="a page with markers, to be renewed")
    parser.add_argument("--counts", type=Path, help="keep counts in this file, and use those it holds")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    text = table(counted(options.counts), shapes())
    print(text)
    if options.page is not None:
        write_page(options.page, text)


if __name__ == "__main__":
    main()

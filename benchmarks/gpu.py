"""One command for a machine with a GPU: under eight minutes on an H100, no downloads.

    python benchmarks/gpu.py                 everything; a table, and records in benchmarks/results/gpu.jsonl
    python benchmarks/gpu.py --needs         which packages this machine lacks: they travel as wheels
    python benchmarks/gpu.py --dry           the same code on tiny configurations, on the CPU

1. Attention: every kernel that this torch has against float32 mathematics, forward and backward, on shapes of
   SDXL, Wan and LLaVA, with and without a mask.
2. LoRA DPO of networks of published sizes with random weights and cached inputs: SDXL at 1024 pixels (bf16
   and fp16), Tango, Wan 1.3B with checkpointing, a LLaVA of seven billion weights. Pairs per second, peak
   memory, share of the device's peak and of the rate that a large product reaches, blocks compiled or not,
   waits per step. In the same process the unoptimised step (pictures and prompts encoded, a second network,
   host reads), TRL's for LLaVA; gradients are compared first.

What does not fit the minutes given is listed as left out, never guessed.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import records

__all__ = ["attention_errors", "main", "missing_packages", "timed"]

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
"""Dense bf16 products of tensor cores, from the makers' data sheets."""

NEEDED = {
    "diffusers": "diffusers",
    "transformers": "transformers",
    "peft": "peft",
    "accelerate": "accelerate",
    "open_clip": "open_clip_torch",
    "datasets": "datasets",
    "dill": "dill",
    "multiprocess": "multiprocess",
    "ftfy": "ftfy",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "typing_inspection": "typing-inspection",
    "jaxtyping": "jaxtyping",
    "safetensors": "safetensors",
    "pyarrow": "pyarrow",
    "pandas": "pandas",
    "PIL": "pillow",
    "soundfile": "soundfile",
    "av": "av",
    "sentencepiece": "sentencepiece",
    "rich": "rich",
    "yaml": "pyyaml",
    "trl": "trl",
}
"""Module to the distribution that has it; trl alone can be missing: LLaVA then has no peer."""


def missing_packages() -> list[str]:
    """Distributions that this machine lacks."""
    return [package for module, package in NEEDED.items() if find_spec(module) is None]


# --- attention ----------------------------------------------------------------------------------------------

_SHAPES = {
    "sdxl self": (2, 10, 4096, 4096, 64),
    "sdxl text": (2, 20, 1024, 77, 64),
    "wan self": (1, 12, 8190, 8190, 128),
    "llava": (2, 32, 826, 826, 128),
}
_TINY_SHAPES = {"sdxl self": (2, 2, 32, 32, 16), "sdxl text": (2, 2, 16, 7, 16)}


def _kernels() -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Name and function of every way to attend that may run here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attend = torch.nn.functional.scaled_dot_product_attention
    for backend in (
        SDPBackend.MATH,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
    ):

        def call(*given: Tensor, mask: Tensor | None = None, backend: Any = backend) -> Tensor:
            with sdpa_kernel([backend]):
                return attend(*given, attn_mask=mask)

        yield f"sdpa {backend.name.lower()}", call
    if find_spec("xformers") is not None:
        from xformers.ops import memory_efficient_attention

        def efficient(*given: Tensor, mask: Tensor | None = None) -> Tensor:
            moved = [value.transpose(1, 2) for value in given]
            result: Tensor = memory_efficient_attention(*moved, attn_bias=mask)
            return result.transpose(1, 2)

        yield "xformers", efficient


def _with_gradients(call: Callable[..., Tensor], inputs: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    given = [value.detach().clone().requires_grad_() for value in inputs]
    output = call(*given, mask=mask)
    output.float().square().mean().mul(1e3).backward()
    return [output.detach(), *(value.grad for value in given if value.grad is not None)]


def _exact(*given: Tensor, mask: Tensor | None = None) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]):
        return torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=mask)


def attention_errors(device: torch.device, *, dry: bool) -> dict[str, Any]:
    """Of every kernel, shape and mask: |result - float32| / |float32| of output and gradients, the largest.

    A kernel that refuses the inputs is listed with its reason.
    """
    found: dict[str, Any] = {}
    for shape_name, (rows, heads, queries, keys, size) in (_TINY_SHAPES if dry else _SHAPES).items():
        generator = torch.Generator().manual_seed(0)
        wide = [
            torch.randn(rows, heads, length, size, generator=generator).to(device)
            for length in (queries, keys, keys)
        ]
        masks: dict[str, Tensor | None] = {"": None}
        if keys <= 1024:
            masks[", masked"] = (torch.arange(keys, device=device) < keys - 3).expand(rows, 1, queries, keys)
        for mask_name, mask in masks.items():
            inputs = [value.bfloat16() for value in wide]
            exact = _with_gradients(_exact, [value.float() for value in inputs], mask)
            for kernel, call in _kernels():
                key = f"{kernel}, {shape_name}{mask_name}"
                try:
                    got = _with_gradients(call, inputs, mask)
                except (RuntimeError, NotImplementedError, ValueError) as error:
                    found[key] = f"refused: {str(error).splitlines()[0][:80]}"
                    continue
                gaps = [float((a.float() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]
                found[key] = max(gaps)
    return found


# --- steps --------------------------------------------------------------------------------------------------


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device, *, steps: int, warm_up: int) -> dict[str, float]:
    """Seconds per step and peak GiB, after a warm-up; waits are counted in one step more."""
    import warnings

    for _ in range(warm_up):
        call()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    for _ in range(steps):
        call()
    _wait(device)
    result = {"seconds_per_step": (time.perf_counter() - started) / steps}
    if device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            call()
        torch.cuda.set_sync_debug_mode("default")
        result["waits_per_step"] = float(sum("synchronizing CUDA" in str(wait.message) for wait in waits))
    return result


def product_rate(device: torch.device, *, dry: bool) -> float:
    """FLOP per second of a large bf16 product."""
    size = 128 if dry else 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = timed(lambda: left @ right, device, steps=10, warm_up=3)
    return float(2 * size**3 / found["seconds_per_step"])


def _peak_of(device: torch.device) -> float | None:
    """TFLOP/s that the device's data sheet promises; None where we know none."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAK_TFLOPS.items() if key in name), None)


def _empty(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _compile(network: Any) -> None:
    """The repeated blocks alone: seconds to compile instead of minutes."""
    if getattr(network, "_repeated_blocks", None):
        network.compile_repeated_blocks(fullgraph=False)


def _gradient_gap(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    gap = sum(float((second[name] - first[name]).float().square().sum()) for name in first)
    return float((gap / sum(float(value.float().square().sum()) for value in first.values())) ** 0.5)


class Bench:
    """Measures, prints and writes; stops beginning new things when the minutes are over.

    Args:
        device: where.
        dry: tiny configurations.
        output: file of records.
        minutes: allowed in all.
        folder: scratch.
    """

    def __init__(
        self, device: torch.device, *, dry: bool, output: Path, minutes: float, folder: Path
    ) -> None:
        self.device, self.dry, self.output, self.folder = device, dry, output, folder
        self.until = time.monotonic() + 60 * minutes
        self.where = records.machine(str(device))
        self.rate = product_rate(device, dry=dry)
        self.rows: list[dict[str, Any]] = []
        self.compiled: list[tuple[str, int, Any]] = []  # what to time once more with compiled blocks

    def write(self, name: str, values: dict[str, Any]) -> None:
        """A record, at once."""
        profile = "gpu-dry" if self.dry else "gpu"
        records.append(self.output, [records.record(name, values, profile=profile, where=self.where)])
        self.rows.append({"id": name, **values})
        shown = {key: f"{value:.4g}" for key, value in records.flat(values).items()}
        notes = {key: value for key, value in values.items() if isinstance(value, str)}
        print(name, {**shown, **notes}, flush=True)

    def is_late(self, name: str) -> bool:
        """Whether the minutes are over; says so in the records."""
        late = time.monotonic() > self.until
        if late:
            self.write(name, {"left_out": "the minutes given were over"})
        return late

    def step(self, name: str, step: Any, pairs: int, *, compiled: bool = False) -> None:
        """Time one step, and count its arithmetic the first time."""
        if self.is_late(name):
            return
        if compiled:
            _compile(step.network)
        try:
            found: dict[str, Any] = timed(
                step.call, self.device, steps=2 if self.dry else 10, warm_up=2 if self.dry else 4
            )
        except torch.cuda.OutOfMemoryError:
            self.write(name, {"left_out": f"{pairs} pairs a step do not fit into the memory"})
            return
        found["pairs_per_second"] = pairs / found["seconds_per_step"]
        if not compiled:
            from inside_a_step import flops_of

            found["tflop_per_pair"] = flops_of(step.call) / pairs / 1e12
            reached = found["tflop_per_pair"] * 1e12 * found["pairs_per_second"]
            found["of_product_rate"] = reached / self.rate
            if (peak := _peak_of(self.device)) is not None:
                found["mfu"] = reached / (peak * 1e12)
        self.write(name, found)

    def race(self, name: str, steps: Iterator[Any], pairs: int, *, compiled: bool) -> None:
        """Contestants one after the other, their gradients compared with the first one's."""
        from vlm_contestants import gradients_of

        first: dict[str, Tensor] = {}
        for step in steps:
            title = f"{name}, {pairs} pairs, {step.name}"
            if self.is_late(title):
                return
            gradients = gradients_of(step)
            if first and gradients.keys() == first.keys():
                self.write(f"{title}, gradients", {"gradient_difference": _gradient_gap(first, gradients)})
            first = first or gradients
            self.step(title, step, pairs)
            if compiled and step.name == "mmalign":
                self.compiled.append((name, pairs, step))
        first.clear()


def denoisers(bench: Bench, only: list[str]) -> None:
    """Image, sound and clips: ours, the unoptimised step, then ours with compiled blocks."""
    from gpu_subjects import DENOISERS, steps_of

    for name, subject in DENOISERS.items():
        if only and not any(name.startswith(begin) for begin in only):
            continue
        precisions = ("bf16", "fp16") if name.startswith("sdxl") and not bench.dry else ("bf16",)
        for precision in precisions:
            for pairs in subject.pairs[:1] if bench.dry or precision == "fp16" else subject.pairs:
                folder = bench.folder / name.replace(" ", "_")
                made = steps_of(
                    subject, folder, bench.device, pairs=pairs, precision=precision, dry=bench.dry
                )
                bench.compiled = []
                bench.race(
                    f"{name}, {precision}", made, pairs, compiled=precision == "bf16" and not bench.dry
                )
                # Last: compiled blocks stay so, and the other contestant shares the network.
                for title, number, step in bench.compiled:
                    bench.step(f"{title}, {number} pairs, mmalign compiled", step, number, compiled=True)
                bench.compiled = []
                _empty(bench.device)


def language(bench: Bench) -> None:
    """LLaVA: ours and TRL's."""
    from gpu_subjects import language_steps

    for pairs in (1,) if bench.dry else (2, 4):
        made = language_steps(bench.folder / "llava", bench.device, pairs=pairs, dry=bench.dry)
        bench.race("llava 7b", made, pairs, compiled=False)
        _empty(bench.device)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of what was timed."""
    lines = [
        "| step | pairs/s | peak GiB | TFLOP a pair | share of peak | waits a step |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]

    def cell(row: dict[str, Any], key: str, form: str) -> str:
        return format(row[key], form) if key in row else ""

    for row in rows:
        if "left_out" in row:
            lines.append(f"| {row['id']} | {row['left_out']} | | | | |")
        elif "pairs_per_second" in row:
            cells = (
                ("pairs_per_second", ".3g"),
                ("peak_gib", ".1f"),
                ("tflop_per_pair", ".2f"),
                ("mfu", ".1%"),
                ("waits_per_step", ".0f"),
            )
            lines.append(f"| {row['id']} | " + " | ".join(cell(row, *each) for each in cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure all of it; returns the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="tiny configurations on the CPU")
    parser.add_argument("--needs", action="store_true", help="list packages that are missing here, and stop")
    parser.add_argument("--only", nargs="*", default=[], help="attention, sdxl, tango, wan, llava")
    parser.add_argument("--minutes", type=float, default=7.5, help="begin nothing after (default: 7.5)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.jsonl"))
    options = parser.parse_args(arguments)
    missing = missing_packages()
    if options.needs:
        print(" ".join(missing) or "nothing is missing")
        return []
    if [package for package in missing if package != "trl"]:
        sys.exit(f"gpu: this machine lacks {', '.join(missing)}: bring their wheels.")
    if not options.dry and not torch.cuda.is_available():
        sys.exit("gpu: torch sees no CUDA device. --dry runs the same code on the CPU.")
    device = torch.device("cpu" if options.dry else "cuda")
    only = options.only
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            device, dry=options.dry, output=options.output, minutes=options.minutes, folder=Path(folder)
        )
        bench.write("product", {"tflops": bench.rate / 1e12})
        if not only or "attention" in only:
            bench.write("attention", attention_errors(device, dry=options.dry))
        if not only or set(only) & {"sdxl", "tango", "wan"}:
            denoisers(bench, only)
        if not only or "llava" in only:
            language(bench)
    print(f"\n{table(bench.rows)}\n\nadded to {options.output}")
    return bench.rows


if __name__ == "__main__":
    main()

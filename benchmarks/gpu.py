"""One command for a machine with a GPU: under eight minutes on an H100, no downloads.

    python benchmarks/gpu.py                 everything; a table, and records in benchmarks/results/gpu.jsonl
    python benchmarks/gpu.py --needs         which packages this machine lacks: they travel as wheels
    python benchmarks/gpu.py --dry           the same code on tiny configurations, on the CPU
    python benchmarks/gpu.py --rehearse      the steps at true size on tensors without numbers: no GPU needed

1. Attention: the kernels of torch's SDPA, and xformers' where it is installed, against float32 mathematics,
   forward and backward, on shapes of SDXL, Wan and LLaVA, with and without a mask.
2. LoRA DPO of networks of published sizes with random weights and cached inputs: SDXL at 1024 pixels (bf16
   and fp16), Tango, Wan 1.3B with checkpointing, a LLaVA of seven billion weights. Pairs per second, peak
   memory, useful share of the device's peak and of the rate that a large product reaches, blocks compiled
   or not, waits per step. In the same process the unoptimised step (pictures and prompts encoded, a second
   network, host reads), TRL's for LLaVA; gradients are compared first.

What does not fit the memory or the minutes given is listed as left out, never guessed.
"""

import argparse
import gc
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

# The checkout itself too: a borrowed machine has no mmalign installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
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
    "wcwidth": "wcwidth",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "jaxtyping": "jaxtyping",
    "safetensors": "safetensors",
    "pyarrow": "pyarrow",
    "pandas": "pandas",
    "PIL": "pillow",
    "soundfile": "soundfile",
    "_cffi_backend": "cffi",
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
_LARGEST_GAP = 0.05
"""Of bf16 from float32: its products have eight bits, and sums of them a few less."""

_REFUSALS = ("No available kernel", "No viable backend", "No operator found", "execution plans")
"""What torch's SDPA (on CUDA, on a CPU), xformers and cuDNN say to inputs that a kernel is not made for."""

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

    def chosen(*given: Tensor, mask: Tensor | None = None) -> Tensor:
        return attend(*given, attn_mask=mask)

    yield "sdpa, torch's choice", chosen
    if torch.cuda.is_available():  # elsewhere it has no backward pass
        yield "flex", _flex
    if find_spec("xformers") is not None:
        from xformers.ops import memory_efficient_attention

        def efficient(*given: Tensor, mask: Tensor | None = None) -> Tensor:
            moved = [value.transpose(1, 2) for value in given]
            bias = None if mask is None else _added(mask, like=given[0])
            result: Tensor = memory_efficient_attention(*moved, attn_bias=bias)
            return result.transpose(1, 2)

        yield "xformers", efficient


def _flex(*given: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compiled FlexAttention, a mask as blocks."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    blocks = None
    if mask is not None:
        rows, _, queries, keys = mask.shape
        blocks = create_block_mask(
            lambda row, _, query, key: mask[row, 0, query, key], rows, None, queries, keys, device=mask.device
        )
    result: Tensor = torch.compile(flex_attention)(*given, block_mask=blocks)
    return result


def _added(mask: Tensor, *, like: Tensor) -> Tensor:
    """A mask (True: seen) as what xformers adds: for every head, in rows of whole eights, of which a part."""
    rows, _, queries, keys = mask.shape
    added = like.new_zeros(rows, like.shape[1], queries, -(-keys // 8) * 8)[..., :keys]
    return added.masked_fill_(~mask, float("-inf"))


def _with_gradients(call: Callable[..., Tensor], inputs: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    given = [value.detach().clone().requires_grad_() for value in inputs]
    output = call(*given, mask=mask)
    output.float().square().mean().mul(1e3).backward()
    return [output.detach(), *(value.grad for value in given if value.grad is not None)]


def _exact(*given: Tensor, mask: Tensor | None = None) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]):
        return torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=mask)


def _largest_gap(got: list[Tensor], exact: list[Tensor]) -> float | str:
    """Largest |a - b| / |b|; in words where a value is not finite, which `max` would pass over."""
    gaps = [float((a.float() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]
    return max(gaps) if all(math.isfinite(gap) for gap in gaps) else "not finite"


def attention_errors(device: torch.device, *, dry: bool) -> dict[str, Any]:
    """Of every kernel, shape and mask: |result - float32| / |float32| of output and gradients, the largest.

    A kernel that says it does not take the inputs is listed as refusing, with its reason; any other error is
    listed as failed.
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
                if kernel == "flex" and shape_name != "llava":
                    continue  # it serves packed rows, and each shape takes long to compile
                key = f"{kernel}, {shape_name}{mask_name}"
                try:
                    got = _with_gradients(call, inputs, mask)
                except torch.cuda.OutOfMemoryError:
                    found[key] = "left out: does not fit into the memory"
                    continue
                except (RuntimeError, NotImplementedError, ValueError) as error:
                    refuses = any(words in str(error) for words in _REFUSALS)
                    found[key] = f"{'refused' if refuses else 'failed'}: {_first_line(error)}"
                    continue
                found[key] = _largest_gap(got, exact)
    return found


def attention(bench: "Bench") -> None:
    """Write what every kernel's numbers are off by; one that failed or is off by more fails the command."""
    found = attention_errors(bench.device, dry=bench.dry)
    bench.write("attention", found)
    bench.failed += [f"attention ({key}: {value})" for key, value in found.items() if is_wrong(value)]


def is_wrong(value: float | str) -> bool:
    """Whether a kernel neither refused nor gave about the numbers of float32."""
    if isinstance(value, str):
        return not value.startswith(("refused", "left out"))
    return value > _LARGEST_GAP


# --- steps --------------------------------------------------------------------------------------------------


_SECONDS, _WARM_UP_SECONDS = 6.0, 3.0
"""Of a configuration's timed steps, and of its warm-up."""


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device, *, steps: int, warm_up: int) -> dict[str, float]:
    """Seconds per step and peak GiB, after a warm-up; waits are counted in one step more.

    Args:
        call: one step.
        device: where it runs.
        steps: at most this many; fewer, but two, where six seconds do not suffice.
        warm_up: at most this many before; fewer, but two, where three seconds do not suffice.
    """
    import warnings

    call()  # what is made once
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    once = max(time.perf_counter() - started, 1e-9)
    for _ in range(min(warm_up, int(_WARM_UP_SECONDS / once)) - 2):
        call()
    steps = max(2, min(steps, int(_SECONDS / once)))
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
        try:
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                call()
        finally:
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


def _compile(step: Any, device: torch.device) -> None:
    """What `model.compile: blocks` compiles of a step's network.

    The number of graphs per code is limited for the whole process: those of networks before are forgotten.
    """
    from mmalign.train.compiling import compile_blocks

    torch.compiler.reset()
    compile_blocks(step.model, step.network, device=device)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:160]


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
        self.failed: list[str] = []
        self.useful: dict[tuple[str, int], float] = {}  # FLOPs a pair of a race, by its name and pairs

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

    def fail(self, name: str, error: Exception) -> None:
        """Something raised: written down, so that the rest can go on; `main` exits with 1."""
        traceback.print_exc()
        self.failed.append(name)
        self.write(name, {"error": _first_line(error)})

    def step(self, race: tuple[str, int], title: str, step: Any, *, counts: bool = True) -> None:
        """Time one step.

        Args:
            race: its name and pairs per step. Useful arithmetic is that of the race's first contestant less
                what it does twice; the shares of everyone are of it, so that waste does not count as speed.
            title: in tables.
            step: to time.
            counts: the step's own arithmetic too; compiled blocks cannot be counted.
        """
        found: dict[str, Any] = timed(
            step.call, self.device, steps=2 if self.dry else 10, warm_up=2 if self.dry else 4
        )
        pairs = race[1]
        found["pairs_per_second"] = pairs / found["seconds_per_step"]
        if counts:
            from inside_a_step import flops_of

            done = flops_of(step.call)
            found["tflop_per_pair"] = done / pairs / 1e12
            repeated = step.repeated() if step.repeated is not None else 0
            self.useful.setdefault(race, (done - repeated) / pairs)
        found["useful_tflop_per_pair"] = self.useful[race] / 1e12
        reached = self.useful[race] * found["pairs_per_second"]
        found["of_product_rate"] = reached / self.rate
        if (peak := _peak_of(self.device)) is not None:
            found["mfu"] = reached / (peak * 1e12)
        if step.dropped is not None:
            found["dropped_updates"] = step.dropped()
        self.write(title, found)

    def gradients(self, title: str, first: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        """Write how far a contestant's gradients are from the first one's."""
        if first.keys() == found.keys():
            gap = _gradient_gap(first, found)
            values: dict[str, Any] = {"gradient_difference": gap if math.isfinite(gap) else "not finite"}
        else:
            other = sorted(first.keys() ^ found.keys())
            values = {"left_out": f"not compared: {len(other)} weights are of one alone, such as {other[0]}"}
        self.write(f"{title}, gradients", values)

    def race(self, name: str, steps: Generator[Any, None, None], pairs: int, *, compiled: bool) -> None:
        """Contestants one after the other, their gradients compared with the first one's.

        What does not fit into the memory, wherever that shows, is written as left out.

        Args:
            name: of the subject.
            steps: makes the contestants; nothing is built when the minutes are over.
            pairs: per step.
            compiled: ours once more in the end with compiled blocks, which then stay so.
        """
        titles = [f"{name}, {pairs} pairs"]
        if self.is_late(titles[0]):
            return
        try:
            self._race((name, pairs), steps, titles, compiled=compiled)
        except torch.cuda.OutOfMemoryError:
            self.write(titles[-1], {"left_out": "does not fit into the memory"})
        except Exception as error:  # other subjects' minutes hang on it
            self.fail(titles[-1], error)
        finally:
            steps.close()  # it holds what it has built
        _empty(self.device)

    def _race(
        self, race: tuple[str, int], steps: Iterator[Any], titles: list[str], *, compiled: bool
    ) -> None:
        from vlm_contestants import gradients_of

        first: dict[str, Tensor] = {}
        kept: list[Any] = []
        begin = titles[0]
        titles.append(f"{begin}, mmalign")
        # Not a `for`: its variable would hold the step before while the next one is built.
        while (step := next(steps, None)) is not None:
            titles.append(f"{begin}, {step.name}")
            if self.is_late(titles[-1]):
                return
            gradients = gradients_of(step)
            if first:
                self.gradients(titles[-1], first, gradients)
            first = first or gradients
            self.step(race, titles[-1], step)
            if compiled and step.name == "mmalign":
                kept.append(step)
            del step
            titles.append(f"{begin}, peer")
            _empty(self.device)
        # Last: compiled blocks stay so, and the other contestant shares the network.
        title = f"{begin}, mmalign compiled"
        if kept and not self.is_late(title):
            titles.append(title)
            _compile(kept[0], self.device)
            self.gradients(title, first, gradients_of(kept[0]))
            self.step(race, title, kept[0], counts=False)


def denoisers(bench: Bench, name: str) -> None:
    """A picture, sound or clip model: ours, the unoptimised step, then ours with compiled blocks."""
    from gpu_subjects import DENOISERS, steps_of

    subject = DENOISERS[name]
    folder = bench.folder / name.replace(" ", "_")
    for precision in ("bf16", "fp16") if name.startswith("sdxl") and not bench.dry else ("bf16",):
        for pairs in subject.pairs[:1] if bench.dry or precision == "fp16" else subject.pairs:
            made = steps_of(subject, folder, bench.device, pairs=pairs, precision=precision, dry=bench.dry)
            compiled = precision == "bf16" and not bench.dry
            bench.race(f"{name}, {precision}", made, pairs, compiled=compiled)


def language(bench: Bench) -> None:
    """LLaVA: ours and TRL's."""
    from gpu_subjects import language_steps

    for pairs in (1,) if bench.dry else (2, 4):
        made = language_steps(bench.folder / "llava", bench.device, pairs=pairs, dry=bench.dry)
        bench.race("llava 7b", made, pairs, compiled=False)


PARTS: dict[str, Callable[[Bench], None]] = {
    "attention": attention,
    "sdxl": lambda bench: denoisers(bench, "sdxl 1024"),
    "tango": lambda bench: denoisers(bench, "tango 10 s"),
    "llava": language,
    "wan": lambda bench: denoisers(bench, "wan 1.3b 81 frames"),
}
"""What can be chosen, in its order: the longest step last."""


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of what was timed."""
    lines = [
        "| step | pairs/s | peak GiB | TFLOP a pair | useful share of peak | waits a step |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]

    def cell(row: dict[str, Any], key: str, form: str) -> str:
        return format(row[key], form) if key in row else ""

    for row in rows:
        if "left_out" in row or "error" in row:
            lines.append(f"| {row['id']} | {row.get('left_out') or row['error']} | | | | |")
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
    parser.add_argument(
        "--rehearse", action="store_true", help="true sizes on a CUDA device that is not there; no timings"
    )
    parser.add_argument("--needs", action="store_true", help="list packages that are missing here, and stop")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS), help="some of it")
    parser.add_argument("--minutes", type=float, default=7.5, help="begin nothing after (default: 7.5)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.jsonl"))
    options = parser.parse_args(arguments)
    missing = missing_packages()
    if options.needs:
        print(" ".join(missing) or "nothing is missing")
        return []
    if [package for package in missing if package != "trl"]:
        sys.exit(f"gpu: this machine lacks {', '.join(missing)}: bring their wheels.")
    if options.rehearse:
        from gpu_rehearsal import rehearse

        with tempfile.TemporaryDirectory() as folder:
            if failed := rehearse(options.only, Path(folder)):
                sys.exit(f"gpu: {', '.join(failed)} failed, see above.")
        return []
    if not options.dry and not torch.cuda.is_available():
        sys.exit("gpu: torch sees no CUDA device. --dry and --rehearse run here.")
    device = torch.device("cpu" if options.dry else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            device, dry=options.dry, output=options.output, minutes=options.minutes, folder=Path(folder)
        )
        bench.write("product", {"tflops": bench.rate / 1e12})
        for name, measure in PARTS.items():
            if name not in options.only or bench.is_late(name):
                continue
            try:
                measure(bench)
            except Exception as error:  # the other parts' minutes hang on it
                bench.fail(name, error)
    print(f"\n{table(bench.rows)}\n\nadded to {options.output}")
    if bench.failed:
        sys.exit(f"gpu: {', '.join(bench.failed)} failed, see above.")
    return bench.rows


if __name__ == "__main__":
    main()

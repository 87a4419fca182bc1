"""What splitting the backward pass saves: bytes that autograd holds at once, and what it costs in time.

    python benchmarks/split_backward.py --page docs/split-backward.md

Two tables. The first is measured: one step of real runs on tiny models, on this machine's CPU; bytes are
those of tensors saved for the backward pass, at the moment when they are most, weights left out; time is the
median of `--rounds` steps. The second is counted at full size without computing anything: activations of one
and of both sides of a pair in networks of published sizes, with LoRA on the attention, with and without
checkpointing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.batch import Batch, Labels, RowKeys
from mmalign.files import atomic_write
from mmalign.train.config import resolve
from mmalign.train.plan import saved_activation_bytes

__all__ = ["SavedBytes", "counted", "measured", "peak_of_saved", "step_of", "table"]

MARKERS = ("<!-- split_backward:begin -->", "<!-- split_backward:end -->")
PAIRS = 2
GIB = 2**30


# --- measured -----------------------------------------------------------------------------------------------


class SavedBytes:
    """Bytes of storages that autograd keeps alive, now and at most."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._ignored = {weight.untyped_storage().data_ptr() for weight in weights}
        self._held: dict[int, int] = {}
        self.now = self.most = 0

    def keep(self, tensor: Tensor) -> "_Kept":
        """Called where autograd saves a tensor."""
        return _Kept(self, tensor)

    def add(self, place: int, size: int) -> None:
        """A storage is saved once more."""
        if place in self._ignored:
            return
        self._held[place] = self._held.get(place, 0) + 1
        if self._held[place] == 1:
            self.now += size
            self.most = max(self.most, self.now)

    def drop(self, place: int, size: int) -> None:
        """A storage is saved once less."""
        if place in self._ignored:
            return
        self._held[place] -= 1
        if not self._held[place]:
            del self._held[place]
            self.now -= size


class _Kept:
    """A saved tensor; what autograd forgets, Python collects."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self._counter = tensor, counter
        self._place, self._size = storage.data_ptr(), storage.nbytes()
        counter.add(self._place, self._size)

    def __del__(self) -> None:
        self._counter.drop(self._place, self._size)


@contextmanager
def peak_of_saved(weights: Iterable[Tensor]) -> Iterator[SavedBytes]:
    """Count inside the context."""
    counter = SavedBytes(weights)
    with torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda kept: kept.tensor):
        yield counter


def step_of(
    family: str, media: Mapping[str, Any], source: Path, folder: Path, **train: Any
) -> tuple[Callable[[], None], list[Tensor]]:
    """A function that makes one micro-step's gradients, and the network's weights."""
    from mmalign.train.parts import attach_and_refer, load_model, make_accelerator
    from mmalign.train.step import preference_step

    run = resolve(
        {
            "method": "diffusion_dpo",
            "model": {"family": family, "source": str(source)},
            **media,
            "data": {"source": "none.jsonl"},
            "objective": {"beta": 1000.0},
            "adapter": {"rank": 4, "alpha": 4},
            "train": {
                "output": str(folder),
                "steps": 1,
                "learning_rate": 1e-4,
                "warmup_steps": 0,
                "batch_size": PAIRS,
                "device": "cpu",
                "optimizer": "adamw",
                **train,
            },
            "log": {"trackers": []},
        }
    )
    model: Any = load_model(run, torch.device("cpu"))
    nothing: Any = None  # a table of rows is read for stored references alone
    trainables, parts = attach_and_refer(run, "adapters_off", make_accelerator(run), model, table=nothing)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        clean=torch.randn(PAIRS, 2, *model.latent_shape, generator=generator),
        conditioning=model.prompt_conditioning(["a red square", "a blue disc"]),
        labels=Labels.pairs(PAIRS),
        weight=torch.ones(PAIRS),
        valid=torch.ones(PAIRS, dtype=torch.bool),
        keys=RowKeys(torch.arange(PAIRS), torch.zeros(PAIRS), PAIRS),
    )

    def step() -> None:
        preference_step(parts, batch).backward()
        for parameter in trainables.parameters.values():
            parameter.grad = None

    return step, list(trainables.network.parameters())


def measured(rounds: int) -> list[tuple[str, str, float, float, float]]:
    """(medium, way, MiB at most, share of the whole, time over the whole's) of every model and way."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for medium, (family, media, write) in _tiny_models().items():
            source = write(folder / family)
            whole: tuple[float, float] | None = None
            for way, train in _WAYS.items():
                step, weights = step_of(family, media, source, folder / "run", **train)
                with peak_of_saved(weights) as counter:
                    step()
                seconds = statistics.median(_seconds(step) for _ in range(rounds))
                whole = whole or (counter.most, seconds)
                found = (counter.most / 2**20, counter.most / whole[0], seconds / whole[1])
                rows.append((f"{medium} ({family})", way, *found))
    return rows


_WAYS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "split": {"split_backward": True},
    "split, one candidate at a time": {"split_backward": True, "split_size": 1},
}


def _tiny_models() -> dict[str, tuple[str, dict[str, Any], Callable[[Path], Path]]]:
    from mmalign.testing.tiny import RESOLUTION, write_tiny_sd15
    from mmalign.testing.tiny_audio.tangoflux import write_tiny_tangoflux
    from mmalign.testing.tiny_video.wan import write_tiny_wan

    clip = {"num_frames": 9, "height": 32, "width": 48, "fps": 8.0}
    return {
        "image": ("sd15", {"image": {"resolution": RESOLUTION}}, write_tiny_sd15),
        "audio": ("tangoflux", {"audio": {}}, write_tiny_tangoflux),
        "video": ("wan", {"video": clip}, write_tiny_wan),
    }


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


# --- counted ------------------------------------------------------------------------------------------------

_LORA = ("to_q", "to_k", "to_v", "to_out.0")


def counted() -> list[tuple[str, str, float, float]]:
    """(network, checkpointing, GiB of both sides, GiB of one) at full size, LoRA of rank 128, bfloat16."""
    from peft import LoraConfig, inject_adapter_in_model

    rows = []
    for name, make, inputs in _networks():
        for checkpointing in (False, True):
            with torch.device("meta"):
                network = make().to(torch.bfloat16).requires_grad_(False)
                inject_adapter_in_model(LoraConfig(r=128, target_modules=list(_LORA)), network)
            if checkpointing:
                network.enable_gradient_checkpointing()
                network.train()

            def bytes_of(pairs_sides: int, network: nn.Module = network, inputs: Any = inputs) -> float:
                given = inputs(pairs_sides)
                return saved_activation_bytes(network, lambda net: net(**given, return_dict=False)[0]) / GIB

            rows.append((name, "yes" if checkpointing else "no", bytes_of(2), bytes_of(1)))
    return rows


def _networks() -> Iterator[tuple[str, Callable[[], nn.Module], Callable[[int], dict[str, Tensor]]]]:
    from diffusers import WanTransformer3DModel

    def wan_inputs(frames: int, height: int, width: int) -> Callable[[int], dict[str, Tensor]]:
        def make(rows: int) -> dict[str, Tensor]:
            options: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
            shape = (rows, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
            return {
                "hidden_states": torch.empty(shape, **options),
                "timestep": torch.empty(rows, device="meta"),
                "encoder_hidden_states": torch.empty(rows, 512, 4096, **options),
            }

        return make

    def small() -> nn.Module:
        return WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)

    yield "Wan 1.3B, 81 frames 480x832", small, wan_inputs(81, 480, 832)
    yield "Wan 14B, 81 frames 480x832", WanTransformer3DModel, wan_inputs(81, 480, 832)


# --- the page -----------------------------------------------------------------------------------------------


def table(
    measured_rows: Iterable[tuple[str, str, float, float, float]],
    counted_rows: Iterable[tuple[str, str, float, float]],
) -> str:
    """Both tables as Markdown."""
    lines = [
        "| tiny model | backward pass | saved at once, MiB | of one pass | time, of one pass |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {model} | {way} | {size:.2f} | {share:.2f} | {cost:.2f} |"
        for model, way, size, share, cost in measured_rows
    ]
    lines += [
        "",
        "| network | checkpointing | both sides of a pair, GiB | one side, GiB |",
        "| --- | --- | ---: | ---: |",
    ]
    lines += [f"| {name} | {how} | {both:.1f} | {one:.1f} |" for name, how, both, one in counted_rows]
    return "\n".join(lines)


def write_page(path: Path, text: str) -> None:
    """Put the tables between the page's markers."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    atomic_write(path, f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}")


def main() -> None:
    """Measure, count, print, and renew the page."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps (default: 7)")
    parser.add_argument("--page", type=Path, help="a page with markers, to be renewed")
    options = parser.parse_args()
    text = table(measured(options.rounds), counted())
    print(text)
    if options.page is not None:
        write_page(options.page, text)


if __name__ == "__main__":
    main()

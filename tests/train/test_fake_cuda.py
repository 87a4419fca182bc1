"""Runs on a CUDA device that is not there: tensors meet on one device, and no update waits for it."""

import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from mmalign.cli.encoding import encode_run
from mmalign.testing.fake_cuda import FakeDevice, fake_cuda
from mmalign.testing.python_backward import python_backward
from mmalign.testing.rehearsal import Rehearsal, rehearse
from mmalign.train.config import ResolvedRun

pytestmark = pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.15", reason="fake tensors of older torch ask the driver"
)

# ------------------------------------------------------------------------------------------------ the device


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    with fake_cuda() as made:
        yield made


@pytest.mark.usefixtures("device")
class TestWhatRaises:
    def test_products_of_two_devices(self) -> None:
        with pytest.raises(RuntimeError, match="same device"):
            torch.zeros(2, 3, device="cuda") @ torch.zeros(3, 2)

    def test_generators_of_another_device(self) -> None:
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        assert torch.randn(3, device="cuda", generator=torch.Generator(device="cuda")).is_cuda

    def test_attention_of_two_dtypes(self) -> None:
        query = torch.zeros(1, 2, 5, 16, device="cuda", dtype=torch.bfloat16)
        with pytest.raises(RuntimeError, match="float32"):
            torch.nn.functional.scaled_dot_product_attention(query, query, query.float())

    def test_indices_that_lie_on_the_device(self) -> None:
        with pytest.raises(RuntimeError, match="its indices"):
            torch.zeros(4)[torch.zeros(2, dtype=torch.long, device="cuda")]


class TestWhatIsSeen:
    def test_the_cpu_has_its_numbers(self, device: FakeDevice) -> None:
        assert torch.arange(5).sum().item() == 10
        assert (device.waits, device.live) == ([], 0)

    def test_reads_copies_and_sizes_that_depend_on_values(self, device: FakeDevice) -> None:
        held = torch.zeros(7).to("cuda")
        float(held.sum())
        held.cpu()
        held.tolist()
        held.nonzero()
        torch.zeros(7).copy_(held)
        found = [wait.what for wait in device.waits]
        assert found[:3] == ["copy that waits", "item", "copy to the host"]
        assert {"nonzero"} < set(found)
        assert found[-1] == "copy to the host"

    def test_what_does_not_wait(self, device: FakeDevice) -> None:
        held = torch.ones(7).to("cuda", non_blocking=True)
        torch.full((), 2.0, device="cuda")
        torch.where(held > 2, held, 0.0).sum()
        assert device.waits == []

    def test_bytes_that_live_there_and_their_highest(self, device: FakeDevice) -> None:
        held = torch.zeros(1000, device="cuda")
        view = held[3:]
        other = held + 1
        assert (device.live, device.peak) == (8000, 8000)
        del other, held
        assert (device.live, device.peak) == (4000, 8000)
        del view
        assert device.live == 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("masked", [False, True])
    def test_attention_holds_no_scores(self, device: FakeDevice, dtype: torch.dtype, masked: bool) -> None:
        query = torch.zeros(1, 2, 512, 64, device="cuda", dtype=dtype, requires_grad=True)
        mask = torch.ones(1, 1, 512, 512, device="cuda", dtype=torch.bool) if masked else None
        result = torch.nn.functional.scaled_dot_product_attention(query, query, query, mask)
        assert result.shape == query.shape
        result.sum().backward()
        assert query.grad is not None
        assert query.grad.device == torch.device("cuda", 0)
        assert masked or device.peak < 2 * 512 * 512 * dtype.itemsize * 2


# -------------------------------------------------------------------------------------------- backward passes


class _Product(torch.autograd.Function):
    """A product times a number: an argument that is no tensor comes first."""

    @staticmethod
    def forward(ctx: Any, factor: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(first, second)
        ctx.factor = factor
        return first * second * factor

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        first, second = ctx.saved_tensors
        return None, gradients[0] * second * ctx.factor, gradients[0] * first * ctx.factor


def test_backward_in_python_is_that_of_torch(generator: torch.Generator) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3)).double()
    inputs = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    unused = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    weights = [inputs, *layers.parameters()]

    def loss() -> torch.Tensor:
        plain = layers(inputs)
        first, second = (plain * checkpoint(layers, inputs * 2, use_reentrant=False)).split(2)
        joined = _Product.apply(2.0, first, second).softmax(-1)
        return (joined[:, 0] * plain.detach()[:2].sum(-1)).sum() + plain[0].prod()

    def gradients() -> list[torch.Tensor | None]:
        for weight in weights:
            weight.grad = None
        loss().backward()
        kept = [None if weight.grad is None else weight.grad.clone() for weight in weights]
        inputs.grad = None
        total = loss()
        along = torch.autograd.grad(total, [inputs, unused], allow_unused=True, create_graph=True)
        assert along[0] is not None
        along[0].square().sum().backward()
        assert inputs.grad is not None
        return [*kept, *along, inputs.grad.clone()]

    expected = gradients()
    with python_backward():
        found = gradients()
        total = loss()
        total.backward()
        with pytest.raises(RuntimeError, match="second time"):
            total.backward()
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(loss(), unused)
    assert expected[-2] is found[-2] is None
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# ------------------------------------------------------------------------------------------------- whole runs

CUDA = {"device": "auto", "mixed_precision": "bf16"}
WAITS = {"fp16": {"train/optim.py:apply"}, "offloaded": {"likelihood/reference.py:evaluate"}}
"""By design: the scaler looks whether gradients overflowed; a reference comes from the host every time."""

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "fp16": {"train": {"mixed_precision": "fp16"}},
    "float32": {"train": {"mixed_precision": "no"}},
    "accumulated": {"train": {"accumulation": 2, "ema_decay": 0.9}, "adapter": {"dropout": 0.1}},
    "all weights": {"adapter": {"kind": "none"}, "reference": {"kind": "frozen"}},
    "offloaded": {"adapter": {"kind": "none"}, "reference": {"kind": "frozen", "offload": True}},
    "recomputed": {"model": {"gradient_checkpointing": True}},
    "recomputed selectively": {"model": {"gradient_checkpointing": "selective"}},
    "split": {"train": {"split_backward": True}, "adapter": {"dropout": 0.1}},
    "several draws": {"likelihood": {"draws": 2, "antithetic": True}},
    "stored": {"reference": {"kind": "stored", "draws_per_row": 2}},
    "synced": {"method": "diffusion_dpo", "reference": {"kind": "synced", "sync_every": 1, "mixing": 0.5}},
    "fp8": {"model": {"quantization": "fp8"}},
    "mapo": {"method": "mapo"},
    "inpo": {"method": "inpo"},
}


def _in_a_child(check: Callable[[], None]) -> None:
    """In a process of its own: libraries that have seen the device remember it, and load models wrongly."""
    child = os.fork()
    if child == 0:
        try:
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "see what the child printed"


def _rehearsed(run: ResolvedRun) -> Rehearsal:
    with fake_cuda() as device:
        return rehearse(run, device)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_no_update_waits_for_the_device(make_run: Callable[..., ResolvedRun], name: str) -> None:
    sections = SETTINGS[name]

    def check() -> None:
        found = _rehearsed(make_run(**{**sections, "train": {**CUDA, **sections.get("train", {})}}))
        assert {wait.where for wait in found.waits} <= WAITS.get(name, set()), found.waits
        assert {value.device.type for value in found.loop.trainables.parameters.values()} == {"cuda"}
        assert found.peak_bytes > 0

    _in_a_child(check)


@pytest.mark.slow
def test_cached_latents_reach_the_device(
    make_run: Callable[..., ResolvedRun], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    def check() -> None:
        with fake_cuda() as device:
            # Its weights identify the VAE: a cache of real ones would be another's.
            encode_run(write_config("cache", train=CUDA), output=str(tmp_path / "latents"), dtype="float32")
            found = rehearse(make_run(train=CUDA, image={"cache": str(tmp_path / "latents")}), device)
        assert found.waits == ()

    _in_a_child(check)


EVERY_FAMILY = ["gemma3", "internvl", "llava", "llava_next", "llava_next_video"]
EVERY_FAMILY += [
    "llava_onevision",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
    "video_llava",
]
TOWERS = {
    "vlm/traits.py:features",
    "vlm/families/_qwen.py:features",
    "vlm/families/llava_onevision.py:features",
}
"""Where transformers' own code of some towers reads the sizes of pictures, once per batch of media."""
DEEP = {"vlm/network.py:_laid_out", "train/loop.py:<lambda>"}
"""Where Qwen 3's decoder picks visual tokens by a mask, layer by layer, and back."""


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_language_models_meet_on_the_device(
    make_dialogue_run: Callable[..., ResolvedRun], family: str
) -> None:
    known = TOWERS | (DEEP if family == "qwen3_vl" else set())

    def check() -> None:
        found = _rehearsed(make_dialogue_run(family=family, train=CUDA))
        assert {wait.where for wait in found.waits} <= (set() if family == "llava" else known), found.waits

    _in_a_child(check)

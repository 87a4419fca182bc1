"""Frozen weights in 4 and 8 bits: their numbers, their gradients, what stays wide, what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmalign.diffusion.export import merged_network
from mmalign.errors import CheckpointError, ConfigError, MissingExtraError
from mmalign.testing.variants import variants
from mmalign.train.adapters import attach
from mmalign.train.config import AdapterConfig
from mmalign.train.narrow_linear import NarrowLinear
from mmalign.train.parts import load_model
from mmalign.train.planning.counting import count
from mmalign.train.planning.devices import DEVICES
from mmalign.train.planning.fitting import fit_run
from mmalign.train.planning.memory import peak_of
from mmalign.train.quantization import is_narrowed, quantize, report_of

A_CARD = DEVICES["h100"]

# Half a step between two numbers of the kind, as a share of the largest weight.
COARSENESS = {"int8": 0.5 / 127, "fp8": 16 / 448}


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer.requires_grad_(False)


def test_weights_that_a_byte_holds_are_exact() -> None:
    assert torch.equal(
        NarrowLinear(linear([[127.0, -64.0, 3.0]]), "int8").widened(), torch.tensor([[127.0, -64, 3]])
    )
    # e4m3 has three bits behind the point: 1.125 is a number of it, the largest is 448
    exact = torch.tensor([[448.0, 1.125, -0.25]])
    assert torch.equal(NarrowLinear(linear(exact.tolist()), "fp8").widened(), exact)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_every_channel_has_its_own_scale_and_zeros_stay_zeros(kind: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator) * torch.tensor([[1.0], [100.0], [1e-4], [0.0], [3.0]])
    layer = nn.Linear(7, 5)
    layer.weight.data = weight
    error = (NarrowLinear(layer, kind).widened() - weight).abs()
    assert bool((error <= 1.001 * COARSENESS[kind] * weight.abs().amax(1, keepdim=True)).all())
    assert float(error[[0, 1, 2, 4]].max()) > 0
    assert torch.equal(error[3], torch.zeros(7))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_gradients_of_inputs_are_those_of_the_widened_weights_and_keep_bytes_alone(kind: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(13, 11)
    narrow = NarrowLinear(layer, kind)
    inputs = torch.randn(3, 2, 13, generator=generator, requires_grad=True)
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = narrow(inputs)
    wide = nn.functional.linear(inputs, narrow.widened(), layer.bias)
    torch.testing.assert_close(result, wide, rtol=1e-6, atol=1e-6)
    slope = torch.randn(result.shape, generator=generator)
    own = torch.autograd.grad(result, inputs, slope)
    torch.testing.assert_close(own, torch.autograd.grad(wide, inputs, slope), rtol=1e-5, atol=1e-6)
    assert {value.dtype for value in kept if value.numel() >= 11 * 13} <= {torch.int8, torch.uint8}


def test_products_are_in_autocasts_precision() -> None:
    narrow, inputs = NarrowLinear(nn.Linear(13, 11), "fp8"), torch.ones(3, 13)
    assert narrow(inputs).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(inputs).dtype == torch.bfloat16


def test_a_pass_without_gradients_does_not_cut_those_of_the_next() -> None:
    pytest.importorskip("bitsandbytes")
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(128, 96)])
    quantize(network.requires_grad_(False).eval(), "nf4", dtype=torch.float32)
    inputs = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = network.blocks[0](inputs)
    policy = network.blocks[0](inputs.requires_grad_())
    assert torch.equal(reference, policy)
    (slope,) = torch.autograd.grad(policy.sum(), inputs)
    assert float(slope.abs().sum()) > 0


# --- which layers, in a run ---------------------------------------------------------------------------------


@pytest.fixture
def loaded(make_run: Callable[..., Any], sdxl_folder: Path) -> Callable[..., Any]:
    """`loaded(kind)`: a tiny SDXL with such frozen weights."""

    def load(kind: str | None) -> Any:
        model = {"family": "sdxl", "source": str(sdxl_folder), "quantization": kind}
        return load_model(make_run(model=model), torch.device("cpu"))

    return load


def test_blocks_are_narrow_and_embeddings_and_norms_are_not(loaded: Callable[..., Any]) -> None:
    network = loaded(None).network
    names = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    narrow = {name for name in names if is_narrowed(network, name, "fp8")}
    wide = {name.split(".")[0] if "time_emb_proj" not in name else "time_emb_proj" for name in names - narrow}
    assert wide == {"time_embedding", "add_embedding", "time_emb_proj"}
    assert {name.rsplit(".", 1)[-1] for name in narrow} >= {
        "to_q",
        "to_k",
        "to_v",
        "proj",
        "proj_in",
        "proj_out",
    }


def test_what_is_reported_is_what_is_found_in_the_network(loaded: Callable[..., Any]) -> None:
    model = loaded("fp8")
    layers = [module for module in model.network.modules() if isinstance(module, NarrowLinear)]
    report = report_of(model.network)
    assert report.layers == {"fp8": len(layers)}
    size = sum(layer.weight.nbytes + layer.scale.nbytes for layer in layers)
    assert (report.narrow_weights, report.narrow_bytes) == (sum(x.weight.numel() for x in layers), size)
    assert str(report) in model.notes


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.quantization: got 'fp8', expected a network with linear layers"
    ):
        quantize(nn.Sequential(nn.Linear(3, 5)), "fp8", dtype=torch.float32)


def test_whole_networks_do_not_train_in_few_bits(make_run: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"quantization fp8 needs adapter\.kind lora"):
        make_run(model={"quantization": "fp8"}, adapter={"kind": "none"})


def test_dora_needs_weights_that_peft_can_read(loaded: Callable[..., Any]) -> None:
    model = loaded("int8")
    with pytest.raises(
        ConfigError, match=r"adapter\.use_dora: got True, expected false over frozen weights in int8"
    ):
        attach(model.network, AdapterConfig(use_dora=True), default_targets=model.adapter_targets, seed=0)


@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_adapters_are_not_merged_into_few_bits(loaded: Callable[..., Any], kind: str) -> None:
    with pytest.raises(CheckpointError, match=rf"weights in {kind}.*mmalign export"):
        merged_network(loaded(kind).network)


def test_nf4_names_its_extra(loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmalign\[8bit\]' \(other kinds: int8, fp8\)"):
        loaded("nf4")
    loaded("fp8")


# --- whole runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", variants(["nf4", "int8", "fp8"], fast=("int8",)))
def test_a_run_starts_at_its_reference_and_leaves_an_adapter_for_wide_weights(
    run_to_end: Callable[..., Any], sd15_folder: Path, kind: str
) -> None:
    from diffusers import StableDiffusionPipeline

    from mmalign.diffusion.export import main
    from mmalign.diffusion.trained import load_trained

    result = run_to_end(model={"quantization": kind}, train={"steps": 2})
    assert result.finished
    assert result.records[0]["loss"] == pytest.approx(0.6931472, abs=1e-7)  # log 2: the logit is 0
    assert result.records[1]["loss"] != result.records[0]["loss"]
    pipeline = StableDiffusionPipeline.from_pretrained(str(sd15_folder), safety_checker=None)
    pipeline.load_lora_weights(str(next(result.folder.rglob("pytorch_lora_weights.safetensors")).parent))
    assert pipeline.get_active_adapters()
    assert report_of(load_trained(result.folder).model.network).layers
    assert not report_of(load_trained(result.folder, quantised=False).model.network).layers
    assert main(run=result.folder, to="merged") == 0  # compared with the trained network when loaded back


# --- plans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", variants(["nf4", "int8", "fp8"], fast=("nf4",)))
def test_plans_count_the_bytes_that_a_loaded_network_has(make_run: Callable[..., Any], kind: str) -> None:
    run = make_run(model={"quantization": kind})
    network = load_model(run, torch.device("cpu")).network
    size = sum(value.nbytes for value in network.parameters())
    if kind == "nf4":
        states = [value.quant_state for value in network.parameters() if hasattr(value, "quant_state")]
        size += sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    counted = count(run, device_type="cpu")
    assert counted.frozen_bytes == pytest.approx(size, rel=0.01)
    wide = count(make_run(model={"quantization": None}), device_type="cpu")
    frozen = [
        next(item.num_bytes for item in peak_of(run, each, A_CARD).items if "frozen" in item.component)
        for each in (counted, wide)
    ]
    assert frozen[0] == counted.frozen_bytes < frozen[1]


@pytest.mark.slow
def test_a_fit_takes_fewer_bits_where_nothing_lossless_is_left(make_run: Callable[..., Any]) -> None:
    lossless: dict[str, Any] = {
        "train": {
            "batch_size": 1,
            "mixed_precision": "bf16",
            "optimizer": "adamw_8bit",
            "split_backward": True,
        },
        "model": {"gradient_checkpointing": True, "offload_encoders": True},
        "image": {"cache": "cache"},
    }

    def variant(words: list[str]) -> Any:
        taken = dict(word.removeprefix("model.").split("=") for word in words)
        return make_run(**{**lossless, "model": {**lossless["model"], **taken}})

    fit = fit_run(make_run(**lossless), A_CARD, variant=variant, limit=1)
    assert [step.name for step in fit.steps] == ["frozen weights in 8 bits", "frozen weights in 4 bits"]
    assert fit.overrides == ["model.quantization=nf4"]
    assert fit.after.total < fit.before.total

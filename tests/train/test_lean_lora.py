"""The shorter forward pass of LoRA: numbers and names of peft, and peft itself where it is not plain."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmalign.likelihood.adapters import switched_off
from mmalign.train.adapters import attach
from mmalign.train.config import AdapterConfig
from mmalign.train.lean_lora import LeanLoraLinear, make_lean

WIDTH, OUT, RANK = 11, 7, 3


def network(**lora: Any) -> nn.Module:
    """Two linear layers with adapters whose B is not zero, a normalisation between."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(WIDTH, OUT), nn.LayerNorm(OUT), nn.Linear(OUT, WIDTH, bias=False))
    made.requires_grad_(False)
    config = LoraConfig(**{"r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["0", "2"]} | lora)
    inject_adapter_in_model(config, made)
    for layer in (made[0], made[2]):
        nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    return made


def answer(made: nn.Module, inputs: Tensor, *, amp: bool = False, recomputed: bool = False) -> list[Tensor]:
    """Output, gradient of the inputs and of the adapters."""
    made.zero_grad()
    given = inputs.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        output = checkpoint(made, given, use_reentrant=False) if recomputed else made(given)
    output.float().square().sum().backward()
    trained = [parameter.grad for parameter in made.parameters() if parameter.requires_grad]
    return [output.detach(), given.grad, *trained]


def gaps(got: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [
        float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(got, exact, strict=True)
    ]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, WIDTH), (13, WIDTH), (WIDTH,), (2, 3, 5, WIDTH)])
@pytest.mark.parametrize("scaling", [{}, {"lora_alpha": RANK}, {"use_rslora": True}])
def test_numbers_and_gradients_are_those_of_peft(scaling: Any, shape: Any, recomputed: bool) -> None:
    made = network(**scaling)
    lean = copy.deepcopy(made)
    assert make_lean(lean) == 2
    inputs = torch.randn(*shape)
    expected = answer(made, inputs)
    got = answer(lean, inputs, recomputed=recomputed)
    assert len(got) == 6
    assert max(gaps(got, expected)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_types_are_those_of_peft_and_the_rounding_is_not_larger(
    dtype: torch.dtype,
) -> None:
    made = network()
    lean = copy.deepcopy(made)
    make_lean(lean)
    inputs = torch.randn(64, 31, WIDTH).to(dtype)
    exact = answer(made, inputs.float())
    expected, got = answer(made, inputs, amp=True), answer(lean, inputs, amp=True)
    assert [value.dtype for value in got] == [value.dtype for value in expected]
    assert got[0].dtype == torch.bfloat16
    output, *gradients = [a / b for a, b in zip(gaps(got, exact), gaps(expected, exact), strict=True)]
    assert 0 < output < 1, "rounded once"
    assert max(gradients) < 1.2


@pytest.mark.parametrize("amp", [False, True])
def test_an_adapter_that_does_nothing_gives_the_base_model_bit_for_bit(amp: bool) -> None:
    made = network()
    make_lean(made)
    for layer in (made[0], made[2]):
        nn.init.zeros_(layer.lora_B["default"].weight)
    inputs = torch.randn(2, 5, WIDTH)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        tuned = made(inputs)
        with switched_off([made[0], made[2]]):
            assert torch.equal(made(inputs), tuned)


def test_switched_off_it_is_the_base_model() -> None:
    made = network()
    make_lean(made)
    inputs = torch.randn(5, WIDTH)
    base = [made[0].base_layer, made[1], made[2].base_layer]
    with switched_off([made[0], made[2]]):
        off = made(inputs)
    assert torch.equal(off, nn.Sequential(*base)(inputs))
    assert not torch.allclose(made(inputs), off)


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_what_is_not_plain_stays_with_peft(lora: Any) -> None:
    made = network(**lora)
    assert make_lean(made) == 0
    assert type(made[0]) is LoraLinear


def test_layers_on_other_bases_stay_with_peft() -> None:
    class Narrow(nn.Linear):
        pass

    made = nn.ModuleDict(
        {"linear": Narrow(WIDTH, OUT), "conv": nn.Conv2d(3, 5, 1), "table": nn.Embedding(5, 3)}
    )
    inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["linear", "conv", "table"]), made)
    assert make_lean(made) == 0


def test_merging_and_further_adapters_work_as_in_peft() -> None:
    made = network()
    lean = copy.deepcopy(made)
    make_lean(lean)
    inputs = torch.randn(2, 5, WIDTH)
    for one in (made, lean):
        one[0].merge()
        assert one[0].merged
    torch.testing.assert_close(lean(inputs), made(inputs))
    for one in (made, lean):
        one[0].unmerge()
        one[0].set_scale("default", 0.5)
        torch.manual_seed(1)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), one, "other")
    torch.testing.assert_close(lean(inputs), made(inputs))
    alone = lean(inputs)
    for one in (made, lean):
        one[0].set_adapter(["default", "other"])
    torch.testing.assert_close(lean(inputs), made(inputs))
    assert not torch.allclose(lean(inputs), alone)


def test_inputs_of_mixed_types_without_autocast_go_through_peft() -> None:
    made = network()
    for layer in (made[0], made[2]):
        layer.base_layer.bfloat16()
    made[1].bfloat16()
    lean = copy.deepcopy(made)
    make_lean(lean)
    inputs = torch.randn(5, WIDTH).bfloat16()
    assert torch.equal(lean(inputs), made(inputs))


def test_attached_adapters_are_lean_and_keep_the_names_of_peft() -> None:
    made = nn.Sequential(nn.Linear(WIDTH, OUT), nn.Linear(OUT, WIDTH))
    trained = attach(made, AdapterConfig(rank=RANK), default_targets=("0", "1"), seed=0)
    assert [type(layer) for layer in trained.layers] == [LeanLoraLinear, LeanLoraLinear]
    assert set(trained.state()) == set(get_peft_model_state_dict(network(target_modules=["0", "2"]))) - {
        "2.lora_A.weight",
        "2.lora_B.weight",
    } | {"1.lora_A.weight", "1.lora_B.weight"}


def test_a_copy_computes_with_its_own_weights() -> None:
    made = network()
    make_lean(made)
    copied = copy.deepcopy(made)
    inputs = torch.randn(5, WIDTH)
    before = made(inputs)
    nn.init.zeros_(copied[0].lora_B["default"].weight)
    assert torch.equal(made(inputs), before)
    assert not torch.allclose(copied(inputs), before)


@pytest.mark.compiled
def test_compiled_there_is_one_graph_with_adapters_and_one_without() -> None:
    torch.compiler.reset()
    made = network()
    make_lean(made)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(made, backend=counter, fullgraph=True)
    inputs = torch.randn(2, 5, WIDTH)
    for _ in range(3):
        torch.testing.assert_close(compiled(inputs), made(inputs))
        with switched_off([made[0], made[2]]):
            torch.testing.assert_close(compiled(inputs), made(inputs))
    assert counter.frame_count == 2

"""Selective recomputation keeps what products gave, repeats none of them, and changes no bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmalign.testing.accelerator import forget_accelerator
from mmalign.train.config import load_run
from mmalign.train.plan import GIB
from mmalign.train.planning.activations import count_activations
from mmalign.train.planning.counting import count
from mmalign.train.planning.devices import Device
from mmalign.train.planning.fitting import fit_run
from mmalign.train.planning.memory import peak_of
from mmalign.train.recomputing import KEPT_FROM, Recomputed, is_kept, recomputed
from mmalign.train.run import prepare

_ops: Any = torch.ops.aten


class Block(nn.Module):
    """A norm, a wide product, an activation, a product back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(131), nn.Linear(131, 523), nn.Linear(523, 131)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Added to what is given."""
        return states + self.down(nn.functional.gelu(self.up(self.norm(states))))


class Blocks(nn.Module):
    """Three blocks, recomputed or not."""

    def __init__(self, kind: Recomputed) -> None:
        super().__init__()
        self.kind = kind
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """One after the other."""
        for block in self.blocks:
            states = recomputed(self.kind, block, states) if self.kind else block(states)
        return states


def passed(kind: Recomputed) -> tuple[list[torch.Tensor], int]:
    """Gradients and FLOPs of a forward and a backward pass."""
    network = Blocks(kind)
    states = torch.randn(7, 5, 131, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        network(states).square().sum().backward()
    gradients = [value.grad for value in (states, *network.parameters())]
    return [value for value in gradients if value is not None], counter.get_total_flops()


def test_no_product_is_repeated_and_gradients_are_equal_to_the_bit() -> None:
    (plain, least), (in_part, same), (whole, more) = (passed(kind) for kind in (False, "selective", True))
    assert same == least < more
    for expected, *found in zip(plain, in_part, whole, strict=True):
        assert all(torch.equal(value, expected) for value in found)


def test_bytes_kept_lie_between_those_of_the_others_and_are_what_products_gave() -> None:
    states = torch.empty(7, 5, 131, device="meta", requires_grad=True)
    plain, part, whole = (
        count_activations(Blocks(kind).to("meta"), lambda network: network(states)).kept
        for kind in (False, "selective", True)
    )
    assert whole < part < plain
    # Input of every block, and in it the results of both products.
    assert part == 3 * 4 * 7 * 5 * (131 + 523 + 131)


def test_results_that_cost_little_are_not_kept() -> None:
    wide, narrow = torch.empty(5, KEPT_FROM // 2), torch.empty(5, KEPT_FROM // 2 - 1)
    assert is_kept(_ops.mm.default, (wide, wide.T))
    assert not is_kept(_ops.mm.default, (narrow, narrow.T)), "the second product of an adapter"
    assert is_kept(_ops.addmm.default, (wide[:, 0], wide, wide.T))
    assert not is_kept(_ops.native_layer_norm.default, (wide, [1]))
    picture, large, small = torch.empty(2, 64, 8, 8), torch.empty(3, 64, 3, 3), torch.empty(3, 64, 1, 1)
    assert is_kept(_ops.convolution.default, (picture, large))
    assert not is_kept(_ops.convolution.default, (picture, small))
    attention = _ops._scaled_dot_product_flash_attention_for_cpu.default
    assert is_kept(attention, (picture, picture, picture))
    backward = _ops._scaled_dot_product_flash_attention_for_cpu_backward.default
    assert not is_kept(backward, (picture, picture, picture))


@pytest.fixture
def _kept_in_tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny networks have products over 32 values, and adapters of rank 3."""
    monkeypatch.setattr("mmalign.train.recomputing.KEPT_FROM", 16)


@pytest.mark.usefixtures("_kept_in_tiny_networks")
def test_a_plan_counts_what_is_kept_and_what_is_repeated(make_run: Callable[..., Any]) -> None:
    passes = {
        kind: count(make_run(model={"gradient_checkpointing": kind}), device_type="cpu").policy
        for kind in (False, "selective", True)
    }
    assert passes[True].kept < passes["selective"].kept < passes[False].kept
    assert passes["selective"].flops < passes[False].flops * 1.05, "of adapters alone"
    assert passes[True].flops > passes[False].flops * 1.2


@pytest.mark.usefixtures("_kept_in_tiny_networks")
@pytest.mark.slow
def test_what_costs_less_is_proposed_where_it_suffices(write_config: Callable[..., Path]) -> None:
    path = write_config(train={"batch_size": 1}, image={"cache": "cache"})
    device = Device("d", 2**40, 1e12, 1e12, 1e11)

    def variant(changes: Any) -> Any:
        return load_run(path, [*changes])

    def proposed(limit: int) -> list[str]:
        return fit_run(load_run(path), device, variant=variant, limit=limit).overrides

    selective = variant(["model.gradient_checkpointing=selective"])
    needed = peak_of(selective, count(selective, device_type="cuda"), device).total
    assert proposed(needed + 1024) == ["model.gradient_checkpointing=selective"]
    assert proposed(needed - 64 * 1024) == ["model.gradient_checkpointing=true"]
    assert needed < GIB


@pytest.mark.usefixtures("_kept_in_tiny_networks")
def test_a_run_gives_the_same_weights(make_run: Callable[..., Any]) -> None:
    found = []
    for kind in (False, "selective"):
        forget_accelerator()
        loop, loader = prepare(
            make_run(f"{kind}", model={"gradient_checkpointing": kind}, train={"steps": 2})
        )
        loop.train(iter(loader))
        found.append({name: value.detach().clone() for name, value in loop.trainables.parameters.items()})
        assert any("selectively" in note for note in loop.model.notes) == (kind == "selective")
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

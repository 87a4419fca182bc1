"""Compiled blocks: the same losses, gradients, names and files as without; nothing is compiled twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmalign.errors import ConfigError
from mmalign.likelihood.adapters import adapters_off
from mmalign.testing.accelerator import forget_accelerator
from mmalign.testing.families import example_inputs, load, trained_by
from mmalign.testing.vlm_dialogues import dialogue, load_vlm, token_log_probs, with_adapter
from mmalign.train import compiling, recomputing
from mmalign.train.compiling import compile_blocks, require_compiler
from mmalign.train.config import AdapterConfig
from mmalign.train.run import prepare

TOLERANCE = 1e-5
"""Of losses and gradients in float32, relative to their size: kernels of the compiler sum in other orders."""


class _Lines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(13), nn.Linear(13, 13)) for _ in range(5))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            states = states + block(states)
        return states


class _Lined:
    """A model of `_Lines`."""

    family = "lines"

    def repeated_blocks(self, network: Any) -> list[nn.Module]:
        """Of the network."""
        return list(network.blocks)


class _Plain:
    """A model that repeats nothing."""

    family = "plain"

    def repeated_blocks(self, network: Any) -> list[nn.Module]:
        """None."""
        del network
        return []


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs as they are compiled, without the making of kernels, which takes minutes."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(compiling, "BACKEND", "eager")


def graphs() -> int:
    """Compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_a_network_without_repeated_blocks_is_refused_with_the_setting_to_change() -> None:
    with pytest.raises(ConfigError, match=r"model.compile: got 'blocks, of Linear \(family plain\)'.*none"):
        compile_blocks(_Plain(), nn.Linear(2, 3), device="cpu")


def test_compiled_blocks_decide_themselves_what_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _Lines()
    block: Any = network.blocks[0]
    seen: list[str] = []
    checkpoint = recomputing.torch_checkpoint.checkpoint

    def noted(*given: Any, **named: Any) -> Any:
        seen.append("recomputed")
        return checkpoint(*given, **named)

    monkeypatch.setattr(recomputing.torch_checkpoint, "checkpoint", noted)
    states = torch.ones(2, 13, requires_grad=True)
    recomputing.recomputed("selective", block, states)
    assert seen == ["recomputed"]
    monkeypatch.setattr(block, "_compiled_call_impl", block._call_impl)
    for called in (block, block.__call__):
        recomputing.recomputed("selective", called, states)
    assert seen == ["recomputed"]


def test_a_machine_without_a_compiler_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    def missing() -> str:
        raise RuntimeError

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler.*g\+\+ or clang\+\+.*model.compile: none"):
        require_compiler(torch.device("cpu"))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ConfigError, match=r"no Triton that serves cuda.*model.compile: none"):
        require_compiler(torch.device("cuda"))


@pytest.mark.compiled
def test_kernels_of_the_compiler_give_the_gradients_within_a_tolerance() -> None:
    torch.compiler.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, states = _Lines(), torch.randn(7, 13, requires_grad=True)
    names = list(network.state_dict())
    network(states).square().sum().backward()
    expected = [value.grad.clone() for value in network.parameters() if value.grad is not None]
    network.zero_grad()
    before = graphs()
    assert compile_blocks(_Lined(), network, device="cpu") == 5
    network(states).square().sum().backward()
    assert graphs() == before + 1, "one graph for five blocks"
    assert list(network.state_dict()) == names
    for value, gradient in zip(network.parameters(), expected, strict=True):
        assert value.grad is not None
        assert (value.grad - gradient).norm() <= TOLERANCE * gradient.norm()


@pytest.mark.compiled
@pytest.mark.usefixtures("_traced")
def test_policy_and_reference_are_two_graphs_of_a_width_and_none_comes_later(
    sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    found = []
    for compiles in (False, True):
        model = load("sdxl", sdxl_folder, model={"gradient_checkpointing": True})
        trainables = trained_by(model, AdapterConfig(rank=2))
        model.network.train()
        made = []
        if compiles:
            assert compile_blocks(model, model.network, device="cpu") > 2
        for _ in range(3):
            model.network.zero_grad()
            with torch.no_grad(), adapters_off(model.bare_network):
                reference = model.denoise(*example_inputs(model))
            policy = model.denoise(*example_inputs(model))
            (policy - reference).square().mean().backward()
            made.append(graphs())
        found.append([policy.detach(), reference, *(p.grad for p in trainables.parameters.values())])
    assert 0 < made[0] <= 4, "policy and reference, of one width and of widths as a variable"
    assert made[1:] == [made[0]] * 2
    for expected, value in zip(*found, strict=True):
        assert (value - expected).norm() <= TOLERANCE * expected.norm()


@pytest.mark.compiled
@pytest.mark.usefixtures("_traced")
def test_layers_of_a_language_model_take_rows_of_any_length(tiny_vlm_folder: Callable[[str], Path]) -> None:
    folder, found = tiny_vlm_folder("llava"), []
    for compiles in (False, True):
        model, made = load_vlm("llava", folder), []
        trainables = with_adapter(model)
        if compiles:
            compile_blocks(model, model.network, device="cpu")
        values = []
        for number in range(1, 6):
            value = token_log_probs(model, [dialogue(10**number)]).sum()
            value.backward()
            values.append(value.detach())
            made.append(graphs())
        found.append([*values, *(p.grad for p in trainables.parameters.values() if p.grad is not None)])
    assert made[2:] == [made[2]] * 3
    for expected, value in zip(*found, strict=True):
        assert (value - expected).norm() <= TOLERANCE * expected.norm()


@pytest.mark.compiled
@pytest.mark.usefixtures("_traced")
def test_a_run_that_compiles_goes_on_from_one_that_does_not_and_writes_the_same_files(
    make_run: Callable[..., Any],
) -> None:
    def trained(name: str, steps: int, **model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        forget_accelerator()
        run = make_run(name, model=model, train={"steps": steps, "adam_epsilon": 1e-2, "checkpoint_every": 1})
        loop, loader = prepare(run)
        loop.train(iter(loader))
        files = sorted(Path(run.config.train.output).rglob("*.safetensors"))
        return [path.name for path in files], load_file(files[-1])

    names, plain = trained("plain", 2)
    trained("both", 1)
    resumed, compiled = trained("both", 2, compile="blocks")
    assert graphs() > 0
    assert set(resumed) == set(names)
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6)

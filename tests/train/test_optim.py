"""Optimisers and updates: scaled, clipped, refused when not finite, restored bit for bit."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmalign.errors import CheckpointError, ConfigError, MissingExtraError
from mmalign.train.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from mmalign.train.config import TrainConfig
from mmalign.train.optim import Updater, make_optimizer, make_schedule

OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor")


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"output": "out", "steps": 10, "learning_rate": 0.1, "optimizer": "adamw"} | values)


@pytest.fixture
def parameters(generator: torch.Generator) -> list[torch.nn.Parameter]:
    """A matrix large enough for 8-bit states, a small matrix, and a vector."""
    shapes = [(64, 128), (3, 5), (7,)]
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def give_gradients(parameters: list[torch.nn.Parameter], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return [parameter.grad.clone() for parameter in parameters]


class Recorder(torch.optim.SGD):
    """Remembers the gradients an update used."""

    def step(self, closure: Any = None) -> None:
        self.used = [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]


def total_norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def test_summed_gradients_become_the_mean_before_the_norm_is_taken(parameters) -> None:
    recorder = Recorder(parameters, lr=1.0)
    before = give_gradients(parameters, 1)
    stats = Updater(parameters, recorder, max_grad_norm=None).apply(torch.tensor(0.25))
    for used, gradient in zip(recorder.used, before, strict=True):
        torch.testing.assert_close(used, gradient * 0.25, rtol=0, atol=0)
    assert float(stats.grad_norm) == pytest.approx(0.25 * total_norm(before), rel=1e-5)
    assert float(stats.dropped) == 0.0


def test_clipping_leaves_exactly_the_largest_norm_allowed(parameters) -> None:
    recorder = Recorder(parameters, lr=1.0)
    before = give_gradients(parameters, 1)
    stats = Updater(parameters, recorder, max_grad_norm=0.5).apply(torch.tensor(2.0))
    assert total_norm(recorder.used) == pytest.approx(0.5, rel=1e-5)
    assert float(stats.grad_norm) == pytest.approx(2.0 * total_norm(before), rel=1e-5), "before clipping"
    # The direction is kept.
    ratio = recorder.used[1] / before[1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])))


def test_gradients_below_the_limit_are_not_touched_by_clipping(parameters) -> None:
    recorder = Recorder(parameters, lr=1.0)
    before = give_gradients(parameters, 1)
    Updater(parameters, recorder, max_grad_norm=1e6).apply(torch.tensor(1.0))
    for used, gradient in zip(recorder.used, before, strict=True):
        torch.testing.assert_close(used, gradient, rtol=0, atol=0)


def test_clipping_works_at_every_step_not_only_the_first(parameters) -> None:
    recorder = Recorder(parameters, lr=1.0)
    updater = Updater(parameters, recorder, max_grad_norm=0.5)
    for seed in (1, 2, 3):
        give_gradients(parameters, seed)
        updater.apply(torch.tensor(1.0))
        assert total_norm(recorder.used) == pytest.approx(0.5, rel=1e-5)


def test_gradients_are_cleared_after_an_update(parameters) -> None:
    give_gradients(parameters, 1)
    Updater(parameters, make_optimizer(parameters, config()), max_grad_norm=1.0).apply(torch.tensor(1.0))
    assert all(parameter.grad is None for parameter in parameters)


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    tensors, described = flatten_optimizer(optimizer)
    return {**{name: value.clone() for name, value in tensors.items()}, **described["scalars"]}


def assert_same_state(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name], value), name
        else:
            assert got[name] == value, name


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_not_finite_touches_neither_weights_nor_moments_nor_counters(
    parameters, name: str, bad: float
) -> None:
    optimizer = make_optimizer(parameters, config(optimizer=name))
    updater = Updater(parameters, optimizer, max_grad_norm=1.0)
    give_gradients(parameters, 1)
    updater.apply(torch.tensor(1.0))
    weights = [parameter.detach().clone() for parameter in parameters]
    state = state_of(optimizer)

    give_gradients(parameters, 2)
    parameters[0].grad[3, 5] = bad
    stats = updater.apply(torch.tensor(1.0))

    assert float(stats.dropped) == 1.0
    assert not math.isfinite(float(stats.grad_norm))
    for parameter, weight in zip(parameters, weights, strict=True):
        assert torch.equal(parameter, weight)
    assert_same_state(state_of(optimizer), state)

    give_gradients(parameters, 3)
    assert float(updater.apply(torch.tensor(1.0)).dropped) == 0.0
    assert not torch.equal(parameters[0], weights[0]), "the next finite update counts again"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_a_valid_row_moves_nothing_and_is_not_called_dropped(parameters, name: str) -> None:
    optimizer = make_optimizer(parameters, config(optimizer=name))
    updater = Updater(parameters, optimizer, max_grad_norm=1.0)
    give_gradients(parameters, 1)
    updater.apply(torch.tensor(1.0))
    weights = [parameter.detach().clone() for parameter in parameters]
    state = state_of(optimizer)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    stats = updater.apply(torch.tensor(1.0), is_empty=torch.tensor(True))
    assert float(stats.dropped) == 0.0
    # Momentum and weight decay would have moved them.
    assert all(torch.equal(parameter, weight) for parameter, weight in zip(parameters, weights, strict=True))
    assert_same_state(state_of(optimizer), state)


def test_fused_adamw_decides_on_the_device_and_looks_where_that_is_the_cpu(parameters) -> None:
    there = [torch.nn.Parameter(torch.empty(3, device="meta"))]
    for values, tells in ((there, True), (parameters, False)):
        optimizer = make_optimizer(parameters, config())
        assert Updater(values, optimizer, max_grad_norm=1.0).skips_on_device is tells


@pytest.mark.parametrize("is_empty", [False, True])
def test_telling_fused_adamw_to_skip_is_leaving_it_alone(is_empty: bool) -> None:
    """What a card does, on the CPU: weights and state are those of a look before the step."""
    found = []
    for tells in (False, True):
        values = [torch.nn.Parameter(torch.linspace(-1.0, 1.0, number)) for number in (2, 3, 5)]
        optimizer = make_optimizer(values, config())
        updater = Updater(values, optimizer, max_grad_norm=1.0)
        updater.skips_on_device = tells
        for seed in range(3):
            give_gradients(values, seed)
            if seed == 1 and not is_empty:
                values[0].grad = torch.full_like(values[0], torch.nan)
            updater.apply(torch.tensor(1.0), is_empty=torch.tensor(is_empty and seed == 1))
        found.append((values, state_of(optimizer)))
    (looked, state), (told, told_state) = found
    assert all(torch.equal(one, other) for one, other in zip(looked, told, strict=True))
    assert_same_state(state, told_state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimiser_continues_bit_for_bit(parameters, name: str, tmp_path: Path) -> None:
    settings = config(optimizer=name)

    def run(parameters: list[torch.nn.Parameter], optimizer: Any, seeds: range) -> None:
        updater = Updater(parameters, optimizer, max_grad_norm=1.0)
        for seed in seeds:
            give_gradients(parameters, seed)
            updater.apply(torch.tensor(1.0))

    optimizer = make_optimizer(parameters, settings)
    run(parameters, optimizer, range(3))
    tensors, described = flatten_optimizer(optimizer)
    saved = Checkpoint(3, {}, tensors, {}, {}, {}, {"optimizer": described})
    folder = save_checkpoint(tmp_path, saved, keep=1)
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    run(parameters, optimizer, range(3, 7))

    again = make_optimizer(copies, settings)
    loaded = load_checkpoint(folder)
    restore_optimizer(again, loaded.optimizer, loaded.state["optimizer"])
    run(copies, again, range(3, 7))
    for parameter, copy in zip(parameters, copies, strict=True):
        assert torch.equal(parameter, copy)
    assert_same_state(state_of(again), state_of(optimizer))


def test_eight_bit_states_are_really_eight_bits_wide(parameters) -> None:
    optimizer = make_optimizer(parameters, config(optimizer="adamw_8bit"))
    give_gradients(parameters, 1)
    Updater(parameters, optimizer, max_grad_norm=1.0).apply(torch.tensor(1.0))
    assert optimizer.state[parameters[0]]["state1"].dtype == torch.uint8


def test_adafactor_keeps_factored_moments_and_the_given_rate(parameters) -> None:
    optimizer = make_optimizer(parameters, config(optimizer="adafactor"))
    give_gradients(parameters, 1)
    Updater(parameters, optimizer, max_grad_norm=1.0).apply(torch.tensor(1.0))
    state = optimizer.state[parameters[0]]
    assert state["exp_avg_sq_row"].shape == (64,)
    assert state["exp_avg_sq_col"].shape == (128,)
    group = optimizer.param_groups[0]
    assert (group["relative_step"], group["scale_parameter"], group["lr"]) == (False, False, 0.1)


def test_an_optimiser_with_other_groups_is_refused(parameters) -> None:
    one = torch.optim.AdamW(parameters, lr=0.1)
    two = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=0.1)
    tensors, described = flatten_optimizer(one)
    with pytest.raises(CheckpointError, match="got 1 parameter groups, expected 2"):
        restore_optimizer(two, tensors, described)


def test_a_missing_learning_rate_is_refused(parameters) -> None:
    with pytest.raises(ConfigError, match=r"train.learning_rate: got None, expected a positive number"):
        make_optimizer(parameters, config(learning_rate=None))


def test_missing_bitsandbytes_names_the_extra(parameters, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingExtraError, match=r"needs bitsandbytes: pip install 'mmalign\[8bit\]'"):
        make_optimizer(parameters, config(optimizer="adamw_8bit"))


def rates(settings: TrainConfig) -> list[float]:
    """The rate of each optimiser step."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = make_optimizer([parameter], settings)
    schedule = make_schedule(optimizer, settings)
    found = []
    for _ in range(settings.steps or 0):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_warm_up_counts_optimiser_steps(name: str) -> None:
    found = rates(config(schedule=name, warmup_steps=4))
    assert found[:5] == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])


def test_constant_stays() -> None:
    assert rates(config(schedule="constant")) == [0.1] * 11


def test_cosine_is_half_way_in_the_middle_and_ends_at_zero() -> None:
    found = rates(config(schedule="cosine"))
    assert found[0] == 0.1
    assert found[5] == pytest.approx(0.05)
    assert found[10] == pytest.approx(0.0, abs=1e-12)
    assert found == [pytest.approx(0.05 * (1 + math.cos(math.pi * step / 10))) for step in range(11)]


def test_linear_falls_evenly_to_zero() -> None:
    assert rates(config(schedule="linear")) == pytest.approx([0.1 - 0.01 * step for step in range(11)])


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("number", [3, 29])
def test_an_update_is_a_few_calls_for_all_parameters_together(number: int) -> None:
    parameters = [torch.nn.Parameter(torch.ones(5)) for _ in range(number)]
    updater = Updater(parameters, make_optimizer(parameters, config()), max_grad_norm=1.0)
    give_gradients(parameters, 0)
    updater.apply(torch.tensor(0.5))  # makes the state
    give_gradients(parameters, 1)
    with Calls() as calls:
        updater.apply(torch.tensor(0.5))
    found = calls.counts
    assert found["_fused_adamw_"] == 1
    assert found["_foreach_norm"] == 1
    assert found["_foreach_mul_"] == 1
    assert {name for name, count in found.items() if count >= number > 3} <= {"unbind", "detach"}

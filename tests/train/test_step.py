"""One training step: what the numbers are before the first update, and where gradients go."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mmalign.train.micro_batch import to_batch
from mmalign.train.run import prepare
from mmalign.train.step import StepOutput, preference_step


def first_step(run: Any, *, is_record: bool = True) -> tuple[Any, StepOutput]:
    loop, loader = prepare(run)
    micro = next(iter(loader))
    batch = to_batch(micro, loop.model, torch.device("cpu"))
    output = preference_step(loop.parts, batch, is_record=is_record)
    return loop, output


@pytest.fixture
def stepped(make_run) -> Iterator[tuple[Any, StepOutput]]:
    """The first step of a LoRA run with its loop."""
    return first_step(make_run())


def test_before_the_first_update_lora_equals_its_reference_exactly(stepped) -> None:
    _, output = stepped
    assert torch.equal(output.values["logit"], torch.zeros(2))
    assert float(output.loss.detach()) == pytest.approx(2 * math.log(2), rel=1e-6)
    assert torch.equal(output.values["drift"], torch.zeros(2))
    assert torch.equal(output.values["error/policy_chosen"], output.values["error/reference_chosen"])


def test_before_the_first_update_full_fine_tuning_equals_its_frozen_copy_exactly(make_run) -> None:
    _, output = first_step(make_run(adapter={"kind": "none"}))
    assert torch.equal(output.values["logit"], torch.zeros(2))
    assert float(output.loss.detach()) == pytest.approx(2 * math.log(2), rel=1e-6)


def test_gradients_reach_the_trained_weights_and_nothing_else(stepped) -> None:
    loop, output = stepped
    output.loss.backward()
    for name, parameter in loop.model.network.named_parameters():
        if name in loop.trainables.parameters:
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
    norms = [float(parameter.grad.norm()) for parameter in loop.trainables.parameters.values()]
    assert max(norms) > 0


def test_gradients_do_not_reach_vae_and_text_encoder(stepped) -> None:
    loop, output = stepped
    output.loss.backward()
    for module in (loop.model.vae, *loop.model.encoders):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_trained_weights_are_float32_and_few(stepped) -> None:
    loop, _ = stepped
    assert {parameter.dtype for parameter in loop.trainables.parameters.values()} == {torch.float32}
    # rank 3 on 8 attention layers: every module adds 3 * (inputs + outputs).
    expected = sum(3 * (layer.in_features + layer.out_features) for layer in loop.trainables.layers)
    assert loop.trainables.count == expected


def test_drift_is_measured_only_when_asked_for(make_run) -> None:
    _, output = first_step(make_run(), is_record=False)
    assert bool(torch.isnan(output.values["drift"]).all())


def test_a_method_without_reference_is_compared_with_the_base_on_records_only(make_run) -> None:
    run = make_run(method="mapo")
    _, output = first_step(run, is_record=True)
    assert torch.equal(output.values["drift"], torch.zeros(2))
    assert torch.equal(output.values["error/relative_chosen"], torch.zeros(2))

"""Every objective is one graph: no break, no host sync, the same loss and gradient."""

import pytest
import torch

from mmalign import objectives
from mmalign.testing.objectives import example


def step_of(name):
    registered = objectives.registered(name)
    built = registered.builder(**registered.sample)
    scores, labels = example(registered, dtype=torch.float32, inner=3)

    def step(policy):
        moved = objectives.Scores(**{**scores.__dict__, "policy": policy})
        out = built(moved, labels)
        return out.loss.sum(), out.metrics["accuracy"]

    return step, scores.policy


@pytest.mark.compiled
@pytest.mark.parametrize("name", objectives.names())
def test_objective_is_one_graph(name):
    step, policy = step_of(name)
    expected, accuracy = step(policy)
    torch.compiler.reset()
    found, found_accuracy = torch.compile(step, fullgraph=True, backend="eager")(policy)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_accuracy, accuracy)
    torch.testing.assert_close(
        torch.autograd.grad(found, policy)[0], torch.autograd.grad(expected, policy)[0]
    )

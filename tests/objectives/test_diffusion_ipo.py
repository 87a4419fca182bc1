"""IPO for denoising errors: the official square, brought to the size of a loss."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmalign import objectives
from mmalign.errors import HyperparameterError


def test_hand_worked_numbers() -> None:
    """beta 100; margins 0.005, 0.0, 0.02: logits 0.5, 0, 2; losses 0, 1/4, 9/4."""
    policy = torch.tensor([[0.005, 0.0], [0.3, 0.3], [0.01, -0.01]], dtype=torch.float64)
    scores = objectives.Scores(policy=policy, reference=torch.zeros_like(policy))
    out = objectives.diffusion_ipo(beta=100.0)(scores, objectives.Labels.pairs(3))
    assert out.logit.tolist() == pytest.approx([0.5, 0.0, 2.0])
    assert out.loss.tolist() == pytest.approx([0.0, 0.25, 2.25])


def test_it_is_beta_squared_times_the_official_square(draw: Callable[..., Tensor]) -> None:
    """Values and gradients; the official one is pinned by parity cases."""
    beta = 2000.0
    policy, reference = draw(5, 2).mul_(1e-3), draw(5, 2).mul_(1e-3)
    results = []
    for objective in (objectives.diffusion_ipo(beta=beta), objectives.ipo(tau=beta) * beta**2):
        leaf = policy.clone().requires_grad_(True)
        out = objective(objectives.Scores(policy=leaf, reference=reference), objectives.Labels.pairs(5))
        out.loss.sum().backward()
        results.append((out.loss.detach(), leaf.grad))
    for ours, official in zip(*results, strict=True):
        torch.testing.assert_close(ours, official, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    with pytest.raises(HyperparameterError, match=r"diffusion_ipo beta: got .*, expected a number > 0"):
        objectives.diffusion_ipo(beta=beta)

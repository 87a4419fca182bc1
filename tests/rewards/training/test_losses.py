"""Losses of rewards: hand-worked numbers, expectations against draws, weights of tasks against a grid."""

import itertools
import math

import pytest
import torch

from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError
from mmalign.objectives import Scores
from mmalign.rewards.pair_losses import gaussian_preference_loss
from mmalign.rewards.training.losses import (
    bradley_terry,
    entropy_shortfall,
    gaussian_losses,
    gaussian_probability,
    ideal_point_hinge,
    smallest_norm_weights,
)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_bradley_terry_is_the_logistic_loss_of_the_difference_and_mixes_both_orders_of_a_tie():
    rewards = torch.tensor([[2.0, 0.5], [0.5, 2.0], [3.0, 1.0]], dtype=torch.float64)
    labels = Labels(probability=torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64))
    found = bradley_terry()(Scores(rewards), labels).loss
    expected = [softplus(-1.5), softplus(1.5), 0.5 * (softplus(-2.0) + softplus(2.0))]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_margin_asks_for_more_in_the_label_s_direction():
    rewards = torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    found = bradley_terry(margin=0.25)(Scores(rewards), Labels.pairs(1)).loss
    assert found.item() == pytest.approx(softplus(-1.25), rel=1e-6)
    with pytest.raises(HyperparameterError, match="bradley_terry margin: got -1"):
        bradley_terry(margin=-1.0)


def test_the_hinge_ends_at_the_margin():
    rewards = torch.tensor([[-0.5, -3.5], [-1.0, -1.5], [-2.0, -0.5]], dtype=torch.float64)
    found = ideal_point_hinge(margin=2.0)(Scores(rewards), Labels.pairs(3)).loss
    assert found.tolist() == pytest.approx([0.0, 1.5, 3.5])
    with pytest.raises(HyperparameterError, match="ideal_point_hinge margin: got 0"):
        ideal_point_hinge(margin=0.0)


@pytest.fixture
def normal_rewards(draw):
    first, second = draw(5, 2), draw(5, 2)
    return first, second


def test_expectations_of_normal_rewards_equal_those_of_many_draws(normal_rewards, make_generator):
    first, second = normal_rewards
    normals = torch.randn(5, 400_000, generator=make_generator(3), dtype=torch.float64)
    spread = (first[:, 1].exp() ** 2 + second[:, 1].exp() ** 2).sqrt()
    z = (first[:, 0] - second[:, 0])[:, None] + spread[:, None] * normals
    sure = torch.ones(5, dtype=torch.float64)
    probability = z.sigmoid().mean(dim=1)
    torch.testing.assert_close(gaussian_probability(first, second), probability, rtol=0, atol=3e-3)
    likelihood = gaussian_losses(first, second, sure)
    torch.testing.assert_close(likelihood, -probability.log(), rtol=2e-2, atol=0)
    loss = gaussian_losses(first, second, sure, expectation="loss")
    drawn = gaussian_preference_loss(first, second, normals)  # the released trainer's form, by draws
    assert loss.mean().item() == pytest.approx(drawn.item(), rel=1e-2)


def test_a_narrow_normal_reward_is_bradley_terry_and_orders_exchange():
    first = torch.tensor([[1.5, -20.0]], dtype=torch.float64)
    second = torch.tensor([[0.5, -20.0]], dtype=torch.float64)
    for expectation in ("loss", "likelihood"):
        for probability, expected in ((1.0, softplus(-1.0)), (0.0, softplus(1.0))):
            label = torch.tensor([probability], dtype=torch.float64)
            found = gaussian_losses(first, second, label, expectation=expectation)
            assert found.item() == pytest.approx(expected)
    assert (gaussian_probability(first, second) + gaussian_probability(second, first)).item() == 1.0


def test_only_the_expected_likelihood_has_a_use_for_deviations_on_wrong_labels():
    """The preferred one has the lower mean: doubt lowers -log E sigmoid, and never E -log sigmoid."""
    signs = {}
    for expectation in ("likelihood", "loss"):
        first = torch.tensor([[-3.0, 0.0]], dtype=torch.float64, requires_grad=True)
        second = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
        sure = torch.ones(1, dtype=torch.float64)
        (slope,) = torch.autograd.grad(
            gaussian_losses(first, second, sure, expectation=expectation).sum(), first
        )
        signs[expectation] = math.copysign(1.0, slope[0, 1].item())
    assert signs == {"likelihood": -1.0, "loss": 1.0}


def test_an_unknown_expectation_is_refused(normal_rewards, untyped):
    sure = torch.ones(5, dtype=torch.float64)
    expected = "expectation: got 'median', expected 'loss' or 'likelihood'"
    with untyped, pytest.raises(HyperparameterError, match=expected):
        gaussian_losses(*normal_rewards, sure, expectation="median")  # type: ignore[arg-type]


def test_entropy_below_the_floor_is_what_costs():
    rewards = torch.tensor([[0.0, 0.0], [0.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert entropy_shortfall(rewards, entropy + 0.5).tolist() == pytest.approx([0.5, 1.5, 0.0])


# ----------------------------------------------------------------------------------------- several tasks


def test_the_shortest_mixture_of_three_gradients_is_the_best_of_a_fine_grid(draw):
    gradients = draw(3, 5)
    found = smallest_norm_weights(gradients)
    steps = [place / 100 for place in range(101)]
    grid = [(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b <= 1]
    lengths = [(torch.tensor(w, dtype=torch.float64) @ gradients).norm().item() for w in grid]
    best = grid[lengths.index(min(lengths))]
    assert found.tolist() == pytest.approx(best, abs=0.02)
    assert (found @ gradients).norm().item() <= min(lengths) + 1e-9


def test_two_gradients_meet_at_right_angles():
    """In closed form: the foot of the perpendicular from 0 onto the line between them, or an end of it."""
    found = smallest_norm_weights(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    assert found.tolist() == pytest.approx([0.1, 0.9], abs=1e-6)
    assert smallest_norm_weights(torch.tensor([[1.0, 0.0], [5.0, 0.1]])).tolist() == pytest.approx([1, 0])


def test_going_against_the_mixture_lowers_every_task_where_the_sum_raises_one():
    gradients = torch.tensor([[1.0, 0.0], [-5.0, 5.0]], dtype=torch.float64)
    mixture = smallest_norm_weights(gradients) @ gradients
    assert bool((gradients @ mixture > 0).all())
    assert bool((gradients @ gradients.sum(dim=0) < 0).any())


def test_weights_of_one_task_or_of_equal_ones_are_fine_and_nan_is_not():
    assert smallest_norm_weights(torch.ones(1, 3)).tolist() == [1.0]
    assert smallest_norm_weights(torch.zeros(2, 3)).sum().item() == 1.0
    with pytest.raises(ConfigError, match="a gradient that is not finite"):
        smallest_norm_weights(torch.tensor([[1.0], [math.nan]]))

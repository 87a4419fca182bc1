"""Parts A to D and H: reductions, shapes, links, against hand-worked numbers and closed derivatives."""

import math

import pytest
import torch

from mmalign.errors import HyperparameterError
from mmalign.objectives import Reduction, links, score_shapes
from mmalign.objectives.reductions import reduce_inner

LINKS = {
    "logistic": links.logistic(),
    "hinge": links.hinge(),
    "square": links.square(1.5),
    "flat": links.flat(),
    "truncated_square": links.truncated_square(),
    "savage": links.savage(),
    "exponential": links.exponential(),
    "exponential_scaled": links.exponential(100.0),
    "cauchy": links.cauchy(),
    "discovered_gate": links.discovered_gate(0.05),
    "discovered_gate_wide": links.discovered_gate(0.5),
    "mixture": links.mixture((0.5, links.exponential()), (0.5, links.logistic())),
    "loss_averse": links.loss_averse(),
    "risk_seeking_logistic": links.risk_seeking_logistic(),
    "risk_seeking_exponential_liked": links.risk_seeking_exponential(True),
    "risk_seeking_exponential_other": links.risk_seeking_exponential(False),
}
# The gate is half open at 0; the square link has its target at 1.5.
AT_ZERO = {
    "logistic": math.log(2),
    "hinge": 1.0,
    "square": 2.25,
    "flat": 0.5,
    "truncated_square": 1.0,
    "savage": 0.25,
    "exponential": 1.0,
    "exponential_scaled": 1.0,
    "cauchy": math.log(2),
    "discovered_gate": 0.5 * math.log(2) + 0.5,
    "discovered_gate_wide": 0.5 * math.log(2) + 0.5,
    "mixture": 0.5 + 0.5 * math.log(2),
    "loss_averse": 1.0 + math.log(2),
    "risk_seeking_logistic": 1.0 - math.log(2),
    "risk_seeking_exponential_liked": 1.0,
    "risk_seeking_exponential_other": 3.0,
}


@pytest.mark.parametrize("name", LINKS)
def test_link_at_zero(name):
    value = LINKS[name].function(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(value, torch.tensor([AT_ZERO[name]], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LINKS)
def test_slope_is_the_derivative_of_the_link(name):
    z = torch.tensor([-31.0, -7.3, -1.1, -0.2, 0.3, 0.9, 2.7, 31.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(LINKS[name].function(z).sum(), z)
    torch.testing.assert_close(LINKS[name].slope(z.detach()), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LINKS)
def test_link_and_gradient_are_finite_far_out(name):
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor([-1e4, -89.0, 89.0, 1e4], dtype=dtype, requires_grad=True)
        loss = LINKS[name].function(z)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", [name for name in LINKS if "gate" not in name and name != "square"])
def test_link_never_rises(name):
    z = torch.linspace(-40, 40, 401, dtype=torch.float64)
    assert (LINKS[name].slope(z) <= 0).all()


def test_square_link_falls_only_below_its_target():
    z = torch.tensor([1.0, 1.5, 2.0])
    assert torch.equal(links.square(1.5).slope(z).sign(), torch.tensor([-1.0, 0.0, 1.0]))


def test_logistic_link_is_exact_where_log_of_sigmoid_is_not():
    z = torch.tensor([-2e4, 100.0], requires_grad=True)
    loss = links.logistic().function(z)
    loss.sum().backward()
    assert loss[0] == 2e4
    assert z.grad[0] == -1.0
    assert 0 < loss[1] < 1e-40


def test_narrow_discovered_gate_first_pulls_the_wrong_way():
    """The slope at 0 is (1 - log 2) / (4 t) - 3/4: +0.784 for t = 0.05, and negative above t = 0.1023."""
    zero = torch.zeros(1, dtype=torch.float64)
    expected = (1 - math.log(2)) / 0.2 - 0.75
    assert links.discovered_gate(0.05).slope(zero).item() == pytest.approx(expected, rel=1e-12)
    assert links.discovered_gate(0.11).slope(zero).item() < 0


def test_cauchy_keeps_its_digits_in_the_tail():
    """-log(atan(z) / pi + 1/2) tends to log(pi |z|) for very negative z."""
    z = torch.tensor([-1e6])
    torch.testing.assert_close(links.cauchy().function(z), torch.tensor([math.log(math.pi * 1e6)]))


def test_discovered_gate_refuses_a_wide_temperature():
    with pytest.raises(HyperparameterError, match=r"temperature: got 1\.0, expected a number in \(0, 1\)"):
        links.discovered_gate(1.0)


@pytest.mark.parametrize(
    ("shape", "u", "expected"),
    [
        (score_shapes.identity(), -0.7, -0.7),
        (score_shapes.power(1.0), -0.7, 1 - math.exp(0.7)),
        (score_shapes.power(0.5), -0.7, 2 * (1 - math.exp(0.35))),
        (score_shapes.power(-0.25), -0.7, -4 * (1 - math.exp(-0.175))),
        (score_shapes.power(0.0), -0.7, -0.7),
        (score_shapes.js(), -0.7, math.log(2) - math.log(1 + math.exp(0.7))),
        (score_shapes.odds(), -0.7, -0.7 - math.log(1 - math.exp(-0.7))),
        # error = 1.4, kappa L = 0.7
        (score_shapes.mapo(0.5), -0.7, 0.7 / (math.exp(0.7) - 1)),
    ],
)
def test_shape_by_hand(shape, u, expected):
    value = shape.function(torch.tensor([u], dtype=torch.float64))
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("a", [1e-6, -1e-6])
def test_power_shape_tends_to_the_identity(a):
    u = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(score_shapes.power(a).function(u), u, rtol=0, atol=1e-5)


def test_power_shape_keeps_value_and_gradient_for_displaced_pairs():
    u = torch.tensor([-25.0, -1e4], requires_grad=True)
    value = score_shapes.power(1.0).function(u)
    value.sum().backward()
    edge = math.exp(20)
    torch.testing.assert_close(value, -torch.tensor([edge * 6 - 1, edge * 9981 - 1]), rtol=1e-6, atol=0)
    torch.testing.assert_close(u.grad, torch.tensor([edge, edge]), rtol=1e-6, atol=0)


def test_power_shape_slope_is_continuous_where_it_is_continued():
    u = torch.tensor([-20.0 + 1e-9, -20.0 - 1e-9], dtype=torch.float64, requires_grad=True)
    score_shapes.power(1.0).function(u).sum().backward()
    torch.testing.assert_close(u.grad[0], u.grad[1], rtol=1e-8, atol=0)


def test_mapo_shape_is_one_at_zero_error_and_falls():
    u = torch.tensor([0.0, -1e-5, -1e-3, -0.5, -60.0, -1e4], dtype=torch.float64, requires_grad=True)
    value = score_shapes.mapo(0.5).function(u)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    assert value[0] == 1.0
    assert (value.diff() <= 0).all()
    assert torch.isfinite(gradient).all()
    # d/dL of 1 - kappa L / 2 at 0 is -kappa/2, and L = -2 u.
    assert gradient[0].item() == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("edge", [1e-4, 60.0])
def test_mapo_shape_has_no_seam(edge):
    """Values and slopes agree on both sides of the points where the formula changes hands."""
    x = torch.tensor([edge * (1 - 1e-9), edge * (1 + 1e-9)], dtype=torch.float64)
    u = (-x / 1.0).requires_grad_()
    value = score_shapes.mapo(0.5).function(u)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    torch.testing.assert_close(value[0], value[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient[0], gradient[1], rtol=1e-6, atol=0)


def test_log1mexp_is_exact_on_both_sides_of_the_switch():
    x = torch.tensor([-1e-9, -0.5, -0.7, -40.0], dtype=torch.float64, requires_grad=True)
    value = score_shapes.log1mexp(x)
    value.sum().backward()
    expected = [math.log(-math.expm1(v)) if v > -1 else math.log1p(-math.exp(v)) for v in x.tolist()]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert torch.isfinite(x.grad).all()


def test_odds_are_finite_at_probability_one():
    u = torch.tensor([0.0, -1e-9, -1e-3], requires_grad=True)
    value = score_shapes.odds().function(u)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(u.grad).all()


def test_sum_and_mean_by_hand():
    """Unmasked 1, 2, 4: sum 7, mean 7/3; weights 1, 0.5, 0: sum 2, mean over the mask 2/3."""
    values = torch.tensor([[[1.0, 2.0, 4.0, math.nan, math.inf]]])
    mask = torch.tensor([[[1, 1, 1, 0, 0]]])
    weights = torch.tensor([[[1.0, 0.5, 0.0, math.nan, 1.0]]])
    assert reduce_inner(values, mask, "sum").item() == 7.0
    assert reduce_inner(values, mask, "mean").item() == pytest.approx(7 / 3)
    assert reduce_inner(values, mask, "sum", weights).item() == 2.0
    assert reduce_inner(values, mask, "mean", weights).item() == pytest.approx(2 / 3)


def test_fractional_mask_weighs_the_mean():
    """(0.5 * 2 + 1 * 8) / 1.5 = 6."""
    values, mask = torch.tensor([[[2.0, 8.0]]]), torch.tensor([[[0.5, 1.0]]])
    assert reduce_inner(values, mask, "mean").item() == pytest.approx(6.0)


def test_without_mask_all_positions_count():
    values = torch.tensor([[[1.0, 2.0, 6.0]]])
    assert reduce_inner(values, None, "sum").item() == 9.0
    assert reduce_inner(values, None, "mean").item() == 3.0


def test_candidate_without_positions_reduces_to_zero_with_zero_gradient():
    values = torch.tensor([[[math.nan, 1.0]]], requires_grad=True)
    for how in ("sum", "mean"):
        reduced = reduce_inner(values, torch.zeros(1, 1, 2), how)
        (gradient,) = torch.autograd.grad(reduced.sum(), values)
        assert reduced.item() == 0.0
        assert torch.equal(gradient, torch.zeros(1, 1, 2))


def test_reduction_refuses_bounds_in_the_wrong_order():
    with pytest.raises(HyperparameterError, match="low < high"):
        Reduction(clamp=(1.0, -1.0))

"""Algebraic properties over random inputs (section 9 of the losses specification)."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import (
    Objective,
    Reduction,
    Score,
    Scores,
    Term,
    labels,
    links,
    modifiers,
    score_shapes,
    structures,
)

numbers = st.floats(-30, 30, allow_subnormal=False)
betas = st.floats(1e-3, 10)
shares = st.floats(0.001, 0.499)
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def scores_of(*four):
    w, lose, ref_w, ref_l = four
    policy = torch.tensor([[w, lose]], dtype=torch.float64, requires_grad=True)
    return Scores(policy, torch.tensor([[ref_w, ref_l]], dtype=torch.float64))


def loss_of(objective, scores, given_labels=None):
    return objective(scores, given_labels or Labels.pairs(1)).loss


def gradient_of(objective, scores):
    return torch.autograd.grad(loss_of(objective, scores).sum(), scores.policy)[0]


def at(z):
    """Scores whose DPO logit at beta 1 is z."""
    return scores_of(z, 0.0, 0.0, 0.0)


@quick
@given(z=st.floats(-500, 500), beta=betas)
def test_logistic_loss_of_both_labels_differs_by_the_logit(z, beta):
    objective = objectives.dpo(beta=beta)
    scores = at(z)
    difference = loss_of(objective, scores) - loss_of(objective, scores.swapped())
    torch.testing.assert_close(difference.item(), -beta * z, rtol=1e-9, atol=1e-9)


@quick
@given(four=st.tuples(numbers, numbers, numbers, numbers), beta=betas)
def test_gradients_of_the_two_sides_cancel(four, beta):
    for objective in (
        objectives.dpo(beta=beta),
        objectives.cdpo(beta=beta, label_smoothing=0.1),
        objectives.hinge(beta=beta),
        objectives.ipo(tau=beta),
        objectives.simpo(beta=beta, gamma=0.3),
    ):
        gradient = gradient_of(objective, scores_of(*four))
        assert abs(gradient.sum().item()) <= 1e-9 * max(1.0, gradient.abs().max().item())


@quick
@given(z=numbers, share=shares)
def test_robust_labels_are_unbiased_under_flips(z, share):
    """(1 - e) * L(z) + e * L(-z) of the robust loss is the plain loss."""
    robust, plain = objectives.robust_dpo(beta=1.0, label_smoothing=share), objectives.dpo(beta=1.0)
    scores = at(z)
    mean = (1 - share) * loss_of(robust, scores) + share * loss_of(robust, scores.swapped())
    torch.testing.assert_close(mean, loss_of(plain, scores), rtol=1e-7, atol=1e-7 / (1 - 2 * share))


@quick
@given(share=shares)
def test_smoothed_labels_rest_at_their_log_odds(share):
    z = math.log((1 - share) / share)
    assert gradient_of(objectives.cdpo(beta=1.0, label_smoothing=share), at(z)).abs().max().item() < 1e-12
    exo = Objective("exo", (Term(structures.ListReverse(), labels=labels.best_first(share)),))
    assert gradient_of(exo, at(z)).abs().max().item() < 1e-12


@quick
@given(tau=st.floats(0.01, 10))
def test_ipo_rests_at_half_the_inverse_temperature(tau):
    scores = at(1 / (2 * tau))
    assert gradient_of(objectives.ipo(tau=tau), scores).abs().max().item() < 1e-9
    assert loss_of(objectives.ipo(tau=tau), at(0.0)).item() == pytest.approx(1 / (4 * tau * tau))


@quick
@given(four=st.tuples(numbers, numbers, numbers, numbers), beta=betas)
def test_limits_lead_back_to_dpo(four, beta):
    scores = scores_of(*four)
    expected = loss_of(objectives.dpo(beta=beta), scores)
    for objective in (
        objectives.cdpo(beta=beta, label_smoothing=0.0),
        objectives.robust_dpo(beta=beta, label_smoothing=0.0),
        Objective("f", (Term(score=Score(shape=score_shapes.power(0.0)), beta=beta),)),
        Objective("s", (Term(score=Score(scale=modifiers.roles(1.0, 1.0)), beta=beta),)),
        Objective("p", (Term(score=Score(bonus=modifiers.displacement_penalty(0.0)), beta=beta),)),
        Objective("w", (Term(score=Score(Reduction(weights=modifiers.tail_weights(1.0))), beta=beta),)),
    ):
        torch.testing.assert_close(loss_of(objective, scores), expected, rtol=1e-12, atol=1e-15)


@quick
@given(w=st.floats(-20, -0.1), lose=st.floats(-20, -0.1), beta=betas)
def test_simpo_without_margin_is_reference_free_dpo(w, lose, beta):
    scores = scores_of(w, lose, 0.0, 0.0)
    torch.testing.assert_close(
        loss_of(objectives.simpo(beta=beta, gamma=0.0), scores),
        loss_of(objectives.dpo_reference_free(beta=beta), scores),
        rtol=1e-12,
        atol=0,
    )


@quick
@given(h=st.floats(-20, 20), share=shares, target=st.floats(-5, 5))
def test_smoothing_a_square_moves_its_target(h, share, target):
    """(1-e)(h-t)^2 + e(h+t)^2 and (h-(1-2e)t)^2 have one gradient."""
    smooth = Objective("a", (Term(link=links.square(target), labels=labels.smoothed(share)),))
    moved = Objective("b", (Term(link=links.square((1 - 2 * share) * target)),))
    torch.testing.assert_close(gradient_of(smooth, at(h)), gradient_of(moved, at(h)), rtol=1e-7, atol=1e-9)


@quick
@given(four=st.tuples(numbers, numbers, numbers, numbers), shift=numbers)
def test_a_constant_in_both_candidates_changes_differences_only_under_a_shape(four, shift):
    """Bounded numbers, so that the shape's exponential does not swallow the shift."""
    scores = scores_of(*(x / 30 for x in four))
    moved = Scores(scores.policy + shift / 10, scores.reference)
    plain = objectives.dpo(beta=0.5)
    torch.testing.assert_close(loss_of(plain, moved), loss_of(plain, scores), rtol=1e-9, atol=1e-12)
    shifted = Objective("shift", (Term(score=Score(scale=modifiers.roles(1.0, 0.5)), beta=0.5),))
    same = math.isclose(
        loss_of(shifted, moved).item(), loss_of(shifted, scores).item(), rel_tol=1e-12, abs_tol=1e-15
    )
    assert same == (abs(shift) < 1e-10) or abs(shift) < 1e-6


@quick
@given(values=st.lists(numbers, min_size=5, max_size=5), cut=st.integers(1, 4))
def test_micro_batches_add_up_to_the_batch(values, cut):
    policy = torch.tensor(values, dtype=torch.float64).unsqueeze(1) * torch.tensor([[1.0, -1.0]])
    whole = Scores(policy, torch.zeros_like(policy))
    parts = [
        Scores(policy[:cut], torch.zeros_like(policy[:cut])),
        Scores(policy[cut:], torch.zeros_like(policy[cut:])),
    ]
    objective = objectives.dpo(beta=0.3)
    split = torch.cat([objective(part, Labels.pairs(part.policy.shape[0])).loss for part in parts])
    torch.testing.assert_close(split, objective(whole, Labels.pairs(5)).loss, rtol=1e-12, atol=0)


@quick
@given(levels=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3), constant=st.floats(0.0, 0.5))
def test_a_constant_error_on_both_images_leaves_dpo_unchanged(levels, constant):
    """Diffusion: score = -error / 2; an error that both images share at a timestep cancels."""
    error = torch.tensor([levels[:2]], dtype=torch.float64)
    reference = torch.full((1, 2), levels[2], dtype=torch.float64)
    objective = objectives.dpo(beta=5000.0)
    first = objective(Scores(-error / 2, -reference / 2), Labels.pairs(1)).logit
    second = objective(Scores(-(error + constant) / 2, -reference / 2), Labels.pairs(1)).logit
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)

"""Losses with conditions on the image: limits, anchors, severities, guidance."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError, ShapeError
from mmalign.objectives import Scores
from mmalign.objectives.grounded import guided_log_probs, guided_score

PROMPTS = 5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(candidates, *inner, **more):
    shape = (PROMPTS, candidates, *inner)
    return Scores(draw(*shape).requires_grad_(), draw(*shape, seed=1), **more)


def run(loss, given):
    return loss(given, Labels.pairs(PROMPTS))


def pair(given, first=0, second=1):
    return Scores(given.policy[:, [first, second]], given.reference[:, [first, second]])


def gradient(loss, given):
    return torch.autograd.grad(loss.sum(), given.policy, retain_graph=True)[0]


def test_mdpo_without_image_and_anchor_is_dpo():
    given = scores(3)
    bare = objectives.mdpo(beta=0.3, image_coefficient=0.0, anchor_coefficient=0.0)
    torch.testing.assert_close(run(bare, given).loss, run(objectives.dpo(beta=0.3), pair(given)).loss)


def test_mdpo_at_the_start_costs_three_times_log_two_and_pushes_the_chosen_answer_three_times():
    level = torch.zeros(PROMPTS, 3, dtype=torch.float64)
    given = Scores(level.clone().requires_grad_(), level)
    out = run(objectives.mdpo(beta=1.0), given)
    torch.testing.assert_close(out.loss, torch.full_like(out.loss, 3 * math.log(2)))
    expected = torch.tensor([-1.5, 0.5, 0.5], dtype=torch.float64).expand(PROMPTS, -1)
    torch.testing.assert_close(gradient(out.loss, given), expected)


def test_an_anchor_above_zero_asks_for_more():
    given = scores(3)
    low, high = (run(objectives.mdpo(beta=1.0, anchor=anchor), given).loss for anchor in (0.0, 0.5))
    assert bool((high > low).all())


def test_chip_without_tokens_and_image_is_dpo():
    given = scores(3, kl=draw(PROMPTS, 3).abs())
    bare = objectives.chip(beta=0.3, token_coefficient=0.0, image_coefficient=0.0)
    torch.testing.assert_close(run(bare, given).loss, run(objectives.dpo(beta=0.3), pair(given)).loss)


def test_chip_lets_the_divergence_of_the_rejected_answer_alone_learn():
    kl = draw(PROMPTS, 3).abs().requires_grad_()
    loss = run(objectives.chip(beta=0.3, token_coefficient=0.1), scores(3, kl=kl)).loss
    (slope,) = torch.autograd.grad(loss.sum(), kl)
    assert bool((slope[:, 1] > 0).all())
    assert bool((slope[:, [0, 2]] == 0).all())


def test_chip_without_divergences_says_where_to_get_them():
    with pytest.raises(ConfigError, match=r"Scores.kl, needed by chip.*vocabulary_kl"):
        run(objectives.chip(beta=0.3, token_coefficient=0.1), scores(3))


def test_chip_refuses_denoising_errors():
    given = scores(3, kl=draw(PROMPTS, 3).abs(), likelihood="elbo")
    with pytest.raises(ConfigError, match="a divergence over a vocabulary"):
        run(objectives.chip(beta=0.3, token_coefficient=0.1), given)


@pytest.mark.parametrize(("share", "second"), [(0.0, 1), (1.0, 2)])
def test_povid_mixes_two_comparisons(share, second):
    given = scores(3)
    torch.testing.assert_close(
        run(objectives.povid(beta=0.3, own_share=share), given).loss,
        run(objectives.dpo(beta=0.3), pair(given, 0, second)).loss,
    )


def weights(*inner, value=1.0):
    full = torch.full((PROMPTS, 5, *inner), value, dtype=torch.float64)
    return {"token_severity": full, "image_relation": full}


def test_opa_anchors_keep_both_answers_likely_and_the_released_one_pushes_the_revised_down():
    level = torch.zeros(PROMPTS, 5, 7, dtype=torch.float64)
    for name, sign in (("opa_dpo", -1.0), ("opa_dpo_released", 1.0)):
        given = Scores(level.clone().requires_grad_(), level, extras=weights(7))
        parts = run(objectives.build(name, beta=1.0), given).terms
        assert bool((gradient(parts["anchor_true"], given)[:, 0] < 0).all())
        assert bool((sign * gradient(parts["anchor_revised"], given)[:, 2] > 0).all())


def test_released_opa_counts_padding_as_log_two_unless_it_is_masked():
    policy, reference = draw(PROMPTS, 5, 7), draw(PROMPTS, 5, 7, seed=1)
    mask = torch.ones(PROMPTS, 5, 7, dtype=torch.float64)
    mask[..., 4:] = 0.0
    loss = objectives.opa_dpo_released(beta=1.0, anchor_coefficient=0.0, image_coefficient=0.0)
    padded = run(loss, Scores(policy * mask, reference * mask, extras=weights(7))).terms["true"]
    masked = run(loss, Scores(policy, reference, mask=mask, extras=weights(7))).terms["true"]
    torch.testing.assert_close(padded, (4 * masked + 3 * math.log(2)) / 7)


def test_square_anchors_pull_to_the_anchor_from_both_sides():
    given = scores(5, 7, extras=weights(7))
    u = given.policy - given.reference
    loss = objectives.opa_dpo_released(beta=0.5, anchor=0.2, anchor_kind="square")
    parts = run(loss, given).terms
    torch.testing.assert_close(parts["anchor_revised"], 2 * (0.5 * u[:, 2] - 0.2).square().mean(1))


def test_opa_refuses_unknown_anchors(untyped):
    with untyped, pytest.raises(HyperparameterError, match="anchor_kind: got 'cubic'"):
        objectives.opa_dpo_released(beta=1.0, anchor_kind="cubic")


@pytest.mark.parametrize(("sides", "factors"), [("rejected", (1, 3)), ("chosen", (2, 1)), ("both", (2, 3))])
def test_severities_count_on_the_sides_that_are_named(sides, factors):
    severity = torch.tensor([[2.0, 3.0]], dtype=torch.float64).expand(PROMPTS, -1)
    given = scores(2, extras={"severity": severity})
    u = given.policy - given.reference
    expected = -logsigmoid(0.3 * (factors[0] * u[:, 0] - factors[1] * u[:, 1]))
    torch.testing.assert_close(run(objectives.hsa_dpo(beta=0.3, sides=sides), given).loss, expected)


def test_unknown_sides_of_severities_are_refused(untyped):
    with untyped, pytest.raises(HyperparameterError, match="hsa_dpo sides: got 'left'"):
        objectives.hsa_dpo(beta=0.3, sides="left")


def test_mm_dpo_is_the_released_one_with_the_factor_of_its_gap():
    reward = draw(PROMPTS, 2).sort(1, descending=True).values
    factor = 1 - torch.exp(-0.5 * (reward[:, 0] - reward[:, 1]))
    given = scores(2, reward=reward, extras={"temperature_factor": factor})
    paper = objectives.mm_dpo(beta=0.1, strength=0.4, rate=0.5)
    released = objectives.mm_dpo_released(beta=0.1, strength=0.4)
    torch.testing.assert_close(run(paper, given).loss, run(released, given).loss)


def test_mm_dpo_keeps_its_temperature_in_its_bounds():
    for gap, expected in ((-3.0, 0.1), (0.0, 0.1), (1e3, 0.15)):
        reward = torch.tensor([[gap, 0.0]], dtype=torch.float64).expand(PROMPTS, -1)
        given = scores(2, reward=reward)
        out = run(objectives.mm_dpo(beta=0.1, strength=0.5, rate=0.5), given)
        torch.testing.assert_close(out.logit, run(objectives.dpo(beta=expected), given).logit)


def test_mm_dpo_adds_the_likelihood_of_the_chosen_answer_per_position():
    given = scores(2, 7, reward=draw(PROMPTS, 2))
    out = run(objectives.mm_dpo(beta=0.1, strength=0.5, rate=0.5, nll_coefficient=0.25), given)
    torch.testing.assert_close(out.terms["nll"], -0.25 * given.policy[:, 0].mean(1))


def test_length_control_without_smoothing_is_length_dpo():
    given = scores(2, length=draw(PROMPTS, 2).abs() * 10)
    torch.testing.assert_close(
        run(objectives.lc_dpo_chexalign(beta=0.3, alpha=0.05), given).loss,
        run(objectives.length_dpo(beta=0.3, alpha=0.05), given).loss,
    )


def test_length_control_keeps_its_sign_in_the_smoothed_part():
    length = draw(PROMPTS, 2).abs() * 10
    given = scores(2, length=length)
    u, d = given.policy - given.reference, 0.05 * (length[:, 0] - length[:, 1])
    h = 0.3 * (u[:, 0] - u[:, 1])
    expected = -0.9 * logsigmoid(h + d) - 0.1 * logsigmoid(-h + d)
    loss = objectives.lc_dpo_chexalign(beta=0.3, alpha=0.05, label_smoothing=0.1)
    torch.testing.assert_close(run(loss, given).loss, expected)


def test_a_window_of_steps_is_one_comparison_of_sums():
    given = scores(2, 7)
    whole = Scores(given.policy.sum(2), given.reference.sum(2))
    torch.testing.assert_close(
        run(objectives.grape_tpo(beta=0.1), given).loss, run(objectives.dpo(beta=0.1), whole).loss
    )


def test_guidance_one_is_dpo_and_more_multiplies_the_gradient_at_equal_scores():
    given = scores(2, extras={"imageless_score": draw(PROMPTS, 2, seed=2)})
    torch.testing.assert_close(
        run(objectives.vdpo_guided(beta=0.1, guidance=1.0), given).loss,
        run(objectives.dpo(beta=0.1), given).loss,
    )
    same = Scores(given.policy, given.policy.detach(), extras={"imageless_score": given.policy.detach()})
    once, twice = (
        gradient(run(objectives.vdpo_guided(beta=0.1, guidance=guidance), same).loss, given)
        for guidance in (1.0, 2.0)
    )
    torch.testing.assert_close(twice, 2 * once)


def test_the_row_of_guided_dpo_guides_as_the_function_does():
    blind = draw(PROMPTS, 2, seed=2)
    given = scores(2, extras={"imageless_score": blind})
    guided = Scores(guided_score(given.policy, blind, guidance=1.5), given.reference)
    torch.testing.assert_close(
        run(objectives.vdpo_guided(beta=0.1, guidance=1.5), given).loss,
        run(objectives.dpo(beta=0.1), guided).loss,
    )


def test_guidance_gives_no_gradient_to_the_blind_model():
    policy, blind = draw(5, 7).requires_grad_(), draw(5, 7, seed=1).requires_grad_()
    guided_score(policy, blind, guidance=0.75).sum().backward()
    assert blind.grad is None
    torch.testing.assert_close(policy.grad, torch.full_like(policy, 0.75))


def test_guided_logits_are_normalised_and_masked():
    logits, blind = draw(2, 5, 7), draw(2, 5, 7, seed=1)
    mask = torch.tensor([[True, True, False, True, False]]).expand(2, -1)
    every = torch.stack(
        [guided_log_probs(logits, blind, torch.full((2, 5), token), mask, guidance=1.5) for token in range(7)]
    )
    torch.testing.assert_close(every.exp().sum(0)[mask], torch.ones(6, dtype=torch.float64))
    assert bool((every[:, ~mask] == 0).all())
    shown = torch.log_softmax(1.5 * logits - 0.5 * blind, -1)
    torch.testing.assert_close(every[3][mask], shown[..., 3][mask])


def test_guidance_refuses_shapes_that_differ_and_infinities(untyped):
    with untyped, pytest.raises(ShapeError, match=r"guided_score: got \[5, 3\], expected \[5, 2\]"):
        guided_score(draw(5, 2), draw(5, 3), guidance=1.5)
    with pytest.raises(HyperparameterError, match="guidance"):
        guided_score(draw(5, 2), draw(5, 2), guidance=float("inf"))
    with pytest.raises(HyperparameterError, match="vdpo_guided guidance"):
        objectives.vdpo_guided(beta=0.1, guidance=0.0)

"""Score-function losses: against plain re-statements, and whether the gradient is the one they promise."""

import math

import pytest
import torch
from jaxtyping import config

from mmalign.errors import HyperparameterError, ShapeError
from mmalign.objectives.policy_gradient import nash_md_loss

PROMPTS, TOKENS, VOCABULARY = 5, 7, 3


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    policy = -torch.rand(PROMPTS, TOKENS, generator=generator, dtype=torch.float64) * 2
    reference = policy + 0.3 * torch.randn(PROMPTS, TOKENS, generator=generator, dtype=torch.float64)
    wins = torch.rand(PROMPTS, generator=generator, dtype=torch.float64)
    length = torch.tensor([7, 1, 3, 5, 2])
    mask = (torch.arange(TOKENS) < length[:, None]).to(dtype)
    return policy.to(dtype), reference.to(dtype), wins.to(dtype), mask


@pytest.mark.parametrize("credit", ["token", "sequence"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient_equal_a_plain_loop(credit, dtype):
    policy, reference, wins, mask = case(dtype)
    policy.requires_grad_()
    out = nash_md_loss(policy, reference, wins, mask, beta=0.1, penalty_credit=credit)
    (gradient,) = torch.autograd.grad(out.loss.sum(), policy)
    assert out.loss.dtype == dtype
    policy = policy.detach()
    for i in range(PROMPTS):
        tokens = int(mask[i].sum())
        ratios = [float(policy[i, t] - reference[i, t]) for t in range(tokens)]
        for t in range(TOKENS):
            if t >= tokens:
                assert gradient[i, t] == 0
                continue
            ratio = ratios[t] if credit == "token" else sum(ratios)
            plain = 0.1 * ratio - (float(wins[i]) - 0.5)
            assert float(gradient[i, t]) == pytest.approx(plain, rel=1e-4, abs=1e-6)
        score = (float(wins[i]) - 0.5) * sum(float(policy[i, t]) for t in range(tokens))
        assert float(out.score[i]) == pytest.approx(score, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(out.loss.detach(), out.penalty - out.score)


def test_whatever_stands_at_masked_positions_is_ignored():
    policy, reference, wins, mask = case()
    clean = nash_md_loss(policy, reference, wins, mask, beta=0.1, penalty_credit="token")
    dirty_policy = torch.where(mask > 0, policy, torch.full_like(policy, -math.inf)).requires_grad_()
    dirty_reference = torch.where(mask > 0, reference, torch.full_like(reference, math.nan))
    dirty = nash_md_loss(dirty_policy, dirty_reference, wins, mask, beta=0.1, penalty_credit="token")
    torch.testing.assert_close(dirty.loss, clean.loss)
    (gradient,) = torch.autograd.grad(dirty.loss.sum(), dirty_policy)
    assert gradient.isfinite().all()


def test_a_winning_answer_becomes_more_likely_and_a_losing_one_less():
    policy, reference, _, _ = case()
    policy.requires_grad_()
    wins = torch.tensor([0.9, 0.9, 0.1, 0.5, 0.1], dtype=torch.float64)
    out = nash_md_loss(policy, policy.detach(), wins, beta=0.1, penalty_credit="token")
    (gradient,) = torch.autograd.grad(out.loss.sum(), policy)
    expected = torch.tensor([-1.0, -1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.equal(gradient.sign(), expected[:, None].expand_as(gradient))
    assert reference.requires_grad is False


def test_only_the_policy_s_log_probabilities_carry_gradient():
    policy, reference, wins, _ = case()
    for value in (policy, reference, wins):
        value.requires_grad_()
    out = nash_md_loss(policy, reference, wins, beta=0.1, penalty_credit="sequence")
    gradients = torch.autograd.grad(out.loss.sum(), (policy, reference, wins), allow_unused=True)
    assert gradients[0] is not None
    assert gradients[1:] == (None, None)
    assert not out.score.requires_grad
    assert not out.penalty.requires_grad


@pytest.mark.parametrize(("credit", "is_unbiased"), [("sequence", True), ("token", False)])
def test_the_credit_of_the_sequence_estimates_the_gradient_of_the_divergence(credit, is_unbiased):
    """All answers of two tokens, weighted by their probability: the exact expectation of the estimate.

    The second token's distribution depends on the first, which is what token-wise credit leaves out.
    """
    generator = torch.Generator().manual_seed(0)
    first, ref_first = torch.randn(2, VOCABULARY, generator=generator, dtype=torch.float64)
    second, ref_second = torch.randn(2, VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    first.requires_grad_()
    second.requires_grad_()

    def tokens(one, two):
        """Log-probabilities [answer, 2] of all answers."""
        rows = one.log_softmax(-1)[:, None].expand(VOCABULARY, VOCABULARY)
        return torch.stack([rows, two.log_softmax(-1)], dim=-1).flatten(0, 1)

    policy, reference = tokens(first, second), tokens(ref_first, ref_second)
    chance = policy.sum(-1).exp()
    divergence = (chance * (policy - reference).sum(-1)).sum()
    exact = torch.autograd.grad(divergence, (first, second), retain_graph=True)
    half = torch.full((VOCABULARY**2,), 0.5, dtype=torch.float64)
    out = nash_md_loss(policy, reference, half, beta=1.0, penalty_credit=credit)
    estimate = torch.autograd.grad((chance.detach() * out.loss).sum(), (first, second))
    assert torch.allclose(estimate[0], exact[0], atol=1e-10) is is_unbiased


def test_extreme_log_probabilities_stay_finite():
    policy = torch.full((3, TOKENS), -1e4, requires_grad=True)
    out = nash_md_loss(policy, torch.zeros(3, TOKENS), torch.ones(3), beta=0.1, penalty_credit="sequence")
    (gradient,) = torch.autograd.grad(out.loss.sum(), policy)
    assert out.loss.isfinite().all()
    assert gradient.isfinite().all()


def test_half_precision_is_summed_in_float32():
    policy, reference, wins, mask = case(torch.bfloat16)
    out = nash_md_loss(policy, reference, wins, mask, beta=0.1, penalty_credit="token")
    wide = nash_md_loss(
        policy.double(), reference.double(), wins.double(), mask.double(), beta=0.1, penalty_credit="token"
    )
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss.double(), wide.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [-0.1, math.nan])
def test_a_strength_is_not_negative(beta):
    policy, reference, wins, _ = case()
    with pytest.raises(HyperparameterError, match=r"nash_md_loss beta: got .*, expected a number >= 0"):
        nash_md_loss(policy, reference, wins, beta=beta, penalty_credit="token")


def test_an_unknown_credit_is_refused(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    policy, reference, wins, _ = case()
    with pytest.raises(HyperparameterError, match="penalty_credit: got 'pair', expected token or sequence"):
        nash_md_loss(policy, reference, wins, beta=0.1, penalty_credit="pair")


def test_answers_scored_on_other_tokens_are_refused(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    policy, reference, wins, _ = case()
    with pytest.raises(ShapeError, match=r"policy has shape \[5, 7\], reference \[5, 6\]"):
        nash_md_loss(policy, reference[:, 1:], wins, beta=0.1, penalty_credit="token")

"""One-stage methods: limits, optima, identities, normalisers, and what they refuse."""

import math

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError
from mmalign.objectives import ObjectiveState, Scores

PROMPTS, POSITIONS = 5, 7


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def token_scores(candidates=2, **extras):
    mask = draw(PROMPTS, candidates, POSITIONS, seed=1) > 0.4
    mask[..., 0] = True
    policy = (-0.1 - draw(PROMPTS, candidates, POSITIONS)).requires_grad_()
    return Scores(policy=policy, mask=mask, extras=extras)


def gold():
    return token_scores(
        gold_score=-3.0 * draw(PROMPTS, seed=2), gold_length=1.0 + 9.0 * draw(PROMPTS, seed=3)
    )


def losses(objective, scores):
    return objective(scores, Labels.pairs(PROMPTS)).loss


@pytest.mark.parametrize("normaliser", ["sequence_mean", "sequence_sum", "batch_mean"])
def test_cpo_simpo_without_its_supervised_term_is_simpo(normaliser):
    """TRL's default of 1 makes another method of it."""
    scores = token_scores()
    bare = objectives.cpo_simpo(beta=2.0, gamma=0.5, coefficient=0.0, normaliser=normaliser)
    torch.testing.assert_close(
        losses(bare, scores), losses(objectives.simpo(beta=2.0, gamma=0.5), scores), rtol=1e-12, atol=0
    )
    full = objectives.cpo_simpo(beta=2.0, gamma=0.5, coefficient=1.0, normaliser=normaliser)
    assert (losses(full, scores) > losses(bare, scores)).all()


def test_cpo_is_dpo_under_a_uniform_reference_plus_supervision():
    scores = token_scores()
    parts = objectives.dpo_reference_free(beta=0.1) + 0.7 * objectives.sft(normaliser="batch_mean")
    ours = objectives.cpo(beta=0.1, coefficient=0.7, normaliser="batch_mean")
    torch.testing.assert_close(losses(ours, scores), losses(parts, scores), rtol=1e-12, atol=0)


def test_cpo_ipo_is_satisfied_at_its_target():
    policy = torch.tensor([[-1.0, -3.5]], dtype=torch.float64, requires_grad=True)
    out = objectives.cpo_ipo(tau=0.2, coefficient=0.0)(Scores(policy), Labels.pairs(1))
    out.loss.sum().backward()
    assert out.loss.item() == 0.0
    assert torch.equal(policy.grad, torch.zeros(1, 2, dtype=torch.float64))


def test_cpo_hinge_stops_at_its_margin():
    policy = torch.tensor([[-1.0, -12.0], [-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    out = objectives.cpo_hinge(beta=0.1, coefficient=0.0)(Scores(policy), Labels.pairs(2))
    out.loss.sum().backward()
    assert out.loss.tolist() == pytest.approx([0.0, 0.9])
    assert policy.grad[0].tolist() == [0.0, 0.0]
    assert policy.grad[1].tolist() == pytest.approx([-0.1, 0.1])


@pytest.mark.parametrize("alpha", [0.0, 1e-7, -1e-7])
def test_alphapo_becomes_simpo_as_alpha_goes_to_zero(alpha):
    scores = token_scores()
    ours = losses(objectives.alphapo(beta=2.0, alpha=alpha, gamma=0.5), scores)
    simpo = losses(objectives.simpo(beta=2.0, gamma=0.5), scores)
    torch.testing.assert_close(ours, simpo, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("alpha", "steeper"), [(0.5, True), (-0.5, False)])
def test_alphapo_weighs_unlikely_answers_by_the_sign_of_alpha(alpha, steeper):
    policy = torch.tensor([[-2.0, -2.0]], dtype=torch.float64, requires_grad=True)
    objectives.alphapo(beta=1.0, alpha=alpha, gamma=0.0)(
        Scores(policy), Labels.pairs(1)
    ).loss.sum().backward()
    assert (policy.grad[0, 1].item() > 0.5) is steeper


def test_alphapo_keeps_a_finite_gradient_where_the_power_overflows():
    policy = torch.tensor([[-1.0, -9000.0], [-9000.0, -1.0]], requires_grad=True)
    out = objectives.alphapo(beta=2.5, alpha=0.25, gamma=0.3)(Scores(policy), Labels.pairs(2))
    out.loss.sum().backward()
    assert torch.isfinite(out.loss).all()
    assert torch.isfinite(policy.grad).all()
    assert policy.grad[1, 0] < 0


def test_alphapo_refuses_denoising_errors():
    scores = Scores(draw(PROMPTS, 2), likelihood="elbo")
    with pytest.raises(ConfigError, match=r"alphapo on the likelihood 'elbo'.*power of a probability"):
        losses(objectives.alphapo(beta=2.0, alpha=0.25, gamma=0.0), scores)


def test_asft_collapses_to_supervision_plus_unlikelihood():
    scores = Scores((-0.1 - 2.0 * draw(PROMPTS, 2)).requires_grad_())
    p = scores.policy
    plain = -p[:, 0] + 0.3 * (-p[:, 0] - torch.log(1.0 - torch.exp(p[:, 1])))
    ours = losses(objectives.asft(beta=0.3), scores)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(ours.sum(), scores.policy)
    (wanted,) = torch.autograd.grad(plain.sum(), scores.policy)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_asft_after_a_supervised_stage_trains_tempered_odds_alone():
    """odds(log 0.8) = log 4 and odds(log 0.2) = -log 4; temperature 0.5 leaves log 2: both cost log 1.5."""
    policy = torch.tensor([[math.log(0.8), math.log(0.2)]], dtype=torch.float64)
    out = objectives.asft(beta=1.0, temperature=0.5, coefficient=0.0)(Scores(policy), Labels.pairs(1))
    assert out.loss.item() == pytest.approx(2.0 * math.log(1.5), rel=1e-12)
    assert list(out.terms) == ["alignment"]


def test_asft_refuses_denoising_errors():
    with pytest.raises(ConfigError, match=r"asft on the likelihood 'elbo'.*odds need a probability"):
        losses(objectives.asft(beta=0.1), Scores(-draw(PROMPTS, 2), likelihood="elbo"))


def test_triple_po_takes_its_supervision_from_the_gold_answer_alone():
    scores = gold()
    total = scores.extras["gold_score"].requires_grad_()
    with_gold = losses(objectives.triple_po(beta=0.1, coefficient=0.5), scores)
    without = losses(objectives.triple_po(beta=0.1, coefficient=0.0), scores)
    mean = -0.5 * total / scores.extras["gold_length"]
    torch.testing.assert_close(with_gold - without, mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(without, losses(objectives.cpo(beta=0.1, coefficient=0.0), scores))
    (gradient,) = torch.autograd.grad(with_gold.sum(), total)
    torch.testing.assert_close(gradient, -0.5 / scores.extras["gold_length"])


def test_triple_po_l_without_gold_is_simpo():
    scores = gold()
    ours = losses(objectives.triple_po_l(beta=2.0, gamma=0.5, coefficient=0.0), scores)
    torch.testing.assert_close(ours, losses(objectives.simpo(beta=2.0, gamma=0.5), scores))


def test_gold_normalisers_are_what_they_say():
    scores = gold()
    total, length = scores.extras["gold_score"], scores.extras["gold_length"]
    found = {
        normaliser: objectives.triple_po(beta=0.1, coefficient=1.0, normaliser=normaliser)(
            scores, Labels.pairs(PROMPTS)
        ).terms["gold_nll"]
        for normaliser in ("sequence_mean", "sequence_sum", "batch_mean")
    }
    torch.testing.assert_close(found["sequence_mean"], -total / length)
    torch.testing.assert_close(found["sequence_sum"], -total)
    torch.testing.assert_close(found["batch_mean"].mean(), -total.sum() / length.sum())


def test_gold_batch_mean_sharded_over_ranks_equals_one_process():
    whole, ranks = gold(), [slice(0, 2), slice(2, PROMPTS)]
    objective = objectives.triple_po(beta=0.1, coefficient=1.0, normaliser="batch_mean")
    wanted = losses(objective, whole)
    parts = [
        Scores(
            policy=whole.policy[rank],
            mask=whole.mask[rank],
            extras={name: value[rank] for name, value in whole.extras.items()},
        )
        for rank in ranks
    ]
    length, rows = whole.extras["gold_length"].sum(), float(PROMPTS)
    everywhere = torch.stack([length, torch.tensor(rows, dtype=torch.float64)])
    state = ObjectiveState(sum_across=lambda value: everywhere)
    found = [objective(part, Labels.pairs(len(part.policy)), state).loss for part in parts]
    torch.testing.assert_close(torch.cat(found), wanted, rtol=1e-12, atol=0)


def test_row_that_does_not_count_gives_its_gold_answer_no_gradient():
    scores = gold()
    total = scores.extras["gold_score"].clone()
    total[1] = float("nan")
    total.requires_grad_()
    broken = Scores(scores.policy, mask=scores.mask, extras={**scores.extras, "gold_score": total})
    valid = torch.ones(PROMPTS, 2, dtype=torch.bool)
    valid[1] = False
    for normaliser in ("sequence_mean", "batch_mean"):
        objective = objectives.triple_po(beta=0.1, coefficient=1.0, normaliser=normaliser)
        out = objective(broken, Labels(valid=valid))
        (gradient,) = torch.autograd.grad(out.loss.sum(), total)
        assert torch.isfinite(out.loss).all()
        assert torch.isfinite(gradient).all()
        assert gradient[1] == 0


def test_missing_gold_answer_is_named():
    with pytest.raises(
        ConfigError, match=r"extras\['gold_score'\], needed by the supervised term on the gold"
    ):
        losses(objectives.triple_po(beta=0.1, coefficient=1.0), token_scores())


def test_logo_with_one_rejected_answer_is_cpo_simpo():
    scores = token_scores()
    ours = losses(objectives.logo(beta=10.0, gamma=3.0, coefficient=0.1), scores)
    pair = losses(objectives.cpo_simpo(beta=10.0, gamma=3.0, coefficient=0.1), scores)
    torch.testing.assert_close(ours, pair, rtol=1e-12, atol=0)


def test_logo_by_hand_weighs_all_rejected_answers_alike():
    policy = torch.tensor([[-1.0, -2.0, -4.0]], dtype=torch.float64, requires_grad=True)
    out = objectives.logo(beta=2.0, gamma=1.0, coefficient=0.0)(Scores(policy), Labels())
    assert out.loss.item() == pytest.approx(math.log1p(math.exp(-3.0)), rel=1e-12)  # z = 2 * (-1 + 3) - 1
    out.loss.sum().backward()
    slope = 2.0 / (1.0 + math.exp(3.0))
    assert policy.grad[0].tolist() == pytest.approx([-slope, slope / 2, slope / 2], rel=1e-12)


def test_logo_leaves_padded_answers_out_of_the_average():
    policy = torch.tensor([[-1.0, -2.0, -4.0, 99.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False]])
    objective = objectives.logo(beta=2.0, gamma=1.0, coefficient=0.0)
    padded, plain = objective(Scores(policy), Labels(valid=valid)), objective(Scores(policy[:, :3]), Labels())
    torch.testing.assert_close(padded.loss, plain.loss)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: objectives.cpo(beta=0.0, coefficient=1.0), "cpo beta: got 0.0"),
        (lambda: objectives.cpo(beta=0.1, coefficient=-1.0), "cpo coefficient: got -1.0"),
        (lambda: objectives.cpo(beta=0.1, coefficient=1.0, label_smoothing=0.6), "share: got 0.6"),
        (lambda: objectives.cpo_hinge(beta=0.1, coefficient=math.inf), "cpo_hinge coefficient: got inf"),
        (lambda: objectives.cpo_ipo(tau=0.0, coefficient=1.0), "cpo_ipo tau: got 0.0"),
        (lambda: objectives.cpo_simpo(beta=2.0, gamma=-1.0, coefficient=1.0), "cpo_simpo gamma: got -1.0"),
        (lambda: objectives.alphapo(beta=2.0, alpha=math.inf, gamma=0.0), "power shape a: got inf"),
        (lambda: objectives.alphapo(beta=2.0, alpha=0.1, gamma=-0.1), "alphapo gamma: got -0.1"),
        (
            lambda: objectives.triple_po(beta=0.1, coefficient=0.0, normaliser="whole_mean"),
            "gold answer: got 'whole_mean'",
        ),
        (
            lambda: objectives.triple_po_l(beta=1.0, gamma=math.nan, coefficient=1.0),
            "triple_po_l gamma: got nan",
        ),
        (lambda: objectives.asft(beta=-0.1), "asft beta: got -0.1"),
        (lambda: objectives.asft(beta=0.1, temperature=0.0), "asft temperature: got 0.0"),
        (lambda: objectives.asft(beta=0.1, coefficient=-1.0), "asft coefficient: got -1.0"),
        (lambda: objectives.logo(beta=1.0, gamma=0.0, coefficient=-1.0), "logo coefficient: got -1.0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(build, message):
    with pytest.raises(HyperparameterError, match=message):
        build()


def test_unknown_normaliser_is_refused_even_where_its_term_is_left_out(untyped):
    with untyped, pytest.raises(HyperparameterError, match="normaliser: got 'mean'"):
        objectives.cpo(beta=0.1, coefficient=0.0, normaliser="mean")

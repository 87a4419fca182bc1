"""Token-aware methods: limits, optima, where gradients go, what masks hide, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError, ShapeError
from mmalign.objectives import Scores

PROMPTS, POSITIONS = 5, 7
SHAPE = (PROMPTS, 2, POSITIONS)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask():
    kept = draw(*SHAPE, seed=1) > 0.4
    kept[..., 1] = True
    return kept


INPUTS = (
    "changed",
    "kept_positions",
    "kept_reference_positions",
    "kl_mask",
    "phrase",
    "reward_mask",
    "reward_model_score",
    "token_mask",
)


def token_scores(**extras):
    """Scores with everything any row reads, `extras` in place of random inputs."""
    policy = -0.1 - 2.0 * draw(*SHAPE)
    inputs = {name: draw(*SHAPE, seed=10 + number) for number, name in enumerate(INPUTS)}
    return Scores(
        policy=policy.requires_grad_(),
        reference=policy.detach() - 0.5 + draw(*SHAPE, seed=2),
        mask=mask(),
        kl=draw(*SHAPE, seed=3).requires_grad_(),
        extras={**inputs, **extras},
    )


def losses(objective, scores):
    return objective(scores, Labels.pairs(PROMPTS)).loss


def same(first, second, scores):
    torch.testing.assert_close(losses(first, scores), losses(second, scores), rtol=1e-12, atol=1e-14)


ONES = torch.ones(SHAPE, dtype=torch.float64)


@pytest.mark.parametrize(
    "build",
    [
        lambda: (objectives.tdpo2(beta=0.3, alpha=0.0), {}),
        lambda: (objectives.ld_dpo(beta=0.3, alpha=1.0), {}),
        lambda: (objectives.ld_dpo_policy_only(beta=0.3, alpha=1.0), {}),
        lambda: (objectives.d2po_temporal_decay(beta=0.3, gamma=1.0), {}),
        lambda: (objectives.dense_dpo(beta=0.3, weight=1.0), {}),
        lambda: (objectives.tgdpo(beta=0.3, alpha=0.0), {}),
        lambda: (objectives.sampo(beta=0.3), {"kept_positions": ONES}),
        lambda: (objectives.rrpo(beta=0.3, alpha=0.0), {"phrase": ONES}),
    ],
    ids=["tdpo2", "ld_dpo", "ld_dpo_policy_only", "d2po", "dense_dpo", "tgdpo", "sampo", "rrpo"],
)
def test_row_is_dpo_at_its_limit(build):
    objective, extras = build()
    same(objective, objectives.dpo(beta=0.3), token_scores(**extras))


def test_dense_dpo_normalised_by_equal_weights_is_length_normalised_dpo():
    ours = objectives.dense_dpo(beta=3.0, weight=1.0, normaliser="weight")
    same(ours, objectives.dpo(beta=3.0, reduction="mean"), token_scores())


def test_dense_dpo_by_hand():
    """Weights 1 and 4: sums 1 - 8 = -7 and 2; normalised by 5 and by 2."""
    scores = Scores(
        policy=torch.tensor([[[1.0, -2.0], [1.0, 1.0]]], dtype=torch.float64),
        reference=torch.zeros(1, 2, 2, dtype=torch.float64),
        mask=torch.ones(1, 2, 2),
        extras={"changed": torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])},
    )
    total = objectives.dense_dpo(beta=1.0, weight=4.0)(scores, Labels.pairs(1))
    mean = objectives.dense_dpo(beta=1.0, weight=4.0, normaliser="weight")(scores, Labels.pairs(1))
    assert total.logit.item() == pytest.approx(-9.0)
    assert mean.logit.item() == pytest.approx(-7.0 / 5.0 - 1.0)


def test_dense_dpo_normalised_by_weights_does_not_change_with_their_scale():
    """Everything changed: only the normaliser keeps the weight from scaling beta."""
    scores = token_scores(changed=ONES)
    one = objectives.dense_dpo(beta=3.0, weight=5.0, normaliser="weight")
    same(one, objectives.dpo(beta=3.0, reduction="mean"), scores)
    same(objectives.dense_dpo(beta=0.3, weight=5.0), objectives.dpo(beta=1.5), scores)


def test_full_masks_make_sparsepo_and_its_fixed_mask_tdpo():
    scores = token_scores(reward_mask=ONES, kl_mask=ONES, token_mask=ONES)
    same(objectives.sparsepo(beta=0.3), objectives.tdpo1(beta=0.3), scores)
    same(objectives.mapo_masked(beta=0.3), objectives.tdpo1(beta=0.3), scores)


def test_divergence_summed_beforehand_gives_the_same_losses():
    scores = token_scores()
    summed = replace(scores, kl=torch.where(scores.mask, scores.kl, 0.0).sum(-1))
    for objective in (
        objectives.tdpo1(beta=0.3),
        objectives.tdpo2(beta=0.3, alpha=0.5),
        objectives.rrpo(beta=0.3, alpha=0.5),
    ):
        torch.testing.assert_close(losses(objective, scores), losses(objective, summed))


def gradients(objective, scores, *names):
    wanted = [scores.kl if name == "kl" else scores.extras[name] for name in names]
    found = torch.autograd.grad(losses(objective, scores).sum(), wanted, allow_unused=True)
    return dict(zip(names, found, strict=True))


def test_tdpo2_moves_the_divergence_of_the_rejected_response_only():
    scores = token_scores()
    kl = gradients(objectives.tdpo2(beta=0.3, alpha=0.5), scores, "kl")["kl"]
    assert (kl[:, 0] == 0).all()
    assert (kl[:, 1][scores.mask[:, 1]] > 0).all()
    both = gradients(objectives.tdpo1(beta=0.3), scores, "kl")["kl"]
    assert (both[:, 0][scores.mask[:, 0]] < 0).all()


def test_learned_masks_get_gradient_and_the_fixed_one_none():
    given = {name: draw(*SHAPE, seed=7).requires_grad_() for name in ("reward_mask", "kl_mask", "token_mask")}
    scores = token_scores(**given)
    learned = gradients(objectives.sparsepo(beta=0.3), scores, "reward_mask", "kl_mask", "kl")
    assert all((learned[name][scores.mask] != 0).all() for name in learned)
    fixed = gradients(objectives.mapo_masked(beta=0.3), scores, "token_mask", "kl")
    assert fixed["token_mask"] is None
    assert (fixed["kl"][scores.mask] != 0).all()


def test_norms_pull_the_masks_of_both_responses_to_zero():
    given = {name: draw(*SHAPE, seed=7).requires_grad_() for name in ("reward_mask", "kl_mask")}
    scores = token_scores(**given)
    plain, normed = (
        objectives.sparsepo(beta=0.3, reward_norm=size, kl_norm=2.0 * size) for size in (0.0, 0.01)
    )
    difference = losses(normed, scores) - losses(plain, scores)
    expected = sum(
        size * torch.where(scores.mask, given[name], 0.0).sum((1, 2))
        for name, size in (("reward_mask", 0.01), ("kl_mask", 0.02))
    )
    torch.testing.assert_close(difference, expected)


def test_reward_guidance_carries_no_gradient():
    reward = draw(*SHAPE, seed=8).requires_grad_()
    scores = token_scores(reward_model_score=reward)
    objective = objectives.tgdpo(beta=0.3, alpha=0.5)
    assert gradients(objective, scores, "reward_model_score")["reward_model_score"] is None


def test_reward_guidance_weighs_good_tokens_up_in_chosen_and_down_in_rejected_responses():
    """reward = 0.5 * (0 - -1) = 0.5: weights 1.5 and 0.5."""
    scores = Scores(
        policy=torch.zeros(1, 2, 1, dtype=torch.float64),
        reference=-torch.ones(1, 2, 1, dtype=torch.float64),
        extras={"reward_model_score": torch.zeros(1, 2, 1, dtype=torch.float64)},
    )
    out = objectives.tgdpo(beta=0.5, alpha=1.0)(scores, Labels.pairs(1))
    assert out.logit.item() == pytest.approx(0.5 * (1.5 - 0.5))


ROWS = {
    "d2po_temporal_decay": lambda: objectives.d2po_temporal_decay(beta=0.3, gamma=0.9),
    "dense_dpo": lambda: objectives.dense_dpo(beta=0.3, weight=5.0),
    "dense_dpo_mean": lambda: objectives.dense_dpo(beta=0.3, weight=5.0, normaliser="weight"),
    "fdpo_js_ipo": lambda: objectives.fdpo_js_ipo(tau=0.3),
    "ld_dpo": lambda: objectives.ld_dpo(beta=0.3, alpha=0.4),
    "ld_dpo_policy_only": lambda: objectives.ld_dpo_policy_only(beta=0.3, alpha=0.4),
    "mapo_masked": lambda: objectives.mapo_masked(beta=0.3),
    "rrpo": lambda: objectives.rrpo(beta=0.3, alpha=0.1),
    "sampo": lambda: objectives.sampo(beta=0.3),
    "sampo_independent": lambda: objectives.sampo(beta=0.3, draws="independent"),
    "sparsepo": lambda: objectives.sparsepo(beta=0.3, reward_norm=0.1, kl_norm=0.1),
    "tdpo1": lambda: objectives.tdpo1(beta=0.3),
    "tdpo2": lambda: objectives.tdpo2(beta=0.3, alpha=0.5),
    "tgdpo": lambda: objectives.tgdpo(beta=0.3, alpha=0.5),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_masked_positions_are_never_looked_at(name):
    """NaN everywhere under the mask: losses as before, gradients finite and 0 there."""
    plain = token_scores()
    names = [*plain.extras]

    def hidden(value):
        return torch.where(plain.mask, value.detach(), float("nan")).requires_grad_()

    broken = replace(
        plain,
        policy=hidden(plain.policy),
        reference=torch.where(plain.mask, plain.reference, float("nan")),
        kl=hidden(plain.kl),
        extras={key: hidden(plain.extras[key]) for key in names},
    )
    objective = ROWS[name]()
    found = losses(objective, broken)
    torch.testing.assert_close(found, losses(objective, plain), rtol=1e-12, atol=0)
    leaves = [broken.policy, broken.kl, *(broken.extras[key] for key in names)]
    for gradient in torch.autograd.grad(found.sum(), leaves, allow_unused=True):
        if gradient is not None:
            assert torch.isfinite(gradient).all()
            assert (gradient[~plain.mask] == 0).all()


@pytest.mark.parametrize("name", list(ROWS))
def test_row_that_does_not_count_spoils_nothing_through_its_inputs(name):
    plain = token_scores()
    valid = torch.ones(PROMPTS, 2, dtype=torch.bool)
    valid[3] = False

    def spoilt(value):
        value = value.detach().clone()
        value[3] = float("nan")
        return value.requires_grad_()

    broken = replace(
        plain,
        policy=spoilt(plain.policy),
        kl=spoilt(plain.kl),
        extras={key: spoilt(value) for key, value in plain.extras.items()},
    )
    objective = ROWS[name]()
    out = objective(broken, Labels(valid=valid))
    rest = [0, 1, 2, 4]
    assert out.loss[3] == 0
    torch.testing.assert_close(out.loss[rest], losses(objective, plain)[rest])
    (gradient,) = torch.autograd.grad(out.loss.sum(), broken.policy)
    assert torch.isfinite(gradient).all()


@pytest.mark.compiled
@pytest.mark.parametrize("name", list(ROWS))
def test_row_compiles_without_breaks_on_positions_too(name):
    objective, scores = ROWS[name](), token_scores()

    def step(policy):
        return losses(objective, replace(scores, policy=policy)).sum()

    torch.compiler.reset()  # each row is another program in the same functions
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(scores.policy), step(scores.policy))


# ------------------------------------------------------------------------------------------- length


def test_shared_subset_keeps_as_many_positions_as_the_shortest_candidate_has():
    kept = objectives.shared_subset(mask(), generator=torch.Generator().manual_seed(0))
    shortest = mask().sum(-1).amin(1, keepdim=True)
    assert (kept.sum(-1) == shortest).all()
    assert not (kept & ~mask()).any()


def test_shared_subset_ignores_candidates_without_positions():
    counts = torch.tensor([[[1, 1, 1], [1, 1, 0], [0, 0, 0]]])
    kept = objectives.shared_subset(counts, generator=torch.Generator().manual_seed(0))
    assert kept.sum(-1).tolist() == [[2, 2, 0]]


def test_shared_subset_draws_every_position_equally_often():
    counts = torch.ones(20_000, 2, 5, dtype=torch.bool)
    counts[:, 1, 2:] = False
    kept = objectives.shared_subset(counts, generator=torch.Generator().manual_seed(0))
    share = kept[:, 0].double().mean(0)
    torch.testing.assert_close(share, torch.full((5,), 0.4, dtype=torch.float64), rtol=0, atol=0.015)
    again = objectives.shared_subset(counts, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kept, again)


def test_sampo_with_one_draw_starts_at_zero_and_with_two_it_does_not():
    given = token_scores(
        kept_positions=(draw(*SHAPE, seed=5) > 0.5).double(),
        kept_reference_positions=(draw(*SHAPE, seed=6) > 0.5).double(),
    )
    start = replace(given, policy=given.reference.clone())
    shared = objectives.sampo(beta=0.3)(start, Labels.pairs(PROMPTS))
    independent = objectives.sampo(beta=0.3, draws="independent")(start, Labels.pairs(PROMPTS))
    assert (shared.logit == 0).all()
    assert (independent.logit != 0).any()


def test_ld_dpo_starts_at_zero_and_its_policy_only_form_does_not():
    given = token_scores()
    start = replace(given, policy=given.reference.clone())
    both = objectives.ld_dpo(beta=0.3, alpha=0.4)(start, Labels.pairs(PROMPTS))
    policy_only = objectives.ld_dpo_policy_only(beta=0.3, alpha=0.4)(start, Labels.pairs(PROMPTS))
    assert (both.logit == 0).all()
    unequal = mask()[:, 0].sum(-1) != mask()[:, 1].sum(-1)
    assert ((policy_only.logit != 0) == unequal).all()


def test_ld_dpo_at_zero_ignores_the_tail_of_the_longer_response():
    """Mask 1 at positions 0, 2, 3 and at 1: the tail is positions 2 and 3 of the chosen response."""
    kept = torch.tensor([[[1, 0, 1, 1], [0, 1, 0, 0]]])
    policy = torch.zeros(1, 2, 4, dtype=torch.float64, requires_grad=True)
    scores = Scores(policy, torch.zeros_like(policy), mask=kept)
    objectives.ld_dpo(beta=1.0, alpha=0.0)(scores, Labels.pairs(1)).loss.sum().backward()
    assert (policy.grad[0, 0] != 0).tolist() == [True, False, False, False]
    assert (policy.grad[0, 1] != 0).tolist() == [False, True, False, False]


def test_temporal_decay_counts_positions_that_count():
    """gamma 0.5 on mask 0, 1, 0, 1: weights 0.5 and 0.25 at positions 1 and 3."""
    kept = torch.tensor([[[0, 1, 0, 1], [1, 0, 0, 0]]])
    policy = torch.zeros(1, 2, 4, dtype=torch.float64, requires_grad=True)
    scores = Scores(policy, torch.zeros_like(policy), mask=kept)
    objectives.d2po_temporal_decay(beta=1.0, gamma=0.5)(scores, Labels.pairs(1)).loss.sum().backward()
    assert policy.grad[0, 0].tolist() == [0.0, -0.25, 0.0, -0.125]
    assert policy.grad[0, 1].tolist() == [0.25, 0.0, 0.0, 0.0]


def test_temporal_decay_by_token_divides_by_the_number_of_tokens():
    scores = token_scores()
    same(
        objectives.d2po_temporal_decay(beta=0.3, gamma=1.0, reduction="mean"),
        objectives.dpo(beta=0.3, reduction="mean"),
        scores,
    )


def test_js_ipo_keeps_the_constant_that_two_lengths_do_not_cancel():
    """u = 0 on both sides: s = log 2 - log 2 = 0, whatever the lengths."""
    scores = Scores(torch.zeros(1, 2), torch.zeros(1, 2), length=torch.tensor([[2.0, 11.0]]))
    out = objectives.fdpo_js_ipo(tau=0.5)(scores, Labels.pairs(1))
    assert out.loss.item() == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------- OREO


def states(policy, reference, value, reward, kl=None):
    return Scores(
        policy=policy.requires_grad_(),
        reference=reference,
        reward=reward,
        kl=kl,
        extras={"value": value.requires_grad_()},
    )


def test_solution_of_the_soft_bellman_equation_costs_nothing():
    """Two actions per state, reward at the end: V = beta log E[exp(V' / beta)], u = (V' - V) / beta."""
    beta, depth = 0.5, 3
    reward = draw(2**depth, seed=4)
    value, levels = reward, [reward]
    for _ in range(depth):
        value = beta * (torch.logsumexp(value.reshape(-1, 2) / beta, 1) - math.log(2.0))
        levels.insert(0, value)
    leaf = torch.arange(2**depth)
    path = torch.stack([levels[step][leaf // 2 ** (depth - step)] for step in range(depth + 1)], dim=1)
    log_ratio = (path[:, 1:] - path[:, :-1]) / beta
    reference = torch.full((2**depth, 1, depth), -math.log(2.0), dtype=torch.float64)
    scores = states(reference + log_ratio.unsqueeze(1), reference, path[:, :-1].unsqueeze(1), reward[:, None])
    labels = Labels.unpaired(torch.ones(2**depth, dtype=torch.bool))
    out = objectives.oreo(beta=beta, alpha=0.0)(scores, labels)
    torch.testing.assert_close(out.loss, torch.zeros(2**depth, dtype=torch.float64), rtol=0, atol=1e-20)
    out.loss.sum().backward()
    assert scores.policy.grad.abs().max() < 1e-12
    assert scores.extras["value"].grad.abs().max() < 1e-12
    torch.testing.assert_close(
        scores.policy.detach().sum(-1).exp().sum(), torch.tensor(1.0, dtype=torch.float64)
    )


def oreo_example():
    kept = mask()[:, :1]
    policy = -0.1 - draw(PROMPTS, 1, POSITIONS)
    scores = states(
        policy,
        -0.1 - draw(PROMPTS, 1, POSITIONS, seed=1),
        draw(PROMPTS, 1, POSITIONS, seed=2),
        (draw(PROMPTS, 1, seed=3) > 0.5).double(),
        draw(PROMPTS, 1, POSITIONS, seed=4),
    )
    return replace(scores, mask=kept), Labels.unpaired(torch.ones(PROMPTS, dtype=torch.bool))


def test_policy_and_value_function_learn_from_their_own_loss_only():
    scores, labels = oreo_example()
    terms = objectives.oreo(beta=0.3, alpha=0.0)(scores, labels).terms
    leaves = (scores.policy, scores.extras["value"])
    of_policy = torch.autograd.grad(terms["policy"].sum(), leaves, retain_graph=True, allow_unused=True)
    of_value = torch.autograd.grad(terms["value"].sum(), leaves, allow_unused=True)
    assert (of_policy[0][scores.mask] != 0).all()
    assert of_policy[1] is None or (of_policy[1] == 0).all()
    assert of_value[0] is None or (of_value[0] == 0).all()
    assert (of_value[1][scores.mask] != 0).all()
    torch.testing.assert_close(terms["policy"], terms["value"])


def test_later_log_ratios_reach_the_policy_loss_without_gradient():
    """The gradient of a position is 2 * beta / length times its own residual."""
    scores, labels = oreo_example()
    beta = 0.3
    loss = objectives.oreo(beta=beta, alpha=0.0)(scores, labels).terms["policy"]
    (found,) = torch.autograd.grad(loss.sum(), scores.policy)
    u = torch.where(scores.mask, scores.policy - scores.reference, 0.0).detach()
    ahead = u.flip(-1).cumsum(-1).flip(-1)
    residual = scores.extras["value"].detach() - scores.reward.unsqueeze(2) + beta * ahead
    wanted = torch.where(scores.mask, 2 * beta * residual / scores.mask.sum(-1, keepdim=True), 0.0)
    torch.testing.assert_close(found, wanted)


def test_oreo_never_looks_at_masked_states():
    scores, labels = oreo_example()

    def hidden(value):
        return torch.where(scores.mask, value.detach(), float("nan")).requires_grad_()

    value = hidden(scores.extras["value"])
    broken = replace(scores, policy=hidden(scores.policy), kl=hidden(scores.kl), extras={"value": value})
    objective = objectives.oreo(beta=0.3, alpha=0.1)
    out = objective(broken, labels)
    torch.testing.assert_close(out.loss, objective(scores, labels).loss)
    for gradient in torch.autograd.grad(out.loss.sum(), (broken.policy, value, broken.kl)):
        assert (gradient[~scores.mask] == 0).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("reward", "Scores.reward, needed by OREO"),
        ("reference", "objective oreo: got 'scores without a reference'"),
        ("kl", "Scores.kl, needed by OREO"),
    ],
)
def test_missing_input_of_oreo_is_named(field, message):
    scores, labels = oreo_example()
    with pytest.raises(ConfigError, match=message):
        objectives.oreo(beta=0.3, alpha=0.1)(replace(scores, **{field: None}), labels)


# ------------------------------------------------------------------------------------------- refusals


def test_input_of_another_shape_is_refused():
    """One weight per candidate would broadcast over tokens and mean something else."""
    scores = token_scores(changed=torch.ones(PROMPTS, 2, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"extras\['changed'\].*\[5, 2\].*\[5, 2, 7\]"):
        losses(objectives.dense_dpo(beta=0.3, weight=5.0), scores)


def test_missing_input_is_named():
    scores = replace(token_scores(), extras={})
    with pytest.raises(ConfigError, match=r"extras\['kept_positions'\], needed by SamPO"):
        losses(objectives.sampo(beta=0.3), scores)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sparsepo", "Scores.kl, needed by SparsePO"),
        ("mapo_masked", "Scores.kl, needed by mask-based MaPO"),
        ("tdpo1", "Scores.kl, needed by the token divergence"),
        ("rrpo", "Scores.kl, needed by the divergence term"),
    ],
)
def test_missing_divergence_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        losses(ROWS[name](), replace(token_scores(), kl=None))


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2", "sparsepo", "mapo_masked", "rrpo"])
def test_divergence_over_a_vocabulary_is_refused_on_denoising_errors(name):
    with pytest.raises(ConfigError, match="on the likelihood 'elbo': got 'a divergence over a vocabulary"):
        losses(ROWS[name](), replace(token_scores(), likelihood="elbo"))


@pytest.mark.parametrize("name", ["dense_dpo", "d2po_temporal_decay", "sampo"])
def test_weights_of_positions_serve_segments_of_any_modality(name):
    assert torch.isfinite(losses(ROWS[name](), replace(token_scores(), likelihood="elbo"))).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: objectives.tdpo1(beta=-1.0), "tdpo1 beta: got -1.0"),
        (lambda: objectives.tdpo2(beta=0.1, alpha=-0.5), "tdpo2 alpha: got -0.5"),
        (lambda: objectives.sparsepo(beta=0.1, reward_norm=-1.0), "sparsepo reward_norm: got -1.0"),
        (lambda: objectives.sparsepo(beta=0.1, kl_norm=math.inf), "sparsepo kl_norm: got inf"),
        (lambda: objectives.mapo_masked(beta=0.0), "mapo_masked beta: got 0.0"),
        (lambda: objectives.sampo(beta=0.0), "sampo beta: got 0.0"),
        (lambda: objectives.ld_dpo(beta=0.1, alpha=1.5), "tail_weights factor: got 1.5"),
        (lambda: objectives.ld_dpo_policy_only(beta=0.1, alpha=-0.5), "tail_weights factor: got -0.5"),
        (lambda: objectives.d2po_temporal_decay(beta=0.1, gamma=0.0), "position_decay factor: got 0.0"),
        (lambda: objectives.dense_dpo(beta=0.1, weight=-1.0), "dense_dpo weight: got -1.0"),
        (lambda: objectives.rrpo(beta=0.1, alpha=-1.0), "rrpo alpha: got -1.0"),
        (lambda: objectives.tgdpo(beta=0.1, alpha=-1.0), "tgdpo alpha: got -1.0"),
        (lambda: objectives.fdpo_js_ipo(tau=0.0), "fdpo_js_ipo tau: got 0.0"),
        (lambda: objectives.oreo(beta=0.0, alpha=0.0), "oreo beta: got 0.0"),
        (lambda: objectives.oreo(beta=0.1, alpha=-1.0), "oreo alpha: got -1.0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(build, message):
    with pytest.raises(HyperparameterError, match=message):
        build()


def test_unknown_choices_are_refused(untyped):
    with untyped:
        with pytest.raises(HyperparameterError, match="sampo draws: got 'twice'"):
            objectives.sampo(beta=0.1, draws="twice")
        with pytest.raises(HyperparameterError, match="dense_dpo normaliser: got 'mean'"):
            objectives.dense_dpo(beta=0.1, weight=2.0, normaliser="mean")


# ------------------------------------------------------------------------------------------- printing


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        (objectives.ld_dpo(beta=0.1, alpha=0.5), "weighted by (1 up to the shorter length, then 0.5))"),
        (objectives.ld_dpo_policy_only(beta=0.1, alpha=0.5), "then 0.5) in the policy only)"),
        (objectives.sampo(beta=0.1), "weighted by kept_positions)"),
        (
            objectives.sampo(beta=0.1, draws="independent"),
            "weighted by kept_positions, the reference by kept_reference_positions)",
        ),
        (objectives.tdpo1(beta=0.1), "(chosen: 1 * kl, rejected: 1 * kl)"),
        (objectives.tdpo2(beta=0.1, alpha=0.5), "(chosen: 0.5 * sg(kl), rejected: 0.5 * kl)"),
        (
            objectives.dense_dpo(beta=0.1, weight=5.0, normaliser="weight"),
            "(changed: 5, others: 1) / their sum",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, objectives.Objective) else "",
)
def test_printed_formula_tells_relatives_apart(objective, shown):
    assert shown in objective.formula

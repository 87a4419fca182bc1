"""Margins, temperatures, weights and soft labels: limits, statistics over ranks and restarts, messages."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError, ShapeError
from mmalign.objectives import ObjectiveState, Scores, margins, modifiers
from mmalign.testing.objectives import example


def softplus(x):
    return math.log1p(math.exp(x))


def pairs(policy, **more):
    """Pairs whose reference scores are 0: u is the policy's score."""
    policy = torch.tensor(policy, dtype=torch.float64)
    return Scores(policy, torch.zeros_like(policy), **more)


def numbers(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def value(objective, scores, labels=None, state=None):
    given = Labels.pairs(scores.policy.shape[0]) if labels is None else labels
    return objective(scores, given, state).loss.tolist()


RANDOM = [example(objectives.registered("nemo_rpo_sq"), seed=seed)[0] for seed in (3, 5)]


@pytest.mark.parametrize("scores", RANDOM, ids=["first", "second"])
@pytest.mark.parametrize(
    ("limit", "plain"),
    [
        (objectives.modpo(beta=0.3, weight=1.0), objectives.dpo(beta=0.3)),
        (objectives.modpo_hinge(beta=0.3, weight=1.0), objectives.hinge(beta=0.3)),
        (objectives.flex_dpo(beta_chosen=0.3, beta_rejected=0.3), objectives.dpo(beta=0.3)),
        (objectives.alpha_dpo(beta=2.0, gamma=0.4, alpha=0.0), objectives.simpo(beta=2.0, gamma=0.4)),
        (objectives.beta_dpo(beta=0.3, scale=0.0, selection="all"), objectives.dpo(beta=0.3)),
        (objectives.sem_dpo(beta=0.3, alpha=0.0), objectives.dpo(beta=0.3)),
        (objectives.cal_dpo(beta=0.3, calibration=0.0), objectives.dpo(beta=1.0)),
        (objectives.gapo_semantic(beta=2.0, gamma=0.0), objectives.simpo(beta=2.0, gamma=0.0)),
        (objectives.odpo(beta=0.3, alpha=0.0), objectives.dpo(beta=0.3)),
        (objectives.odpo(beta=0.3, alpha=0.0, offset="ratio"), objectives.dpo(beta=0.3)),
        (objectives.osp(beta=0.3), objectives.dpo(beta=0.3)),
    ],
    ids=lambda given: given.name if isinstance(given, objectives.Objective) else "",
)
def test_a_method_without_its_idea_is_the_method_it_came_from(limit, plain, scores):
    ones = torch.ones_like(scores.policy.detach())
    extras = {"margin_rewards": ones.cumsum(1), "semantic_distance": ones, "semantic_gap": ones[:, 0]}
    given = Scores(scores.policy, scores.reference, reward=scores.reward, extras=extras)
    assert value(limit, given) == pytest.approx(value(plain, given), rel=1e-12)


# -------------------------------------------------------------------------------------------------- by hand


def test_multi_objective_margin_by_hand():
    """Gap 2, beta 0.5, weights 0.4 and (0.35, 0.25), rewards apart by 1 and -2: (1 - 0.35 + 0.5) / 0.4."""
    rewards = numbers([[1.0, 0.0], [0.0, 2.0]])
    scores = pairs([[1.0, -1.0]], extras={"margin_rewards": rewards})
    objective = objectives.modpo(beta=0.5, weight=0.4, other_weights=(0.35, 0.25))
    assert objective(scores, Labels.pairs(1)).logit.item() == pytest.approx(1.15 / 0.4)


@pytest.mark.parametrize(("offset", "expected"), [("difference", math.log(3.0)), ("ratio", math.log(4.0))])
def test_offset_is_the_logarithm_of_a_difference_or_a_ratio(offset, expected):
    scores = pairs([[1.0, 0.0]], reward=numbers([4.0, 1.0]))
    out = objectives.odpo(beta=2.0, alpha=0.5, offset=offset)(scores, Labels.pairs(1))
    assert out.logit.item() == pytest.approx(2.0 - 0.5 * expected)


@pytest.mark.parametrize("offset", ["difference", "ratio"])
def test_rewards_without_a_logarithm_give_no_offset(offset):
    reward = numbers([0.0, 1.0], [-1.0, 2.0], [1.0, 0.0] if offset == "ratio" else [2.0, 2.0])
    scores = pairs([[1.0, 0.0]] * 3, reward=reward)
    out = objectives.odpo(beta=2.0, alpha=0.5, offset=offset)(scores, Labels.pairs(3))
    assert out.logit.tolist() == [2.0, 2.0, 2.0]


def test_clear_pairs_count_less_and_unclear_ones_more():
    """Weight 1 at gap +-2, where the factor is 1; at 1 above 1, at 4 below; far below 0 again 1."""
    gaps = torch.tensor([2.0, 1.0, 4.0, -2.0, -1.0, -9.0], dtype=torch.float64)
    scores = pairs([[0.0, 0.0]] * 6, reward=torch.stack([gaps, torch.zeros_like(gaps)], dim=1))
    objective = objectives.madpo(beta=0.1, low=0.5, high=2.0, steepness=1.0, threshold=2.0)
    weights = [loss / math.log(2.0) for loss in value(objective, scores)]

    def factor(h):
        return 0.5 + 1.5 / (1 + 2 * math.exp(abs(h) - 2))

    def expected(h):
        return (1 + math.exp(-h)) / (1 + math.exp(-factor(h) * h))

    assert weights == pytest.approx([1.0, expected(1.0), expected(4.0), 1.0, expected(-1.0), 1.0])
    assert weights[2] < 1.0 < weights[1]
    assert weights[4] < 1.0


def test_semantic_distance_of_the_chosen_side_weighs():
    scores = pairs([[0.0, 0.0]], extras={"semantic_distance": numbers([0.5, 2.0])})
    assert value(objectives.sem_dpo(beta=0.1, alpha=3.0), scores) == pytest.approx(
        [math.exp(-1.5) * math.log(2.0)]
    )


def test_reward_gap_weighs_on_a_scale_of_powers_and_never_below_zero():
    scores = pairs([[0.0, 0.0]] * 2, reward=numbers([100.0, 0.0], [0.0, 100.0]))
    weights = [loss / math.log(2.0) for loss in value(objectives.gapo_gap_aware(beta=5000.0), scores)]
    assert weights == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("build", "expected"), [(objectives.wpo, [1.0, 0.25]), (objectives.wpo_unclamped, [4.0, 0.25])]
)
def test_on_policy_weights_with_and_without_a_bound(build, expected):
    half, double = -math.log(2.0), math.log(2.0)
    policy = torch.zeros(2, 2, dtype=torch.float64)
    squares = numbers([half, half], [double, double])
    scores = Scores(policy, policy, extras={"log_sum_squares": squares})
    losses = value(build(beta=0.1), scores)
    assert losses == pytest.approx([weight * math.log(2.0) for weight in expected])


def test_on_policy_weight_is_a_mean_over_unmasked_positions():
    """Chosen (-1, -2) minus (-3, -1): mean 1/2; rejected one position, -1 minus 0: e^(1/2 - 1)."""
    policy = numbers([[-1.0, -2.0], [-1.0, math.nan]])
    squares = numbers([[-3.0, -1.0], [0.0, math.nan]])
    mask = torch.tensor([[[1, 1], [1, 0]]])
    scores = Scores(policy, policy.detach(), mask=mask, extras={"log_sum_squares": squares})
    assert value(objectives.wpo(beta=0.1), scores) == pytest.approx([math.exp(-0.5) * math.log(2.0)])


def test_visits_of_a_tree_set_the_smoothing():
    """Visits 3 and 1: confidence 3/4; 1 and 4: at most half of the labels are believed wrong."""
    scores = pairs([[2.0, 0.0]] * 2, extras={"visits": numbers([3.0, 1.0], [1.0, 4.0])})
    tie = 0.5 * (softplus(-1.0) + softplus(1.0))
    expected = [0.75 * softplus(-1.0) + 0.25 * softplus(1.0), tie]
    assert value(objectives.mcts_dpo(beta=0.5), scores) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["osp", "mcts_dpo"])
def test_a_judged_strength_is_a_soft_label(name):
    scores = pairs([[2.0, 0.0]], extras={"visits": numbers([0.0, 0.0])})
    labels = Labels(probability=torch.tensor([0.8], dtype=torch.float64))
    expected = 0.8 * softplus(-1.0) + 0.2 * softplus(1.0)
    assert value(objectives.build(name, beta=0.5), scores, labels) == pytest.approx([expected])


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (objectives.gpo_exponential, math.exp(-0.5)),
        (objectives.gpo_truncated_quadratic, 0.25),
        (objectives.gpo_savage, 1 / (1 + math.exp(0.5)) ** 2),
    ],
)
def test_generalised_losses_by_hand(build, expected):
    assert value(build(beta=0.25), pairs([[1.0, -1.0]])) == pytest.approx([expected])


def test_squared_hinge_leaves_won_pairs_alone():
    assert value(objectives.gpo_truncated_quadratic(beta=1.0), pairs([[1.5, 0.0]])) == [0.0]


# --------------------------------------------------------------------------------------------------- optima


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nemo_rpo_bwd_kl", {"beta": 0.5, "reward_scale": 2.0}),
        ("nemo_rpo_fwd_kl", {"beta": 0.5, "reward_scale": 2.0}),
        ("nemo_rpo_sq", {"beta": 0.5, "reward_scale": 2.0}),
        ("adpo_pair", {"temperature": 2.0, "reward_scale": 2.0}),
    ],
)
def test_reward_aware_losses_rest_where_the_gaps_agree(name, arguments):
    """Gap 1.5 of rewards, scaled by 2; beta 0.5 asks for a gap of log-ratios of 6, from either side."""
    objective = objectives.build(name, **arguments)
    reward = numbers([1.5, 0.0])
    for gap in (6.0, 5.0, 7.0):
        policy = numbers([gap, 0.0]).requires_grad_()
        out = objective(Scores(policy, torch.zeros_like(policy), reward=reward), Labels.pairs(1))
        (gradient,) = torch.autograd.grad(out.loss.sum(), policy)
        if gap == 6.0:
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
            if name.startswith("nemo"):
                assert out.loss.item() == pytest.approx(0.0, abs=1e-12)
        else:
            assert torch.sign(gradient[0, 0]) == (1.0 if gap > 6.0 else -1.0)


def test_calibration_pulls_both_sides_to_half_a_reward():
    """Far below its weight the logistic term vanishes: u = +-1 / (2 beta) is where the gradient is 0."""
    policy = numbers([5.0, -5.0]).requires_grad_()
    objective = objectives.cal_dpo(beta=0.1, calibration=1e6)
    loss = objective(Scores(policy, torch.zeros_like(policy)), Labels.pairs(1)).loss.sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient.abs().max() < 1e-4
    assert objective(Scores(policy, torch.zeros_like(policy)), Labels.pairs(1)).terms["calibration"] == 0


# ----------------------------------------------------------------------------------------------- statistics


def test_temperature_follows_the_selected_pairs_and_leaves_the_others_out():
    """Gaps 1, 3, 8, mean 2 given; pairs 1 and 3 selected: beta 0.1 * (1 + 0.5 * (4.5 - 2)) = 0.225."""
    state = ObjectiveState(
        values={
            "beta_dpo.mean": torch.tensor(2.0),
            "beta_dpo.deviation": torch.tensor(1.0),
        },
        updating=False,
    )
    selected = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    scores = pairs([[1.0, 0.0], [3.0, 0.0], [8.0, 0.0]], extras={"selected": selected})
    found = value(objectives.beta_dpo(beta=0.1, scale=0.5), scores, state=state)
    assert found == pytest.approx([1.5 * softplus(-0.225), 0.0, 1.5 * softplus(-1.8)])
    assert state.values["beta_dpo.mean"] == 2.0


def test_temperature_has_a_floor():
    state = ObjectiveState(values={"beta_dpo.mean": torch.tensor(50.0)}, updating=False)
    objective = objectives.beta_dpo(beta=0.1, scale=0.6, selection="all", floor=0.002)
    out = objective(pairs([[1.0, 0.0]]), Labels.pairs(1), state)
    assert out.logit.item() == pytest.approx(0.002)


def test_no_selected_pair_costs_nothing():
    scores = pairs([[1.0, 0.0], [2.0, 0.0]], extras={"selected": torch.zeros(2, dtype=torch.float64)})
    assert value(objectives.beta_dpo(beta=0.1, scale=0.6), scores) == [0.0, 0.0]


@pytest.mark.parametrize(
    "objective",
    [
        objectives.alpha_dpo(beta=2.5, gamma=0.75, alpha=0.2),
        objectives.beta_dpo(beta=0.1, scale=0.6, selection="all"),
    ],
    ids=["alpha_dpo", "beta_dpo"],
)
def test_one_pair_in_a_batch_is_safe(objective):
    """The deviation of one number is undefined; official code gives NaN here and ever after."""
    state, policy = ObjectiveState(), numbers([1.0, 0.0]).requires_grad_()
    for _ in range(2):
        out = objective(Scores(policy, torch.zeros_like(policy)), Labels.pairs(1), state)
        (gradient,) = torch.autograd.grad(out.loss.sum(), policy)
        assert torch.isfinite(out.loss).all()
        assert torch.isfinite(gradient).all()
    assert state.values[f"{objective.name}.deviation"] == 0.0
    assert state.values[f"{objective.name}.mean"].item() == pytest.approx(0.19)


STATEFUL = {
    "alpha_dpo": objectives.alpha_dpo(beta=2.5, gamma=0.75, alpha=0.2, label_smoothing=0.1),
    "beta_dpo": objectives.beta_dpo(beta=0.1, scale=0.6),
}


def steps(draw, count, rows):
    """Batches of `rows` pairs with a selection of 0s and 1s."""
    for _ in range(count):
        policy, reference, chance = draw(rows, 2), draw(rows, 2), draw(rows)
        yield Scores(policy, reference, extras={"selected": (chance > -0.5).to(policy.dtype)})


@pytest.mark.parametrize("name", STATEFUL)
def test_statistics_continue_from_a_checkpoint(name, draw):
    batches, whole, first = list(steps(draw, 3, 5)), ObjectiveState(), ObjectiveState()
    expected = [value(STATEFUL[name], batch, state=whole) for batch in batches]
    found = [value(STATEFUL[name], batch, state=first) for batch in batches[:2]]
    second = ObjectiveState()
    second.load_state_dict(first.state_dict())
    found.append(value(STATEFUL[name], batches[2], state=second))
    assert found == expected
    assert {key: number.item() for key, number in second.values.items()} == {
        key: number.item() for key, number in whole.values.items()
    }
    fresh = value(STATEFUL[name], batches[2], state=ObjectiveState())
    assert fresh != pytest.approx(expected[2])


def on_ranks(shares, run):
    """`run(rank, sum_across)` of every rank at once; a sum waits for all."""
    barrier, slots = Barrier(shares), [torch.zeros(())] * shares

    def rank(number):
        def sum_across(local):
            slots[number] = local
            barrier.wait()
            total = sum(slots[1:], start=slots[0])
            barrier.wait()
            return total

        return run(number, sum_across)

    with ThreadPoolExecutor(shares) as pool:
        return list(pool.map(rank, range(shares)))


def rows_of(scores, where):
    return Scores(
        scores.policy[where],
        scores.reference[where],
        extras={key: entry[where] for key, entry in scores.extras.items()},
    )


@pytest.mark.parametrize("name", STATEFUL)
def test_ranks_of_unequal_size_equal_one_process(name, draw):
    batches, whole = list(steps(draw, 3, 7)), ObjectiveState()
    expected = [value(STATEFUL[name], batch, state=whole) for batch in batches]
    parts = [slice(0, 2), slice(2, 7)]

    def run(rank, sum_across):
        state = ObjectiveState(sum_across)
        return [value(STATEFUL[name], rows_of(batch, parts[rank]), state=state) for batch in batches], state

    (first, state), (second, other) = on_ranks(2, run)
    for step, losses in enumerate(expected):
        assert first[step] + second[step] == pytest.approx(losses, rel=1e-12)
    for key, number in whole.values.items():
        assert state.values[key].item() == pytest.approx(number.item(), rel=1e-12)
        assert other.values[key].item() == state.values[key].item()


@pytest.mark.parametrize("name", STATEFUL)
def test_exchanging_some_candidates_and_their_labels_changes_no_statistic(name, draw):
    (batch,) = steps(draw, 1, 5)
    probability = torch.tensor([1.0, 0.8, 0.5, 0.3, 1.0], dtype=torch.float64)
    turned = torch.tensor([True, False, True, True, False])

    def turn(entry):
        return torch.where(turned.unsqueeze(1), entry.flip(1), entry)

    other = Scores(turn(batch.policy), turn(batch.reference), extras=batch.extras)
    states = ObjectiveState(), ObjectiveState()
    expected = value(STATEFUL[name], batch, Labels(probability=probability), states[0])
    labels = Labels(probability=torch.where(turned, 1.0 - probability, probability))
    assert value(STATEFUL[name], other, labels, states[1]) == pytest.approx(expected, rel=1e-12)
    for key, number in states[0].values.items():
        assert states[1].values[key].item() == pytest.approx(number.item(), rel=1e-12)


# ------------------------------------------------------------------------------------------------ selection


def test_selection_weighs_pairs_by_a_bell():
    gap = torch.tensor([1.0, 3.0, -3.0], dtype=torch.float64)
    mean, deviation = gap.new_tensor(1.0), gap.new_tensor(2.0)
    found = margins.selection_weights(gap, mean=mean, deviation=deviation)
    assert found.tolist() == pytest.approx([1.0, math.exp(-0.5), math.exp(-2.0)])
    alike = margins.selection_weights(gap, mean=mean, deviation=gap.new_tensor(0.0))
    assert alike.tolist() == [1.0, 1.0, 1.0]


def test_selection_drops_the_share_and_prefers_typical_pairs(make_generator):
    """One of two is kept; weights 1 and e^(-1/2): the first wins in 1 / (1 + e^(-1/2)) of the draws."""
    gap = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mean, deviation, generator = gap.new_tensor(0.0), gap.new_tensor(1.0), make_generator(7)
    draws = torch.stack(
        [
            margins.draw_selection(gap, mean=mean, deviation=deviation, drop=0.5, generator=generator)
            for _ in range(4000)
        ]
    )
    assert torch.equal(draws.sum(1), torch.ones(4000, dtype=torch.float64))
    assert draws[:, 0].mean().item() == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.03)


def test_selection_repeats_with_its_generator_and_survives_outliers(make_generator):
    gap = torch.tensor([0.0, 1e6, 0.5, -1e6, 0.1], dtype=torch.float32)
    mean, deviation = torch.tensor(0.0), torch.tensor(1.0)
    first, second = (
        margins.draw_selection(gap, mean=mean, deviation=deviation, drop=0.4, generator=make_generator(3))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]


# ---------------------------------------------------------------------------------------------- odd entries


def test_sure_and_unsure_references_keep_a_finite_temperature():
    entropy = torch.tensor([0.0, 1.0, 1.5], dtype=torch.float64)
    policy = numbers([1.0, 0.0], [1.0, 0.0], [1.0, 0.0]).requires_grad_()
    scores = Scores(policy, torch.zeros_like(policy), extras={"reference_entropy": entropy})
    out = objectives.mallows_dpo(beta=0.1, dispersion=1.0)(scores, Labels.pairs(3))
    (gradient,) = torch.autograd.grad(out.loss.sum(), policy)
    assert torch.isfinite(out.logit).all()
    assert torch.isfinite(gradient).all()
    assert out.logit[1:].tolist() == [0.0, 0.0]
    assert out.logit[0] > 1.0


@pytest.mark.parametrize(
    "name", ["alpha_dpo", "beta_dpo", "mallows_dpo", "modpo", "gapo_semantic", "sem_dpo", "mcts_dpo"]
)
def test_half_a_pair_costs_nothing_whatever_its_extras_hold(name):
    given = objectives.registered(name)
    scores, _ = example(given)
    extras = {key: entry.clone() for key, entry in scores.extras.items()}
    for entry in extras.values():
        entry[1] = math.nan
    valid = torch.ones(5, 2, dtype=torch.bool)
    valid[1, 1] = False
    broken = Scores(scores.policy, scores.reference, reward=scores.reward, extras=extras)
    labels = Labels(probability=torch.ones(5), valid=valid)
    out = given.builder(**given.sample)(broken, labels)
    (gradient,) = torch.autograd.grad(out.loss.sum(), scores.policy)
    assert out.loss[1] == 0
    assert torch.isfinite(out.loss).all()
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("name", ["mallows_dpo", "mallows_ipo", "wpo", "wpo_unclamped"])
def test_methods_of_tokens_refuse_denoising_errors(name):
    given = objectives.registered(name)
    with pytest.raises(ConfigError, match=f"objective {name} on the likelihood 'elbo'"):
        given.builder(**given.sample).require_suits("elbo")
    assert "elbo" in given.row.refuses


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("beta_dpo", "selected"),
        ("mallows_dpo", "reference_entropy"),
        ("modpo", "margin_rewards"),
        ("gapo_semantic", "semantic_gap"),
        ("sem_dpo", "semantic_distance"),
        ("mcts_dpo", "visits"),
        ("wpo", "log_sum_squares"),
    ],
)
def test_a_missing_input_is_named_with_who_needs_it(name, extra):
    given = objectives.registered(name)
    with pytest.raises(ConfigError, match=rf"Scores\.extras\['{extra}'\], needed by .*Pass it"):
        given.builder(**given.sample)(pairs([[1.0, 0.0]]), Labels.pairs(1))


def test_rewards_of_another_number_of_objectives_are_refused():
    scores = pairs([[1.0, 0.0]], extras={"margin_rewards": torch.zeros(1, 2, 3)})
    with pytest.raises(
        ShapeError, match=r"margin_rewards.*got 'shape \[1, 2, 3\]'.*\[prompt, candidate, 1\]"
    ):
        objectives.modpo(beta=0.1, weight=0.5)(scores, Labels.pairs(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: objectives.build("alpha_dpo", beta=1.0, gamma=-0.1, alpha=0.1), "alpha_dpo gamma: got -0.1"),
        (lambda: objectives.build("alpha_dpo", beta=1.0, gamma=0.1, alpha=-0.1), "alpha_dpo alpha"),
        (
            lambda: objectives.build("alpha_dpo", beta=1.0, gamma=0.1, alpha=0.1, decay=1.0),
            r"decay: got 1\.0, expected a number in \[0, 1\)",
        ),
        (
            lambda: objectives.build("alpha_dpo", beta=1.0, gamma=0.1, alpha=0.1, label_smoothing=0.6),
            "alpha_dpo label_smoothing",
        ),
        (lambda: objectives.build("beta_dpo", beta=0.1, scale=-1.0), "beta_dpo scale"),
        (lambda: objectives.build("beta_dpo", beta=0.1, scale=0.6, decay=1.0), "beta_dpo decay"),
        (lambda: objectives.build("beta_dpo", beta=0.1, scale=0.6, floor=0.0), "beta_dpo floor"),
        (
            lambda: objectives.build("beta_dpo", beta=0.1, scale=0.6, selection="drawn"),
            "beta_dpo selection: got 'drawn', expected \"'given' or 'all'\"|expected 'given' or 'all'",
        ),
        (lambda: objectives.build("mallows_dpo", beta=0.1, dispersion=0.0), "mallows_dpo dispersion"),
        (lambda: objectives.build("mallows_ipo", beta=0.1, dispersion=-1.0), "mallows_ipo dispersion"),
        (lambda: objectives.build("modpo", beta=0.1, weight=0.0), "modpo weight: got 0.0"),
        (
            lambda: objectives.build("modpo", beta=0.1, weight=1.5),
            r"modpo weight: got 1\.5, expected a number in \(0, 1\], or other_weights",
        ),
        (
            lambda: objectives.build("modpo_hinge", beta=0.1, weight=0.5, other_weights=(0.5, -0.1)),
            "modpo_hinge other_weights: got -0.1",
        ),
        (
            lambda: objectives.build("modpo", beta=0.1, weight=0.5, other_weights=()),
            "modpo number of other_weights: got 0.0, expected at least 1",
        ),
        (lambda: objectives.build("flex_dpo", beta_chosen=0.0, beta_rejected=0.1), "beta_chosen"),
        (lambda: objectives.build("flex_dpo", beta_chosen=0.1, beta_rejected=-0.1), "beta_rejected"),
        (lambda: objectives.build("gapo_semantic", beta=1.0, gamma=-1.0), "gapo_semantic gamma"),
        (
            lambda: objectives.build("arpo", beta=0.1, level=-0.1, growth=0.4, coefficient=1.0),
            "arpo level",
        ),
        (
            lambda: objectives.build("arpo", beta=0.1, level=0.9, growth=-0.4, coefficient=1.0),
            "arpo growth",
        ),
        (
            lambda: objectives.build("arpo", beta=0.1, level=0.9, growth=0.4, coefficient=-1.0),
            "arpo coefficient",
        ),
        (lambda: objectives.build("wpo", beta=0.1, label_smoothing=0.6), "wpo label_smoothing"),
        (
            lambda: objectives.madpo(beta=0.1, low=1.0, high=2.0, steepness=1.0, threshold=2.0),
            r"madpo low: got 1\.0, expected a number in \(0, 1\)",
        ),
        (
            lambda: objectives.madpo(beta=0.1, low=0.5, high=1.0, steepness=1.0, threshold=2.0),
            "madpo high",
        ),
        (
            lambda: objectives.madpo(beta=0.1, low=0.5, high=2.0, steepness=0.0, threshold=2.0),
            "madpo steepness",
        ),
        (
            lambda: objectives.madpo(beta=0.1, low=0.5, high=2.0, steepness=1.0, threshold=0.0),
            "madpo threshold",
        ),
        (lambda: objectives.sem_dpo(beta=0.1, alpha=-1.0), "sem_dpo alpha"),
        (lambda: objectives.gapo_gap_aware(beta=0.1, base=1.0), "gapo_gap_aware base"),
        (lambda: objectives.gapo_gap_aware(beta=0.1, reward_scale=0.0), "gapo_gap_aware reward_scale"),
        (lambda: objectives.nemo_rpo_sq(beta=0.1, reward_scale=0.0), "nemo_rpo_sq reward_scale"),
        (lambda: objectives.adpo_pair(temperature=0.0, reward_scale=1.0), "adpo_pair temperature"),
        (lambda: objectives.cal_dpo(beta=0.1, calibration=-1.0), "cal_dpo calibration"),
        (lambda: objectives.gpo_savage(beta=0.0), "gpo_savage beta"),
        (
            lambda: objectives.build("odpo", beta=0.1, alpha=1.0, offset="log"),
            "odpo offset: got 'log'",
        ),
        (
            lambda: margins.draw_selection(
                torch.zeros(2),
                mean=torch.tensor(0.0),
                deviation=torch.tensor(1.0),
                drop=1.0,
                generator=torch.Generator(),
            ),
            r"draw_selection drop: got 1\.0",
        ),
    ],
)
def test_wrong_hyperparameters_are_explained(build, message, untyped):
    with untyped, pytest.raises(HyperparameterError, match=message):
        build()


def test_alpha_margin_is_not_shared_with_another_row_of_the_state(draw):
    """Two methods in one sum keep statistics of their own."""
    both = STATEFUL["alpha_dpo"] + objectives.beta_dpo(beta=0.1, scale=0.6, selection="all")
    (batch,) = steps(draw, 1, 5)
    state = ObjectiveState()
    both(batch, Labels.pairs(5), state)
    assert set(state.values) == {
        f"{name}.{field}" for name in ("alpha_dpo", "term2.beta_dpo") for field in ("mean", "deviation")
    }


def test_one_gap_moves_the_statistic_once_whatever_the_label():
    """Gap 2 with probability 0.75: mean 0.1 * 0.5 * 2, added once though both orders are evaluated."""
    state = ObjectiveState()
    term = objectives.Term(margin=modifiers.standardised_gap(0.5))
    labels = Labels(probability=torch.tensor([0.75], dtype=torch.float64))
    objectives.Objective("t", (term,))(pairs([[2.0, 0.0]]), labels, state)
    assert state.values["gap.mean"].item() == pytest.approx(0.1)


@pytest.mark.parametrize("offset", ["difference", "ratio"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_missing_reward_shows_in_the_loss_of_odpo(offset, side):
    reward = torch.tensor([[3.0, 1.0], [2.0, 1.0]])
    reward[0, side] = math.nan
    scores = Scores(torch.zeros(2, 2), torch.zeros(2, 2), reward=reward)
    loss = objectives.odpo(beta=0.1, alpha=1.0, offset=offset)(scores, Labels.pairs(2)).loss
    assert loss.isnan().tolist() == [True, False]


@pytest.mark.parametrize("rewards", [[1e30, 1e30], [1e30, 0.0], [-1e30, -1e30], [0.0, 1e30]])
def test_gaps_of_powers_of_absurd_rewards_stay_finite(rewards):
    scores = Scores(torch.zeros(1, 2), torch.zeros(1, 2), reward=torch.tensor([rewards]))
    assert objectives.gapo_gap_aware(beta=1.0)(scores, Labels.pairs(1)).loss.isfinite().all()


def test_aql_with_a_still_quantile_does_not_couple_rows():
    settings = {"beta": 0.05, "temperature": 0.2}
    assert not objectives.discovered_aql(**settings, rate=0.0).couples_rows
    assert objectives.discovered_aql(**settings, rate=0.01).couples_rows


def test_printed_weights_and_shapes_read_as_what_is_computed():
    assert "min(1, on-policy weight)" in objectives.wpo(beta=0.01).formula
    assert "s = 1 - exp(-u)" in objectives.fdpo_forward_kl(beta=0.1).formula
    assert "kl[1] - sg(kl[0])" in objectives.chip(beta=0.1, token_coefficient=0.1).formula

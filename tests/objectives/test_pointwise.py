"""Points, classifiers, clamped scores and regressions: limits, running shifts, optima and messages."""

import math

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError
from mmalign.objectives import ObjectiveState, Scores
from mmalign.objectives.regression import optimal_value


def softplus(x):
    return math.log1p(math.exp(x))


def rows(*u):
    """Unpaired rows whose log-ratios are `u`."""
    policy = torch.tensor([[value] for value in u], dtype=torch.float64, requires_grad=True)
    return Scores(policy, torch.zeros_like(policy.detach()))


def pairs(*u, **more):
    policy = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    return Scores(policy, torch.zeros_like(policy.detach()), **more)


def liked(*flags):
    return Labels.unpaired(torch.tensor(flags))


def gradient(loss, scores):
    return torch.autograd.grad(loss.sum(), scores.policy)[0]


def test_bco_without_shift_is_a_classifier_by_hand():
    loss = objectives.bco(beta=0.5, delta_rule="none")(rows(1.0, -3.0), liked(True, False)).loss
    assert loss.tolist() == pytest.approx([softplus(-0.5), softplus(-1.5)])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Batches of beta * u: (1, 3), then (5, 5, 5): all samples (4 + 15) / 5, batch means (2 + 5) / 2.
        ("running_samples", [2.0, 19 / 5]),
        ("running_batches", [2.0, 7 / 2]),
    ],
)
def test_reward_shift_weighs_batches_by_its_rule(rule, expected):
    objective, state = objectives.bco(beta=0.5, delta_rule=rule), ObjectiveState()
    shifts = []
    for batch in ((2.0, 6.0), (10.0, 10.0, 10.0)):
        out = objective(rows(*batch), liked(*[True] * len(batch)), state)
        shifts.append(0.5 * batch[0] - out.logit[0].item())
    assert shifts == pytest.approx(expected)
    assert state.values["zero_point.mean"].item() == pytest.approx(expected[1])


@pytest.mark.parametrize("rule", ["running_samples", "running_batches"])
def test_reward_shift_is_read_and_not_changed_while_evaluating(rule):
    objective, state = objectives.bco(beta=1.0, delta_rule=rule), ObjectiveState()
    objective(rows(2.0, 4.0), liked(True, False), state)
    watching = ObjectiveState(values=dict(state.values), updating=False)
    assert objective(rows(10.0), liked(True), watching).logit.item() == pytest.approx(7.0)
    assert watching.values["zero_point.mean"].item() == 3.0


@pytest.mark.parametrize("rule", ["running_samples", "running_batches"])
def test_reward_shift_sees_the_rows_of_all_ranks(rule):
    """This rank holds u = 1; the other adds a sum of 8 over 2 rows: shift 3 under both rules."""
    state = ObjectiveState(sum_across=lambda value: value + torch.tensor([8.0, 2.0]))
    out = objectives.bco(beta=1.0, delta_rule=rule)(rows(1.0), liked(True), state)
    assert out.logit.item() == pytest.approx(-2.0)
    assert state.values["zero_point.count"].item() == {"running_samples": 3, "running_batches": 1}[rule]


def test_a_batch_without_real_rows_moves_no_reward_shift():
    objective, state = objectives.bco(beta=1.0, delta_rule="running_batches"), ObjectiveState()
    objective(rows(2.0), liked(True), state)
    nobody = Labels(desirable=torch.tensor([[True]]), valid=torch.tensor([[False]]))
    objective(rows(50.0), nobody, state)
    assert (state.values["zero_point.mean"].item(), state.values["zero_point.count"].item()) == (2.0, 1.0)


def test_reward_shift_is_not_spoilt_by_a_batch_that_overflows():
    objective, state = objectives.bco(beta=1.0, delta_rule="running_batches"), ObjectiveState()
    objective(rows(2.0), liked(True), state)
    objective(rows(math.inf), liked(True), state)
    assert state.values["zero_point.mean"].item() == 2.0


def test_matching_weighs_disliked_rows_by_the_odds_of_their_prompt():
    """p = 0.8 has odds 4; 0.2 and 0.99 are clipped to 0.5 and 10; liked rows count as they are."""
    scores = Scores(
        torch.zeros(5, 1, dtype=torch.float64),
        torch.zeros(5, 1, dtype=torch.float64),
        extras={"desirable_prompt_probability": torch.tensor([[0.8], [0.2], [0.99], [0.8], [0.2]])},
    )
    labels = liked(False, False, False, True, True)
    loss = objectives.bco_udm(beta=1.0, delta_rule="none")(scores, labels).loss
    assert (loss / math.log(2)).tolist() == pytest.approx([4.0, 0.5, 10.0, 1.0, 1.0], rel=1e-6)


def test_unpaired_apo_is_kto_whose_zero_point_is_zero():
    scores, labels = rows(0.6, -0.3, 1.1), liked(True, False, False)
    apo = objectives.apo_zero_unpaired(beta=0.5, desirable_weight=3.0, undesirable_weight=2.0)
    out = apo(scores, labels)
    sigmoid = [1 / (1 + math.exp(-0.5 * u)) for u in (0.6, -0.3, 1.1)]
    assert out.loss.tolist() == pytest.approx([3 * (1 - sigmoid[0]), 2 * sigmoid[1], 2 * sigmoid[2]])
    assert not apo.couples_rows


def test_legacy_kto_pulls_through_its_zero_points_and_kto_does_not():
    """Row 1 holds a positive log-ratio on both sides, so both zero points are active."""
    scores = pairs([0.5, 0.2], [1.0, 0.8])
    legacy = objectives.kto_pair_legacy(beta=0.5)(scores, Labels.pairs(2)).loss
    (through,) = torch.autograd.grad(legacy[0], scores.policy)
    assert bool((through[1] != 0).all())
    alone = rows(0.5, 1.0)
    (stopped,) = torch.autograd.grad(objectives.kto(beta=0.5)(alone, liked(True, True)).loss[0], alone.policy)
    assert stopped[1].item() == 0


def test_legacy_kto_by_hand():
    """Means 0.75 (chosen) and -0.3 (rejected, held at 0)."""
    out = objectives.kto_pair_legacy(beta=0.5)(pairs([0.5, -1.0], [1.0, 0.4]), Labels.pairs(2))
    chosen = [1 / (1 + math.exp(0.5 * u)) for u in (0.5, 1.0)]
    rejected = [1 / (1 + math.exp(0.5 * (0.75 - u))) for u in (-1.0, 0.4)]
    assert out.terms["chosen"].tolist() == pytest.approx([value / 2 for value in chosen])
    assert out.terms["rejected"].tolist() == pytest.approx([value / 2 for value in rejected])


TOKENS = Scores(
    policy=torch.tensor([[[0.5, -3.0, 0.2], [0.1, 0.3, 4.0]]], dtype=torch.float64, requires_grad=True),
    reference=torch.zeros(1, 2, 3, dtype=torch.float64),
    mask=torch.tensor([[[1, 1, 0], [1, 1, 1]]]),
)


def test_humanline_clamps_tokens_before_they_are_summed():
    """Chosen 0.5 - 1, rejected 0.1 + 0.3 + 0.4."""
    loss = objectives.humanline_dpo(beta=1.0, low=-1.0, high=0.4)(TOKENS, Labels.pairs(1)).loss
    assert loss.item() == pytest.approx(softplus(-(0.4 - 1.0 - 0.8)))
    assert gradient(loss, TOKENS)[0].ne(0).tolist() == [[False, False, False], [True, True, False]]


def test_humanline_mean_divides_by_the_mask():
    """Also where policy and reference agree: the official divisor is 0 there."""
    objective = objectives.humanline_dpo(beta=1.0, low=-1.0, high=2.0, reduction="mean")
    loss = objective(TOKENS, Labels.pairs(1)).loss
    assert loss.item() == pytest.approx(softplus(-((0.5 - 1.0) / 2 - (0.1 + 0.3 + 2.0) / 3)))
    same = Scores(TOKENS.reference.clone(), TOKENS.reference, TOKENS.mask)
    assert objective(same, Labels.pairs(1)).loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("clamped", "plain", "labels"),
    [
        (
            objectives.humanline_dpo(beta=0.3, low=-9.0, high=9.0),
            objectives.dpo(beta=0.3),
            Labels.pairs(1),
        ),
        (
            objectives.humanline_kto(beta=0.3, low=-9.0, high=9.0),
            objectives.kto(beta=0.3),
            Labels(desirable=torch.tensor([[True, False]])),
        ),
    ],
    ids=["dpo", "kto"],
)
def test_humanline_with_wide_bounds_is_its_base(clamped, plain, labels):
    torch.testing.assert_close(clamped(TOKENS, labels).loss, plain(TOKENS, labels).loss)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_humanline_of_dpo_is_the_row_humanline_dpo(reduction):
    wrapped = objectives.humanline(objectives.dpo(beta=0.3, reduction=reduction), low=-1.0, high=0.4)
    row = objectives.humanline_dpo(beta=0.3, low=-1.0, high=0.4, reduction=reduction)
    torch.testing.assert_close(wrapped(TOKENS, Labels.pairs(1)).loss, row(TOKENS, Labels.pairs(1)).loss)
    assert wrapped.name == "humanline(dpo)"


@pytest.mark.parametrize(
    "base",
    [objectives.simpo(beta=2.0, gamma=0.5), objectives.humanline_dpo(beta=0.3, low=-1.0, high=1.0)],
    ids=["no reference", "clamped already"],
)
def test_humanline_of_what_has_no_log_ratio_to_clamp_is_refused(base):
    with pytest.raises(HyperparameterError, match=r"humanline of .*terms with anchor 1 and no clamp"):
        objectives.humanline(base, low=-1.0, high=1.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 0.0), (math.nan, 1.0), (-1.0, math.inf)])
def test_humanline_of_wrong_bounds_is_refused(low, high):
    with pytest.raises(HyperparameterError, match=r"humanline (low|high)"):
        objectives.humanline(objectives.dpo(beta=0.3), low=low, high=high)


def test_sppo_with_certain_judgements_is_half_the_hard_one():
    certain = pairs([0.3, -0.2], extras={"win_probability": torch.tensor([[1.0, 0.0]])})
    labels = Labels.pairs(1)
    half = 0.5 * objectives.sppo_hard(beta=0.2)(certain, labels).loss
    torch.testing.assert_close(objectives.sppo(beta=0.2)(certain, labels).loss, half)
    torch.testing.assert_close(objectives.sppo_single(beta=0.2)(certain, labels).loss, half)


def test_sppo_rests_at_the_judged_targets():
    """(q - 1/2) / beta = 1.5 and 0.5: both answers beat the policy."""
    scores = pairs([1.5, 0.5], extras={"win_probability": torch.tensor([[0.8, 0.6]])})
    loss = objectives.sppo(beta=0.2)(scores, Labels.pairs(1)).loss
    torch.testing.assert_close(
        gradient(loss, scores), torch.zeros(1, 2, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_a_tie_draws_both_log_ratios_of_sppo_single_to_zero():
    tie = Labels(probability=torch.tensor([0.5]))
    assert objectives.sppo_single(beta=0.2)(pairs([0.3, -0.4]), tie).loss.item() == pytest.approx(0.125)


def test_sppo_single_without_a_probability_is_explained():
    with pytest.raises(ConfigError, match=r"Labels\.probability, needed by sppo_single.*candidate 0 wins"):
        objectives.sppo_single(beta=0.2)(pairs([0.3, -0.4]), Labels())


def test_sppo_without_judgements_is_explained():
    with pytest.raises(ConfigError, match=r"extras\['win_probability'\], needed by sppo"):
        objectives.sppo(beta=0.2)(pairs([0.3, -0.4]), Labels.pairs(1))


def test_advantage_regression_rests_at_the_advantage():
    """0.5 * u = 1 - 0.4 at u = 1.2."""
    given = {"reward": torch.tensor([[1.0]]), "extras": {"optimal_value": torch.tensor([[0.4]])}}
    scores = Scores(torch.tensor([[1.2]], requires_grad=True), torch.zeros(1, 1), **given)
    loss = objectives.a2po_regression(beta=0.5)(scores, Labels()).loss
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient(loss, scores).abs().item() < 1e-6


def test_advantage_regression_without_reward_is_explained():
    with pytest.raises(ConfigError, match=r"Scores\.reward, needed by a2po_regression"):
        objectives.a2po_regression(beta=0.5)(rows(1.0), Labels())


def test_optimal_value_lies_between_the_mean_and_the_best_reward():
    reward = torch.tensor([[0.0, 1.0, 0.5], [2.0, 2.0, 2.0]], dtype=torch.float64)
    assert optimal_value(reward, beta=1e4).tolist() == pytest.approx([0.5, 2.0], abs=1e-4)
    assert optimal_value(reward, beta=1e-4).tolist() == pytest.approx([1.0, 2.0], abs=1e-3)
    by_hand = math.log((1 + math.e + math.exp(0.5)) / 3)
    assert optimal_value(reward, beta=1.0)[0].item() == pytest.approx(by_hand)
    assert torch.isfinite(optimal_value(1e4 * reward, beta=1e-3)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: objectives.bco(beta=0.0, delta_rule="none"), r"bco beta: got 0\.0"),
        (
            lambda: objectives.build("bco", beta=1.0, delta_rule="batches"),
            r"bco delta_rule: got 'batches', expected one of none, running_samples, running_batches",
        ),
        (lambda: objectives.build("bco", beta=1.0), "missing delta_rule"),
        (lambda: objectives.bco(beta=1.0, delta_rule="none", desirable_weight=-1.0), "desirable_weight"),
        (lambda: objectives.bco_udm(beta=1.0, delta_rule="none", lowest=0.0), r"bco_udm lowest: got 0\.0"),
        (
            lambda: objectives.bco_udm(beta=1.0, delta_rule="none", highest=0.1),
            r"bco_udm highest: got 0\.1, expected a number >= lowest = 0\.5",
        ),
        (lambda: objectives.apo_zero_unpaired(beta=-1.0), r"apo_zero_unpaired beta: got -1\.0"),
        (lambda: objectives.kto_pair_legacy(beta=0.0), "kto_pair_legacy beta"),
        (lambda: objectives.humanline_dpo(beta=1.0, low=0.0, high=1.0), r"humanline low: got 0\.0"),
        (lambda: objectives.humanline_dpo(beta=1.0, low=-1.0, high=math.inf), "humanline high: got inf"),
        (lambda: objectives.humanline_kto(beta=0.0, low=-1.0, high=1.0), "humanline_kto beta"),
        (
            lambda: objectives.build("humanline_kto", beta=1.0, low=-1.0, high=1.0, zero_point="none"),
            "zero_point: got 'none'",
        ),
        (lambda: objectives.sppo(beta=0.0), "sppo beta"),
        (lambda: objectives.sppo_single(beta=math.nan), "sppo_single beta: got nan"),
        (lambda: objectives.a2po_regression(beta=0.0), "a2po_regression beta"),
        (lambda: optimal_value(torch.zeros(1, 2), beta=0.0), r"optimal_value beta: got 0\.0"),
    ],
)
def test_wrong_hyperparameters_are_explained(build, message, untyped):
    with untyped, pytest.raises(HyperparameterError, match=message):
        build()

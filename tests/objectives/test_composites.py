"""Sums and online rows: coefficients, limits, printed formulas and messages."""

import math

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError
from mmalign.objectives import ObjectiveState, Scores


def softplus(x):
    return math.log1p(math.exp(x))


PAIR = Labels.pairs(1)
GIVEN = {
    "response_log_ratio": 0.7,
    "reference_sample_score": -20.0,
    "rationale_score": -5.0,
    "intra_log_ratio_gap": 0.3,
    "inter_log_ratio_gap": -0.6,
}


def scores():
    """Policy -1, -3; reference -2, -2.5: u = 1, -0.5, margin 1.5."""
    return Scores(
        torch.tensor([[-1.0, -3.0]], dtype=torch.float64, requires_grad=True),
        torch.tensor([[-2.0, -2.5]], dtype=torch.float64),
        extras={
            name: torch.tensor([value], dtype=torch.float64, requires_grad=True)
            for name, value in GIVEN.items()
        },
    )


DPO = softplus(-0.6)
BCO = softplus(-0.4) + softplus(-0.2)
SHIFTED = softplus(-0.4 + 0.1) + softplus(-0.2 - 0.1)  # the batch's mean of 0.4 * u is 0.1


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (objectives.rpo_sft(beta=0.4, coefficient=0.5, normaliser="sequence_sum"), DPO + 0.5),
        (objectives.irpo_reasoning(beta=0.4, alpha=2.0), DPO + 2.0),
        (
            objectives.mpo(beta=0.4, delta_rule="none", normaliser="sequence_sum"),
            0.8 * DPO + 0.2 * BCO + 1.0,
        ),
        (
            objectives.mpo(
                beta=0.4,
                delta_rule="running_samples",
                normaliser="sequence_sum",
                preference=0.5,
                quality=3.0,
                generation=0.1,
            ),
            0.5 * DPO + 3.0 * SHIFTED + 0.1,
        ),
        (
            objectives.bco_pair_delta_mix(beta=0.4, weight=3.0, delta_rule="none"),
            (DPO + 3.0 * BCO) / 4.0,
        ),
        (
            objectives.bco_pair_delta_mix(
                beta=0.4, weight=3.0, delta_rule="running_batches", coefficient=0.5
            ),
            (DPO + 3.0 * SHIFTED) / 4.0 + 0.5,
        ),
        (objectives.rationale_dpo(beta=0.4, gamma=0.2), DPO + softplus(1.0)),
        (
            objectives.three_properties(
                beta_chosen=0.4, beta_rejected=0.2, coefficient=0.5, normaliser="sequence_sum"
            ),
            softplus(-(0.4 + 0.1)) + 0.5,
        ),
        (
            objectives.mapl(beta=0.4, intra=2.0, inter=3.0),
            DPO + 2.0 * softplus(-0.12) + 3.0 * softplus(0.24),
        ),
        (objectives.selm(beta=0.4, alpha=0.5), DPO + 0.5 * 0.4 * 0.7),
        (objectives.xpo(beta=0.4, alpha=0.01, base="dpo"), DPO - 0.2),
        (objectives.xpo(beta=0.5, alpha=0.01, base="ipo"), 0.25 - 0.2),
        (objectives.online_dpo(beta=0.4, base="dpo"), DPO),
        (objectives.online_dpo(beta=0.5, base="ipo"), 0.25),
        (objectives.online_dpo(beta=0.4, base="hinge"), 0.4),
        (objectives.ipo_md(tau=0.5, reduction="sum"), 0.25),
        (objectives.spin(beta=0.4, link="logistic"), DPO),
        (objectives.spin(beta=0.4, link="hinge"), 0.4),
        (objectives.spin(beta=0.4, link="exponential"), math.exp(-0.6)),
        (objectives.spin(beta=0.4, link="linear"), 0.4),
        (objectives.spin(beta=4.0, link="linear"), -5.0),
    ],
    ids=lambda value: value.name if isinstance(value, objectives.Objective) else "",
)
def test_loss_by_hand(objective, expected):
    assert objective(scores(), PAIR).loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.rpo_sft(beta=0.4, coefficient=0.0, normaliser="sequence_mean"),
        objectives.irpo_reasoning(beta=0.4, alpha=0.0),
        objectives.mpo(
            beta=0.4, delta_rule="none", normaliser="sequence_mean", preference=1, quality=0, generation=0
        ),
        objectives.bco_pair_delta_mix(beta=0.4, weight=0.0, delta_rule="running_batches"),
        objectives.three_properties(
            beta_chosen=0.4, beta_rejected=0.4, coefficient=0.0, normaliser="sequence_mean"
        ),
        objectives.mapl(beta=0.4, intra=0.0, inter=0.0),
        objectives.selm(beta=0.4, alpha=0.0),
        objectives.xpo(beta=0.4, alpha=0.0, base="dpo"),
        objectives.online_dpo(beta=0.4, base="dpo"),
        objectives.spin(beta=0.4, link="logistic"),
    ],
    ids=lambda objective: objective.name,
)
def test_without_its_additions_a_sum_is_dpo(objective):
    ours, plain = scores(), scores()
    first, second = objective(ours, PAIR).loss, objectives.dpo(beta=0.4)(plain, PAIR).loss
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(first, ours.policy)[0], torch.autograd.grad(second, plain.policy)[0]
    )


@pytest.mark.parametrize(
    ("objective", "name", "sign"),
    [
        (objectives.selm(beta=0.4, alpha=0.5), "response_log_ratio", 1),
        (objectives.xpo(beta=0.4, alpha=0.5, base="dpo"), "reference_sample_score", 1),
        (objectives.rationale_dpo(beta=0.4, gamma=0.2), "rationale_score", -1),
        (objectives.mapl(beta=0.4, intra=1.0, inter=1.0), "intra_log_ratio_gap", -1),
        (objectives.mapl(beta=0.4, intra=1.0, inter=1.0), "inter_log_ratio_gap", -1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_added_answers_carry_gradient_the_right_way(objective, name, sign):
    """Exploration makes its answer less likely; a rationale and fitting prompts become more likely."""
    given = scores()
    (slope,) = torch.autograd.grad(objective(given, PAIR).loss, given.extras[name])
    assert math.copysign(1.0, slope.item()) == sign


def test_iterative_reasoning_normalises_the_supervised_term_and_not_the_margin():
    """Chosen tokens -1 and -3, rejected -2: margin of sums -2, mean of the chosen -2."""
    policy = torch.tensor([[[-1.0, -3.0], [-2.0, 9.0]]])
    given = Scores(policy, torch.zeros_like(policy), torch.tensor([[[1, 1], [1, 0]]]))
    loss = objectives.irpo_reasoning(beta=0.5, alpha=1.0)(given, PAIR).loss
    assert loss.item() == pytest.approx(softplus(1.0) + 2.0)


def test_running_shift_of_a_mix_survives_a_checkpoint():
    objective = objectives.mpo(beta=0.4, delta_rule="running_batches", normaliser="sequence_sum")
    state = ObjectiveState()
    objective(scores(), PAIR, state)
    resumed = ObjectiveState()
    resumed.load_state_dict(state.state_dict())
    other = Scores(scores().policy * 2, scores().reference)
    assert torch.equal(objective(other, PAIR, resumed).loss, objective(other, PAIR, state).loss)
    assert state.values["term2.zero_point.count"].item() == 2


def test_an_uncertain_pair_updates_the_running_shift_once():
    objective = objectives.bco_pair_delta_mix(beta=0.4, weight=1.0, delta_rule="running_batches")
    state = ObjectiveState()
    objective(scores(), Labels(probability=torch.tensor([0.7])), state)
    assert state.values["term2.zero_point.count"].item() == 1
    assert state.values["term2.zero_point.mean"].item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("objective", "first_line"),
    [
        (
            objectives.mpo(beta=0.1, delta_rule="none", normaliser="sequence_mean", generation=0.5),
            "loss = 0.8 * [-log sigmoid(z1)] + 0.2 * [sum over candidates of [chosen: -log sigmoid(z2); "
            "rejected: -log sigmoid(-z2)]] + 0.5 * [-mean over positions of policy[chosen]]",
        ),
        (
            objectives.bco_pair_delta_mix(beta=0.1, weight=0.25, delta_rule="none"),
            "loss = 0.8 * [-log sigmoid(z1)] + 0.2 * [sum over candidates of [chosen: -log sigmoid(z2); "
            "rejected: -log sigmoid(-z2)]]",
        ),
        (
            objectives.selm(beta=0.5, alpha=0.25),
            "loss = -log sigmoid(z) + 0.125 * [response_log_ratio]",
        ),
        (
            objectives.rationale_dpo(beta=0.1, gamma=0.2),
            "loss = -log sigmoid(z) - log sigmoid(0.2 * rationale_score)",
        ),
        (objectives.spin(beta=0.1, link="linear"), "loss = (1 - z)"),
        (objectives.ipo_md(tau=0.5, reduction="sum"), "loss = (z - 1)^2"),
        (objectives.sppo_hard(beta=0.5), "loss = sum over candidates of z^2"),
    ],
    ids=lambda value: value.name if isinstance(value, objectives.Objective) else "",
)
def test_sums_print_their_coefficients(objective, first_line):
    assert objective.formula.splitlines()[0] == first_line


@pytest.mark.parametrize("name", ["selm", "xpo", "online_dpo", "ipo_md", "spin", "sppo", "irpo_reasoning"])
def test_online_rows_say_where_their_candidates_come_from(name):
    assert objectives.row(name).rollout


def test_self_play_is_not_filed_as_offline():
    taxonomy = objectives.row("spin").taxonomy
    assert (taxonomy.framework, taxonomy.constraint) == ("self-play", "moving reference")


def test_a_rationale_is_refused_on_denoising_errors():
    assert set(objectives.row("rationale_dpo").refuses) == {"elbo", "inversion", "transition"}
    errors = Scores(scores().policy, scores().reference, extras=scores().extras, likelihood="elbo")
    with pytest.raises(ConfigError, match="a rationale is written in tokens"):
        objectives.rationale_dpo(beta=0.4, gamma=0.2)(errors, PAIR)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (objectives.selm(beta=0.4, alpha=0.5), r"extras\['response_log_ratio'\]"),
        (objectives.xpo(beta=0.4, alpha=0.5, base="dpo"), r"extras\['reference_sample_score'\]"),
        (objectives.rationale_dpo(beta=0.4, gamma=0.2), r"extras\['rationale_score'\]"),
        (objectives.mapl(beta=0.4, intra=1.0, inter=1.0), r"extras\['intra_log_ratio_gap'\]"),
    ],
    ids=["selm", "xpo", "rationale_dpo", "mapl"],
)
def test_a_missing_input_is_explained(objective, message):
    with pytest.raises(ConfigError, match=message):
        objective(Scores(scores().policy, scores().reference), PAIR)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: objectives.rpo_sft(beta=1.0, coefficient=-0.1, normaliser="sequence_mean"),
            r"rpo_sft coefficient: got -0\.1, expected a finite number >= 0",
        ),
        (
            lambda: objectives.build("rpo_sft", beta=1.0, coefficient=0.1, normaliser="mean"),
            "expected one of sequence_mean",
        ),
        (lambda: objectives.build("rpo_sft", beta=1.0, coefficient=0.1), "missing normaliser"),
        (lambda: objectives.irpo_reasoning(beta=1.0, alpha=math.inf), "irpo_reasoning alpha: got inf"),
        (
            lambda: objectives.mpo(beta=1.0, delta_rule="none", normaliser="sequence_mean", quality=-1.0),
            r"mpo quality: got -1\.0",
        ),
        (
            lambda: objectives.build("mpo", beta=1.0, delta_rule="mean", normaliser="sequence_mean"),
            "bco delta_rule: got 'mean'",
        ),
        (
            lambda: objectives.bco_pair_delta_mix(beta=1.0, weight=-1.0, delta_rule="none"),
            r"bco_pair_delta_mix weight: got -1\.0",
        ),
        (
            lambda: objectives.bco_pair_delta_mix(
                beta=1.0, weight=1.0, delta_rule="none", coefficient=math.nan
            ),
            "bco_pair_delta_mix coefficient: got nan",
        ),
        (lambda: objectives.rationale_dpo(beta=1.0, gamma=-1.0), "rationale_dpo gamma"),
        (
            lambda: objectives.three_properties(
                beta_chosen=0.0, beta_rejected=1.0, coefficient=1.0, normaliser="sequence_mean"
            ),
            r"three_properties chosen beta: got 0\.0",
        ),
        (lambda: objectives.mapl(beta=1.0, intra=-1.0, inter=0.0), "mapl intra"),
        (lambda: objectives.mapl(beta=1.0, intra=1.0, inter=-1.0), "mapl inter"),
        (lambda: objectives.selm(beta=1.0, alpha=-1.0), "selm alpha"),
        (lambda: objectives.xpo(beta=1.0, alpha=-1.0, base="dpo"), "xpo alpha"),
        (
            lambda: objectives.build("xpo", beta=1.0, alpha=0.1, base="hinge"),
            "xpo base: got 'hinge', expected one of dpo, ipo",
        ),
        (
            lambda: objectives.build("online_dpo", beta=1.0, base="kto"),
            "online_dpo base: got 'kto', expected one of dpo, ipo, hinge",
        ),
        (
            lambda: objectives.build("spin", beta=1.0, link="square"),
            "spin link: got 'square', expected one of logistic, hinge, exponential, linear",
        ),
        (lambda: objectives.spin(beta=0.0, link="hinge"), "spin beta"),
        (lambda: objectives.ipo_md(tau=0.0, reduction="sum"), "ipo tau"),
    ],
)
def test_wrong_hyperparameters_are_explained(build, message, untyped):
    with untyped, pytest.raises(HyperparameterError, match=message):
        build()

"""The catalogue by hand, its messages, and what objectives promise as data."""

import math
from dataclasses import replace

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError, ShapeError, UnknownNameError
from mmalign.objectives import Objective, ObjectiveState, Scores, Term
from mmalign.objectives.labels import PointLabels
from mmalign.objectives.structures import Point


def softplus(x):
    return math.log1p(math.exp(x))


# Policy -1, -3; reference -2, -2.5: u = 1, -0.5, margin 1.5. Without reference the margin is 2.
PAIR = Scores(
    torch.tensor([[-1.0, -3.0]], dtype=torch.float64), torch.tensor([[-2.0, -2.5]], dtype=torch.float64)
)
BARE = Scores(PAIR.policy)


def odds(p):
    return p - math.log(1 - math.exp(p))


def h(error):
    return 0.5 * error / math.expm1(0.5 * error)


@pytest.mark.parametrize(
    ("objective", "scores", "expected"),
    [
        (objectives.dpo(beta=0.4), PAIR, softplus(-0.6)),
        (objectives.dpo_reference_free(beta=0.4), BARE, softplus(-0.8)),
        (objectives.cdpo(beta=0.4, label_smoothing=0.1), PAIR, 0.9 * softplus(-0.6) + 0.1 * softplus(0.6)),
        (
            objectives.robust_dpo(beta=0.4, label_smoothing=0.1),
            PAIR,
            (0.9 * softplus(-0.6) - 0.1 * softplus(0.6)) / 0.8,
        ),
        (objectives.hinge(beta=0.4), PAIR, 0.4),
        (objectives.ipo(tau=0.5), PAIR, 0.25),
        (objectives.ipo_reference_free(tau=0.5), BARE, 1.0),
        (objectives.simpo(beta=0.4, gamma=0.3), BARE, softplus(-0.5)),
        (
            objectives.simpo(beta=0.4, gamma=0.3, label_smoothing=0.1),
            BARE,
            0.9 * softplus(-0.5) + 0.1 * softplus(0.5),
        ),
        (objectives.simpo_hinge(beta=0.4, gamma=0.3), BARE, 0.5),
        (objectives.sft(), BARE, 1.0),
        (objectives.orpo(beta=0.1), BARE, 1.0 + 0.1 * softplus(-(odds(-1) - odds(-3)))),
        # errors 2 and 6
        (objectives.mapo(beta=0.1, scale=7.0), BARE, 2.0 + 0.1 * softplus(-7 * (h(2) - h(6)))),
        (objectives.diffusion_orpo(beta=0.1, scale=0.3), BARE, 2.0 + 0.1 * softplus(-0.3 * 4)),
        (objectives.diffusion_orpo_official(beta=0.1), BARE, 2.0 + 0.1 * softplus(4)),
    ],
    ids=lambda value: value.name if isinstance(value, objectives.Objective) else "",
)
def test_loss_by_hand(objective, scores, expected):
    assert objective(scores, Labels.pairs(1)).loss.item() == pytest.approx(expected, rel=1e-12)


def test_zero_margin_costs_log_two():
    scores = Scores(torch.full((3, 2), -1.3), torch.full((3, 2), -1.3))
    out = objectives.dpo(beta=5000)(scores, Labels.pairs(3))
    assert torch.equal(out.logit, torch.zeros(3))
    torch.testing.assert_close(out.loss, torch.full((3,), math.log(2)))


def test_metrics_by_hand():
    """u = 1, -0.5; z = 0.6; slope sigmoid(-0.6); rewards 0.4 and -0.2."""
    metrics = objectives.dpo(beta=0.4)(PAIR, Labels.pairs(1)).metrics
    expected = {
        "log_ratio_chosen": 1.0,
        "log_ratio_rejected": -0.5,
        "score_chosen": -1.0,
        "score_rejected": -3.0,
        "reward_chosen": 0.4,
        "reward_rejected": -0.2,
        "margin": 1.5,
        "logit": 0.6,
        "accuracy": 1.0,
        "saturated": 0.0,
        "gradient_factor": 1 / (1 + math.exp(0.6)),
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-12)


def test_saturation_starts_above_five():
    policy = torch.tensor([[5.0, 0.0], [5.1, 0.0], [-5.1, 0.0]])
    out = objectives.dpo(beta=1.0)(Scores(policy, torch.zeros(3, 2)), Labels.pairs(3))
    assert out.metrics["saturated"].tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("gap", "probability", "expected"),
    [
        (1.0, 1.0, 1.0),
        (-1.0, 1.0, 0.0),
        (0.0, 1.0, 0.5),
        (1.0, 0.5, 0.5),
        (-1.0, 0.5, 0.5),
        (1.0, 0.8, 0.8),
        (-1.0, 0.8, 0.2),
    ],
)
def test_ties_count_half_in_accuracy(gap, probability, expected):
    scores = Scores(torch.tensor([[gap, 0.0]]), torch.zeros(1, 2))
    out = objectives.dpo(beta=1.0)(scores, Labels(probability=torch.tensor([probability])))
    assert out.metrics["accuracy"].item() == pytest.approx(expected)


def test_soft_label_is_the_expectation_over_both_labels():
    """With q = 0.8 and a margin: 0.8 * L(z) + 0.2 * L of the exchanged pair, margin subtracted too."""
    given = Labels(probability=torch.tensor([0.8], dtype=torch.float64))
    out = objectives.simpo(beta=0.4, gamma=0.3)(BARE, given)
    assert out.loss.item() == pytest.approx(0.8 * softplus(-0.5) + 0.2 * softplus(1.1), rel=1e-12)


def test_tie_with_a_margin_pulls_neither_way():
    policy = torch.full((1, 2), -1.0, requires_grad=True)
    out = objectives.simpo(beta=0.4, gamma=0.3)(Scores(policy), Labels(probability=torch.tensor([0.5])))
    out.loss.sum().backward()
    assert torch.equal(policy.grad, torch.zeros(1, 2))


@pytest.mark.parametrize(
    "utility", ["sigmoid", "loss_averse", "risk_seeking_1", "risk_seeking_2", "risk_seeking_3"]
)
def test_kto_utilities_by_hand(utility):
    """u = 0.6 liked, 1.0 and -0.4 disliked: zero point 0.4; z = 0.5 * (0.2, -0.6, 0.8)."""
    scores = Scores(
        torch.tensor([[0.6], [1.0], [-0.4]], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    )
    labels = Labels.unpaired(torch.tensor([True, False, False]))
    out = objectives.kto(beta=0.5, desirable_weight=3.0, undesirable_weight=2.0, utility=utility)(
        scores, labels
    )

    def log_sigmoid(x):
        return -softplus(-x)

    def value(z, sign):
        return {
            "sigmoid": 1 / (1 + math.exp(-z)),
            "loss_averse": log_sigmoid(z),
            "risk_seeking_1": -sign * log_sigmoid(-sign * z),
            "risk_seeking_2": sign * math.exp(sign * z / 100) - 1,
            "risk_seeking_3": -log_sigmoid(-z),
        }[utility]

    expected = [3 * (1 - value(0.1, 1)), 2 * (1 - value(-0.3, -1)), 2 * (1 - value(0.4, -1))]
    assert out.logit.tolist() == pytest.approx([0.1, -0.3, 0.4])
    assert out.loss.tolist() == pytest.approx(expected, rel=1e-12)


def test_kto_zero_point_is_never_negative_and_carries_no_gradient():
    policy = torch.tensor([[-2.0], [-1.0]], requires_grad=True)
    labels = Labels.unpaired(torch.tensor([True, False]))
    out = objectives.kto(beta=1.0)(Scores(policy, torch.zeros(2, 1)), labels)
    assert out.logit.tolist() == [-2.0, 1.0]
    (gradient,) = torch.autograd.grad(out.loss[0], policy)
    assert gradient[1] == 0


def test_class_balanced_zero_point_ignores_the_share_of_likes():
    """Means 1 (liked) and -3 (others): zero point -1, whatever the counts."""
    scores = Scores(torch.tensor([[1.0], [1.0], [-3.0]]), torch.zeros(3, 1))
    labels = Labels.unpaired(torch.tensor([True, True, False]))
    out = objectives.kto(beta=1.0, zero_point="class_balanced")(scores, labels)
    assert out.logit.tolist() == pytest.approx([2.0, 2.0, 2.0], abs=1e-5)


def test_mismatched_zero_point_is_the_mean_of_the_extra():
    scores = Scores(
        torch.tensor([[1.0]]),
        torch.zeros(1, 1),
        extras={"mismatched_log_ratio": torch.tensor([0.5, 1.0, -0.3])},
    )
    labels = Labels.unpaired(torch.tensor([True]))
    out = objectives.kto(beta=2.0, zero_point="mismatched")(scores, labels)
    assert out.logit.item() == pytest.approx(2.0 * (1.0 - 0.4))


def test_zero_point_is_the_mean_over_all_ranks():
    """This rank holds u = 1; the other one adds a sum of 2 over 3 rows: zero point 3 / 4."""
    state = ObjectiveState(sum_across=lambda value: value + torch.tensor([2.0, 3.0]))
    labels = Labels.unpaired(torch.tensor([True]))
    out = objectives.kto(beta=1.0)(Scores(torch.tensor([[1.0]]), torch.zeros(1, 1)), labels, state)
    assert out.logit.item() == pytest.approx(0.25)


NLL_SCORES = Scores(
    -torch.tensor([[[1.0, 2.0, 9.0], [1.0, 1.0, 1.0]], [[4.0, 9.0, 9.0], [1.0, 1.0, 1.0]]]),
    mask=torch.tensor([[[1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 1]]]),
    extras={"whole_score": torch.tensor([-7.0, -5.0]), "whole_length": torch.tensor([4.0, 2.0])},
)


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [
        ("sequence_mean", [1.5, 4.0]),
        ("sequence_sum", [3.0, 4.0]),
        # Their mean is 7 / 3, the mean over the three chosen tokens.
        ("batch_mean", [3.0 * 2 / 3, 4.0 * 2 / 3]),
        # Their mean is 12 / 6, over prompt and answer.
        ("whole_mean", [7.0 * 2 / 6, 5.0 * 2 / 6]),
    ],
)
def test_four_normalisers_of_the_supervised_term(normaliser, expected):
    loss = objectives.sft(normaliser=normaliser)(NLL_SCORES, Labels.pairs(2)).loss
    assert loss.tolist() == pytest.approx(expected)


def test_supervised_term_learns_liked_unpaired_rows_only():
    scores, labels = Scores(torch.tensor([[-1.0], [-2.0]])), Labels.unpaired(torch.tensor([True, False]))
    assert objectives.sft()(scores, labels).loss.tolist() == [1.0, 0.0]


def test_supervised_term_follows_the_most_relevant_of_a_list():
    scores = Scores(torch.tensor([[-1.0, -2.0, -4.0]]))
    assert objectives.sft()(scores, Labels(relevance=torch.tensor([[0.0, 2.0, 1.0]]))).loss.item() == 2.0


def test_batch_mean_counts_tokens_of_all_ranks():
    """The other rank adds 7 tokens and 3 rows: each row is divided by 10 / 5 tokens per row."""
    state = ObjectiveState(sum_across=lambda value: value + torch.tensor([7.0, 3.0]))
    loss = objectives.sft(normaliser="batch_mean")(NLL_SCORES, Labels.pairs(2), state).loss
    assert loss.tolist() == pytest.approx([1.5, 2.0])


def test_batch_mean_without_lengths_is_explained():
    with pytest.raises(ConfigError, match=r"expected Scores\.length, one number per candidate"):
        objectives.sft(normaliser="batch_mean")(BARE, Labels.pairs(1))


def test_sum_has_the_terms_of_both_and_the_logit_of_the_first():
    both = objectives.dpo(beta=0.4) + 0.2 * objectives.sft()
    out = both(PAIR, Labels.pairs(1))
    assert out.loss.item() == pytest.approx(softplus(-0.6) + 0.2)
    assert {name: value.item() for name, value in out.terms.items()} == pytest.approx(
        {"logistic": softplus(-0.6), "nll": 0.2}
    )
    assert out.logit.item() == pytest.approx(0.6)


def test_terms_of_one_kind_keep_their_own_names():
    both = objectives.dpo(beta=0.4) + objectives.cdpo(beta=0.4, label_smoothing=0.2)
    assert list(both(PAIR, Labels.pairs(1)).terms) == ["logistic", "logistic_2"]


def test_objective_prints_its_formula():
    shown = str(objectives.dpo(beta=0.4) + 0.2 * objectives.sft())
    assert shown.splitlines() == [
        "dpo+sft:",
        "  loss = -log sigmoid(z) + 0.2 * [-mean over positions of policy[chosen]]",
        "  z = 0.4 * (s[chosen] - s[rejected])",
        "  s = policy - reference (the sum over an inner axis)",
    ]
    several = (objectives.dpo(beta=0.4) + objectives.hinge(beta=0.3)).formula
    assert several.splitlines()[0] == "loss = -log sigmoid(z1) + max(0, 1 - z2)"
    assert "z2 = 0.3 * (s2[chosen] - s2[rejected])" in several


def test_printed_terms_share_the_line_of_a_definition_that_is_the_same():
    bare = objectives.dpo_reference_free(beta=0.4)
    three = objectives.dpo(beta=0.4) + bare + objectives.hinge(beta=0.3)
    assert three.formula.splitlines()[1:] == [
        "z1 = 0.4 * (s1[chosen] - s1[rejected])",
        "s1 = s3 = policy - reference (the sum over an inner axis)",
        "z2 = 0.4 * (s2[chosen] - s2[rejected])",
        "s2 = policy (the sum over an inner axis)",
        "z3 = 0.3 * (s3[chosen] - s3[rejected])",
    ]


def test_printed_terms_share_z_only_where_they_share_its_score():
    same = objectives.dpo(beta=0.4) + objectives.hinge(beta=0.4)
    assert same.formula.splitlines()[1:] == [
        "z1 = z2 = 0.4 * (s1[chosen] - s1[rejected])",
        "s1 = s2 = policy - reference (the sum over an inner axis)",
    ]


def test_printed_points_of_other_candidates_are_not_called_the_same():
    term = Term(Point(), beta=0.4, labels=PointLabels())
    both = Objective("both", tuple(replace(term, candidates=pair) for pair in ((0, 1), (2, 1))))
    assert both.formula.splitlines()[1:] == [
        "z1 = 0.4 * s1",
        "s1 = s2 = policy - reference (the sum over an inner axis)",
        "z2 = 0.4 * s2",
    ]


def test_objective_cannot_be_scaled_by_a_tensor_or_a_flag():
    for factor in (True, torch.tensor(2.0)):
        with pytest.raises(Exception, match=r"unsupported operand|violates type hint|[Tt]ype-check"):
            factor * objectives.sft()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: objectives.dpo(beta=0.0),
            r"dpo beta: got 0\.0, expected a number > 0; text .* 2000 to 5000",
        ),
        (lambda: objectives.dpo(beta=math.nan), "dpo beta: got nan"),
        (
            lambda: objectives.cdpo(beta=1.0, label_smoothing=0.51),
            r"cdpo label_smoothing: got 0\.51, expected a number in \[0, 0\.5\]",
        ),
        (
            lambda: objectives.robust_dpo(beta=1.0, label_smoothing=0.5),
            r"robust_dpo label_smoothing: got 0\.5, expected a number in \[0, 0\.5\)",
        ),
        (lambda: objectives.hinge(beta=-1.0), r"hinge beta: got -1\.0"),
        (lambda: objectives.ipo(tau=0.0), r"ipo tau: got 0\.0, expected a number > 0"),
        (lambda: objectives.ipo_reference_free(tau=0.0), "ipo_reference_free tau"),
        (lambda: objectives.simpo(beta=1.0, gamma=-0.1), r"simpo gamma: got -0\.1, expected a number >= 0"),
        (lambda: objectives.simpo_hinge(beta=1.0, gamma=-0.1), "simpo_hinge gamma"),
        (lambda: objectives.mapo(beta=-0.1), r"mapo beta: got -0\.1.*official 0\.1"),
        (lambda: objectives.mapo(beta=0.1, kappa=0.0), "mapo kappa"),
        (lambda: objectives.mapo(beta=0.1, scale=0.0), "mapo scale"),
        (lambda: objectives.orpo(beta=-1.0), "orpo beta"),
        (lambda: objectives.diffusion_orpo(beta=-1.0), "diffusion_orpo beta"),
        (lambda: objectives.diffusion_orpo(beta=0.1, scale=0.0), "diffusion_orpo scale"),
        (lambda: objectives.diffusion_orpo_official(beta=-1.0), "diffusion_orpo_official beta"),
        (lambda: objectives.kto(beta=0.0), "kto beta"),
        (
            lambda: objectives.kto(beta=1.0, desirable_weight=-1.0),
            r"desirable_weight: got -1\.0, expected a number >= 0",
        ),
        (lambda: objectives.kto(beta=1.0, undesirable_weight=-1.0), "undesirable_weight"),
        (lambda: objectives.build("dpo"), r"objective dpo: got 'missing beta', expected dpo\(\*, beta"),
        (lambda: objectives.build("dpo", beta=1.0, bta=2.0), "unknown bta"),
        (lambda: objectives.build("dpo", beta=-1.0), "dpo beta: got -1"),
        (lambda: objectives.build("sft", normaliser="mean"), "expected one of sequence_mean"),
        (lambda: objectives.build("kto", beta=1.0, utility="linear"), "kto utility: got 'linear'"),
        (lambda: objectives.build("kto", beta=1.0, zero_point="none"), "kto zero_point: got 'none'"),
        (
            lambda: objectives.build("dpo", beta=1.0, reduction="median"),
            "reduction: got 'median', expected 'sum' or 'mean'",
        ),
    ],
)
def test_wrong_hyperparameters_are_explained(build, message, untyped):
    with untyped, pytest.raises(HyperparameterError, match=message):
        build()


def test_unknown_objective_lists_near_and_known_ones():
    with pytest.raises(
        UnknownNameError,
        match=r"unknown objective 'dop'\. Did you mean .*dpo.* or .*\? `mmalign methods` lists all\.$",
    ):
        objectives.build("dop")


def test_missing_reference_is_explained():
    with pytest.raises(ConfigError, match=r"objective dpo: got 'scores without a reference'.*adapters_off"):
        objectives.dpo(beta=1.0)(BARE, Labels.pairs(1))


def test_reference_of_another_shape_is_refused(untyped):
    with untyped, pytest.raises(ShapeError, match=r"policy has shape \[3, 2\], reference \[3, 1\]"):
        Scores(torch.zeros(3, 2), torch.zeros(3, 1))


def test_flat_scores_are_refused(untyped):
    with untyped, pytest.raises(ShapeError, match=r"got shape \[3\], expected \[prompt, candidate\]"):
        Scores(torch.zeros(3))


def test_labels_of_another_size_are_refused():
    with pytest.raises(ShapeError, match=r"Labels\.probability has shape \[2\], expected \[3\]"):
        objectives.dpo(beta=1.0)(Scores(torch.zeros(3, 2), torch.zeros(3, 2)), Labels.pairs(2))


def test_running_statistics_survive_a_checkpoint():
    state = ObjectiveState(
        values={"zero_point.mean": torch.tensor(0.5), "zero_point.count": torch.tensor(7.0)}
    )
    other = ObjectiveState()
    other.load_state_dict(state.state_dict())
    assert {name: value.item() for name, value in other.values.items()} == {
        "zero_point.mean": 0.5,
        "zero_point.count": 7.0,
    }
    state.values["zero_point.mean"].add_(1.0)
    assert other.values["zero_point.mean"] == 0.5


def test_registry_knows_signatures_and_builds():
    assert {
        "dpo",
        "cdpo",
        "robust_dpo",
        "ipo",
        "hinge",
        "simpo",
        "mapo",
        "orpo",
        "diffusion_orpo",
        "diffusion_orpo_official",
        "sft",
        "kto",
    } <= set(objectives.names())
    assert list(objectives.signature("cdpo").parameters) == ["beta", "label_smoothing"]
    assert objectives.build("dpo", beta=5000).formula == objectives.dpo(beta=5000.0).formula
    assert objectives.row("kto").couples_rows
    assert objectives.row("dpo").needs == frozenset({"reference"})
    assert objectives.row("simpo").reference == "none"


@pytest.mark.compiled
def test_objective_compiles_into_one_graph():
    """No graph break: what the eager call computes, gradient included."""
    objective = objectives.dpo(beta=0.4) + 0.2 * objectives.sft()
    labels = Labels(probability=torch.tensor([1.0, 0.8, 0.5]))
    reference = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def step(policy):
        out = objective(Scores(policy, reference), labels)
        return out.loss.sum(), out.metrics["accuracy"]

    policy = torch.zeros(3, 2, requires_grad=True)
    expected, accuracy = step(policy)
    (gradient,) = torch.autograd.grad(expected, policy)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, found_accuracy = compiled(policy)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_accuracy, accuracy)
    torch.testing.assert_close(torch.autograd.grad(found, policy)[0], gradient)

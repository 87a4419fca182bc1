"""Part E and I: structures on pairs, lists, points and an inner axis."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError, ShapeError
from mmalign.objectives import (
    Computed,
    Objective,
    Reduction,
    Score,
    Scores,
    Term,
    dpo,
    kto,
    labels,
    links,
    modifiers,
    score_shapes,
    structures,
)

POINT = Term(structures.Point(), labels=labels.likes())


def of(term):
    return Objective("test", (term,))


def scores_of(draw, *shape):
    return Scores(draw(*shape, requires_grad=True), draw(*shape))


def gradient_of(out, scores):
    return torch.autograd.grad(out.loss.sum(), scores.policy, retain_graph=True)[0]


EQUAL_TO_DPO = {
    "list_forward": Term(structures.ListForward(), beta=0.7, labels=labels.best_first()),
    "plackett": Term(structures.Plackett(), beta=0.7),
    "all_pairs": Term(structures.AllPairs(), beta=0.7),
    "all_pairs_mean": Term(structures.AllPairs(aggregate="mean"), beta=0.7),
    "best_vs_rest": Term(structures.BestVsRest(), beta=0.7),
}


@pytest.mark.parametrize("name", EQUAL_TO_DPO)
@pytest.mark.parametrize("probability", [1.0, 0.7, 0.5])
def test_two_candidates_make_every_difference_structure_dpo(name, probability, draw):
    scores = scores_of(draw, 5, 2)
    given = Labels(probability=torch.full((5,), probability))
    expected, found = dpo(beta=0.7)(scores, given), of(EQUAL_TO_DPO[name])(scores, given)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6 if probability == 0.7 else 1e-12, atol=0)
    torch.testing.assert_close(found.logit, expected.logit, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        gradient_of(found, scores), gradient_of(expected, scores), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("name", EQUAL_TO_DPO)
def test_slope_of_two_candidates_is_that_of_dpo(name, draw):
    scores = scores_of(draw, 5, 2)
    expected = dpo(beta=0.7)(scores, Labels.pairs(5)).metrics["gradient_factor"]
    found = of(EQUAL_TO_DPO[name])(scores, Labels.pairs(5)).metrics["gradient_factor"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


LISTS = {
    "list_forward": Term(structures.ListForward(), beta=0.7, labels=labels.softmax_of("relevance", 2.0)),
    "list_reverse": Term(structures.ListReverse(), beta=0.7, labels=labels.softmax_of("relevance", 2.0)),
    "plackett": Term(structures.Plackett(), beta=0.7),
    "all_pairs": Term(structures.AllPairs(), beta=0.7),
    "best_vs_rest": Term(structures.BestVsRest(), beta=0.7),
    "noise_contrastive": Term(
        structures.Point(), beta=0.7, labels=labels.noise_contrastive(labels.softmax_of("relevance", 2.0))
    ),
    "target": Term(structures.Target(), beta=0.7, link=links.square(0.0), labels=labels.Targets(1.0, -1.0)),
}
RELEVANCE = torch.tensor([[1.0, 3.0, 0.0, 2.0, 5.0]]).expand(3, 5)


@pytest.mark.parametrize("name", LISTS)
def test_slope_is_half_the_absolute_gradient_per_unit_of_scaled_score(name, draw):
    scores = scores_of(draw, 3, 5)
    out = of(LISTS[name])(scores, Labels(relevance=RELEVANCE))
    expected = gradient_of(out, scores).abs().sum(1) / 2 / 0.7
    torch.testing.assert_close(out.metrics["gradient_factor"], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", LISTS)
def test_order_of_the_candidates_does_not_matter(name, draw):
    scores, order = scores_of(draw, 3, 5), torch.tensor([4, 2, 0, 3, 1])
    moved = Scores(scores.policy[:, order], scores.reference[:, order])
    liked = torch.arange(5).expand(3, 5) == 4
    first = of(LISTS[name])(scores, Labels(relevance=RELEVANCE, desirable=liked))
    second = of(LISTS[name])(moved, Labels(relevance=RELEVANCE[:, order], desirable=liked[:, order]))
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(first.logit, second.logit, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(first.metrics["accuracy"], second.metrics["accuracy"])


@pytest.mark.parametrize("name", LISTS)
def test_padding_is_the_same_as_a_shorter_list(name, draw):
    scores = scores_of(draw, 3, 5)
    liked = torch.arange(5).expand(3, 5) == 1
    valid = torch.tensor([True, True, True, False, False]).expand(3, 5)
    policy = torch.where(valid, scores.policy, math.nan).detach().requires_grad_()
    padded = replace(scores, policy=policy)
    shorter = Scores(scores.policy[:, :3].detach().requires_grad_(), scores.reference[:, :3])
    first = of(LISTS[name])(padded, Labels(relevance=RELEVANCE, valid=valid, desirable=liked))
    second = of(LISTS[name])(shorter, Labels(relevance=RELEVANCE[:, :3], desirable=liked[:, :3]))
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(first.logit, second.logit, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        gradient_of(first, padded)[:, :3], gradient_of(second, shorter), rtol=1e-9, atol=1e-12
    )
    assert (gradient_of(first, padded)[:, 3:] == 0).all()


SHIFT_FREE = ("list_forward", "list_reverse", "plackett", "all_pairs", "best_vs_rest")


@pytest.mark.parametrize("name", LISTS)
def test_constant_per_prompt_matters_to_points_only(name, draw):
    scores = scores_of(draw, 3, 5)
    shifted = replace(scores, policy=scores.policy + draw(3, 1))
    given = Labels(relevance=RELEVANCE)
    same = torch.allclose(
        of(LISTS[name])(scores, given).loss, of(LISTS[name])(shifted, given).loss, rtol=1e-9
    )
    assert same == (name in SHIFT_FREE)


def test_plackett_is_the_sum_over_its_stages(draw):
    """Best first by relevance: -log of the product of the chances to pick each next one."""
    scores = Scores(draw(1, 3, requires_grad=True))
    term = Term(structures.Plackett(), Score(anchor=0.0))
    found = of(term)(scores, Labels(relevance=torch.tensor([[0.0, 2.0, 1.0]]))).loss
    a, b, c = (scores.policy[0, i] for i in (1, 2, 0))
    expected = -torch.log(a.exp() / (a.exp() + b.exp() + c.exp())) - torch.log(b.exp() / (b.exp() + c.exp()))
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=0)


def test_plackett_chances_of_all_orders_add_up_to_one(draw):
    policy = draw(1, 3)
    term = of(Term(structures.Plackett(), Score(anchor=0.0)))
    chances = [
        term(Scores(policy), Labels(relevance=torch.tensor([order], dtype=torch.float64))).loss.neg().exp()
        for order in itertools.permutations([0.0, 1.0, 2.0])
    ]
    assert torch.stack(chances).sum().item() == pytest.approx(1.0, rel=1e-12)


def test_all_pairs_by_hand(draw):
    policy = draw(1, 3)
    out = of(Term(structures.AllPairs(), Score(anchor=0.0), link=links.hinge()))(
        Scores(policy), Labels(relevance=torch.tensor([[2.0, 0.0, 0.0]]))
    )
    s = policy[0]
    expected = (1 - (s[0] - s[1])).clamp(min=0) + (1 - (s[0] - s[2])).clamp(min=0)
    torch.testing.assert_close(out.loss[0], expected, rtol=1e-12, atol=0)


def test_tied_list_has_no_pairs_and_no_loss(draw):
    out = of(LISTS["all_pairs"])(scores_of(draw, 2, 3), Labels(relevance=torch.ones(2, 3)))
    assert torch.equal(out.loss, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(out.metrics["accuracy"], torch.full((2,), 0.5, dtype=torch.float64))


def test_best_vs_rest_uses_the_mean_of_the_others(draw):
    scores = Scores(draw(1, 3))
    out = of(Term(structures.BestVsRest(), Score(anchor=0.0), beta=0.5))(scores, Labels())
    p = 0.5 * scores.policy[0]
    z = p[0] - torch.log((p[1].exp() + p[2].exp()) / 2)
    torch.testing.assert_close(out.loss[0], -torch.nn.functional.logsigmoid(z), rtol=1e-12, atol=0)


def test_reverse_list_of_two_has_its_optimum_at_the_log_odds_of_the_target():
    share = 0.1
    z = math.log((1 - share) / share)
    policy = torch.tensor([[z, 0.0]], dtype=torch.float64, requires_grad=True)
    scores = Scores(policy)
    term = Term(structures.ListReverse(), Score(anchor=0.0), labels=labels.best_first(share))
    out = of(term)(scores, Labels())
    assert out.loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient_of(out, scores).abs().max() < 1e-12


def test_point_adds_up_both_sides_of_a_pair(draw):
    """-log sigmoid(u of chosen) - log sigmoid(-u of rejected)."""
    scores = scores_of(draw, 3, 2)
    out = of(POINT)(scores, Labels.pairs(3))
    u = scores.policy - scores.reference
    logsigmoid = torch.nn.functional.logsigmoid
    torch.testing.assert_close(out.loss, -logsigmoid(u[:, 0]) - logsigmoid(-u[:, 1]), rtol=1e-12, atol=0)


def test_single_point_has_the_sign_of_its_label(draw):
    scores = scores_of(draw, 5, 1)
    desirable = torch.tensor([True, False, True, False, False])
    out = of(POINT)(scores, Labels.unpaired(desirable))
    u = (scores.policy - scores.reference)[:, 0]
    signed = torch.where(desirable, u, -u)
    torch.testing.assert_close(out.logit, signed, rtol=1e-12, atol=0)
    torch.testing.assert_close(out.loss, -torch.nn.functional.logsigmoid(signed), rtol=1e-12, atol=0)
    assert torch.equal(out.applies["log_ratio_chosen"], desirable)
    assert torch.equal(out.applies["log_ratio_rejected"], ~desirable)
    assert (out.metrics["log_ratio_rejected"][desirable] == 0).all()


def test_target_regresses_each_side():
    """(2 * 0.3 - 1)^2 + (2 * -0.2 + 1)^2 = 0.16 + 0.36."""
    term = Term(
        structures.Target(), Score(anchor=0.0), 2.0, link=links.square(0.0), labels=labels.Targets(1.0, -1.0)
    )
    out = of(term)(Scores(torch.tensor([[0.3, -0.2]])), Labels())
    assert out.loss.item() == pytest.approx(0.52)


def test_single_target_needs_no_label():
    term = Term(
        structures.Target(), Score(anchor=0.0), link=links.square(0.0), labels=labels.Targets(1.0, 1.0)
    )
    assert of(term)(Scores(torch.tensor([[0.5]])), Labels()).loss.item() == pytest.approx(0.25)


def test_matched_candidates_compare_rank_by_rank():
    """Sorted chosen 0, 3; sorted rejected 1, 2: differences -1, 1, reported where the chosen ones lie."""
    policy = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    term = Term(structures.Matched("candidates"), Score(anchor=0.0), link=links.hinge())
    out = of(term)(Scores(policy), Labels.pairs(2))
    assert torch.equal(out.logit, torch.tensor([1.0, -1.0]))
    assert torch.equal(out.loss, torch.tensor([0.0, 2.0]))


def test_matched_models_compare_gaps():
    """Policy gaps 2, -2; reference gaps 1, 0: sorted -2 - 0 and 2 - 1."""
    term = Term(structures.Matched("models"), link=links.hinge())
    scores = Scores(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [4.0, 4.0]]))
    out = of(term)(scores, Labels.pairs(2))
    assert torch.equal(out.logit, torch.tensor([1.0, -2.0]))
    assert of(term).couples_rows


@pytest.mark.parametrize("sides", ["candidates", "models"])
def test_matching_one_row_is_dpo(sides, draw):
    scores = scores_of(draw, 1, 2)
    found = of(Term(structures.Matched(sides), beta=0.3))(scores, Labels.pairs(1)).loss
    torch.testing.assert_close(found, dpo(beta=0.3)(scores, Labels.pairs(1)).loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sides", ["candidates", "models"])
def test_rows_that_do_not_count_take_no_part_in_matching(sides, draw):
    scores = scores_of(draw, 3, 2)
    valid = torch.tensor([[True, True], [True, False], [True, True]])
    found = of(Term(structures.Matched(sides)))(scores, Labels(valid=valid)).loss
    kept = Scores(scores.policy[[0, 2]], scores.reference[[0, 2]])
    expected = of(Term(structures.Matched(sides)))(kept, Labels()).loss
    torch.testing.assert_close(found[[0, 2]], expected, rtol=1e-12, atol=0)
    assert found[1] == 0


def test_pair_refuses_three_candidates(draw):
    with pytest.raises(ShapeError, match="objective dpo: got 3 candidates per prompt, expected 2"):
        dpo(beta=0.1)(scores_of(draw, 2, 3), Labels.pairs(2))


def test_list_refuses_a_single_candidate(draw):
    with pytest.raises(ShapeError, match="got 1 candidate, expected at least 2"):
        of(LISTS["plackett"])(scores_of(draw, 2, 1), Labels())


def test_unpaired_rows_without_labels_are_refused(draw):
    with pytest.raises(ConfigError, match=r"Labels\.desirable: got None"):
        kto(beta=0.1)(scores_of(draw, 2, 1), Labels())


def test_shapes_of_differences_are_refused_for_points():
    with pytest.raises(HyperparameterError, match="partition function"):
        Term(structures.Point(), Score(shape=score_shapes.js()), labels=labels.likes())


def test_labels_of_another_structure_are_refused():
    with pytest.raises(HyperparameterError, match="labels of Pair: got 'PointLabels', expected PairLabels"):
        Term(labels=labels.likes())


def test_second_link_is_refused_for_pairs():
    with pytest.raises(HyperparameterError, match="link_rejected of Pair"):
        Term(link_rejected=links.hinge())


@pytest.mark.parametrize("share", [-0.1, 0.6, math.nan])
def test_smoothing_outside_its_range_is_refused(share):
    with pytest.raises(HyperparameterError, match=r"expected a number in \[0, 0.5\]"):
        labels.smoothed(share)


def test_robust_labels_at_one_half_are_refused():
    with pytest.raises(HyperparameterError, match=r"expected a number in \[0, 0.5\)"):
        labels.robust(0.5)


def test_missing_reward_is_explained(draw):
    term = Term(structures.ListForward(), labels=labels.softmax_of("reward", 1.0))
    with pytest.raises(ConfigError, match="reward: got None"):
        of(term)(scores_of(draw, 2, 3), Labels())


def test_smoothing_per_pair_is_data(draw):
    """L = q * link(z) + (1 - q) * link(-z) with one q per pair."""
    q = torch.tensor([1.0, 0.7, 0.5], dtype=torch.float64)
    scores = replace(scores_of(draw, 3, 2), extras={"confidence": q})
    soft = labels.mixed(modifiers.given("confidence"))
    found = of(Term(beta=0.4, labels=soft))(scores, Labels.pairs(3)).loss
    expected = dpo(beta=0.4)(scores, Labels(probability=q)).loss
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_inner_axis_is_reduced_before_the_link(draw):
    deep = Scores(draw(3, 2, 7), draw(3, 2, 7), mask=(draw(3, 2, 7) > -1).int())
    kept = deep.mask.double()
    flat = Scores((deep.policy * kept).sum(-1), (deep.reference * kept).sum(-1))
    torch.testing.assert_close(
        dpo(beta=0.3)(deep, Labels.pairs(3)).loss,
        dpo(beta=0.3)(flat, Labels.pairs(3)).loss,
        rtol=1e-12,
        atol=0,
    )
    mean = Scores(flat.policy / kept.sum(-1), flat.reference / kept.sum(-1))
    torch.testing.assert_close(
        dpo(beta=0.3, reduction="mean")(deep, Labels.pairs(3)).loss,
        dpo(beta=0.3)(mean, Labels.pairs(3)).loss,
        rtol=1e-12,
        atol=0,
    )


def test_clamped_log_ratios_bound_each_position():
    """Differences 3 and -3 clamped to [-1, 2]: u = 1; no gradient where the clamp holds."""
    policy = torch.tensor([[[3.0, -3.0], [0.0, 0.0]]], requires_grad=True)
    scores = Scores(policy, torch.zeros(1, 2, 2))
    out = of(Term(score=Score(Reduction(clamp=(-1.0, 2.0)))))(scores, Labels())
    assert out.logit.item() == 1.0
    assert (gradient_of(out, scores)[0, 0] == 0).all()


def test_attached_numbers_keep_their_gradient_and_others_do_not(draw):
    scores = scores_of(draw, 3, 2)

    def computed(attached):
        return Computed(lambda context: context.policy.sum(1), "sum", attached=attached)

    free = gradient_of(of(Term(margin=computed(True)))(scores, Labels()), scores)
    held = gradient_of(of(Term(margin=computed(False)))(scores, Labels()), scores)
    assert not torch.allclose(free, held)
    torch.testing.assert_close(held.sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)

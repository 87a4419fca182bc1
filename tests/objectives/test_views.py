"""Terms that name their candidates, combine several, or look at positions one by one."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from mmalign.batch import Labels
from mmalign.errors import HyperparameterError, ShapeError
from mmalign.objectives import Objective, Score, Scores, Term, dpo, mdpo
from mmalign.objectives.labels import PointLabels
from mmalign.objectives.structures import Contrast, Pair, Point


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(*shape, mask=None):
    return Scores(draw(*shape).requires_grad_(), draw(*shape, seed=1), mask=mask)


def loss_of(term, given, labels=None):
    return Objective("test", (term,))(given, labels or Labels()).loss


def test_a_term_compares_the_candidates_it_names_in_its_order():
    given = scores(5, 3)
    picked = Scores(given.policy[:, [2, 0]], given.reference[:, [2, 0]])
    torch.testing.assert_close(
        loss_of(Term(candidates=(2, 0)), given), dpo(beta=1.0)(picked, Labels.pairs(5)).loss
    )


def test_a_candidate_alone_is_liked_if_it_is_the_first_and_the_labels_say_no_more():
    given = scores(5, 3)
    u = given.policy - given.reference
    labels = PointLabels((1.0, 0.0), (0.0, 1.0))
    for number, sign in ((0, 1.0), (2, -1.0)):
        found = loss_of(Term(Point(), labels=labels, candidates=(number,)), given)
        torch.testing.assert_close(found, -logsigmoid(sign * u[:, number]))


def test_an_uncertain_label_turns_the_pair_and_leaves_other_conditions():
    given = scores(5, 3)
    u = given.policy - given.reference
    q = torch.full((5,), 0.7, dtype=torch.float64)
    out = mdpo(beta=1.0)(given, Labels(probability=q))
    gap = u[:, 0] - u[:, 1]
    torch.testing.assert_close(out.terms["response"], -0.7 * logsigmoid(gap) - 0.3 * logsigmoid(-gap))
    torch.testing.assert_close(out.terms["image"], -logsigmoid(u[:, 0] - u[:, 2]))
    torch.testing.assert_close(out.terms["anchor"], -0.7 * logsigmoid(u[:, 0]) - 0.3 * logsigmoid(u[:, 1]))


def test_a_term_without_its_candidates_counts_nothing_and_the_others_still_do():
    given, valid = scores(2, 3), torch.tensor([[True, True, False], [True, True, True]])
    out = mdpo(beta=1.0)(given, Labels(probability=torch.ones(2), valid=valid))
    assert out.terms["image"][0] == 0
    assert out.terms["response"][0] > 0
    assert out.terms["image"][1] > 0
    assert bool(out.valid.all())


def test_too_few_candidates_are_refused_with_the_number_needed():
    with pytest.raises(ShapeError, match="objective mdpo: got 2 candidates per prompt, expected 3 "):
        mdpo(beta=1.0)(scores(5, 2), Labels.pairs(5))


@pytest.mark.parametrize("candidates", [(0, 0), (-1, 0), ()])
def test_candidates_are_distinct_numbers(candidates):
    with pytest.raises(HyperparameterError, match=r"candidates of Pair: .*distinct numbers >= 0"):
        Term(candidates=candidates)


def test_unknown_ways_to_look_at_positions_are_refused(untyped):
    with untyped, pytest.raises(HyperparameterError, match="positions of Pair: got 'each'"):
        Term(positions="each")


def test_a_contrast_of_one_and_minus_one_is_a_pair():
    given = scores(5, 2)
    torch.testing.assert_close(loss_of(Term(Contrast((1.0, -1.0))), given), loss_of(Term(Pair()), given))


def test_a_contrast_adds_candidates_by_their_coefficients_and_needs_them_all():
    given, valid = scores(2, 3), torch.tensor([[True, True, False], [True, True, True]])
    u = given.policy - given.reference
    term = Term(Contrast((2.0, -1.0, -1.0)), beta=0.5, margin=0.2)
    expected = -logsigmoid(0.5 * (2 * u[:, 0] - u[:, 1] - u[:, 2]) - 0.2)
    torch.testing.assert_close(loss_of(term, given), expected)
    out = Objective("test", (term,))(given, Labels(valid=valid))
    assert out.valid.tolist() == [False, True]
    assert out.loss[0] == 0


def test_contrasts_refuse_other_numbers_of_candidates_and_wild_coefficients():
    with pytest.raises(ShapeError, match="contrast: got 5 candidates, expected 3"):
        loss_of(Term(Contrast((2.0, -1.0, -1.0))), scores(7, 5))
    with pytest.raises(HyperparameterError, match="contrast coefficients"):
        Contrast((1.0, float("nan")))
    with pytest.raises(HyperparameterError, match="contrast coefficients"):
        Contrast((1.0,))


def test_positions_apart_are_averaged_over_those_that_one_candidate_has():
    mask = torch.ones(2, 2, 5, dtype=torch.float64)
    mask[0, 0, 3:], mask[0, 1, 4:] = 0.0, 0.0
    given = scores(2, 2, 5, mask=mask)
    u = (given.policy - given.reference) * mask
    each = -logsigmoid(0.3 * (u[:, 0] - u[:, 1]))
    expected = torch.stack([each[0, :4].mean(), each[1].mean()])
    term = Term(beta=0.3, positions="apart")
    torch.testing.assert_close(loss_of(term, given), expected)


def test_positions_apart_without_positions_are_the_plain_comparison():
    given = scores(5, 2)
    torch.testing.assert_close(loss_of(Term(positions="apart"), given), loss_of(Term(), given))


def test_metrics_of_positions_apart_are_means_per_prompt():
    given = scores(3, 2, 5)
    out = Objective("test", (Term(beta=0.3, positions="apart"),))(given, Labels.pairs(3))
    u = (given.policy - given.reference).detach().mean(2)
    torch.testing.assert_close(out.logit.detach(), 0.3 * (u[:, 0] - u[:, 1]))
    torch.testing.assert_close(out.metrics["margin"], u[:, 0] - u[:, 1])
    torch.testing.assert_close(out.metrics["reward_chosen"], 0.3 * u[:, 0])


def test_formulas_name_candidates_and_positions():
    text = Objective("test", (Term(candidates=(2, 0), positions="apart", score=Score()),)).formula
    assert "mean over positions of -log sigmoid(z)" in text
    assert "z = s[2] - s[0]" in text
    assert "inner axis" not in text

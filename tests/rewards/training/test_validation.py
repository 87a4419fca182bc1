"""Measures of held-out pairs: hand-worked numbers, and the rules of mmalign.evals."""

import math

import numpy as np
import pytest
import torch

from mmalign.errors import ConfigError
from mmalign.evals.statistics.agreement import RULES, pair_credit
from mmalign.objectives.calibration import best_temperature
from mmalign.rewards.training.validation import (
    HeldOut,
    best_scale,
    best_tie_threshold,
    measure,
    nll,
    tie_credit,
)


def pairs(logit, probability, weight=None):
    values = torch.tensor(logit, dtype=torch.float64)
    label = torch.tensor(probability, dtype=torch.float64)
    return HeldOut(values, label, torch.ones_like(values) if weight is None else torch.tensor(weight))


def test_nll_is_the_weighted_mean_cross_entropy():
    held = pairs([math.log(3), -math.log(3)], [1.0, 0.5], [3.0, 1.0])
    expected = (3 * math.log(4 / 3) + 0.5 * (math.log(4) + math.log(4 / 3))) / 4
    assert nll(held) == pytest.approx(expected)


def test_credit_of_ties_is_that_of_the_evaluation_s_rules(draw):
    logit = draw(101)
    label = torch.tensor([1.0, 0.5, 0.8, 0.5, 0.2] * 21)[:101].double()
    held = HeldOut(logit, label, torch.ones(101, dtype=torch.float64))
    difference = (2 * logit.sigmoid() - 1).numpy()
    human = np.sign(label.numpy() - 0.5)
    for threshold in (0.0, 0.3):
        expected = pair_credit(human, difference, RULES["pickapic"], threshold=threshold)
        assert tie_credit(held, threshold).tolist() == expected.tolist()
    without = pair_credit(human, difference, RULES["half"])
    found = measure(held)
    assert found.accuracy == pytest.approx(np.nanmean(without))
    assert (found.pairs, found.ties) == (61, 40)
    assert found.right == pytest.approx(np.nansum(without))


def test_the_threshold_of_ties_is_the_one_with_the_most_credit():
    held = pairs([0.1, -0.1, 0.2, 3.0, -3.0], [0.5, 0.5, 0.5, 1.0, 0.0])
    assert best_tie_threshold(held) == 0.1  # |2 sigmoid(0.2) - 1| = 0.0997
    assert measure(held, tie_threshold=0.1).accuracy_with_ties == 1.0


def test_the_best_temperature_is_that_of_the_bisection(draw, generator):
    truth = draw(2000)
    outcome = (torch.rand(2000, generator=generator, dtype=torch.float64) < truth.sigmoid()).double()
    logit = 3.0 * truth  # three times too sure
    held = HeldOut(logit, outcome, torch.ones_like(logit))

    def loss(temperature):
        return nll(HeldOut(held.logit / temperature, held.probability, held.weight))

    found = best_scale(loss)
    correct = (torch.sign(logit) == torch.sign(outcome - 0.5)).double()
    expected, _ = best_temperature(logit.abs().sigmoid(), correct)
    assert found == pytest.approx(expected.item(), rel=1e-4)
    assert 2.5 < found < 3.6


def test_calibration_error_is_that_of_stated_confidences():
    logit = math.log(4)  # says 0.8, and half are right
    held = pairs([logit, logit, -logit, -logit], [1.0, 0.0, 0.0, 1.0])
    found = measure(held)
    assert found.calibration_error == pytest.approx(0.3)
    assert found.brier == pytest.approx((0.2**2 + 0.8**2) / 2)
    assert found.accuracy == 0.5


def test_measures_of_nothing_are_refused_and_of_ties_alone_are_null():
    with pytest.raises(ConfigError, match=r"held-out pairs: got \[none\]"):
        measure(pairs([], []))
    assert measure(pairs([1.0], [0.5])).as_json()["accuracy"] is None

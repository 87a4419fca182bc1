"""Min-SNR weights: hand-worked values, exactness in every space, limits, and how the bound uses them."""

import dataclasses

import pytest
import torch

from mmalign.errors import HyperparameterError, UnknownNameError
from mmalign.likelihood import Elbo, FlowSchedule, UniformTimesteps, VPSchedule
from mmalign.likelihood.schedules import PREDICTIONS
from mmalign.likelihood.weighting import MinSnr, signal_to_noise

# abar 0.9, 0.5, 0.2: signal-to-noise ratios 9, 1, 0.25
SCHEDULE = VPSchedule(torch.tensor([0.9, 0.5, 0.2]))
ALL = torch.arange(3)


def test_the_ratio_is_that_of_the_variances():
    assert signal_to_noise(SCHEDULE, ALL).tolist() == pytest.approx([9.0, 1.0, 0.25], rel=1e-5)


@pytest.mark.parametrize(
    ("space", "expected"),
    [("epsilon", [5 / 9, 1, 1]), ("v_prediction", [5 / 10, 1 / 2, 0.25 / 1.25]), ("sample", [5, 1, 0.25])],
)
def test_weights_of_the_paper_in_each_space(space, expected):
    assert MinSnr(5)(SCHEDULE, ALL, space=space).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("space", PREDICTIONS)
def test_the_released_form_is_that_of_noise_in_every_space(space):
    found = MinSnr(5, form="epsilon")(SCHEDULE, ALL, space=space)
    assert found.tolist() == pytest.approx([5 / 9, 1, 1], rel=1e-5)


def test_pure_noise_and_pure_data_have_finite_weights():
    extremes = VPSchedule(torch.tensor([1.0, 0.0]))
    for form in ("exact", "epsilon"):
        assert MinSnr(5, form)(extremes, torch.arange(2), space="v_prediction").isfinite().all()
    flow = MinSnr(5)(FlowSchedule(), torch.tensor([0.0, 0.5, 1.0]), space="flow")
    assert flow.isfinite().all()
    assert flow[1].item() == pytest.approx(1 / 4)  # SNR 1; an error of the sample is a quarter of the flow's


@pytest.mark.parametrize("space", [None, "epsilon", "sample"])
def test_the_bound_weighs_errors_the_same_whatever_space_they_are_measured_in(space, make_batch):
    batch = make_batch(5, 2)
    plain = Elbo(SCHEDULE, "v_prediction", UniformTimesteps(), error_space=None)
    weighted = dataclasses.replace(plain, error_space=space, weighting=MinSnr(2.5))
    draw = plain.draw(batch)
    answers = torch.zeros_like(draw.target)
    error = plain.evaluate(lambda *_: answers.flatten(0, 1), batch, draw).error
    found = weighted.evaluate(lambda *_: answers.flatten(0, 1), batch, draw).error
    expected = error * MinSnr(2.5)(SCHEDULE, draw.timestep, space="v_prediction")
    assert torch.allclose(found, expected, rtol=1e-4)


def test_stored_errors_know_their_weighting_and_old_ones_keep_their_description():
    plain = Elbo(SCHEDULE, "epsilon", UniformTimesteps())
    assert "weighting" not in plain.describe()
    assert dataclasses.replace(plain, weighting=MinSnr(5)).describe()["weighting"] != plain.describe()


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("inf")])
def test_gamma_is_positive(gamma):
    with pytest.raises(HyperparameterError, match=r"MinSnr\.gamma: got .*above 0"):
        MinSnr(gamma)


def test_forms_have_names():
    wrong = object.__new__(MinSnr)  # annotations are checked while tests run, and only then
    for name, value in (("gamma", 5.0), ("form", "velocity")):
        object.__setattr__(wrong, name, value)
    with pytest.raises(UnknownNameError, match="unknown form of min-SNR 'velocity'"):
        wrong.__post_init__()

"""The cosine schedule: hand-worked mixtures, its algebra, its ends, the sampler's own counting."""

import math

import pytest
import torch

from mmalign.errors import HyperparameterError
from mmalign.likelihood import (
    CosineSchedule,
    ListedTimesteps,
    LogitNormalTimesteps,
    UniformTimesteps,
)
from mmalign.likelihood.schedules import PREDICTIONS
from mmalign.likelihood.weighting import signal_to_noise

TIME = torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64)


@pytest.fixture
def schedule():
    return CosineSchedule()


def test_known_mixture_by_hand(schedule):
    # cos and sin of 60 degrees.
    alpha, sigma = schedule.coefficients(torch.tensor([2 / 3], dtype=torch.float64), torch.float64)
    assert alpha.item() == pytest.approx(0.5)
    assert sigma.item() == pytest.approx(math.sqrt(3) / 2)
    clean, noise = torch.tensor([[10.0]]), torch.tensor([[2.0]])
    half = torch.tensor([0.5])
    assert schedule.add_noise(clean, noise, half).item() == pytest.approx(12 / math.sqrt(2), rel=1e-6)
    velocity = schedule.target("v_prediction", clean, noise, half)
    assert velocity.item() == pytest.approx(-8 / math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("to", PREDICTIONS)
def test_predictions_convert_exactly(schedule, source, to):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    noised = schedule.add_noise(clean, noise, TIME)
    found = schedule.convert(schedule.target(source, clean, noise, TIME), noised, TIME, source=source, to=to)
    torch.testing.assert_close(found, schedule.target(to, clean, noise, TIME))


def test_error_weights_are_those_of_the_variance_preserving_algebra(schedule):
    alpha, sigma = schedule.coefficients(TIME, torch.float64)
    for to, wanted in (("epsilon", alpha.square()), ("sample", sigma.square())):
        found = schedule.error_weight(TIME, source="v_prediction", to=to, dtype=torch.float64)
        torch.testing.assert_close(found, wanted)


def test_the_network_hears_of_noise_as_the_sampler_counts_it(schedule):
    level = torch.tensor([0.3, 1.0, 500.0], dtype=torch.float64)  # sigma over alpha, as EDM has it
    time = level.atan() * 2 / math.pi
    found = signal_to_noise(schedule, time, torch.float64)
    torch.testing.assert_close(found, level.square().reciprocal())
    assert torch.equal(schedule.network_time(time), time)


def test_its_end_is_pure_noise_and_nothing_is_nan_there(schedule):
    clean, noise, end = torch.ones(1, 3), torch.full((1, 3), 2.0), torch.ones(1)
    assert torch.equal(schedule.add_noise(clean, noise, end), noise)
    assert schedule.coefficients(end)[0].item() == 0.0
    assert schedule.convert(noise, noise, end, source="epsilon", to="sample").tolist() == [[0.0] * 3]
    assert [kind for kind in PREDICTIONS if schedule.loses_clean(kind)] == ["epsilon"]


def test_timesteps_are_drawn_from_the_whole_or_a_part(schedule):
    fraction = torch.tensor([0.0, 0.5, 0.75])
    assert UniformTimesteps().place(fraction, schedule).tolist() == [0.0, 0.5, 0.75]
    part = UniformTimesteps(low=0.2, high=0.6)
    part.check(schedule)
    torch.testing.assert_close(part.place(fraction, schedule), torch.tensor([0.2, 0.4, 0.5]))
    middle = LogitNormalTimesteps(0.0, 1.0).place(torch.tensor([0.5]), schedule)
    assert middle.item() == pytest.approx(0.5)
    assert ListedTimesteps((0.25, 1.0)).place(torch.tensor([0.9]), schedule).item() == 1.0


@pytest.mark.parametrize("value", [-0.1, 1.5, 999])
def test_timesteps_outside_are_refused(schedule, value):
    with pytest.raises(HyperparameterError, match=r"t between 0 .clean. and 1 .noise."):
        ListedTimesteps((value,)).check(schedule)


def test_its_description_tells_it_from_others(schedule):
    assert schedule.describe() == {"schedule": "cosine, 1 timesteps, continuous"}

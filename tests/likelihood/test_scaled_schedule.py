"""VideoCrafter2's schedule: the clean sample fades, everything that follows from the coefficients holds."""

import numpy as np
import pytest
import torch

from mmalign.errors import HyperparameterError
from mmalign.likelihood import VPSchedule
from mmalign.likelihood.inversion_steps import InversionSteps
from mmalign.likelihood.scaled_schedule import ScaledVPSchedule, fading

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def schedule():
    return ScaledVPSchedule.of(CONFIG, end=0.7, over=400)


def test_factors_fall_from_one_to_their_end_and_stay():
    wanted = np.concatenate([np.linspace(1, 0.7, 400), np.full(600, 0.7)])
    assert np.allclose(fading(1000, end=0.7, over=400).numpy(), wanted, rtol=0, atol=1e-15)
    assert fading(300, end=0.7, over=400).shape == (300,)


def test_only_the_clean_sample_fades(schedule):
    steps = torch.tensor([0, 199, 399, 700])
    plain = VPSchedule.from_scheduler_config(CONFIG).coefficients(steps, torch.float64)
    alpha, sigma = schedule.coefficients(steps, torch.float64)
    assert torch.equal(sigma, plain[1])
    factors = torch.tensor([1.0, 1 - 0.3 * 199 / 399, 0.7, 0.7], dtype=torch.float64)
    torch.testing.assert_close(alpha, plain[0] * factors, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_gives_back_clean_sample_and_noise(schedule, kind):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    steps = torch.tensor([2, 250, 900])
    noised = schedule.add_noise(clean, noise, steps)
    found = schedule.split(schedule.target(kind, clean, noise, steps), noised, steps, source=kind)
    torch.testing.assert_close(found, (clean, noise), rtol=1e-9, atol=1e-9)


def test_inversions_count_the_fading_in(schedule):
    steps = InversionSteps(schedule, "exact", 10, 0.0)
    alpha, sigma = steps.levels.coefficients(torch.tensor([steps.clean, 700]), torch.float64)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert alpha[1] == schedule.coefficients(torch.tensor([700]), torch.float64)[0]


def test_its_description_tells_it_from_the_plain_one(schedule):
    other = ScaledVPSchedule.of(CONFIG, end=0.6, over=400)
    plain = VPSchedule.from_scheduler_config(CONFIG)
    assert len({found.describe()["schedule"] for found in (schedule, other, plain)}) == 3


@pytest.mark.parametrize("scale", [-torch.ones(1000), torch.zeros(1000)])
def test_factors_that_are_not_above_zero_are_refused(schedule, scale):
    with pytest.raises(HyperparameterError, match=r"ScaledVPSchedule\.scale: got .* one per timestep"):
        ScaledVPSchedule(schedule.alphas_cumprod, scale)

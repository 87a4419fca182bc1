"""Stable Audio's sampler against diffusers' own, whose noise library is not needed for the comparison."""

import importlib
import math
import sys
from types import ModuleType
from typing import ClassVar

import pytest
import torch

from mmalign.audio.cosine_sampler import CosineSampler
from mmalign.errors import ConfigError


@pytest.fixture
def theirs(monkeypatch):
    """diffusers' class; it imports its noise library, which gets no call here."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    name = "diffusers.schedulers.scheduling_cosine_dpmsolver_multistep"
    for module in (name, "diffusers.schedulers.scheduling_dpmsolver_sde"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return importlib.import_module(name).CosineDPMSolverMultistepScheduler


def network(scaled, timestep):
    return torch.tanh(scaled) * (1 + timestep) - 0.3 * scaled


def run(sampler, start, steps, **draws):
    sampler.set_timesteps(steps)
    sample = start * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        output = network(sampler.scale_model_input(sample, timestep), timestep)
        sample = sampler.step(output, timestep, sample, return_dict=False, **draws)[0]
    return sample


class TestAgainstDiffusers:
    SETTINGS: ClassVar = [
        {},
        {"solver_type": "heun"},
        {"solver_order": 1},
        {"sigma_schedule": "karras"},
        {"prediction_type": "epsilon"},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"sigma_min": 0.05, "sigma_max": 80.0},
    ]

    @pytest.mark.parametrize("settings", SETTINGS)
    @pytest.mark.parametrize("steps", [2, 7, 17])
    def test_every_sample_equals_theirs_from_the_same_noise(self, theirs, settings, steps):
        start = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ours = run(CosineSampler(**settings), start, steps, generator=torch.Generator().manual_seed(7))
        other = theirs(**settings)
        generator = torch.Generator().manual_seed(7)
        set_timesteps = other.set_timesteps

        def with_our_noise(*arguments, **keywords):
            set_timesteps(*arguments, **keywords)
            other.noise_sampler = lambda now, then: (
                torch.randn(start.shape, generator=generator) if then > 0 else torch.zeros(start.shape)
            )

        other.set_timesteps = with_our_noise
        torch.testing.assert_close(ours, run(other, start, steps), rtol=2e-5, atol=2e-5)

    def test_the_network_is_told_the_same_times(self, theirs):
        ours, other = CosineSampler(), theirs()
        for sampler in (ours, other):
            sampler.set_timesteps(11)
        torch.testing.assert_close(ours.timesteps, other.timesteps)
        assert ours.init_noise_sigma == pytest.approx(other.init_noise_sigma)

    def test_settings_are_theirs(self, theirs):
        given = {"sigma_min": 0.1, "_class_name": "CosineDPMSolverMultistepScheduler"}
        ours = CosineSampler.from_config(given)
        assert {name: value for name, value in ours.config.items() if name[0] != "_"} == {
            name: value for name, value in theirs(sigma_min=0.1).config.items() if name[0] != "_"
        }


def test_a_perfect_network_is_led_to_the_clean_sample():
    clean = torch.tensor([[0.7, -1.2]], dtype=torch.float64)
    sampler = CosineSampler()
    sampler.set_timesteps(9)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 2, generator=generator, dtype=torch.float64) * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        level = math.tan(timestep.double().item() * math.pi / 2)
        noise = (sample - clean) / level
        turn = math.hypot(level, 1)
        velocity = (noise - level * clean) / turn
        sample = sampler.step(velocity, timestep, sample, generator=generator).prev_sample
    torch.testing.assert_close(sample, clean, rtol=1e-4, atol=1e-4)


def test_rows_draw_from_their_own_generators():
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    both = run(CosineSampler(), start, 4, generator=[torch.Generator().manual_seed(n) for n in (5, 6)])
    alone = run(CosineSampler(), start[1:], 4, generator=[torch.Generator().manual_seed(6)])
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(both[:1], run(CosineSampler(), start[:1], 4, generator=[torch.Generator()]))


def test_drawing_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="got no generator, expected one, or one per row"):
        run(CosineSampler(), torch.ones(1, 2), 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("solver_order", 3), ("solver_type", "bh1"), ("prediction_type", "sample"), ("sigma_data", 0.5)],
)
def test_settings_it_does_not_know_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}: got"):
        CosineSampler(**{name: value})


def test_levels_must_be_ordered():
    with pytest.raises(ConfigError, match=r"0 < sigma_min < sigma_max"):
        CosineSampler(sigma_min=3.0, sigma_max=1.0)

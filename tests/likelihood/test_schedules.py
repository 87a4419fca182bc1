"""Schedules: equality with diffusers, hand-worked mixtures, conversions, error weights, the singular ends."""

import itertools
import math

import diffusers
import pytest
import torch

from mmalign.errors import ConfigError, HyperparameterError, ShapeError
from mmalign.likelihood import FlowSchedule, VPSchedule, prediction_from_config, schedule_from_config
from mmalign.likelihood.schedules import PREDICTIONS

CONFIGS = {
    "stable_diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "zero_terminal": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": True,
    },
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 211},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 101},
    "sigmoid": {"beta_schedule": "sigmoid", "num_train_timesteps": 101},
    "trained": {"trained_betas": [0.1, 0.2, 0.3, 0.5, 0.7], "num_train_timesteps": 5},
    "empty": {},
}
SPACES = list(itertools.product(PREDICTIONS, PREDICTIONS))


@pytest.fixture(params=["vp", "flow"])
def schedule_and_time(request):
    """A schedule and three interior timesteps."""
    if request.param == "vp":
        return VPSchedule.from_scheduler_config(CONFIGS["stable_diffusion"]), torch.tensor([3, 421, 998])
    return FlowSchedule(shift=3.0), torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64)


class TestVariancePreserving:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_table_equals_diffusers_to_the_bit(self, name):
        theirs = diffusers.DDPMScheduler(**CONFIGS[name])
        ours = VPSchedule.from_scheduler_config(theirs.config)
        assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
        assert torch.equal(
            VPSchedule.from_scheduler_config(CONFIGS[name]).alphas_cumprod, theirs.alphas_cumprod
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_noise_and_velocity_equal_diffusers(self, draw, dtype):
        theirs = diffusers.DDPMScheduler(**CONFIGS["stable_diffusion"])
        ours = VPSchedule.from_scheduler_config(theirs.config)
        clean, noise = draw(7, 3, 5, dtype=dtype), draw(7, 3, 5, dtype=dtype)
        timestep = torch.tensor([0, 1, 10, 250, 537, 998, 999])
        assert torch.equal(ours.add_noise(clean, noise, timestep), theirs.add_noise(clean, noise, timestep))
        assert torch.equal(
            ours.target("v_prediction", clean, noise, timestep), theirs.get_velocity(clean, noise, timestep)
        )

    def test_known_mixture_by_hand(self):
        schedule = VPSchedule(torch.tensor([0.64, 0.36]))
        clean, noise = torch.tensor([[10.0], [10.0]]), torch.tensor([[1.0], [1.0]])
        timestep = torch.tensor([0, 1])
        # sqrt(0.64) = 0.8 and sqrt(0.36) = 0.6 change places.
        torch.testing.assert_close(schedule.add_noise(clean, noise, timestep), torch.tensor([[8.6], [6.8]]))
        torch.testing.assert_close(
            schedule.target("v_prediction", clean, noise, timestep), torch.tensor([[0.8 - 6.0], [0.6 - 8.0]])
        )

    def test_network_sees_the_index_itself(self, vp):
        timestep = torch.tensor([0, 999])
        assert vp.network_time(timestep) is timestep

    @pytest.mark.parametrize("bad", [1000, -1])
    def test_index_outside_the_table_is_refused(self, vp, bad):
        with pytest.raises((IndexError, RuntimeError)):
            vp.coefficients(torch.tensor([bad]))

    def test_progress_runs_from_the_last_index_to_the_first(self, vp):
        progress = torch.tensor([0.0, 0.0011, 0.5, 0.99999, 1.0])
        assert vp.timestep_at(progress).tolist() == [999, 998, 499, 0, 0]

    def test_table_outside_zero_and_one_is_refused(self):
        with pytest.raises(HyperparameterError, match=r"1\.2.*expected cumulative alphas between 0 and 1"):
            VPSchedule(torch.tensor([1.2, 0.5]))
        with pytest.raises(HyperparameterError, match="an empty table"):
            VPSchedule(torch.tensor([]))

    def test_unknown_beta_schedule_names_the_near_ones(self):
        with pytest.raises(ConfigError, match="Did you mean scaled_linear"):
            VPSchedule.from_scheduler_config({"beta_schedule": "scaled_liner"})

    def test_description_tells_schedules_apart(self):
        described = {
            VPSchedule.from_scheduler_config(config).describe()["schedule"] for config in CONFIGS.values()
        }
        assert len(described) == len(CONFIGS)

    def test_table_used_under_inference_mode_can_train_afterwards(self, vp, draw):
        timestep = torch.tensor([5, 500])
        with torch.inference_mode():
            vp.coefficients(timestep, torch.float64)
        clean = draw(2, 3, requires_grad=True)
        vp.add_noise(clean, draw(2, 3), timestep).sum().backward()
        assert clean.grad is not None


class TestFlow:
    def test_mixture_equals_diffusers_scale_noise(self, draw):
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        ours = FlowSchedule.from_scheduler_config(theirs.config)
        clean, noise = draw(5, 2, 3, dtype=torch.float32), draw(5, 2, 3, dtype=torch.float32)
        index = torch.tensor([0, 7, 500, 901, 999])
        expected = theirs.scale_noise(clean, theirs.timesteps[index], noise)
        sigma = theirs.sigmas[index]
        torch.testing.assert_close(ours.add_noise(clean, noise, sigma), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.network_time(sigma), theirs.timesteps[index])

    @pytest.mark.parametrize("shift", [1.0, 3.0, 1.15])
    def test_grid_equals_the_sigmas_diffusers_trains_on(self, shift):
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        ours = FlowSchedule(shift=shift, grid=True)
        middle = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        torch.testing.assert_close(
            ours.timestep_at(middle), theirs.sigmas[:1000].double(), rtol=1e-6, atol=1e-7
        )

    def test_known_mixture_by_hand(self):
        schedule = FlowSchedule()
        clean, noise, sigma = torch.tensor([[8.0]]), torch.tensor([[4.0]]), torch.tensor([0.25])
        assert schedule.add_noise(clean, noise, sigma).item() == 7.0
        assert schedule.target("flow", clean, noise, sigma).item() == -4.0
        assert schedule.network_time(sigma).item() == 250.0

    def test_shift_of_three_moves_the_middle_to_three_quarters(self):
        assert FlowSchedule(shift=3.0).shifted(torch.tensor(0.5)).item() == 0.75

    def test_progress_runs_from_noise_to_data(self):
        progress = torch.tensor([0.0, 0.5, 1.0])
        assert FlowSchedule(shift=3.0).timestep_at(progress).tolist() == [1.0, 0.75, 0.0]
        grid = FlowSchedule(num_timesteps=10, grid=True).timestep_at(progress)
        torch.testing.assert_close(grid, torch.tensor([1.0, 0.5, 0.1]))

    def test_range_is_uniform_before_the_shift_and_keeps_its_ends(self):
        schedule = FlowSchedule(shift=3.0)
        ends = schedule.between(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.3, 0.9)
        torch.testing.assert_close(ends, torch.tensor([0.3, 0.9], dtype=torch.float64))
        whole = schedule.between(torch.tensor([0.0, 0.5], dtype=torch.float64), 0, None)
        torch.testing.assert_close(whole, torch.tensor([0.0, 0.75], dtype=torch.float64))

    @pytest.mark.parametrize("kind", ["exponential", "linear"])
    def test_resolution_dependent_shift_equals_diffusers(self, kind):
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
        ours = FlowSchedule.from_scheduler_config(theirs.config, sequence_length=1024)
        mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
        level = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        torch.testing.assert_close(ours.shifted(level), theirs.time_shift(mu, 1.0, level))

    def test_resolution_dependent_shift_needs_the_sequence_length(self):
        with pytest.raises(ConfigError, match="use_dynamic_shifting without a sequence length"):
            FlowSchedule.from_scheduler_config({"use_dynamic_shifting": True})

    @pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
    def test_shift_must_be_positive(self, shift):
        with pytest.raises(HyperparameterError, match=r"FlowSchedule\.shift"):
            FlowSchedule(shift=shift)

    def test_number_of_timesteps_must_be_positive(self):
        with pytest.raises(HyperparameterError, match="num_timesteps"):
            FlowSchedule(num_timesteps=0)


class TestConversions:
    @pytest.mark.parametrize(("source", "to"), SPACES)
    def test_conversion_gives_the_exact_target_of_the_other_kind(self, schedule_and_time, draw, source, to):
        schedule, timestep = schedule_and_time
        clean, noise = draw(3, 5, 2), draw(3, 5, 2)
        noised = schedule.add_noise(clean, noise, timestep)
        exact = {kind: schedule.target(kind, clean, noise, timestep) for kind in PREDICTIONS}
        found = schedule.convert(exact[source], noised, timestep, source=source, to=to)
        torch.testing.assert_close(found, exact[to], rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(("source", "to"), SPACES)
    def test_round_trip_returns_an_arbitrary_prediction(self, schedule_and_time, draw, source, to):
        schedule, timestep = schedule_and_time
        prediction, noised = draw(3, 5, 2), draw(3, 5, 2)
        there = schedule.convert(prediction, noised, timestep, source=source, to=to)
        back = schedule.convert(there, noised, timestep, source=to, to=source)
        torch.testing.assert_close(back, prediction, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(("source", "to"), SPACES)
    def test_error_weight_equals_the_error_of_the_converted_prediction(
        self, schedule_and_time, draw, source, to
    ):
        schedule, timestep = schedule_and_time
        clean, noise, wrong = draw(3, 5, 2), draw(3, 5, 2), draw(3, 5, 2)
        noised = schedule.add_noise(clean, noise, timestep)
        prediction = schedule.target(source, clean, noise, timestep) + wrong
        converted = schedule.convert(prediction, noised, timestep, source=source, to=to)
        expected = (converted - schedule.target(to, clean, noise, timestep)).square().flatten(1).mean(1)
        weight = schedule.error_weight(timestep, source=source, to=to, dtype=torch.float64)
        torch.testing.assert_close(weight * wrong.square().flatten(1).mean(1), expected, rtol=1e-6, atol=1e-9)

    def test_weights_are_those_of_the_literature(self, vp):
        timestep = torch.tensor([0, 500, 999])
        cumulative = vp.alphas_cumprod.double()[timestep]

        def weight(source, to):
            return vp.error_weight(timestep, source=source, to=to, dtype=torch.float64)

        torch.testing.assert_close(weight("v_prediction", "epsilon"), cumulative)
        torch.testing.assert_close(weight("v_prediction", "sample"), 1 - cumulative)
        torch.testing.assert_close(weight("epsilon", "sample"), (1 - cumulative) / cumulative)
        sigma = torch.tensor([0.25, 0.5], dtype=torch.float64)
        flow = FlowSchedule()
        assert flow.error_weight(sigma, source="flow", to="epsilon", dtype=torch.float64).tolist() == [
            0.5625,
            0.25,
        ]
        assert flow.error_weight(sigma, source="flow", to="sample", dtype=torch.float64).tolist() == [
            0.0625,
            0.25,
        ]

    def test_timestep_scales_samples_not_columns(self, vp, draw):
        """Three samples of three columns: a broadcast from the right would scale columns unnoticed."""
        clean, noise, timestep = draw(3, 3), draw(3, 3), torch.tensor([0, 500, 999])
        together = vp.add_noise(clean, noise, timestep)
        alone = torch.stack([vp.add_noise(clean[i], noise[i], timestep[i]) for i in range(3)])
        assert torch.equal(together, alone)
        assert not torch.allclose(together, vp.add_noise(clean.T, noise.T, timestep).T)

    def test_two_leading_axes_share_one_formula(self, vp, draw):
        clean, noise = draw(3, 2, 5), draw(3, 2, 5)
        timestep = torch.tensor([[1, 2], [30, 40], [500, 600]])
        flat = vp.add_noise(clean.flatten(0, 1), noise.flatten(0, 1), timestep.flatten())
        assert torch.equal(vp.add_noise(clean, noise, timestep), flat.unflatten(0, (3, 2)))

    def test_timesteps_that_do_not_cover_the_samples_are_refused(self, vp, draw):
        with pytest.raises(ShapeError, match="leading"):
            vp.add_noise(draw(3, 5), draw(3, 5), torch.tensor([1, 2]))


class TestPureNoise:
    """The last timestep of a zero-terminal-SNR schedule: alpha is 0."""

    @pytest.fixture
    def schedule(self):
        return VPSchedule.from_scheduler_config(CONFIGS["zero_terminal"])

    def test_is_recognised(self, schedule, vp):
        assert schedule.zero_terminal_snr
        assert not vp.zero_terminal_snr
        assert schedule.coefficients(torch.tensor([999]))[0].item() == 0.0

    def test_velocity_there_is_minus_the_clean_sample(self, schedule, draw):
        clean, noise, last = draw(2, 3), draw(2, 3), torch.tensor([999, 999])
        assert torch.equal(schedule.add_noise(clean, noise, last), noise)
        assert torch.equal(schedule.target("v_prediction", clean, noise, last), -clean)
        noised = schedule.add_noise(clean, noise, last)
        assert torch.equal(schedule.convert(-clean, noised, last, source="v_prediction", to="sample"), clean)
        assert torch.equal(schedule.convert(-clean, noised, last, source="v_prediction", to="epsilon"), noise)

    @pytest.mark.parametrize("to", ["sample", "v_prediction", "flow"])
    def test_epsilon_says_nothing_there_and_gives_no_nan(self, schedule, draw, to):
        noise, last = draw(2, 3), torch.tensor([999, 998])
        prediction = noise.clone().requires_grad_()
        converted = schedule.convert(prediction, noise, last, source="epsilon", to=to)
        assert torch.isfinite(converted).all()
        converted.sum().backward()
        assert torch.isfinite(prediction.grad).all()
        clean = schedule.convert(noise, noise, last, source="epsilon", to="sample")
        assert clean[0].tolist() == [0.0, 0.0, 0.0]
        weight = schedule.error_weight(last, source="epsilon", to=to)
        assert weight[0] == 0
        assert weight[1] > 0

    def test_velocity_errors_weigh_nothing_as_epsilon_errors_there(self, schedule):
        assert schedule.error_weight(torch.tensor([999]), source="v_prediction", to="epsilon").item() == 0.0

    def test_clean_sample_is_not_divided_by_zero_at_sigma_zero(self, draw):
        clean, zero = draw(2, 3), torch.zeros(2, dtype=torch.float64)
        converted = FlowSchedule().convert(clean, clean, zero, source="sample", to="flow")
        assert torch.isfinite(converted).all()


class TestConfigs:
    def test_prediction_of_a_scheduler_config(self):
        assert prediction_from_config({}) == "epsilon"
        assert prediction_from_config({"prediction_type": "v_prediction"}) == "v_prediction"
        assert prediction_from_config({"prediction_type": "flow_prediction"}) == "flow"
        assert prediction_from_config(diffusers.FlowMatchEulerDiscreteScheduler().config) == "flow"
        assert prediction_from_config(diffusers.DDPMScheduler(prediction_type="sample").config) == "sample"
        with pytest.raises(ConfigError, match="unknown prediction_type 'velocity'"):
            prediction_from_config({"prediction_type": "velocity"})

    def test_schedule_of_a_scheduler_config(self, stable_diffusion):
        assert isinstance(schedule_from_config(stable_diffusion), VPSchedule)
        flow = schedule_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
        assert flow == FlowSchedule(shift=3.0)

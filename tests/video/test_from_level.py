"""Sampling from the middle: where the way begins, which levels it passes, and both of its ends."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.schedulers import CogVideoXDPMScheduler

from mmalign.diffusion.guided import GuidedModel
from mmalign.errors import ConfigError, HyperparameterError
from mmalign.likelihood.schedules import FlowSchedule, VPSchedule
from mmalign.video.from_level import renoised_latents, sampler_from

SHAPE = (2, 3, 5, 2, 3)


class Oracle(GuidedModel):
    """A model that knows clean clip and noise, and writes down the timesteps it is asked at."""

    def __init__(self, scheduler, prediction, schedule):
        self.inner, self.prediction, self.schedule = scheduler, prediction, schedule
        self.device = torch.device("cpu")
        self.bare_network = torch.nn.Identity()
        self.scheduler_class = type(scheduler).__name__
        self.asked = []
        generator = torch.Generator().manual_seed(3)
        self.clean, self.noise = (torch.randn(SHAPE, generator=generator) for _ in range(2))

    def sampler(self, name):
        return type(self.inner).from_config(self.inner.config)

    def denoise(self, noised, timestep, conditioning, *, network=None):
        self.asked.append(float(timestep[0]))
        return self.target_at(timestep)

    def target_at(self, timestep):
        # Of flow models nothing but noise - clean is predicted, at any time.
        level = timestep.long() if self.prediction != "flow" else torch.zeros(len(timestep))
        return self.schedule.target(self.prediction, self.clean, self.noise, level)

    def denoised(self, level, num_steps=8):
        generators = [torch.Generator().manual_seed(place) for place in range(2)]
        return renoised_latents(
            self,
            self.clean,
            self.noise,
            {"text": torch.zeros(2, 1)},
            None,
            level=level,
            num_steps=num_steps,
            guidance_scale=1.0,
            generators=generators,
        )


for _abstract in Oracle.__abstractmethods__:
    setattr(Oracle, _abstract, None)
Oracle.__abstractmethods__ = frozenset()


def flow(scheduler=None, shift=3.0):
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=shift)
    return Oracle(scheduler, "flow", FlowSchedule(shift=shift))


def vp(prediction="v_prediction", scheduler_class=DDIMScheduler, **settings):
    scheduler = scheduler_class(prediction_type=prediction, clip_sample=False, **settings)
    return Oracle(scheduler, prediction, VPSchedule(scheduler.alphas_cumprod))


def unipc():
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return flow(scheduler)


def test_the_way_begins_exactly_at_the_level_and_passes_the_samplers_own_levels_below():
    model = flow()
    model.denoised(0.7)
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own.set_timesteps(8)
    below = [time for time in own.timesteps.tolist() if time < 700]
    assert model.asked == pytest.approx([700.0, *below])
    # Not the last round(0.7 * 8) = 6 steps: the shift leaves fewer below.
    assert len(below) == 4


def test_a_level_that_is_one_of_the_samplers_own_is_passed_once():
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own.set_timesteps(8)
    level = float(own.sigmas[3])
    model = flow()
    model.denoised(level)
    assert model.asked == pytest.approx(own.timesteps[3:].tolist())


@pytest.mark.parametrize("model_of", [flow, unipc, vp, lambda: vp("epsilon"), lambda: vp("sample")])
@pytest.mark.parametrize("level", [0.1, 0.65, 0.8, 0.99])
def test_a_network_that_knows_the_noise_gives_the_clip_back(model_of, level):
    model = model_of()
    torch.testing.assert_close(model.denoised(level), model.clean, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("model_of", [flow, unipc, vp])
def test_no_noise_reproduces_the_input(model_of):
    model = model_of()
    assert torch.equal(model.denoised(0.0), model.clean)
    assert model.asked == []
    model.target_at = lambda timestep: torch.ones(SHAPE)  # a network that knows nothing
    near = model.denoised(1e-4)
    torch.testing.assert_close(near, model.clean, atol=1e-3, rtol=0)
    # The first timestep of other models has more noise: clean latents are nearer.
    assert len(model.asked) == (1 if model.prediction == "flow" else 0)


@pytest.mark.parametrize("model_of", [flow, unipc, vp])
def test_all_noise_is_ordinary_sampling(model_of):
    from mmalign.diffusion.guided import denoised_latents

    model = model_of()
    model.target_at = lambda timestep: 0.1 + 1e-4 * timestep.view(-1, 1, 1, 1, 1).expand(SHAPE)
    ordinary = denoised_latents(
        model,
        model.noise,
        {"text": torch.zeros(2, 1)},
        None,
        scheduler=model.sampler(None),
        num_steps=8,
        guidance_scale=1.0,
        generators=[torch.Generator()] * 2,
    )
    times, model.asked = model.asked, []
    assert torch.equal(model.denoised(1.0), ordinary)
    assert model.asked == times


def test_other_models_begin_at_the_timestep_whose_share_of_noise_is_nearest():
    model = vp()
    model.denoised(0.7)
    alpha = model.schedule.alphas_cumprod.sqrt()
    sigma = (1 - model.schedule.alphas_cumprod).sqrt()
    share = sigma / (alpha + sigma)
    first = int(model.asked[0])
    assert abs(float(share[first]) - 0.7) == pytest.approx(float((share - 0.7).abs().min()), abs=1e-6)
    assert model.asked[1:] == [time for time in (875, 750, 625, 500, 375, 250, 125, 0) if time < first]
    noised = sampler_from(model, 0.7).noised(model.clean, model.noise)
    torch.testing.assert_close(noised, alpha[first] * model.clean + sigma[first] * model.noise)


def test_samplers_that_draw_on_the_way_are_walked_without_noise():
    model = vp(scheduler_class=CogVideoXDPMScheduler)
    torch.testing.assert_close(model.denoised(0.75), model.clean, atol=2e-3, rtol=1e-3)
    assert torch.equal(model.denoised(0.75), model.denoised(0.75))


@pytest.mark.parametrize("level", [-0.1, 1.1, float("nan")])
def test_levels_that_are_no_shares_are_refused(level):
    with pytest.raises(HyperparameterError, match=r"level: got .* expected a share of noise, from 0 to 1"):
        flow().denoised(level)


def test_a_flow_model_whose_sampler_has_no_grid_of_levels_is_refused():
    model = flow()
    model.sampler = lambda name: object()
    with pytest.raises(ConfigError, match="expected a sampler with sigmas"):
        model.denoised(0.5)

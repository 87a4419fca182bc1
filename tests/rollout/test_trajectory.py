"""Samplers: equal to those of diffusers, rows independent of their batch, what is kept, gradients."""

import math

import diffusers
import pytest
import torch

from mmalign.errors import ConfigError, HyperparameterError, UnknownNameError
from mmalign.likelihood import Ddim, DpmSolver, FlowSchedule, FlowSde, Step, log_probability
from mmalign.rollout import Sampler, ddim_grid, first_noise, flow_grid, grid_of, solver_grid, step_noise

EVENT = (3, 5)


def text(rows, first=0):
    return {"text": torch.arange(first, first + rows).to(torch.float32).unsqueeze(1)}


def nothing(rows):
    return {"text": torch.zeros(rows, 1)}


def official(scheduler, network, state, conditioning, *, noise=None, eta=0.0):
    """The loop of a diffusers pipeline without guidance, in float32."""
    for number, timestep in enumerate(scheduler.timesteps):
        output = network(state, timestep.expand(state.shape[0]), conditioning)
        more = {} if noise is None else {"eta": eta, "variance_noise": noise(number)}
        state = scheduler.step(output, timestep, state, **more).prev_sample
    return state


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_without_noise_is_that_of_diffusers(
    vp, stable_diffusion, network, make_keys, spacing, prediction, to_one
):
    config = {
        **stable_diffusion,
        "timestep_spacing": spacing,
        "steps_offset": 1,
        "set_alpha_to_one": to_one,
        "prediction_type": prediction,
        "clip_sample": False,
    }
    scheduler = diffusers.DDIMScheduler(**config)
    scheduler.set_timesteps(20)
    keys = make_keys(2)
    expected = official(scheduler, network, first_noise(keys, EVENT), text(2))
    sampler = Sampler(vp, prediction, grid_of(vp, config, 20), Ddim(0.0))
    found = sampler.sample(network, keys, EVENT, text(2)).final
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddim_with_noise_is_that_of_diffusers(vp, stable_diffusion, network, make_keys, eta, clip):
    config = {**stable_diffusion, "steps_offset": 1, "set_alpha_to_one": False}
    scheduler = diffusers.DDIMScheduler(**config, clip_sample=clip is not None)
    scheduler.set_timesteps(20)
    keys = make_keys(2)

    def noise(number):
        return step_noise(keys, EVENT, number)

    expected = official(scheduler, network, first_noise(keys, EVENT), text(2), noise=noise, eta=eta)
    sampler = Sampler(vp, "epsilon", ddim_grid(vp, 20), Ddim(eta, clip))
    found = sampler.sample(network, keys, EVENT, text(2)).final
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_that_of_diffusers(network, make_keys, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(20)
    keys, schedule = make_keys(2), FlowSchedule(shift=shift)
    expected = official(scheduler, network, first_noise(keys, EVENT), text(2))
    sampler = Sampler(schedule, "flow", flow_grid(schedule, 20, spacing="scheduler"), FlowSde(0.0))
    found = sampler.sample(network, keys, EVENT, text(2)).final
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpm_solver_is_that_of_diffusers(vp, stable_diffusion, network, make_keys, spacing, prediction):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **stable_diffusion,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(20)
    keys = make_keys(2)
    expected = official(scheduler, network, first_noise(keys, EVENT), text(2))
    sampler = Sampler(vp, prediction, solver_grid(vp, 20, spacing=spacing), DpmSolver())
    found = sampler.sample(network, keys, EVENT, text(2)).final
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 14, 15])
@pytest.mark.parametrize(("ends", "last"), [("zero", "clean"), ("sigma_min", "first")])
def test_a_short_run_of_dpm_solver_ends_as_in_diffusers(
    vp, stable_diffusion, network, make_keys, num_steps, ends, last
):
    """Below 15 steps the last one is of first order (`lower_order_final`), wherever it leads."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **stable_diffusion, timestep_spacing="leading", steps_offset=1, final_sigmas_type=ends
    )
    scheduler.set_timesteps(num_steps)
    keys = make_keys(2)
    expected = official(scheduler, network, first_noise(keys, EVENT), text(2))
    sampler = Sampler(vp, "epsilon", solver_grid(vp, num_steps, last=last), DpmSolver())
    found = sampler.sample(network, keys, EVENT, text(2)).final
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_dpm_solver_runs_on_flows_from_pure_noise(network, make_keys):
    schedule, keys = FlowSchedule(), make_keys(2)

    def finals(kernel, num_steps):
        sampler = Sampler(schedule, "flow", flow_grid(schedule, num_steps), kernel)
        return sampler.sample(network, keys, EVENT, text(2)).final

    exact = finals(FlowSde(0.0), 1000)
    errors = [(finals(kernel, 20) - exact).abs().max() for kernel in (DpmSolver(), FlowSde(0.0))]
    assert errors[0] < errors[1]
    assert errors[0] < 0.05


@pytest.mark.parametrize(
    ("schedule", "prediction", "kernel"),
    [("vp", "epsilon", Ddim(1.0)), ("flow", "flow", FlowSde(0.7))],
    ids=["ddim", "flow_sde"],
)
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_row_goes_the_same_way_in_any_batch(vp, network, make_keys, schedule, prediction, kernel, scale):
    schedule = vp if schedule == "vp" else FlowSchedule()
    grid = ddim_grid(vp, 7) if schedule is vp else flow_grid(schedule, 7)
    sampler = Sampler(schedule, prediction, grid, kernel, scale)
    keep = ("state", "log_probability")
    whole = sampler.sample(network, make_keys(5), EVENT, text(5), nothing(5), keep=keep)
    part = sampler.sample(network, make_keys(2, first=3), EVENT, text(2, first=3), nothing(2), keep=keep)
    torch.testing.assert_close(part.states, whole.states[3:])
    torch.testing.assert_close(part.log_probability, whole.log_probability[3:], equal_nan=True)
    assert not torch.equal(whole.states[0], whole.states[1])


def test_every_step_of_a_row_draws_noise_of_its_own(make_keys):
    keys = make_keys(2)
    drawn = [first_noise(keys, EVENT), step_noise(keys, EVENT, 0), step_noise(keys, EVENT, 1)]
    assert len({value[0, 0, 0].item() for value in drawn}) == 3
    # The first candidate of a pool draws what the row alone would.
    assert torch.equal(step_noise(keys, (4, *EVENT), 1)[:, 0], drawn[2])


def test_guidance_costs_one_call_of_two_halves_and_none_costs_one(vp, network, make_keys):
    for scale, rows in ((1.0, 3), (5.0, 6)):
        network.calls.clear()
        sampler = Sampler(vp, "epsilon", ddim_grid(vp, 7), Ddim(), scale)
        sampler.sample(network, make_keys(3), EVENT, text(3), nothing(3))
        assert network.calls == [rows] * 7


def test_what_is_kept_belongs_together(vp, network, make_keys):
    sampler = Sampler(vp, "epsilon", ddim_grid(vp, 7), Ddim(0.5), 5.0)
    keep = ("state", "log_probability", "prediction", "clean")
    run = sampler.sample(network, make_keys(2), EVENT, text(2), nothing(2), keep=keep)
    assert run.states.shape == (2, 8, *EVENT)
    assert torch.equal(run.final, run.states[:, -1])
    assert torch.equal(run.states[:, 0], first_noise(make_keys(2), EVENT))
    assert run.timestep.tolist() == [sampler.grid.timestep.tolist()] * 2
    # All steps at once, from what was recorded, give the numbers of the run.
    step = Step(vp, "epsilon", run.state, run.prediction, run.timestep, run.next_timestep)
    moments = Ddim(0.5).moments(step)
    torch.testing.assert_close(moments.clean, run.clean)
    found = log_probability(run.next_state, moments.mean, moments.std)
    torch.testing.assert_close(found, run.log_probability, rtol=1e-4, atol=1e-4)


def test_nothing_is_kept_unless_asked_for(vp, network, make_keys):
    run = Sampler(vp, "epsilon", ddim_grid(vp, 3), Ddim()).sample(network, make_keys(2), EVENT, text(2))
    assert run.states is run.state is run.next_state is run.log_probability is run.prediction is run.clean
    assert run.states is None


def test_log_probabilities_of_recorded_noise_average_to_its_entropy(vp, network, make_keys):
    sampler = Sampler(vp, "epsilon", ddim_grid(vp, 20), Ddim())
    run = sampler.sample(network, make_keys(2), (50, 50), text(2), keep=("state", "log_probability"))
    output = torch.zeros_like(run.state)
    std = Ddim().moments(Step(vp, "epsilon", run.state, output, run.timestep, run.next_timestep)).std
    # E[-z^2 / 2] = -1/2 per element.
    expected = -0.5 - std.log() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(run.log_probability.double(), expected, rtol=0, atol=0.05)


def test_deterministic_steps_record_no_log_probability(vp, network, make_keys):
    sampler = Sampler(vp, "epsilon", ddim_grid(vp, 3), Ddim(0.0))
    run = sampler.sample(network, make_keys(2), EVENT, text(2), keep=("log_probability",))
    assert run.log_probability.isnan().all()


def test_rows_may_follow_grids_of_their_own(vp, network, make_keys):
    base = solver_grid(vp, 7, offset=0)
    sampler = Sampler(vp, "epsilon", base.shifted(torch.tensor([0, 30])), DpmSolver())
    both = sampler.sample(network, make_keys(2), EVENT, text(2))
    alone = Sampler(vp, "epsilon", base.shifted(torch.tensor([30])), DpmSolver())
    second = alone.sample(network, make_keys(1, first=1), EVENT, text(1, first=1))
    torch.testing.assert_close(both.final[1:], second.final)
    assert both.timestep.tolist()[1] == [value + 30 for value in base.timestep.tolist()]


@pytest.mark.parametrize("kernel", [Ddim(0.0), Ddim(1.0), DpmSolver()], ids=repr)
def test_the_last_steps_can_carry_gradient(vp, make_keys, kernel):
    weight = torch.tensor(0.4, requires_grad=True)

    def denoise(noised, time, conditioning):
        return weight * noised

    sampler = Sampler(vp, "epsilon", ddim_grid(vp, 5), kernel)

    def gradient(steps):
        run = sampler.sample(
            denoise, make_keys(2), EVENT, {}, keep=("state", "log_probability"), gradient_steps=steps
        )
        assert not run.states.requires_grad
        assert not run.log_probability.requires_grad
        return torch.autograd.grad(run.final.sum(), weight)[0].item()

    assert not sampler.sample(denoise, make_keys(2), EVENT, {}).final.requires_grad
    # All steps: the derivative of the whole map, here by differences; fewer: other, truncated ones.
    whole = gradient(5)
    with torch.no_grad():
        ends = []
        for change in (1e-2, -1e-2):
            weight.fill_(0.4 + change)
            ends.append(sampler.sample(denoise, make_keys(2), EVENT, {}).final.sum().item())
        weight.fill_(0.4)
    assert whole == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=2e-2)
    assert len({round(gradient(steps), 4) for steps in (1, 2, 5)}) == 3


def test_given_first_states_are_widened(vp, network, make_keys):
    sampler = Sampler(vp, "epsilon", ddim_grid(vp, 3), Ddim(0.0))
    start = torch.full((2, *EVENT), 0.5, dtype=torch.bfloat16)
    run = sampler.sample(network, make_keys(2), EVENT, text(2), start=start, keep=("state",))
    assert run.states.dtype == torch.float32
    assert torch.equal(run.states[:, 0], start.float())


def test_what_cannot_be_sampled_is_refused(vp, network, make_keys, untyped):
    grid = ddim_grid(vp, 3)
    with pytest.raises(ConfigError, match=r"FlowSde: got .VPSchedule."):
        Sampler(vp, "epsilon", grid, FlowSde())
    with pytest.raises(HyperparameterError, match=r"Sampler.guidance_scale: got nan"):
        Sampler(vp, "epsilon", grid, Ddim(), math.nan)
    with pytest.raises(HyperparameterError, match=r"gradient_steps: got 4, expected 0 to 3"):
        Sampler(vp, "epsilon", grid, Ddim()).sample(network, make_keys(2), EVENT, text(2), gradient_steps=4)
    with pytest.raises(ConfigError, match=r"set the scale to 1"):
        Sampler(vp, "epsilon", grid, Ddim(), 5.0).sample(network, make_keys(2), EVENT, text(2))
    with untyped:
        with pytest.raises(UnknownNameError, match=r"unknown kept 'states'.*Did you mean state"):
            Sampler(vp, "epsilon", grid, Ddim()).sample(network, make_keys(2), EVENT, {}, keep=("states",))
        with pytest.raises(UnknownNameError, match=r"unknown prediction 'x0'"):
            Sampler(vp, "x0", grid, Ddim())


@pytest.mark.compiled
def test_one_step_is_one_graph(vp, network, make_keys):
    sampler = Sampler(vp, "epsilon", ddim_grid(vp, 3), Ddim(), 5.0)
    state = first_noise(make_keys(2), EVENT)
    timestep, ahead = sampler.grid.at(0, 2)

    def denoise(noised, time, conditioning):
        return noised * conditioning["text"].unsqueeze(2)

    def step(state):
        moments, _ = sampler.step(denoise, state, timestep, ahead, text(2), nothing(2))
        return moments.mean, moments.std

    expected = step(state)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="eager")(state), expected)

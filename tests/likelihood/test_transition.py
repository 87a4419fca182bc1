"""Steps as Gaussians: closed forms, marginals, guidance, shared states, what is refused."""

import dataclasses
import itertools
import math

import pytest
import torch

from mmalign.batch import Conditioning
from mmalign.errors import ConfigError, HyperparameterError, ShapeError, UnknownNameError
from mmalign.likelihood import (
    Ddim,
    DpmSolver,
    Estimate,
    FlowSchedule,
    FlowSde,
    Likelihood,
    Step,
    Transition,
    TransitionKernel,
    VPSchedule,
    guided,
    log_probability,
    split_guidance,
)

FLOW = FlowSchedule()


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def indices(*values):
    return torch.tensor(values)


class Network:
    """Linear in the sample, the time and the prompt; remembers how many rows it saw."""

    def __init__(self, dtype=torch.float64):
        self.weight = torch.tensor(0.7, dtype=dtype, requires_grad=True)
        self.calls = []

    def __call__(self, noised, time, conditioning):
        self.calls.append(noised.shape[0])
        level = (time.to(noised.dtype) / 1000).reshape(-1, *(1,) * (noised.ndim - 1))
        text = conditioning["text"].to(noised.dtype).reshape(level.shape)
        return torch.tanh(self.weight * noised + level) + self.weight * text


@pytest.fixture
def steps(make_batch):
    """`steps(prompts, ...)`: recorded steps whose candidates are successors of one state."""

    def make(
        prompts=3, *, timestep=501, ahead=451, guidance=True, state=None, dtype=torch.float64, **changes
    ):
        begun = normal(prompts, 1, 5, 7, seed=3).to(dtype) if state is None else state
        shared = {"text": torch.arange(1.0, prompts + 1).unsqueeze(1)}
        if guidance:
            shared["uncond.text"] = torch.zeros(prompts, 1)
        batch = make_batch(prompts, 2, dtype=dtype, conditioning=Conditioning(shared=shared))
        given = {
            "state": begun.expand(-1, 2, 5, 7),
            "timestep": torch.full((prompts, 2), timestep),
            "next_timestep": torch.full((prompts, 2), ahead),
        }
        return dataclasses.replace(batch, recorded={**given, **changes})

    return make


# ------------------------------------------------------------------------------------------------- densities


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_probability_is_that_of_a_normal_distribution(reduction):
    value, mean = normal(3, 2, 5, 7), normal(3, 2, 5, 7, seed=1)
    std = normal(3, 2, seed=2).exp()
    exact = torch.distributions.Normal(mean, std[..., None, None]).log_prob(value)
    expected = exact.flatten(2).mean(-1) if reduction == "mean" else exact.flatten(2).sum(-1)
    torch.testing.assert_close(log_probability(value, mean, std, reduction=reduction), expected)


def test_a_deterministic_step_has_no_density():
    std = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mean = normal(2, 5).requires_grad_()
    found = log_probability(normal(2, 5), mean, std)
    assert found.isnan().tolist() == [True, False]
    found[1].backward()
    assert torch.isfinite(mean.grad).all()


# ------------------------------------------------------------------------------------------------------ DDIM


@pytest.mark.parametrize(("timestep", "ahead"), [(501, 500), (501, 451), (999, 949), (1, 0)])
def test_ddim_with_eta_one_is_the_posterior_of_the_forward_process(vp, timestep, ahead):
    clean, noise = normal(2, 5), normal(2, 5, seed=1)
    here, there = vp.alphas_cumprod.double()[[timestep, ahead]]
    state = here.sqrt() * clean + (1 - here).sqrt() * noise
    at, to = indices(timestep, timestep), indices(ahead, ahead)
    moments = Ddim(eta=1.0).moments(Step(vp, "epsilon", state, noise, at, to))
    # q(x_t' | x_t, x_0): precision-weighted combination of the two conditionals of a Gaussian chain.
    ratio = here / there
    variance = (1 - there) / (1 - here) * (1 - ratio)
    mean = there.sqrt() * (1 - ratio) / (1 - here) * clean + ratio.sqrt() * (1 - there) / (1 - here) * state
    torch.testing.assert_close(moments.std, variance.sqrt().expand(2))
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.clean, clean)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_keeps_the_noise_level_of_its_target(vp, eta):
    # With the exact noise of the sample, mean and variance add up to the marginal of the next timestep.
    clean, noise, at, to = normal(1, 5), normal(1, 5, seed=1), indices(701), indices(301)
    state = vp.add_noise(clean, noise, at)
    moments = Ddim(eta=eta).moments(Step(vp, "epsilon", state, noise, at, to))
    there = vp.alphas_cumprod.double()[301]
    along = moments.mean - there.sqrt() * clean
    torch.testing.assert_close(
        along.square() + moments.std.square(),
        (1 - there) * noise.square() + moments.std.square() * (1 - noise.square()),
    )
    torch.testing.assert_close(along, (1 - there - moments.std.square()).sqrt() * noise)


def test_ddim_means_the_same_in_every_parametrisation(vp):
    clean, noise, at, to = normal(2, 5), normal(2, 5, seed=1), indices(701, 20), indices(651, 0)
    state = vp.add_noise(clean, noise, at)
    found = [
        Ddim().moments(Step(vp, kind, state, vp.target(kind, clean, noise, at), at, to))
        for kind in ("epsilon", "v_prediction", "sample")
    ]
    for other in found[1:]:
        torch.testing.assert_close(other.mean, found[0].mean)
        torch.testing.assert_close(other.std, found[0].std)


def test_ddim_towards_clean_data_ends_at_its_estimate_without_noise(vp):
    state, output = normal(2, 5), normal(2, 5, seed=1)
    moments = Ddim().moments(Step(vp, "epsilon", state, output, indices(1, 51), indices(-1, -1)))
    assert torch.equal(moments.std, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(moments.mean, moments.clean)


def test_ddim_clips_the_clean_estimate_and_not_the_noise(vp):
    state, output, at, to = normal(2, 5), normal(2, 5, seed=1), indices(901, 901), indices(851, 851)
    free = Ddim(eta=0.0).moments(Step(vp, "epsilon", state, output, at, to))
    held = Ddim(eta=0.0, clip=1.0).moments(Step(vp, "epsilon", state, output, at, to))
    assert free.clean.abs().max() > 1
    assert torch.equal(held.clean, free.clean.clamp(-1, 1))
    scale = vp.alphas_cumprod.double()[851].sqrt()
    torch.testing.assert_close(held.mean - free.mean, scale * (held.clean - free.clean))


def test_ddim_variance_keeps_its_digits_between_neighbouring_timesteps(vp):
    here, there = vp.alphas_cumprod.double()[[2, 1]]
    exact = ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
    state = normal(1, 5, dtype=torch.float32)
    found = Ddim().moments(Step(vp, "epsilon", state, state, indices(2), indices(1))).std
    torch.testing.assert_close(found, exact.expand(1), rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------------------ flows


@pytest.mark.parametrize(("sigma", "ahead"), [(0.9, 0.8), (0.5, 0.37), (0.1, 0.0)])
def test_flow_sde_is_the_published_step(sigma, ahead):
    state, velocity = normal(1, 5), normal(1, 5, seed=1)
    at, to = torch.tensor([sigma], dtype=torch.float64), torch.tensor([ahead], dtype=torch.float64)
    moments = FlowSde(0.7).moments(Step(FLOW, "flow", state, velocity, at, to))
    s, dt = 0.7 * math.sqrt(sigma / (1 - sigma)), ahead - sigma
    mean = state * (1 + s**2 / (2 * sigma) * dt) + velocity * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.std, torch.full((1,), s * math.sqrt(-dt), dtype=torch.float64))
    torch.testing.assert_close(moments.rate, torch.full((1,), s, dtype=torch.float64))


def test_flow_sde_at_pure_noise_takes_the_next_sigma_into_the_denominator():
    state, velocity = normal(1, 5), normal(1, 5, seed=1)
    at, to = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64)
    moments = FlowSde(0.7).moments(Step(FLOW, "flow", state, velocity, at, to))
    s = 0.7 * math.sqrt(1 / (1 - 0.9))
    torch.testing.assert_close(moments.std, torch.full((1,), s * math.sqrt(0.1), dtype=torch.float64))
    torch.testing.assert_close(moments.mean, state * (1 - s**2 / 2 * 0.1) - 0.1 * velocity)


def test_constant_spread_is_the_step_of_dance_grpo():
    state, velocity, sigma, ahead, eta = normal(1, 5), normal(1, 5, seed=1), 0.6, 0.45, 0.3
    at, to = torch.tensor([sigma], dtype=torch.float64), torch.tensor([ahead], dtype=torch.float64)
    moments = FlowSde(eta, "constant").moments(Step(FLOW, "flow", state, velocity, at, to))
    clean = state - sigma * velocity
    score = -(state - clean * (1 - sigma)) / sigma**2
    mean = state + (ahead - sigma) * velocity - 0.5 * eta**2 * score * (ahead - sigma)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(
        moments.std, torch.full((1,), eta * math.sqrt(sigma - ahead), dtype=torch.float64)
    )


# ------------------------------------------------------------------------------------------------- marginals

CENTRE, WIDTH, ROWS = 1.5, 0.5, 40_000


def gaussian_noise(schedule, state, timestep):
    """E[noise | state] for data N(CENTRE, WIDTH^2), exact."""
    alpha, sigma = schedule.coefficients(timestep, torch.float64)
    variance = alpha**2 * WIDTH**2 + sigma**2
    return sigma / variance * (state - alpha * CENTRE)


@pytest.mark.parametrize(
    ("schedule", "kernel"),
    [
        ("vp", Ddim(0.0)),
        ("vp", Ddim(0.5)),
        ("vp", Ddim(1.0)),
        ("flow", FlowSde(0.0)),
        ("flow", FlowSde(0.7)),
        ("flow", FlowSde(0.5, "constant")),
    ],
    ids=repr,
)
def test_many_steps_with_the_exact_network_keep_the_marginals(vp, schedule, kernel):
    schedule = vp if schedule == "vp" else FLOW
    if schedule is FLOW:
        path = torch.linspace(0.95, 0.3, 131, dtype=torch.float64)
    else:
        path = torch.arange(960, 300, -5)
    generator = torch.Generator().manual_seed(7)
    alpha, sigma = schedule.coefficients(path[0], torch.float64)
    state = alpha * CENTRE + (alpha**2 * WIDTH**2 + sigma**2).sqrt() * torch.randn(
        ROWS, 1, generator=generator, dtype=torch.float64
    )
    for at, to in itertools.pairwise(path):
        noise = gaussian_noise(schedule, state, at)
        clean = (state - schedule.coefficients(at, torch.float64)[1] * noise) / schedule.coefficients(
            at, torch.float64
        )[0]
        kind = "flow" if schedule is FLOW else "epsilon"
        output = noise - clean if schedule is FLOW else noise
        moments = kernel.moments(Step(schedule, kind, state, output, at.expand(ROWS), to.expand(ROWS)))
        state = moments.mean + moments.std.unsqueeze(1) * torch.randn(
            ROWS, 1, generator=generator, dtype=torch.float64
        )
    alpha, sigma = schedule.coefficients(path[-1], torch.float64)
    assert state.mean().item() == pytest.approx(float(alpha * CENTRE), abs=0.01)
    assert state.std().item() == pytest.approx(float((alpha**2 * WIDTH**2 + sigma**2).sqrt()), rel=0.02)


def test_dpm_solver_is_exact_on_one_gaussian_sample_and_has_no_deviation(vp):
    # All mass on one point: the clean estimate never moves, so both orders land on the same ray.
    clean, noise = normal(1, 5), normal(1, 5, seed=1)
    at, to = indices(801), indices(601)
    state = vp.add_noise(clean, noise, at)
    for earlier in (None, Estimate(clean, indices(901))):
        moments = DpmSolver().moments(Step(vp, "epsilon", state, noise, at, to, earlier))
        torch.testing.assert_close(moments.mean, vp.add_noise(clean, noise, to))
        assert not moments.std.any()


# -------------------------------------------------------------------------------------------------- guidance


def test_guidance_is_one_call_with_both_halves():
    network = Network()
    noised, time = normal(3, 5), indices(501, 301, 1)
    text, empty = torch.arange(1.0, 4.0), torch.zeros(3)
    found = guided(network, noised, time, {"text": text}, {"text": empty}, 5.0)
    assert network.calls == [6]
    given, without = network(noised, time, {"text": text}), network(noised, time, {"text": empty})
    torch.testing.assert_close(found, without + 5.0 * (given - without))


def test_scale_one_is_one_forward_of_the_rows_as_they_are():
    network = Network()
    noised, time, text = normal(3, 5), indices(501, 301, 1), torch.arange(3.0)
    assert torch.equal(
        guided(network, noised, time, {"text": text}, {}, 1.0), network(noised, time, {"text": text})
    )
    assert network.calls == [3, 3]


def test_conditioning_without_a_twin_is_shared_by_both_halves():
    seen = {}

    def network(noised, time, conditioning):
        seen.update(conditioning)
        return noised

    text, size, empty = torch.ones(2, 1), torch.tensor([7.0, 5.0]), torch.zeros(2, 1)
    guided(network, normal(2, 5), indices(1, 1), {"text": text, "size": size}, {"text": empty}, 3.0)
    assert seen["size"].tolist() == [7.0, 5.0, 7.0, 5.0]
    assert seen["text"].flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


def test_halves_are_combined_in_float32():
    def network(noised, time, conditioning):
        return conditioning["text"].to(torch.bfloat16)

    text, empty = torch.tensor([[1.0]]), torch.tensor([[0.9921875]])
    found = guided(network, torch.zeros(1, 1), indices(1), {"text": text}, {"text": empty}, 5.0)
    assert found.dtype == torch.float32
    assert found.item() == 0.9921875 + 5.0 * 0.0078125


def test_split_guidance_takes_the_prefix_off():
    rows = {"text": torch.ones(1), "uncond.text": torch.zeros(1), "size": torch.ones(1)}
    conditioning, empty = split_guidance(rows)
    assert sorted(conditioning) == ["size", "text"]
    assert sorted(empty) == ["text"]


@pytest.mark.parametrize("empty", [{}, {"txet": torch.zeros(2)}])
def test_guidance_without_the_empty_prompt_is_refused(empty):
    with pytest.raises(ConfigError, match=r"guidance: got .scale 5 with empty conditioning"):
        guided(Network(), normal(2, 5), indices(1, 1), {"text": torch.ones(2)}, empty, 5.0)


# ------------------------------------------------------------------------------------------------ likelihood


def test_transition_is_a_likelihood_and_kernels_are_kernels(vp):
    assert isinstance(Transition(vp, "epsilon", Ddim()), Likelihood)
    assert Transition.kind == "transition"
    for kernel in (Ddim(), FlowSde(), DpmSolver()):
        assert isinstance(kernel, TransitionKernel)


def test_draw_is_what_was_recorded(vp, steps):
    batch = steps()
    draw = Transition(vp, "epsilon", Ddim()).draw(batch)
    assert torch.equal(draw.noised, batch.recorded["state"])
    assert torch.equal(draw.target, batch.clean)
    assert torch.equal(draw.timestep, batch.recorded["timestep"])
    assert draw.noise.shape == batch.clean.shape
    assert not draw.noise.any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_scores_are_log_probabilities_of_the_next_states(vp, steps, reduction):
    batch, network = steps(), Network()
    likelihood = Transition(vp, "epsilon", Ddim(), 5.0, reduction=reduction)
    found = likelihood.evaluate(network, batch, likelihood.draw(batch), keep_prediction=True)
    state = batch.recorded["state"].flatten(0, 1)
    time = batch.recorded["timestep"].flatten()
    rows = batch.conditioning.rows(2)
    given = network(state, time, {"text": rows["text"]})
    without = network(state, time, {"text": rows["uncond.text"]})
    output = without + 5.0 * (given - without)
    moments = Ddim().moments(
        Step(vp, "epsilon", state, output, time, batch.recorded["next_timestep"].flatten())
    )
    expected = log_probability(batch.clean.flatten(0, 1), moments.mean, moments.std, reduction=reduction)
    torch.testing.assert_close(found.score.flatten(), expected)
    torch.testing.assert_close(
        found.error.flatten(), (batch.clean.flatten(0, 1) - moments.mean).square().flatten(1).mean(1)
    )
    torch.testing.assert_close(found.prediction.flatten(0, 1), output)


def test_flow_steps_are_scored_too(steps):
    batch = steps(timestep=0.75, ahead=0.5, guidance=False)
    likelihood, network = Transition(FLOW, "flow", FlowSde()), Network()
    found = likelihood.evaluate(network, batch, likelihood.draw(batch))
    state, time = batch.recorded["state"].flatten(0, 1), batch.recorded["timestep"].flatten()
    output = network(state, time * 1000, {"text": batch.conditioning.rows(2)["text"]})
    moments = FlowSde().moments(Step(FLOW, "flow", state, output, time, torch.full((6,), 0.5)))
    expected = log_probability(batch.clean.flatten(0, 1), moments.mean, moments.std)
    torch.testing.assert_close(found.score.flatten(), expected)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_shared_state_halves_the_forwards_and_changes_nothing(vp, steps, scale):
    batch, results = steps(), {}
    for shared in (False, True):
        network = Network()
        likelihood = Transition(vp, "epsilon", Ddim(), scale, shared_state=shared)
        found = likelihood.evaluate(network, batch, likelihood.draw(batch), keep_prediction=True)
        (found.score[:, 0] - 0.3 * found.score[:, 1]).sum().backward()
        results[shared] = (found.score, found.error, found.prediction, network.weight.grad)
        halves = 1 if scale == 1.0 else 2
        assert network.calls == [halves * 3 * (1 if shared else 2)]
    for once, twice in zip(results[True], results[False], strict=True):
        assert once.shape == twice.shape
        torch.testing.assert_close(once, twice)


def test_rows_are_scored_alike_whatever_stands_beside_them(vp, steps):
    batch, likelihood, network = steps(5), Transition(vp, "epsilon", Ddim(), 5.0), Network()
    whole = likelihood.evaluate(network, batch, likelihood.draw(batch)).score
    part = dataclasses.replace(
        steps(2, state=batch.recorded["state"][3:, :1]),
        clean=batch.clean[3:],
        conditioning=Conditioning({name: value[3:] for name, value in batch.conditioning.shared.items()}),
    )
    torch.testing.assert_close(likelihood.evaluate(network, part, likelihood.draw(part)).score, whole[3:])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_element_mask_leaves_elements_out(vp, steps, reduction):
    batch = steps()
    mask = torch.zeros_like(batch.clean)
    mask[..., :3] = 1.0
    likelihood = Transition(vp, "epsilon", Ddim(), 5.0, reduction=reduction)
    masked = dataclasses.replace(batch, element_mask=mask)
    found = likelihood.evaluate(Network(), masked, likelihood.draw(masked), keep_prediction=True)
    state, at = batch.recorded["state"], batch.recorded["timestep"]
    step = Step(vp, "epsilon", state, found.prediction, at, batch.recorded["next_timestep"])
    moments = Ddim().moments(step)
    expected = log_probability(batch.clean[..., :3], moments.mean[..., :3], moments.std, reduction=reduction)
    torch.testing.assert_close(found.score, expected)


def test_half_precision_is_widened_before_anything_is_subtracted(vp, steps):
    batch = steps(dtype=torch.float32)
    likelihood = Transition(vp, "epsilon", Ddim())

    def half(noised, time, conditioning):
        return (0.3 * noised).to(torch.bfloat16)

    def rounded(noised, time, conditioning):
        return half(noised, time, conditioning).to(torch.float32)

    draw = likelihood.draw(batch)
    found = likelihood.evaluate(half, batch, draw)
    assert found.score.dtype == torch.float32
    torch.testing.assert_close(found.score, likelihood.evaluate(rounded, batch, draw).score)


def test_mean_drift_is_the_divergence_of_two_steps_per_length_of_the_step(steps):
    batch, likelihood = steps(timestep=0.75, ahead=0.5, guidance=False), Transition(FLOW, "flow", FlowSde())
    draw = likelihood.draw(batch)
    ours = normal(3, 2, 5, 7, seed=5).requires_grad_()
    theirs = normal(3, 2, 5, 7, seed=6)
    drift = likelihood.mean_drift(batch, draw, ours, theirs)
    at, to = batch.recorded["timestep"], batch.recorded["next_timestep"]
    first, second = (
        FlowSde().moments(Step(FLOW, "flow", draw.noised, output, at, to)) for output in (ours, theirs)
    )
    width = first.std[..., None, None].expand_as(ours)
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(first.mean, width), torch.distributions.Normal(second.mean, width)
    )
    torch.testing.assert_close(drift, divergence.flatten(2).mean(-1) * 0.25)
    assert not likelihood.mean_drift(batch, draw, theirs, theirs).any()
    drift.sum().backward()
    assert (ours.grad != 0).all()


def test_mean_drift_of_a_shared_state_is_computed_once(vp, steps, monkeypatch):
    asked, moments = [], Ddim.moments
    monkeypatch.setattr(
        Ddim, "moments", lambda self, step: (asked.append(step.state.shape[1]), moments(self, step))[1]
    )
    batch = steps()
    once, each = (Transition(vp, "epsilon", Ddim(), shared_state=shared) for shared in (True, False))
    draw = each.draw(batch)
    ours, theirs = (normal(3, 1, 5, 7, seed=seed).expand(3, 2, 5, 7) for seed in (5, 6))
    found = once.mean_drift(batch, draw, ours, theirs)
    torch.testing.assert_close(found, each.mean_drift(batch, draw, ours, theirs))
    assert found.shape == (3, 2)
    assert asked == [1, 1, 2, 2]


def test_mean_drift_of_a_step_without_noise_is_unknown(vp, steps):
    batch, likelihood = steps(ahead=-1), Transition(vp, "epsilon", Ddim())
    ours, theirs = normal(3, 2, 5, 7, seed=5), normal(3, 2, 5, 7, seed=6)
    assert likelihood.mean_drift(batch, likelihood.draw(batch), ours, theirs).isnan().all()


def test_mean_drift_moves_the_policy_alone(vp, steps):
    batch, likelihood = steps(), Transition(vp, "epsilon", Ddim())
    ours, theirs = (normal(3, 2, 5, 7, seed=seed).requires_grad_() for seed in (5, 6))
    likelihood.mean_drift(batch, likelihood.draw(batch), ours, theirs).sum().backward()
    assert (ours.grad != 0).all()
    assert theirs.grad is None


def test_a_draw_of_halves_is_wide_and_has_no_graph(vp, steps):
    batch = steps(dtype=torch.bfloat16)
    batch = dataclasses.replace(batch, clean=batch.clean.requires_grad_())
    draw = Transition(vp, "epsilon", Ddim()).draw(batch)
    assert draw.noised.dtype == draw.target.dtype == torch.float32
    assert not draw.target.requires_grad


def test_the_prediction_is_kept_on_demand_alone(vp, steps):
    batch, likelihood = steps(guidance=False), Transition(vp, "epsilon", Ddim())
    draw = likelihood.draw(batch)
    assert likelihood.evaluate(Network(), batch, draw).prediction is None
    kept = likelihood.evaluate(Network(), batch, draw, keep_prediction=True).prediction
    assert kept.shape == draw.target.shape


def test_candidates_with_states_of_their_own_may_have_conditioning_of_their_own(vp, steps):
    batch, likelihood = steps(guidance=False), Transition(vp, "epsilon", Ddim())
    draw = likelihood.draw(batch)
    alike = likelihood.evaluate(Network(), batch, draw).score
    text = batch.conditioning.shared["text"].unsqueeze(1) + torch.tensor([0.0, 1.0]).view(1, 2, 1)
    apart = dataclasses.replace(batch, conditioning=Conditioning(per_candidate={"text": text}))
    found = likelihood.evaluate(Network(), apart, draw).score
    torch.testing.assert_close(found[:, 0], alike[:, 0])
    assert (found[:, 1] != alike[:, 1]).all()


def test_description_names_what_scores_depend_on(vp):
    base = Transition(vp, "epsilon", Ddim(), 5.0)
    facts = base.describe()
    assert vp.describe().items() <= facts.items()
    for changed in (
        Transition(vp, "v_prediction", Ddim(), 5.0),
        Transition(vp, "epsilon", Ddim(0.5), 5.0),
        Transition(vp, "epsilon", Ddim(), 7.5),
        Transition(vp, "epsilon", Ddim(), 5.0, reduction="sum"),
    ):
        assert changed.describe() != facts
    # One forward or two: the scores are the same.
    assert Transition(vp, "epsilon", Ddim(), 5.0, shared_state=True).describe() == facts


# --------------------------------------------------------------------------------------------------- refusals


def test_deterministic_kernels_and_foreign_schedules_are_refused(vp):
    with pytest.raises(ConfigError, match=r"only random steps have a probability"):
        Transition(vp, "epsilon", Ddim(0.0))
    with pytest.raises(ConfigError, match=r"Ddim: got .FlowSchedule., expected VPSchedule"):
        Transition(FLOW, "flow", Ddim())
    with pytest.raises(ConfigError, match=r"FlowSde: got .VPSchedule., expected FlowSchedule"):
        Transition(vp, "epsilon", FlowSde())


def test_settings_out_of_range_are_refused(vp):
    with pytest.raises(HyperparameterError, match=r"Ddim.eta: got 1.5"):
        Ddim(1.5)
    with pytest.raises(HyperparameterError, match=r"Ddim.clip: got 0"):
        Ddim(1.0, clip=0.0)
    with pytest.raises(HyperparameterError, match=r"FlowSde.level: got -1"):
        FlowSde(-1.0)
    with pytest.raises(HyperparameterError, match=r"guidance_scale: got inf"):
        Transition(vp, "epsilon", Ddim(), math.inf)


def test_unknown_names_list_the_known_ones(untyped, vp):
    with untyped:
        with pytest.raises(UnknownNameError, match=r"unknown spread 'wide'.*flow_grpo"):
            FlowSde(0.7, "wide")
        with pytest.raises(UnknownNameError, match=r"unknown prediction 'noise'.*epsilon"):
            Transition(vp, "noise", Ddim())
        with pytest.raises(UnknownNameError, match=r"unknown reduction 'max'.*mean"):
            Transition(vp, "epsilon", Ddim(), reduction="max")


def test_batches_without_recorded_steps_are_refused(vp, steps, make_batch):
    likelihood = Transition(vp, "epsilon", Ddim())
    with pytest.raises(ConfigError, match=r"recorded\['state'\], needed to score steps: got \[\]"):
        likelihood.draw(make_batch())
    with pytest.raises(ShapeError, match=r"recorded\['state'\]: got \[3, 2, 5\]"):
        likelihood.draw(dataclasses.replace(steps(), recorded={"state": torch.zeros(3, 2, 5)}))


def test_a_shared_state_with_conditioning_per_candidate_is_refused(vp, steps):
    batch = steps()
    apart = dataclasses.replace(
        batch, conditioning=Conditioning(batch.conditioning.shared, {"size": torch.ones(3, 2, 1)})
    )
    likelihood = Transition(vp, "epsilon", Ddim(), 5.0, shared_state=True)
    with pytest.raises(ConfigError, match=r"one conditioning per prompt"):
        likelihood.evaluate(Network(), apart, likelihood.draw(apart))


@pytest.mark.compiled
@pytest.mark.parametrize("shared", [True, False])
def test_scoring_a_step_is_one_graph(vp, steps, shared):
    batch, network = steps(dtype=torch.float32), Network(torch.float32)
    likelihood = Transition(vp, "epsilon", Ddim(), 5.0, shared_state=shared)
    draw = likelihood.draw(batch)
    expected = likelihood.evaluate(network, batch, draw).score  # also places the schedule's table

    def step(noised):
        return likelihood.evaluate(network, batch, dataclasses.replace(draw, noised=noised)).score

    torch.compiler.reset()
    found = torch.compile(step, fullgraph=True, backend="eager")(draw.noised)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), network.weight), torch.autograd.grad(expected.sum(), network.weight)
    )


def test_zero_terminal_snr_starts_from_pure_noise(stable_diffusion):
    schedule = VPSchedule.from_scheduler_config({**stable_diffusion, "rescale_betas_zero_snr": True})
    state, output = normal(1, 5), normal(1, 5, seed=1)
    moments = Ddim().moments(Step(schedule, "v_prediction", state, output, indices(999), indices(949)))
    there = schedule.alphas_cumprod.double()[949]
    torch.testing.assert_close(moments.clean, -output)
    torch.testing.assert_close(moments.mean, there.sqrt() * -output)
    torch.testing.assert_close(moments.std, (1 - there).sqrt().expand(1))

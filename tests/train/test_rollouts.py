"""Samplers of runs, from their settings: the published grids and kernels."""

import pytest
import torch

from mmalign.errors import ConfigError
from mmalign.likelihood import Ddim, DpmSolver, FlowSchedule
from mmalign.train.parts import load_model
from mmalign.train.rollouts import is_online, make_sampler, opening_lines, require_fitting
from mmalign.train.run import prepare


@pytest.fixture
def sampler_of(make_run):
    def make(method, **rollout):
        reward = {} if method in ("diffusion_dro", "seppo") else {"reward": "own:function"}
        run = make_run(method, method=method, rollout={**reward, **rollout}, guard={"action": "off"})
        return make_sampler(run, load_model(run, torch.device("cpu")))

    return make


def test_spo_steps_as_published(sampler_of):
    """951, 901, ..., 1, and a last random step to timestep 0."""
    sampler = sampler_of("spo", inner_steps=0)
    assert sampler.grid.timestep.tolist() == list(range(951, 0, -50))
    assert sampler.grid.next_timestep.tolist() == [*range(901, 0, -50), 0]
    assert sampler.kernel == Ddim(eta=1.0)
    assert sampler.guidance_scale == 5.0


def test_dro_steps_as_published(sampler_of, make_run):
    """950, 900, ..., 0 and then clean data, moved up by 0 to 49 timesteps."""
    sampler = sampler_of("diffusion_dro")
    assert sampler.grid.timestep.tolist() == list(range(950, -1, -50))
    assert sampler.grid.next_timestep.tolist() == [*range(900, -1, -50), -1]
    assert sampler.kernel == DpmSolver()
    assert sampler.guidance_scale == 1.0
    loop, _ = prepare(make_run("dro", method="diffusion_dro"))
    assert loop.online.collector.shift == 49
    assert loop.online.collector.prompts.empty == {}, "nothing to contrast with, nothing to carry"
    assert loop.online.snapshot is None, "a snapshot renewed at every step is the policy"


def test_dro_with_a_slower_snapshot_samples_with_it(make_run):
    loop, _ = prepare(make_run("dro", method="diffusion_dro", rollout={"refresh_every": 3}))
    assert (loop.online.snapshot.every, loop.online.snapshot.capacity) == (3, 1)


def test_online_pairs_are_sampled_as_at_inference(sampler_of):
    sampler = sampler_of("online_diffusion_dpo")
    assert sampler.kernel == Ddim(eta=0.0)
    assert sampler.guidance_scale == 7.5
    assert len(sampler.grid) == 20


def test_few_steps_can_start_at_the_noisiest_timestep(sampler_of):
    """Leading indices leave out what lies above the last stride: at five steps the noisiest 199."""
    own = sampler_of("online_diffusion_dpo", num_steps=5)
    assert own.grid.timestep.tolist() == [801, 601, 401, 201, 1]
    sampler = sampler_of("online_diffusion_dpo", num_steps=5, spacing="trailing")
    assert sampler.grid.timestep.tolist() == [999, 799, 599, 399, 199]
    assert sampler.grid.next_timestep.tolist()[:-1] == [799, 599, 399, 199]


@pytest.mark.parametrize(
    ("method", "why"),
    [("diffusion_dro", "expert_states, which has its own grid"), ("spo", "stepwise, which has its own grid")],
)
def test_a_spacing_is_refused_where_the_steps_are_published_ones(make_run, method, why):
    rollout = {"spacing": "trailing"} | ({"reward": "own:function"} if method == "spo" else {})
    run = make_run("spaced", method=method, rollout=rollout, guard={"action": "off"})
    with pytest.raises(ConfigError, match=f"rollout.spacing: got 'trailing', expected none for {why}"):
        require_fitting(run, load_model(run, torch.device("cpu")))


def test_a_spacing_is_refused_by_a_flow_matching_model(make_run, monkeypatch):
    run = make_run("spaced", method="seppo", rollout={"spacing": "trailing"})
    model = load_model(run, torch.device("cpu"))
    monkeypatch.setattr(model, "schedule", FlowSchedule())
    with pytest.raises(ConfigError, match="expected none for a flow-matching model"):
        require_fitting(run, model)


def test_an_offline_run_has_nothing_to_say_of_rollouts(make_run):
    run = make_run()
    assert not is_online(run)
    assert opening_lines(run) == []
    with pytest.raises(ConfigError, match="expected settings that were resolved with the row"):
        make_sampler(run, load_model(run, torch.device("cpu")))

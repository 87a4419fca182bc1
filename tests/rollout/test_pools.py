"""Stepwise pools against a plain loop over one prompt, and what they promise about batches and cost."""

import pytest
import torch

from mmalign.errors import ConfigError, HyperparameterError
from mmalign.likelihood import Ddim, FlowSchedule, FlowSde
from mmalign.rollout import (
    PoolRule,
    Sampler,
    Scorer,
    best_and_worst,
    ddim_grid,
    first_noise,
    flow_grid,
    random_candidate,
    step_noise,
    stepwise_pool,
)

EVENT, STEPS = (3, 5), 11


def text(rows, first=0):
    return {"text": torch.arange(first, first + rows).to(torch.float32).unsqueeze(1)}


def nothing(rows):
    return {"text": torch.zeros(rows, 1)}


class Judge:
    """Likes bright samples the more, the later the step; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, clean, timestep, prompt):
        self.asked.append((clean, timestep, prompt))
        return clean.flatten(1).mean(1) * 3.0 + timestep.to(clean.dtype) / 1000


@pytest.fixture
def sampler(vp):
    return Sampler(vp, "epsilon", ddim_grid(vp, STEPS), Ddim(1.0), 5.0)


def plainly(sampler, rule, network, judge, key, prompt):
    """The released loop for one prompt, one candidate after the other: a list of recorded steps."""
    grid, last = sampler.grid, len(sampler.grid) - 1
    item = (text(1, prompt), nothing(1))
    noise = {number: step_noise(key, (rule.size, *EVENT), number)[0] for number in range(len(grid))}

    def leads(state, number):
        at, to = grid.at(number, 1)
        return sampler.step(network, state.unsqueeze(0), at, to, *item)[0]

    def judged(samples, timestep):
        rows = torch.stack(samples)
        at = torch.as_tensor(timestep).expand(len(samples))
        found = best_and_worst(
            judge(rows, at, torch.full((len(samples),), prompt)).unsqueeze(0), threshold=rule.threshold
        )
        return found.index[0].tolist(), found.valid.item()

    steps, segment, pool, state = [], [], None, first_noise(key, EVENT)[0]
    for number in range(len(grid)):
        starts = number >= rule.start and (number - rule.start) % (rule.inner_steps + 1) == 0
        if rule.inner_steps and number == last:
            starts = False
        if pool is None and not starts:
            found = leads(state, number)
            state = found.mean[0] + found.std[0].float() * noise[number][0]
            continue
        if not starts:
            found = [leads(candidate, number) for candidate in pool]
            moved = [one.mean[0] + one.std[0].float() * noise[number][k] for k, one in enumerate(found)]
            segment.append((number, pool, moved))
            pool = moved
            continue
        if pool is None:
            found = leads(state, number)
        else:
            every = [leads(candidate, number) for candidate in pool]
            pair, valid = judged([one.clean[0] for one in every], grid.timestep[number])
            steps += [(at, pair, valid, before, after) for at, before, after in segment]
            going = random_candidate(key, rule.size, purpose=f"rollout_continue{number}").item()
            state, found = pool[going], every[going]
        pool = [found.mean[0] + found.std[0].float() * noise[number][k] for k in range(rule.size)]
        segment = [(number, [state] * rule.size, pool)]
    pair, valid = judged(pool, torch.zeros_like(grid.timestep[0]))
    return steps + [(at, pair, valid, before, after) for at, before, after in segment], pool


@pytest.mark.parametrize(
    "rule",
    [
        PoolRule(size=4, threshold=0.3, start=4),
        PoolRule(size=3, threshold=0.1, start=0),
        PoolRule(size=2, threshold=0.1, start=2, inner_steps=3),
        PoolRule(size=2, threshold=0.1, start=4, inner_steps=2),
    ],
    ids=["sd15", "from the start", "sdxl", "sdxl, last step would branch"],
)
@pytest.mark.parametrize("flow", [False, True], ids=["ddim", "flow"])
def test_pools_are_those_of_a_plain_loop(sampler, network, make_keys, rule, flow):
    if flow:
        schedule = FlowSchedule(shift=3.0)
        sampler = Sampler(schedule, "flow", flow_grid(schedule, STEPS), FlowSde(0.7), 5.0)
    keys = make_keys(3)
    found = stepwise_pool(sampler, rule, network, Judge(), keys, EVENT, text(3), nothing(3))
    assert isinstance(Judge(), Scorer)
    for prompt in range(3):
        expected, final = plainly(sampler, rule, network, Judge(), keys[prompt : prompt + 1], prompt)
        mine = found.prompt == prompt
        assert mine.sum() == len(expected) == STEPS - rule.start
        rows = mine.nonzero().flatten().tolist()
        for row, (number, pair, valid, before, after) in zip(rows, expected, strict=True):
            assert found.timestep[row].tolist() == [sampler.grid.timestep[number].item()] * 2
            assert found.next_timestep[row].tolist() == [sampler.grid.next_timestep[number].item()] * 2
            assert found.valid[row].item() == valid
            for side, candidate in enumerate(pair):
                torch.testing.assert_close(found.state[row, side], before[candidate])
                torch.testing.assert_close(found.next_state[row, side], after[candidate])
        torch.testing.assert_close(found.final[prompt], torch.stack(final))


def test_sd15_costs_and_counts_are_the_published_ones(vp, network, make_keys):
    sampler, judge = Sampler(vp, "epsilon", ddim_grid(vp, 20), Ddim(1.0), 5.0), Judge()
    found = stepwise_pool(sampler, PoolRule(), network, judge, make_keys(1), EVENT, text(1), nothing(1))
    assert sum(network.calls) == 130  # 65 states in two halves
    assert sum(clean.shape[0] for clean, _, _ in judge.asked) == 64
    assert found.state.shape == (16, 2, *EVENT)
    assert found.scores.shape == (16, 1, 4)
    assert [at[0].item() for _, at, _ in judge.asked] == [*range(701, 0, -50), 0]


def test_sdxl_segments_start_where_they_should(vp, network, make_keys):
    sampler, judge = Sampler(vp, "epsilon", ddim_grid(vp, 20), Ddim(1.0), 5.0), Judge()
    rule = PoolRule(size=2, threshold=0.4, start=4, inner_steps=3)
    found = stepwise_pool(sampler, rule, network, judge, make_keys(1), EVENT, text(1), nothing(1))
    assert [number for number in range(20) if rule.branches(number, 20)] == [4, 8, 12, 16]
    assert [at[0].item() for _, at, _ in judge.asked] == [551, 351, 151, 0]
    # Four steps a segment, all with its label.
    assert found.valid.shape == (16,)
    assert (found.valid.reshape(4, 4) == found.valid.reshape(4, 4)[:, :1]).all()
    branching = torch.arange(16) % 4 == 0
    same = (found.state[:, 0] == found.state[:, 1]).flatten(1).all(1)
    assert torch.equal(same, branching)


def test_without_inner_steps_the_shared_state_is_held_once(sampler, network, make_keys):
    found = stepwise_pool(sampler, PoolRule(), network, Judge(), make_keys(2), EVENT, text(2), nothing(2))
    assert found.state.stride(1) == 0
    assert (found.next_state[:, 0] != found.next_state[:, 1]).any(1).all()


def test_the_better_candidate_stands_first(sampler, network, make_keys):
    judge = Judge()
    found = stepwise_pool(sampler, PoolRule(), network, judge, make_keys(5), EVENT, text(5), nothing(5))
    # The last round judges finished samples, which are the next states of its items.
    last = found.next_state[-5:].flatten(2).mean(2)
    assert (last[:, 0] > last[:, 1]).all()
    assert torch.equal(found.prompt[-5:], torch.arange(5))


def test_a_prompt_has_the_same_pools_in_any_batch(sampler, network, make_keys):
    whole = stepwise_pool(sampler, PoolRule(), network, Judge(), make_keys(5), EVENT, text(5), nothing(5))
    part = stepwise_pool(
        sampler, PoolRule(), network, Judge(), make_keys(2, first=3), EVENT, text(2, 3), nothing(2)
    )
    mine = whole.prompt >= 3
    torch.testing.assert_close(part.next_state, whole.next_state[mine])
    assert torch.equal(part.valid, whole.valid[mine])


def test_selected_items_are_the_valid_ones(sampler, network, make_keys):
    found = stepwise_pool(sampler, PoolRule(), network, Judge(), make_keys(5), EVENT, text(5), nothing(5))
    kept = found.selected()
    assert 0 < found.valid.sum() < found.valid.numel()
    assert kept.valid.all()
    for name in ("state", "next_state", "timestep", "next_timestep", "prompt"):
        assert torch.equal(getattr(kept, name), getattr(found, name)[found.valid])
    assert torch.equal(kept.scores, found.scores)
    assert torch.equal(kept.final, found.final)


def test_a_scorer_that_fails_makes_no_pair(sampler, network, make_keys):
    def broken(clean, timestep, prompt):
        return torch.where(prompt == 1, torch.nan, clean.flatten(1).mean(1) * 3.0)

    found = stepwise_pool(
        sampler, PoolRule(threshold=0.0), network, broken, make_keys(3), EVENT, text(3), nothing(3)
    )
    assert torch.equal(found.valid, found.prompt != 1)


def test_a_pool_can_start_from_given_states(sampler, network, make_keys):
    """The keys' own first noise, handed in, changes nothing; another state leads elsewhere."""
    keys, rule = make_keys(3), PoolRule(start=2)
    given = (sampler, rule, network, Judge(), keys, EVENT, text(3), nothing(3))
    own = stepwise_pool(*given)
    again = stepwise_pool(*given, start=first_noise(keys, EVENT))
    assert torch.equal(again.next_state, own.next_state)
    other = stepwise_pool(*given, start=first_noise(keys, EVENT) + 1.0)
    differs = (other.next_state != own.next_state).flatten(1).any(1)
    assert differs.all()


def test_no_gradient_is_kept(sampler, make_keys):
    weight = torch.tensor(0.5, requires_grad=True)
    found = stepwise_pool(
        sampler,
        PoolRule(),
        lambda noised, time, conditioning: weight * noised,
        Judge(),
        make_keys(2),
        EVENT,
        text(2),
        nothing(2),
    )
    assert not found.next_state.requires_grad


def test_pools_that_cannot_be_made_are_refused(vp, sampler, network, make_keys):
    with pytest.raises(HyperparameterError, match=r"PoolRule.size: got 1, expected at least 2"):
        PoolRule(size=1)
    with pytest.raises(HyperparameterError, match=r"PoolRule.threshold: got 1.0"):
        PoolRule(threshold=1.0)
    for name, value in (("threshold", -0.1), ("start", -1), ("inner_steps", -1)):
        with pytest.raises(HyperparameterError, match=rf"PoolRule.{name}: got {value}, expected a"):
            PoolRule(**{name: value})
    given = (network, Judge(), make_keys(2), EVENT, text(2))
    with pytest.raises(HyperparameterError, match=r"start: got .11 on a grid of 11 steps"):
        stepwise_pool(sampler, PoolRule(start=11), *given, nothing(2))
    with pytest.raises(HyperparameterError, match=r"candidates of a pool differ by it"):
        stepwise_pool(Sampler(vp, "epsilon", ddim_grid(vp, STEPS), Ddim(0.0)), PoolRule(), *given)
    with pytest.raises(ConfigError, match=r"set the scale to 1"):
        stepwise_pool(sampler, PoolRule(), *given)

"""What a round makes of prompts, with networks that can be followed and rewards that are known."""

from dataclasses import replace

import pytest
import torch

from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.likelihood import Ddim, DpmSolver, Step, Transition, log_probability
from mmalign.likelihood.snapshots import SnapshotPool
from mmalign.rollout import PoolRule, ReplayBuffer, Sampler, ddim_grid
from mmalign.rollout.collectors import BestOfN, Groups, Prompts, Stepwise
from mmalign.rollout.data_collectors import ExpertStates, SelfPlay, Unsampled

EVENT = (2, 3)
EMPTY = {"text": torch.full((1, 1), -2.0)}


@pytest.fixture
def make_prompts(vp, network):
    """`make_prompts(kernel, guidance, steps)`: who samples, on a short grid of Stable Diffusion's."""

    def make(kernel=None, guidance=3.0, steps=5, denoise=network, **grid):
        sampler = Sampler(vp, "epsilon", ddim_grid(vp, steps, **grid), kernel or Ddim(eta=1.0), guidance)
        return Prompts(denoise, sampler, EVENT, EMPTY)

    return make


@pytest.fixture
def make_batch(make_keys):
    """`make_batch(prompts, candidates, first)`: a round, whose texts are the numbers of its rows."""

    def make(prompts=3, candidates=0, first=0):
        numbers = torch.arange(first, first + prompts, dtype=torch.float32)
        images = numbers.view(-1, 1, 1, 1).expand(prompts, candidates, *EVENT)
        return Batch(
            clean=images.clone(),
            conditioning=Conditioning({"text": numbers.unsqueeze(1) / 10}),
            labels=Labels(),
            weight=torch.ones(prompts),
            valid=torch.ones(prompts, dtype=torch.bool),
            keys=RowKeys(make_keys(prompts, first), torch.zeros(prompts), 1),
            ids=tuple(str(number) for number in range(first, first + prompts)),
            prompts=tuple(f"prompt {number}" for number in range(first, first + prompts)),
        )

    return make


def brightness(latents, prompts):
    assert len(latents) == len(prompts)
    return latents.flatten(1).mean(1)


def whole(collected):
    return collected.items.take(len(collected.items))


# ------------------------------------------------------------------------------------------------ best of n


def test_the_best_of_n_is_chosen_and_the_worst_rejected(make_prompts, make_batch):
    seen = []

    def reward(latents, prompts):
        seen.append((latents, prompts))
        return brightness(latents, prompts)

    found = BestOfN(make_prompts(), reward, samples=5).collect(make_batch())
    pairs = whole(found)
    ((latents, prompts),) = seen
    assert prompts == [f"prompt {number}" for number in (0, 1, 2) for _ in range(5)]
    rewards = latents.flatten(1).mean(1).view(3, 5)
    torch.testing.assert_close(pairs.clean.flatten(2).mean(2)[:, 0], rewards.max(1).values)
    torch.testing.assert_close(pairs.clean.flatten(2).mean(2)[:, 1], rewards.min(1).values)
    torch.testing.assert_close(pairs.reward, torch.stack([rewards.max(1).values, rewards.min(1).values], 1))
    assert pairs.labels.certain
    assert torch.equal(pairs.conditioning.shared["text"], make_batch().conditioning.shared["text"])
    torch.testing.assert_close(found.facts["spread"], rewards.max(1).values - rewards.min(1).values)


def test_pairs_below_the_threshold_failed_rewards_and_invalid_rows_make_no_item(
    make_prompts, make_batch, network
):
    batch = replace(make_batch(5), valid=torch.tensor([True, True, True, False, True]))

    def reward(latents, prompts):
        assert "prompt 3" not in prompts
        found = torch.zeros(4, 3)
        found[:, 1] = torch.tensor([2.0, 0.1, 2.0, 2.0])
        found[2] = torch.nan
        found[3, 0] = torch.nan
        return found.flatten()

    found = BestOfN(make_prompts(), reward, samples=3, threshold=0.3).collect(batch)
    assert whole(found).ids == ("0", "4")
    # A share of the pools: the row that could not be read has none, and no sample.
    assert found.facts["kept"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert found.facts["reward_failed"].sum() == 4
    assert max(network.calls) == 4 * 3 * 2  # readable prompts, samples, guidance


def test_a_prompt_s_samples_do_not_depend_on_the_round_it_is_in(make_prompts, make_batch):
    collector = BestOfN(make_prompts(), brightness, samples=3)
    together, alone = (
        whole(collector.collect(make_batch(3))),
        whole(collector.collect(make_batch(1, first=2))),
    )
    torch.testing.assert_close(alone.clean[0], together.clean[2])


# ------------------------------------------------------------------------------------------------- stepwise


def test_steps_are_scored_at_their_timesteps_with_their_prompts(make_prompts, make_batch):
    calls = []

    def score(clean, timestep, prompts):
        calls.append((timestep.tolist(), list(prompts)))
        return 9.0 * clean.flatten(1).mean(1)

    rule = PoolRule(size=3, threshold=0.0, start=1)
    found = Stepwise(make_prompts(), score, rule).collect(make_batch(2))
    expected = ["prompt 0"] * 3 + ["prompt 1"] * 3
    assert [(set(times), prompts) for times, prompts in calls] == [
        ({time}, expected) for time in (401, 201, 1, 0)
    ]
    items = whole(found)
    assert torch.equal(items.recorded["state"][:, 0], items.recorded["state"][:, 1])
    assert set(items.recorded["timestep"][:, 0].tolist()) == {601, 401, 201, 1}
    assert set(items.recorded["next_timestep"][:, 0].tolist()) == {401, 201, 1, 0}
    assert found.facts["score"].numel() == 6  # of the finished samples
    empty = items.conditioning.shared["uncond.text"]
    assert torch.equal(empty, EMPTY["text"].expand_as(empty))


def test_unreadable_prompts_are_not_sampled(make_prompts, make_batch, network):
    batch = replace(make_batch(3), valid=torch.tensor([True, False, True]))
    rule = PoolRule(size=2, threshold=0.0, start=3)
    found = Stepwise(make_prompts(), lambda clean, *_: clean.flatten(1).mean(1), rule).collect(batch)
    assert set(whole(found).ids) == {"0", "2"}
    assert max(network.calls) == 2 * 2 * 2  # prompts, pool, guidance


# --------------------------------------------------------------------------------------------------- groups


def test_a_sample_above_its_group_has_a_positive_advantage(make_prompts, make_batch):
    found = Groups(make_prompts(), brightness, samples=5).collect(make_batch(2))
    items = whole(found)
    rewards = found.facts["reward"].view(2, 5)
    centred = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(correction=0) + 1e-4)
    assert len(found.items) == 2 * 5 * 4  # the last of five steps is never trained on
    for number in range(2):
        own = items.recorded["advantage"][torch.tensor([name == str(number) for name in items.ids]), 0]
        torch.testing.assert_close(own.unique(), centred[number].sort().values)
    assert torch.equal(items.labels.desirable, items.recorded["advantage"] > 0)
    assert 1 not in items.recorded["timestep"].unique().tolist()


def test_the_recorded_probability_is_the_one_that_training_computes(make_prompts, make_batch, vp, network):
    prompts = make_prompts()
    items = whole(Groups(prompts, brightness, samples=3).collect(make_batch(2)))
    transition = Transition(vp, "epsilon", prompts.sampler.kernel, guidance_scale=3.0)
    draw = transition.draw(items)
    score = transition.evaluate(network, items, draw).score
    torch.testing.assert_close(score, items.recorded["old_log_probability"], rtol=1e-5, atol=1e-5)


def test_groups_that_agree_and_failed_samples_teach_nothing(make_prompts, make_batch):
    def reward(latents, prompts):
        return torch.tensor([[0.5, 0.5, 0.5], [0.1, torch.nan, 0.3], [0.2, 0.2, 0.9]]).flatten()

    found = Groups(make_prompts(), reward, samples=3).collect(make_batch(3))
    items = whole(found)
    assert set(items.ids) == {"1", "2"}
    assert len(found.items) == (2 + 3) * 4
    assert items.recorded["advantage"].isfinite().all()
    assert found.facts["reward_failed"].sum() == 1


@pytest.mark.parametrize("deviation", ["global", "group"])
def test_rewards_of_unreadable_rows_do_not_widen_the_deviation(make_prompts, make_batch, deviation):
    given = torch.tensor([[0.1, 0.5, 0.9], [90.0, -70.0, torch.nan], [0.2, 0.2, 0.8]])

    def collect(rows):
        batch = replace(make_batch(3).rows(torch.tensor(rows)), valid=torch.tensor([n != 1 for n in rows]))
        return Groups(
            make_prompts(), lambda *_: given[rows].flatten(), samples=3, deviation=deviation
        ).collect(batch)

    beside, without = collect([0, 1, 2]), collect([0, 2])
    assert whole(beside).ids == whole(without).ids
    assert torch.equal(whole(beside).recorded["advantage"], whole(without).recorded["advantage"])
    for name in ("reward", "spread", "kept", "reward_failed"):
        first, second = (found.facts[name][found.facts[name].isfinite()] for found in (beside, without))
        torch.testing.assert_close(first, second, msg=f"{name}: a row that is no sample counts nowhere")


@pytest.mark.parametrize(("share", "expected"), [(0.2, 1), (0.6, 3), (1.0, 4)])
def test_a_share_of_the_steps_is_drawn_for_every_sample(make_prompts, make_batch, share, expected):
    items = whole(Groups(make_prompts(), brightness, samples=7, train_share=share).collect(make_batch(1)))
    of_sample = items.recorded["advantage"][:, 0]
    counts = [int((of_sample == value).sum()) for value in of_sample.unique()]
    assert counts == [expected] * 7
    assert len(set(items.recorded["timestep"][:, 0].tolist())) > (1 if share == 0.2 else expected - 1)


# ------------------------------------------------------------------------------------- prompts and self-play


def test_unsampled_prompts_stand_beside_the_empty_one(make_batch):
    items = whole(Unsampled(EMPTY).collect(make_batch(3)))
    assert items.prompts == ("prompt 0", "prompt 1", "prompt 2")
    assert items.conditioning.shared["uncond.text"].tolist() == [[-2.0]] * 3
    assert "uncond.text" not in whole(Unsampled({}).collect(make_batch(3))).conditioning.shared


class Shift(torch.nn.Module):
    """A network with one number to train."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(0.0))


def test_the_opponent_is_painted_by_the_active_snapshot(make_prompts, make_batch, network):
    module = Shift()

    def denoise(noised, time, conditioning):
        return network(noised, time, conditioning) + module.value

    pool = SnapshotPool(module, denoise, every=1, capacity=2, seed=0)
    prompts = make_prompts(Ddim(eta=0.0), 1.0, denoise=pool.denoise)
    before = whole(SelfPlay(prompts).collect(make_batch(3, candidates=1)))
    module.value.data.fill_(0.7)
    after = whole(SelfPlay(prompts).collect(make_batch(3, candidates=1)))
    assert torch.equal(before.clean, after.clean), "the snapshot is the start, whatever the policy has become"
    assert torch.equal(after.clean[:, :1], make_batch(3, candidates=1).clean)
    pool.update(1)
    active = [step for step in range(2, 30) if (pool.update(step), pool.active)[1] == 1]
    assert active
    assert module.value == 0.7
    while pool.active != 1:
        pool.update(active[0])
    moved = whole(SelfPlay(prompts).collect(make_batch(3, candidates=1)))
    direct = prompts.sampler.sample(
        denoise, make_batch(3).keys.key, EVENT, make_batch(3).conditioning.shared
    ).final
    torch.testing.assert_close(moved.clean[:, 1], direct)
    assert not torch.equal(moved.clean[:, 1], after.clean[:, 1])


def test_no_opponent_is_painted_for_an_unreadable_row(make_prompts, make_batch, network):
    batch = replace(make_batch(3, candidates=1), valid=torch.tensor([True, False, True]))
    collector = SelfPlay(make_prompts(Ddim(eta=0.0), 1.0))
    items = whole(collector.collect(batch))
    assert items.ids == ("0", "2")
    assert max(network.calls) == 2
    alone = whole(collector.collect(make_batch(1, candidates=1, first=2)))
    torch.testing.assert_close(items.clean[1], alone.clean[0])


def test_sizes_of_the_expert_s_own_picture_go_to_both_sides(make_prompts, make_batch):
    batch = make_batch(2, candidates=1)
    sizes = torch.arange(12.0).view(2, 1, 6)
    batch = replace(batch, conditioning=Conditioning(batch.conditioning.shared, {"time_ids": sizes}))
    items = whole(SelfPlay(make_prompts(Ddim(eta=0.0), 1.0)).collect(batch))
    assert items.conditioning.rows(2)["time_ids"].shape == (4, 6)


# ------------------------------------------------------------------------------------------- expert's states


def test_an_expert_and_a_state_share_prompt_and_timestep(make_prompts, make_batch, network, vp):
    prompts = make_prompts(DpmSolver(), 1.0, steps=5, offset=0, last="clean")
    collector = ExpertStates(prompts, ReplayBuffer(4), shift=199)
    items = whole(collector.collect(make_batch(3, candidates=1)))
    assert items.clean.shape == (3, 1, *EVENT)
    numbers = items.clean[:, 0, 0, 0]
    torch.testing.assert_close(items.conditioning.shared["text"][:, 0], numbers / 10)
    assert sorted(numbers.tolist()) == [0.0, 1.0, 2.0], "as many trajectories as rows: each once"
    time = items.recorded["timestep"][:, 0]
    again = network(items.recorded["state"][:, 0], time, items.conditioning.shared)
    torch.testing.assert_close(items.recorded["prediction"][:, 0], again)


def test_timesteps_of_states_cover_all_noise_levels(make_prompts, make_batch):
    prompts = make_prompts(DpmSolver(), 1.0, steps=5, offset=0, last="clean")
    collector = ExpertStates(prompts, ReplayBuffer(500), shift=199)
    items = whole(collector.collect(make_batch(500, candidates=1)))
    time = items.recorded["timestep"][:, 0]
    assert time.min() < 10
    assert time.max() > 990
    assert torch.bincount(time // 200, minlength=5).min() > 60


def test_the_buffer_is_what_survives(make_prompts, make_batch):
    prompts = make_prompts(DpmSolver(), 1.0, steps=5, offset=0, last="clean")
    first, second = (ExpertStates(prompts, ReplayBuffer(4)) for _ in range(2))
    first.collect(make_batch(3, candidates=1))
    second.load_state_dict(first.state_dict())
    ahead = [whole(each.collect(make_batch(2, candidates=1, first=3))) for each in (first, second)]
    assert torch.equal(ahead[0].recorded["state"], ahead[1].recorded["state"])
    assert torch.equal(ahead[0].clean, ahead[1].clean)


def test_steps_of_a_group_have_the_density_of_the_sampler(make_prompts, make_batch, vp, network):
    """By hand: the mean and the deviation of one DDIM step under guidance."""
    prompts = make_prompts(steps=3)
    items = whole(Groups(prompts, brightness, samples=2).collect(make_batch(1)))
    state, time = items.recorded["state"][:, 0], items.recorded["timestep"][:, 0]
    text = items.conditioning.shared
    given = network(state, time, {"text": text["text"]})
    without = network(state, time, {"text": text["uncond.text"]})
    output = without + 3.0 * (given - without)
    step = Step(vp, "epsilon", state, output, time, items.recorded["next_timestep"][:, 0])
    moments = Ddim(eta=1.0).moments(step)
    expected = log_probability(items.clean[:, 0], moments.mean, moments.std)
    torch.testing.assert_close(items.recorded["old_log_probability"][:, 0], expected, rtol=1e-5, atol=1e-5)

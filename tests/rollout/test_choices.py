"""Best and worst of a pool, who goes on, advantages of a group."""

import pytest
import torch

from mmalign.errors import HyperparameterError, UnknownNameError
from mmalign.rollout import best_and_worst, group_advantages, random_candidate

NAN = float("nan")


def doubles(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_pair_is_the_highest_and_the_lowest_score():
    found = best_and_worst(doubles([0.1, 0.9, 0.5], [2.0, -1.0, 0.0]))
    assert found.index.tolist() == [[1, 0], [0, 1]]
    assert found.valid.tolist() == [True, True]


def test_a_pair_counts_if_its_softmax_difference_exceeds_the_threshold():
    scores = doubles([0.0, 0.6], [0.0, 0.7])
    high_first = torch.softmax(scores.flip(1), dim=1)
    found = best_and_worst(scores, threshold=0.3)
    torch.testing.assert_close(found.gap, high_first[:, 0] - high_first[:, 1])
    assert found.valid.tolist() == [False, True]


def test_equal_scores_give_the_first_two_candidates():
    found = best_and_worst(doubles([1.0, 1.0, 1.0], [0.0, 1.0, 1.0]))
    assert found.index.tolist() == [[0, 1], [1, 0]]
    assert found.valid.tolist() == [True, True]
    assert best_and_worst(doubles([1.0, 1.0, 1.0]), threshold=0.0).valid.tolist() == [False]


def test_candidates_that_could_not_be_judged_are_passed_over():
    found = best_and_worst(doubles([NAN, 3.0, 1.0], [NAN, 3.0, NAN], [NAN, NAN, NAN]), threshold=0.3)
    assert found.index[0].tolist() == [1, 2]
    assert found.valid.tolist() == [True, False, False]
    alone = doubles([NAN, NAN, NAN], [NAN, 3.0, NAN], [3.0, NAN, NAN], [NAN, 3.0, 3.0])
    assert best_and_worst(alone).valid.tolist() == [False, False, False, True]


def test_pairs_that_cannot_be_made_are_refused():
    with pytest.raises(HyperparameterError, match=r"got '?1 candidate'?, expected at least two"):
        best_and_worst(doubles([1.0]))
    with pytest.raises(HyperparameterError, match=r"threshold: got 1.0, expected a difference of prob"):
        best_and_worst(doubles([1.0, 2.0]), threshold=1.0)
    with pytest.raises(HyperparameterError, match=r"threshold: got -0.1, expected a difference of prob"):
        best_and_worst(doubles([1.0, 2.0]), threshold=-0.1)


def test_a_candidate_that_could_not_be_judged_is_neither_best_nor_worst():
    found = best_and_worst(doubles([NAN, -3.0, -1.0], [NAN, 3.0, 1.0]))
    assert found.index.tolist() == [[2, 1], [1, 2]]


def test_the_random_candidate_is_uniform_and_decided_by_the_key(make_keys):
    keys = make_keys(7000)
    drawn = random_candidate(keys, 7, purpose="continue3")
    assert torch.equal(drawn[100:], random_candidate(keys[100:], 7, purpose="continue3"))
    share = torch.bincount(drawn, minlength=7) / 7000
    assert share.shape == (7,)
    assert (share - 1 / 7).abs().max() < 0.02
    other = random_candidate(keys, 7, purpose="continue4")
    assert (drawn == other).float().mean().item() == pytest.approx(1 / 7, abs=0.02)


def test_advantages_within_groups_are_standardised():
    rewards = doubles([1.0, 2.0, 6.0], [0.0, 0.0, 3.0])
    found = group_advantages(rewards, epsilon=0.0)
    for row, reward in zip(found, rewards, strict=True):
        torch.testing.assert_close(row, (reward - reward.mean()) / reward.std(correction=0))
    sample = group_advantages(rewards, epsilon=1e-8, correction=1, limit=None)
    torch.testing.assert_close(sample[0], (rewards[0] - 3.0) / (rewards[0].std() + 1e-8))


def test_global_deviation_is_that_of_all_rewards_around_their_common_mean():
    rewards = doubles([1.0, 2.0, 6.0], [0.0, 0.0, 3.0])
    found = group_advantages(rewards, deviation="global")
    centred = rewards - rewards.mean(1, keepdim=True)
    torch.testing.assert_close(found, centred / (rewards.std(correction=0) + 1e-4))
    torch.testing.assert_close(group_advantages(rewards, deviation="none"), centred)


def test_global_deviation_sums_over_ranks():
    rewards = doubles([1.0, 2.0, 6.0], [0.0, 0.0, 3.0])
    other = doubles([9.0, 5.0, 1.0])
    everything = torch.cat([rewards, other])
    rounds = [
        torch.stack([other.sum(), torch.tensor(3.0, dtype=torch.float64)]),
        (other - everything.mean()).square().sum(),
    ]
    found = group_advantages(rewards, deviation="global", sum_across=lambda mine: mine + rounds.pop(0))
    torch.testing.assert_close(found, group_advantages(everything, deviation="global")[:2])


def test_advantages_are_held_within_their_limit():
    rewards = torch.zeros(1, 101, dtype=torch.float64)
    rewards[0, 0] = 1.0
    assert group_advantages(rewards).max() == 5.0
    assert group_advantages(rewards, limit=None).max() > 9.0


def test_a_missing_reward_has_no_advantage_and_moves_no_other():
    found = group_advantages(doubles([1.0, 2.0, NAN], [0.0, 0.0, 3.0]))
    torch.testing.assert_close(found[0, :2], group_advantages(doubles([1.0, 2.0]))[0])
    assert found.isnan().tolist() == [[False, False, True], [False, False, False]]
    together = group_advantages(doubles([1.0, 2.0, NAN]), deviation="global")
    torch.testing.assert_close(together[:, :2], group_advantages(doubles([1.0, 2.0]), deviation="global"))


def test_advantages_are_held_on_both_sides():
    rewards = torch.ones(1, 101, dtype=torch.float64)
    rewards[0, 0] = 0.0
    assert group_advantages(rewards).min() == -5.0
    assert group_advantages(-rewards, limit=2.0).max() == 2.0


def test_the_correction_divides_by_one_less_over_all_rewards_too():
    rewards = doubles([1.0, 2.0, 6.0], [0.0, 0.0, 3.0])
    found = group_advantages(rewards, deviation="global", epsilon=0.0, correction=1)
    torch.testing.assert_close(found, (rewards - rewards.mean(1, keepdim=True)) / rewards.std())


def test_a_single_known_reward_is_its_own_mean_under_any_correction():
    found = group_advantages(doubles([7.0, NAN, NAN]), correction=1)
    assert found[0, 0] == 0.0
    assert found[0, 1:].isnan().all()


def test_a_group_of_equal_rewards_teaches_nothing():
    assert not group_advantages(doubles([2.0, 2.0, 2.0])).any()


def test_advantages_refuse_settings_out_of_range(untyped):
    with pytest.raises(HyperparameterError, match=r"group_advantages limit: got 0"):
        group_advantages(doubles([1.0, 2.0]), limit=0)
    with pytest.raises(HyperparameterError, match=r"group_advantages epsilon: got -1"):
        group_advantages(doubles([1.0, 2.0]), epsilon=-1)
    with untyped, pytest.raises(UnknownNameError, match=r"unknown deviation 'all'.*global"):
        group_advantages(doubles([1.0, 2.0]), deviation="all")

import math

import pytest
import torch

from mmalign.errors import ConfigError, UnknownNameError
from mmalign.evals.pairs import labels, selection
from mmalign.evals.pairs.selection import (
    hard_pairs,
    minimax_pairs,
    pairs_over_margin,
    pairwise_wins,
    pareto_fronts,
    pareto_pairs,
    relevance_regularised,
    select_pairs,
    standings,
)


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# Two rewards that agree about 1 over 2, and contradict each other about 0.
SCORES = table([9.0, 0.1], [5.0, 0.9], [1.0, 0.2])


def test_standings_do_not_depend_on_the_scale_of_any_reward():
    stretched = SCORES * torch.tensor([100.0, 0.01]) + torch.tensor([-7.0, 3.0])
    for how in ("rank", "win_probability", "z", "minmax"):
        assert torch.allclose(standings(SCORES, how), standings(stretched, how))


def test_standings_are_the_written_out_means():
    assert standings(SCORES, "rank").tolist() == [-2.0, -1.5, -2.5]
    assert standings(SCORES, "win_probability").tolist() == [0.5, 0.75, 0.25]
    assert standings(SCORES, "minmax").tolist() == pytest.approx([0.5, 0.75, 0.0625])
    first, second = math.sqrt(32 / 3), (SCORES[:, 1] - 0.4).square().mean().sqrt().item()
    expected = [(4 / first - 0.3 / second) / 2, 0.5 / second / 2, (-4 / first - 0.2 / second) / 2]
    assert standings(SCORES, "z").tolist() == pytest.approx(expected)


def test_a_reward_of_weight_zero_does_not_count():
    assert standings(SCORES, "win_probability", weights=[1.0, 0.0]).tolist() == [1.0, 0.5, 0.0]


def test_a_tie_is_half_a_win():
    wins = pairwise_wins(table([1.0, 2.0], [1.0, 3.0], [0.0, 3.0]))
    assert wins.tolist() == [[0.0, 0.5, 1.0], [1.5, 0.0, 1.5], [1.0, 0.5, 0.0]]


def test_scores_that_are_missing_are_refused():
    with pytest.raises(ConfigError, match="Leave out candidates that a reward could not score"):
        standings(table([math.nan], [1.0]), "z")
    with pytest.raises(ConfigError, match="at least 2"):
        standings(table([1.0]), "z")


def test_unknown_names_are_named(untyped):
    with untyped:
        with pytest.raises(UnknownNameError, match="rule for pairs 'best'"):
            select_pairs(SCORES, SCORES[:, 0], "best")
        with pytest.raises(UnknownNameError, match="standing 'median'"):
            standings(SCORES, "median")


def test_dominance_needs_every_reward_to_agree():
    assert pareto_pairs(SCORES) == [(1, 2)]
    assert pareto_fronts(SCORES) == [[0, 1], [2]]


def test_equal_candidates_dominate_nobody_and_share_a_front():
    same = table([1.0, 1.0], [1.0, 1.0], [0.0, 1.0])
    assert pareto_pairs(same) == [(0, 2), (1, 2)]
    assert pareto_fronts(same) == [[0, 1], [2]]


def test_the_margin_must_be_exceeded():
    standing = torch.tensor([0.0, 1.0, 0.5])
    assert pairs_over_margin(standing, 0.5) == [(1, 0)]
    assert pairs_over_margin(standing, 0.0) == [(1, 0), (1, 2), (2, 0)]
    with pytest.raises(ConfigError, match="margin: got -1"):
        pairs_over_margin(standing, -1.0)


def test_minimax_takes_the_pair_that_the_least_convinced_reward_accepts():
    scores = table([10.0, 0.0], [8.0, 0.8], [2.0, 0.1], [0.0, 1.0])
    assert minimax_pairs(scores) == [(1, 2)]
    assert minimax_pairs(scores, margin=0.65) == []  # by the first reward the gap is 0.6


def test_minimax_makes_no_pair_of_rewards_that_contradict_each_other():
    assert minimax_pairs(table([1.0, 0.0], [0.0, 1.0])) == []


def test_a_hard_loser_is_the_nearest_that_is_clearly_worse():
    standing = torch.tensor([1.0, 0.95, 0.6, 0.1])
    assert hard_pairs(standing, 0.1) == [(0, 2)]
    assert hard_pairs(standing, 2.0) == []


def test_a_hard_loser_is_the_one_the_model_finds_likeliest():
    standing = torch.tensor([1.0, 0.95, 0.6, 0.1])
    likelihood = torch.tensor([-9.0, -1.0, -8.0, -2.0])
    assert hard_pairs(standing, 0.1, likelihood) == [(0, 3)]


def test_what_misses_its_prompt_cannot_win_by_beauty():
    beauty, relevance = torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.0, 0.9, 1.0])
    assert relevance_regularised(beauty, relevance).tolist() == pytest.approx([0.0, 0.54, 0.2])
    bounded = relevance_regularised(beauty, relevance, (-1.0, 0.5))
    assert bounded.tolist() == pytest.approx([2 / 3, 0.6, 0.2])
    assert relevance_regularised(beauty, torch.ones(3)).tolist() == pytest.approx(beauty.tolist())
    with pytest.raises(ConfigError, match="win_probability or minmax"):
        relevance_regularised(-beauty, relevance)
    with pytest.raises(ConfigError, match="low < high"):
        relevance_regularised(beauty, relevance, (1.0, 1.0))


@pytest.mark.parametrize("rule", list(selection.RULES))
def test_no_rule_pairs_equal_candidates(rule):
    scores = torch.ones(5, 2, dtype=torch.float64)
    assert select_pairs(scores, torch.ones(5), rule) == []


@pytest.mark.parametrize("rule", list(selection.RULES))
def test_the_winner_of_every_rule_stands_higher(rule, draw):
    for _ in range(7):
        scores = draw(5, 3)
        standing = standings(scores, "minmax")
        couples = select_pairs(scores, standing, rule, margin=0.05)
        assert all(standing[i] - standing[j] > 0.0 for i, j in couples)
        assert len(set(couples)) == len(couples)


def test_who_meets_whom():
    standing = torch.tensor([0.2, 1.0, 0.6], dtype=torch.float64)
    scores = standing.unsqueeze(1)
    assert select_pairs(scores, standing, "best_worst") == [(1, 0)]
    assert select_pairs(scores, standing, "best_worst", margin=0.9) == []
    assert select_pairs(scores, standing, "best_vs_rest") == [(1, 0), (1, 2)]
    assert select_pairs(scores, standing, "all_pairs", margin=0.5) == [(1, 0)]
    assert select_pairs(scores, standing, "pareto", margin=0.5) == [(1, 0)]


# ------------------------------------------------------------------------------------------------ labels


def test_soft_labels_refuse_scores_in_the_usual_unit():
    with pytest.raises(ConfigError, match="Divide PickScores by exp"):
        labels.smoothed_preference(torch.tensor([[22.3, 21.0]]))
    with pytest.raises(ConfigError, match="low < high"):
        labels.smoothed_preference(torch.tensor([[0.2, 0.1]]), 1.0, 0.0)


def test_soft_labels_are_softmaxes_of_normalised_cosines():
    found = labels.smoothed_preference(table([0.20, 0.25], [0.25, 0.20], [0.2, 0.2]))
    gap = 0.05 / (0.28201571106910706 - 0.11543526500463486)
    expected = 1 / (1 + math.exp(-gap))
    assert found.tolist() == pytest.approx([expected, expected, 0.5])


def test_votes_count_rewards():
    winner, loser = table([1.0, 2.0, 3.0]), table([0.0, 2.0, 5.0])
    assert labels.reward_votes(winner, loser).tolist() == [0.5]


def test_gap_weights_grow_with_the_level():
    weights = labels.gap_weight(torch.tensor([100.0, 50.0, 10.0]), torch.tensor([50.0, 0.0, 20.0]))
    assert weights.tolist() == pytest.approx([2 - math.sqrt(2), math.sqrt(2) - 1, 0.0])
    with pytest.raises(ConfigError, match="base > 1"):
        labels.gap_weight(torch.ones(1), torch.ones(1), base=1.0)


def test_rare_gaps_count_more_and_beta_zero_switches_it_off():
    gaps = table([0.011, 0.012, 0.013, 0.055])[0]
    common = labels.probability_of_gaps(gaps)
    assert common.tolist() == [0.75, 0.75, 0.75, 0.25]
    assert labels.duplication_factor(common, beta=2.0).tolist() == pytest.approx([0.96**2] * 3 + [2.88**2])
    assert labels.duplication_factor(common, beta=0.0).tolist() == [1.0] * 4
    with pytest.raises(ConfigError, match="beta >= 0"):
        labels.duplication_factor(common, beta=-1.0)
    with pytest.raises(ConfigError, match=r"probability: got 0\.0, expected numbers > 0"):
        labels.duplication_factor(common * 0, beta=1.0)


def test_a_gap_on_the_edge_of_a_bin_falls_above_it_despite_rounding():
    gaps = table([0.29, 0.295, 0.28])[0]
    assert labels.probability_of_gaps(gaps).tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    with pytest.raises(ConfigError, match="width > 0"):
        labels.probability_of_gaps(gaps, 0.0)
    with pytest.raises(ConfigError, match="at least one"):
        labels.probability_of_gaps(gaps[:0])
    with pytest.raises(ConfigError, match="at least one value"):
        labels.histogram_probability(torch.zeros(3))


def test_rarity_looks_at_the_scores_of_both_sides():
    winner, loser = table([0.905, 0.905, 0.505])[0], table([0.105, 0.305, 0.305])[0]
    # Shares of the six scores: 0.9 1/3, 0.3 1/3, 0.1 and 0.5 1/6 each.
    expected = [2**0.36, 1.0, 2**0.36]
    assert labels.rarity_weight(winner, loser).tolist() == pytest.approx(expected)
    with pytest.raises(ConfigError, match="alpha >= 0"):
        labels.rarity_weight(winner, loser, alpha=-1.0)

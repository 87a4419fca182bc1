"""Sign test, signed ranks, effect size, corrections, power."""

import math

import numpy as np
import pytest
from scipy import stats

from mmalign.errors import ConfigError
from mmalign.evals.statistics import effect_size, sign_test, signed_rank_test, standard_error
from mmalign.evals.statistics.paired_tests import average_ranks


@pytest.mark.parametrize(("wins", "losses"), [(5, 2), (2, 5), (3, 3), (0, 7), (611, 523)])
def test_the_sign_test_is_the_exact_binomial_one(wins, losses):
    found = sign_test(wins, losses, ties=2)
    assert found.p_value == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)
    assert (found.count, found.dropped, found.exact) == (wins + losses, 2, True)


def test_without_decided_prompts_there_is_no_evidence():
    assert sign_test(0, 0, ties=5).p_value == 1.0
    assert signed_rank_test([0.0, 0.0, 0.0]).p_value == 1.0


@pytest.mark.parametrize("num", [2, 5, 23, 97])
def test_signed_ranks_without_ties_have_the_exact_distribution(num):
    differences = np.random.default_rng(num).normal(0.2, 1.0, num)
    expected = stats.wilcoxon(differences, method="exact")
    assert signed_rank_test(differences).p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_signed_ranks_with_ties_are_counted_out_over_all_signs():
    differences = np.array([1.0, -1.0, 2.0, 2.0, -3.0, 5.0, 0.0])
    found = signed_rank_test(differences)
    kept = differences[differences != 0]
    ranks = stats.rankdata(np.abs(kept))
    signs = np.array(np.meshgrid(*[[0, 1]] * len(kept))).reshape(len(kept), -1)
    sums = ranks @ signs
    seen = ranks[kept > 0].sum()
    expected = 2 * min((sums <= seen).mean(), (sums >= seen).mean())
    assert found.p_value == pytest.approx(min(1.0, expected), rel=1e-12)
    assert (found.statistic, found.count, found.dropped) == (seen, 6, 1)


def test_many_signed_ranks_use_the_normal_approximation_with_ties():
    differences = np.rint(np.random.default_rng(3).normal(0.4, 4.0, 307))
    found = signed_rank_test(differences)
    expected = stats.wilcoxon(differences, method="approx", correction=True)
    assert not found.exact
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.dropped == int((differences == 0).sum()) > 0


def test_a_true_null_hypothesis_is_rejected_no_more_often_than_said():
    generator = np.random.default_rng(5)
    p_values = np.array([signed_rank_test(generator.normal(size=23)).p_value for _ in range(1000)])
    assert (p_values <= 0.05).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_equal_values_share_the_mean_of_their_ranks():
    assert average_ranks([7.0, 2.0, 7.0, 3.0, 7.0]).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_effect_size_is_the_mean_in_standard_deviations():
    assert effect_size([1.0, 3.0]) == pytest.approx(2.0 / math.sqrt(2.0))
    assert effect_size([0.0, 0.0]) == 0.0
    assert effect_size([-0.1, -0.1, -0.1]) == -math.inf
    assert math.isnan(effect_size([5.0]))
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert math.isnan(standard_error([5.0]))


def test_tests_say_what_they_found():
    assert str(sign_test(3, 1, ties=2)) == "sign test: p = 0.6250 over 4 differences (2 zeros dropped)"
    assert str(sign_test(53, 2)) == "sign test: p < 0.0001 over 55 differences"


def test_negative_counts_and_failed_items_are_refused():
    with pytest.raises(ConfigError, match="got '-1 wins, 3 losses, 0 ties', expected counts >= 0"):
        sign_test(-1, 3)
    with pytest.raises(ConfigError, match="signed_rank_test: got '1 NaN of 2"):
        signed_rank_test([1.0, math.nan])

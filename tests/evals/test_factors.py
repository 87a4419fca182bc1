"""Profiles of preferences with known causes: what decides has tau 1, what plays no part has 0."""

import math
from itertools import combinations

import pytest
import torch

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.factors import agreement, factor_differences, generation_gap, profile

NAMES = ("decides", "opposes", "chance")


def world(draw, count=211):
    """Differences of three factors and a preference that the first decides."""
    differences = draw(count, 3)
    differences[:, 1] = -differences[:, 0] + 0.5 * differences[:, 1]
    return differences, differences[:, 0].sign()


def test_taus_name_the_cause_its_opposite_and_chance(draw):
    found = profile(*world(draw), factors=NAMES, name="judge")
    decides, opposes, chance = (entry.tau for entry in found.factors)
    assert decides.value == 1.0
    assert opposes.high < -0.5
    assert chance.holds(0.0)
    assert found.ranked()[0].factor == "decides"
    assert "decides: tau 1.000 (" in str(found)


def test_tau_is_concordant_less_discordant_over_both():
    differences = torch.tensor([[2.0], [-1.0], [3.0], [0.0], [math.nan], [5.0], [1.0]])
    preference = torch.tensor([1.0, 1.0, 0.3, 1.0, 1.0, 0.0, math.nan])
    (dropped,) = profile(differences, preference, factors=["f"]).factors
    (counted,) = profile(differences, preference, factors=["f"], ties="counted").factors
    assert (dropped.num_concordant, dropped.num_discordant, dropped.num_tied, dropped.num_missing) == (
        2,
        1,
        1,
        1,
    )
    assert dropped.tau.value == pytest.approx(1 / 3)
    assert counted.tau.value == pytest.approx(1 / 4)
    found = profile(differences, preference, factors=["f"])
    assert (found.num_pairs, found.num_undecided) == (5, 2)


def test_turning_the_pairs_round_changes_nothing_and_turning_the_preference_turns_the_sign(draw):
    differences, preference = world(draw)
    plain = profile(differences, preference, factors=NAMES)
    assert profile(-differences, -preference, factors=NAMES) == plain
    turned = profile(differences, -preference, factors=NAMES).taus()
    assert turned == pytest.approx({name: -value for name, value in plain.taus().items()})


def test_tau_equals_kendalls_tau_over_all_candidates_of_a_prompt(draw):
    factor, score = draw(11), draw(11)
    pairs = list(combinations(range(11), 2))
    differences = torch.stack([factor[a] - factor[b] for a, b in pairs]).unsqueeze(1)
    preference = torch.stack([score[a] - score[b] for a, b in pairs])
    (entry,) = profile(differences, preference, factors=["f"]).factors
    signs = [math.copysign(1, (factor[a] - factor[b]) * (score[a] - score[b])) for a, b in pairs]
    assert entry.tau.value == pytest.approx(sum(signs) / len(pairs))


def test_intervals_cover_the_truth_and_widen_with_clusters(draw, generator):
    held = 0
    for _ in range(300):
        agrees = torch.where(torch.rand(67, generator=generator) < 0.7, 1.0, -1.0)
        (entry,) = profile(agrees.unsqueeze(1), torch.ones(67), factors=["f"]).factors
        held += entry.tau.holds(0.4)
    assert 270 <= held <= 297  # 285 expected, standard deviation 3.8
    same = torch.where(torch.rand(13, generator=generator) < 0.7, 1.0, -1.0).repeat_interleave(5).unsqueeze(1)
    alone, grouped = (
        profile(same, torch.ones(65), factors=["f"], clusters=clusters).factors[0].tau
        for clusters in (None, [place // 5 for place in range(65)])
    )
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_a_factor_that_never_differs_has_no_tau():
    found = profile(torch.zeros(3, 1), torch.ones(3), factors=["f"])
    assert math.isnan(found.taus()["f"])
    assert "tau none (no interval)" in str(found)
    assert found.as_dict()["factors"][0]["tau"]["value"] is None


def test_differences_line_up_factors_and_mark_what_is_missing():
    names, found = factor_differences([{"a": 3, "b": 1.0}, {"a": 5}], [{"a": 1, "b": 4.0}, {"a": 5, "c": 1}])
    assert names == ("a", "b", "c")
    assert found[0, :2].tolist() == [2.0, -3.0]
    assert found.isnan().tolist() == [[False, False, True], [False, True, True]]


def named(taus, count=200):
    """A profile with these taus, made from that many pairs."""
    columns = [
        torch.tensor([1.0] * round(count * (1 + t) / 2) + [-1.0] * round(count * (1 - t) / 2)) for t in taus
    ]
    return profile(
        torch.stack(columns, dim=1), torch.ones(count), factors=[f"f{i}" for i in range(len(taus))]
    )


def test_profiles_agree_with_themselves_and_oppose_their_opposites():
    one, other = named([0.9, 0.1, -0.5, 0.3, 0.3]), named([-0.9, -0.1, 0.5, -0.3, -0.3])
    for measure in ("kendall", "pearson", "spearman"):
        assert agreement(one, one, measure=measure) == pytest.approx(1)
        assert agreement(one, other, measure=measure) == pytest.approx(-1)


def test_agreement_is_kendalls_tau_b_and_the_two_correlations():
    one, other = named([0.9, 0.5, 0.5, -0.2, 0.0]), named([0.7, 0.8, 0.1, -0.4, 0.1])
    # comparisons: 10, 1 tied in each, 7 agree, 1 disagrees -> 6 / sqrt(9 * 9)
    assert agreement(one, other, measure="kendall") == pytest.approx(6 / 9)
    x, y = torch.tensor(list(one.taus().values())), torch.tensor(list(other.taus().values()))
    assert agreement(one, other, measure="pearson") == pytest.approx(
        float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    )
    ranks = torch.tensor([[4, 2.5, 2.5, 0, 1], [3, 4, 1.5, 0, 1.5]])
    assert agreement(one, other, measure="spearman") == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))


def test_the_gap_says_whether_a_model_judges_closer_to_people_than_it_writes():
    human, judge, generator = named([0.2, 0.8, -0.5]), named([0.3, 0.7, -0.5]), named([0.9, 0.1, -0.2])
    gap = generation_gap(human, generator=generator, judge=judge)
    assert gap.judgement == pytest.approx(1)
    assert gap.generation == pytest.approx(1 / 3)
    assert gap.gap == pytest.approx(2 / 3)
    assert gap.by_factor == pytest.approx({"f0": 0.6, "f1": 0.6, "f2": 0.3})
    assert "generation-discrimination gap 0.667 (kendall with people: judging 1.000" in str(gap)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"profile differences: got \[3, 2\] with 1 factors and 3 clusters"):
        profile(torch.zeros(3, 2), torch.zeros(3), factors=["f"])
    with pytest.raises(ShapeError, match=r"factor_differences: got '1 and 2', expected as many of both"):
        factor_differences([{}], [{}, {}])
    other = profile(torch.ones(3, 1), torch.ones(3), factors=["g"])
    with pytest.raises(ConfigError, match=r"agreement: got .*, expected a common factor"):
        agreement(named([0.5]), other)

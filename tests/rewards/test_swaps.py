"""Both orders together: wins are twice won, ties and inconsistencies are counted, invalid wins nothing."""

import math
from itertools import product

import pytest
import torch

from mmalign.errors import ShapeError
from mmalign.rewards.swaps import both_orders, digit_scores, order_log_odds, position_rates, verdict_value

CHOICES = ("one", "two", "tie", None)
TURNED = {"first": "second", "second": "first"}


@pytest.mark.parametrize(
    ("forward", "swapped", "verdict"),
    [
        ("one", "two", "first"),
        ("two", "one", "second"),
        ("tie", "tie", "tie"),
        ("one", "one", "inconsistent"),
        ("tie", "one", "inconsistent"),
        (None, "one", "invalid"),
        ("two", None, "invalid"),
    ],
)
def test_a_pair_is_won_only_in_both_orders(forward, swapped, verdict):
    assert both_orders(forward, swapped) == verdict


@pytest.mark.parametrize(("forward", "swapped"), list(product(CHOICES, CHOICES)))
def test_naming_the_candidates_the_other_way_round_turns_the_verdict(forward, swapped):
    found = both_orders(forward, swapped)
    assert both_orders(swapped, forward) == TURNED.get(found, found)


def test_an_invalid_pair_is_worth_nothing_and_both_ties_a_half():
    assert [verdict_value(verdict) for verdict in ("first", "second", "tie", "inconsistent")] == [
        1,
        0,
        0.5,
        0.5,
    ]
    assert math.isnan(verdict_value("invalid"))


def test_a_judge_of_positions_alone_is_found_out():
    rates = position_rates([("one", "one")] * 5)
    assert rates.first_position_rate == 1.0
    assert rates.consistency_rate == 0.0


def test_rates_count_ties_and_invalid_answers_where_they_belong():
    pairs = [
        ("one", "two"),
        ("two", "two"),
        ("tie", "tie"),
        ("tie", "one"),
        (None, "one"),
        (None, None),
        ("one", "two"),
    ]
    rates = position_rates(pairs)
    assert (rates.num_pairs, rates.num_valid, rates.num_decided, rates.num_inconsistent) == (7, 5, 3, 2)
    assert rates.consistency_rate == pytest.approx(3 / 5)
    assert rates.first_position_rate == pytest.approx(2 / 6)
    assert rates.invalid_rate == pytest.approx(2 / 7)
    assert rates.as_dict()["invalid_rate"] == rates.invalid_rate


def test_rates_of_nothing_are_no_numbers():
    rates = position_rates([])
    assert all(
        math.isnan(rate) for rate in (rates.consistency_rate, rates.first_position_rate, rates.invalid_rate)
    )


def test_expected_scores_renormalise_over_the_scale():
    probabilities = torch.tensor([[0.1, 0.0, 0.3], [0.2, 0.2, 0.2]], dtype=torch.float64)
    found = digit_scores(probabilities.log(), (1, 3, 5))
    assert found.expected.tolist() == pytest.approx([(0.1 * 1 + 0.3 * 5) / 0.4, 3.0])
    assert found.mass.tolist() == pytest.approx([0.4, 0.6])
    assert found.spread.tolist() == pytest.approx([math.sqrt(0.25 * 9 + 0.75 * 1), math.sqrt(8 / 3)])


def test_a_scale_of_another_length_is_refused():
    with pytest.raises(ShapeError, match=r"digit_scores log_probs: got \[2, 3\], expected \[sample, 5\]"):
        digit_scores(torch.zeros(2, 3), (1, 2, 3, 4, 5))


def test_log_odds_split_preference_from_position(draw):
    preference, position = draw(7), draw(7)
    offsets = draw(7, 1), draw(7, 1)  # the rest of the vocabulary: no part of either
    forward = torch.stack([preference + position, torch.zeros_like(position)], dim=1) + offsets[0]
    swapped = torch.stack([position - preference, torch.zeros_like(position)], dim=1) + offsets[1]
    found = order_log_odds(forward, swapped)
    torch.testing.assert_close(found.preference, preference)
    torch.testing.assert_close(found.position, position)
    torch.testing.assert_close(found.probability(), torch.sigmoid(preference))


def test_log_odds_become_verdicts_with_a_margin_for_ties():
    found = order_log_odds(
        torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.2, 0.0], [math.nan, 0.0]]),
        torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 0.2], [0.0, 0.0]]),
    )
    assert found.verdicts(margin=0.5) == ["first", "second", "tie", "invalid"]


def test_log_odds_need_two_columns():
    with pytest.raises(ShapeError, match=r"order_log_odds: got \[.*\], expected \[pair, 2\] and the same"):
        order_log_odds(torch.zeros(3, 5), torch.zeros(3, 5))


def test_rates_of_nothing_are_stored_as_none():
    assert position_rates([(None, "one")]).as_dict()["consistency_rate"] is None

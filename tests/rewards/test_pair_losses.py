import math

import pytest
import torch

from mmalign.errors import HyperparameterError, ShapeError
from mmalign.rewards import pair_losses
from mmalign.rewards.pair_losses import MISSING


def test_probabilities_of_win_tie_and_loss_sum_to_one(draw):
    first, second = draw(7, 3), draw(7, 3)
    total = sum(
        torch.exp(-pair_losses.label_loss_with_ties(first, second, torch.full((7, 3), label), k=3.0))
        for label in (1, 0, -1)
    )
    torch.testing.assert_close(total, torch.ones_like(total))


def test_equal_rewards_tie_with_two_thirds_at_five():
    zero = torch.zeros(1, 1)
    tie = pair_losses.label_loss_with_ties(zero, zero, torch.zeros(1, 1, dtype=torch.long))
    assert math.exp(-tie.item()) == pytest.approx(2 / 3)


def test_swapping_sides_and_labels_changes_nothing(draw):
    first, second = draw(5, 2), draw(5, 2)
    labels = torch.tensor([[1, -1], [0, 1], [-1, MISSING], [1, 0], [-1, -1]])
    turned = torch.where(labels == MISSING, labels, -labels)
    for loss in (pair_losses.label_loss, pair_losses.label_loss_with_ties):
        torch.testing.assert_close(loss(first, second, labels), loss(second, first, turned))


def test_unusable_entries_are_zero_and_divide_the_mean(draw):
    first, second = draw(2, 2), draw(2, 2)
    labels = torch.tensor([[1, MISSING], [0, MISSING]])
    plain = pair_losses.label_loss(first, second, labels)
    assert plain[:, 1].tolist() == [0.0, 0.0]
    assert plain[1, 0].item() == 0.0
    assert pair_losses.entry_mean(plain).item() == pytest.approx(plain[0, 0].item() / 4)
    assert pair_losses.label_loss_with_ties(first, second, labels)[1, 0].item() > 0


def test_missing_scores_take_no_part_in_regression(draw):
    first, second = draw(2, 3), draw(2, 3)
    scores = torch.tensor([[4.0, 0.0, 3.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    found = pair_losses.score_regression(first, second, scores, scores)
    assert found[0, 0, 1].item() == found[1, 1, 2].item() == 0.0
    assert found[0, 0, 0].item() == pytest.approx((first[0, 0].item() - 1.0) ** 2)


def test_gaussian_loss_without_doubt_is_bradley_terry():
    sure = torch.tensor([[1.5, -40.0]], dtype=torch.float64)
    other = torch.tensor([[0.5, -40.0]], dtype=torch.float64)
    found = pair_losses.gaussian_preference_loss(
        sure, other, torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    )
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1.0)))


def test_wrong_labels_and_settings_are_refused(draw, untyped):
    labels = torch.full((2, 2), 3)
    with pytest.raises(ShapeError, match=r"labels: got 3, expected 1 \(first better\)"):
        pair_losses.label_loss(draw(2, 2), draw(2, 2), labels)
    with pytest.raises(HyperparameterError, match=r"k: got 1.0, expected a number above 1"):
        pair_losses.label_loss_with_ties(draw(2, 2), draw(2, 2), labels * 0, k=1.0)
    with pytest.raises(ShapeError, match=r"got \[2, 3\], expected \[pair, 2\], columns mu and log sigma"):
        pair_losses.gaussian_preference_loss(draw(2, 3), draw(2, 3), draw(2, 5))

"""The order of rows is a function of (seed, position)."""

import numpy as np
import pytest
import torch

from mmalign.data.sampler import RowOrder, permutation, step_positions
from mmalign.errors import HyperparameterError


def rows(order, start, stop):
    return [order.at(position)[0] for position in range(start, stop)]


def test_an_epoch_visits_every_row_once_and_epochs_differ():
    order = RowOrder([11], seed=3)
    first, second = rows(order, 0, 11), rows(order, 11, 22)
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second
    assert [order.at(position)[1] for position in range(22)] == [0] * 11 + [1] * 11


def test_seeds_give_different_orders_and_the_same_seed_the_same():
    assert rows(RowOrder([101], seed=3), 0, 101) == rows(RowOrder([101], seed=3), 0, 101)
    assert rows(RowOrder([101], seed=3), 0, 101) != rows(RowOrder([101], seed=5), 0, 101)


def test_an_order_resumes_from_a_position_alone():
    whole = rows(RowOrder([13, 7], seed=1, weights=[1.0, 1.5]), 0, 90)
    resumed = rows(RowOrder([13, 7], seed=1, weights=[1.0, 1.5]), 41, 90)
    assert whole[41:] == resumed


def test_the_permutation_is_pinned():
    """Another version of any library must not change the order of a run that resumes."""
    assert permutation(7, 12345).tolist() == PINNED
    assert sorted(permutation(10_007, 1)) == list(range(10_007))


PINNED = [2, 6, 0, 3, 1, 5, 4]


def test_a_shuffle_is_fair():
    """Each of 5 rows comes first in about a fifth of 2000 epochs: within 5 standard deviations, 90."""
    firsts = [int(permutation(5, seed)[0]) for seed in range(2000)]
    assert np.abs(np.bincount(firsts, minlength=5) - 400).max() < 90


def test_without_shuffling_rows_keep_their_order():
    assert rows(RowOrder([3, 2], seed=0, shuffle=False), 0, 7) == [0, 1, 2, 3, 4, 0, 1]


def test_weights_mix_sources():
    order = RowOrder([10, 4], seed=2, weights=[0.5, 2.0])
    assert order.epoch_length == 13
    epochs = [rows(order, 13 * epoch, 13 * (epoch + 1)) for epoch in range(2)]
    for epoch in epochs:
        assert sum(row >= 10 for row in epoch) == 8
        assert all(epoch.count(row) == 2 for row in range(10, 14))
    assert sorted(row for epoch in epochs for row in epoch if row < 10) == list(range(10))


@pytest.mark.parametrize("bad", [{"sizes": [0]}, {"sizes": []}, {"sizes": [3], "weights": [0.0]}])
def test_impossible_mixtures_are_refused(bad):
    with pytest.raises(HyperparameterError, match="expected one positive number of each per source"):
        RowOrder(**bad, seed=0)


def test_ranks_and_accumulation_split_the_same_rows():
    def covered(batch_size, accumulation, world_size):
        shape = {"batch_size": batch_size, "accumulation": accumulation, "world_size": world_size}
        return sorted(
            position
            for micro in range(accumulation)
            for rank in range(world_size)
            for position in step_positions(5, micro, rank, **shape)
        )

    assert covered(12, 1, 1) == covered(1, 12, 1) == covered(3, 2, 2) == list(range(60, 72))


def test_keys_differ_by_row_and_visit_and_not_by_place():
    order = RowOrder([7], seed=3)
    keys = [order.key(position) for position in range(21)]
    assert len(set(keys)) == 21
    row, visit = order.at(9)
    assert order.key(9) == order.row_key(row, visit)
    assert order.key(9) != RowOrder([7], seed=4).row_key(row, visit)


def test_a_bank_of_draws_repeats():
    order = RowOrder([5], seed=3, draws_per_row=2)
    row, _ = order.at(0)
    visits = [position for position in range(20) if order.at(position)[0] == row]
    first, second, third, fourth = (order.key(position) for position in visits)
    assert first == third != second == fourth


def test_row_keys_carry_strata_of_the_step():
    keys = RowOrder([7], seed=3).keys(range(8, 12), rows_per_step=8)
    assert keys.key.dtype == torch.int64
    assert keys.stratum.tolist() == [0.0, 0.125, 0.25, 0.375]
    assert keys.num_strata == 8

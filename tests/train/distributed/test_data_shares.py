"""Processes share an epoch: every row is somebody's once, whatever their number."""

import pytest

from mmalign.train.loader import Layout, StepSampler


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (2, 3)])
def test_the_shares_of_an_epoch_are_the_epoch(world_size: int, batch_size: int, accumulation: int) -> None:
    steps = 5
    layouts = [Layout(batch_size, accumulation, world_size, rank) for rank in range(world_size)]
    shares = [
        [position for batch in StepSampler(layout, start_step=0, steps=steps) for position in batch]
        for layout in layouts
    ]
    assert {len(share) for share in shares} == {steps * batch_size * accumulation}
    assert sorted(position for share in shares for position in share) == list(
        range(steps * layouts[0].effective_batch)
    )


def test_a_run_goes_on_with_other_processes_where_it_stopped() -> None:
    def rows(world_size: int, start: int, end: int) -> set[int]:
        size = 12 // world_size
        layouts = [Layout(size, 1, world_size, rank) for rank in range(world_size)]
        batches = [batch for one in layouts for batch in StepSampler(one, start_step=start, steps=end)]
        return {position for batch in batches for position in batch}

    assert rows(2, 0, 3) | rows(4, 3, 5) == rows(1, 0, 5)
    assert not rows(2, 0, 3) & rows(4, 3, 5)

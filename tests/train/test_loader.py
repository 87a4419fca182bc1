"""Rows become micro-batches: what an objective of rewards cannot read stands for nothing, and is counted."""

import json

import pytest
import torch

from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.data.sampler import RowOrder
from mmalign.errors import TrainingError
from mmalign.train.loader import Layout, StepSampler, make_loader
from mmalign.train.row_needs import RowNeeds

REWARDS = [(5.0, 2.0), (None, 2.0), (7.0, 3.0), (3.0, None), (None, None)]


class TextModel:
    """Hands over the lengths of a row's answers."""

    def example(self, row, *, key):
        return {"lengths": [len(candidate.text) for candidate in row.candidates]}

    def collate(self, examples):
        return {"lengths": torch.tensor([example["lengths"] for example in examples])}


@pytest.fixture
def load(tmp_path, untyped):
    """`load(rewards, needs_reward)`: the micro-batches of an epoch over pairs with such rewards, in order."""

    def make(rewards, *, needs_reward, batch_size=None, num_workers=0):
        path = tmp_path / "pairs.jsonl"
        rows = [
            {
                "prompt": f"question {number}",
                "chosen": "a" * (number + 2),
                "rejected": "b",
                "score_chosen": chosen,
                "score_rejected": rejected,
            }
            for number, (chosen, rejected) in enumerate(rewards)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = open_rows(
            DataConfig(source={"path": str(path), "media": "text"}, shuffle=False), kind="pairs"
        )
        width = batch_size or len(rewards)
        loader = make_loader(
            table,
            RowOrder.for_table(table, seed=0, shuffle=False),
            TextModel(),
            StepSampler(Layout(width, 1), start_step=0, steps=len(rewards) // width),
            rows_per_step=width,
            world_size=1,
            num_workers=num_workers,
            pin_memory=False,
            needs=RowNeeds(reward=needs_reward),
        )
        return list(loader)

    with untyped:
        yield make


def test_rows_without_every_reward_are_skipped_where_the_method_reads_rewards(load):
    (micro,) = load(REWARDS, needs_reward=True)
    assert micro.valid.tolist() == [True, False, True, False, False]
    assert [bad.index for bad in micro.bad] == [1, 3, 4]
    assert {bad.reason for bad in micro.bad} == {"no_reward"}
    assert all("pairs.jsonl" in bad.source for bad in micro.bad)
    for bad in micro.bad:
        assert "a candidate has no reward, which this method reads" in bad.message
        assert "mmalign data relabel" in bad.message
    # A readable row stands in, with no weight; its reward is not lent.
    assert micro.collated["lengths"][:, 0].tolist() == [2, 2, 4, 2, 2]
    assert micro.weight.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert micro.reward[micro.valid].tolist() == [[5.0, 2.0], [7.0, 3.0]]
    assert micro.reward[~micro.valid].isnan().all()


def test_other_methods_train_on_rows_without_rewards(load):
    (micro,) = load(REWARDS, needs_reward=False)
    assert micro.valid.all()
    assert micro.bad == ()
    assert micro.collated["lengths"][:, 0].tolist() == [2, 3, 4, 5, 6]
    assert micro.reward.isnan().tolist() == [[a is None, b is None] for a, b in REWARDS]


def test_data_without_any_reward_have_none(load):
    (micro,) = load([(None, None)] * 3, needs_reward=False)
    assert micro.reward is None


def test_a_micro_batch_of_skipped_rows_borrows_the_next_readable_one(load):
    first, second = load([(None, 1.0), (1.0, None), (2.0, 1.0), (4.0, 3.0)], needs_reward=True, batch_size=2)
    assert first.valid.tolist() == [False, False]
    assert first.collated["lengths"][:, 0].tolist() == [4, 4]
    assert second.valid.all()


def test_a_micro_batch_of_skipped_rows_alone_has_rewards_that_count_nowhere(load):
    """One prompt per device is usual for clips: the method still finds what it reads."""
    first, second = load([(None, 1.0), (2.0, 1.0)], needs_reward=True, batch_size=1)
    assert first.valid.tolist() == [False]
    assert first.reward.isnan().tolist() == [[True, True]]
    assert second.reward.tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_of_which_no_row_has_its_rewards_end_the_run_with_the_cause(load, num_workers):
    with pytest.raises(TrainingError, match=r"^1000 rows .*could not be read; the last: .*has no reward"):
        load([(None, None)] * 2, needs_reward=True, num_workers=num_workers)

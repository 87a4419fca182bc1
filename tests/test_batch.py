"""Rows, labels and batches."""

import dataclasses
import pickle
import re

import pytest
import torch

from mmalign.batch import Batch, Candidate, Conditioning, Labels, PreferenceRow, RowKeys, concatenate
from mmalign.errors import ShapeError


class TestConditioning:
    def test_rows_repeat_what_is_shared_and_keep_what_is_not(self):
        conditioning = Conditioning(
            shared={"text": torch.arange(15.0).reshape(3, 5)},
            per_candidate={"size": torch.arange(12.0).reshape(3, 2, 2)},
        )
        rows = conditioning.rows(2)
        assert rows["text"].shape == (6, 5)
        for row in range(6):
            assert torch.equal(rows["text"][row], conditioning.shared["text"][row // 2])
            assert torch.equal(rows["size"][row], conditioning.per_candidate["size"][row // 2, row % 2])

    def test_another_number_of_candidates_is_refused(self):
        conditioning = Conditioning(per_candidate={"size": torch.ones(3, 2, 5)})
        with pytest.raises(ShapeError, match="conditioning 'size': got 2 candidates, expected 3"):
            conditioning.rows(3)

    def test_nothing_gives_nothing(self):
        assert Conditioning().rows(2) == {}


class TestLabels:
    def test_pairs_are_certain_by_default(self):
        labels = Labels.pairs(3)
        assert labels.probability.tolist() == [1.0, 1.0, 1.0]
        assert labels.desirable is None

    def test_unpaired_labels_have_one_candidate(self):
        labels = Labels.unpaired(torch.tensor([True, False, True]))
        assert labels.desirable.tolist() == [[True], [False], [True]]


class TestRowKeys:
    def test_keys_remember_their_copy_on_the_cpu_wherever_they_go(self):
        keys = RowKeys(key=torch.tensor([5, 2**62]), stratum=torch.tensor([0.0, 0.5]), num_strata=2)
        assert keys.on_host() is keys
        moved = keys.to("meta")
        assert moved.key.device.type == "meta"
        assert moved.on_host() is keys
        assert moved.to("meta").on_host() is keys
        born_there = RowKeys(key=moved.key, stratum=moved.stratum, num_strata=2)
        assert born_there.on_host() is None

    def test_move_keeps_what_decides_the_draws(self):
        keys = RowKeys(key=torch.tensor([5, 2**62]), stratum=torch.tensor([0.0, 0.5]), num_strata=2)
        moved = keys.to("meta")
        assert moved.key.device.type == moved.stratum.device.type == "meta"
        assert moved.num_strata == 2
        assert keys.to("cpu").key.tolist() == [5, 2**62]


class TestBatch:
    def test_counts_come_from_the_clean_data(self):
        batch = Batch(
            clean=torch.zeros(3, 2, 5, 7),
            conditioning=Conditioning(),
            labels=Labels.pairs(3),
            weight=torch.ones(3),
            valid=torch.ones(3, dtype=torch.bool),
            keys=RowKeys(torch.arange(3), torch.zeros(3), 3),
        )
        assert batch.num_prompts == 3
        assert batch.num_candidates == 2


class TestConcatenate:
    @staticmethod
    def batch(prompts, **changes):
        given = {
            "clean": torch.full((prompts, 2, 5), float(prompts)),
            "conditioning": Conditioning({"text": torch.ones(prompts, 7)}),
            "labels": Labels.pairs(prompts),
            "weight": torch.ones(prompts),
            "valid": torch.ones(prompts, dtype=torch.bool),
            "keys": RowKeys(torch.arange(prompts), torch.zeros(prompts), 1),
            "recorded": {"state": torch.zeros(prompts, 2, 5)},
        }
        return Batch(**{**given, **changes})

    def test_prompts_stand_one_after_another(self):
        first, second = self.batch(3, ids=("a", "b", "c")), self.batch(2, ids=("d", "e"))
        joined = concatenate([first, second])
        assert joined.clean[:, 0, 0].tolist() == [3.0, 3.0, 3.0, 2.0, 2.0]
        assert joined.ids == ("a", "b", "c", "d", "e")
        assert joined.keys.key.tolist() == [0, 1, 2, 0, 1]
        assert joined.conditioning.shared["text"].shape == (5, 7)
        assert joined.recorded["state"].shape == (5, 2, 5)
        assert joined.labels.certain

    @pytest.mark.parametrize(
        ("changes", "where", "names"),
        [
            (
                {"recorded": {"state": torch.zeros(2, 2, 5), "advantage": torch.zeros(2, 2)}},
                "recorded",
                "['advantage', 'state']",
            ),
            ({"recorded": {}}, "recorded", "[]"),
            (
                {"conditioning": Conditioning({"text": torch.ones(2, 7), "size": torch.ones(2, 1)})},
                "conditioning.shared",
                "['size', 'text']",
            ),
            (
                {"conditioning": Conditioning({"text": torch.ones(2, 7)}, {"size": torch.ones(2, 2, 1)})},
                "conditioning.per_candidate",
                "['size']",
            ),
        ],
    )
    def test_a_later_batch_with_other_names_is_refused(self, changes, where, names):
        first, second = self.batch(3), self.batch(2, **changes)
        for order in ([first, second], [second, first], [first, first, second]):
            with pytest.raises(ShapeError, match=re.escape(where)) as caught:
                concatenate(order)
            assert names in str(caught.value)

    def test_a_field_of_some_batches_alone_is_refused(self):
        with pytest.raises(ShapeError, match="got reward in some batches only"):
            concatenate([self.batch(3), self.batch(2, reward=torch.zeros(2, 2))])

    def test_ids_of_some_batches_alone_are_refused(self):
        with pytest.raises(ShapeError, match="ids: got 3 of 5, expected one for every prompt or none"):
            concatenate([self.batch(3, ids=("a", "b", "c")), self.batch(2)])

    def test_nothing_to_put_together_is_refused(self):
        with pytest.raises(ShapeError, match="got no batches"):
            concatenate([])


class TestRows:
    def test_cross_processes(self):
        row = PreferenceRow(
            prompt="a red circle",
            candidates=(Candidate(image=b"\x00"), Candidate(image="b.png", reward=0.5)),
            extras={"user": 7},
        )
        assert pickle.loads(pickle.dumps(row)) == row

    def test_cannot_be_changed_after_they_are_read(self):
        row = PreferenceRow(prompt="a", candidates=(Candidate(image="a.png"),))
        with pytest.raises(dataclasses.FrozenInstanceError):
            row.prompt = "b"

    def test_default_is_a_certain_pair_of_full_weight(self):
        row = PreferenceRow(prompt="a", candidates=())
        assert (row.kind, row.preference, row.weight) == ("pairs", 1.0, 1.0)
        assert (row.relevance, row.desirable) == (None, None)

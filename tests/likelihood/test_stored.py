"""Stored reference errors: bit equality with the live reference, the file, refusals."""

import dataclasses

import pytest
import torch
from torch import nn

from mmalign.errors import CheckpointError, ConfigError, ShapeError
from mmalign.files import save_tensors
from mmalign.likelihood import (
    EmaReference,
    FrozenCopy,
    ReferenceTable,
    StoredReference,
    UniformTimesteps,
    make_reference,
    precompute_errors,
)

FACTS = {"model": "tiny", "resolution": "64"}


def denoise_with(network):
    return lambda noised, timestep, conditioning: network(noised)


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(7, 7)


@pytest.fixture
def live(network):
    return FrozenCopy.copy_of(network, denoise_with)


@pytest.fixture
def batches(make_batch):
    """Seven rows in uneven batches, three draws each."""

    def make():
        for draw in range(3):
            for first, rows in ((0, 2), (2, 5)):
                batch = make_batch(rows, 2, (7,), first=first, of=7, draw=draw)
                yield dataclasses.replace(batch, clean=batch.clean.float())

    return make


@pytest.fixture
def table(elbo, live, batches):
    return precompute_errors(live, elbo, batches(), facts=FACTS)


class TestEquality:
    def test_stored_scores_equal_the_live_ones_to_the_bit(self, elbo, live, table, batches, tmp_path):
        read = ReferenceTable.load(table.save(tmp_path / "reference.safetensors"))
        stored = StoredReference(read, elbo, FACTS)
        assert len(read) == 21
        for batch in list(batches())[::-1]:
            drawn = elbo.draw(batch)
            expected = live.evaluate(elbo, batch, drawn)
            found = stored.evaluate(elbo, batch, drawn)
            assert torch.equal(found.error, expected.error)
            assert torch.equal(found.score, expected.score)
            assert found.error.dtype == expected.error.dtype

    def test_rows_in_other_batches_find_their_own_errors(self, elbo, live, table, make_batch):
        """Matrix products round differently at another batch size, so here equality is to rounding."""
        stored = StoredReference(table, elbo, FACTS)
        for draw, first, rows in ((2, 0, 7), (0, 3, 1), (1, 5, 2)):
            batch = make_batch(rows, 2, (7,), first=first, of=7, draw=draw)
            batch = dataclasses.replace(batch, clean=batch.clean.float())
            drawn = elbo.draw(batch)
            torch.testing.assert_close(
                stored.evaluate(elbo, batch, drawn).error, live.evaluate(elbo, batch, drawn).error
            )

    def test_draws_of_a_row_have_their_own_entries(self, table, make_keys):
        errors = [table.find(make_keys(7, draw=draw).key)[0] for draw in range(3)]
        assert not (errors[0] == errors[1]).any()

    def test_order_of_computation_does_not_matter(self, elbo, live, batches, table):
        backwards = precompute_errors(live, elbo, list(batches())[::-1], facts=FACTS)
        assert torch.equal(backwards.key, table.key)
        assert torch.equal(backwards.error, table.error)

    def test_parts_of_two_ranks_merge_into_the_whole(self, elbo, live, batches, table):
        every = list(batches())
        first, second = (precompute_errors(live, elbo, every[rank::2], facts=FACTS) for rank in (0, 1))
        whole = first.merged(second)
        assert torch.equal(whole.key, table.key)
        assert torch.equal(whole.error, table.error)

    def test_interrupted_computation_continues_where_it_stopped(self, elbo, live, batches, table):
        done = precompute_errors(live, elbo, list(batches())[:4], facts=FACTS)
        calls = []

        class Counting:
            kind = "frozen"

            def evaluate(self, likelihood, batch, draw, *, keep_prediction=False):
                calls.append(batch.num_prompts)
                return live.evaluate(likelihood, batch, draw)

            def update(self, step):
                raise AssertionError

        finished = precompute_errors(Counting(), elbo, batches(), facts=FACTS, done=done)
        assert calls == [2, 5]
        assert torch.equal(finished.error, table.error)
        assert len(precompute_errors(Counting(), elbo, batches(), facts=FACTS, done=finished)) == 21
        assert len(calls) == 2

    def test_lookup_needs_no_value_on_the_host(self, elbo, table, make_batch):
        batch = make_batch(3, 2, (7,))
        moved = dataclasses.replace(
            batch, clean=batch.clean.to("meta"), keys=batch.keys.to("meta"), valid=batch.valid.to("meta")
        )
        drawn = elbo.draw(moved)
        assert StoredReference(table, elbo, FACTS).evaluate(elbo, moved, drawn).score.shape == (3, 2)


class TestUnreadableRows:
    def test_are_not_stored(self, elbo, live, make_batch):
        batch = make_batch(3, 2, (7,), valid=torch.tensor([True, False, True]))
        batch = dataclasses.replace(batch, clean=batch.clean.float())
        table = precompute_errors(live, elbo, [batch], facts=FACTS)
        assert len(table) == 2
        assert table.find(batch.keys.key)[1].tolist() == [True, False, True]

    def test_give_a_finite_score_that_counts_nowhere(self, elbo, table, make_batch):
        batch = make_batch(3, 2, (7,), first=6, valid=torch.tensor([True, False, False]))
        found = StoredReference(table, elbo, FACTS).evaluate(elbo, batch, elbo.draw(batch))
        assert torch.isfinite(found.score).all()
        assert (found.score[1:] == 0).all()


class TestRefusals:
    def test_other_facts_are_listed_with_both_values(self, elbo, table):
        with pytest.raises(CheckpointError, match="resolution: stored '64', this run '128'"):
            StoredReference(table, elbo, {**FACTS, "resolution": "128"})
        with pytest.raises(CheckpointError, match="dtype: stored 'nothing', this run 'bf16'"):
            StoredReference(table, elbo, {**FACTS, "dtype": "bf16"})

    def test_another_likelihood_is_refused(self, elbo, table):
        other = dataclasses.replace(elbo, timesteps=UniformTimesteps(low=100))
        with pytest.raises(CheckpointError, match=r"timesteps: stored 'UniformTimesteps.*low=0"):
            StoredReference(table, other, FACTS)

    def test_row_without_an_entry_is_named(self, elbo, table, make_batch):
        batch = make_batch(3, 2, (7,), first=6)
        with pytest.raises(
            CheckpointError, match=r"no stored errors for 2 rows.*first: row-7, row-8.*draws_per_row"
        ):
            StoredReference(table, elbo, FACTS).evaluate(elbo, batch, elbo.draw(batch))

    def test_another_number_of_candidates_is_refused(self, elbo, table, make_batch):
        batch = make_batch(3, 5, (7,))
        with pytest.raises(ShapeError, match=r"5 candidates.*expected 2"):
            StoredReference(table, elbo, FACTS).evaluate(elbo, batch, elbo.draw(batch))

    def test_moving_reference_cannot_be_stored(self, elbo, network, batches):
        moving = EmaReference(network, denoise_with(network), decay=0.5)
        with pytest.raises(ConfigError, match="reference ema"):
            precompute_errors(moving, elbo, batches(), facts=FACTS)

    def test_no_batches_are_refused(self, elbo, live):
        with pytest.raises(ConfigError, match="no batches"):
            precompute_errors(live, elbo, [], facts=FACTS)

    def test_parts_with_other_facts_do_not_merge(self, elbo, live, batches, table):
        other = precompute_errors(live, elbo, batches(), facts={**FACTS, "model": "other"})
        with pytest.raises(CheckpointError, match=r"tables to merge.*model: stored 'tiny', this run 'other'"):
            table.merged(other)

    def test_another_safetensors_file_is_refused(self, tmp_path):
        path = save_tensors(tmp_path / "adapter.safetensors", {"weight": torch.ones(2)})
        with pytest.raises(CheckpointError, match=r"expected stored reference errors"):
            ReferenceTable.load(path)

    def test_missing_and_damaged_files_are_refused(self, table, tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            ReferenceTable.load(tmp_path / "none.safetensors")
        path = table.save(tmp_path / "reference.safetensors")
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(CheckpointError, match="copied completely"):
            ReferenceTable.load(path)

    def test_factory_builds_and_checks_it(self, elbo, table):
        made = make_reference("stored", table=table, facts=FACTS, likelihood=elbo)
        assert made.kind == "stored"
        with pytest.raises(CheckpointError, match="another set-up"):
            make_reference("stored", table=table, facts={}, likelihood=elbo)


def test_repeated_keys_are_stored_once():
    table = ReferenceTable(torch.tensor([5, 3, 5]), torch.tensor([[1.0], [2.0], [1.0]]), FACTS)
    assert table.key.tolist() == [3, 5]
    assert table.error.tolist() == [[2.0], [1.0]]


def test_empty_table_finds_nothing():
    errors, found = ReferenceTable(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2), FACTS).find(
        torch.tensor([1])
    )
    assert found.tolist() == [False]
    assert errors.isnan().all()

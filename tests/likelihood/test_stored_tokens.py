"""Stored log-probabilities: equal to the live reference, keyed by content, resumable, refused where wrong."""

from dataclasses import dataclass, replace

import pytest
import torch
from jaxtyping import Int
from torch import Tensor, nn

from mmalign.errors import CheckpointError, ConfigError, ShapeError
from mmalign.files import save_tensors
from mmalign.likelihood import (
    CONTENT_KEY,
    EmaReference,
    FrozenCopy,
    Reference,
    StoredTokenReference,
    TokenDraw,
    Tokens,
    TokenStates,
    TokenTable,
    content_key,
    make_reference,
    precompute_log_probs,
    token_head,
)
from mmalign.likelihood.stored_tokens import uncovered

FACTS = {"model": "tiny", "precision": "fp32"}
ROWS, CANDIDATES, TOKENS, VOCABULARY = 7, 2, 5, 23


@dataclass(frozen=True)
class Places:
    """The least a language model's context holds."""

    place: Int[Tensor, " scored"]

    def to(self, device):
        return Places(self.place.to(device))


class Network(nn.Module):
    """Scores a token by itself."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 3)
        self.lm_head = nn.Linear(3, VOCABULARY)


def policy_of(network):
    def policy(batch):
        hidden = network.embed(batch.clean.flatten().index_select(0, batch.context.place))
        return TokenStates(hidden, token_head(network.lm_head))

    return policy


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


@pytest.fixture
def live(network):
    return FrozenCopy.copy_of(network, policy_of)


@pytest.fixture
def tokens():
    return Tokens(chunk=2)


@pytest.fixture
def rows(make_batch):
    """`rows(first, stop)`: a batch of these rows; an answer's ids and length depend on its number alone."""

    def answer(number):
        length = 1 + (3 * number) % TOKENS
        ids = torch.zeros(TOKENS, dtype=torch.int64)
        ids[:length] = torch.randint(
            1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(number)
        )
        return ids

    def make(first, stop, **changes):
        numbers = [
            [CANDIDATES * row + candidate for candidate in range(CANDIDATES)] for row in range(first, stop)
        ]
        ids = torch.stack([torch.stack([answer(number) for number in row]) for row in numbers])
        mask = (ids != 0).float()
        return make_batch(
            stop - first,
            CANDIDATES,
            first=first,
            clean=ids,
            element_mask=mask,
            context=Places(mask.flatten().nonzero().flatten()),
            recorded={
                CONTENT_KEY: torch.tensor([[content_key("answer", n) for n in row] for row in numbers])
            },
            **changes,
        )

    return make


@pytest.fixture(params=[True, False], ids=["per_token", "sums"])
def per_token(request):
    return request.param


@pytest.fixture
def table(live, tokens, rows, per_token):
    return precompute_log_probs(live, tokens, [rows(0, 2), rows(2, 7)], facts=FACTS, per_token=per_token)


class TestEquality:
    def test_stored_numbers_equal_the_live_ones_to_the_bit(
        self, live, tokens, table, rows, per_token, tmp_path
    ):
        read = TokenTable.load(table.save(tmp_path / "reference.safetensors"))
        stored = StoredTokenReference(read, tokens, FACTS, per_token=per_token)
        assert len(read) == ROWS * CANDIDATES
        for batch in (rows(2, 7), rows(0, 2)):
            expected = live.evaluate(tokens, batch, TokenDraw())
            found = stored.evaluate(tokens, batch, TokenDraw())
            assert torch.equal(found.score, expected.score)
            assert torch.equal(found.error, expected.error)
            assert found.score.dtype == expected.score.dtype
            assert found.states is None
            if per_token:
                assert torch.equal(found.inner, expected.inner)
                assert torch.equal(found.mask, expected.mask)
            else:
                assert found.inner is None

    def test_answers_are_found_in_other_rows_orders_and_paddings(self, live, tokens, table, rows):
        """Candidates exchanged, two more padding positions, other neighbours."""
        batch = rows(1, 6)
        wider = nn.functional.pad
        mask = wider(batch.element_mask.flip(1), (0, 2))
        moved = replace(
            batch,
            clean=wider(batch.clean.flip(1), (0, 2)),
            element_mask=mask,
            context=Places(mask.flatten().nonzero().flatten()),
            recorded={CONTENT_KEY: batch.recorded[CONTENT_KEY].flip(1)},
        )
        found = StoredTokenReference(table, tokens, FACTS).evaluate(tokens, moved, TokenDraw())
        expected = live.evaluate(tokens, moved, TokenDraw())
        torch.testing.assert_close(found.score, expected.score)
        if found.inner is not None:
            torch.testing.assert_close(found.inner, expected.inner)
            assert not found.inner[mask == 0].any()

    def test_parts_of_two_ranks_merge_into_the_whole(self, live, tokens, rows, table, per_token):
        parts = [
            precompute_log_probs(live, tokens, [batch], facts=FACTS, per_token=per_token)
            for batch in (rows(2, 7), rows(0, 4))
        ]
        whole = parts[0].merged(parts[1])
        assert torch.equal(whole.key, table.key)
        torch.testing.assert_close(whole.total, table.total)
        assert torch.equal(whole.length, table.length)
        if per_token:
            torch.testing.assert_close(whole.token, table.token)

    def test_interrupted_computation_continues_where_it_stopped(self, live, tokens, rows, table, per_token):
        settings = {"facts": FACTS, "per_token": per_token}
        done = precompute_log_probs(live, tokens, [rows(0, 2)], **settings)
        calls = []

        class Counting:
            kind = "frozen"

            def evaluate(self, likelihood, batch, draw, *, keep_prediction=False):
                calls.append(batch.num_prompts)
                return live.evaluate(likelihood, batch, draw)

            def update(self, step):
                raise AssertionError

        finished = precompute_log_probs(Counting(), tokens, [rows(0, 2), rows(2, 7)], done=done, **settings)
        assert calls == [5]
        assert torch.equal(finished.total, table.total)
        assert len(precompute_log_probs(Counting(), tokens, [rows(0, 7)], done=finished, **settings)) == 14
        assert calls == [5]

    def test_lookup_needs_no_value_on_the_host(self, tokens, table, rows):
        batch = rows(0, 3).to("meta")
        found = StoredTokenReference(table, tokens, FACTS).evaluate(tokens, batch, TokenDraw())
        assert found.score.shape == (3, CANDIDATES)


class TestRowsThatCountNowhere:
    def test_unreadable_rows_are_not_stored_and_give_finite_scores(self, live, tokens, rows, per_token):
        batch = rows(0, 3, valid=torch.tensor([True, False, True]))
        table = precompute_log_probs(live, tokens, [batch], facts=FACTS, per_token=per_token)
        assert len(table) == 4
        found = StoredTokenReference(table, tokens, FACTS).evaluate(tokens, batch, TokenDraw())
        assert found.score.isfinite().all()
        assert not found.score[1].any()
        assert found.inner is None or found.inner.isfinite().all()

    def test_answers_without_tokens_need_no_entry(self, tokens, table, rows):
        batch = rows(0, 2)
        mask = batch.element_mask.clone()
        mask[0, 1] = 0.0
        keys = batch.recorded[CONTENT_KEY].clone()
        keys[0, 1] = 5
        padded = replace(batch, element_mask=mask, recorded={CONTENT_KEY: keys})
        assert not uncovered(table, padded).any()
        found = StoredTokenReference(table, tokens, FACTS).evaluate(tokens, padded, TokenDraw())
        assert found.score[0, 1] == 0
        assert found.score[0, 0] != 0

    def test_answers_of_unknown_rows_are_told_apart(self, table, rows):
        changed = rows(5, 7)
        keys = changed.recorded[CONTENT_KEY].clone()
        keys[0, 1] += 1
        assert uncovered(table, replace(changed, recorded={CONTENT_KEY: keys})).tolist() == [
            [False, True],
            [False, False],
        ]
        assert uncovered(None, changed).all()


class TestContentKey:
    def test_is_the_same_everywhere(self):
        assert content_key("model", b"media", torch.tensor([1, 2])) == 6208394313817895813

    def test_depends_on_every_part_and_boundary(self):
        ids = torch.tensor([1, 2, 3])
        keys = {
            content_key(ids),
            content_key(ids[:2]),
            content_key(ids[:2], ids[2:]),
            content_key(ids[2:], ids[:2]),
            content_key("ab", "c"),
            content_key("a", "bc"),
            content_key(b"a", "bc"),
            content_key(),
        }
        assert len(keys) == 8
        assert all(0 <= key < 2**63 for key in keys)
        assert content_key(ids) == content_key(ids.to(torch.int32))

    def test_floating_numbers_are_refused(self):
        with pytest.raises(ConfigError, match="expected token ids or digests"):
            content_key(torch.ones(2))


class TestRefusals:
    def test_other_facts_are_listed_with_both_values(self, tokens, table):
        with pytest.raises(
            CheckpointError, match=r"stored reference log-probabilities.*model: stored 'tiny', this run 'big'"
        ):
            StoredTokenReference(table, tokens, {**FACTS, "model": "big"})

    def test_row_without_an_entry_is_named(self, tokens, table, rows):
        batch = rows(5, 8)
        with pytest.raises(
            CheckpointError, match=r"for 2 answers of this batch, first rows: row-7 \(14 entries"
        ):
            StoredTokenReference(table, tokens, FACTS).evaluate(tokens, batch, TokenDraw())

    def test_answer_of_another_length_is_not_found(self, tokens, table, rows):
        batch = rows(1, 2)
        shorter, longer = batch.element_mask.clone(), batch.element_mask.clone()
        shorter[0, 0, 1], longer[0, 0, 2] = 0.0, 1.0
        for mask in (shorter, longer):
            assert not torch.equal(mask, batch.element_mask)
            assert uncovered(table, replace(batch, element_mask=mask)).tolist() == [[True, False]]

    def test_sums_do_not_serve_methods_that_look_inside(self, live, tokens, rows):
        table = precompute_log_probs(live, tokens, [rows(0, 2)], facts=FACTS)
        with pytest.raises(CheckpointError, match="per_token=True"):
            StoredTokenReference(table, tokens, FACTS, per_token=True)
        with pytest.raises(CheckpointError, match="ask for the same"):
            precompute_log_probs(live, tokens, [rows(0, 2)], facts=FACTS, per_token=True, done=table)
        other = precompute_log_probs(live, tokens, [rows(0, 2)], facts=FACTS, per_token=True)
        with pytest.raises(CheckpointError, match="expected two of a kind"):
            table.merged(other)

    def test_moving_reference_and_other_likelihoods_cannot_be_stored(self, tokens, network, rows, live, elbo):
        moving = EmaReference(network, policy_of(network), decay=0.5)
        with pytest.raises(ConfigError, match="reference ema"):
            precompute_log_probs(moving, tokens, [rows(0, 2)], facts=FACTS)
        with pytest.raises(ConfigError, match="no answers"):
            precompute_log_probs(live, tokens, [], facts=FACTS)

        class Other(Tokens):
            def evaluate(self, policy, batch, draw, *, keep_prediction=False):
                whole = super().evaluate(policy, batch, draw)
                return replace(whole, inner=None)

        with pytest.raises(ConfigError, match="gives no numbers per token"):
            precompute_log_probs(live, Other(), [rows(0, 2)], facts=FACTS)

    def test_batches_without_keys_are_refused(self, live, tokens, rows):
        batch = replace(rows(0, 2), recorded={})
        with pytest.raises(ConfigError, match=r"Batch.recorded\['content_key'\].*got 'nothing'"):
            precompute_log_probs(live, tokens, [batch], facts=FACTS)

    def test_parts_with_other_facts_do_not_merge(self, live, tokens, rows, table, per_token):
        other = precompute_log_probs(
            live, tokens, [rows(0, 2)], facts={**FACTS, "model": "big"}, per_token=per_token
        )
        with pytest.raises(CheckpointError, match=r"tables to merge.*model: stored 'tiny', this run 'big'"):
            table.merged(other)

    def test_another_file_and_broken_parts_are_refused(self, tmp_path):
        path = save_tensors(tmp_path / "adapter.safetensors", {"weight": torch.ones(2)})
        with pytest.raises(CheckpointError, match="made by precompute_log_probs"):
            TokenTable.load(path)
        two = torch.tensor([1, 2])
        with pytest.raises(ShapeError, match=r"TokenTable token: got \[2\], expected \[3\]"):
            TokenTable(two, torch.zeros(2), two, FACTS, torch.zeros(2))

    def test_factory_builds_and_checks_it(self, tokens, table):
        made = make_reference("stored", table=table, facts=FACTS, likelihood=tokens)
        assert isinstance(made, Reference)
        assert made.kind == "stored"
        with pytest.raises(CheckpointError, match="another set-up"):
            make_reference("stored", table=table, facts={}, likelihood=tokens)


def test_repeated_keys_are_stored_once_with_their_own_tokens():
    table = TokenTable(
        torch.tensor([5, 3, 5]),
        torch.tensor([-1.0, -5.0, -1.0]),
        torch.tensor([1, 2, 1]),
        FACTS,
        torch.tensor([-1.0, -2.0, -3.0, -1.0]),
    )
    assert table.key.tolist() == [3, 5]
    assert table.total.tolist() == [-5.0, -1.0]
    assert table.token.tolist() == [-2.0, -3.0, -1.0]


@pytest.mark.parametrize("token", [None, torch.zeros(0)])
def test_empty_table_finds_nothing(token):
    nothing = torch.zeros(0, dtype=torch.int64)
    found = TokenTable(nothing, torch.zeros(0), nothing, FACTS, token).find(
        torch.tensor([[1]]), torch.ones(1, 1, 3)
    )
    assert not found.found.any()
    assert found.total.isnan().all()
    assert (found.inner is None) == (token is None)

"""The token likelihood on a tiny language model: sums, masks, gradients, and every kind of reference."""

import copy
from dataclasses import dataclass

import peft
import pytest
import torch
from jaxtyping import Int
from torch import Tensor, nn

from mmalign.batch import BatchContext
from mmalign.errors import ConfigError, ShapeError
from mmalign.likelihood import (
    AdaptersOff,
    EmaReference,
    FrozenCopy,
    Likelihood,
    NoReference,
    Reference,
    SnapshotPool,
    SyncedReference,
    SyncRule,
    TokenDraw,
    TokenHead,
    TokenPolicy,
    Tokens,
    TokenStates,
    head_statistics,
    make_reference,
    scatter_scored,
    token_head,
)
from mmalign.objectives import Scores

PROMPTS, CANDIDATES, TOKENS, VOCABULARY = 3, 2, 5, 23
LENGTHS = ((5, 2), (1, 3), (4, 0))


@dataclass(frozen=True)
class Places:
    """The least a language model's context holds."""

    place: Int[Tensor, " scored"]

    def to(self, device):
        return Places(self.place.to(device))


class Network(nn.Module):
    """Predicts a token from the one before it in its answer; the first from the number 0."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 7, dtype=torch.float64)
        self.body = nn.Linear(7, 7, dtype=torch.float64)
        self.lm_head = nn.Linear(7, VOCABULARY, dtype=torch.float64)

    def forward(self, ids):
        before = torch.cat([torch.zeros_like(ids[..., :1]), ids[..., :-1]], dim=-1)
        return torch.tanh(self.body(self.embed(before)))


def policy_of(network):
    def policy(batch):
        hidden = network(batch.clean).flatten(0, 2)
        return TokenStates(hidden.index_select(0, batch.context.place), token_head(network.lm_head))

    return policy


def adapted(network):
    config = peft.LoraConfig(r=3, target_modules=["body"], init_lora_weights=False)
    return peft.inject_adapter_in_model(config, network, adapter_name="default").double()


def move(network, by=0.1):
    """Change every trained weight, as an optimiser would."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += by


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


@pytest.fixture
def batch(make_batch):
    lengths = torch.tensor(LENGTHS)
    mask = (torch.arange(TOKENS) < lengths.unsqueeze(-1)).double()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (PROMPTS, CANDIDATES, TOKENS), generator=generator) * mask.long()
    context = Places(mask.flatten().nonzero().flatten())
    return make_batch(PROMPTS, CANDIDATES, (TOKENS,), clean=ids, element_mask=mask, context=context)


@pytest.fixture
def tokens():
    return Tokens(chunk=2)


def expected_inner(network, batch):
    logits = network.lm_head(network(batch.clean))
    return logits.log_softmax(-1).gather(-1, batch.clean.unsqueeze(-1)).squeeze(-1) * batch.element_mask


class TestScores:
    def test_are_sums_of_the_log_probabilities_of_answer_tokens(self, tokens, network, batch):
        found = tokens.evaluate(policy_of(network), batch, tokens.draw(batch))
        inner = expected_inner(network, batch)
        torch.testing.assert_close(found.inner, inner, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.score, inner.sum(-1), rtol=1e-12, atol=1e-12)
        assert torch.equal(found.error, -found.score)
        assert torch.equal(found.mask, batch.element_mask)
        assert found.states is None
        assert found.prediction is None

    def test_answer_without_tokens_scores_zero(self, tokens, network, batch):
        assert tokens.evaluate(policy_of(network), batch, tokens.draw(batch)).score[2, 1] == 0

    def test_gradients_reach_every_weight_as_through_full_logits(self, tokens, network, batch):
        score = tokens.evaluate(policy_of(network), batch, tokens.draw(batch)).score
        weights = torch.tensor([[1.0, -2.0], [3.0, 5.0], [-7.0, 11.0]], dtype=torch.float64)
        found = torch.autograd.grad((score * weights).sum(), list(network.parameters()))
        whole = (expected_inner(network, batch).sum(-1) * weights).sum()
        for one, other in zip(found, torch.autograd.grad(whole, list(network.parameters())), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)

    def test_fit_the_scores_of_objectives(self, tokens, network, batch):
        found = tokens.evaluate(policy_of(network), batch, tokens.draw(batch))
        scores = Scores(policy=found.inner, reference=found.inner, mask=found.mask, likelihood=tokens.kind)
        assert scores.num_candidates == CANDIDATES

    def test_kept_states_give_statistics_at_their_places(self, tokens, network, batch):
        found = tokens.evaluate(policy_of(network), batch, tokens.draw(batch), keep_prediction=True)
        values = head_statistics(found.states, found.states, wants=("kl", "normalised_entropy"))
        entropy = scatter_scored(batch, values["normalised_entropy"])
        assert torch.equal(entropy != 0, batch.element_mask != 0)
        assert not values["kl"].any()

    def test_whole_evaluation_runs_on_a_device_without_values(self, tokens, batch):
        """Anything that waits for a value raises there."""
        moved, weight = batch.to("meta"), torch.empty(VOCABULARY, 7, device="meta", requires_grad=True)

        def policy(given):
            return TokenStates(weight.new_ones(given.context.place.shape[0], 7), TokenHead(weight))

        found = tokens.evaluate(policy, moved, tokens.draw(moved), keep_prediction=True)
        assert found.inner.shape == batch.clean.shape
        values = head_statistics(found.states, found.states, wants=("kl", "normalised_entropy"))
        (found.score.sum() + scatter_scored(moved, values["kl"]).sum()).backward()
        assert weight.grad.shape == weight.shape

    def test_protocols_hold(self, tokens, network, batch):
        assert isinstance(tokens, Likelihood)
        assert isinstance(policy_of(network), TokenPolicy)
        assert isinstance(batch.context, BatchContext)
        assert tokens.schedule is None
        assert tokens.draw(batch) == TokenDraw()
        assert Tokens(chunk=3).describe() == Tokens().describe()


class TestReferences:
    def test_adapters_off_is_the_base_to_the_bit(self, tokens, network, batch):
        base = copy.deepcopy(network)
        model = adapted(network)
        reference = make_reference("adapters_off", network=model, make_denoise=policy_of)
        found = reference.evaluate(tokens, batch, tokens.draw(batch), keep_prediction=True)
        live = tokens.evaluate(policy_of(model), batch, tokens.draw(batch))
        assert torch.equal(found.inner, tokens.evaluate(policy_of(base), batch, TokenDraw()).inner)
        assert not torch.equal(found.inner, live.inner)
        assert not found.score.requires_grad
        assert not found.states.hidden.requires_grad
        assert live.score.requires_grad
        assert isinstance(reference, AdaptersOff)

    @pytest.mark.parametrize("offload", [False, True])
    def test_frozen_copy_stays(self, tokens, network, batch, offload):
        reference = make_reference("frozen", network=network, make_denoise=policy_of, offload=offload)
        before = tokens.evaluate(policy_of(network), batch, TokenDraw()).inner
        move(network)
        assert torch.equal(reference.evaluate(tokens, batch, TokenDraw()).inner, before)
        assert not torch.equal(tokens.evaluate(policy_of(network), batch, TokenDraw()).inner, before)
        assert isinstance(reference, FrozenCopy)

    @pytest.mark.parametrize(
        ("kind", "settings"),
        [("ema", {"decay": 0.5}), ("synced", {"rule": SyncRule(every=1, mixing=0.5)})],
    )
    def test_moving_reference_follows_half_way(self, tokens, network, batch, kind, settings):
        reference = make_reference(kind, network=network, make_denoise=policy_of, **settings)
        halfway = copy.deepcopy(network)
        move(network, 0.2)
        reference.update(1)
        move(halfway, 0.1)
        found = reference.evaluate(tokens, batch, TokenDraw()).inner
        expected = tokens.evaluate(policy_of(halfway), batch, TokenDraw()).inner
        torch.testing.assert_close(found, expected)
        assert isinstance(reference, EmaReference | SyncedReference)

    def test_live_graph_survives_a_reference_that_swaps_weights(self, tokens, network, batch):
        """The head is kept for the backward pass; other weights may stand in its place in between."""
        reference = EmaReference(network, policy_of(network), decay=1.0)
        move(network)
        score = tokens.evaluate(policy_of(network), batch, TokenDraw()).score.sum()
        expected = torch.autograd.grad(score, network.body.weight, retain_graph=True)[0]
        reference.evaluate(tokens, batch, TokenDraw())
        assert torch.equal(torch.autograd.grad(score, network.body.weight)[0], expected)

    def test_no_reference_and_snapshots_work_too(self, tokens, network, batch):
        assert NoReference().evaluate(tokens, batch, TokenDraw()) is None
        pool = SnapshotPool(network, policy_of(network), every=1, capacity=2, seed=0)
        before = tokens.evaluate(policy_of(network), batch, TokenDraw()).inner
        move(network)
        assert torch.equal(pool.evaluate(tokens, batch, TokenDraw()).inner, before)
        assert isinstance(pool, Reference)


class TestRefusals:
    def test_batches_of_images_are_refused(self, tokens, network, batch, make_batch):
        with pytest.raises(ConfigError, match="a batch without context"):
            tokens.evaluate(policy_of(network), make_batch(), TokenDraw())
        images = make_batch(PROMPTS, CANDIDATES, (TOKENS,), context=batch.context)
        with pytest.raises(ConfigError, match=r"float64 of shape \[3, 2, 5\], mask False"):
            tokens.evaluate(policy_of(network), images, TokenDraw())

    def test_places_that_do_not_cover_the_mask_are_refused(self, tokens, network, batch):
        wrong = copy.copy(batch)
        object.__setattr__(wrong, "context", Places(batch.context.place[1:]))
        with pytest.raises(ShapeError, match=r"got '14 places', expected the 15 positions"):
            tokens.evaluate(policy_of(network), wrong, TokenDraw())
        object.__setattr__(
            wrong, "context", Places(batch.context.place.roll(1).index_fill(0, torch.tensor([0]), 0))
        )
        with pytest.raises(ShapeError, match="each once"):
            tokens.evaluate(policy_of(network), wrong, TokenDraw())

    def test_network_that_scores_other_positions_is_refused(self, tokens, network, batch):
        def policy(given):
            states = policy_of(network)(given)
            return TokenStates(states.hidden[1:], states.head)

        with pytest.raises(ShapeError, match=r"14 positions.*expected 15, one per scored token"):
            tokens.evaluate(policy, batch, TokenDraw())
        with pytest.raises(ShapeError, match=r"numbers of scored tokens: got \[2\], expected \[15\]"):
            scatter_scored(batch, torch.zeros(2))

    def test_chunk_of_nothing_is_refused(self):
        with pytest.raises(ConfigError, match="Tokens chunk: got 0"):
            Tokens(chunk=0)

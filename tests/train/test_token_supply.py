"""What a step of a language model hands to its objective, held against full logits."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmalign.batch import Labels
from mmalign.errors import ShapeError
from mmalign.likelihood import Evaluation, TokenDraw
from mmalign.likelihood.reference import make_reference
from mmalign.likelihood.tokens import Tokens
from mmalign.methods.row import View
from mmalign.testing.vlm_dialogues import batch_of, dialogue, load_vlm, with_adapter
from mmalign.train.supply import StepFacts
from mmalign.train.token_supply import TokenSupply

VIEWS = (View(0), View(1, "blank", "imageless_score"), View(0, "blank", "imageless_score"))


@pytest.fixture(scope="module")
def facts(tiny_vlm_folder: Callable[[str], Path]) -> StepFacts:
    """Two pairs, each with a candidate under another image and two scores of answers under a blank one."""
    model = load_vlm("llava", tiny_vlm_folder("llava"), views=VIEWS)
    batch = batch_of(model, [dialogue(1), dialogue(2, answers=("Yes.", "A blue one, I think."))])
    frozen = make_reference("frozen", network=model.network, make_denoise=model.policy)
    with_adapter(model)
    likelihood = Tokens()
    return StepFacts(
        batch,
        TokenDraw(),
        likelihood.evaluate(model.policy(model.network), batch, TokenDraw(), keep_prediction=True),
        frozen.evaluate(likelihood, batch, TokenDraw(), keep_prediction=True),
        None,
    )


def only(facts: StepFacts, *names: str, **more):
    return TokenSupply(frozenset(names), VIEWS, **more).scores(facts, "tokens")


def log_probs(evaluation: Evaluation | None) -> Tensor:
    assert evaluation is not None
    assert evaluation.states is not None
    states = evaluation.states
    return (states.hidden @ states.head.weight.T).log_softmax(-1).detach()


def spread(facts: StepFacts, values: Tensor) -> Tensor:
    """Numbers of scored tokens at their places."""
    found = torch.zeros(facts.batch.clean.numel(), dtype=values.dtype)
    found[facts.batch.context.place] = values  # type: ignore[union-attr]
    return found.view(facts.batch.clean.shape)


def test_scores_are_log_probabilities_of_the_compared_answers_tokens(facts) -> None:
    scores = only(facts, "length")
    assert facts.batch.num_candidates == 5
    assert scores.policy.shape[:2] == (2, 3)
    assert scores.likelihood == "tokens"
    assert torch.equal(scores.policy, facts.policy.inner[:, :3])
    assert torch.equal(scores.reference, facts.reference.inner[:, :3])
    assert torch.equal(scores.mask, facts.batch.element_mask[:, :3])
    assert torch.equal(scores.length, scores.mask.sum(-1))
    assert only(facts).length is None


def test_a_view_that_becomes_an_input_is_taken_out_and_one_that_becomes_a_candidate_stays(facts) -> None:
    scores = only(facts)
    # In the order of the views: first the rejected answer, then the chosen one.
    assert torch.equal(scores.extras["imageless_score"], facts.policy.inner.detach()[:, [3, 4]])
    assert not scores.extras["imageless_score"].requires_grad
    assert not torch.equal(scores.policy[:, 2], scores.policy[:, 0])


def test_the_divergence_is_that_of_the_full_distributions(facts) -> None:
    policy, reference = log_probs(facts.policy), log_probs(facts.reference)
    expected = spread(facts, (reference.exp() * (reference - policy)).sum(-1))[:, :3]
    scores = only(facts, "kl", chunk=3)
    torch.testing.assert_close(scores.kl.detach(), expected, rtol=1e-5, atol=1e-7)
    assert scores.kl.requires_grad
    assert only(facts).kl is None


def test_the_confidence_of_the_policy_is_the_sum_of_squares_of_its_distribution(facts) -> None:
    expected = spread(facts, log_probs(facts.policy).exp().square().sum(-1).log())[:, :3]
    found = only(facts, "log_sum_squares", chunk=5).extras["log_sum_squares"]
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-7)


def test_the_reference_s_entropy_is_the_mean_over_the_row_s_tokens(facts) -> None:
    reference = log_probs(facts.reference)
    entropy = -(reference.exp() * reference).sum(-1) / torch.tensor(float(reference.shape[1])).log()
    mask = facts.batch.element_mask
    expected = (spread(facts, entropy) * mask).sum((1, 2)) / mask.sum((1, 2))
    found = only(facts, "reference_entropy", chunk=2).extras["reference_entropy"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_states_are_kept_only_where_something_is_made_of_them(facts) -> None:
    assert TokenSupply(frozenset({"kl", "severity"})).needs_prediction
    assert not TokenSupply(frozenset({"severity", "reference"})).needs_prediction
    blind = dataclasses.replace(facts, reference=dataclasses.replace(facts.reference, states=None))
    with pytest.raises(ShapeError, match="'kl': got an evaluation without its hidden states"):
        only(blind, "kl")


def test_numbers_of_the_data_arrive_for_the_compared_candidates_and_missing_ones_are_named(facts) -> None:
    recorded = {"severity": torch.arange(10.0).view(2, 5), "pair_weight": torch.ones(2, 5) * 0.5}
    with_numbers = dataclasses.replace(facts, batch=dataclasses.replace(facts.batch, recorded=recorded))
    extras = only(with_numbers, "severity", "pair_weight").extras
    assert extras["severity"].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert extras["pair_weight"].tolist() == [0.5, 0.5]
    with pytest.raises(ShapeError, match=r"extras 'phrase': got records .*severity.*, expected 'phrase'"):
        only(with_numbers, "phrase")


def test_scores_without_tokens_are_refused(facts) -> None:
    blunt = dataclasses.replace(facts, policy=dataclasses.replace(facts.policy, inner=None))
    with pytest.raises(ShapeError, match="gave no log-probabilities of tokens"):
        only(blunt)
    unmasked = dataclasses.replace(facts, batch=dataclasses.replace(facts.batch, element_mask=None))
    with pytest.raises(ShapeError, match=r"Batch.element_mask: got none"):
        only(unmasked)


def test_labels_are_those_of_the_compared_candidates(facts) -> None:
    supply = TokenSupply(frozenset(), VIEWS)
    assert supply.labels(facts.batch).certain
    valid = torch.tensor([[True] * 5, [False] * 5])
    labels = supply.labels(dataclasses.replace(facts.batch, labels=Labels(torch.ones(2), valid=valid)))
    assert labels.valid.tolist() == [[True] * 3, [False] * 3]

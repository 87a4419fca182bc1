"""The model's own answers: argmax by tiles, and what is scored where a view becomes the model's own."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError
from mmalign.likelihood import TokenHead, Tokens, TokenStates, head_argmax
from mmalign.methods.row import View

ROWS, LENGTH, FEATURES, VOCABULARY = 2, 5, 7, 11
OWN_VIEWS = (View(1, becomes="blind"), View(0, becomes="own"))
ANSWER_LENGTHS = ((5, 2), (1, 3))


@dataclass(frozen=True)
class Places:
    """The least a language model's context holds."""

    place: Int[Tensor, " scored"]

    def to(self, device: torch.device | str) -> "Places":
        return Places(self.place.to(device))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def head() -> TokenHead:
    return TokenHead(drawn(VOCABULARY, FEATURES), drawn(VOCABULARY, seed=1), softcap=3.0, scale=-0.5)


@pytest.fixture
def hidden() -> Tensor:
    """One state per row, candidate and position: chosen, rejected, and the two views of them."""
    return drawn(ROWS, 4, LENGTH, FEATURES, seed=2).requires_grad_()


def make(make_batch, lengths: Tensor):
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(-1)).double()
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (ROWS, 4, LENGTH), generator=generator) * mask.long()
    place = mask.flatten().nonzero().flatten()
    return make_batch(ROWS, 4, (LENGTH,), clean=ids, element_mask=mask, context=Places(place))


@pytest.fixture
def batch(make_batch):
    lengths = torch.tensor([[first, second, second, first] for first, second in ANSWER_LENGTHS])
    return make(make_batch, lengths)


def policy_of(hidden: Tensor, head: TokenHead):
    return lambda batch: TokenStates(hidden.flatten(0, 2).index_select(0, batch.context.place), head)


def logits_of(hidden: Tensor, head: TokenHead) -> Tensor:
    return 3.0 * torch.tanh(-0.5 * (hidden @ head.weight.T + head.bias) / 3.0)


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_the_likeliest_token_is_that_of_whole_logits(head: TokenHead, hidden: Tensor, chunk) -> None:
    rows = hidden.flatten(0, 2)
    found = head_argmax(rows, head, chunk=chunk)
    assert torch.equal(found, logits_of(rows, head).argmax(-1))
    assert not found.is_floating_point()


def test_a_chunk_of_nothing_is_refused(head: TokenHead, hidden: Tensor) -> None:
    with pytest.raises(ConfigError, match="head_argmax chunk: got 0, expected a number of tokens >= 1"):
        head_argmax(hidden.flatten(0, 2), head, chunk=0)


def test_own_tokens_come_from_the_views_states_and_are_scored_at_the_answers(
    batch, head: TokenHead, hidden: Tensor
) -> None:
    likelihood = Tokens(chunk=3, views=OWN_VIEWS)
    found = likelihood.evaluate(policy_of(hidden, head), batch, likelihood.draw(batch))
    own = logits_of(hidden[:, 3], head).argmax(-1)
    expected = logits_of(hidden[:, 0], head).log_softmax(-1).gather(-1, own.unsqueeze(-1)).squeeze(-1)
    expected = expected * batch.element_mask[:, 0]
    torch.testing.assert_close(found.inner[:, 3], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.score[:, 3], expected.sum(-1), rtol=1e-12, atol=1e-12)
    plain = Tokens(chunk=3).evaluate(policy_of(hidden, head), batch, likelihood.draw(batch))
    assert torch.equal(found.inner[:, :3], plain.inner[:, :3])
    assert not torch.allclose(found.inner[:, 3], plain.inner[:, 3])


def test_no_gradient_reaches_the_states_under_the_spoilt_image(
    batch, head: TokenHead, hidden: Tensor
) -> None:
    likelihood = Tokens(views=OWN_VIEWS)
    found = likelihood.evaluate(policy_of(hidden, head), batch, likelihood.draw(batch))
    (gradient,) = torch.autograd.grad(found.score[:, 3].sum(), hidden)
    assert torch.count_nonzero(gradient[:, 1:]) == 0
    assert torch.count_nonzero(gradient[:, 0].abs().sum(-1)) == sum(first for first, _ in ANSWER_LENGTHS)


def test_kept_states_are_those_that_were_scored(batch, head: TokenHead, hidden: Tensor) -> None:
    likelihood = Tokens(views=OWN_VIEWS)
    found = likelihood.evaluate(policy_of(hidden, head), batch, likelihood.draw(batch), keep_prediction=True)
    candidate = batch.context.place // LENGTH % 4
    kept = found.states.hidden
    assert torch.equal(kept[candidate == 3], kept[candidate == 0])


@pytest.mark.parametrize("lengths", [(4, 1), (5, 3), (4, 2)])
def test_an_answer_that_was_cut_under_one_of_its_images_is_refused(
    make_batch, head: TokenHead, hidden: Tensor, lengths: tuple[int, int]
) -> None:
    """Shorter, longer in another row, or both: all lose the correspondence of positions."""
    own = zip(ANSWER_LENGTHS, lengths, strict=True)
    batch = make(make_batch, torch.tensor([[first, second, second, cut] for (first, second), cut in own]))
    likelihood = Tokens(views=OWN_VIEWS)
    with pytest.raises(ShapeError, match=r"spoilt image: got 'other tokens than candidate 0 .*max_length"):
        likelihood.evaluate(policy_of(hidden, head), batch, likelihood.draw(batch))


def test_a_likelihood_with_own_answers_describes_itself_otherwise() -> None:
    assert Tokens(views=OWN_VIEWS).describe() != Tokens().describe()
    assert Tokens(views=(View(0),)).describe() == Tokens().describe()

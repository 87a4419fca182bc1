"""The divergence of two readings: its definition, its bounds, its tiles."""

import math

import pytest
import torch
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError
from mmalign.likelihood import TokenHead, TokenStates
from mmalign.likelihood.head_divergence import head_jensen_shannon

POSITIONS, FEATURES, VOCABULARY = 5, 3, 11


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def head() -> TokenHead:
    return TokenHead(drawn(VOCABULARY, FEATURES), drawn(VOCABULARY, seed=1), softcap=3.0, scale=-0.5)


def straight(first: Tensor, second: Tensor) -> float:
    """Of two rows of probabilities, term by term."""
    total = 0.0
    for p, q in zip(first.tolist(), second.tolist(), strict=True):
        mean = (p + q) / 2
        total += sum(share * math.log(share / mean) for share in (p, q) if share) / 2
    return total


@pytest.mark.parametrize("chunk", [None, 2])
def test_it_is_the_mean_divergence_from_the_mixture(head: TokenHead, chunk: int | None) -> None:
    first, second = (drawn(POSITIONS, FEATURES, seed=seed) for seed in (2, 3))
    found = head_jensen_shannon(TokenStates(first, head), TokenStates(second, head), chunk=chunk)
    shares = [
        (3.0 * torch.tanh(-0.5 * (side @ head.weight.T + head.bias) / 3.0)).softmax(-1)
        for side in (first, second)
    ]
    wanted = [straight(p, q) for p, q in zip(*shares, strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)
    turned = head_jensen_shannon(TokenStates(second, head), TokenStates(first, head), chunk=chunk)
    torch.testing.assert_close(turned, found)


def test_equal_readings_have_none_and_certain_opposites_log_two() -> None:
    head = TokenHead(torch.eye(2, dtype=torch.float64))
    one, other = (torch.tensor([row], dtype=torch.float64) for row in ((800.0, 0.0), (0.0, 800.0)))
    assert head_jensen_shannon(TokenStates(one, head), TokenStates(one, head)).tolist() == [0.0]
    found = head_jensen_shannon(TokenStates(one, head), TokenStates(other, head))
    assert found.tolist() == pytest.approx([math.log(2)])


def test_no_gradient_flows(head: TokenHead) -> None:
    states = drawn(POSITIONS, FEATURES).requires_grad_()
    assert not head_jensen_shannon(TokenStates(states, head), TokenStates(states, head)).requires_grad


def test_other_positions_and_chunks_of_nothing_are_refused(head: TokenHead) -> None:
    states = [TokenStates(drawn(number, FEATURES), head) for number in (POSITIONS, 2)]
    with pytest.raises(ShapeError, match="2 positions over 11 tokens"):
        head_jensen_shannon(*states)
    with pytest.raises(ConfigError, match="chunk"):
        head_jensen_shannon(states[0], states[0], chunk=0)

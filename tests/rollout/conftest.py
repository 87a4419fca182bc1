"""A network small enough to follow, and keys."""

import pytest
import torch

from mmalign.seeding import derive_seed


@pytest.fixture
def make_keys():
    """`make_keys(rows, first)`: keys of rows first, first + 1, ..."""

    def make(rows, first=0):
        return torch.tensor([derive_seed(0, "row", number) for number in range(first, first + rows)])

    return make


@pytest.fixture
def network():
    """Smooth in the sample, the time and the prompt; counts its rows in `network.calls`."""

    def answer(noised, time, conditioning):
        answer.calls.append(noised.shape[0])
        level = (time.to(noised.dtype) / 1000).reshape(-1, *(1,) * (noised.ndim - 1))
        text = conditioning["text"].to(noised.dtype).reshape(level.shape)
        return torch.tanh(0.7 * noised + level) + 0.3 * text * noised.cos()

    answer.calls = []
    return answer

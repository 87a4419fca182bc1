"""Batches with prime axis sizes, and networks small enough to work out by hand."""

import pytest
import torch

from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.likelihood import Elbo, Inversion, UniformTimesteps
from mmalign.seeding import derive_seed


@pytest.fixture
def elbo(vp):
    return Elbo(vp, "epsilon", UniformTimesteps())


@pytest.fixture
def inversion(vp):
    """`inversion(**settings)`: on Stable Diffusion's schedule, for a network that predicts the noise."""
    return lambda **settings: Inversion(vp, "epsilon", UniformTimesteps(), **settings)


@pytest.fixture
def make_keys():
    """`make_keys(rows, first, of)`: keys of rows first, first + 1, ... of an optimiser step of `of` rows."""

    def make(rows, first=0, of=None, draw=0):
        total = of or rows
        numbers = range(first, first + rows)
        key = torch.tensor([derive_seed(0, "row", number, draw) for number in numbers], dtype=torch.int64)
        return RowKeys(
            key=key, stratum=torch.tensor([number / total for number in numbers]), num_strata=total
        )

    return make


@pytest.fixture
def make_batch(make_keys):
    """`make_batch(prompts, candidates, event)`: clean data decided by the row number."""

    def make(
        prompts=3, candidates=2, event=(5, 7), *, first=0, of=None, draw=0, dtype=torch.float64, **changes
    ):
        rows = [
            torch.randn(
                candidates, *event, generator=torch.Generator().manual_seed(number), dtype=torch.float64
            )
            for number in range(first, first + prompts)
        ]
        given = {
            "clean": torch.stack(rows).to(dtype),
            "conditioning": Conditioning(),
            "labels": Labels.pairs(prompts),
            "weight": torch.ones(prompts),
            "valid": torch.ones(prompts, dtype=torch.bool),
            "keys": make_keys(prompts, first, of, draw),
            "ids": tuple(f"row-{number}" for number in range(first, first + prompts)),
        }
        return Batch(**{**given, **changes})

    return make

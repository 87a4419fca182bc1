"""Diversity of the samples of a prompt."""

import json
import math

import pytest
import torch

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.diversity import diversity, prompt_diversity


def test_samples_at_right_angles_are_all_different_and_equal_ones_are_one():
    apart = prompt_diversity(torch.eye(5))
    assert (apart.distance, apart.vendi, apart.vendi_2) == pytest.approx((1.0, 5.0, 5.0))
    same = prompt_diversity(torch.ones(5, 3))
    assert (same.distance, same.largest_cosine) == pytest.approx((0.0, 1.0))
    assert (same.vendi, same.vendi_2) == pytest.approx((1.0, 1.0))


def test_two_groups_of_equal_samples_count_as_two():
    found = prompt_diversity(torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 2.0]] * 3))
    assert (found.vendi, found.vendi_2) == pytest.approx((2.0, 2.0))
    assert found.distance == pytest.approx(9 / 15)  # nine of fifteen pairs differ
    assert sum(found.eigenvalues) == pytest.approx(1.0)


def test_length_and_order_of_embeddings_change_nothing(draw):
    value = draw(7, 5)
    found = prompt_diversity(value)
    again = prompt_diversity(3.0 * value.flip(0))
    assert (again.vendi, again.vendi_2, again.distance) == pytest.approx(
        (found.vendi, found.vendi_2, found.distance)
    )
    assert 1.0 < found.vendi_2 < found.vendi < 7.0


def test_prompts_are_averaged_and_those_with_too_few_samples_counted():
    found = diversity([torch.eye(3), torch.ones(3, 3), torch.ones(1, 3)])
    assert (found.distance.value, found.vendi.value) == pytest.approx((0.5, 2.0))
    assert (found.num_prompts, found.failed_prompts, found.samples) == (2, 1, 3)
    assert found.per_prompt[2] is None
    assert "over 2 prompts of 3 samples, 1 failed" in str(found)
    assert json.dumps(found.as_dict(), allow_nan=False)
    assert diversity([torch.eye(3), torch.eye(2)]).samples is None


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: prompt_diversity(torch.ones(1, 3)), ShapeError, "at least 2 samples"),
        (lambda: prompt_diversity(torch.zeros(2, 3)), ConfigError, "an embedding of length 0"),
        (
            lambda: prompt_diversity(torch.tensor([[1.0], [math.nan]])),
            ConfigError,
            "1 of 2 embeddings with inf or NaN",
        ),
        (lambda: diversity([torch.ones(1, 3)]), ConfigError, "1 prompts, none with two samples"),
    ],
)
def test_impossible_sets_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()

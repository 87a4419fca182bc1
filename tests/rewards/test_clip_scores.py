"""Formulas of CLIP-type scores where their definitions are easy to get wrong."""

import math

import pytest
import torch

from mmalign.errors import UnknownNameError
from mmalign.rewards.clip_scores import (
    clip_score,
    cosine,
    mean_clip_score,
    percent,
    pick_score,
    pick_score_as,
    reference_clip_score,
)


def test_cosines_do_not_see_lengths_and_are_not_computed_in_half_precision(draw):
    image, text = draw(5, 7), draw(5, 7)
    expected = torch.stack(
        [torch.dot(a, b) / (a.norm() * b.norm()) for a, b in zip(image, text, strict=True)]
    )
    torch.testing.assert_close(cosine(3.0 * image, 0.1 * text), expected)
    assert cosine(image.bfloat16(), text.bfloat16()).dtype == torch.float32


def test_clipscore_clamps_each_pair_and_torchmetrics_only_the_mean():
    cosines = torch.tensor([0.4, -0.2, -0.5], dtype=torch.float64)
    assert clip_score(cosines).tolist() == [1.0, 0.0, 0.0]
    assert percent(cosines).tolist() == [40.0, -20.0, -50.0]
    assert float(mean_clip_score(cosines)) == 0.0
    assert float(mean_clip_score(cosines[:2])) == pytest.approx(10.0)


def test_refclipscore_takes_the_best_reference_unclamped():
    scores = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    references = torch.tensor([[0.3, 0.8], [-0.2, -torch.inf], [0.9, 0.1]], dtype=torch.float64)
    found = reference_clip_score(scores, references)
    assert found.tolist() == pytest.approx([2 * 0.5 * 0.8 / 1.3, 2 * 0.5 * -0.2 / 0.3, 0.0])


def test_pickscores_convert_to_the_units_of_papers():
    log_scale = math.log(98.7)
    cosines = torch.tensor([0.11543526500463486, 0.2, 0.28201571106910706], dtype=torch.float64)
    scores = pick_score(cosines, log_scale)
    assert float(scores[1]) == pytest.approx(19.74)
    torch.testing.assert_close(pick_score_as(scores, "cosine", log_scale=log_scale), cosines)
    torch.testing.assert_close(pick_score_as(scores, "readme", log_scale=log_scale), scores)
    torch.testing.assert_close(pick_score_as(scores, "per_26", log_scale=log_scale), scores / 26)
    assert pick_score_as(scores, "smpo", log_scale=log_scale)[::2].tolist() == pytest.approx([0.0, 1.0])


def test_an_unknown_unit_is_named(untyped):
    with untyped, pytest.raises(UnknownNameError, match=r"PickScore unit 'percent'.*Known: cosine"):
        pick_score_as(torch.zeros(2), "percent", log_scale=4.6)

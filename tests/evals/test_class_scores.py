"""Divergence of a classifier's verdicts, and the inception score."""

import math

import pytest
import torch

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.class_scores import class_divergence, inception_score


def test_equal_verdicts_diverge_by_nothing_and_the_direction_is_reference_to_generated(draw):
    one, other = 3.0 * draw(5, 7), 3.0 * draw(5, 7)
    assert class_divergence(one, one).abs().max() < 1e-5
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=one), torch.distributions.Categorical(logits=other)
    )
    found = class_divergence(one, other)
    assert torch.allclose(found, expected, rtol=1e-2)
    assert not torch.allclose(found, class_divergence(other, one), rtol=0.1)


def test_the_offset_bounds_a_class_the_generated_side_excludes():
    certain, other = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
    assert float(class_divergence(certain, other)) == pytest.approx(-math.log(1e-6), rel=1e-3)


def test_sigmoids_leave_out_the_complementary_terms():
    reference, generated = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    half, most = 0.5, 1.0 / (1.0 + math.exp(-1.0))
    found = class_divergence(reference, generated, over="sigmoid")
    assert float(found) == pytest.approx(half * math.log(half / most), rel=1e-4)
    assert float(found) < 0.0


def test_the_inception_score_counts_the_classes_samples_are_surely_of():
    sure = 50.0 * torch.eye(5).repeat(7, 1)
    assert inception_score(sure, splits=1).value == pytest.approx(5.0)
    assert inception_score(sure[:1].repeat(7, 1), splits=1).value == pytest.approx(1.0)
    assert inception_score(torch.zeros(7, 5), splits=1).value == pytest.approx(1.0)
    found = inception_score(sure, splits=5)
    assert found.value < 5.0
    assert found.spread > 0.0
    assert str(found).endswith("over 5 splits of 35 samples")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: inception_score(torch.ones(3, 2), splits=5), ConfigError, "3 samples in 5 splits"),
        (lambda: inception_score(torch.full((3, 2), math.nan), splits=1), ConfigError, "3 of 3 samples with"),
        (
            lambda: class_divergence(torch.full((3, 2), math.inf), torch.ones(3, 2)),
            ConfigError,
            "expected finite logits",
        ),
    ],
)
def test_what_has_no_number_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_references_and_samples_in_different_numbers_are_refused(untyped):
    with untyped, pytest.raises(ShapeError, match="expected one reference per sample"):
        class_divergence(torch.ones(3, 2), torch.ones(2, 2))

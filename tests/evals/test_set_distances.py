"""Distances between sets of samples."""

import math

import numpy as np
import pytest
import torch

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.set_distances import density_coverage, frechet_distance, kernel_distance


def test_the_kernel_distance_is_the_plain_double_sum(draw):
    one, other = draw(5, 3), draw(7, 3)

    def kernel(x, y):
        return float((x @ y / 3 + 1) ** 3)

    within = [
        np.mean([kernel(part[i], part[j]) for i in range(len(part)) for j in range(len(part)) if i != j])
        for part in (one, other)
    ]
    across = np.mean([kernel(x, y) for x in one for y in other])
    assert kernel_distance(one, other).value == pytest.approx(within[0] + within[1] - 2 * across, rel=1e-12)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average(make_generator):
    generator = make_generator(3)
    draws = torch.randn(200, 2, 23, 3, generator=generator, dtype=torch.float64)
    found = torch.tensor([kernel_distance(one, other).value for one, other in draws])
    assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(200)
    assert kernel_distance(draws[0, 0], draws[0, 1] + 1.0).value > 10 * float(found.std())


def test_subsets_are_seeded_and_average_to_the_whole(draw):
    one, other = draw(101, 3), draw(97, 3) + 0.5
    whole = kernel_distance(one, other)
    found = kernel_distance(one, other, subset_size=31, num_subsets=150, seed=5)
    assert found == kernel_distance(one, other, subset_size=31, num_subsets=150, seed=5)
    assert found.value == pytest.approx(whole.value, abs=4 * found.spread / math.sqrt(150))
    assert (whole.num_subsets, whole.subset_size, found.subset_size) == (1, 97, 31)
    assert kernel_distance(one, other, subset_size=98).num_subsets == 1
    assert str(found).startswith("KID ")


def test_the_frechet_distance_of_shifted_and_scaled_sets_is_known(draw):
    value = draw(211, 3)
    assert float(frechet_distance(value, value)) == pytest.approx(0.0, abs=1e-12)
    shifted = value + torch.tensor([1.0, 2.0, 0.0])
    assert float(frechet_distance(value, shifted)) == pytest.approx(5.0)
    # Covariances C and 4 C commute: tr(C + 4 C - 2 * 2 C) = tr C.
    centred = value - value.mean(dim=0)
    trace = float(torch.cov(value.T).trace())
    assert float(frechet_distance(centred, 2.0 * centred)) == pytest.approx(trace)
    assert float(frechet_distance(value[:, :1], value[:, :1])) == pytest.approx(0.0, abs=1e-12)


def test_the_frechet_distance_needs_no_commuting_covariances(draw):
    from scipy import linalg

    one, other = draw(53, 3) @ draw(3, 3), draw(47, 3) @ draw(3, 3)
    first, second = torch.cov(one.T).numpy(), torch.cov(other.T).numpy()
    root = linalg.sqrtm(first @ second).real
    shift = float((one.mean(0) - other.mean(0)).square().sum())
    expected = shift + np.trace(first + second - 2.0 * root)
    assert float(frechet_distance(one, other)) == pytest.approx(expected, rel=1e-9)


def test_samples_of_the_reference_distribution_have_density_and_coverage_near_one(draw):
    found = density_coverage(draw(503, 2), draw(503, 2), k=5)
    assert found.density == pytest.approx(1.0, abs=0.15)
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.04)  # what is expected for equal sizes


def test_collapsed_samples_keep_density_and_lose_coverage(draw):
    reference = draw(211, 2)
    found = density_coverage(reference, 0.01 * draw(211, 2))
    assert found.coverage < 0.3
    assert found.density > 1.0
    far = density_coverage(reference, draw(31, 2) + 100.0)
    assert (far.density, far.coverage) == (0.0, 0.0)


def test_density_and_coverage_are_the_worked_example():
    # Radii to the nearest other point: 1, 1, 3. Samples at 0.5 and 9: the first two balls hold 0.5.
    reference = torch.tensor([[0.0], [1.0], [4.0]])
    found = density_coverage(reference, torch.tensor([[0.5], [9.0]]), k=1)
    assert (found.density, found.coverage) == (2 / 2, pytest.approx(2 / 3))
    assert str(found) == "density 1.00, coverage 0.67 (k = 1)"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: kernel_distance(torch.ones(2, 3), torch.ones(2, 3), subset_size=1),
            ConfigError,
            "100 subsets of 1",
        ),
        (lambda: frechet_distance(torch.ones(1, 3), torch.ones(2, 3)), ShapeError, "at least 2 samples"),
        (lambda: density_coverage(torch.ones(5, 3), torch.ones(2, 3)), ShapeError, "at least 6 samples"),
        (
            lambda: density_coverage(torch.ones(5, 3), torch.ones(2, 3), k=0),
            ConfigError,
            "k: got 0, expected at least 1",
        ),
    ],
)
def test_impossible_sets_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_embeddings_of_two_encoders_are_refused(untyped):
    with (
        untyped,
        pytest.raises(ShapeError, match="features of width 3 and 5', expected embeddings of one encoder"),
    ):
        kernel_distance(torch.ones(2, 3), torch.ones(2, 5))


def test_more_features_than_samples_give_the_same_formula(draw):
    from scipy import linalg

    one, other = draw(5, 7), draw(3, 7) + 1.0
    first, second = torch.cov(one.T).numpy(), torch.cov(other.T).numpy()
    shift = float((one.mean(0) - other.mean(0)).square().sum())
    values = linalg.eigvals(first @ second).real.clip(min=0.0)  # sqrtm of a singular product is not accurate
    expected = shift + np.trace(first + second) - 2.0 * np.sqrt(values).sum()
    assert float(frechet_distance(one, other)) == pytest.approx(expected, rel=1e-6)


def test_released_subsets_cover_everything_where_there_is_too_little(draw):
    one, other = draw(7, 3), draw(7, 3)
    found = kernel_distance(one, other, subset_size=1000, num_subsets=5, seed=2020, released=True)
    assert found.value == pytest.approx(kernel_distance(one, other).value, rel=1e-9)
    assert (found.subset_size, found.num_subsets) == (7, 5)

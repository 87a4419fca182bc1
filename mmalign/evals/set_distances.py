"""How near are two sets of samples? From embeddings, in float64.

Frechet distance (FID with Inception features, FAD with VGGish's, FD with PANNs'), kernel distance (KID),
density and coverage. Numbers of different encoders do not compare.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.results import Result, shown
from mmalign.seeding import generator_for

__all__ = [
    "DensityCoverage",
    "KernelDistance",
    "density_coverage",
    "finite_embeddings",
    "frechet_distance",
    "kernel_distance",
]


def finite_embeddings(where: str, value: Tensor, least: int) -> Float64[Tensor, "sample feature"]:
    """The embeddings in float64.

    Args:
        where: who asks, for messages.
        value: [sample, feature].
        least: samples there must be.

    Raises:
        ShapeError: too few samples, or no features.
        ConfigError: an embedding that is not finite.
    """
    if value.ndim != 2 or value.shape[0] < least or value.shape[1] == 0:
        expected = f"[sample, feature] with at least {least} samples"
        raise ShapeError(explain(where, got=str(list(value.shape)), expected=expected))
    wide = value.detach().double()
    bad = ~torch.isfinite(wide).all(dim=1)
    if bool(bad.any()):
        got = f"{int(bad.sum())} of {len(wide)} embeddings with inf or NaN"
        do = "Leave failed samples out, and say how many there were."
        raise ConfigError(explain(where, got=got, expected="finite embeddings", do=do))
    return wide


def _two_sets(where: str, first: Tensor, second: Tensor, least: int) -> tuple[Tensor, Tensor]:
    one, other = (
        finite_embeddings(f"{where} first", first, least),
        finite_embeddings(f"{where} second", second, least),
    )
    if one.shape[1] != other.shape[1]:
        got = f"features of width {one.shape[1]} and {other.shape[1]}"
        raise ShapeError(explain(where, got=got, expected="embeddings of one encoder"))
    return one, other


@dataclass(frozen=True)
class KernelDistance(Result):
    """Kernel (inception) distance between two sets.

    Args:
        value: squared maximum mean discrepancy, mean over subsets; about 0 for sets of one distribution,
            slightly negative by chance.
        spread: standard deviation over subsets.
        subset_size: samples of each set per subset.
        num_subsets: subsets averaged; 1 = all samples at once.
        seed: of the subsets.
    """

    value: float
    spread: float
    subset_size: int
    num_subsets: int
    seed: int

    def describe(self) -> str:
        """`KID 0.0123 +- 0.0011 over 100 subsets of 1000`."""
        return (
            f"KID {self.value:.5g} +- {self.spread:.2g} over {self.num_subsets} subsets of {self.subset_size}"
        )


def kernel_distance(
    first: Float[Tensor, "sample feature"],
    second: Float[Tensor, "sample_two feature"],
    *,
    subset_size: int | None = None,
    num_subsets: int = 100,
    seed: int = 0,
    released: bool = False,
) -> KernelDistance:
    """KID: unbiased squared maximum mean discrepancy under the kernel (x . y / d + 1)^3.

    mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j)

    Unlike the Frechet distance it is unbiased, so sets of different size compare.

    Args:
        first: embeddings of one set; with Inception features this is the published KID.
        second: of the other.
        subset_size: samples per subset (1000 in the paper); None, or more than there are: all at once.
        num_subsets: subsets drawn without replacement within each.
        seed: of the subsets.
        released: draw subsets, and take their spread, as released scripts do (numpy's old generator, the
            population's deviation, subsets even of everything); ours come from torch's generator.

    Raises:
        ShapeError: fewer than two samples, or features of different width.
        ConfigError: embeddings that are not finite, subsets of fewer than two, no subsets.

    Source: arXiv 1801.01401; released: declare-lab/tango tango2/audioldm_eval/metrics/kid.py.
    """
    one, other = _two_sets("kernel_distance", first, second, 2)
    smallest = min(len(one), len(other))
    if (subset_size is not None and subset_size < 2) or num_subsets < 1:
        got = f"{num_subsets} subsets of {subset_size}"
        raise ConfigError(explain("kernel_distance", got=got, expected="at least one subset of two"))
    if not released and (subset_size is None or subset_size > smallest):
        return KernelDistance(float(_discrepancy(one, other)), 0.0, smallest, 1, seed)
    size = min(subset_size or smallest, smallest)
    if size == len(one) == len(other):  # every subset is everything: drawn again it is the same number
        return KernelDistance(float(_discrepancy(one, other)), 0.0, size, num_subsets, seed)
    draws = _released_draws if released else _draws
    picked = draws((len(one), len(other)), size, num_subsets, seed)
    found = [float(_discrepancy(one[rows], other[columns])) for rows, columns in picked]
    values = torch.tensor(found, dtype=torch.float64)
    spread = float(values.std(correction=0 if released else 1)) if num_subsets > 1 else 0.0
    return KernelDistance(float(values.mean()), spread, size, num_subsets, seed)


def _draws(lengths: tuple[int, int], size: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of both sets, subset after subset."""
    generator = generator_for(seed, "kernel_distance")
    for _ in range(count):
        one, other = (torch.randperm(length, generator=generator)[:size] for length in lengths)
        yield one, other


def _released_draws(
    lengths: tuple[int, int], size: int, count: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same from numpy's old generator, in the order the released scripts call it."""
    generator = np.random.RandomState(seed)
    for _ in range(count):
        one, other = (generator.choice(length, size, replace=False) for length in lengths)
        yield torch.from_numpy(one), torch.from_numpy(other)


def _discrepancy(one: Tensor, other: Tensor) -> Tensor:
    def kernel_sum(left: Tensor, right: Tensor, *, apart: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=left.device)
        for block in left.split(4096):  # 4096 rows at a time: memory does not grow with the square
            total += (block @ right.T / left.shape[1] + 1.0).pow(3).sum()
        if apart:
            total -= (left.square().sum(dim=1) / left.shape[1] + 1.0).pow(3).sum()
        return total

    n, m = len(one), len(other)
    within = kernel_sum(one, one, apart=True) / (n * (n - 1)) + kernel_sum(other, other, apart=True) / (
        m * (m - 1)
    )
    return within - 2.0 * kernel_sum(one, other, apart=False) / (n * m)


def frechet_distance(
    first: Float[Tensor, "sample feature"], second: Float[Tensor, "sample_two feature"]
) -> Float64[Tensor, ""]:
    """Frechet distance of two sets seen as normal distributions (FID with Inception features).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), sample covariances (N - 1)

    Biased upwards by about 1 / n: compare sets of one size, and use thousands of samples.

    Args:
        first: embeddings of one set, at least two.
        second: of the other.

    Raises:
        ShapeError: fewer than two samples, or features of different width.
        ConfigError: embeddings that are not finite.

    Source: arXiv 1706.08500.
    """
    one, other = _two_sets("frechet_distance", first, second, 2)
    shift = (one.mean(dim=0) - other.mean(dim=0)).square().sum()
    roots = [_covariance_root(part) for part in (one, other)]
    traces = sum(root.square().sum() for root in roots)
    # C1 = A'A and C2 = B'B: the eigenvalues of C1 C2 are the squared singular values of A B'.
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    # Equal sets: rounding would leave -1e-15.
    distance: Tensor = (shift + traces - 2.0 * shared).clamp(min=0.0)
    return distance


def _covariance_root(part: Float64[Tensor, "sample feature"]) -> Float64[Tensor, "row feature"]:
    """A with A'A the sample covariance, no more rows than samples or features."""
    root: Tensor = (part - part.mean(dim=0)) / (len(part) - 1) ** 0.5
    if root.shape[0] <= root.shape[1]:
        return root
    triangle: Tensor = torch.linalg.qr(root, mode="r").R
    return triangle


@dataclass(frozen=True)
class DensityCoverage(Result):
    """Fidelity and diversity of one set against another, by neighbourhoods.

    Args:
        density: how many reference neighbourhoods a sample lies in, on average, divided by k; about 1 for
            samples of the reference distribution, above 1 where they crowd in its dense parts.
        coverage: share of reference samples with a sample in their neighbourhood, in [0, 1].
        k: neighbours that make a neighbourhood.
    """

    density: float
    coverage: float
    k: int

    def describe(self) -> str:
        """`density 0.98, coverage 0.91 (k = 5)`."""
        return f"density {shown(self.density, 2)}, coverage {shown(self.coverage, 2)} (k = {self.k})"


def density_coverage(
    reference: Float[Tensor, "sample feature"],
    samples: Float[Tensor, "sample_two feature"],
    *,
    k: int = 5,
) -> DensityCoverage:
    """Density and coverage of samples with respect to reference samples.

    A reference sample's neighbourhood is the ball to its k-th nearest other reference sample, rim included.

    Args:
        reference: embeddings of the reference set (the base model's samples, or real data), more than k.
        samples: of the set to judge.
        k: >= 1, 5 is usual.

    Raises:
        ShapeError: too few samples, or features of different width.
        ConfigError: embeddings that are not finite, or k below 1.

    Source: arXiv 2002.09797.
    """
    if k < 1:
        raise ConfigError(explain("density_coverage k", got=k, expected="at least 1"))
    real = finite_embeddings("density_coverage reference", reference, k + 1)
    real, fake = _two_sets("density_coverage", real, samples, 1)
    inside = torch.zeros((), dtype=torch.float64, device=real.device)
    covered = 0
    for block in real.split(2048):  # blocks keep memory flat
        # The sample itself is its own nearest neighbour at distance 0.
        radius = _distances(block, real).kthvalue(k + 1, dim=1).values
        within = _distances(block, fake) <= radius.unsqueeze(1)
        inside += within.sum()
        covered += int(within.any(dim=1).sum())
    return DensityCoverage(float(inside) / (k * len(fake)), covered / len(real), k)


def _distances(one: Tensor, other: Tensor) -> Tensor:
    # Not by |x|^2 + |y|^2 - 2 x.y: near points would lose their digits.
    found: Tensor = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
    return found

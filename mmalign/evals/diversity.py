"""How different are samples of one prompt, and how near are two sets of samples? From embeddings, in float64.

Embeddings come from any encoder (CLIP, DINOv2, a sound or sentence encoder); numbers of different encoders do
not compare. Within a prompt: mean pairwise cosine distance and the Vendi score, averaged over prompts
afterwards. Between sets: KID and Frechet distance (drift from the base model), density and coverage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling, bootstrap_mean
from mmalign.evals.statistics.results import Interval, Result, shown
from mmalign.seeding import generator_for

__all__ = [
    "DensityCoverage",
    "Diversity",
    "KernelDistance",
    "PromptDiversity",
    "density_coverage",
    "diversity",
    "frechet_distance",
    "kernel_distance",
    "prompt_diversity",
]


def _embeddings(where: str, value: Tensor, least: int) -> Float64[Tensor, "sample feature"]:
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


# ------------------------------------------------------------------------------------------------ one prompt


@dataclass(frozen=True)
class PromptDiversity(Result):
    """How different the samples of one prompt are.

    Args:
        mean_cosine: mean cosine over pairs of samples.
        largest_cosine: of any pair; 1 = two samples are the same.
        distance: 1 - mean_cosine.
        vendi: effective number of different samples, exp of the Shannon entropy of the eigenvalues; from 1
            (all alike) to the number of samples (all at right angles).
        vendi_2: the same with Renyi's entropy of order 2, 1 / sum of squared eigenvalues; rare samples count
            less.
        eigenvalues: of the cosine matrix divided by the number of samples, ascending; they add up to 1.
    """

    mean_cosine: float
    largest_cosine: float
    distance: float
    vendi: float
    vendi_2: float
    eigenvalues: tuple[float, ...]

    def describe(self) -> str:
        """`4 samples: mean distance 0.797, Vendi 2.67`."""
        num = len(self.eigenvalues)
        return f"{num} samples: mean distance {shown(self.distance)}, Vendi {shown(self.vendi, 2)}"


def prompt_diversity(embeddings: Float[Tensor, "sample feature"]) -> PromptDiversity:
    """Diversity of the samples of one prompt.

    K = cosine matrix, l = eigenvalues of K / n, vendi = exp(-sum l log l), vendi_2 = 1 / sum l^2

    Args:
        embeddings: at least two samples of one prompt; they are normalised here.

    Raises:
        ShapeError: fewer than two samples.
        ConfigError: embeddings that are not finite, or of length 0.

    Source: arXiv 2210.02410 (Vendi score), arXiv 2310.12952 (orders).
    """
    wide = _embeddings("prompt_diversity", embeddings, 2)
    length = wide.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        message = explain("prompt_diversity", got="an embedding of length 0", expected="a direction")
        raise ConfigError(message)
    unit = wide / length
    kernel = unit @ unit.T
    kernel.fill_diagonal_(1.0)
    num = len(unit)
    upper = torch.triu_indices(num, num, offset=1)
    cosines = kernel[upper[0], upper[1]]
    values = torch.linalg.eigvalsh(kernel / num)
    # Rounding makes small eigenvalues of a singular matrix negative; 0 log 0 = 0.
    entropy = -torch.xlogy(values.clamp(min=0.0), values.clamp(min=0.0)).sum()
    return PromptDiversity(
        mean_cosine=float(cosines.mean()),
        largest_cosine=float(cosines.max()),
        distance=float(1.0 - cosines.mean()),
        vendi=float(entropy.exp()),
        vendi_2=float(1.0 / values.square().sum()),
        eigenvalues=tuple(values.tolist()),
    )


@dataclass(frozen=True)
class Diversity(Result):
    """Diversity within prompts, averaged over prompts with intervals over prompts.

    Args:
        distance: mean pairwise cosine distance.
        vendi: Vendi score of order 1.
        vendi_2: of order 2.
        samples: samples per prompt, None where prompts differ; Vendi scores of different numbers do not
            compare.
        num_prompts: prompts with at least two samples.
        failed_prompts: prompts with fewer, left out.
        per_prompt: every prompt's result; None where it was left out.
    """

    distance: Interval
    vendi: Interval
    vendi_2: Interval
    samples: int | None
    num_prompts: int
    failed_prompts: int
    per_prompt: tuple[PromptDiversity | None, ...]

    def describe(self) -> str:
        """`distance 0.31 (0.29 to 0.33), Vendi 2.10 (2.00 to 2.20) over 200 prompts of 4 samples`."""
        each = "different numbers of" if self.samples is None else str(self.samples)
        failed = f", {self.failed_prompts} failed" if self.failed_prompts else ""
        return (
            f"distance {self.distance.describe()}, Vendi {self.vendi.describe()} over "
            f"{self.num_prompts} prompts of {each} samples{failed}"
        )


def diversity(embeddings: Sequence[Tensor], how: Resampling = DEFAULT) -> Diversity:
    """Diversity of every prompt's samples, and its mean over prompts.

    Args:
        embeddings: [sample, feature] per prompt, failed samples left out; four samples or more are usual. A
            prompt with fewer than two is left out and counted.
        how: the bootstrap over prompts.

    Raises:
        ConfigError: no prompt with two samples, or embeddings that are not finite.
    """
    found = tuple(prompt_diversity(value) if len(value) >= 2 else None for value in embeddings)
    kept = [entry for entry in found if entry is not None]
    if not kept:
        got = f"{len(found)} prompts, none with two samples"
        raise ConfigError(explain("diversity", got=got, expected="at least one with two"))
    sizes = {len(entry.eigenvalues) for entry in kept}
    return Diversity(
        distance=bootstrap_mean([entry.distance for entry in kept], how),
        vendi=bootstrap_mean([entry.vendi for entry in kept], how),
        vendi_2=bootstrap_mean([entry.vendi_2 for entry in kept], how),
        samples=sizes.pop() if len(sizes) == 1 else None,
        num_prompts=len(kept),
        failed_prompts=len(found) - len(kept),
        per_prompt=found,
    )


# ------------------------------------------------------------------------------------------------ two sets


def _two_sets(where: str, first: Tensor, second: Tensor, least: int) -> tuple[Tensor, Tensor]:
    one, other = _embeddings(f"{where} first", first, least), _embeddings(f"{where} second", second, least)
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

    Raises:
        ShapeError: fewer than two samples, or features of different width.
        ConfigError: embeddings that are not finite, subsets of fewer than two, no subsets.

    Source: arXiv 1801.01401.
    """
    one, other = _two_sets("kernel_distance", first, second, 2)
    smallest = min(len(one), len(other))
    if (subset_size is not None and subset_size < 2) or num_subsets < 1:
        got = f"{num_subsets} subsets of {subset_size}"
        raise ConfigError(explain("kernel_distance", got=got, expected="at least one subset of two"))
    if subset_size is None or subset_size > smallest:
        return KernelDistance(float(_discrepancy(one, other)), 0.0, smallest, 1, seed)
    generator = generator_for(seed, "kernel_distance")
    found = []
    for _ in range(num_subsets):
        picked = [torch.randperm(len(part), generator=generator)[:subset_size] for part in (one, other)]
        found.append(float(_discrepancy(one[picked[0]], other[picked[1]])))
    values = torch.tensor(found, dtype=torch.float64)
    spread = float(values.std()) if num_subsets > 1 else 0.0
    return KernelDistance(float(values.mean()), spread, subset_size, num_subsets, seed)


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

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)), sample covariances

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
    # atleast_2d: torch.cov of one feature is a scalar.
    covariances = [torch.atleast_2d(torch.cov(part.T)) for part in (one, other)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0.0)
    traces = covariances[0].trace() + covariances[1].trace()
    # Equal sets: rounding would leave -1e-15.
    distance: Tensor = (shift + traces - 2.0 * inner.sqrt().sum()).clamp(min=0.0)
    return distance


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
    real = _embeddings("density_coverage reference", reference, k + 1)
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

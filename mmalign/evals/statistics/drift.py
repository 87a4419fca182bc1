"""How far a policy has moved from its reference: KL divergence by best of n, samples and sampler paths."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.inputs import Matrix, Values, as_matrix, as_vector, require_same_length
from mmalign.evals.statistics.results import Result, shown

__all__ = ["KlEstimate", "best_of_n_kl", "kl_estimates", "path_kl"]


def best_of_n_kl(n: Values) -> Float64[np.ndarray, " choice"]:
    """Upper bound on the KL divergence of the best of n samples from the model, in nats: log n - (n - 1) / n.

    Args:
        n: numbers of samples, >= 1.

    Raises:
        ConfigError: a number below 1.

    Source: arXiv 2009.01325; that it is an upper bound: arXiv 2401.01879.
    """
    counts = as_vector("best_of_n_kl", n)
    if (counts < 1).any():
        raise ConfigError(explain("best_of_n_kl", got=float(counts.min()), expected="n >= 1"))
    return np.asarray(np.log(counts) - (counts - 1.0) / counts)


@dataclass(frozen=True)
class KlEstimate(Result):
    """KL divergence of the policy from its reference, in nats per sample.

    Args:
        k1: mean log-ratio; unbiased, can be negative.
        k3: mean of exp(-log-ratio) - 1 + log-ratio; unbiased, never negative, usually steadier.
        standard_error: of k3; NaN for one sample.
        num_samples: samples of the policy.
    """

    k1: float
    k3: float
    standard_error: float
    num_samples: int

    def describe(self) -> str:
        """`KL 0.035 (k3), 0.075 (k1) over 4 samples`."""
        return f"KL {shown(self.k3)} (k3), {shown(self.k1)} (k1) over {self.num_samples} samples"


def kl_estimates(policy: Values, reference: Values) -> KlEstimate:
    """KL(policy || reference) from log-probabilities of samples of the policy.

    k1 = mean(p - r), k3 = mean(exp(r - p) - 1 - (r - p))

    Args:
        policy: log-probability of each sample under the policy it was drawn from.
        reference: under the reference.

    Raises:
        ShapeError: different numbers of samples.
        ConfigError: no samples, NaN.

    Source: J. Schulman, "Approximating KL divergence" (2020).
    """
    ours, theirs = as_vector("kl_estimates policy", policy), as_vector("kl_estimates reference", reference)
    require_same_length("kl_estimates policy", ours, reference=theirs)
    ratio = theirs - ours
    # expm1: near zero the two halves of k3 cancel.
    terms = np.expm1(ratio) - ratio
    error = float(terms.std(ddof=1) / math.sqrt(len(terms))) if len(terms) > 1 else math.nan
    return KlEstimate(float((ours - theirs).mean()), float(terms.mean()), error, len(terms))


def path_kl(
    mean_gap: Matrix, variance: Values, *, num_bins: int = 1
) -> tuple[float, Float64[np.ndarray, " bin"]]:
    """KL divergence of a stochastic sampler's paths from the reference's, in nats: total and by time.

    sum over steps t of |mean_policy - mean_reference|^2 / (2 variance_t), on paths of the policy

    Args:
        mean_gap: [path, step] squared distance of the two means, summed over the sample's elements.
        variance: [step] variance of the sampler's noise, > 0.
        num_bins: steps are grouped into this many bins, first to last.

    Returns:
        Mean over paths of the sum, and of each bin (which add up to it).

    Raises:
        ShapeError: another number of steps.
        ConfigError: a variance that is not positive (a deterministic step has no KL), a negative distance, or
            fewer steps than bins.
    """
    table, spread = as_matrix("path_kl mean_gap", mean_gap), as_vector("path_kl variance", variance)
    if table.shape[1] != len(spread):
        got = f"{len(spread)} variances"
        raise ShapeError(explain("path_kl", got=got, expected=f"one per step ({table.shape[1]})"))
    if (spread <= 0).any() or (table < 0).any() or not 1 <= num_bins <= len(spread):
        got = f"smallest variance {spread.min()}, smallest distance {table.min()}, {num_bins} bins"
        expected = f"variances > 0, distances >= 0, 1 to {len(spread)} bins"
        raise ConfigError(explain("path_kl", got=got, expected=expected))
    per_step = (table / (2.0 * spread)).mean(axis=0)
    bins = np.array([part.sum() for part in np.array_split(per_step, num_bins)])
    return float(per_step.sum()), bins

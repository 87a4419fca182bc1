"""How different are samples of one prompt? From embeddings, in float64.

Embeddings come from any encoder (CLIP, DINOv2, a sound or sentence encoder); numbers of different encoders do
not compare. Within a prompt: mean pairwise cosine distance and the Vendi score, averaged over prompts
afterwards. Distances between sets: `mmalign.evals.set_distances`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.evals.set_distances import finite_embeddings
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling, bootstrap_mean
from mmalign.evals.statistics.results import Interval, Result, shown

__all__ = ["Diversity", "PromptDiversity", "diversity", "prompt_diversity"]


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
    wide = finite_embeddings("prompt_diversity", embeddings, 2)
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

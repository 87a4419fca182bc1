"""Numbers from a classifier's logits: Kullback-Leibler divergence from references, inception score.

Both say what one classifier makes of samples; numbers of different classifiers do not compare.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.results import Result

__all__ = ["InceptionScore", "Over", "class_divergence", "inception_score"]

Over = Literal["softmax", "sigmoid"]
"""How logits become probabilities: of one class, or of each class on its own."""

_OFFSET = 1e-6


def class_divergence(
    reference: Float[Tensor, "sample class"],
    generated: Float[Tensor, "sample class"],
    *,
    over: Over = "softmax",
) -> Float64[Tensor, " sample"]:
    """What a classifier makes of each sample against what it makes of its reference, in nats; 0 where equal.

    sum over classes of p_ref log(p_ref / (p_gen + 1e-6))

    The offset stands on the generated side alone, as in the released code, so a value may be slightly below
    0. Of sigmoids the complementary terms (1 - p) are left out, as released: that sum is no divergence and
    may be negative; papers report the one of softmax.

    Args:
        reference: logits of the references.
        generated: logits of the samples, in the order of their references.
        over: softmax or sigmoid.

    Raises:
        ShapeError: another number of samples or classes.
        ConfigError: a logit that is not finite.

    Source: declare-lab/tango tango2/audioldm_eval/metrics/kl.py.
    """
    if reference.shape != generated.shape:
        got = f"[{list(reference.shape)} and {list(generated.shape)}]"
        raise ShapeError(explain("class_divergence", got=got, expected="one reference per sample"))
    wide = [_finite("class_divergence", logits) for logits in (reference, generated)]
    target, found = (logits.softmax(dim=1) if over == "softmax" else logits.sigmoid() for logits in wide)
    # xlogy: a class the reference excludes adds nothing.
    terms: Tensor = torch.xlogy(target, target) - target * (found + _OFFSET).log()
    return terms.sum(dim=1)


@dataclass(frozen=True)
class InceptionScore(Result):
    """How sure a classifier is of each sample, and how many classes they are of together.

    Args:
        value: mean over splits; from 1 to the number of classes, higher is better.
        spread: population standard deviation over splits.
        splits: parts the samples were cut into.
        samples: in all of them.
        seed: of the order the samples were cut in.
    """

    value: float
    spread: float
    splits: int
    samples: int
    seed: int

    def describe(self) -> str:
        """`IS 7.89 +- 0.31 over 10 splits of 886 samples`."""
        return f"IS {self.value:.4g} +- {self.spread:.2g} over {self.splits} splits of {self.samples} samples"


def inception_score(
    logits: Float[Tensor, "sample class"], *, splits: int = 10, seed: int = 2020
) -> InceptionScore:
    """Inception score of samples by their logits.

    exp(mean over samples of sum over classes p (log p - log mean p)), p = softmax(logits), per split

    The samples are shuffled by numpy's old generator, as in the released code: for one seed and one order of
    samples the splits are the released ones. It is biased downwards with few samples per split.

    Args:
        logits: of a classifier.
        splits: equal parts, at least 1; there must be a sample for each.
        seed: of the shuffle.

    Raises:
        ConfigError: fewer samples than splits, no splits, or a logit that is not finite.

    Source: arXiv 1606.03498; released: declare-lab/tango tango2/audioldm_eval/metrics/isc.py.
    """
    count = len(logits)
    if splits < 1 or count < splits:
        got = f"{count} samples in {splits} splits"
        raise ConfigError(explain("inception_score", got=got, expected="a sample for each of some splits"))
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    wide = _finite("inception_score", logits)[order]
    logs = wide.log_softmax(dim=1)
    edges = [part * count // splits for part in range(splits + 1)]
    found = []
    for start, end in pairwise(edges):
        part, log_part = logs[start:end].exp(), logs[start:end]
        mean = part.mean(dim=0, keepdim=True)
        # A class that no sample has: 0 log 0 = 0.
        found.append(((part * log_part).sum(dim=1) - torch.xlogy(part, mean).sum(dim=1)).mean().exp())
    values = torch.stack(found)
    return InceptionScore(float(values.mean()), float(values.std(correction=0)), splits, count, seed)


def _finite(where: str, logits: Tensor) -> Float64[Tensor, "sample class"]:
    wide = logits.detach().double()
    bad = ~torch.isfinite(wide).all(dim=1)
    if bool(bad.any()):
        got = f"{int(bad.sum())} of {len(wide)} samples with inf or NaN"
        do = "Leave failed samples out, and say how many there were."
        raise ConfigError(explain(where, got=got, expected="finite logits", do=do))
    return wide

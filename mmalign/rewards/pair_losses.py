"""Losses that train rewards on labelled pairs, per pair and dimension: what VideoReward and HPSv3 use.

A label is 1 (the first is better), -1 (the second is), 0 (a tie) or `MISSING`. Entries a loss cannot use
are zero and still count in the mean, as in the official trainers: call `entry_mean` on what these return.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.errors import HyperparameterError, ShapeError, explain

__all__ = [
    "MISSING",
    "deviations",
    "entry_mean",
    "gaussian_difference",
    "gaussian_preference_loss",
    "label_loss",
    "label_loss_with_ties",
    "score_regression",
    "signed_gap",
]

MISSING = 22
"""Label of an entry nobody judged, as VideoAlign's files write it."""

Entries = Float[Tensor, "pair dimension"]


def entry_mean(losses: Entries) -> Float[Tensor, ""]:
    """Mean over all entries; unusable ones are zero and divide all the same (VideoAlign, `compute_loss`)."""
    return losses.mean()


def _check_labels(labels: Tensor) -> None:
    known = (labels == 1) | (labels == -1) | (labels == 0) | (labels == MISSING)
    if not bool(known.all()):
        wrong = int(labels[~known].flatten()[0])
        expected = f"1 (first better), -1 (second better), 0 (tie) or {MISSING} (not judged)"
        raise ShapeError(explain("labels", got=wrong, expected=expected))


def _difference(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Preferred minus other; where nobody is preferred the second counts as preferred (and is masked out)."""
    return torch.where(labels == 1, first - second, second - first)


def label_loss(
    first: Entries,
    second: Entries,
    labels: Int[Tensor, "pair dimension"],
    *,
    margin: Entries | float = 0.0,
    weight: Entries | None = None,
) -> Entries:
    """Bradley-Terry loss of decided entries, 0 for ties and missing ones.

    loss = -weight log sigmoid(r_preferred - r_other - margin)

    Args:
        first: rewards of the first things.
        second: rewards of the second things.
        labels: 1, -1, 0 or `MISSING`.
        margin: how much better the preferred one must be; a number, or one per entry (`signed_gap`). The
            trainer's "constant margin" is 0.57.
        weight: one per entry; None = 1.

    Raises:
        ShapeError: a label that is none.

    Source: KwaiVGI/VideoAlign, trainer.py: loss types bt, margin, constant_margin and scaled.
    """
    _check_labels(labels)
    losses = -F.logsigmoid(_difference(first, second, labels) - margin)
    if weight is not None:
        losses = losses * weight
    return losses * ((labels == 1) | (labels == -1))


def signed_gap(
    first_scores: Entries, second_scores: Entries, labels: Int[Tensor, "pair dimension"]
) -> Entries:
    """Human score of the preferred thing minus the other's, for every entry: a margin or a weight.

    It is negative where the label contradicts the scores.
    """
    _check_labels(labels)
    return _difference(first_scores, second_scores, labels)


def label_loss_with_ties(
    first: Entries, second: Entries, labels: Int[Tensor, "pair dimension"], *, k: float = 5.0
) -> Entries:
    """Bradley-Terry with ties (Rao and Kupper) in every judged entry, 0 for missing ones.

    P(first better) = e^a / (e^a + k e^b),  P(tie) = (k^2 - 1) e^(a + b) / ((e^a + k e^b) (e^b + k e^a))
    loss = -log P(label)

    Args:
        first: rewards a of the first things.
        second: rewards b of the second things.
        labels: 1, -1, 0 or `MISSING`.
        k: > 1; at 1 there are no ties, at 5 equal rewards tie with probability 2/3.

    Raises:
        HyperparameterError: k is not above 1.
        ShapeError: a label that is none.

    Source: KwaiVGI/VideoAlign, trainer.py: loss type btt. arXiv 2501.13918.
    """
    if not k > 1.0:
        raise HyperparameterError(explain("label_loss_with_ties k", got=k, expected="a number above 1"))
    _check_labels(labels)
    gap = _difference(first, second, labels)
    won = -F.logsigmoid(gap - math.log(k))
    tied = won - F.logsigmoid(-gap - math.log(k)) - math.log(k * k - 1.0)
    return torch.where(labels == 0, tied, won) * (labels != MISSING)


def score_regression(
    first: Entries,
    second: Entries,
    first_scores: Entries,
    second_scores: Entries,
    *,
    centre: float = 3.0,
) -> Float[Tensor, "pair two dimension"]:
    """Squared distance of rewards to human scores minus their centre; a score of 0 means it is missing.

    Source: KwaiVGI/VideoAlign, trainer.py: loss type reg.
    """
    rewards = torch.stack([first, second], dim=1)
    scores = torch.stack([first_scores, second_scores], dim=1)
    return (rewards - (scores - centre)).square() * (scores != 0.0)


def gaussian_preference_loss(
    chosen: Float[Tensor, "pair two"],
    rejected: Float[Tensor, "pair two"],
    normals: Float[Tensor, "pair draw"],
) -> Float[Tensor, ""]:
    """Expected Bradley-Terry loss of rewards that are normal variables, by given draws.

    z = mu_c - mu_r + sqrt(s_c^2 + s_r^2) e,  s = exp(log sigma),  loss = mean of -log sigmoid(z)

    Args:
        chosen: (mu, log sigma) of the preferred things.
        rejected: the same of the others.
        normals: standard normal draws e, as many per pair as wanted (the official trainer takes 1000, in
            half precision).

    Raises:
        ShapeError: not (mu, log sigma).

    Source: hpsv3 1.0.0, hpsv3/model/qwen2vl_trainer.py: loss type uncertainty. arXiv 2508.03789.
    """
    if chosen.shape[1] != 2:
        got = f"[{', '.join(map(str, chosen.shape))}]"
        expected = "[pair, 2], columns mu and log sigma"
        raise ShapeError(explain("gaussian_preference_loss", got=got, expected=expected))
    centre, width = gaussian_difference(chosen, rejected)
    return -F.logsigmoid(centre.unsqueeze(1) + width.unsqueeze(1) * normals).mean()


def deviations(rewards: Float[Tensor, "sample two"]) -> Float[Tensor, " sample"]:
    """Standard deviations of rewards given as (mu, log sigma)."""
    return rewards[:, 1].exp()


def gaussian_difference(
    chosen: Float[Tensor, "pair two"], rejected: Float[Tensor, "pair two"]
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Mean and standard deviation of the difference of two independent normal rewards (mu, log sigma)."""
    width = (deviations(chosen).square() + deviations(rejected).square()).sqrt()
    return chosen[:, 0] - rejected[:, 0], width

"""What one term sees of a batch: all candidates or a choice of them, positions reduced or one by one.

A row may hold more than the two answers of a pair: the chosen answer beside a corrupted image, the model's
own answer, a revised one. They are further candidates; a term names those it compares, and sees a batch that
has no others. A probability of the label speaks of candidates 0 and 1 alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.batch import Labels
from mmalign.objectives.base import Scores, exchanged

__all__ = ["View"]

_PAIR = (0, 1)


@dataclass(frozen=True)
class View:
    """Scores and labels of a choice of candidates.

    Args:
        scores: of these candidates.
        labels: of these candidates.
        valid: which of them are real; None = all.
    """

    scores: Scores
    labels: Labels
    valid: Bool[Tensor, "prompt candidate"] | None

    def of(self, candidates: tuple[int, ...] | None) -> "View":
        """The batch as if it had these candidates alone; None is all of them.

        A candidate that is seen alone is liked if it is number 0, unless the labels say who is liked.
        """
        if candidates is None:
            return self
        count = self.scores.num_candidates

        spaced = _evenly_spaced(candidates)

        def pick(value: Tensor) -> Tensor:
            if spaced is not None:  # a view: no copy, and one node for autograd
                return value[:, spaced]
            return torch.stack([value[:, number] for number in candidates], dim=1)

        labels = _labels(self.labels, pick)
        if candidates != _PAIR:
            labels = replace(labels, probability=None)
        if len(candidates) == 1 and labels.desirable is None and labels.relevance is None:
            liked = torch.full_like(self.scores.policy[:, :1].flatten(1)[:, :1], candidates[0] == 0)
            labels = replace(labels, desirable=liked.to(torch.bool))
        valid = None if self.valid is None else pick(self.valid)
        return View(_scores(self.scores, pick, count), labels, valid)

    def exchanged(self) -> "View":
        """The same with candidates 0 and 1 exchanged, and the label's probability mirrored."""
        probability = None if self.labels.probability is None else 1.0 - self.labels.probability
        valid = None if self.valid is None else exchanged(self.valid)
        labels = replace(self.labels, probability=probability, valid=valid)
        return View(self.scores.swapped(), labels, valid)

    def rows_with(self, at_least: int) -> Bool[Tensor, " prompt"]:
        """Prompts with enough real candidates."""
        if self.valid is None:
            policy = self.scores.policy
            return torch.ones(policy.shape[0], dtype=torch.bool, device=policy.device)
        return self.valid.sum(1) >= at_least

    def apart(self) -> tuple["View", Float[Tensor, "prompt inner"]]:
        """Every position as a prompt of its own, and how much each position counts.

        A position counts as much as the candidate that has most of it; a candidate that has none of it scores
        0 there.
        """
        scores = self.scores
        prompts, candidates, inner = scores.policy.shape
        share = torch.ones_like(scores.policy) if scores.mask is None else scores.mask.to(scores.policy.dtype)
        if self.valid is not None:
            share = torch.where(self.valid.unsqueeze(2), share, 0.0)

        def fold(value: Tensor) -> Tensor:
            if value.ndim == 3 and value.shape[2] == inner:
                return value.transpose(1, 2).flatten(0, 1)
            return value.repeat_interleave(inner, dim=0) if value.shape[0] == prompts else value

        def kept(value: Tensor) -> Tensor:
            return fold(torch.where(share != 0, value, 0.0))

        folded = replace(
            scores,
            policy=kept(scores.policy),
            reference=_maybe(scores.reference, kept),
            mask=None,
            length=_maybe(scores.length, fold),
            kl=_maybe(scores.kl, fold),
            reward=_maybe(scores.reward, fold),
            extras={name: fold(value) for name, value in scores.extras.items()},
        )
        counts = share.amax(1)
        valid = (counts != 0).flatten().unsqueeze(1).expand(-1, candidates)
        labels = Labels(
            probability=_maybe(self.labels.probability, fold),
            desirable=_maybe(self.labels.desirable, fold),
            relevance=_maybe(self.labels.relevance, fold),
        )
        return View(folded, labels, valid), counts


def _evenly_spaced(candidates: tuple[int, ...]) -> slice | None:
    """The candidates as a slice, if they ascend by one step."""
    first, last = candidates[0], candidates[-1]
    step = candidates[1] - first if len(candidates) > 1 else 1
    even = step > 0 and candidates == tuple(range(first, last + 1, step))
    return slice(first, last + 1, step) if even else None


def _maybe(value: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if value is None else change(value)


def _labels(labels: Labels, change: Callable[[Tensor], Tensor]) -> Labels:
    """Labels per candidate changed; the probability of a pair is left as it is."""
    return replace(
        labels,
        desirable=_maybe(labels.desirable, change),
        relevance=_maybe(labels.relevance, change),
        valid=_maybe(labels.valid, change),
    )


def _scores(scores: Scores, change: Callable[[Tensor], Tensor], count: int) -> Scores:
    """Everything per candidate changed; extras that have no axis of candidates are left as they are."""
    return replace(
        scores,
        policy=change(scores.policy),
        reference=_maybe(scores.reference, change),
        mask=_maybe(scores.mask, change),
        length=_maybe(scores.length, change),
        kl=_maybe(scores.kl, change),
        reward=_maybe(scores.reward, change),
        extras={
            name: change(value) if value.ndim > 1 and value.shape[1] == count else value
            for name, value in scores.extras.items()
        },
    )

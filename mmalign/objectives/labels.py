"""Part I: what the data say, turned into coefficients, distributions or targets; one type per structure.

A pair's own probability (`Labels.probability`) needs no choice here: where a structure has `swaps`, the
interpreter averages the loss over both orders of the pair with that probability. The others (target
distributions, sorted margins) take the probability in themselves. What stands here is what a method adds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, explain
from mmalign.objectives.base import (
    Computed,
    Context,
    Number,
    per_candidate,
    per_prompt,
    require,
    resolve,
    shown,
)

__all__ = [
    "Distribution",
    "PairLabels",
    "PointLabels",
    "Targets",
    "best_first",
    "hard",
    "is_desirable",
    "likes",
    "mixed",
    "noise_contrastive",
    "robust",
    "smoothed",
    "softmax_of",
]


@dataclass(frozen=True)
class PairLabels:
    """Coefficients of one comparison: loss = agree * link(z) + disagree * link(-z).

    Args:
        agree: coefficient of the link as labelled.
        disagree: coefficient of the link with the whole of z negated, the margin included.
    """

    agree: Number = 1.0
    disagree: Number = 0.0

    def formula(self, link: str) -> str:
        """The comparison in plain text, `link` being a template with `{z}`."""
        parts = [
            link.format(z=z) if coefficient == 1.0 else f"{shown(coefficient)} * {link.format(z=z)}"
            for coefficient, z in ((self.agree, "z"), (self.disagree, "(-z)"))
            if coefficient != 0.0
        ]
        return " + ".join(parts).replace("((-z))", "(-z)")


def hard() -> PairLabels:
    """The label is right."""
    return PairLabels()


def smoothed(share: float) -> PairLabels:
    """(1 - share, share): a share of the labels is believed to be flipped (cDPO).

    Raises:
        HyperparameterError: share outside [0, 0.5].
    """
    require("smoothed labels share", share, 0 <= share <= 0.5, "a number in [0, 0.5]")
    return PairLabels(1.0 - share, share)


def robust(share: float) -> PairLabels:
    """(1 - share, -share) / (1 - 2 share): unbiased when a share of the labels is flipped at random (rDPO).

    Unbounded below: the loss falls as -share / (1 - 2 share) * z for large z.

    Raises:
        HyperparameterError: share outside [0, 0.5).
    """
    require("robust labels share", share, 0 <= share < 0.5, "a number in [0, 0.5)")
    return PairLabels((1.0 - share) / (1.0 - 2.0 * share), -share / (1.0 - 2.0 * share))


def mixed(probability: Computed) -> PairLabels:
    """(q, 1 - q) with q computed for every pair: soft labels of a reward model, smoothing per pair."""

    def rest(context: Context) -> Tensor:
        return 1.0 - probability.compute(context)

    other = Computed(
        rest,
        f"(1 - {probability.formula})",
        probability.needs,
        probability.couples_rows,
        probability.attached,
    )
    return PairLabels(probability, other)


def _like(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or tensor in the type of `like`; a Python float must not pass through float32."""
    if isinstance(value, Tensor):
        return value.to(like)
    # A fill, not a copy from the host.
    return torch.full((), value, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class PointLabels:
    """Coefficients of candidates that stand alone, by role: loss = agree * link(z) + disagree * link(-z).

    Args:
        chosen: (agree, disagree) of liked candidates.
        rejected: (agree, disagree) of the others.
    """

    chosen: tuple[Number, Number] = (1.0, 0.0)
    rejected: tuple[Number, Number] = (0.0, 1.0)

    @property
    def opposed(self) -> bool:
        """Liked candidates have the link of z only, the others that of -z only."""
        return self.chosen[1] == 0.0 and self.rejected[0] == 0.0

    def coefficients(
        self, desirable: Bool[Tensor, "prompt candidate"], like: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """(agree, disagree) of every candidate."""

        def pick(number: int) -> Tensor:
            liked = _like(per_candidate(resolve(self.chosen[number], context)), like)
            if self.rejected[number] is self.chosen[number] and isinstance(self.chosen[number], Computed):
                return liked  # one coefficient for both roles: computed once
            other = _like(per_candidate(resolve(self.rejected[number], context)), like)
            return torch.where(desirable, liked, other)

        return pick(0), pick(1)

    def formula(self, link: str, link_rejected: str) -> str:
        """Both roles in plain text."""
        liked = PairLabels(*self.chosen).formula(link) or "0"
        other = PairLabels(*self.rejected).formula(link_rejected) or "0"
        return f"[chosen: {liked}; rejected: {other}]"


def likes(desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> PointLabels:
    """Liked candidates push z up, the others push it down, each role with its weight.

    Raises:
        HyperparameterError: a weight below 0.
    """
    require("desirable_weight", desirable_weight, desirable_weight >= 0, "a number >= 0")
    require("undesirable_weight", undesirable_weight, undesirable_weight >= 0, "a number >= 0")
    return PointLabels((desirable_weight, 0.0), (0.0, undesirable_weight))


def noise_contrastive(target: "Distribution") -> PointLabels:
    """(q_i, 1 / K) for every candidate: each is told from noise with the weight its target gives it (NCA)."""

    def share(context: Context) -> Tensor:
        return target.log_weights(context).exp()

    def uniform(context: Context) -> Tensor:
        real = context.real().to(context.policy.dtype)
        return real / real.sum(1, keepdim=True).clamp(min=1.0)

    pair: tuple[Number, Number] = (
        Computed(share, target.formula, target.needs),
        Computed(uniform, "1 / candidates"),
    )
    return PointLabels(pair, pair)


def is_desirable(context: Context) -> Bool[Tensor, "prompt candidate"]:
    """Which candidates are liked: as labelled, or candidate 0 of every prompt.

    Raises:
        ConfigError: unpaired rows without `Labels.desirable`.
    """
    if context.labels.desirable is not None:
        return context.labels.desirable
    if context.policy.shape[1] == 1:
        message = explain(
            "Labels.desirable",
            got=None,
            expected="True or False for every unpaired row",
            do="Build the labels with Labels.unpaired(desirable).",
        )
        raise ConfigError(message)
    position = torch.arange(context.policy.shape[1], device=context.policy.device)
    return (position == 0).expand(context.policy.shape)


def _masked(values: Tensor, context: Context) -> Tensor:
    return (
        values if context.valid is None else torch.where(context.valid, values, torch.finfo(values.dtype).min)
    )


@dataclass(frozen=True)
class Distribution:
    """A target over the candidates of a prompt.

    Args:
        log_weights: from the context to log q [prompt, candidate]; it need not be normalised where a method's
            official code does not normalise. Padding gets the lowest finite number.
        formula: plain text.
        needs: fields of `Scores` it reads.
    """

    log_weights: Callable[[Context], Float[Tensor, "prompt candidate"]]
    formula: str
    needs: frozenset[str] = frozenset()


def best_first(share: float = 0.0) -> Distribution:
    """1 - share on the best candidate, the rest shared by the others.

    The best is the one with the highest relevance, or candidate 0 without relevance; of a pair with a
    probability, candidate 0 gets that probability.

    Args:
        share: in [0, 1); methods that take the logarithm of the target need it > 0.
    """
    require("best_first share", share, 0 <= share < 1, "a number in [0, 1)")

    def log_weights(context: Context) -> Tensor:
        policy, relevance = context.policy, context.labels.relevance
        if relevance is None:
            best = torch.zeros(policy.shape[0], dtype=torch.int64, device=policy.device)
        else:
            best = _masked(relevance.to(policy.dtype), context).argmax(1)
        liked = F.one_hot(best, policy.shape[1]).to(policy.dtype)
        probability = context.labels.probability
        if relevance is None and probability is not None and policy.shape[1] == 2:
            q = probability.to(policy.dtype)
            liked = torch.stack([q, 1.0 - q], dim=1)
        others = (context.real().to(policy.dtype).sum(1, keepdim=True) - 1.0).clamp(min=1.0)
        weights = liked * (1.0 - share) + (1.0 - liked) * (share / others)
        return _masked(weights.clamp(min=torch.finfo(policy.dtype).tiny).log(), context)

    return Distribution(log_weights, "1 at the best" if share == 0 else f"{1 - share:g} at the best")


def softmax_of(field: str, temperature: float, *, normalised: bool = True) -> Distribution:
    """softmax(field / temperature) over the valid candidates.

    Args:
        field: "reward" (an external score) or "relevance" (the labels').
        temperature: > 0, in the units of the field.
        normalised: False leaves out the normaliser, as some official code does.
    """
    require("softmax_of temperature", temperature, temperature > 0, "a number > 0")

    def log_weights(context: Context) -> Tensor:
        values = context.labels.relevance if field == "relevance" else context.scores.reward
        if values is None:
            message = explain(field, got=None, expected="one number per candidate", do=f"Pass the {field}.")
            raise ConfigError(message)
        logits = _masked(values.to(context.policy.dtype) / temperature, context)
        return _masked(F.log_softmax(logits, dim=1), context) if normalised else logits

    needs = frozenset({"reward"}) if field == "reward" else frozenset[str]()
    return Distribution(log_weights, f"softmax({field} / {temperature:g})", needs)


@dataclass(frozen=True)
class Targets:
    """The value each score is regressed on, by role.

    Args:
        chosen: target of liked candidates, in units of beta * s.
        rejected: target of the others.
    """

    chosen: Number
    rejected: Number

    def values(self, desirable: Bool[Tensor, "prompt candidate"], like: Tensor, context: Context) -> Tensor:
        """The target of every candidate."""
        liked = _like(per_candidate(resolve(self.chosen, context)), like)
        other = _like(per_candidate(resolve(self.rejected, context)), like)
        return torch.where(desirable, liked, other)

    def formula(self) -> str:
        """Both targets in plain text."""
        if self.chosen == self.rejected:
            return shown(self.chosen)
        return f"(chosen: {shown(self.chosen)}, rejected: {shown(self.rejected)})"


def pair_coefficients(labels: PairLabels, context: Context) -> tuple[float | Tensor, float | Tensor]:
    """(agree, disagree), each a number or one per prompt."""
    return per_prompt(resolve(labels.agree, context)), per_prompt(resolve(labels.disagree, context))

"""Rules that move a reference, or the policy between rounds: what a method does outside its loss.

    rule               when                     what it makes
    SyncRule           every so many steps      (1 - mixing) * reference + mixing * policy   (TR-DPO)
    BemaRule           every so many steps      an average without the lag of an average     (BEMA)
    previous_iterate   at the end of a round    the policy as it is                          (iterative DPO)
    extrapolate        between rounds           current + coefficient * (current - previous) (accelerated PO)
    CheckpointPool     when a partner is needed newest, anchor or a random earlier policy    (self-play)
    merge_weights      after several domains    a linear combination                         (COFS-DPO)
    geometric_mixture  at every token           policy^(1 - c) * reference^c, normalised     (Nash-MD, IPO-MD)

Weights are mappings from names to tensors, such as a `state_dict`. Everything on them is a pure function:
nothing is changed in place, results are new tensors without gradient and in the dtype of the weights they
replace, and sums are taken in float32 or wider. Entries that are no floating numbers (counters) are taken
from the newer side. A training run has the first rule as `reference.kind: synced`. BEMA is in
`mmalign.likelihood.bema`, the pool in `mmalign.likelihood.checkpoint_pool`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.likelihood.schedules import Number
from mmalign.objectives.base import require

__all__ = [
    "SyncRule",
    "Weights",
    "combined",
    "extrapolate",
    "geometric_mixture",
    "merge_weights",
    "mix_weights",
    "previous_iterate",
    "require_same_names",
    "weight_in",
]

Weights = Mapping[str, Tensor]
"""Parameters by name."""


def require_same_names(where: str, first: Weights, second: Weights, sides: tuple[str, str]) -> None:
    """Weights of one network: the same names with the same shapes."""
    wrong = sorted(set(first) ^ set(second)) or [
        name for name, value in first.items() if value.shape != second[name].shape
    ]
    if wrong:
        message = (
            f"{where}: {sides[0]} and {sides[1]} differ in {len(wrong)} weights (first: {wrong[:3]}), "
            "expected the same names and shapes. Are both of the same network and adapter?"
        )
        raise ShapeError(message)


def combined(
    newer: Weights, combination: Callable[[str, torch.dtype], Tensor], like: Weights
) -> dict[str, Tensor]:
    """Every floating entry computed in float32 or wider and given back in the dtype of `like`."""
    result = {}
    for name, value in newer.items():
        if value.is_floating_point():
            wide = torch.promote_types(value.dtype, torch.float32)
            result[name] = combination(name, wide).to(like[name].dtype)
        else:
            result[name] = value.detach().clone()
    return result


def weight_in(weights: Weights, name: str, dtype: torch.dtype) -> Tensor:
    """One entry in a dtype, without gradient."""
    return weights[name].detach().to(dtype)


# --- rules on weights ---------------------------------------------------------------------------------------


@torch.no_grad()
def mix_weights(reference: Weights, policy: Weights, *, mixing: Number) -> dict[str, Tensor]:
    """`(1 - mixing) * reference + mixing * policy`, entry by entry; the new reference.

    Args:
        reference: current reference; its dtypes are kept. In half precision a small `mixing` is lost to
            rounding: keep the reference in float32 then.
        policy: current policy.
        mixing: in [0, 1]: 0 keeps the reference, 1 copies the policy to the bit.

    Raises:
        HyperparameterError: `mixing` out of range.
        ShapeError: other names or shapes on one side.

    Source: arXiv 2404.09656, equation 7 (alpha = mixing); trl SyncRefModelCallback.
    """
    require("mix_weights mixing", mixing, 0.0 <= mixing <= 1.0, "a number in [0, 1]")
    require_same_names("mix_weights", reference, policy, ("reference", "policy"))

    def mixed(name: str, dtype: torch.dtype) -> Tensor:
        return torch.lerp(weight_in(reference, name, dtype), weight_in(policy, name, dtype), mixing)

    return combined(policy, mixed, reference)


@torch.no_grad()
def previous_iterate(policy: Weights) -> dict[str, Tensor]:
    """A copy of the policy that nothing changes any more: the reference of the next round.

    Iterative DPO, self-play and SPPO compare with it; within a round it is a frozen reference.
    """
    return {name: value.detach().clone() for name, value in policy.items()}


@torch.no_grad()
def extrapolate(current: Weights, previous: Weights, *, coefficient: Number) -> dict[str, Tensor]:
    """`current + coefficient * (current - previous)`: the start of the next round, a Nesterov step.

    Both are results of the optimisation (before extrapolation) at the end of two rounds; the loss itself is
    unchanged and its reference is the extrapolated policy. For a policy that is log-linear in its parameters
    this is `policy = current * (current / previous)^coefficient`, normalised. In the first round there is no
    previous result: pass `current` for it.

    Args:
        current: trained in this round.
        previous: trained in the round before.
        coefficient: >= 0; 0 is plain iteration. Values below 1 are meant; it may change from round to round.

    Raises:
        HyperparameterError: `coefficient` is negative or no finite number.
        ShapeError: other names or shapes on one side.

    Source: arXiv 2410.06293 (the idea as its abstract has it; schedule of the coefficient not verified).
    """
    holds = math.isfinite(coefficient) and coefficient >= 0.0
    require("extrapolate coefficient", coefficient, holds, "a finite number >= 0")
    require_same_names("extrapolate", current, previous, ("current", "previous"))

    def ahead(name: str, dtype: torch.dtype) -> Tensor:
        now = weight_in(current, name, dtype)
        return now + coefficient * (now - weight_in(previous, name, dtype))

    return combined(current, ahead, current)


@torch.no_grad()
def merge_weights(parts: Sequence[Weights], *, coefficients: Sequence[Number]) -> dict[str, Tensor]:
    """`sum of coefficient_i * part_i`, entry by entry: adapters of several domains as one.

    The factors of a low-rank adapter are combined, as COFS-DPO does with its fast modules; the product of
    combined factors is not the combination of the products.

    Args:
        parts: at least one; the dtypes of the first are kept.
        coefficients: one finite number per part. They need not add up to 1; for a mean they do.

    Raises:
        HyperparameterError: no parts, another number of coefficients, or one that is not finite.
        ShapeError: other names or shapes in one part.

    Source: arXiv 2406.05534 (COFS-DPO, as its abstract has it).
    """
    require("merge_weights parts", len(parts), len(parts) > 0, "at least one set of weights")
    fits = len(coefficients) == len(parts) and all(math.isfinite(value) for value in coefficients)
    require("merge_weights coefficients", list(coefficients), fits, f"{len(parts)} finite numbers")
    for number, part in enumerate(parts[1:], start=1):
        require_same_names("merge_weights", parts[0], part, ("part 0", f"part {number}"))

    def merged(name: str, dtype: torch.dtype) -> Tensor:
        total = coefficients[0] * weight_in(parts[0], name, dtype)
        for part, coefficient in zip(parts[1:], coefficients[1:], strict=True):
            total = total + coefficient * weight_in(part, name, dtype)
        return total

    return combined(parts[0], merged, parts[0])


@dataclass(frozen=True, slots=True)
class SyncRule:
    """TR-DPO: every so many optimiser steps the reference moves towards the policy.

    Args:
        every: optimiser steps between two moves, >= 1 (tau; TRL 512).
        mixing: in [0, 1], share of the policy in the new reference (alpha; TRL 0.6). 1 is the hard rule.

    Source: arXiv 2404.09656, equations 7 and 8; trl 1.16.0 SyncRefModelCallback.
    """

    every: int
    mixing: Number

    def __post_init__(self) -> None:
        """Check both numbers."""
        require("SyncRule every", self.every, self.every >= 1, "at least 1 optimiser step")
        require("SyncRule mixing", self.mixing, 0.0 <= self.mixing <= 1.0, "a number in [0, 1]")

    def is_due(self, step: int) -> bool:
        """Whether the reference moves after `step` steps were done (the first step is 1)."""
        return step > 0 and step % self.every == 0

    def updated(self, reference: Weights, policy: Weights, *, step: int) -> dict[str, Tensor]:
        """The reference after `step` steps: moved when due, a copy of itself otherwise."""
        if not self.is_due(step):
            return previous_iterate(reference)
        return mix_weights(reference, policy, mixing=self.mixing)

    def require_live(self, reference_kind: str) -> None:
        """Refuse a reference that cannot move.

        Args:
            reference_kind: as in `reference.kind` of a run.

        Raises:
            ConfigError: the reference's scores were computed beforehand, or it is the base model without its
                adapters, or there is none.
        """
        reasons = {
            "stored": "scores computed beforehand belong to a reference that never moves",
            "adapters_off": "the network without its adapters is always the base model",
            "none": "there is no reference to move",
        }
        if reference_kind in reasons:
            message = explain(
                "reference.kind with a reference that follows the policy",
                got=reference_kind,
                expected="a copy of the trained weights",
                do=f"Here {reasons[reference_kind]}. Use reference.kind synced.",
            )
            raise ConfigError(message)


# --- mixtures of distributions ------------------------------------------------------------------------------


def geometric_mixture(
    policy_logits: Float[Tensor, "*batch vocabulary"],
    reference_logits: Float[Tensor, "*batch vocabulary"],
    *,
    mixture_coef: Number,
) -> Float[Tensor, "*batch vocabulary"]:
    """Log-probabilities of `policy^(1 - c) * reference^c`, normalised, with c = `mixture_coef`.

    What Nash-MD and IPO-MD sample the other response from. The coefficient is on the reference.

    Args:
        policy_logits: of the next token; no need to be normalised.
        reference_logits: the same for the reference.
        mixture_coef: in [0, 1]; 0 is the policy, 1 the reference. A token that one of the two excludes
            (-inf) is excluded from every mixture in between.

    Returns:
        In float32 or wider.

    Raises:
        HyperparameterError: the coefficient is out of range.

    Source: arXiv 2312.00886, section 4 (mixture of the policy and mu); trl GeometricMixtureWrapper.
    """
    require("geometric_mixture mixture_coef", mixture_coef, 0.0 <= mixture_coef <= 1.0, "a number in [0, 1]")
    wide = torch.promote_types(policy_logits.dtype, torch.float32)
    # 0 * -inf would be NaN: at the ends only one side is looked at.
    if mixture_coef == 0.0:
        return policy_logits.to(wide).log_softmax(-1)
    if mixture_coef == 1.0:
        return reference_logits.to(wide).log_softmax(-1)
    # Each side is normalised first: raw logits carry an arbitrary level that costs digits.
    policy, reference = policy_logits.to(wide).log_softmax(-1), reference_logits.to(wide).log_softmax(-1)
    return ((1.0 - mixture_coef) * policy + mixture_coef * reference).log_softmax(-1)

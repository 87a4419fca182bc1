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
from the newer side. A training run has the first rule as `reference.kind: synced`.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import CheckpointError, ConfigError, ShapeError, explain
from mmalign.likelihood.schedules import Number
from mmalign.objectives.base import require

__all__ = [
    "BemaRule",
    "BemaState",
    "CheckpointPool",
    "PoolChoice",
    "SyncRule",
    "Weights",
    "extrapolate",
    "geometric_mixture",
    "merge_weights",
    "mix_weights",
    "previous_iterate",
]

Weights = Mapping[str, Tensor]
"""Parameters by name."""

PoolChoice = Literal["newest", "anchor", "random"]
"""Which earlier policy a pool gives: the last one added, the first one ever, or any with equal chance."""


def _require_same_names(where: str, first: Weights, second: Weights, sides: tuple[str, str]) -> None:
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


def _combine(
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


def _wide(weights: Weights, name: str, dtype: torch.dtype) -> Tensor:
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
    _require_same_names("mix_weights", reference, policy, ("reference", "policy"))

    def mixed(name: str, dtype: torch.dtype) -> Tensor:
        return torch.lerp(_wide(reference, name, dtype), _wide(policy, name, dtype), mixing)

    return _combine(policy, mixed, reference)


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
    _require_same_names("extrapolate", current, previous, ("current", "previous"))

    def ahead(name: str, dtype: torch.dtype) -> Tensor:
        now = _wide(current, name, dtype)
        return now + coefficient * (now - _wide(previous, name, dtype))

    return _combine(current, ahead, current)


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
        _require_same_names("merge_weights", parts[0], part, ("part 0", f"part {number}"))

    def merged(name: str, dtype: torch.dtype) -> Tensor:
        total = coefficients[0] * _wide(parts[0], name, dtype)
        for part, coefficient in zip(parts[1:], coefficients[1:], strict=True):
            total = total + coefficient * _wide(part, name, dtype)
        return total

    return _combine(parts[0], merged, parts[0])


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


@dataclass(frozen=True)
class BemaState:
    """What `BemaRule` remembers.

    Args:
        start: weights when averaging began.
        average: their plain average since.
    """

    start: Weights
    average: Weights

    def state_dict(self) -> dict[str, Tensor]:
        """Both as one flat mapping, for a checkpoint."""
        parts = (("start", self.start), ("average", self.average))
        return {f"{part}.{name}": value for part, weights in parts for name, value in weights.items()}

    @classmethod
    def from_state_dict(cls, state: Weights) -> "BemaState":
        """Inverse of `state_dict`.

        Raises:
            CheckpointError: an entry belongs to neither part, or the parts have other names.
        """
        parts: dict[str, dict[str, Tensor]] = {"start": {}, "average": {}}
        for key, value in state.items():
            part, _, name = key.partition(".")
            if part not in parts:
                message = (
                    f"average of the weights: got the entry {key!r}, expected start.NAME or average.NAME."
                )
                raise CheckpointError(message)
            parts[part][name] = value
        if parts["start"].keys() != parts["average"].keys():
            stray = sorted(parts["start"].keys() ^ parts["average"].keys())
            message = f"average of the weights: {len(stray)} weights in one part only (first: {stray[:3]})."
            raise CheckpointError(message)
        return cls(**parts)


@dataclass(frozen=True, slots=True)
class BemaRule:
    """Bias-corrected moving average: an average that does not lag behind the weights it averages.

    With the age `n = lag + multiplier * step`:
        average <- (1 - n^-ema_power) * average + n^-ema_power * policy
        weights  = average + n^-bias_power * (policy - start)

    Args:
        every: optimiser steps between two updates, >= 1 (TRL 400).
        ema_power: >= 0 (TRL 0.5); 0 makes the average the policy itself.
        bias_power: >= 0 (TRL 0.2); large values switch the correction off, 0 keeps it whole.
        lag: >= 1, age at step 0 (TRL 10).
        multiplier: >= 0, age per step (TRL 1).
        after: steps before the average begins (TRL 0).
        smallest: in [0, 1], lower bound of the average's weight on the policy (TRL 0).

    Source: arXiv 2508.00180; trl 1.16.0 BEMACallback, whose steps also count from the start of the run and
    not from `after`.
    """

    every: int
    ema_power: Number
    bias_power: Number
    lag: Number
    multiplier: Number = 1.0
    after: int = 0
    smallest: Number = 0.0

    def __post_init__(self) -> None:
        """Check every number."""
        require("BemaRule every", self.every, self.every >= 1, "at least 1 optimiser step")
        for name in ("ema_power", "bias_power", "multiplier", "after"):
            value = getattr(self, name)
            require(f"BemaRule {name}", value, math.isfinite(value) and value >= 0, "a finite number >= 0")
        # A smaller age would weigh the policy by more than 1.
        holds = math.isfinite(self.lag) and self.lag >= 1
        require("BemaRule lag", self.lag, holds, "a finite number >= 1")
        require("BemaRule smallest", self.smallest, 0.0 <= self.smallest <= 1.0, "a number in [0, 1]")

    def begin(self, policy: Weights) -> BemaState:
        """The state before the first step."""
        return BemaState(previous_iterate(policy), previous_iterate(policy))

    def is_due(self, step: int) -> bool:
        """Whether the average moves after `step` steps."""
        return step > self.after and (step - self.after) % self.every == 0

    def ema_weight(self, step: int) -> float:
        """The average's weight on the policy after `step` steps."""
        return max(math.pow(self.lag + self.multiplier * step, -self.ema_power), self.smallest)

    def correction(self, step: int) -> float:
        """Factor of the way since the start after `step` steps."""
        return math.pow(self.lag + self.multiplier * step, -self.bias_power)

    def updated(self, state: BemaState, policy: Weights, *, step: int) -> BemaState:
        """The state after `step` steps; begins anew at step `after`, unchanged when nothing is due."""
        if step == self.after:
            return self.begin(policy)
        if not self.is_due(step):
            return state
        return BemaState(state.start, mix_weights(state.average, policy, mixing=self.ema_weight(step)))

    @torch.no_grad()
    def weights(self, state: BemaState, policy: Weights, *, step: int) -> dict[str, Tensor]:
        """The corrected average; `policy` and `step` are those of the last update.

        Raises:
            ShapeError: the policy has other names or shapes than the state.
        """
        _require_same_names("BemaRule", state.start, policy, ("state", "policy"))
        correction = self.correction(step)

        def corrected(name: str, dtype: torch.dtype) -> Tensor:
            way = _wide(policy, name, dtype) - _wide(state.start, name, dtype)
            return _wide(state.average, name, dtype) + correction * way

        return _combine(policy, corrected, policy)


# --- pools of earlier policies ------------------------------------------------------------------------------


@dataclass
class CheckpointPool:
    """Earlier policies to compare with or to play against.

    The first policy added is the anchor and stays; beyond `capacity` the oldest of the others goes.

    Args:
        capacity: policies kept, >= 1. With 1 only the anchor is kept.
    """

    capacity: int
    _kept: "OrderedDict[int, dict[str, Tensor]]" = field(default_factory=OrderedDict, init=False)

    def __post_init__(self) -> None:
        """Check the capacity."""
        require("CheckpointPool capacity", self.capacity, self.capacity >= 1, "at least 1 policy")

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the policies kept, oldest first."""
        return tuple(self._kept)

    def add(self, step: int, policy: Weights) -> None:
        """Keep a copy of `policy` as it is after `step` steps.

        Raises:
            HyperparameterError: `step` is not later than the last one added.
            ShapeError: other names or shapes than the policies kept.
        """
        if self._kept:
            last = self.steps[-1]
            require("CheckpointPool step", step, step > last, f"a step after {last}, the last one added")
            _require_same_names("CheckpointPool", self._kept[self.steps[0]], policy, ("pool", "policy"))
        self._kept[step] = previous_iterate(policy)
        if len(self._kept) > self.capacity:
            oldest = self.steps[1]  # the anchor stays
            del self._kept[oldest]

    def choose(self, choice: PoolChoice, *, generator: torch.Generator | None = None) -> tuple[int, Weights]:
        """Step and weights of an earlier policy.

        Args:
            choice: newest, anchor or random.
            generator: on the CPU; what "random" draws with. Its state is the caller's to save.

        Raises:
            ConfigError: the pool is empty, there is no such choice, or "random" has no generator.
        """
        if not self._kept:
            message = explain("CheckpointPool", got="an empty pool", expected="at least one policy added")
            raise ConfigError(message)
        if choice == "newest":
            number = len(self._kept) - 1
        elif choice == "anchor":
            number = 0
        elif choice == "random" and generator is not None:
            number = int(torch.randint(len(self._kept), (), generator=generator))
        else:
            message = explain(
                "CheckpointPool choice",
                got=choice if choice != "random" else "random without a generator",
                expected="newest, anchor, or random with a torch.Generator",
            )
            raise ConfigError(message)
        step = self.steps[number]
        return step, self._kept[step]

    def state_dict(self) -> dict[str, Tensor]:
        """All policies kept as one flat mapping, `STEP.NAME` to tensor, for a checkpoint."""
        return {f"{step}.{name}": value for step, kept in self._kept.items() for name, value in kept.items()}

    def load_state_dict(self, state: Weights) -> None:
        """Put back what `state_dict` gave.

        Raises:
            CheckpointError: an entry has no step, or there are more policies than `capacity`.
        """
        kept: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            step, _, name = key.partition(".")
            if not step.isdigit() or not name:
                message = f"checkpoint pool: got the entry {key!r}, expected STEP.NAME."
                raise CheckpointError(message)
            kept.setdefault(int(step), {})[name] = value.detach().clone()
        if len(kept) > self.capacity:
            message = (
                f"checkpoint pool: got {len(kept)} policies, expected at most {self.capacity} (capacity)."
            )
            raise CheckpointError(message)
        self._kept = OrderedDict(sorted(kept.items()))


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

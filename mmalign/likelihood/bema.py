"""BEMA: a reference that is an average of the policy, corrected for the lag that averages have."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.errors import CheckpointError
from mmalign.likelihood.reference_rules import (
    Weights,
    combined,
    mix_weights,
    previous_iterate,
    require_same_names,
    weight_in,
)
from mmalign.likelihood.schedules import Number
from mmalign.objectives.base import require

__all__ = ["BemaRule", "BemaState"]


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
        require_same_names("BemaRule", state.start, policy, ("state", "policy"))
        correction = self.correction(step)

        def corrected(name: str, dtype: torch.dtype) -> Tensor:
            way = weight_in(policy, name, dtype) - weight_in(state.start, name, dtype)
            return weight_in(state.average, name, dtype) + correction * way

        return combined(policy, corrected, policy)

"""A pool of earlier policies, to compare with or to play against."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.likelihood.reference_rules import Weights, previous_iterate, require_same_names
from mmalign.objectives.base import require

__all__ = ["CheckpointPool", "PoolChoice"]

PoolChoice = Literal["newest", "anchor", "random"]
"""Which earlier policy a pool gives: the last one added, the first one ever, or any with equal chance."""


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
            require_same_names("CheckpointPool", self._kept[self.steps[0]], policy, ("pool", "policy"))
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

"""How the timestep of each row is drawn: uniform, from a list, or logit-normal; each plain or stratified.

Every sampler turns a number in [0, 1) into a timestep. Plain, that number is uniform and independent per row;
stratified, the rows of one optimiser step share [0, 1) evenly among them: `(position + u) / rows of the
step`. The distribution of a single row is the same, the average over a step varies less.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.batch import RowKeys
from mmalign.errors import HyperparameterError, explain
from mmalign.likelihood.schedules import DeviceTable, Number, Schedule
from mmalign.seeding import row_uniform

__all__ = ["ListedTimesteps", "LogitNormalTimesteps", "TimestepSampler", "UniformTimesteps"]


@dataclass(frozen=True)
class TimestepSampler(ABC):
    """Draws one timestep per prompt, or one per candidate.

    Args:
        stratified: spread the rows of an optimiser step evenly.
    """

    stratified: bool = field(default=False, kw_only=True)

    @abstractmethod
    def place(self, fraction: Float[Tensor, "*batch"], schedule: Schedule) -> Shaped[Tensor, "*batch"]:
        """The timestep at a fraction in [0, 1) of the distribution."""

    @abstractmethod
    def check(self, schedule: Schedule) -> None:
        """Raise `HyperparameterError` when the settings do not fit the schedule."""

    def sample(
        self, keys: RowKeys, schedule: Schedule, *, num_candidates: int | None = None
    ) -> Shaped[Tensor, "prompt ..."]:
        """Timesteps `[prompt]`, or `[prompt, candidate]` when `num_candidates` asks for one per candidate."""
        return self.place(self.fractions(keys, num_candidates), schedule)

    def fractions(self, keys: RowKeys, num_candidates: int | None = None) -> Float[Tensor, "prompt ..."]:
        """Numbers in [0, 1), decided by the row keys alone.

        Stratified draws per candidate are rotated by `candidate / num_candidates`, so that each candidate's
        timesteps cover the step evenly and the candidates of a row differ.
        """
        if num_candidates is None:
            drawn, stratum = row_uniform(keys.key, 1, purpose="timestep").squeeze(1), keys.stratum
        else:
            drawn = row_uniform(keys.key, num_candidates, purpose="timestep_candidate")
            turn = torch.arange(num_candidates, device=drawn.device, dtype=drawn.dtype) / num_candidates
            stratum = keys.stratum.unsqueeze(1) + turn
        if not self.stratified:
            return drawn
        # The remainder also keeps a last stratum that rounds up to 1 inside [0, 1).
        return (stratum + drawn / keys.num_strata) % 1.0


@dataclass(frozen=True)
class UniformTimesteps(TimestepSampler):
    """Uniform over a range in the schedule's own unit.

    Args:
        low: first index, or lowest sigma.
        high: index after the last, or highest sigma; None is the end of the schedule.
    """

    low: Number = 0
    high: Number | None = None

    def place(self, fraction: Float[Tensor, "*batch"], schedule: Schedule) -> Shaped[Tensor, "*batch"]:
        """Indices: `low + floor(fraction * (high - low))`; sigmas: uniform before the shift."""
        return schedule.between(fraction, self.low, self.high)

    def check(self, schedule: Schedule) -> None:
        """The range must lie in the schedule and not be empty."""
        if self.high is not None and not self.low < self.high:
            message = explain(
                "UniformTimesteps", got=f"low={self.low}, high={self.high}", expected="low below high"
            )
            raise HyperparameterError(message)
        schedule.check_timesteps("UniformTimesteps.low", (self.low,))
        if self.high is not None and self.high != schedule.num_timesteps:
            schedule.check_timesteps("UniformTimesteps.high", (self.high,))


@dataclass(frozen=True)
class ListedTimesteps(TimestepSampler):
    """Uniform over a list: few-step models train at the timesteps they sample at (Turbo 249, 499, 749, 999).

    Args:
        values: indices, or sigmas.
    """

    values: tuple[Number, ...]
    _tables: dict[Schedule, DeviceTable] = field(default_factory=dict, init=False, repr=False, compare=False)

    def place(self, fraction: Float[Tensor, "*batch"], schedule: Schedule) -> Shaped[Tensor, "*batch"]:
        """`values[floor(fraction * number of values)]`."""
        if schedule not in self._tables:
            self._tables[schedule] = DeviceTable(schedule.table_of(self.values))
        count = len(self.values)
        return self._tables[schedule].at((fraction * count).long().clamp(0, count - 1))

    def check(self, schedule: Schedule) -> None:
        """At least one value, each a timestep of the schedule."""
        if not self.values:
            raise HyperparameterError(
                explain("ListedTimesteps.values", got="[]", expected="at least one timestep")
            )
        schedule.check_timesteps("ListedTimesteps.values", self.values)


@dataclass(frozen=True)
class LogitNormalTimesteps(TimestepSampler):
    """Progress from noise (0) to data (1) is `sigmoid(mean + std * normal)`; the schedule shifts it.

    A mean above 0 favours less noise: this is the `logit_mean` of the public SD3 training scripts. (The paper
    counts from the other end.)

    Args:
        mean: of the logit.
        std: of the logit, above 0.

    Source: 2403.03206, equation 19; diffusers training_utils.compute_density_for_timestep_sampling.
    """

    mean: Number
    std: Number

    def place(self, fraction: Float[Tensor, "*batch"], schedule: Schedule) -> Shaped[Tensor, "*batch"]:
        """The quantile of the distribution at `fraction`; of what the schedule cuts off, none."""
        first, last = (self._share_before(progress) for progress in schedule.progress_range)
        if (first, last) != (0.0, 1.0):
            fraction = first + fraction * (last - first)
        return schedule.timestep_at(torch.sigmoid(self.mean + self.std * torch.special.ndtri(fraction)))

    def _share_before(self, progress: float) -> float:
        """How much of the distribution lies before a progress in [0, 1]."""
        if progress <= 0 or progress >= 1:
            return float(progress >= 1)
        logit = math.log(progress / (1 - progress))
        return 0.5 * (1 + math.erf((logit - self.mean) / (self.std * math.sqrt(2))))

    def check(self, schedule: Schedule) -> None:
        """The standard deviation must be positive; any schedule fits."""
        del schedule
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            message = explain(
                "LogitNormalTimesteps",
                got=f"mean={self.mean}, std={self.std}",
                expected="finite numbers, std above 0",
            )
            raise HyperparameterError(message)

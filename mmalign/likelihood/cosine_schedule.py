"""The continuous variance-preserving schedule of Stable Audio: a quarter turn from clean to noise."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.likelihood.schedule import Number, Prediction, Schedule

__all__ = ["CosineSchedule"]


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """`alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`; t in [0, 1] is what the network is given.

    A sampler that counts noise levels by `sigma / alpha` (EDM) is at `t = atan(sigma / alpha) * 2 / pi`.

    Args:
        num_timesteps: scale of the network's time input.

    Source: 2202.00512, appendix D; diffusers CosineDPMSolverMultistepScheduler, `precondition_noise`.
    """

    num_timesteps: int = 1

    def coefficients(
        self, timestep: Float[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """`(cos(pi t / 2), sin(pi t / 2))`; exactly (0, 1) at t = 1, where rounding would go below 0."""
        angle = timestep.to(dtype) * (math.pi / 2)
        return torch.where(timestep >= 1, 0.0, angle.cos()), angle.sin()

    def determinant(
        self, kind: Prediction, timestep: Float[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*batch"]:
        """As the base class; exactly 1 for v, without the rounding of `alpha^2 + sigma^2`."""
        if kind == "v_prediction":
            return torch.ones_like(timestep, dtype=dtype)
        return super().determinant(kind, timestep, dtype)

    def timestep_at(self, progress: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """`1 - progress`."""
        return 1 - progress

    def between(
        self, fraction: Float[Tensor, "*batch"], low: Number, high: Number | None
    ) -> Float[Tensor, "*batch"]:
        """`low + fraction * (high - low)`."""
        last = 1.0 if high is None else float(high)
        return low + fraction * (last - low)

    def network_time(self, timestep: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """T as it is, times `num_timesteps`."""
        return timestep * self.num_timesteps

    def check_timesteps(self, where: str, values: tuple[Number, ...]) -> None:
        """Every value must lie in [0, 1]."""
        for value in values:
            if not 0.0 <= value <= 1.0:
                message = explain(where, got=value, expected="t between 0 (clean) and 1 (noise)")
                raise HyperparameterError(message)

    def table_of(self, values: tuple[Number, ...]) -> Float[Tensor, " value"]:
        """`values` as numbers from 0 to 1."""
        return torch.tensor([float(value) for value in values], dtype=torch.float32)

    def loses_clean(self, kind: Prediction) -> bool:
        """True for epsilon: t = 1 is pure noise."""
        return kind == "epsilon"

    def describe(self) -> dict[str, str]:
        """Its name and its scale."""
        return {"schedule": f"cosine, {self.num_timesteps} timesteps, continuous"}

"""A variance-preserving schedule whose clean sample fades before it is mixed with noise: VideoCrafter2's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.files import fingerprint
from mmalign.likelihood.schedules import DeviceTable, Prediction, Schedule, VPSchedule

__all__ = ["ScaledVPSchedule", "fading"]


def fading(num_timesteps: int, *, end: float, over: int) -> Float[Tensor, " timestep"]:
    """Factors of the clean sample: linear from 1 to `end` over the first timesteps, then `end`; float64.

    Args:
        num_timesteps: of the schedule.
        end: 0.7 in VideoCrafter2.
        over: timesteps of the linear part, 400 there.

    Source: AILab-CVC/VideoCrafter lvdm/models/ddpm3d.py, `scale_arr`.
    """
    first = torch.linspace(1.0, end, over, dtype=torch.float64)
    return torch.cat([first, first.new_full((max(0, num_timesteps - over),), end)])[:num_timesteps]


@dataclass(frozen=True, eq=False)
class ScaledVPSchedule(VPSchedule):
    """`alpha = scale_t sqrt(abar_t)`, `sigma = sqrt(1 - abar_t)`; a network's noise is still the noise.

    Args:
        alphas_cumprod: `abar_t` for every timestep.
        scale: of the clean sample, for every timestep, above 0.
    """

    scale: Float[Tensor, " timestep"]
    _scales: DeviceTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the tables once, on the host."""
        super().__post_init__()
        scale = self.scale.detach().to("cpu")
        if scale.shape[0] != self.num_timesteps or not bool((scale > 0).all()):
            message = explain(
                "ScaledVPSchedule.scale",
                got=f"{scale.shape[0]} factors, the smallest {scale.min().item() if scale.numel() else None}",
                expected=f"{self.num_timesteps}, one per timestep, above 0",
            )
            raise HyperparameterError(message)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "_scales", DeviceTable(scale))

    @classmethod
    def of(cls, config: Mapping[str, Any], *, end: float, over: int) -> "ScaledVPSchedule":
        """The schedule of a diffusers scheduler config, its clean sample fading. See `fading`."""
        plain = VPSchedule.from_scheduler_config(config)
        return cls(plain.alphas_cumprod, fading(plain.num_timesteps, end=end, over=over))

    def coefficients(
        self, timestep: Int[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """`(scale_t sqrt(abar_t), sqrt(1 - abar_t))`."""
        alpha, sigma = super().coefficients(timestep, dtype)
        return alpha * self._scales.at(timestep, dtype), sigma

    def determinant(
        self, kind: Prediction, timestep: Int[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*batch"]:
        """As every schedule: for v `alpha^2 + sigma^2`, which is not 1 here."""
        return Schedule.determinant(self, kind, timestep, dtype)

    def with_clean(self) -> "ScaledVPSchedule":
        """The schedule with the clean sample as one more, last timestep."""
        whole = super().with_clean()
        return ScaledVPSchedule(whole.alphas_cumprod, torch.cat([self.scale, self.scale.new_ones(1)]))

    def describe(self) -> dict[str, str]:
        """As the plain one, and a hash of the factors."""
        numbers = fingerprint([f"{value:.9e}" for value in self.scale.tolist()])
        return {"schedule": f"{super().describe()['schedule']}, clean sample scaled {numbers}"}

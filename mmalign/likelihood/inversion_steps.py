"""Where the steps of an inversion begin and end, for rows that each have a timestep of their own.

The state that an inversion carries is the noise in `sample = alpha * clean + sigma * noise`. A step from
level s up to level u, with `answer` the network's noise prediction, is

    noise_u = r * noise_s + (sqrt(1 - k^2) - r) * answer + k * z
    r = (sigma_s / alpha_s) / (sigma_u / alpha_u)                 1 for a step of length 0, 0 from clean
    k = eta * sqrt(variance) / sigma_u,    variance = sigma_s^2 * (1 - r^2)

With eta = 0 this is the deterministic DDIM step written for the noise instead of the sample (on rectified
flow: Euler in sigma). No difference of almost equal samples is divided by a small sigma, so float32 is enough
near the clean end. `variance` is DDIM's: the one of q(x_s | x_u, clean), on every schedule.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.likelihood.schedules import FlowSchedule, Number, Schedule, VPSchedule
from mmalign.shapes import align_to_event

__all__ = ["InversionSteps", "Landing", "Route"]

Landing = Literal["exact", "official_0_20", "official_current"]
"""Where an inversion ends: on the drawn timestep, or on the grid of diffusers' inverse scheduler (0.20, which
the official code pins, or a current one) whatever the timestep it is then labelled with."""

_OFFSET = 1  # steps_offset of Stable Diffusion's scheduler config: the official grids are 1, 101, 201, ...


class Route(NamedTuple):
    """What every step does to every row, and how many steps a row makes.

    `asked`, `source` and `target` are timesteps of `InversionSteps.levels`. The network is called at the
    sample of level `source` with the time input `time`; its answer is read as one for level `asked`, so that
    a network means the same noise in whatever parametrisation it predicts.
    """

    time: Shaped[Tensor, "step row"]
    asked: Shaped[Tensor, "step row"]
    source: Shaped[Tensor, "step row"]
    target: Shaped[Tensor, "step row"]
    keep: Float[Tensor, "step row"]
    push: Float[Tensor, "step row"]
    kick: Float[Tensor, "step row"]
    num: Int[Tensor, " row"]

    def rows(self, order: Int[Tensor, " row"]) -> "Route":
        """The route with its rows in another order."""
        return Route(*(value.index_select(-1, order) for value in self))

    def to(self, device: torch.device) -> "Route":
        """The route on another device."""
        return Route(*(value.to(device, non_blocking=True) for value in self))


class _Ends(NamedTuple):
    """Both ends of every step, the two levels that decide the size of its random part, who makes it."""

    time: Shaped[Tensor, "step row"]
    asked: Shaped[Tensor, "step row"]
    source: Shaped[Tensor, "step row"]
    target: Shaped[Tensor, "step row"]
    noise_source: Shaped[Tensor, "step row"]
    noise_target: Shaped[Tensor, "step row"]
    active: Bool[Tensor, "step row"]


@dataclass(frozen=True)
class InversionSteps:
    """The grid of an inversion on a schedule.

    Args:
        schedule: how noise and data mix.
        landing: where an inversion ends.
        num: steps from clean to pure noise.
        eta: size of the random part, 0 to 1.

    Attributes:
        levels: the schedule; a variance-preserving one has the clean sample as one more, last timestep.
        clean: the timestep of the clean sample in `levels`.

    Raises:
        ConfigError: an official landing on another schedule than a variance-preserving one.
    """

    schedule: Schedule
    landing: Landing
    num: int
    eta: Number
    levels: Schedule = field(init=False, repr=False, compare=False)
    clean: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Give the clean sample a level; rectified flow has it, sigma 0."""
        levels, clean = self.schedule, 0
        if isinstance(self.schedule, VPSchedule):
            levels, clean = self.schedule.with_clean(), self.schedule.num_timesteps
        elif self.landing != "exact":
            message = explain(
                "Inversion.landing",
                got=f"{self.landing} on {type(self.schedule).__name__}",
                expected="exact: the official landings exist for variance-preserving schedules alone",
            )
            raise ConfigError(message)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "clean", clean)

    def count(self, timestep: Shaped[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Steps from clean to `timestep`."""
        return self._ends(timestep).active.sum(0)

    def route(self, timestep: Shaped[Tensor, " row"], dtype: torch.dtype) -> Route:
        """Levels and coefficients of every step of every row, on the timesteps' device."""
        ends = self._ends(timestep)
        keep = self._ratio(ends.source, ends.target, dtype)
        _, sigma = self.levels.coefficients(ends.target, dtype)
        _, low = self.levels.coefficients(ends.noise_source, dtype)
        ratio = self._ratio(ends.noise_source, ends.noise_target, dtype)
        spread = low * (1 - ratio.square()).clamp(min=0).sqrt()
        kick = torch.where(sigma > 0, self.eta * spread / sigma, 0.0)
        # The official code adds the random part on top, which lifts the noise level above the timestep's.
        whole = (1 - kick.square()).clamp(min=0).sqrt() if self.landing == "exact" else 1.0
        return Route(
            time=ends.time,
            asked=ends.asked,
            source=ends.source,
            target=ends.target,
            keep=keep,
            push=whole - keep,
            kick=kick,
            num=ends.active.sum(0),
        )

    def start(self, clean: Float[Tensor, " row *event"]) -> Float[Tensor, " row *event"]:
        """Noise at the start: none; the official code takes the clean sample for one of timestep 0."""
        none = torch.zeros_like(clean)
        if self.landing == "exact":
            return none
        first = torch.zeros(clean.shape[0], dtype=torch.int64, device=clean.device)
        return self._relabelled(clean, none, source=torch.full_like(first, self.clean), to=first)

    def labelled(
        self,
        clean: Float[Tensor, " row *event"],
        noise: Float[Tensor, " row *event"],
        *,
        route: Route,
        timestep: Shaped[Tensor, " row"],
    ) -> Float[Tensor, " row *event"]:
        """The noise of what was reached, read as a sample of level `timestep`."""
        if self.landing == "exact":
            return noise
        last = (route.num - 1).clamp(min=0).unsqueeze(0)
        reached = torch.where(route.num > 0, route.target.gather(0, last).squeeze(0), 0)
        return self._relabelled(clean, noise, source=reached, to=timestep)

    def _relabelled(
        self,
        clean: Float[Tensor, " row *event"],
        noise: Float[Tensor, " row *event"],
        *,
        source: Int[Tensor, " row"],
        to: Int[Tensor, " row"],
    ) -> Float[Tensor, " row *event"]:
        """The noise at level `to` of the sample that `clean` and `noise` make at level `source`."""
        alpha, sigma = self.levels.coefficients(source, clean.dtype)
        new_alpha, new_sigma = self.levels.coefficients(to, clean.dtype)
        of_clean, of_noise = (alpha - new_alpha) / new_sigma, sigma / new_sigma
        return align_to_event(of_clean, clean) * clean + align_to_event(of_noise, noise) * noise

    def _ratio(
        self, source: Shaped[Tensor, "step row"], target: Shaped[Tensor, "step row"], dtype: torch.dtype
    ) -> Float[Tensor, "step row"]:
        """`r`: noise-to-signal ratio of the source over that of the target; 0 where the target has none."""
        alpha, sigma = self.levels.coefficients(source, dtype)
        new_alpha, new_sigma = self.levels.coefficients(target, dtype)
        return torch.where(new_sigma > 0, new_alpha * sigma / (alpha * new_sigma), 0.0)

    def _ends(self, timestep: Shaped[Tensor, " row"]) -> _Ends:
        return self._exact(timestep) if self.landing == "exact" else self._official(timestep)

    def _exact(self, timestep: Shaped[Tensor, " row"]) -> _Ends:
        """Even steps from clean, the last one shortened; a timestep of 0 is one step too."""
        number = torch.arange(self.num + 1, device=timestep.device).unsqueeze(1)
        if isinstance(self.schedule, FlowSchedule):
            points = self.schedule.shifted(number.to(timestep.dtype) / self.num)
        else:
            points = number * self.schedule.num_timesteps // self.num
        here = points[:-1].expand(-1, timestep.shape[0])
        target = torch.minimum(points[1:], timestep)
        source = torch.where(number[:-1] == 0, self.clean, here)
        active = (here < timestep) | (number[:-1] == 0)
        time = self.schedule.network_time(here)
        return _Ends(time, here, source, target, source, target, active)

    def _official(self, timestep: Int[Tensor, " row"]) -> _Ends:
        """The grid of diffusers' inverse scheduler: every time below the timestep makes a whole step."""
        end = self.schedule.num_timesteps - 1
        stride = self.schedule.num_timesteps // self.num
        number = torch.arange(self.num, device=timestep.device).unsqueeze(1)
        before = (_OFFSET + (number - 1) * stride).expand(-1, timestep.shape[0])
        # 0.20 asks the network at the lower end of a step, a current one at its upper end.
        time = before if self.landing == "official_0_20" else before + stride
        return _Ends(
            time=self.schedule.network_time(time),
            asked=time.clamp(0, end),
            source=before.clamp(0, end),
            target=(before + stride).clamp(0, end),
            noise_source=time.clamp(0, end),
            noise_target=(time + stride).clamp(0, end),
            active=time < timestep,
        )

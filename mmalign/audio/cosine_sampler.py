"""Stable Audio's sampler: a stochastic multistep solver of second order over an exponential grid.

diffusers has it as `CosineDPMSolverMultistepScheduler`, whose noise comes from a Brownian tree of another
library. A solver that never looks back needs only the tree's increments over its own steps, which are
independent normals: here every clip draws them from its own generator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain

__all__ = ["COSINE_SCHEDULER", "CosineSampler"]

COSINE_SCHEDULER = "CosineDPMSolverMultistepScheduler"
"""What pipeline folders call it."""


@dataclass(frozen=True)
class _Step:
    """Weights of one step: `sample`, the clean estimate, its change since the last step, and noise."""

    sample: float
    clean: float
    change: float
    noise: float


class CosineSampler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """SDE-DPM-Solver++ (2M) on `x = clean + sigma noise`; the network sees `x / sqrt(sigma^2 + 1)`.

    With `r = sigma_next / sigma` a step is `r^2 x + (1 - r^2) (D0 + D1 / 2) + sigma_next sqrt(1 - r^2) z`,
    where D0 is the clean estimate and D1 its extrapolated change. Settings as in diffusers' class.

    Args:
        sigma_min: lowest noise level but 0.
        sigma_max: highest.
        sigma_data: standard deviation of the latents.
        sigma_schedule: how levels are spaced: evenly in their logarithm, or Karras's way.
        num_train_timesteps: kept for the settings' sake.
        solver_order: 1 or 2.
        prediction_type: of the network.
        rho: of Karras's spacing.
        solver_type: how the change counts.
        lower_order_final: the last step of short grids is of first order.
        euler_at_final: the last step of all grids is.
        final_sigmas_type: whether the last step ends at 0 or at `sigma_min`.

    Source: 2211.01095, algorithm 2 (SDE version of section 5.2); diffusers
        schedulers/scheduling_cosine_dpmsolver_multistep.py.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sigma_min: int | float = 0.3,
        sigma_max: int | float = 500.0,
        sigma_data: int | float = 1.0,
        sigma_schedule: str = "exponential",
        num_train_timesteps: int = 1000,
        solver_order: int = 2,
        prediction_type: str = "v_prediction",
        rho: int | float = 7.0,
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        del num_train_timesteps, rho, lower_order_final, euler_at_final
        for name, got, known in (
            ("solver_order", solver_order, (1, 2)),
            ("solver_type", solver_type, ("midpoint", "heun")),
            ("prediction_type", prediction_type, ("epsilon", "v_prediction")),
            ("sigma_schedule", sigma_schedule, ("exponential", "karras")),
            ("sigma_data", sigma_data, (1.0,)),
            ("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min")),
        ):
            if got not in known:
                message = explain(
                    f"{COSINE_SCHEDULER} {name}", got=got, expected=" or ".join(map(str, known))
                )
                raise ConfigError(message)
        if not 0 < sigma_min < sigma_max:
            message = explain(
                f"{COSINE_SCHEDULER} sigma_min, sigma_max",
                got=(sigma_min, sigma_max),
                expected="0 < sigma_min < sigma_max",
            )
            raise ConfigError(message)
        self.timesteps: Tensor = torch.zeros(0)
        self._levels: list[float] = []
        self._number = 0
        self._last_clean: Tensor | None = None

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first latents: `sqrt(sigma_max^2 + 1)`."""
        return math.sqrt(self.config.sigma_max**2 + 1)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lay out so many noise levels; `timesteps` is what the network is told, `atan(sigma) * 2 / pi`."""
        low, high = self.config.sigma_min, self.config.sigma_max
        along = torch.linspace(0, 1, num_inference_steps, dtype=torch.float64)
        if self.config.sigma_schedule == "karras":
            root = 1 / self.config.rho
            levels = (high**root + along * (low**root - high**root)) ** self.config.rho
        else:
            levels = (math.log(high) + along * (math.log(low) - math.log(high))).exp()
        self.timesteps = (levels.atan() * 2 / math.pi).to(device, torch.float32)
        end = 0.0 if self.config.final_sigmas_type == "zero" else low
        self._levels = [*levels.tolist(), end]
        self._number, self._last_clean = 0, None

    def scale_model_input(
        self, sample: Float[Tensor, "row ..."], timestep: Any = None
    ) -> Float[Tensor, "row ..."]:
        """What the network sees of the sample at the current step: `x / sqrt(sigma^2 + 1)`."""
        del timestep
        return sample / math.sqrt(self._levels[self._number] ** 2 + 1)

    def step(
        self,
        model_output: Float[Tensor, "row ..."],
        timestep: Any,
        sample: Float[Tensor, "row ..."],
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next noise level, in a tuple or in diffusers' output.

        Args:
            model_output: the network's prediction.
            timestep: unused: steps are taken in order.
            sample: at the current noise level.
            generator: one for all rows, or one per row.
            return_dict: False gives a tuple.

        Raises:
            ValueError: there is no generator.
        """
        del timestep
        clean = self._clean(model_output, sample)
        weights = self._weights()
        found = weights.sample * sample + weights.clean * clean
        if self._last_clean is not None and weights.change:
            found = found + weights.change * (clean - self._last_clean)
        if weights.noise:
            found = found + weights.noise * _drawn(sample, generator)
        self._last_clean, self._number = clean, self._number + 1
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _clean(self, output: Tensor, sample: Tensor) -> Tensor:
        """The clean sample that a prediction implies."""
        level = self._levels[self._number]
        whole = level**2 + 1
        factor = level / math.sqrt(whole) * (1 if self.config.prediction_type == "epsilon" else -1)
        return sample / whole + factor * output

    def _weights(self) -> _Step:
        levels, number = self._levels, self._number
        now, following = levels[number], levels[number + 1]
        ratio = (following / now) ** 2
        lasting, short = number == len(self.timesteps) - 1, len(self.timesteps) < 15
        final = self.config.euler_at_final or (self.config.lower_order_final and short) or following == 0
        change = 0.0
        if self.config.solver_order == 2 and number > 0 and not (lasting and final):
            length, before = math.log(now / following), math.log(levels[number - 1] / now)
            share = 0.5 * (1 - ratio)
            if self.config.solver_type == "heun":
                share = (1 - ratio) / (-2 * length) + 1
            change = share * length / before
        return _Step(ratio, 1 - ratio, change, following * math.sqrt(1 - ratio))


def _drawn(like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise, drawn where the generators are."""
    if generator is None:
        message = "CosineSampler.step: got no generator, expected one, or one per row."
        raise ValueError(message)
    if isinstance(generator, torch.Generator):
        noise = torch.randn(like.shape, generator=generator, device=generator.device)
        return noise.to(like.device, like.dtype)
    rows = [torch.randn(like.shape[1:], generator=own, device=own.device) for own in generator]
    return torch.stack(rows).to(like.device, like.dtype)

"""Steps of a sampler as Gaussians: the mean and the deviation of the next state, given this one.

A stochastic sampler draws `next = mean + std * noise`, so every step it takes has a probability density. The
same function serves the sampler that takes the step and the likelihood that scores it: stepwise preference
optimisation and policy gradients both need nothing else.

Timesteps are those of the schedule. On a schedule of indices a next timestep below 0 means clean data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.errors import ConfigError, HyperparameterError, explain, unknown_name
from mmalign.likelihood.schedules import FlowSchedule, Number, Prediction, Schedule, VPSchedule
from mmalign.objectives.base import wide
from mmalign.shapes import align_to_event

__all__ = [
    "Ddim",
    "DpmSolver",
    "Estimate",
    "FlowSde",
    "Moments",
    "Step",
    "TransitionKernel",
    "coefficients_at",
    "log_density",
    "log_probability",
]


class Estimate(NamedTuple):
    """A clean sample as it was estimated at a timestep; multistep solvers look back at one.

    Args:
        clean: estimated clean samples.
        timestep: where.
    """

    clean: Float[Tensor, "*shape"]
    timestep: Shaped[Tensor, "*batch"]


@dataclass(frozen=True)
class Step:
    """One step to take or to score; the leading axes of `state` are those of `timestep`.

    Args:
        schedule: how noise and data mix.
        prediction: what the network predicts.
        state: noised samples.
        output: of the network at `state`, guidance included.
        timestep: of `state`.
        next_timestep: of the state the step leads to.
        earlier: the estimate of the step before; None on the first one.
    """

    schedule: Schedule
    prediction: Prediction
    state: Float[Tensor, "*shape"]
    output: Float[Tensor, "*shape"]
    timestep: Shaped[Tensor, "*batch"]
    next_timestep: Shaped[Tensor, "*batch"]
    earlier: Estimate | None = None


class Moments(NamedTuple):
    """Where a step leads.

    Args:
        mean: of the next state.
        std: of every element of it; 0 where the step is deterministic.
        clean: the clean sample the network has in mind.
        rate: `std` per square root of time on flows, which have a time; `std` itself elsewhere.
    """

    mean: Float[Tensor, "*shape"]
    std: Float[Tensor, "*batch"]
    clean: Float[Tensor, "*shape"]
    rate: Float[Tensor, "*batch"]


@runtime_checkable
class TransitionKernel(Protocol):
    """A rule for steps.

    Attributes:
        is_random: steps have a density; False for deterministic rules.
    """

    @property
    def is_random(self) -> bool:
        """Whether steps have a density."""

    def check(self, schedule: Schedule) -> None:
        """Raise `ConfigError` unless the rule is meant for this kind of schedule."""

    def moments(self, step: Step) -> Moments:
        """Mean and deviation of the next state, in the wider of the state's dtype and float32."""


def coefficients_at(
    schedule: Schedule, timestep: Shaped[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """`(alpha, sigma)` in float64 (float32 on devices without it); a negative index is clean data.

    A variance is a difference of numbers close to 1: in float32 it would keep four digits.
    """
    dtype = torch.float32 if timestep.device.type == "mps" else torch.float64
    if timestep.is_floating_point():
        return schedule.coefficients(timestep, dtype)
    alpha, sigma = schedule.coefficients(timestep.clamp(min=0), dtype)
    is_clean = timestep < 0
    return torch.where(is_clean, 1.0, alpha), torch.where(is_clean, 0.0, sigma)


def _scaled_by(event: Tensor) -> Callable[[Tensor], Tensor]:
    """Casts a coefficient to an event's dtype and gives it the event's axes."""
    return lambda value: align_to_event(value.to(event.dtype), event)


def _require_schedule(rule: str, schedule: Schedule, wanted: type[Schedule], do: str) -> None:
    if not isinstance(schedule, wanted):
        message = explain(rule, got=type(schedule).__name__, expected=wanted.__name__, do=do)
        raise ConfigError(message)


@dataclass(frozen=True)
class Ddim:
    """DDIM on variance-preserving schedules.

    std^2 = eta^2 * (1 - abar') / (1 - abar) * (1 - abar / abar')
    mean  = sqrt(abar') * clean + sqrt(1 - abar' - std^2) * noise

    Args:
        eta: in [0, 1]: 0 is deterministic, 1 has the variance of the DDPM posterior.
        clip: hold the estimated clean sample in [-clip, clip], as pixel models do; None for latents.

    Raises:
        HyperparameterError: out of range.

    Source: 2010.02502, equations 12 and 16; RockeyCoss/SPO `ddim_with_logprob`.
    """

    eta: Number = 1.0
    clip: Number | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.eta <= 1:
            raise HyperparameterError(explain("Ddim.eta", got=self.eta, expected="a number in [0, 1]"))
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise HyperparameterError(explain("Ddim.clip", got=self.clip, expected="a number > 0, or None"))

    @property
    def is_random(self) -> bool:
        """True unless eta is 0."""
        return self.eta > 0

    def check(self, schedule: Schedule) -> None:
        """Variance preserving only."""
        _require_schedule("Ddim", schedule, VPSchedule, "Take FlowSde for rectified flow.")

    def moments(self, step: Step) -> Moments:
        """As the class says."""
        state, output = wide(step.state), wide(step.output)
        alpha, sigma = coefficients_at(step.schedule, step.timestep)
        next_alpha, next_sigma = coefficients_at(step.schedule, step.next_timestep)
        posterior = (next_sigma / sigma).square() * (1 - (alpha / next_alpha).square())
        # A step that stands still, or one from data without noise, has no variance.
        variance = self.eta**2 * torch.where(sigma > 0, posterior, 0.0).clamp(min=0.0)
        direction = (next_sigma.square() - variance).clamp(min=0.0).sqrt()
        clean, noise = step.schedule.split(output, state, step.timestep, source=step.prediction)
        if self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
        scaled = _scaled_by(state)
        std = variance.sqrt()
        return Moments(scaled(next_alpha) * clean + scaled(direction) * noise, std, clean, std)


@dataclass(frozen=True)
class FlowSde:
    """The stochastic differential equation with the marginals of a rectified flow, one Euler step of it.

    mean = x + v * dt + s^2 / (2 sigma) * noise * dt,  std = s * sqrt(-dt),  dt = sigma' - sigma < 0

    with the noise that velocity and state imply, `x + (1 - sigma) v`.

    Args:
        level: >= 0; 0 is the Euler method of the flow itself. 0.7 (Flow-GRPO), 0.3 (DanceGRPO) released.
        spread: "flow_grpo": `s = level * sqrt(sigma / (1 - sigma))`, at sigma = 1 with the next sigma in the
            denominator; "constant": `s = level` (DanceGRPO).

    Raises:
        HyperparameterError: out of range.
        UnknownNameError: no such spread.

    Source: 2505.05470, yifan123/flow_grpo `sde_step_with_logprob`; XueZeyue/DanceGRPO `flux_step`.
    """

    level: Number = 0.7
    spread: Literal["flow_grpo", "constant"] = "flow_grpo"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.level < math.inf:
            raise HyperparameterError(explain("FlowSde.level", got=self.level, expected="a number >= 0"))
        if self.spread not in ("flow_grpo", "constant"):
            raise unknown_name("spread", self.spread, ("flow_grpo", "constant"))

    @property
    def is_random(self) -> bool:
        """True unless the level is 0."""
        return self.level > 0

    def check(self, schedule: Schedule) -> None:
        """Rectified flow only."""
        _require_schedule("FlowSde", schedule, FlowSchedule, "Take Ddim for schedules of indices.")

    def moments(self, step: Step) -> Moments:
        """As the class says."""
        state, output = wide(step.state), wide(step.output)
        _, sigma = coefficients_at(step.schedule, step.timestep)
        _, next_sigma = coefficients_at(step.schedule, step.next_timestep)
        time = next_sigma - sigma
        squared = torch.full_like(sigma, float(self.level) ** 2)
        if self.spread == "flow_grpo":
            squared = squared * sigma / (1 - torch.where(sigma < 1, sigma, next_sigma))
        correction = torch.where(sigma > 0, squared / (2 * sigma), 0.0) * time
        clean, noise = step.schedule.split(output, state, step.timestep, source=step.prediction)
        scaled = _scaled_by(state)
        mean = state + scaled(time) * (noise - clean) + scaled(correction) * noise
        rate = squared.sqrt()
        return Moments(mean, rate * (-time).clamp(min=0.0).sqrt(), clean, rate)


@dataclass(frozen=True)
class DpmSolver:
    """DPM-Solver++(2M): deterministic, and second order from the second step on; on every schedule.

    x' = sigma' / sigma * x - alpha' * (exp(-h) - 1) * (D + (h / (2 h_earlier)) * (D - D_earlier))

    with D the estimated clean sample and h the growth of log(alpha / sigma). The step that ends in clean data
    is of first order: it returns D; so is any step without an earlier estimate. (`rollout.Sampler` withholds
    it from the last of fewer than 15 steps, as diffusers does.)

    Source: 2211.01095, algorithm 2.
    """

    @property
    def is_random(self) -> bool:
        """Never."""
        return False

    def check(self, schedule: Schedule) -> None:
        """Every schedule will do."""
        del schedule

    def moments(self, step: Step) -> Moments:
        """As the class says; the deviation is 0."""
        state, output = wide(step.state), wide(step.output)
        alpha, sigma = coefficients_at(step.schedule, step.timestep)
        next_alpha, next_sigma = coefficients_at(step.schedule, step.next_timestep)
        clean, _ = step.schedule.split(output, state, step.timestep, source=step.prediction)
        scaled = _scaled_by(state)
        data = clean
        if step.earlier is not None:
            past_alpha, past_sigma = coefficients_at(step.schedule, step.earlier.timestep)
            past = _log_ratio(alpha, sigma) - _log_ratio(past_alpha, past_sigma)
            growth = _log_ratio(next_alpha, next_sigma) - _log_ratio(alpha, sigma)
            share = torch.where(next_sigma > 0, growth / (2 * past), 0.0)
            data = clean + scaled(share) * (clean - step.earlier.clean)
        # exp(-h) = alpha sigma' / (sigma alpha'): no logarithm where alpha or sigma' is 0.
        gain = next_alpha - alpha * next_sigma / sigma
        none = torch.zeros_like(alpha)
        return Moments(scaled(next_sigma / sigma) * state + scaled(gain) * data, none, clean, none)


def _log_ratio(alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha.log() - sigma.log()


def log_density(
    error: Float[Tensor, "*batch"], std: Float[Tensor, "*batch"], num_elements: Number | Tensor = 1
) -> Float[Tensor, "*batch"]:
    """Log-density per element of a Gaussian whose mean squared deviation from the mean is `error`.

    -error / (2 std^2) - log std - log(2 pi) / 2, times `num_elements`; NaN where `std` is 0: a deterministic
    step has no density.
    """
    safe = torch.where(std > 0, std, 1.0)
    each = -error / (2 * safe.square()) - safe.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(std > 0, each * num_elements, torch.nan).to(error.dtype)


def log_probability(
    value: Float[Tensor, "*shape"],
    mean: Float[Tensor, "*shape"],
    std: Float[Tensor, "*batch"],
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, "*batch"]:
    """Gaussian log-density of `value`, the mean (as published) or the sum over its event axes.

    Args:
        value: the state that followed; carries no gradient here.
        mean: of the transition.
        std: of every element, over the leading axes.
        reduction: "mean" makes clip ranges of 1e-4 to 0.1 sensible, whatever the resolution.
    """
    squares = (wide(value.detach()) - wide(mean)).square().flatten(std.ndim)
    return log_density(squares.mean(-1), std, squares.shape[-1] if reduction == "sum" else 1)

"""Sampling that keeps what training needs: the states on the way and how likely every step was.

What a row draws depends on its key, the purpose and the number of the step, and on nothing else: a trajectory
is the same in a batch of one and of sixty-four, on one process and on eight.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmalign.errors import HyperparameterError, explain, unknown_name
from mmalign.likelihood import (
    Denoiser,
    Estimate,
    Moments,
    Prediction,
    Schedule,
    Step,
    TransitionKernel,
    guided,
    log_probability,
)
from mmalign.likelihood.schedules import PREDICTIONS, Number
from mmalign.objectives.base import wide
from mmalign.rollout.grids import Grid
from mmalign.seeding import row_normal

__all__ = ["KEPT", "Kept", "Sampler", "Trajectory", "first_noise", "step_noise"]

Kept = Literal["state", "log_probability", "prediction", "clean"]
"""What a trajectory may keep of every step; predictions are guided ones, `clean` their clean estimates."""

KEPT: tuple[Kept, ...] = ("state", "log_probability", "prediction", "clean")

_FEW_STEPS = 15
"""Runs of fewer steps end in one of first order, as those of diffusers (`lower_order_final`)."""


def first_noise(keys: Int[Tensor, " row"], event: tuple[int, ...]) -> Float[Tensor, " row *event"]:
    """The noise every row starts from, decided by its key."""
    return row_normal(keys, event, purpose="rollout_start")


def step_noise(
    keys: Int[Tensor, " row"], shape: tuple[int, ...], number: int
) -> Float[Tensor, " row *event"]:
    """The noise of step `number` of every row, decided by its key."""
    return row_normal(keys, shape, purpose=f"rollout_step{number}")


@dataclass(frozen=True)
class Trajectory:
    """Where a sampler went.

    Args:
        final: the last state, the sample; carries gradient where `sample` was asked for it.
        timestep: of every step.
        next_timestep: of the state every step led to.
        states: the first state and the one after every step, None if not kept.
        log_probability: mean log-density of every step under the model that took it; NaN where a step was
            deterministic, None if not kept.
        prediction: guided prediction at every step, None if not kept.
        clean: estimated clean sample at every step, None if not kept.
    """

    final: Float[Tensor, " row *event"]
    timestep: Shaped[Tensor, "row step"]
    next_timestep: Shaped[Tensor, "row step"]
    states: Float[Tensor, " row point *event"] | None = None
    log_probability: Float[Tensor, "row step"] | None = None
    prediction: Float[Tensor, " row step *event"] | None = None
    clean: Float[Tensor, " row step *event"] | None = None

    @property
    def state(self) -> Float[Tensor, " row step *event"] | None:
        """The state every step started from."""
        return None if self.states is None else self.states[:, :-1]

    @property
    def next_state(self) -> Float[Tensor, " row step *event"] | None:
        """The state every step led to."""
        return None if self.states is None else self.states[:, 1:]


@dataclass(frozen=True)
class Sampler:
    """How samples are made: everything but the network, the prompts and the keys.

    Args:
        schedule: how noise and data mix.
        prediction: what the network predicts.
        grid: the timesteps.
        kernel: how steps are taken.
        guidance_scale: of classifier-free guidance; 1 is none and costs one forward per step.

    Raises:
        ConfigError: the kernel is meant for another kind of schedule.
        HyperparameterError: the guidance scale is not finite.
        UnknownNameError: no such prediction.
    """

    schedule: Schedule
    prediction: Prediction
    grid: Grid
    kernel: TransitionKernel
    guidance_scale: Number = 1.0

    def __post_init__(self) -> None:
        """Check the parts against each other."""
        if self.prediction not in PREDICTIONS:
            raise unknown_name("prediction", self.prediction, PREDICTIONS)
        if not math.isfinite(self.guidance_scale):
            message = explain("Sampler.guidance_scale", got=self.guidance_scale, expected="a finite number")
            raise HyperparameterError(message)
        self.kernel.check(self.schedule)

    def step(
        self,
        denoise: Denoiser,
        state: Float[Tensor, " row *event"],
        timestep: Shaped[Tensor, " row"],
        next_timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
        empty: Mapping[str, Tensor],
        *,
        earlier: Estimate | None = None,
    ) -> tuple[Moments, Float[Tensor, " row *event"]]:
        """Where one step leads, and the guided prediction: one call of the network, no draw.

        Args:
            denoise: the network.
            state: noised samples.
            timestep: of every row.
            next_timestep: where every row goes.
            conditioning: one entry per row.
            empty: what stands in for it in the unconditional half; not looked at without guidance.
            earlier: the estimate of the step before, for multistep solvers.
        """
        time = self.schedule.network_time(timestep)
        output = guided(denoise, state, time, conditioning, empty, self.guidance_scale)
        step = Step(self.schedule, self.prediction, state, output, timestep, next_timestep, earlier)
        return self.kernel.moments(step), output

    def sample(
        self,
        denoise: Denoiser,
        keys: Int[Tensor, " row"],
        event: tuple[int, ...],
        conditioning: Mapping[str, Tensor],
        empty: Mapping[str, Tensor] | None = None,
        *,
        start: Float[Tensor, " row *event"] | None = None,
        keep: Collection[Kept] = (),
        gradient_steps: int = 0,
    ) -> Trajectory:
        """Samples, and what `keep` names of the way to them.

        Args:
            denoise: the network.
            keys: one per row, on the device to sample on.
            event: shape of one sample.
            conditioning: one entry per row.
            empty: what stands in for it in the unconditional half of guidance.
            start: first states; None draws them from the keys.
            keep: what to record; recorded tensors carry no gradient.
            gradient_steps: this many of the last steps run with gradients (reward back-propagation); the
                others, all by default, without.

        Raises:
            ConfigError: guidance without `empty`.
            HyperparameterError: more steps with gradients than there are.
            UnknownNameError: nothing of that name can be kept.
        """
        for name in keep:
            if name not in KEPT:
                raise unknown_name("kept", name, KEPT)
        if not 0 <= gradient_steps <= len(self.grid):
            message = explain(
                "Sampler.sample gradient_steps", got=gradient_steps, expected=f"0 to {len(self.grid)}"
            )
            raise HyperparameterError(message)
        grid = self.grid.to(keys.device)
        state = first_noise(keys, event) if start is None else wide(start)
        records: dict[str, list[Tensor]] = {"state": [state.detach()]} if "state" in keep else {}
        earlier = None
        for number in range(len(grid)):
            timestep, ahead = grid.at(number, keys.shape[0])
            if number == len(grid) - 1 < _FEW_STEPS - 1:
                earlier = None  # a long last step would extrapolate too far
            tracked = torch.is_grad_enabled() and number >= len(grid) - gradient_steps
            with torch.set_grad_enabled(tracked):
                moments, output = self.step(
                    denoise, state, timestep, ahead, conditioning, empty or {}, earlier=earlier
                )
                state = self.draw(moments, keys, number)
            earlier = Estimate(moments.clean, timestep)
            _record(records, keep, state, moments, output)
        return _trajectory(state, grid, records, keys.shape[0])

    def draw(self, moments: Moments, keys: Int[Tensor, " row"], number: int) -> Float[Tensor, " row *event"]:
        """The next state of every row; `number` names the step the noise belongs to."""
        if not self.kernel.is_random:
            return moments.mean
        noise = step_noise(keys, tuple(moments.mean.shape[1:]), number)
        return displaced(moments.mean, moments.std, noise)


def displaced(
    mean: Float[Tensor, "*shape"], std: Float[Tensor, "*batch"], noise: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """`mean + std * noise`, with `std` over the leading axes."""
    width = std.to(mean.dtype).reshape(std.shape + (1,) * (mean.ndim - std.ndim))
    return mean + width * noise.to(mean.dtype)


def _record(
    records: dict[str, list[Tensor]],
    keep: Collection[Kept],
    state: Tensor,
    moments: Moments,
    output: Tensor,
) -> None:
    """Append what is kept of one step, without its graph."""
    found = {"state": state, "prediction": output, "clean": moments.clean}
    for name in keep:
        if name == "log_probability":
            value = log_probability(state.detach(), moments.mean.detach(), moments.std)
        else:
            value = found[name].detach()
        records.setdefault(name, []).append(value)


def _trajectory(final: Tensor, grid: Grid, records: dict[str, list[Tensor]], num_rows: int) -> Trajectory:
    def rows(value: Tensor) -> Tensor:
        return value.unsqueeze(-1).expand(-1, num_rows).T if value.ndim == 1 else value.T

    stacked = {name: torch.stack(values, dim=1) for name, values in records.items()}
    return Trajectory(
        final=final,
        timestep=rows(grid.timestep),
        next_timestep=rows(grid.next_timestep),
        states=stacked.get("state"),
        log_probability=stacked.get("log_probability"),
        prediction=stacked.get("prediction"),
        clean=stacked.get("clean"),
    )

"""Guidance of flow models by a reward while they sample: Flow-NRG.

A small reward reads noised latents at the flow's own time t (0 clean, 1 noise). It is trained on pairs at
drawn noise levels, and its gradient bends the velocity:

    v' = v - weight * t / (1 - t) * d reward(x_t, t) / d x_t

since v = -(x_t + t * score) / (1 - t), and the score of p_t(x) * e^(weight * reward(x, t)) has that much
more. Samples then follow p(x) * e^(weight * reward(x)) exactly where weight * reward(x_t, t) is the log of
the mean of e^(weight * reward) over the clean samples that x_t may have come from. Weights, of one reward or
of several, are chosen when sampling. Nothing here is of one medium. The rewards are in
`mmalign.diffusion.latent_reward`, their training in `mmalign.diffusion.reward_fitting`.

Source: arXiv 2501.13918, Flow-NRG.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.diffusion.latent_reward import LatentReward
from mmalign.errors import ConfigError, HyperparameterError, explain
from mmalign.likelihood.base import Denoiser
from mmalign.likelihood.schedules import FlowSchedule, Schedule

__all__ = ["Guide", "guided_denoiser", "reward_gradient"]


def reward_gradient(
    reward: LatentReward,
    noised: Float[Tensor, " row *event"],
    timestep: Shaped[Tensor, " row"],
    conditioning: Mapping[str, Tensor],
) -> Float[Tensor, " row *event"]:
    """The gradient of the rewards with respect to the noised latents; also inside `torch.no_grad`."""
    with torch.enable_grad():
        given = noised.detach().requires_grad_()
        total = reward(given, timestep, conditioning).sum()
        (gradient,) = torch.autograd.grad(total, given)
    return gradient.detach()


@dataclass(frozen=True)
class Guide:
    """One reward and how strongly it counts.

    Args:
        reward: of noised latents.
        weight: any finite number; 0 leaves the sampler as it is, a negative one steers away.
        low: guidance is off below this time; near 0 the factor vanishes anyway.
        high: guidance is off above this time. The factor t / (1 - t) grows without bound towards noise, where
            rewards know nothing; the published factor is met wherever it is on.

    Raises:
        HyperparameterError: out of range.
    """

    reward: LatentReward
    weight: float
    low: float = 0.0
    high: float = 0.98

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not math.isfinite(self.weight):
            raise HyperparameterError(explain("Guide weight", got=self.weight, expected="a finite number"))
        if not 0.0 <= self.low < self.high < 1.0:
            message = explain(
                "Guide low, high", got=f"{self.low}, {self.high}", expected="0 <= low < high < 1"
            )
            raise HyperparameterError(message)


def guided_denoiser(
    denoise: Denoiser, schedule: Schedule, guides: Sequence[Guide], *, prediction: str = "flow"
) -> Denoiser:
    """A flow model bent towards rewards: `v - sum of weight * t / (1 - t) * gradient of the reward`.

    Whatever samples with `denoise` samples with the result. Classifier-free guidance belongs inside
    `denoise`, or outside with the same rewards for both halves, whose terms then add up to one.

    Args:
        denoise: predicts the velocity noise - clean.
        schedule: of the flow: says which time a `network_time` is.
        guides: rewards with weights.
        prediction: of the network.

    Raises:
        ConfigError: the model predicts no velocity of a flow.

    Source: arXiv 2501.13918, Flow-NRG.
    """
    if not isinstance(schedule, FlowSchedule) or prediction != "flow":
        message = explain(
            "reward guidance",
            got=f"{type(schedule).__name__}, prediction {prediction}",
            expected="a flow model that predicts a velocity",
        )
        raise ConfigError(message)

    def guided(
        noised: Float[Tensor, " row *event"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, " row *event"]:
        velocity = denoise(noised, timestep, conditioning)
        level = timestep.to(torch.float32) / schedule.num_timesteps
        factor = level / (1.0 - level).clamp(min=1e-6)
        for guide in guides:
            if guide.weight == 0.0:
                continue
            on = (level >= guide.low) & (level <= guide.high)
            if not bool(on.any()):
                continue
            gradient = reward_gradient(guide.reward, noised, timestep, conditioning)
            scale = torch.where(on, guide.weight * factor, 0.0).to(velocity.dtype)
            velocity = velocity - scale.view(-1, *[1] * (velocity.ndim - 1)) * gradient.to(velocity.dtype)
        return velocity

    return guided

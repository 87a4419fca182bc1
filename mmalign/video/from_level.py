"""Sampling from the middle: clean latents noised to a level, and the model's own grid from there to the data.

A level is the share of noise: of flow models sigma itself, of all others `sigma / (alpha + sigma)` of the
timestep that comes nearest to it. The way begins exactly there, and goes on with those of the sampler's noise
levels that lie below: with a shifted grid that is not "the last share of the steps", and it is what leaves
the network the inputs it knows. A level of 1 is ordinary sampling; a level of 0 gives the latents back.

Flow models keep their own sampler. The grids of others are walked in steps of the first order (DDIM without
noise), since their samplers take steps of one length that cannot begin in between.

Source: arXiv 2506.03517 (StructuralDPO), whose printed step has the wrong sign.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.diffusion.guided import denoised_latents
from mmalign.errors import ConfigError, HyperparameterError, explain

if TYPE_CHECKING:
    from mmalign.video.family import VideoModel

__all__ = ["renoised_latents", "sampler_from"]

_SAME = 1e-6
"""Noise levels that differ by less are one."""


class _FlowFrom:
    """A flow model's own sampler, its grid cut off above a level."""

    init_noise_sigma = 1.0
    at_data = False

    def __init__(self, inner: Any, level: float) -> None:
        self.inner, self.level = inner, level

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """Lay the grid, and begin at the level."""
        inner = self.inner
        inner.set_timesteps(*args, **options)
        sigmas, times = inner.sigmas, inner.timesteps
        below = sigmas[: len(times)] < self.level - _SAME
        first = self.level * inner.config.num_train_timesteps
        inner.timesteps = torch.cat([times.new_full((1,), first), times[below.to(times.device)]])
        rest = torch.cat([sigmas[: len(times)][below], sigmas[len(times) :]])
        inner.sigmas = torch.cat([sigmas.new_full((1,), self.level), rest])
        inner.num_inference_steps = len(inner.timesteps)
        # Two levels may share a timestep of whole numbers: count places, do not search.
        inner.set_begin_index(0)

    def noised(
        self, clean: Float[Tensor, "row channel *size"], noise: Float[Tensor, "row channel *size"]
    ) -> Float[Tensor, "row channel *size"]:
        """Latents at the level."""
        return (1 - self.level) * clean + self.level * noise


class _StepsFrom:
    """Steps of the first order down a grid of timesteps, from the timestep nearest to a level."""

    init_noise_sigma = 1.0

    def __init__(self, inner: Any, model: "VideoModel", level: float) -> None:
        self.inner, self.schedule, self.kind = inner, model.schedule, model.prediction
        alpha, sigma = self.schedule.coefficients(torch.arange(self.schedule.num_timesteps), torch.float64)
        away = (sigma / (alpha + sigma) - level).abs()
        self.first = int(away.argmin())
        self.at_data = float(away[self.first]) > level
        self.timesteps = torch.tensor([self.first])

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """Lay the grid, and begin at the level."""
        self.inner.set_timesteps(*args, **options)
        times = self.inner.timesteps.long()
        self.timesteps = torch.cat([times.new_tensor([self.first]), times[times < self.first]])

    def noised(
        self, clean: Float[Tensor, "row channel *size"], noise: Float[Tensor, "row channel *size"]
    ) -> Float[Tensor, "row channel *size"]:
        """Latents at the level."""
        return self.schedule.add_noise(clean, noise, self._rows(self.first, clean))

    def step(
        self,
        prediction: Float[Tensor, "row channel *size"],
        timestep: Tensor,
        latents: Float[Tensor, "row channel *size"],
        *,
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "row channel *size"]]:
        """(latents one step on,); behind the last step the clean ones."""
        del return_dict
        level = int(timestep)
        clean, noise = self.schedule.split(prediction, latents, self._rows(level, latents), source=self.kind)
        below = self.timesteps[self.timesteps < level]
        if not len(below):
            return (clean,)
        return (self.schedule.add_noise(clean, noise, self._rows(int(below[0]), latents)),)

    @staticmethod
    def _rows(level: int, latents: Tensor) -> Tensor:
        return torch.full((len(latents),), level, device=latents.device)


def sampler_from(model: "VideoModel", level: float) -> Any:
    """A sampler that begins at a level; `noised(clean, noise)` gives what it begins with.

    Its `at_data` says that clean latents are nearer to the level than its first timestep: nothing is walked.

    Args:
        model: whose own sampler it is.
        level: share of noise, above 0 and below 1.

    Raises:
        ConfigError: a flow model whose sampler has no grid of noise levels.
    """
    inner = model.sampler(None)
    if model.prediction != "flow":
        return _StepsFrom(inner, model, level)
    if not hasattr(inner, "set_begin_index"):
        expected = "a sampler with sigmas, such as FlowMatchEulerDiscreteScheduler"
        raise ConfigError(explain("scheduler", got=model.scheduler_class, expected=expected))
    return _FlowFrom(inner, level)


@torch.no_grad()
def renoised_latents(
    model: "VideoModel",
    clean: Float[Tensor, "row channel frame height width"],
    noise: Float[Tensor, "row channel frame height width"],
    conditioning: Mapping[str, Tensor],
    empty: Mapping[str, Tensor] | None,
    *,
    level: float,
    num_steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator],
) -> Float[Tensor, "row channel frame height width"]:
    """Clean latents noised to a level and denoised again; all rows have one level.

    Args:
        model: adapters are used as they stand.
        clean: scaled latents.
        noise: standard normal.
        conditioning: of the prompts, one row each.
        empty: of what guidance contrasts with; None without guidance.
        level: share of noise, from 0 (the latents as they are) to 1 (ordinary sampling from `noise`).
        num_steps: of the whole way from noise to data; about `level` of them are walked.
        guidance_scale: classifier-free guidance.
        generators: one per row, for samplers that draw on the way.

    Raises:
        HyperparameterError: no such level.
        ConfigError: as `sampler_from`.
    """
    if not 0 <= level <= 1:
        raise HyperparameterError(explain("level", got=level, expected="a share of noise, from 0 to 1"))
    if level == 0:
        return clean
    scheduler = model.sampler(None) if level == 1 else sampler_from(model, level)
    if level < 1 and scheduler.at_data:
        return clean
    start = noise if level == 1 else scheduler.noised(clean, noise)
    return denoised_latents(
        model,
        start,
        conditioning,
        empty,
        scheduler=scheduler,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        generators=generators,
    )

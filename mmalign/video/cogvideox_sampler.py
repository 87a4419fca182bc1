"""CogVideoX's samplers behind the interface that all others have.

Its solver of second order keeps what the network said of the clean clip at the step before, and is told of
that step's timestep; here it keeps both itself. Noise on the way is drawn in the network's own layout, frames
before channels, so that a clip is the pipeline's.

Source: diffusers schedulers/scheduling_dpm_cogvideox.py, pipelines/cogvideo.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["SecondOrderSampler", "frames_first"]


def frames_first(latents: Float[Tensor, "row a b height width"]) -> Float[Tensor, "row b a height width"]:
    """Frames before channels, or the other way round."""
    return latents.transpose(1, 2)


class SecondOrderSampler:
    """A `CogVideoXDPMScheduler` that remembers the step before.

    Args:
        inner: the library's scheduler.

    Attributes:
        init_noise_sigma: what standard normal noise is multiplied with at the start.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.init_noise_sigma = float(inner.init_noise_sigma)
        self._clean: Tensor | None = None
        self._before: Tensor | None = None

    @property
    def config(self) -> Any:
        """The scheduler's settings."""
        return self.inner.config

    @property
    def timesteps(self) -> Shaped[Tensor, " step"]:
        """Timesteps, from noise to data."""
        found: Tensor = self.inner.timesteps
        return found

    def set_timesteps(self, num_steps: int, device: torch.device | str | None = None) -> None:
        """Lay the grid of so many steps, and forget the clip before."""
        self.inner.set_timesteps(num_steps, device=device)
        self._clean = self._before = None

    def scale_model_input(
        self, latents: Float[Tensor, "row channel frame height width"], timestep: Shaped[Tensor, ""]
    ) -> Float[Tensor, "row channel frame height width"]:
        """Latents as they are."""
        del timestep
        return latents

    def step(
        self,
        prediction: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, ""],
        latents: Float[Tensor, "row channel frame height width"],
        *,
        generator: Sequence[torch.Generator] | torch.Generator | None = None,
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "row channel frame height width"]]:
        """(latents one step on,).

        Args:
            prediction: of the network, at this timestep.
            timestep: one of `timesteps`, in their order.
            latents: at this timestep.
            generator: draws the noise of the step, one per row.
            return_dict: must be False; as other schedulers have it.
        """
        del return_dict
        generators = generator if isinstance(generator, torch.Generator | None) else list(generator)
        stepped, self._clean = self.inner.step(
            frames_first(prediction),
            self._clean,
            timestep,
            self._before,
            frames_first(latents),
            generator=generators,
            return_dict=False,
        )
        self._before = timestep
        return (frames_first(stepped),)

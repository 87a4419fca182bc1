"""DDIM for models whose clean sample fades before it is mixed with noise: VideoCrafter2's sampler."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["FadingDdim"]


class FadingDdim:
    """DDIM on `x_t = s_t sqrt(abar_t) clean + sqrt(1 - abar_t) noise`.

    A step of plain DDIM takes `s_t clean` for the clean sample; what the next level has of it is `s_next`
    times the clean sample instead.

    Args:
        inner: diffusers' `DDIMScheduler`.
        scale: s of every timestep.
        eta: size of the noise that is drawn on the way; 1 in the official script.

    Source: AILab-CVC/VideoCrafter lvdm/models/samplers/ddim.py, `p_sample_ddim`.
    """

    def __init__(self, inner: Any, scale: Float[Tensor, " timestep"], *, eta: float = 1.0) -> None:
        self.inner, self.scale, self.eta = inner, scale, eta

    @property
    def timesteps(self) -> Tensor:
        """Of the grid that was laid."""
        steps: Tensor = self.inner.timesteps
        return steps

    @property
    def config(self) -> Any:
        """Of the inner scheduler."""
        return self.inner.config

    def set_timesteps(self, num_steps: int, device: torch.device | str | None = None) -> None:
        """Lay a grid of so many steps."""
        self.inner.set_timesteps(num_steps, device=device)

    def step(
        self,
        prediction: Float[Tensor, "*shape"],
        timestep: Tensor | int,
        sample: Float[Tensor, "*shape"],
        *,
        generator: list[torch.Generator] | None = None,
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "*shape"], ...]:
        """(sample at the next level, clean sample).

        Args:
            prediction: the noise.
            timestep: of the sample.
            sample: at that timestep.
            generator: one per row, for the noise on the way.
            return_dict: as in diffusers; there is no dictionary.
        """
        del return_dict
        inner, level = self.inner, int(timestep)
        following = level - inner.config.num_train_timesteps // inner.num_inference_steps
        plain = inner.step(prediction, level, sample, eta=self.eta, generator=generator)
        kept = inner.alphas_cumprod[following] if following >= 0 else inner.final_alpha_cumprod
        now, then = float(self.scale[level]), float(self.scale[max(following, 0)])
        faded = plain.pred_original_sample
        moved = plain.prev_sample + float(kept) ** 0.5 * (then / now - 1) * faded
        return moved, faded / now

"""Sampling of latents in a loop of our own, with the model's own scheduler class: sound and video.

Pictures are made by the diffusers pipelines themselves. Here every clip has its own noise and generators, so
that it does not depend on its neighbours, whatever the model, the batch or the device.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.batch import Conditioning
from mmalign.diffusion.clip_reader import padded
from mmalign.diffusion.model import DiffusionModel
from mmalign.diffusion.reward_guidance import Guide as RewardGuide
from mmalign.diffusion.reward_guidance import guided_denoiser
from mmalign.diffusion.sampling import scheduler_for

__all__ = ["Guide", "GuidedModel", "denoised_latents", "plain_guide"]

Guide = Callable[[Tensor, Tensor], Tensor]
"""`guide(prompted, without)`: what the sampler is given in the place of the two predictions."""


def plain_guide(scale: float) -> Guide:
    """Classifier-free guidance: `without + scale (prompted - without)`."""

    def guided(prompted: Tensor, without: Tensor) -> Tensor:
        return without + scale * (prompted - without)

    return guided


class GuidedModel(DiffusionModel):
    """How a family samples: the grid, guidance, what it contrasts with."""

    def sampler(self, name: str | None) -> Any:
        """A scheduler with the model's noise schedule; None takes the model's own kind.

        Raises:
            UnknownNameError: no such sampler.
            ConfigError: a sampler that does not suit the model.
        """
        return scheduler_for(self, name)

    def set_steps(self, scheduler: Any, num_steps: int) -> None:
        """Lay the grid of noise levels of so many steps into a scheduler."""
        scheduler.set_timesteps(num_steps, device=self.device)

    def guide(self, scale: float) -> Guide:
        """How the predictions with and without the prompt are joined; made anew for every batch of clips."""
        return plain_guide(scale)

    def contrast_conditioning(self, prompts: Sequence[str], negatives: Sequence[str] | None) -> Conditioning:
        """What guidance contrasts with, one row per prompt.

        Args:
            prompts: what the clips are made of.
            negatives: the user's own contrast, one per prompt; None takes the empty prompt.
        """
        return self.prompt_conditioning([""] * len(prompts) if negatives is None else negatives)

    def network_at(self, timestep: Tensor) -> nn.Module:
        """The network that denoises at a timestep of the sampler; models of two experts have two."""
        del timestep
        network: nn.Module = self.bare_network
        return network


def _with_contrast(
    conditioning: Mapping[str, Tensor], empty: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Rows of the contrast, then rows of the prompts, texts filled up to the longest."""
    if empty is None:
        return dict(conditioning)
    rows = [
        {name: value[number : number + 1] for name, value in side.items()}
        for side in (empty, conditioning)
        for number in range(next(iter(side.values())).shape[0])
    ]
    return padded(rows)


@torch.no_grad()
def denoised_latents(
    model: GuidedModel,
    start: Float[Tensor, "row channel *size"],
    conditioning: Mapping[str, Tensor],
    empty: Mapping[str, Tensor] | None,
    *,
    scheduler: Any,
    num_steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator],
    rewards: Sequence[RewardGuide] = (),
) -> Float[Tensor, "row channel *size"]:
    """Scaled latents at the end of the sampler's way.

    `v = v_empty + g (v_prompt - v_empty)` at every step, unless the family guides otherwise. An ancestral
    sampler draws once per step, the last included where its grid ends before timestep 0.

    Args:
        model: adapters are used as they stand.
        start: standard normal.
        conditioning: of the prompts, one row each.
        empty: of what guidance contrasts with, one row each; None without guidance.
        scheduler: from `model.sampler`; its state is changed.
        num_steps: of the sampler.
        guidance_scale: g.
        generators: one per row, for samplers that draw on the way.
        rewards: bend the velocity after guidance, told of the prompts alone.

    Raises:
        ConfigError: rewards, for a model that predicts no velocity of a flow.
    """
    model.set_steps(scheduler, num_steps)
    guide = model.guide(guidance_scale)
    latents: Tensor = start.to(model.device) * getattr(scheduler, "init_noise_sigma", 1.0)
    both = _with_contrast(conditioning, empty)
    accepted = inspect.signature(scheduler.step).parameters
    draws = {"generator": list(generators)} if "generator" in accepted else {}
    for timestep in scheduler.timesteps:
        inputs = (
            scheduler.scale_model_input(latents, timestep)
            if hasattr(scheduler, "scale_model_input")
            else latents
        )
        if empty is not None:
            inputs = torch.cat([inputs, inputs])
        prediction = model.denoise(
            inputs, timestep.expand(inputs.shape[0]), both, network=model.network_at(timestep)
        ).to(latents.dtype)
        if empty is not None:
            without, prompted = prediction.chunk(2)
            prediction = guide(prompted, without)
        if rewards:
            prediction = _bent(model, prediction, latents, timestep, conditioning, rewards)
        stepped: Tensor = scheduler.step(prediction, timestep, latents, return_dict=False, **draws)[0]
        latents = stepped
    return latents


def _bent(
    model: GuidedModel,
    velocity: Tensor,
    latents: Tensor,
    timestep: Tensor,
    conditioning: Mapping[str, Tensor],
    rewards: Sequence[RewardGuide],
) -> Tensor:
    """A velocity bent towards rewards."""
    bend = guided_denoiser(lambda *_: velocity, model.schedule, rewards, prediction=model.prediction)
    return bend(latents, timestep.expand(latents.shape[0]), conditioning)

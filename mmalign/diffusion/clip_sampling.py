"""Sampling of many prompts, a few at a time: what sound and video do alike between prompts and latents.

Every clip has its own noise and generators, whatever the batch: it depends on the seed and its prompt's key.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.diffusion.guided import GuidedModel, denoised_latents
from mmalign.diffusion.reward_guidance import Guide
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import ConfigError, explain
from mmalign.seeding import generator_for

__all__ = ["check_one_each", "latents_of_prompts"]


def check_one_each(prompts: Sequence[str], **given: Sequence[Any] | None) -> None:
    """Raise `ConfigError` where something is given, and not once per prompt.

    Args:
        prompts: what is made.
        given: by name; None where nothing is given.
    """
    for name, values in given.items():
        if values is not None and len(values) != len(prompts):
            got = f"{len(values)} for {len(prompts)} prompts"
            raise ConfigError(explain(name, got=got, expected="one per prompt"))


@torch.no_grad()
def latents_of_prompts(
    model: GuidedModel,
    prompts: Sequence[str],
    *,
    shape: tuple[int, ...],
    seed: int,
    num_steps: int,
    guidance_scale: float,
    scheduler: str | None,
    batch_size: int,
    copies: int,
    keys: Sequence[int | str] | None,
    negative_prompts: Sequence[str] | None,
    more: Callable[[Sequence[int]], Mapping[str, Tensor]] = lambda _: {},
    rewards: Sequence[Guide] = (),
) -> Iterator[tuple[Float[Tensor, "row channel *size"], Mapping[str, Tensor]]]:
    """Scaled latents, `copies` per prompt, prompt-major, and what `more` said of their prompts, by batches.

    Args:
        model: in evaluation mode; adapters are used as they stand.
        prompts: what to make.
        shape: of one clip's latents.
        seed: of the comparison; see `mmalign.diffusion.sampling.initial_noise`.
        num_steps: sampler steps.
        guidance_scale: classifier-free guidance; 1 switches it off.
        scheduler: one of `mmalign.diffusion.sampling.SCHEDULERS`, or None for the model's own.
        batch_size: clips per network call; changes no result beyond rounding.
        copies: clips per prompt.
        keys: what each prompt's noise hangs on; None for its number in the list.
        negative_prompts: what guidance contrasts with, one per prompt; None for the empty prompt.
        more: rows of further conditioning, with guidance and without, of the prompts of these numbers.
        rewards: bend the velocity of flow models.

    Raises:
        ConfigError: a sampler that does not suit the model, or rewards for a model that predicts no velocity.
    """
    names = range(len(prompts)) if keys is None else keys
    jobs = [(number, copy) for number in range(len(prompts)) for copy in range(copies)]
    half = model.dtype in (torch.float16, torch.bfloat16)
    for first in range(0, len(jobs), batch_size):
        part = jobs[first : first + batch_size]
        drawn = [(names[number], copy) for number, copy in part]
        texts = [prompts[number] for number, _ in part]
        told = more([number for number, _ in part])
        conditioning = {**model.prompt_conditioning(texts).rows(1), **told}
        contrast = None
        if guidance_scale > 1 and not model.embeds_guidance:
            negatives = None if negative_prompts is None else [negative_prompts[n] for n, _ in part]
            contrast = {**model.contrast_conditioning(texts, negatives).rows(1), **told}
        start = torch.stack([initial_noise(shape, seed=seed, prompt=n, copy=c) for n, c in drawn])
        with torch.autocast(model.device.type, dtype=model.dtype, enabled=half):
            latents = denoised_latents(
                model,
                start.to(model.autoencoder.wide),
                conditioning,
                contrast,
                scheduler=model.sampler(scheduler),
                num_steps=num_steps,
                guidance_scale=guidance_scale,
                # Samplers that add noise on the way draw it per clip too.
                generators=[generator_for(seed, "sample_path", *job) for job in drawn],
                rewards=rewards,
            )
        yield latents, told

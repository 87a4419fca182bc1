"""Generation of clips: the same noise for the same prompt, whatever the model, the batch or the device.

The sampler is the model's own scheduler (Tango: DDPM, ancestral) or another with its noise schedule; guidance
contrasts the prompt with the empty one. Every clip has its own generators, so that a clip does not depend on
its neighbours.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.audio.clips import padded
from mmalign.data.audio_media import DecodedAudio
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import ConfigError, explain
from mmalign.seeding import generator_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmalign.audio.family import AudioModel

__all__ = ["denoised_latents", "generate"]


@contextmanager
def _evaluating(network: Any) -> "Iterator[None]":
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


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
    model: "AudioModel",
    start: Float[Tensor, "row channel *size"],
    conditioning: Mapping[str, Tensor],
    empty: Mapping[str, Tensor] | None,
    *,
    scheduler: Any,
    num_steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator],
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
            inputs, timestep.expand(inputs.shape[0]), both, network=model.bare_network
        ).to(latents.dtype)
        if empty is not None:
            without, prompted = prediction.chunk(2)
            prediction = guide(prompted, without)
        stepped: Tensor = scheduler.step(prediction, timestep, latents, return_dict=False, **draws)[0]
        latents = stepped
    return latents


@torch.no_grad()
def generate(
    model: "AudioModel",
    prompts: Sequence[str],
    *,
    seed: int,
    num_steps: int,
    guidance_scale: float,
    scheduler: str | None = None,
    batch_size: int = 4,
    copies: int = 1,
    keys: Sequence[int | str] | None = None,
    negative_prompts: Sequence[str] | None = None,
    duration: float | None = None,
) -> list[DecodedAudio]:
    """Clips, `copies` per prompt, prompt-major; adapters are used as they stand.

    Args:
        model: loaded model.
        prompts: what to make.
        seed: of the comparison; see `mmalign.diffusion.sampling.initial_noise`.
        num_steps: sampler steps.
        guidance_scale: classifier-free guidance; 1 switches it off.
        scheduler: one of `mmalign.diffusion.sampling.SCHEDULERS`, or None for the model's own.
        batch_size: clips per network call; changes no result beyond rounding.
        copies: clips per prompt.
        keys: what each prompt's noise hangs on; its number in the list by default.
        negative_prompts: what guidance contrasts with, one per prompt; the empty prompt by default.
        duration: seconds; the run's by default.

    Raises:
        ConfigError: another number of negative prompts or keys than prompts, or a duration that the model
            cannot make.
    """
    for name, given in (("keys", keys), ("negative_prompts", negative_prompts)):
        if given is not None and len(given) != len(prompts):
            message = explain(name, got=f"{len(given)} for {len(prompts)} prompts", expected="one per prompt")
            raise ConfigError(message)
    shape = model.latent_shape if duration is None else model.latent_shape_of(duration)
    seconds = model.duration if duration is None else duration
    num_samples = round(seconds * model.sampling_rate)
    names = range(len(prompts)) if keys is None else keys
    against = None if negative_prompts is None else list(negative_prompts)
    jobs = [(number, copy) for number in range(len(prompts)) for copy in range(copies)]
    half = model.dtype in (torch.float16, torch.bfloat16)
    found: list[DecodedAudio] = []
    with _evaluating(model.bare_network), model.asked_for(seconds):
        for first in range(0, len(jobs), batch_size):
            part = jobs[first : first + batch_size]
            drawn = [(names[number], copy) for number, copy in part]
            texts = [prompts[number] for number, _ in part]
            conditioning = model.prompt_conditioning(texts).rows(1)
            contrast = None
            if guidance_scale > 1:
                negatives = None if against is None else [against[number] for number, _ in part]
                contrast = model.contrast_conditioning(texts, negatives).rows(1)
            start = torch.stack([initial_noise(shape, seed=seed, prompt=n, copy=c) for n, c in drawn])
            with torch.autocast(model.device.type, dtype=model.dtype, enabled=half):
                latents = denoised_latents(
                    model,
                    start.to(model.codec.wide),
                    conditioning,
                    contrast,
                    scheduler=model.sampler(scheduler),
                    num_steps=num_steps,
                    guidance_scale=guidance_scale,
                    # Samplers that add noise on the way draw it per clip too.
                    generators=[generator_for(seed, "sample_path", *job) for job in drawn],
                )
            waves = model.decode_waveforms(latents)[..., :num_samples].float().cpu()
            found += [DecodedAudio(wave.clone(), model.sampling_rate) for wave in waves]
    return found

"""Generation of clips: the same noise for the same prompt, whatever the model, the batch or the device.

The sampler is the model's own scheduler (Tango: DDPM, ancestral) or another with its noise schedule; guidance
contrasts the prompt with the empty one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mmalign.data.audio_media import DecodedAudio
from mmalign.diffusion.guided import denoised_latents, evaluating
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import ConfigError, explain
from mmalign.seeding import generator_for

if TYPE_CHECKING:
    from mmalign.audio.family import AudioModel

__all__ = ["generate"]


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
    with evaluating(model.bare_network), model.asked_for(seconds):
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

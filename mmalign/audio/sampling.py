"""Generation of clips: the same noise for the same prompt, whatever the model, the batch or the device.

The sampler is the model's own scheduler (Tango: DDPM, ancestral) or another with its noise schedule; guidance
contrasts the prompt with the empty one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mmalign.data.audio_media import DecodedAudio
from mmalign.diffusion.clip_sampling import check_one_each, latents_of_prompts
from mmalign.diffusion.sampling import evaluating

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
    check_one_each(prompts, keys=keys, negative_prompts=negative_prompts)
    shape = model.latent_shape if duration is None else model.latent_shape_of(duration)
    seconds = model.duration if duration is None else duration
    num_samples = round(seconds * model.sampling_rate)
    found: list[DecodedAudio] = []
    with evaluating(model.bare_network), model.asked_for(seconds):
        for latents, _ in latents_of_prompts(
            model,
            prompts,
            shape=shape,
            seed=seed,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            batch_size=batch_size,
            copies=copies,
            keys=keys,
            negative_prompts=negative_prompts,
        ):
            waves = model.decode_waveforms(latents)[..., :num_samples].float().cpu()
            found += [DecodedAudio(wave.clone(), model.sampling_rate) for wave in waves]
    return found

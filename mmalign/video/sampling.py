"""Generation of clips: the same noise for the same prompt, whatever the model, the batch or the device.

The sampler is the model's own scheduler; guidance contrasts the prompt with the empty one, or with a negative
prompt. Models that go on from a picture are given one per prompt.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.diffusion.guided import denoised_latents, evaluating
from mmalign.diffusion.reward_guidance import Guide
from mmalign.diffusion.sampling import initial_noise
from mmalign.errors import ConfigError, explain
from mmalign.seeding import generator_for
from mmalign.video.clips import Clip, covering, picture_tensor

if TYPE_CHECKING:
    from mmalign.video.family import VideoModel

__all__ = ["generate", "pictures_of"]


def pictures_of(images: Sequence[Any], size: tuple[int, int]) -> list[UInt8[Tensor, "3 height width"]]:
    """Pictures (PIL images, or bytes `[3, height, width]`) as a model of clips of a size is shown them."""
    tensors = [image if isinstance(image, Tensor) else picture_tensor(image) for image in images]
    return [covering(picture.unsqueeze(0), size).squeeze(0) for picture in tensors]


def _check(model: "VideoModel", prompts: Sequence[str], given: dict[str, Sequence[Any] | None]) -> None:
    for name, values in given.items():
        if values is not None and len(values) != len(prompts):
            message = explain(
                name, got=f"{len(values)} for {len(prompts)} prompts", expected="one per prompt"
            )
            raise ConfigError(message)
    images = given["images"]
    if model.conditioned == (images is None):
        got = "none" if images is None else f"{len(images)}"
        expected = "a picture per prompt, from which the clip goes on" if images is None else "none"
        do = "In a run: samples.images." if images is None else "This run's model goes by text alone."
        raise ConfigError(explain("images", got=got, expected=expected, do=do))


@torch.no_grad()
def generate(
    model: "VideoModel",
    prompts: Sequence[str],
    *,
    seed: int,
    num_steps: int,
    guidance_scale: float,
    scheduler: str | None = None,
    batch_size: int = 1,
    copies: int = 1,
    keys: Sequence[int | str] | None = None,
    negative_prompts: Sequence[str] | None = None,
    images: Sequence[Any] | None = None,
    guides: Sequence[Guide] = (),
) -> list[Clip]:
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
        images: for models that go on from a picture: one per prompt.
        guides: rewards that bend the velocity of flow models (`mmalign.diffusion.guides.load_guide`).

    Raises:
        ConfigError: another number of negative prompts, keys or images than prompts, or images where the
            model takes none, or none where it needs them; guides for a model that predicts no velocity.
    """
    _check(model, prompts, {"keys": keys, "negative_prompts": negative_prompts, "images": images})
    names = range(len(prompts)) if keys is None else keys
    against = None if negative_prompts is None else list(negative_prompts)
    shown = None if images is None else pictures_of(images, model.size)
    jobs = [(number, copy) for number in range(len(prompts)) for copy in range(copies)]
    half = model.dtype in (torch.float16, torch.bfloat16)
    found: list[Clip] = []
    with evaluating(model.bare_network), model.sampling():
        for first in range(0, len(jobs), batch_size):
            part = jobs[first : first + batch_size]
            drawn = [(names[number], copy) for number, copy in part]
            texts = [prompts[number] for number, _ in part]
            pictures: dict[str, Tensor] = {}
            if shown is not None:
                pictures = model.image_states(torch.stack([shown[number] for number, _ in part]))
            conditioning = {**model.prompt_conditioning(texts).rows(1), **pictures}
            contrast = None
            if guidance_scale > 1 and not model.embeds_guidance:
                negatives = None if against is None else [against[number] for number, _ in part]
                contrast = {**model.contrast_conditioning(texts, negatives).rows(1), **pictures}
            start = torch.stack(
                [initial_noise(model.latent_shape, seed=seed, prompt=n, copy=c) for n, c in drawn]
            )
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
                    rewards=guides,
                )
            if pictures:
                latents = model.begun(latents, pictures)
            found += [Clip.of(clip, model.fps) for clip in model.decode_clips(latents)]
    return found

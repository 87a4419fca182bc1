"""Generation of clips: the same noise for the same prompt, whatever the model, the batch or the device.

The sampler is the model's own scheduler; guidance contrasts the prompt with the empty one, or with a negative
prompt. Models that go on from a picture are given one per prompt.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.diffusion.clip_sampling import check_one_each, latents_of_prompts
from mmalign.diffusion.reward_guidance import Guide
from mmalign.diffusion.sampling import evaluating
from mmalign.errors import ConfigError, explain
from mmalign.video.clips import Clip, covering, picture_tensor

if TYPE_CHECKING:
    from mmalign.video.family import VideoModel

__all__ = ["generate", "pictures_of"]


def pictures_of(images: Sequence[Any], size: tuple[int, int]) -> list[UInt8[Tensor, "3 height width"]]:
    """Pictures (PIL images, or bytes `[3, height, width]`) as a model of clips of a size is shown them."""
    tensors = [image if isinstance(image, Tensor) else picture_tensor(image) for image in images]
    return [covering(picture.unsqueeze(0), size).squeeze(0) for picture in tensors]


def _check_pictures(model: "VideoModel", images: Sequence[Any] | None) -> None:
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
    check_one_each(prompts, keys=keys, negative_prompts=negative_prompts, images=images)
    _check_pictures(model, images)
    shown = None if images is None else pictures_of(images, model.size)

    def pictures(numbers: Sequence[int]) -> dict[str, Tensor]:
        return {} if shown is None else model.image_states(torch.stack([shown[n] for n in numbers]))

    found: list[Clip] = []
    with evaluating(model.bare_network), model.sampling():
        for latents, begun in latents_of_prompts(
            model,
            prompts,
            shape=model.latent_shape,
            seed=seed,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            batch_size=batch_size,
            copies=copies,
            keys=keys,
            negative_prompts=negative_prompts,
            more=pictures,
            rewards=guides,
        ):
            finished = model.begun(latents, begun) if begun else latents
            found += [Clip.of(clip, model.fps) for clip in model.decode_clips(finished)]
    return found

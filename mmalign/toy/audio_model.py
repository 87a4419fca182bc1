"""Training of the toy world's base model of sound, and the command that rebuilds the shipped weights.

    python -m mmalign.toy.audio_model --output DIR

trains the autoencoder of spectrograms (on 600 clips), the vocoder (on 400), the text encoder, then the UNet
by plain denoising (on 6000), and writes a folder of Tango's official layout. One thread is enough.
"""

import argparse
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmalign.files import load_tensors, save_tensors
from mmalign.seeding import generator_for
from mmalign.toy.audio_pipeline import (
    NUM_FRAMES,
    Parts,
    evaluate,
    levelled,
    load_base,
    mels_of,
    new_unet,
    new_vae,
    new_vocoder,
    write_model,
)
from mmalign.toy.audio_reading import tokenizer_of_the_world, train_text_encoder
from mmalign.toy.audio_scenes import disorder, draw_facts, draw_scene, misheard, render
from mmalign.toy.audio_vocoder import train_vocoder
from mmalign.toy.base_training import Trained, log_line, train_denoiser_of, training_folder

__all__ = [
    "BaseData",
    "base_data",
    "clips",
    "main",
    "train_base",
    "train_denoiser",
    "train_vae",
]

PROMPT_DROPOUT = 0.1


def clips(num: int, *, seed: int) -> Float[Tensor, "clip sample"]:
    """Random clips of all orders that may be trained on, for autoencoder and vocoder."""
    rng = random.Random(f"sounds {seed}")
    waves = [render(draw_scene(draw_facts(rng, held_out=False), rng)) for _ in range(num)]
    return levelled(torch.from_numpy(np.stack(waves)))


def train_vae(
    waves: Float[Tensor, "clip sample"], *, seed: int, steps: int, batch_size: int = 8, num_frames: int = 64
) -> Any:
    """An autoencoder of spectrograms; its scaling factor is 1 / std of its latents."""
    mels = mels_of(waves)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = new_vae()
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(mels.mean())
    trained = Trained([vae], learning_rate=2e-3, decay=0.99, warmup=30)
    started = time.time()
    for step in range(1, steps + 1):
        generator = generator_for(seed, "vae", step)
        rows = torch.randint(0, len(mels), (batch_size,), generator=generator)
        first = int(torch.randint(0, NUM_FRAMES - num_frames + 1, (), generator=generator))
        given = mels[rows, :, first : first + num_frames]
        posterior = vae.encode(given).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        error = vae.decode(posterior.mean + posterior.std * noise).sample - given
        loss = error.abs().mean() + 0.5 * error.square().mean() + 2e-4 * posterior.kl().mean() / num_frames
        trained.update(loss, step=step, steps=steps)
        if step % 25 == 0:
            log_line("vae", step=step, l1=error.abs().mean().item(), seconds=time.time() - started)
    torch._foreach_copy_(trained.values, trained.shadow)
    with torch.no_grad():
        spread = torch.cat([vae.encode(part).latent_dist.sample() for part in mels[:128].split(32)]).std()
    vae.register_to_config(scaling_factor=round(1.0 / spread.item(), 4))
    return vae.eval()


@dataclass(frozen=True)
class BaseData:
    """What the base is trained on: moments of scaled latents, token ids of captions, where they are real."""

    mean: Float[Tensor, "clip 8 16 4"]
    std: Float[Tensor, "clip 8 16 4"]
    ids: Int[Tensor, "clip token"]
    mask: Bool[Tensor, "clip token"]


def base_data(
    vae: Any, *, seed: int, num: int, disordered_share: float = 0.35, misheard_share: float = 0.1
) -> BaseData:
    """Encoded clips with captions, some of which are wrong: room for alignment.

    Args:
        vae: encodes; trained.
        seed: of the clips.
        num: of clips.
        disordered_share: share of the clips whose events sound in another order than their caption says.
        misheard_share: share with one event that the caption does not name.
    """
    rng = random.Random(f"base sounds {seed}")
    captions, means, stds = [], [], []
    for start in range(0, num, 256):
        waves = []
        for _ in range(min(256, num - start)):
            facts = draw_facts(rng, held_out=False)
            captions.append(facts.caption())
            drawn = rng.random()
            if drawn < disordered_share:
                facts = disorder(facts, rng)
            elif drawn < disordered_share + misheard_share:
                facts = misheard(facts, rng)
            waves.append(render(draw_scene(facts, rng)))
        with torch.no_grad():
            for part in mels_of(levelled(torch.from_numpy(np.stack(waves)))).split(32):
                posterior = vae.encode(part).latent_dist
                means.append(posterior.mean)
                stds.append(posterior.std)
    encoded = tokenizer_of_the_world()[0](captions, padding="longest", return_tensors="pt")
    scale = float(vae.config["scaling_factor"])
    return BaseData(
        torch.cat(means) * scale,
        torch.cat(stds) * scale,
        encoded["input_ids"],
        encoded["attention_mask"].bool(),
    )


def _denoise_loss(
    parts: Parts, data: BaseData, rows: Int[Tensor, " row"], generator: torch.Generator, alphas: Tensor
) -> Float[Tensor, ""]:
    """Mean squared error of the predicted velocity sqrt(a) e - sqrt(1 - a) x, as Tango's network predicts.

    10 % of the prompts are empty: the end of the text alone.
    """
    ids, mask = data.ids[rows], data.mask[rows]
    dropped = torch.rand(len(rows), generator=generator) < PROMPT_DROPOUT
    empty = torch.zeros_like(ids)
    empty[:, 0] = 1
    ids = torch.where(dropped[:, None], empty, ids)
    mask = torch.where(dropped[:, None], empty.bool(), mask)
    states = parts["text_encoder"](ids, attention_mask=mask.long())[0]
    clean = data.mean[rows] + data.std[rows] * torch.randn(data.mean[rows].shape, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    # Much noise more often than little: what sounds when is decided there.
    timestep = (1000 * torch.rand(len(rows), generator=generator).sqrt()).long().clamp(max=999)
    alpha = alphas[timestep][:, None, None, None]
    noised = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    predicted = parts["unet"](
        noised, timestep, encoder_hidden_states=states, encoder_attention_mask=mask
    ).sample
    return F.mse_loss(predicted, velocity)


def train_denoiser(
    parts: Parts,
    data: BaseData,
    *,
    seed: int,
    steps: int,
    output: Path,
    batch_size: int = 32,
    save_every: int = 250,
    num_evaluated: int = 48,
) -> None:
    """Train the UNet in place; the text encoder stays as it is.

    Every `save_every` steps the averaged weights are written to `output` and judged on held-out captions, and
    the state of training is written to a folder beside it. Where that state exists, training continues from
    there, with the same draws as if it had never stopped.
    """
    from diffusers import DDPMScheduler

    from mmalign.audio.official_configs import SCHEDULER

    alphas = DDPMScheduler(**SCHEDULER).alphas_cumprod
    trained = Trained([parts["unet"]], learning_rate=2e-3, decay=0.995)

    def keep() -> dict[str, float]:
        write_model(parts, output)
        return evaluate(load_base(output), num=num_evaluated)

    train_denoiser_of(
        trained,
        lambda rows, generator: _denoise_loss(parts, data, rows, generator, alphas),
        keep,
        output,
        num_rows=len(data.mean),
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        save_every=save_every,
    )


def _kept(path: Path, module: Any, scale: str | None = None) -> Any:
    """The module with the weights of a file."""
    state = load_tensors(path)
    if scale is not None:
        module.register_to_config(**{scale: float(state.pop("scale"))})
    module.load_state_dict(state)
    return module.eval()


def _vae_of(folder: Path, seed: int, steps: int, num_clips: int) -> Any:
    """The autoencoder of an earlier run, or a new one."""
    path = folder / "vae.safetensors"
    if not path.exists():
        vae = train_vae(clips(num_clips, seed=seed), seed=seed, steps=steps)
        scale = torch.tensor(float(vae.config["scaling_factor"]), dtype=torch.float64)
        save_tensors(path, {**vae.state_dict(), "scale": scale})
    return _kept(path, new_vae(), "scaling_factor")


def _vocoder_of(folder: Path, seed: int, steps: int, num_clips: int) -> Any:
    """The vocoder of an earlier run, or a new one."""
    path = folder / "vocoder.safetensors"
    if not path.exists():
        vocoder = train_vocoder(seed=seed, steps=steps, num_clips=num_clips)
        save_tensors(path, vocoder.state_dict())
    return _kept(path, new_vocoder())


def train_base(
    output: Path,
    *,
    seed: int = 0,
    vae_steps: int = 600,
    vocoder_steps: int = 300,
    text_steps: int = 300,
    steps: int = 1500,
    num_clips: int = 600,
    num_played: int = 400,
    num_scenes: int = 6_000,
    num_evaluated: int = 48,
) -> None:
    """A base like the shipped one, written to `output`: autoencoder, vocoder, text encoder, then the UNet.

    Each stage is kept in a folder beside `output` until all are done, so that a stopped run goes on.

    The shipped weights came from these functions in stages, driven by hand: the UNet had 2250 steps with a
    text encoder that could not read (it played the right events in any order), 500 with this one on right
    captions, and 300 with the wrong ones of `base_data`. One run of this function replaces the stages. Its
    weights are others; docs/audio-world.md says what they play beside the shipped ones.
    """
    folder = training_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    vae = _vae_of(folder, seed, vae_steps, num_clips)
    vocoder = _vocoder_of(folder, seed, vocoder_steps, num_played)
    texts = train_text_encoder(seed=seed, steps=text_steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = new_unet()
    parts: Parts = {"unet": unet, "text_encoder": texts, "vae": vae, "vocoder": vocoder}
    data = base_data(vae, seed=seed, num=num_scenes)
    train_denoiser(parts, data, seed=seed, steps=steps, output=output, num_evaluated=num_evaluated)
    write_model(parts, output)
    shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: rebuild the base weights."""
    parser = argparse.ArgumentParser(
        prog="python -m mmalign.toy.audio_model", description="Train a base model of the toy world of sound."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the new model")
    parser.add_argument("--seed", type=int, default=0)
    for stage, (flag, value, what) in _AMOUNTS.items():
        parser.add_argument(flag, dest=stage, type=int, default=value, help=what)
    parser.add_argument("--threads", type=int, default=1)
    options = vars(parser.parse_args(arguments))
    torch.set_num_threads(options.pop("threads"))
    train_base(options.pop("output"), **options)


_AMOUNTS = {
    "vae_steps": ("--vae-steps", 600, "of the autoencoder"),
    "vocoder_steps": ("--vocoder-steps", 300, "after its regression"),
    "text_steps": ("--text-steps", 300, "of the text encoder"),
    "steps": ("--steps", 1500, "of the UNet"),
    "num_clips": ("--num-clips", 600, "that the autoencoder is trained on"),
    "num_played": ("--num-played", 400, "clips that the vocoder is trained on"),
    "num_scenes": ("--num-scenes", 6_000, "clips that the UNet is trained on"),
    "num_evaluated": ("--num-evaluated", 48, "held-out captions that are judged on the way"),
}
"""By argument of `train_base`: flag, default, help."""


if __name__ == "__main__":
    main()

"""Training of the toy world's vocoder: a regression in closed form, then gradient descent, no adversary."""

import random
import time
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.seeding import generator_for
from mmalign.toy.audio_pipeline import FRONT, levelled, mels_of, new_vocoder
from mmalign.toy.audio_scenes import draw_facts, draw_scene, render, render_locked
from mmalign.toy.base_training import Trained, log_line

__all__ = ["fit_frames", "listen_to_bands", "sounds", "train_vocoder"]


@torch.no_grad()
def listen_to_bands(layer: Any) -> None:
    """Give a convolution three units per band: above -4, above -2, and the band itself.

    With leaky units, the difference of the first and a tenth of the last is exactly 0 below -4: what follows
    can be silent in silence.
    """
    layer.weight.zero_()
    middle = layer.weight.shape[-1] // 2
    for unit in range(layer.weight.shape[0]):
        layer.weight[unit, unit % FRONT.num_mels, middle] = 1.0
        layer.bias[unit] = (4.0, 2.0, 12.0)[unit // FRONT.num_mels % 3]


@torch.no_grad()
def fit_frames(
    vocoder: Any,
    mels: Float[Tensor, "clip frame mel"],
    locked: Float[Tensor, "clip sample"],
    *,
    ridge: float = 1e-5,
    quiet: float = 30.0,
) -> float:
    """Set the first transposed convolution to what plays the waves best; returns the share that is missed.

    Later layers of a new vocoder pass samples on, so that this is linear regression on the first layer's
    output, one for each of the layer's phases. Silence counts `quiet` times: faults are heard there.
    """
    first: Any = vocoder.upsampler[0]
    stride, before, taps = first.stride[0], first.padding[0], first.kernel_size[0]
    hidden = F.leaky_relu(vocoder.conv_pre(mels.transpose(1, 2)), vocoder.config.leaky_relu_slope)
    width, frames, samples = hidden.shape[1], hidden.shape[2], FRONT.hop_length // stride
    reach = taps // stride
    around = F.pad(hidden, (reach, reach))  # the ends of clips have no neighbours, and count as much
    missed = total = 0.0
    for phase in range(stride):
        used = list(range((phase + before) % stride, taps, stride))
        shifts = [(phase + before - tap) // stride for tap in used]
        seen = torch.cat([around[:, :, reach + shift :][:, :, :frames] for shift in shifts], dim=1)
        inputs = seen.transpose(1, 2).flatten(0, 1).double()
        played = locked.unflatten(1, (frames, stride, samples))[:, :, phase].flatten(0, 1).double()
        weights = torch.where(played.abs().amax(1) > 0, 1.0, quiet).double()
        weighted = inputs * weights[:, None]
        gram = inputs.T @ weighted
        gram.diagonal().add_(ridge * len(inputs))
        solved = torch.linalg.solve(gram, weighted.T @ played)
        missed += float((played - inputs @ solved).square().sum())
        total += float(played.square().sum())
        for tap, part in zip(used, solved.split(width), strict=True):
            first.weight[:, :samples, tap] = part.float()
    return missed / total


def sounds(num: int, *, seed: int) -> tuple[Float[Tensor, "clip sample"], Float[Tensor, "clip sample"]]:
    """Clips at the model's level, and what a vocoder should play for them."""
    rng = random.Random(f"vocoder {seed}")
    waves, locked = [], []
    for _ in range(num):
        scene = draw_scene(draw_facts(rng, held_out=False), rng)
        wave, played = render(scene), render_locked(scene)
        waves.append(torch.from_numpy(wave))
        locked.append(torch.from_numpy(played * (0.5 / np.abs(wave).max())))
    return levelled(torch.stack(waves)), torch.stack(locked)


def _missed(
    made: Float[Tensor, "clip sample"], locked: Float[Tensor, "clip sample"], *, quiet: float = 16.0
) -> Float[Tensor, ""]:
    """Squared distance by the energy there should be; silence counts `quiet` times."""
    near = F.max_pool1d(locked.abs().unsqueeze(1), 161, 1, 80).squeeze(1)
    weights = torch.where(near > 0, 1.0, quiet)
    return (weights * (made - locked).square()).sum() / locked.square().sum().clamp(min=1.0)


def train_vocoder(*, seed: int, steps: int, num_clips: int = 400, batch_size: int = 3) -> Any:
    """A vocoder without an adversary: regression in closed form, then gradient descent from there."""
    waves, locked = sounds(num_clips, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vocoder = new_vocoder()
    mels = mels_of(waves).squeeze(1)
    listen_to_bands(vocoder.conv_pre)
    log_line("vocoder", step=0, missed=fit_frames(vocoder, mels, locked))
    trained = Trained([vocoder], learning_rate=2e-4, decay=0.98, warmup=10)
    started, running = time.time(), 0.0
    for step in range(1, steps + 1):
        generator = generator_for(seed, "vocoder", step)
        rows = torch.randint(0, len(mels), (batch_size,), generator=generator)
        loss = _missed(vocoder(mels[rows])[:, : locked.shape[1]], locked[rows])
        trained.update(loss, step=step, steps=steps)
        running = loss.item() if step == 1 else 0.95 * running + 0.05 * loss.item()
        if step % 25 == 0:
            log_line("vocoder", step=step, missed=running, seconds=time.time() - started)
    torch._foreach_copy_(trained.values, trained.shadow)
    return vocoder.eval()

"""Training of the toy world's base model of video, and the command that rebuilds the shipped weights.

    python -m mmalign.toy.video_model --output DIR

trains the causal autoencoder, the text encoder, then the transformer by plain flow matching, and writes a
folder of Wan's layout: half an hour on one thread.
"""

import argparse
import itertools
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.files import load_tensors, save_tensors
from mmalign.seeding import generator_for
from mmalign.toy.base_training import Trained, log_line, train_denoiser_of, training_folder
from mmalign.toy.video_pipeline import (
    GUIDANCE_SCALE,
    LATENT_CHANNELS,
    LATENT_SHAPE,
    MAX_TOKENS,
    NUM_STEPS,
    SHIFT,
    Parts,
    denormalised,
    new_text_encoder,
    new_transformer,
    new_vae,
    normalised,
    text_states,
    write_model,
    write_tokenizer,
)
from mmalign.toy.video_reward import score_clips
from mmalign.toy.video_scenes import (
    COLOURS,
    DIRECTIONS,
    NUM_FRAMES,
    SHAPES,
    SPEEDS,
    draw_facts,
    faulty,
    held_out_prompts,
    render,
    tensor_of,
)

__all__ = [
    "BaseData",
    "base_data",
    "begin_with_pictures",
    "clips",
    "evaluate_parts",
    "flow_loss",
    "generate",
    "main",
    "meanings",
    "piece",
    "train_base",
    "train_denoiser",
    "train_text_encoder",
    "train_vae",
]

PROMPT_DROPOUT = 0.1
WRONG_TURN = 0.2
"""Share of segments whose direction is not their caption's: room for alignment."""

FAULT_SHARE = 0.15
"""Share of clips with a flicker, a jump or a stall."""


def clips(num: int, *, seed: int) -> Float[Tensor, "clip 3 frame height width"]:
    """Random clips in [-1, 1], some with faults, for the autoencoder."""
    rng = random.Random(f"clips {seed}")
    drawn = [
        faulty(draw_facts(rng, held_out=False), rng, wrong_turn=0.5, fault_share=0.5) for _ in range(num)
    ]
    return _pixels([tensor_of(render(scene)) for scene in drawn])


def _pixels(frames: Sequence[Tensor]) -> Float[Tensor, "clip 3 frame height width"]:
    return torch.stack(list(frames)).transpose(1, 2).float() / 127.5 - 1.0


@torch.no_grad()
def begin_with_pictures(vae: Any) -> None:
    """Make an untrained autoencoder one of single frames, as Wan's was made from one of pictures.

    Its convolutions look at the present frame alone and its resampling in time keeps the last of two frames,
    or repeats it. The posterior is narrow: noise as large as the latents would hide them for long.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    vae.quant_conv.bias[LATENT_CHANNELS:] = -6.0
    for name, module in vae.named_modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
            module.weight[:, :, :2] = 0.0
            if name.endswith("time_conv"):
                module.weight.zero_()
                module.bias.zero_()
                for channel in range(module.out_channels):
                    module.weight[channel, channel % module.in_channels, 2] = 1.0


def piece(
    pixels: Float[Tensor, "clip 3 frame height width"], step: int, pictures: int, generator: torch.Generator
) -> Float[Tensor, "piece 3 time height width"]:
    """What the autoencoder sees at a step: single frames first, then pieces of 9 frames and whole clips.

    Nine frames are three latent ones: the first, the second and a later one differ in a causal network.
    """
    size, length = (24, 1) if step <= pictures else (3, NUM_FRAMES) if step % 4 == 0 else (6, 9)
    rows = torch.randint(0, len(pixels), (size,), generator=generator)
    if length == 1:
        frames = torch.randint(0, NUM_FRAMES, (size,), generator=generator)
        return pixels[rows, :, frames].unsqueeze(2)
    first = int(torch.randint(0, NUM_FRAMES - length + 1, (), generator=generator))
    return pixels[rows, :, first : first + length]


def train_vae(
    pixels: Float[Tensor, "clip 3 frame height width"], *, seed: int, pictures: int, steps: int
) -> Any:
    """A causal autoencoder; its latents' means and spreads are those that it has on `pixels`.

    Pixels of a shape count five times.

    Args:
        pixels: clips in [-1, 1].
        seed: of weights and draws.
        pictures: steps on single frames.
        steps: steps in all; the others are on pieces of clips.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = new_vae()
    begin_with_pictures(vae)
    trained = Trained([vae], learning_rate=3e-3, decay=0.99, warmup=30)
    started, running = time.time(), 0.0
    for step in range(1, steps + 1):
        generator = generator_for(seed, "vae", step)
        given = piece(pixels, step, pictures, generator)
        posterior = vae.encode(given).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        error = vae.decode(posterior.mean + posterior.std * noise).sample - given
        weight = 1.0 + 4.0 * ((given - given[:, :, :1, :1, :1]).abs().amax(1, keepdim=True) > 0.15)
        loss = (weight * (error.abs() + 0.5 * error.square())).mean() + 1e-6 * posterior.kl().mean()
        trained.update(loss, step=step, steps=steps)
        running = loss.item() if step in (1, pictures + 1) else 0.95 * running + 0.05 * loss.item()
        if step % 50 == 0:
            log_line("vae", step=step, loss=running, seconds=time.time() - started)
    torch._foreach_copy_(trained.values, trained.shadow)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels[:256].split(32)])
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in latents.mean((0, 2, 3, 4)).tolist()],
        latents_std=[round(value, 4) for value in latents.std((0, 2, 3, 4)).tolist()],
    )
    return vae.eval()


# --- text ---------------------------------------------------------------------------------------------------

_MEANINGS = (*COLOURS, *SHAPES, *SPEEDS, *(f"{place} {way}" for place in (1, 2) for way in DIRECTIONS))


def meanings(caption: str) -> list[int]:
    """For every token of a caption what it says, directions with their place in time; -100 for the others."""
    found, ways = [], 0
    for word in caption.replace(",", " ,").split():
        if word in DIRECTIONS:
            ways += 1
            word = f"{ways} {word}"
        found.append(_MEANINGS.index(word) if word in _MEANINGS else -100)
    return [*found, -100]


def train_text_encoder(*, seed: int, steps: int, batch_size: int = 32) -> Any:
    """A text encoder whose states say of every word what it means, and when.

    UMT5, which stands there in Wan, can read too before any video is trained on; as there, it is frozen
    afterwards. The linear head of this task is thrown away.
    """
    tokenizer, vocabulary = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = new_text_encoder(vocabulary)
        head = nn.Linear(encoder.config.d_model, len(_MEANINGS))
    trained = Trained([encoder, head], learning_rate=3e-3, decay=0.98, warmup=20)
    rng, running = random.Random(f"reading {seed}"), 0.0
    for step in range(1, steps + 1):
        captions = [draw_facts(rng, held_out=False).caption() for _ in range(batch_size)]
        labels = torch.full((batch_size, MAX_TOKENS), -100)
        for row, caption in enumerate(captions):
            values = meanings(caption)
            labels[row, : len(values)] = torch.tensor(values)
        states = text_states(encoder, tokenizer, captions)
        loss = F.cross_entropy(head(states).flatten(0, 1), labels.flatten())
        trained.update(loss, step=step, steps=steps)
        running = loss.item() if step == 1 else 0.9 * running + 0.1 * loss.item()
        if step % 50 == 0:
            log_line("text encoder", step=step, loss=running)
    torch._foreach_copy_(trained.values, trained.shadow)
    return encoder.eval().requires_grad_(False)


def _tokenizer() -> tuple[Any, int]:
    """The world's tokenizer and the size of its vocabulary."""
    from transformers import T5Tokenizer

    with TemporaryDirectory() as folder:
        size = write_tokenizer(Path(folder))
        return T5Tokenizer.from_pretrained(folder), size


# --- video --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseData:
    """What the base is trained on: normalised latents, and which of the captions' states belongs to each.

    Args:
        latents: the autoencoder's means.
        states: of every caption that occurs; the last one is that of the empty prompt.
        captions: row of `states` per clip.
    """

    latents: Float[Tensor, "clip 16 5 4 4"]
    states: Float[Tensor, "caption token width"]
    captions: Int[Tensor, " clip"]


@torch.no_grad()
def base_data(
    parts: Parts,
    *,
    seed: int,
    num: int,
    wrong_turn: float = WRONG_TURN,
    fault_share: float = FAULT_SHARE,
) -> BaseData:
    """Encoded clips with captions, some of which are wrong: room for alignment.

    Args:
        parts: autoencoder and text encoder encode; trained.
        seed: of the clips.
        num: of clips.
        wrong_turn: share of segments that go another way than their caption says.
        fault_share: share of clips with a flicker, a jump or a stall.
    """
    vae: Any = parts["vae"]
    rng = random.Random(f"base clips {seed}")
    captions, latents = [], []
    for start in range(0, num, 64):
        frames = []
        for _ in range(min(64, num - start)):
            facts = draw_facts(rng, held_out=False)
            captions.append(facts.caption())
            scene = faulty(facts, rng, wrong_turn=wrong_turn, fault_share=fault_share)
            frames.append(tensor_of(render(scene)))
        latents.append(vae.encode(_pixels(frames)).latent_dist.mean)
    texts = [*sorted(set(captions)), ""]
    states = text_states(parts["text_encoder"], _tokenizer()[0], texts)
    rows = torch.tensor([texts.index(caption) for caption in captions])
    return BaseData(normalised(vae, torch.cat(latents)), states, rows)


def flow_loss(
    transformer: Any, data: BaseData, rows: Int[Tensor, " row"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean squared error of the predicted velocity e - x at the noise levels of Wan's shifted schedule.

    10 % of the prompts are empty.
    """
    dropped = torch.rand(len(rows), generator=generator) < PROMPT_DROPOUT
    texts = torch.where(dropped, len(data.states) - 1, data.captions[rows])
    clean = data.latents[rows]
    noise = torch.randn(clean.shape, generator=generator)
    level = torch.rand(len(rows), generator=generator)
    level = (SHIFT * level / (1.0 + (SHIFT - 1.0) * level)).view(-1, 1, 1, 1, 1)
    predicted = transformer(
        (1.0 - level) * clean + level * noise, 1000.0 * level.flatten(), data.states[texts], return_dict=False
    )[0]
    return F.mse_loss(predicted, noise - clean)


@torch.no_grad()
def generate(
    parts: Parts,
    prompts: Sequence[str],
    *,
    seed: int,
    num_steps: int = NUM_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Float[Tensor, "clip frame 3 height width"]:
    """Clips in [0, 1] of prompts, by Euler steps on Wan's noise levels, while there is no pipeline yet."""
    transformer: Any = parts["transformer"]
    states = text_states(parts["text_encoder"], _tokenizer()[0], [*prompts, ""])
    both = torch.cat([states[:-1], states[-1:].expand(len(prompts), -1, -1)])
    latents = torch.randn((len(prompts), *LATENT_SHAPE), generator=generator_for(seed, "generate"))
    levels = torch.linspace(1.0, 0.0, num_steps + 1)
    levels = SHIFT * levels / (1.0 + (SHIFT - 1.0) * levels)
    for level, after in itertools.pairwise(levels):
        times = (1000.0 * level).expand(2 * len(prompts))
        given, empty = transformer(torch.cat([latents] * 2), times, both, return_dict=False)[0].chunk(2)
        latents = latents + (after - level) * (empty + guidance_scale * (given - empty))
    vae: Any = parts["vae"]
    decoded = torch.cat([vae.decode(part).sample for part in denormalised(vae, latents).split(16)])
    return (0.5 * decoded + 0.5).clamp(0.0, 1.0).transpose(1, 2)


def evaluate_parts(parts: Parts, *, num: int, seed: int = 0) -> dict[str, float]:
    """Means over held-out captions."""
    prompts = held_out_prompts(num, seed=seed)
    scores = score_clips(list(generate(parts, prompts, seed=seed)), prompts)
    axes = ("total", "direction", "smoothness", "identity", "motion", "right_ways", "pixels")
    return {axis: sum(float(getattr(score, axis)) for score in scores) / num for axis in axes}


def train_denoiser(
    parts: Parts,
    data: BaseData,
    *,
    seed: int,
    steps: int,
    output: Path,
    batch_size: int = 16,
    save_every: int = 750,
    num_evaluated: int = 48,
) -> None:
    """Train the transformer in place; the text encoder stays as it is.

    Every `save_every` steps the averaged weights are written to `output` and judged on held-out captions, and
    the state of training is written to a folder beside it. Where that state exists, training continues from
    there, with the same draws as if it had never stopped.
    """
    transformer = parts["transformer"]
    trained = Trained([transformer], learning_rate=1.5e-3, decay=0.995)

    def keep() -> dict[str, float]:
        write_model(parts, output)
        return evaluate_parts(parts, num=num_evaluated)

    train_denoiser_of(
        trained,
        partial(flow_loss, transformer, data),
        keep,
        output,
        num_rows=len(data.latents),
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        save_every=save_every,
    )


def _vae_of(folder: Path, seed: int, pictures: int, steps: int, num_clips: int) -> Any:
    """The autoencoder of an earlier run that was stopped, or a new one."""
    path = folder / "vae.safetensors"
    names = ("latents_mean", "latents_std")
    if not path.exists():
        vae = train_vae(clips(num_clips, seed=seed), seed=seed, pictures=pictures, steps=steps)
        kept = {name: torch.tensor(vae.config[name], dtype=torch.float64) for name in names}
        save_tensors(path, {**vae.state_dict(), **kept})
    state, vae = load_tensors(path), new_vae()
    vae.register_to_config(**{name: state.pop(name).tolist() for name in names})
    vae.load_state_dict(state)
    return vae.eval()


def train_base(
    output: Path,
    *,
    seed: int = 0,
    vae_pictures: int = 1200,
    vae_steps: int = 5000,
    text_steps: int = 300,
    steps: int = 8000,
    num_clips: int = 1500,
    num_scenes: int = 6_000,
    num_evaluated: int = 48,
) -> None:
    """The shipped base, written to `output`: autoencoder, text encoder, then the transformer.

    Autoencoder and transformer are kept in a folder beside `output` until all is done, so that a stopped run
    goes on.
    """
    folder = training_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    vae = _vae_of(folder, seed, vae_pictures, vae_steps, num_clips)
    texts = train_text_encoder(seed=seed, steps=text_steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = new_transformer()
    parts: Parts = {"transformer": transformer, "text_encoder": texts, "vae": vae}
    data = base_data(parts, seed=seed, num=num_scenes)
    log_line("data", clips=len(data.latents), std=data.latents.std().item())
    train_denoiser(parts, data, seed=seed, steps=steps, output=output, num_evaluated=num_evaluated)
    write_model(parts, output)
    shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: rebuild the base weights."""
    parser = argparse.ArgumentParser(
        prog="python -m mmalign.toy.video_model", description="Train a base model of the toy world of video."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the new model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-pictures", type=int, default=1200, help="steps of the VAE on single frames")
    parser.add_argument("--vae-steps", type=int, default=5000, help="steps of the VAE in all")
    parser.add_argument("--text-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=8000, help="steps of the transformer")
    parser.add_argument("--num-clips", type=int, default=1500, help="clips of the VAE")
    parser.add_argument("--num-scenes", type=int, default=6_000, help="clips of the transformer")
    parser.add_argument("--num-evaluated", type=int, default=48, help="held-out captions that are shown")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    train_base(
        options.output,
        seed=options.seed,
        vae_pictures=options.vae_pictures,
        vae_steps=options.vae_steps,
        text_steps=options.text_steps,
        steps=options.steps,
        num_clips=options.num_clips,
        num_scenes=options.num_scenes,
        num_evaluated=options.num_evaluated,
    )


if __name__ == "__main__":
    main()

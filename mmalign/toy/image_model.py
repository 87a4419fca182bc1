"""The model of the toy world of images: a small pipeline of SDXL's structure, and how it is trained.

    python -m mmalign.toy.image_model --output DIR

builds a diffusers folder that `StableDiffusionXLPipeline.from_pretrained` loads: a UNet with text-time
embedding, two CLIP text encoders with their tokenizers, a variational autoencoder and SDXL's noise schedule,
about four million parameters together.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mmalign.seeding import generator_for
from mmalign.toy.image_reward import score_images
from mmalign.toy.scenes import (
    COLOURS,
    CORRUPTIONS,
    COUNT_WORDS,
    RELATIONS,
    SHAPES,
    Facts,
    corrupt,
    draw_facts,
    draw_scene,
    held_out_prompts,
    is_held_out,
    render_array,
)

ASSETS = Path(__file__).parent / "assets" / "images"
LATENT_SIZE = 16
MAX_TOKENS = 16  # a caption has at most ten; 77 in SDXL
FIRST_WIDTH, SECOND_WIDTH = 64, 96  # of the two text encoders (768 and 1280 in SDXL)
PROMPT_DROPOUT = 0.1


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: 64 x 64 x 3 pixels to 16 x 16 x 4 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        sample_size=64,
    )


def _pictures(rng: random.Random, num: int) -> Float[Tensor, "image 3 height width"]:
    """Random scenes in both styles, in [-1, 1], for the autoencoder."""
    arrays = [
        render_array(draw_scene(draw_facts(rng), rng, style=rng.choice(("day", "night")))) for _ in range(num)
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def train_vae(*, seed: int, steps: int, batch_size: int = 32) -> AutoencoderKL:
    """An autoencoder trained on scenes of both styles; its scaling factor is 1 / std of its latents."""
    torch.manual_seed(seed)
    rng = random.Random(f"vae {seed}")
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, steps, warmup=50))
    generator = generator_for(seed, "vae")
    started = time.time()
    for step in range(steps):
        pictures = _pictures(rng, batch_size).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(pictures).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - pictures
        loss = (
            error.abs().mean() + error.square().mean() + 5e-4 * posterior.kl().mean() / (4 * LATENT_SIZE**2)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            _log(
                "vae",
                step=step,
                loss=loss.item(),
                l1=error.abs().mean().item(),
                seconds=time.time() - started,
            )
    with torch.no_grad():
        latents = torch.cat([vae.encode(_pictures(rng, 64)).latent_dist.sample(generator) for _ in range(8)])
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 4))
    return vae.eval()


def _words() -> list[str]:
    """Every word of the captions: each becomes one token."""
    plurals = ["crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES]
    return sorted({*COUNT_WORDS, *COLOURS, *SHAPES, *plurals, *" ".join(RELATIONS).split()})


def _byte_symbols() -> list[str]:
    """The character that stands for each of the 256 bytes in byte-level tokenizers, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make every word one token: always the most frequent pair, ties by spelling."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in spelled):
        pairs = Counter(pair for symbols in spelled for pair in itertools.pairwise(symbols))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(symbols, best) for symbols in spelled]
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def new_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Two CLIP tokenizers over the caption words and all bytes.

    They differ in their padding, as SDXL's do. Any text can be encoded: other words fall apart into bytes.
    """
    symbols, merges = _byte_symbols(), _merges(_words())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    first, second = (
        CLIPTokenizer(vocab=dict(vocab), merges=list(merges), pad_token=pad, model_max_length=MAX_TOKENS)
        for pad in ("<|endoftext|>", "!")
    )
    return first, second


def _text_config(tokenizer: CLIPTokenizer, *, width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=width // 16,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet in SDXL's layout: text-time embedding, no attention at the highest resolution."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 1, 1],
        attention_head_dim=[1, 2, 3],
        cross_attention_dim=FIRST_WIDTH + SECOND_WIDTH,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + SECOND_WIDTH,
    )


def new_scheduler() -> EulerDiscreteScheduler:
    """SDXL's scheduler with SDXL's settings."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )


def new_pipeline(*, seed: int, vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    """An untrained pipeline around a trained autoencoder."""
    torch.manual_seed(seed)
    first, second = new_tokenizers()
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(first, width=FIRST_WIDTH, activation="quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(
            _text_config(second, width=SECOND_WIDTH, activation="gelu")
        ),
        tokenizer=first,
        tokenizer_2=second,
        unet=new_unet(),
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


@dataclass(frozen=True)
class BaseData:
    """What the base is trained on: latents and the token ids of their captions under both tokenizers."""

    latents: Float[Tensor, "picture 4 16 16"]
    first_ids: Int[Tensor, "picture token"]
    second_ids: Int[Tensor, "picture token"]


def base_data(
    pipeline: StableDiffusionXLPipeline,
    *,
    seed: int,
    num: int,
    wrong_share: float = 0.1,
    night_share: float = 0.02,
) -> BaseData:
    """Encoded scenes with captions. Some captions are wrong and few scenes are dark: room for alignment.

    Args:
        pipeline: its autoencoder and tokenizers encode.
        seed: of the scenes.
        num: of scenes.
        wrong_share: share of the scenes in which one fact of the caption is broken.
        night_share: share of the scenes with a dark background.
    """
    rng = random.Random(f"base {seed}")
    generator = generator_for(seed, "base_latents")
    captions: list[str] = []
    latents: list[Tensor] = []
    for start in range(0, num, 128):
        arrays = []
        for _ in range(min(128, num - start)):
            facts = _training_facts(rng)
            scene = draw_scene(facts, rng, style="night" if rng.random() < night_share else "day")
            if rng.random() < wrong_share:
                scene = corrupt(scene, facts, rng.choice(CORRUPTIONS), rng)
            captions.append(facts.caption())
            arrays.append(render_array(scene))
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.no_grad():
            latents.append(pipeline.vae.encode(pixels).latent_dist.sample(generator))
    return BaseData(
        torch.cat(latents) * pipeline.vae.config.scaling_factor,
        _token_ids(pipeline.tokenizer, captions),
        _token_ids(pipeline.tokenizer_2, captions),
    )


def _training_facts(rng: random.Random) -> Facts:
    while True:
        facts = draw_facts(rng)
        if not is_held_out(facts):
            return facts


def _token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Int[Tensor, "caption token"]:
    encoded = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded["input_ids"]
    return ids


def _denoise_loss(
    pipeline: StableDiffusionXLPipeline, data: BaseData, rows: Int[Tensor, " row"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean squared error of the predicted noise, weighted min(SNR, 5) / SNR (arXiv:2303.09556).

    10 % of the prompts are dropped: all zeros in both text states, which is what SDXL's pipeline feeds for a
    missing negative prompt.
    """
    first = pipeline.text_encoder(data.first_ids[rows], output_hidden_states=True)
    second = pipeline.text_encoder_2(data.second_ids[rows], output_hidden_states=True)
    kept = (torch.rand(len(rows), generator=generator) >= PROMPT_DROPOUT).float()
    states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1) * kept[:, None, None]
    pooled = second.text_embeds * kept[:, None]
    clean = data.latents[rows]
    noise = torch.randn(clean.shape, generator=generator)
    timestep = torch.randint(0, 1000, (len(rows),), generator=generator)
    alpha = pipeline.scheduler.alphas_cumprod[timestep]
    noised = alpha.sqrt()[:, None, None, None] * clean + (1 - alpha).sqrt()[:, None, None, None] * noise
    time_ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).expand(len(rows), 6)
    predicted = pipeline.unet(
        noised.contiguous(memory_format=torch.channels_last),
        timestep,
        encoder_hidden_states=states,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
    ).sample
    weight = (5.0 * (1 - alpha) / alpha).clamp(max=1.0)
    return (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()


class _Average:
    """Exponential moving average of parameters, with the usual warm-up of its decay."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.shadow = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged values inside, the trained ones after."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.shadow)
            yield
            torch._foreach_copy_(self.parameters, trained)


def train_denoiser(
    pipeline: StableDiffusionXLPipeline,
    data: BaseData,
    *,
    seed: int,
    steps: int,
    output: Path,
    batch_size: int = 64,
    learning_rate: float = 1.2e-3,
    evaluate_every: int = 500,
) -> None:
    """Train the UNet and both text encoders in place.

    Every `evaluate_every` steps the averaged weights are written to `output` and judged on held-out prompts.
    """
    pipeline.unet.to(memory_format=torch.channels_last)
    modules = (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, steps, warmup=100))
    average = _Average(parameters, decay=0.998)
    generator = generator_for(seed, "denoiser")
    started, running = time.time(), 0.0
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(data.latents), (batch_size,), generator=generator)
        loss = _denoise_loss(pipeline, data, rows, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.update()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            _log("denoiser", step=step, loss=running, seconds=time.time() - started)
        if step % evaluate_every == 0 or step == steps:
            with average.applied():
                save(pipeline, output)
                _log("held out", step=step, **evaluate(pipeline, num=64))
    with torch.no_grad():
        torch._foreach_copy_(parameters, average.shadow)


def save(pipeline: StableDiffusionXLPipeline, output: Path) -> None:
    """Write the pipeline as a diffusers folder in float16, the precision SDXL is published in."""
    copied = StableDiffusionXLPipeline(
        **{name: deepcopy(part) for name, part in pipeline.components.items()},
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    copied.to(dtype=torch.float16)
    copied.save_pretrained(output, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):
        # transformers loads the precision written here, diffusers float32: without this line they differ
        path = output / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def sample(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int = 20,
    guidance_scale: float = 4.0,
    batch_size: int = 64,
) -> list[Image.Image]:
    """One picture per prompt; the noise of a prompt depends on the seed and its position only."""
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        generators = [generator_for(seed, "toy_sample", start + index) for index in range(len(part))]
        pictures += pipeline(
            part,
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
        ).images
    return pictures


def evaluate(
    pipeline: StableDiffusionXLPipeline, *, num: int, seed: int = 0, **options: Any
) -> dict[str, float]:
    """Means over held-out prompts: faithfulness, style, reward, and the share of perfect pictures."""
    prompts = held_out_prompts(num, seed=seed)
    scores = score_images(sample(pipeline, prompts, seed=seed, **options), prompts)
    return {
        "faithfulness": sum(score.faithfulness for score in scores) / num,
        "style": sum(score.style for score in scores) / num,
        "reward": sum(score.total for score in scores) / num,
        "perfect": sum(score.faithfulness == 1.0 for score in scores) / num,
    }


def train_base(
    output: Path, *, seed: int = 0, vae_steps: int = 1300, steps: int = 6000, num_scenes: int = 32_000
) -> StableDiffusionXLPipeline:
    """The shipped weights, rebuilt: the autoencoder first, then text encoders and UNet together."""
    vae = train_vae(seed=seed, steps=vae_steps)
    pipeline = new_pipeline(seed=seed, vae=vae)
    data = base_data(pipeline, seed=seed, num=num_scenes)
    train_denoiser(pipeline, data, seed=seed, steps=steps, output=output)
    save(pipeline, output)
    return pipeline


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: rebuild the base weights."""
    parser = argparse.ArgumentParser(prog="python -m mmalign.toy.image_model", description=train_base.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the new pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=1300)
    parser.add_argument("--steps", type=int, default=6000, help="steps of the text encoders and the UNet")
    parser.add_argument("--num-scenes", type=int, default=32_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    train_base(
        options.output,
        seed=options.seed,
        vae_steps=options.vae_steps,
        steps=options.steps,
        num_scenes=options.num_scenes,
    )


def _cosine(step: int, steps: int, *, warmup: int) -> float:
    """The learning rate's share of its peak: linear warm-up, then a half cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.49 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def _log(stage: str, **values: float) -> None:
    print(
        json.dumps({"stage": stage} | {key: round(float(value), 5) for key, value in values.items()}),
        flush=True,
    )


if __name__ == "__main__":
    main()

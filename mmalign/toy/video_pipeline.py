"""The model of the toy world of video: a small Wan in diffusers' folder layout, its clips, its scores.

A transformer over latents of a causal autoencoder (8 x in space, 4 x in time), a UMT5 encoder with a
tokenizer of the world's words and Wan's flow-matching schedule, all from configs of the real classes, under
two million parameters together.
"""

import copy
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.files import atomic_directory, write_json
from mmalign.seeding import generator_for
from mmalign.toy.video_reward import Score, score_clips
from mmalign.toy.video_scenes import FPS, FRAME_SIZE, NUM_FRAMES, WORDS, held_out_prompts

if TYPE_CHECKING:
    from mmalign.video.family import VideoModel

__all__ = [
    "ASSETS",
    "GUIDANCE_SCALE",
    "LATENT_CHANNELS",
    "LATENT_SHAPE",
    "MAX_TOKENS",
    "SHIFT",
    "Parts",
    "decoded",
    "denormalised",
    "evaluate",
    "load_base",
    "new_text_encoder",
    "new_transformer",
    "new_vae",
    "normalised",
    "redraw",
    "sample",
    "show_held_out",
    "text_states",
    "write_model",
    "write_tokenizer",
]

ASSETS = Path(__file__).parent / "assets" / "video"

MAX_TOKENS = 16
"""Text states per caption, zeros beyond its end; 512 in Wan. A caption has ten words at most."""

LATENT_CHANNELS = 16
LATENT_SHAPE = (LATENT_CHANNELS, 5, 4, 4)
SHIFT = 3.0
"""Of the noise levels, as in Wan 2.1 at 480p."""

NUM_STEPS = 12
GUIDANCE_SCALE = 1.0
"""Sampler steps and guidance of everything that is shown or judged here.

1 is none: guidance sharpens the same conditional that alignment moves. What the base gains by it, and what
alignment then adds, stands in docs/video-world.md.
"""

_TEXT_WIDTH = 64
_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": SHIFT,
    "final_sigmas_type": "zero",
}

Parts = dict[str, nn.Module]
"""`transformer`, `text_encoder` and `vae`."""


def new_vae() -> Any:
    """An untrained causal autoencoder: 17 frames of 32 x 32 to 5 latent frames of 16 x 4 x 4.

    It works on patches of 2 x 2 pixels, as Wan 2.2's does: a quarter of the work.
    """
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=16,
        dim_mult=[1, 2, 2],
        z_dim=LATENT_CHANNELS,
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
    )


def new_transformer() -> Any:
    """An untrained transformer: four layers, 4 x 4 tokens per latent frame."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=_TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=4,
        rope_max_seq_len=32,
    )


def new_text_encoder(vocabulary: int) -> Any:
    """An untrained UMT5 encoder of two layers."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=_TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def write_tokenizer(folder: Path) -> int:
    """A T5 tokenizer with one piece per word of the captions. Returns the size of its vocabulary.

    Other words fall apart into letters. Ids as in the published vocabulary: padding 0, end 1, unknown 2.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in sorted(WORDS) if word != ","]
    pieces += [("▁", -8.0), *((letter, -8.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": MAX_TOKENS,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(pieces)


def text_states(encoder: Any, tokenizer: Any, prompts: Sequence[str]) -> Float[Tensor, "prompt token width"]:
    """States of prompts as Wan feeds them: `MAX_TOKENS` each, zeros beyond the end of the text."""
    encoded = tokenizer(
        list(prompts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    mask: Tensor = encoded["attention_mask"]
    states: Tensor = encoder(encoded["input_ids"], attention_mask=mask).last_hidden_state
    return states * mask.unsqueeze(-1)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    means, stds = (torch.tensor(vae.config[name]) for name in ("latents_mean", "latents_std"))
    return means.view(-1, 1, 1, 1), stds.view(-1, 1, 1, 1)


def normalised(vae: Any, latents: Float[Tensor, "clip 16 5 4 4"]) -> Float[Tensor, "clip 16 5 4 4"]:
    """Latents as the transformer sees them: each channel less its mean, by its spread."""
    mean, std = _statistics(vae)
    return (latents - mean) / std


def denormalised(vae: Any, latents: Float[Tensor, "clip 16 5 4 4"]) -> Float[Tensor, "clip 16 5 4 4"]:
    """Latents as the decoder sees them."""
    mean, std = _statistics(vae)
    return latents * std + mean


def write_model(parts: Parts, folder: Path) -> Path:
    """Write the parts as a Wan pipeline's folder in float16. Returns the folder."""
    classes = {"transformer": "diffusers", "vae": "diffusers", "text_encoder": "transformers"}
    index: dict[str, Any] = {"_class_name": "WanPipeline", "boundary_ratio": None, "expand_timesteps": False}
    index |= {name: [library, type(parts[name]).__name__] for name, library in classes.items()}
    index |= {
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "scheduler": ["diffusers", _SCHEDULER["_class_name"]],
        "transformer_2": [None, None],
    }
    with atomic_directory(folder) as partial:
        write_tokenizer(partial / "tokenizer")
        for name in classes:
            part: Any = copy.deepcopy(parts[name]).half()
            part.save_pretrained(str(partial / name))
        write_json(partial / "scheduler" / "scheduler_config.json", _SCHEDULER)
        write_json(partial / "model_index.json", index)
    return folder


# --- clips --------------------------------------------------------------------------------------------------


def load_base(folder: Path = ASSETS) -> "VideoModel":
    """The shipped base model (or another folder of its kind) in float32, on the CPU."""
    from mmalign.train.sections import ModelConfig
    from mmalign.train.video_sections import VideoConfig
    from mmalign.video.families.wan import FAMILY

    return FAMILY.load(
        ModelConfig(source=str(folder), family="wan", text_length=MAX_TOKENS),
        VideoConfig(num_frames=NUM_FRAMES, height=FRAME_SIZE, width=FRAME_SIZE, fps=FPS),
        device="cpu",
        dtype=torch.float32,
    )


def sample(
    model: "VideoModel",
    prompts: Sequence[str],
    *,
    seed: int,
    copies: int = 1,
    num_steps: int = NUM_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    batch_size: int = 32,
) -> list[Float[Tensor, "frame 3 height width"]]:
    """Clips of captions in [0, 1], adapters as they stand; the noise of a clip depends on seed and number."""
    made = model.sample(
        prompts,
        seed=seed,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        copies=copies,
    )
    return [clip.frames.float() / 255.0 for clip in made]


@torch.no_grad()
def redraw(
    model: "VideoModel",
    clips: Sequence[Float[Tensor, "frame 3 height width"]],
    prompts: Sequence[str],
    levels: Sequence[float],
    *,
    seed: int,
    num_steps: int = NUM_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    batch_size: int = 32,
) -> list[Float[Tensor, "frame 3 height width"]]:
    """Clips noised to a level of their own, and denoised by Euler steps from exactly there to 0.

    Args:
        model: adapters as they stand.
        clips: in [0, 1].
        prompts: one per clip.
        levels: sigma in [0, 1], one per clip.
        seed: of the noises; that of clip i depends on (seed, i) only.
        num_steps: of a whole way from 1 to 0; a clip makes as many as lie below its level, and one more.
        guidance_scale: classifier-free guidance.
        batch_size: clips at once.
    """
    grid = torch.linspace(1.0, 0.0, num_steps + 1)
    grid = SHIFT * grid / (1.0 + (SHIFT - 1.0) * grid)
    made: list[Tensor] = []
    for first in range(0, len(clips), batch_size):
        rows = range(first, min(first + batch_size, len(clips)))
        clean = model.codec.scale(model.moments(torch.stack([2.0 * clips[row] - 1.0 for row in rows])).mean)
        noise = torch.stack(
            [torch.randn(clean.shape[1:], generator=generator_for(seed, "redraw", row)) for row in rows]
        )
        own = torch.tensor([levels[row] for row in rows])
        # A row waits at its own level until the grid comes below it.
        way = torch.minimum(grid.view(-1, 1), own).view(-1, len(rows), 1, 1, 1, 1)
        latents = (1.0 - way[0]) * clean + way[0] * noise
        texts = model.prompt_conditioning([*[""] * len(rows), *(prompts[row] for row in rows)]).rows(1)
        for now, after in itertools.pairwise(way):
            if bool((now == after).all()):
                continue
            both = torch.cat([latents, latents])
            times = 1000.0 * now.flatten().repeat(2)
            empty, given = model.denoise(both, times, texts, network=model.bare_network).chunk(2)
            latents = latents + (after - now) * (empty + guidance_scale * (given - empty))
        made += list(model.decode_clips(latents).cpu())
    return made


@torch.no_grad()
def decoded(
    model: "VideoModel", clips: Sequence[Float[Tensor, "frame 3 height width"]]
) -> list[Float[Tensor, "frame 3 height width"]]:
    """Clips in [0, 1] after the autoencoder's means."""
    pixels = torch.stack([2.0 * clip - 1.0 for clip in clips])
    return list(model.decode_clips(model.codec.scale(model.moments(pixels).mean)).cpu())


def show_held_out(
    model: "VideoModel", num: int, *, seed: int, guidance_scale: float = GUIDANCE_SCALE
) -> list[Score]:
    """Exact scores of what the model makes of held-out captions."""
    prompts = held_out_prompts(num, seed=seed)
    return score_clips(sample(model, prompts, seed=seed, guidance_scale=guidance_scale), prompts)


def evaluate(model: "VideoModel", *, num: int, seed: int = 0) -> dict[str, float]:
    """Means over held-out captions: the axes of the reward, segments that go the right way, motion."""
    scores = show_held_out(model, num, seed=seed)
    axes = ("total", "direction", "smoothness", "identity", "motion", "right_ways", "pixels")
    return {axis: sum(float(getattr(score, axis)) for score in scores) / num for axis in axes}

"""The model of the toy world of images: a small pipeline with SDXL's structure, its weights, sampling.

A UNet with text-time embedding, two CLIP text encoders with their tokenizers, a variational autoencoder and
SDXL's noise schedule, all from configs of the real classes, about four million parameters together.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mmalign.files import read_json, write_json
from mmalign.seeding import generator_for
from mmalign.toy.image_reward import score_images
from mmalign.toy.scenes import held_out_prompts
from mmalign.toy.tokenizers import MAX_TOKENS, new_tokenizers

ASSETS = Path(__file__).parent / "assets" / "images"
LATENT_SIZE = 16
FIRST_WIDTH, SECOND_WIDTH = 64, 96  # of the two text encoders (768 and 1280 in SDXL)


def load_base() -> StableDiffusionXLPipeline:
    """The shipped base model in float32, on the CPU."""
    pipeline: StableDiffusionXLPipeline = StableDiffusionXLPipeline.from_pretrained(
        ASSETS, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
    first, second = new_tokenizers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(_text_config(first, width=FIRST_WIDTH, activation="quick_gelu"))
        text_encoder_2 = CLIPTextModelWithProjection(
            _text_config(second, width=SECOND_WIDTH, activation="gelu")
        )
        unet = new_unet()
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


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
        _edit_json(output / name / "config.json", dtype="float32")
    for name in ("unet", "vae"):
        _edit_json(output / name / "config.json", _name_or_path="")  # else the folder it was loaded from


def _edit_json(path: Path, **values: str) -> None:
    write_json(path, read_json(path) | values)


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


def evaluate(pipeline: StableDiffusionXLPipeline, *, num: int, seed: int = 0) -> dict[str, float]:
    """Means over held-out prompts: faithfulness, style, reward, and the share of perfect pictures."""
    prompts = held_out_prompts(num, seed=seed)
    scores = score_images(sample(pipeline, prompts, seed=seed), prompts)
    return {
        "faithfulness": sum(score.faithfulness for score in scores) / num,
        "style": sum(score.style for score in scores) / num,
        "reward": sum(score.total for score in scores) / num,
        "perfect": sum(score.faithfulness == 1.0 for score in scores) / num,
    }

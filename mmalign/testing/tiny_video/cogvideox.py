"""A tiny CogVideoX: a pipeline folder of random weights, about a megabyte, in a second."""

from pathlib import Path
from typing import Any, Literal

import torch

from mmalign.files import atomic_directory
from mmalign.testing.tiny_audio.waveforms import tiny_t5
from mmalign.testing.tiny_transformers import write_t5_tokenizer

__all__ = ["COGVIDEOX_FRAMES", "COGVIDEOX_SIZE", "CogVideoXVersion", "write_tiny_cogvideox"]

COGVIDEOX_FRAMES, COGVIDEOX_SIZE = 9, (32, 48)
"""Clips that suit it: 3 latent frames of 4 by 6; two frames make a token in version 1.5."""

CogVideoXVersion = Literal["2b", "5b", "1.5"]

_CHANNELS, _TOKENS = 4, 13


def _vae(version: CogVideoXVersion, *, from_image: bool) -> Any:
    """A causal VAE of 4 frames and 8 by 8 pixels per latent."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=_CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        scaling_factor=1.15258426 if version == "2b" else 0.7,
        invert_scale_latents=from_image and version == "1.5",
        sample_height=COGVIDEOX_SIZE[0],
        sample_width=COGVIDEOX_SIZE[1],
    )


def _transformer(version: CogVideoXVersion, text_width: int, *, from_image: bool) -> Any:
    """Fixed positions in 2B, rotary ones in the others; learned ones, too, in 5B that starts from images."""
    from diffusers import CogVideoXTransformer3DModel

    newer = version == "1.5"
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=(2 if from_image else 1) * _CHANNELS,
        out_channels=_CHANNELS,
        time_embed_dim=8,
        ofs_embed_dim=8 if from_image and newer else None,
        text_embed_dim=text_width,
        num_layers=2,
        sample_width=COGVIDEOX_SIZE[1] // 8,
        sample_height=COGVIDEOX_SIZE[0] // 8,
        sample_frames=COGVIDEOX_FRAMES,
        patch_size=2,
        patch_size_t=2 if newer else None,
        patch_bias=not newer,
        temporal_compression_ratio=4,
        max_text_seq_length=_TOKENS - 2 if newer else _TOKENS,
        use_rotary_positional_embeddings=version != "2b",
        use_learned_positional_embeddings=from_image and version == "5b",
    )


def _scheduler(version: CogVideoXVersion, *, solver: bool) -> Any:
    """v-prediction down to no signal at all, on a schedule that is moved towards noise in 2B."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

    scheduler_class: Any = CogVideoXDPMScheduler if solver else CogVideoXDDIMScheduler
    return scheduler_class(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        snr_shift_scale=3.0 if version == "2b" else 1.0,
        timestep_spacing="trailing",
    )


def write_tiny_cogvideox(
    folder: str | Path,
    *,
    version: CogVideoXVersion = "2b",
    from_image: bool = False,
    solver: bool = False,
    seed: int = 0,
) -> Path:
    """A pipeline folder of a tiny CogVideoX. Returns the folder.

    Args:
        folder: where to write; replaced when it exists.
        version: which of the released ones it is built like.
        from_image: it continues an image (5B and 1.5).
        solver: with the sampler of second order that draws noise on its way.
        seed: decides the random weights.
    """
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline
    from transformers import T5Tokenizer

    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        vocabulary = write_t5_tokenizer(partial / "tokenizer")
        text = tiny_t5(vocabulary)
        pipeline_class: Any = CogVideoXImageToVideoPipeline if from_image else CogVideoXPipeline
        transformer = _transformer(version, text.config.d_model, from_image=from_image)
        with torch.no_grad():
            if from_image and version == "5b":
                transformer.patch_embed.pos_embedding.normal_(std=0.1)
        pipeline = pipeline_class(
            tokenizer=T5Tokenizer.from_pretrained(str(partial / "tokenizer")),
            text_encoder=text,
            vae=_vae(version, from_image=from_image),
            transformer=transformer,
            scheduler=_scheduler(version, solver=solver),
        )
        pipeline.save_pretrained(str(partial))
    return Path(folder)

"""A tiny LTX-Video: a pipeline folder of random weights, about a megabyte, in a second."""

from pathlib import Path
from typing import Any, Literal

import torch

from mmalign.files import atomic_directory
from mmalign.testing.tiny_audio.waveforms import tiny_t5
from mmalign.testing.tiny_transformers import write_t5_tokenizer

__all__ = ["LTX_FPS", "LTX_FRAMES", "LTX_SIZE", "LtxVersion", "write_tiny_ltx"]

LTX_FRAMES, LTX_SIZE, LTX_FPS = 17, (64, 96), 25.0
"""Clips that suit it: 3 latent frames of 2 by 3."""

LtxVersion = Literal["0.9.0", "0.9.1", "0.9.5"]

_CHANNELS = 8


def _vae(version: LtxVersion) -> Any:
    """A VAE of 8 frames and 32 by 32 pixels per latent; its statistics are buffers, as in the real one."""
    from diffusers import AutoencoderKLLTXVideo

    newest = version == "0.9.5"
    block = "LTXVideo095DownBlock3D" if newest else "LTXVideoDownBlock3D"
    kinds = ("spatial", "temporal", "spatiotemporal", "spatiotemporal") if newest else ("conv",) * 4
    vae = AutoencoderKLLTXVideo(
        latent_channels=_CHANNELS,
        block_out_channels=(8, 8, 8, 8, 8) if newest else (8, 8, 8, 8),
        down_block_types=(block,) * 4,
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, True) if newest else (True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False, False, False, False),
        downsample_type=kinds,
        upsample_residual=(newest,) * 3,
        upsample_factor=(1, 1, 1),
        timestep_conditioning=version != "0.9.0",
        patch_size=4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        decoder_causal=False,
    )
    vae.latents_mean.normal_(std=0.1)
    vae.latents_std.uniform_(0.3, 0.9)
    return vae


def _scheduler(version: LtxVersion) -> Any:
    """Levels that move with the number of tokens; the newest pipeline has a grid of its own."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    if version == "0.9.5":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def write_tiny_ltx(folder: str | Path, *, version: LtxVersion = "0.9.0", seed: int = 0) -> Path:
    """A pipeline folder of a tiny LTX-Video. Returns the folder.

    Args:
        folder: where to write; replaced when it exists.
        version: the VAE of "0.9.1" is told how much noise is left when it decodes; "0.9.5" has the pipeline
            that takes conditions.
        seed: decides the random weights.
    """
    from diffusers import LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel
    from transformers import T5Tokenizer

    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        vocabulary = write_t5_tokenizer(partial / "tokenizer")
        text = tiny_t5(vocabulary)
        transformer = LTXVideoTransformer3DModel(
            in_channels=_CHANNELS,
            out_channels=_CHANNELS,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=text.config.d_model,
        )
        pipeline_class: Any = LTXConditionPipeline if version == "0.9.5" else LTXPipeline
        pipeline = pipeline_class(
            scheduler=_scheduler(version),
            vae=_vae(version),
            text_encoder=text,
            tokenizer=T5Tokenizer.from_pretrained(str(partial / "tokenizer")),
            transformer=transformer,
        )
        pipeline.save_pretrained(str(partial))
    return Path(folder)

"""A tiny AnimateDiff: a Stable Diffusion 1.x folder and motion modules, as two folders or as one pipeline."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from mmalign.files import atomic_directory
from mmalign.testing.tiny import write_tiny_sd15

__all__ = ["LONGEST", "write_tiny_animatediff", "write_tiny_motion_adapter"]

LONGEST = 8
"""Frames that the tiny motion modules have positions for."""


def _motion_adapter() -> Any:
    from diffusers import MotionAdapter

    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        motion_max_seq_length=LONGEST,
        use_motion_mid_block=True,
    )
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            # Motion modules begin as the identity; these are to move something.
            if "proj_out" in name:
                value.normal_(std=0.2)
    return adapter


def write_tiny_motion_adapter(folder: str | Path, *, seed: int = 0) -> Path:
    """A `MotionAdapter` folder for the tiny Stable Diffusion 1.x. Returns it.

    Args:
        folder: where to write; replaced when it exists.
        seed: decides the random weights.
    """
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        _motion_adapter().save_pretrained(str(partial))
    return Path(folder)


def write_tiny_animatediff(folder: str | Path, *, seed: int = 0) -> Path:
    """An `AnimateDiffPipeline` folder, network and motion modules in one. Returns it.

    Args:
        folder: where to write; replaced when it exists.
        seed: decides the random weights.
    """
    from diffusers import AnimateDiffPipeline, DDIMScheduler, StableDiffusionPipeline

    with (
        torch.random.fork_rng(devices=[]),
        atomic_directory(folder) as partial,
        tempfile.TemporaryDirectory() as scratch,
    ):
        pictures = StableDiffusionPipeline.from_pretrained(
            str(write_tiny_sd15(Path(scratch) / "pictures", seed=seed))
        )
        torch.manual_seed(seed)
        pipeline = AnimateDiffPipeline(
            vae=pictures.vae,
            text_encoder=pictures.text_encoder,
            tokenizer=pictures.tokenizer,
            unet=pictures.unet,
            motion_adapter=_motion_adapter(),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="linear",
                steps_offset=1,
                clip_sample=False,
                timestep_spacing="linspace",
            ),
        )
        pipeline.save_pretrained(str(partial))
    return Path(folder)

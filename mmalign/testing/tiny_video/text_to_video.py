"""A tiny text-to-video-ms (ModelScope, zeroscope): a UNet with layers over time, a pipeline folder."""

from pathlib import Path
from typing import Any

import torch

from mmalign.files import atomic_directory, write_json
from mmalign.testing.tiny import RESOLUTION, clip_encoder, tiny_autoencoder, write_clip_tokenizer

__all__ = ["tiny_unet_3d", "write_tiny_text_to_video"]


def tiny_unet_3d(**settings: Any) -> Any:
    """A `UNet3DConditionModel` of random weights, none of whose layers is the identity.

    Args:
        **settings: further ones of its config.
    """
    from diffusers import UNet3DConditionModel

    tiny = {
        "sample_size": RESOLUTION // 2,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    unet = UNet3DConditionModel(**{**tiny, **settings})
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if "conv4" in name:  # the last of a temporal convolution begins as zero
                value.normal_(std=0.1)
    return unet


def write_tiny_text_to_video(folder: str | Path, *, seed: int = 0) -> Path:
    """A `TextToVideoSDPipeline` folder, as zeroscope's: DDIM, noise predictions. Returns it.

    Args:
        folder: where to write; replaced when it exists.
        seed: decides the random weights.
    """
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        vocabulary = write_clip_tokenizer(partial / "tokenizer", pad_token="!")
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        parts: dict[str, tuple[str, Any]] = {
            "text_encoder": ("transformers", clip_encoder(vocabulary, projected=False)),
            "tokenizer": ("transformers", CLIPTokenizer.from_pretrained(str(partial / "tokenizer"))),
            "unet": ("diffusers", tiny_unet_3d()),
            "vae": ("diffusers", tiny_autoencoder(0.18215)),
            "scheduler": ("diffusers", scheduler),
        }
        for name, (_, part) in parts.items():
            part.save_pretrained(str(partial / name))
        index = {name: [library, type(part).__name__] for name, (library, part) in parts.items()}
        write_json(partial / "model_index.json", {"_class_name": "TextToVideoSDPipeline", **index})
    return Path(folder)

"""A tiny VideoCrafter2: an official checkpoint of random weights, with its settings and a tokenizer."""

from pathlib import Path
from typing import Any

import torch
import yaml

from mmalign.diffusion.vae_names import TRAINING_PREFIX, vae_to_official
from mmalign.files import atomic_directory
from mmalign.testing.tiny import write_clip_tokenizer
from mmalign.testing.tiny_video.text_to_video import tiny_unet_3d
from mmalign.video.openclip_names import text_to_openclip
from mmalign.video.videocrafter_keys import NETWORK_PREFIX, network_settings, to_official
from mmalign.video.videocrafter_source import SETTINGS, TEXT_PREFIX

__all__ = ["TINY_SETTINGS", "write_tiny_videocrafter"]

_TEXT_WIDTH, _BLOCKS = 64, 3

TINY_SETTINGS: dict[str, Any] = {
    **SETTINGS,
    "unet_config": {
        "params": {
            **SETTINGS["unet_config"]["params"],
            "model_channels": 32,
            "attention_resolutions": [1],
            "num_res_blocks": 1,
            "channel_mult": [1, 2],
            "num_head_channels": 8,
            "context_dim": _TEXT_WIDTH,
        }
    },
    "first_stage_config": {
        "params": {
            "embed_dim": 4,
            "ddconfig": {
                **SETTINGS["first_stage_config"]["params"]["ddconfig"],
                "resolution": 32,
                "ch": 32,
                "ch_mult": [1, 2],
                "num_res_blocks": 1,
            },
        }
    },
}
"""`model.params` of the tiny checkpoint."""


def _text_encoder(vocabulary: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=_BLOCKS,
        num_attention_heads=1,
        hidden_act="gelu",
    )
    return CLIPTextModel(config)


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    )


def _frame_rate(width: int) -> dict[str, torch.Tensor]:
    """The embedding of the frame rate."""
    return {
        "fps_embedding.0.weight": 0.1 * torch.randn(4 * width, width),
        "fps_embedding.0.bias": 0.1 * torch.randn(4 * width),
        "fps_embedding.2.weight": 0.1 * torch.randn(4 * width, 4 * width),
        "fps_embedding.2.bias": 0.1 * torch.randn(4 * width),
    }


def write_tiny_videocrafter(folder: str | Path, *, seed: int = 0) -> Path:
    """A folder with `model.ckpt`, `config.yaml` and a tokenizer. Returns it.

    Args:
        folder: where to write; replaced when it exists.
        seed: decides the random weights.
    """
    params = TINY_SETTINGS["unet_config"]["params"]
    settings = network_settings(params, where="tiny")
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        vocabulary = write_clip_tokenizer(partial / "tokenizer", pad_token="!")
        text = text_to_openclip(_text_encoder(vocabulary).state_dict(), _BLOCKS)
        network = to_official(tiny_unet_3d(**settings, norm_num_groups=32).state_dict(), settings)
        network |= _frame_rate(params["model_channels"])
        whole = {
            **{f"{NETWORK_PREFIX}{name}": value for name, value in network.items()},
            **{
                f"{TRAINING_PREFIX}{name}": value
                for name, value in vae_to_official(_vae().state_dict(), 2).items()
            },
            **{f"{TEXT_PREFIX}{name}": value for name, value in text.items()},
            f"{TEXT_PREFIX}text_projection": torch.zeros(_TEXT_WIDTH, _TEXT_WIDTH),
            f"{TEXT_PREFIX}logit_scale": torch.zeros(()),
        }
        torch.save({"state_dict": whole}, partial / "model.ckpt")
        content = yaml.safe_dump({"model": {"params": TINY_SETTINGS}})
        (partial / "config.yaml").write_text(content, encoding="utf-8")
    return Path(folder)

"""A tiny Tango: network, text encoder, VAE and vocoder of random weights, a few megabytes, in a second.

The folder is an official repository: settings in JSON, weights in PyTorch files under AudioLDM's names. What
hubs hold for the real one (tokenizer, the text encoder's settings, the network's) lies inside it.
"""

from pathlib import Path
from typing import Any, Literal

import torch

from mmalign.audio.key_maps import vae_to_official, vocoder_to_official
from mmalign.audio.mel import MelFrontEnd
from mmalign.audio.official_configs import HIFIGAN, STFT_FILE, unet_config, vae_config
from mmalign.audio.official_configs import VAE_FILE as VAE_SETTINGS
from mmalign.audio.official_layout import LAYOUTS, MAIN_FILE, STFT_WEIGHTS, VAE_FILE
from mmalign.audio.saving import fourier_bases
from mmalign.files import atomic_directory, write_json
from mmalign.testing.tiny_transformers import write_t5_tokenizer

__all__ = ["DURATION", "WIDTH", "text_config", "tiny_unet_config", "tiny_vae_file", "write_tiny_tango"]

DURATION = 0.64
"""Seconds for tests: 64 frames, latents of 16 x 16. The folder itself knows no duration."""

WIDTH = 32
"""Of the text states."""


def tiny_unet_config(width: int = WIDTH) -> dict[str, Any]:
    """Settings of a UNet of two levels that is like the official one otherwise."""
    return {
        **unet_config(width),
        "attention_head_dim": [2, 4],
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }


def tiny_vae_file() -> dict[str, Any]:
    """An official `vae_config.json` with 32 channels in the place of 128."""
    return {**VAE_SETTINGS, "ddconfig": {**VAE_SETTINGS["ddconfig"], "ch": 32}}


def text_config(vocabulary: int, *, width: int = WIDTH) -> Any:
    """Settings of a T5 encoder of two layers, FLAN-T5's kind."""
    from transformers import T5Config

    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
    )


@torch.no_grad()
def _enliven(module: torch.nn.Module) -> None:
    """Weights that let something be heard: a new vocoder whispers at 1e-10."""
    for value in module.parameters():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)


def write_tiny_tango(
    folder: str | Path,
    *,
    seed: int = 0,
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction",
    stft_weights: bool = False,
) -> Path:
    """An official repository of a tiny Tango. Returns the folder.

    Args:
        folder: where to write; replaced when it exists.
        seed: decides the random weights.
        prediction: what the network predicts; anything but velocity is said by a scheduler of its own.
        stft_weights: also write the file that only the official code reads.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig, T5EncoderModel

    from mmalign.audio.official_configs import SCHEDULER

    layout, front = LAYOUTS[0], MelFrontEnd()
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        vocabulary = write_t5_tokenizer(partial / "text_encoder")
        config = text_config(vocabulary)
        config.save_pretrained(str(partial / "text_encoder"))
        unet = UNet2DConditionModel.from_config(tiny_unet_config())
        text = T5EncoderModel(config)
        vae_file = tiny_vae_file()
        vae = AutoencoderKL.from_config(vae_config(vae_file))
        vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**{**HIFIGAN, "upsample_initial_channel": 32}))
        _enliven(vocoder)
        main = {f"unet.{name}": value for name, value in unet.state_dict().items()}
        main |= {f"text_encoder.{name}": value for name, value in text.state_dict().items()}
        sound = vae_to_official(vae.state_dict(), len(vae_file["ddconfig"]["ch_mult"]))
        sound |= vocoder_to_official(vocoder.state_dict())
        files = {layout.main: main, layout.vae: sound}
        if stft_weights:
            files[STFT_WEIGHTS] = fourier_bases(front)
        for name, state in files.items():
            torch.save({key: value.detach().clone() for key, value in state.items()}, partial / name)
        settings = {
            "text_encoder_name": "text_encoder",
            "scheduler_name": "stabilityai/stable-diffusion-2-1",
            "unet_model_name": None,
            "unet_model_config_path": "configs/diffusion_model_config.json",
            "snr_gamma": 5.0,
            "freeze_text_encoder": True,
            "uncondition": False,
        }
        write_json(partial / MAIN_FILE, settings)
        write_json(partial / VAE_FILE, vae_file)
        write_json(partial / STFT_FILE, front.config())
        write_json(partial / "configs" / "diffusion_model_config.json", tiny_unet_config())
        if prediction != "v_prediction":
            scheduler = DDPMScheduler(**{**SCHEDULER, "prediction_type": prediction})
            scheduler.save_pretrained(str(partial / "scheduler"))
    return Path(folder)

"""Tiny parts that models of waveforms share: a VAE of sound at 8 kHz, a T5 whose words are letters."""

import json
from pathlib import Path
from typing import Any

import torch

from mmalign.testing.tiny_transformers import write_t5_tokenizer

__all__ = ["HOP", "RATE", "WIDTH", "enliven", "tiny_oobleck", "tiny_t5", "write_short_tokenizer"]

RATE, HOP, WIDTH = 8_000, 128, 32
"""Hz; samples per latent frame; width of the text states."""


def tiny_oobleck(*, latents: int = 4) -> Any:
    """A VAE of stereo waveforms with `latents` channels and 128 samples per frame."""
    from diffusers import AutoencoderOobleck

    vae = AutoencoderOobleck(
        encoder_hidden_size=2 * latents,
        downsampling_ratios=[4, 4, 8],
        channel_multiples=[1, 1, 2],
        decoder_channels=8,
        decoder_input_channels=latents,
        audio_channels=2,
        sampling_rate=RATE,
    )
    enliven(vae)
    return vae


@torch.no_grad()
def enliven(module: torch.nn.Module) -> None:
    """Weights that let something be heard: new decoders whisper."""
    for name, value in module.named_parameters():
        if value.ndim > 1 and not name.endswith("weight_g") and value[0].numel() > 1:
            value.normal_(std=value[0].numel() ** -0.5)


def tiny_t5(vocabulary: int, *, width: int = WIDTH) -> Any:
    """A T5 encoder of two layers."""
    from transformers import T5EncoderModel

    from mmalign.testing.tiny_audio.tango import text_config

    return T5EncoderModel(text_config(vocabulary, width=width))


def write_short_tokenizer(folder: Path, *, length: int) -> int:
    """A T5 tokenizer of letters that fills up to `length` tokens. Returns the size of its vocabulary."""
    vocabulary = write_t5_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "model_max_length": length}), encoding="utf-8")
    return vocabulary

"""A tiny TangoFlux: an official repository of random weights, a few megabytes, in a second."""

from pathlib import Path

import torch

from mmalign.audio.tangoflux_checkpoint import CONFIG_FILE, VAE_SETTINGS, VAE_WEIGHTS, WEIGHTS
from mmalign.files import atomic_directory, save_tensors, write_json
from mmalign.testing.tiny_audio.waveforms import HOP, RATE, WIDTH, tiny_oobleck, tiny_t5
from mmalign.testing.tiny_transformers import write_t5_tokenizer

__all__ = ["WINDOW", "write_tiny_tangoflux"]

WINDOW = 0.25
"""Seconds: 15 latent frames of 128 samples at 8 kHz, and 80 samples that the VAE does not reach."""


def write_tiny_tangoflux(folder: str | Path, *, seed: int = 0) -> Path:
    """An official repository of a tiny TangoFlux. Returns the folder.

    Args:
        folder: where to write; replaced when it exists.
        seed: decides the random weights.
    """
    from mmalign.audio.tangoflux_network import TangoFluxTransformer

    config = {
        "num_layers": 1,
        "num_single_layers": 1,
        "in_channels": 4,
        "attention_head_dim": 128,
        "joint_attention_dim": WIDTH,
        "num_attention_heads": 1,
        "audio_seq_len": int(WINDOW * RATE) // HOP,
        "max_duration": WINDOW,
        "uncondition": False,
        "text_encoder_name": "google/flan-t5-large",
    }
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        vocabulary = write_t5_tokenizer(partial / "text_encoder")
        text = tiny_t5(vocabulary)
        text.config.save_pretrained(str(partial / "text_encoder"))
        sizes = {name: value for name, value in config.items() if name.endswith(("_dim", "layers", "heads"))}
        network = TangoFluxTransformer(**sizes, in_channels=4, text_width=WIDTH, max_duration=WINDOW)
        weights = {}
        for name, value in network.state_dict().items():
            own = name.startswith(("fc.", "duration_embedder."))
            official = name.replace("duration_embedder.", "duration_emebdder.")
            weights[official if own else f"transformer.{name}"] = value
        weights |= {
            f"text_encoder.{name}": value
            for name, value in text.state_dict().items()
            if name != "encoder.embed_tokens.weight"
        }
        vae = tiny_oobleck()
        save_tensors(partial / WEIGHTS, weights)
        save_tensors(partial / VAE_WEIGHTS, vae.state_dict())
        write_json(partial / CONFIG_FILE, config)
        settings = {name: value for name, value in vae.config.items() if not name.startswith("_")}
        write_json(partial / VAE_SETTINGS, settings)
    return Path(folder)

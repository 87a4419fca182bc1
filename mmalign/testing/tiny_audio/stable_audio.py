"""A tiny Stable Audio Open: a pipeline folder of random weights, a few megabytes, in a second."""

from pathlib import Path

import torch

from mmalign.audio.cosine_sampler import COSINE_SCHEDULER
from mmalign.files import atomic_directory, write_json
from mmalign.testing.tiny_audio.waveforms import WIDTH, tiny_oobleck, tiny_t5, write_short_tokenizer

__all__ = ["FRAMES", "write_tiny_stable_audio"]

FRAMES = 13
"""Latent frames of the window: 0.208 s at 8 kHz."""


def write_tiny_stable_audio(folder: str | Path, *, projected: bool = False, seed: int = 0) -> Path:
    """A pipeline folder of a tiny Stable Audio Open. Returns the folder.

    Args:
        folder: where to write; replaced when it exists.
        projected: text states are projected to another width; the released model takes them as they are.
        seed: decides the random weights.
    """
    from diffusers import StableAudioDiTModel, StableAudioProjectionModel
    from transformers import T5Tokenizer

    width = WIDTH - 8 if projected else WIDTH
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        vocabulary = write_short_tokenizer(partial / "tokenizer", length=11)
        parts = {
            "text_encoder": ("transformers", tiny_t5(vocabulary)),
            "tokenizer": ("transformers", T5Tokenizer.from_pretrained(str(partial / "tokenizer"))),
            "projection_model": (
                "stable_audio",
                StableAudioProjectionModel(
                    text_encoder_dim=WIDTH, conditioning_dim=width, min_value=0, max_value=1
                ),
            ),
            "transformer": (
                "diffusers",
                StableAudioDiTModel(
                    sample_size=FRAMES,
                    in_channels=4,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=8,
                    num_attention_heads=4,
                    num_key_value_attention_heads=2,
                    cross_attention_dim=16,
                    cross_attention_input_dim=width,
                    global_states_input_dim=2 * width,
                    time_proj_dim=16,
                ),
            ),
            "vae": ("diffusers", tiny_oobleck()),
        }
        for name, (_, part) in parts.items():
            part.save_pretrained(str(partial / name))
        scheduler = {
            "_class_name": COSINE_SCHEDULER,
            "sigma_min": 0.3,
            "sigma_max": 500,
            "prediction_type": "v_prediction",
        }
        write_json(partial / "scheduler" / "scheduler_config.json", scheduler)
        index = {name: [library, type(part).__name__] for name, (library, part) in parts.items()}
        index["scheduler"] = ["diffusers", COSINE_SCHEDULER]
        write_json(partial / "model_index.json", {"_class_name": "StableAudioPipeline", **index})
    return Path(folder)

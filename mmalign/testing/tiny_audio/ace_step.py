"""A tiny ACE-Step 1.5: a pipeline folder of random weights, a few megabytes, in a second."""

from pathlib import Path
from typing import Any

import torch

from mmalign.files import atomic_directory, write_json
from mmalign.testing.tiny_audio.waveforms import tiny_oobleck
from mmalign.testing.tiny_transformers import write_t5_tokenizer

__all__ = ["write_tiny_ace_step"]

_WIDTH, _HEADS = 32, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


def write_tiny_ace_step(folder: str | Path, *, seed: int = 0) -> Path:
    """A pipeline folder of a tiny ACE-Step. Returns the folder.

    Args:
        folder: where to write; replaced when it exists.
        seed: decides the random weights.
    """
    from diffusers import (
        AceStepConditionEncoder,
        AceStepTransformer1DModel,
        FlowMatchEulerDiscreteScheduler,
    )
    from transformers import Qwen3Config, Qwen3Model, T5Tokenizer

    sizes = {"hidden_size": _WIDTH, "intermediate_size": 48, **_HEADS}
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        letters = write_t5_tokenizer(partial / "tokenizer")
        condition = AceStepConditionEncoder(
            **sizes,
            text_hidden_dim=24,
            timbre_hidden_dim=4,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
        )
        condition.silence_latent = 0.1 * torch.randn(1, 15_000, 4)
        words = Qwen3Config(
            vocab_size=letters,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
        )
        transformer = AceStepTransformer1DModel(
            **sizes, num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4
        )
        parts: dict[str, tuple[str, Any]] = {
            "vae": ("diffusers", tiny_oobleck()),
            "text_encoder": ("transformers", Qwen3Model(words)),
            "tokenizer": ("transformers", T5Tokenizer.from_pretrained(str(partial / "tokenizer"))),
            "transformer": ("diffusers", transformer),
            "condition_encoder": ("ace_step", condition),
            "scheduler": ("diffusers", FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)),
        }
        for name, (_, part) in parts.items():
            part.save_pretrained(str(partial / name))
        index = {name: [library, type(part).__name__] for name, (library, part) in parts.items()}
        write_json(partial / "model_index.json", {"_class_name": "AceStepPipeline", **index})
    return Path(folder)

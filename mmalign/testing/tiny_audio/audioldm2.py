"""A tiny AudioLDM 2: a pipeline folder of random weights, a few megabytes, in a second."""

import json
from pathlib import Path
from typing import Any

import torch

from mmalign.audio.official_configs import HIFIGAN, SCHEDULER, vae_config
from mmalign.files import atomic_directory, write_json
from mmalign.testing.tiny_audio.tango import tiny_vae_file
from mmalign.testing.tiny_audio.waveforms import WIDTH, enliven, tiny_t5
from mmalign.testing.tiny_transformers import write_t5_tokenizer

__all__ = ["write_tiny_audioldm2"]

_CLAP_WIDTH, _LANGUAGE_WIDTH = 24, 16


def _write_roberta_tokenizer(folder: Path) -> int:
    """A RoBERTa tokenizer whose words are single bytes. Returns the size of its vocabulary."""
    from tokenizers import pre_tokenizers

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters, "<mask>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 60}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(vocabulary)


def _clap(vocabulary: int) -> Any:
    from transformers import ClapConfig, ClapModel

    text = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 66,
        "projection_dim": _CLAP_WIDTH,
    }
    sound = {
        "spec_size": 64,
        "patch_size": 8,
        "patch_stride": [8, 8],
        "num_mel_bins": 16,
        "window_size": 2,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "projection_dim": _CLAP_WIDTH,
    }
    return ClapModel(ClapConfig(text_config=text, audio_config=sound, projection_dim=_CLAP_WIDTH))


def _language_model(*, head: bool) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    config = GPT2Config(
        vocab_size=7, n_positions=640, n_embd=_LANGUAGE_WIDTH, n_layer=2, n_head=2, max_new_tokens=8
    )
    return (GPT2LMHeadModel if head else GPT2Model)(config)


def _unet() -> Any:
    from diffusers import AudioLDM2UNet2DConditionModel

    return AudioLDM2UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=8,
        # Self-attention, the language model's states, T5's.
        cross_attention_dim=([None, _LANGUAGE_WIDTH, WIDTH],) * 2,
    )


def write_tiny_audioldm2(folder: str | Path, *, head: bool = True, seed: int = 0) -> Path:
    """A pipeline folder of a tiny AudioLDM 2; its window is 0.64 s. Returns the folder.

    Args:
        folder: where to write; replaced when it exists.
        head: the language model has its head, as newer folders; older ones name the plain model.
        seed: decides the random weights.
    """
    from diffusers import AudioLDM2ProjectionModel, AutoencoderKL, DDIMScheduler
    from transformers import (
        ClapFeatureExtractor,
        RobertaTokenizer,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        T5Tokenizer,
    )

    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        words = _write_roberta_tokenizer(partial / "tokenizer")
        letters = write_t5_tokenizer(partial / "tokenizer_2")
        vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**{**HIFIGAN, "upsample_initial_channel": 32}))
        enliven(vocoder)
        betas = {"beta_start": 0.0015, "beta_end": 0.0195, "prediction_type": "epsilon"}
        scheduler = {key: SCHEDULER[key] for key in ("num_train_timesteps", "beta_schedule", "steps_offset")}
        parts: dict[str, tuple[str, Any]] = {
            "text_encoder": ("transformers", _clap(words)),
            "text_encoder_2": ("transformers", tiny_t5(letters)),
            "tokenizer": ("transformers", RobertaTokenizer.from_pretrained(str(partial / "tokenizer"))),
            "tokenizer_2": ("transformers", T5Tokenizer.from_pretrained(str(partial / "tokenizer_2"))),
            "feature_extractor": ("transformers", ClapFeatureExtractor()),
            "projection_model": (
                "audioldm2",
                AudioLDM2ProjectionModel(
                    text_encoder_dim=_CLAP_WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=_LANGUAGE_WIDTH
                ),
            ),
            "language_model": ("transformers", _language_model(head=head)),
            "unet": ("audioldm2", _unet()),
            "vae": ("diffusers", AutoencoderKL.from_config(vae_config(tiny_vae_file()))),
            "vocoder": ("transformers", vocoder),
            "scheduler": ("diffusers", DDIMScheduler(**scheduler, **betas, clip_sample=False)),
        }
        for name, (_, part) in parts.items():
            part.save_pretrained(str(partial / name))
        index = {name: [library, type(part).__name__] for name, (library, part) in parts.items()}
        write_json(partial / "model_index.json", {"_class_name": "AudioLDM2Pipeline", **index})
    return Path(folder)

"""Tiny CLAP checkpoints: a Hugging Face folder, unfused or fused, at a low sampling rate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmalign.data.audio_media import encode_audio
from mmalign.rewards.sample import Sample

__all__ = [
    "BAD_SAMPLES",
    "CHECKPOINTS",
    "OTHER_OPTIONS",
    "SAMPLES",
    "sounds",
    "write_clap",
    "write_clap_folder",
]

_RATE, _HOP, _SECONDS, _MELS = 4800, 96, 5, 16


def _write_tokenizer(folder: Path) -> int:
    """A byte-level BPE without merges that frames prompts as RoBERTa's does. Returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>"}
    settings = {f"{name}_token": token for name, token in names.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return len(vocabulary)


def write_clap_folder(folder: Path, seed: int = 0, *, fused: bool = False) -> Path:
    """A `ClapModel` folder as the hub has them: configuration, weights, tokenizer, preprocessing. Returns it.

    Args:
        folder: where to write.
        seed: decides the random weights.
        fused: with the views of long sounds.
    """
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    config = ClapConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 40,
            "max_position_embeddings": 100,
        },
        audio_config={
            "num_mel_bins": _MELS,
            "spec_size": 4 * _MELS,
            "window_size": 4,
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [1, 2],
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "enable_fusion": fused,
            "fusion_type": "aff_2d" if fused else None,
            "patch_embed_input_channels": 1,
            "aff_block_r": 2,
        },
        projection_dim=20,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClapModel(config).eval()
        for parameter in model.parameters():  # the library's own start is too small to tell sounds apart
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.3)
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.fill_(-40.0)
        norm.running_var.fill_(400.0)
    model.save_pretrained(str(folder))
    ClapFeatureExtractor(
        feature_size=_MELS,
        sampling_rate=_RATE,
        hop_length=_HOP,
        max_length_s=_SECONDS,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=2400,
        truncation="fusion" if fused else "rand_trunc",
    ).save_pretrained(str(folder))
    return folder


def write_clap(folder: Path, seed: int = 0) -> Path:
    """The unfused and the fused checkpoint, each in a folder of its repository's name."""
    write_clap_folder(folder / "clap-htsat-unfused", seed)
    write_clap_folder(folder / "clap-htsat-fused", seed + 100, fused=True)
    return folder


def sounds() -> list[Sample]:
    """Tones, noise and silence of several lengths, rates and channels; one is longer than a window."""
    generator = torch.Generator().manual_seed(7)
    shapes = ((1, 3.1, 4800), (2, 7.3, 4000), (1, 0.23, 8000), (1, 12.9, 4800))
    prompts = ("a dog barks", "", "zwei Hunde bellen 🐈", "many words " * 60)
    found = []
    for number, ((channels, seconds, rate), prompt) in enumerate(zip(shapes, prompts, strict=True)):
        time = torch.arange(int(seconds * rate)) / rate
        tone = 0.5 * torch.sin(2 * torch.pi * (200.0 + 130.0 * number) * time * (1.0 + 0.2 * time))
        noise = 0.05 * torch.randn(channels, len(time), generator=generator)
        data = encode_audio(tone + noise, rate, container="wav")
        found.append(Sample(prompt, audio=data))
    silence = encode_audio(torch.zeros(1, 4800), 4800, container="wav")
    return [*found, Sample("silence", audio=silence)]


CHECKPOINTS: dict[str, Callable[[Path, int], Path]] = {"clap": write_clap}
SAMPLES: dict[str, Callable[[], list[Sample]]] = {"clap": sounds}
BAD_SAMPLES: dict[str, Sample] = {"clap": Sample("broken", audio=b"these bytes are no sound")}
OTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "clap": {"checkpoint": "htsat-fused", "windows": "all", "level": "peak", "channels": "first"}
}

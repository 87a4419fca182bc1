"""A tiny HunyuanVideo: a pipeline folder of random weights, a megabyte, in a second.

Its LLaMA has byte-level tokens, as the real one; the template of its prompts is 95 tokens long, as there.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mmalign.files import atomic_directory, write_json
from mmalign.testing.tiny import END, clip_encoder, write_clip_tokenizer

__all__ = ["write_tiny_hunyuan_video"]

_TEMPLATE_TOKENS, _PIECES = 95, 83
_BEGIN, _TURN_END, _HEAD, _HEAD_END = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)
_WIDTH, _TEXT_WIDTH, _LATENTS = 24, 20, 4


def _instruction() -> str:
    """Everything before the prompt."""
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video

    template: str = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE["template"]
    return template.split("{}", maxsplit=1)[0]


def _tokenizer_of(pieces: list[str]) -> Any:
    """A byte-level tokenizer without merges that knows some pieces of text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_BEGIN, _TURN_END, _HEAD, _HEAD_END])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    begin = (_BEGIN, tokenizer.token_to_id(_BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BEGIN} $A", special_tokens=[begin])
    return tokenizer


def _write_llama_tokenizer(folder: Path) -> int:
    """A tokenizer that makes 95 tokens of what comes before a prompt. Returns the size of its vocabulary."""
    before = _instruction()
    plain = before.split(_HEAD_END)[1].split(_TURN_END)[0]
    edges = [round(number * len(plain) / _PIECES) for number in range(_PIECES + 1)]
    pieces = ["system", "user", "\n\n", *(plain[left:right] for left, right in pairwise(edges))]
    # A piece that is not known is as many tokens as it has letters: the number that fits is looked for.
    for left_out in range(3, len(pieces)):
        tokenizer = _tokenizer_of(pieces[:left_out] + pieces[left_out + 1 :])
        if len(tokenizer.encode(before).ids) == _TEMPLATE_TOKENS:
            break
    else:
        message = f"the instruction of this diffusers makes no {_TEMPLATE_TOKENS} tokens of {_PIECES} pieces"
        raise RuntimeError(message)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        "model_max_length": 131072,
        "bos_token": _BEGIN,
        "eos_token": _TURN_END,
        "pad_token": _TURN_END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size())


def _llama(vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        use_cache=False,
    )
    return LlamaModel(config)


def _transformer() -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    return HunyuanVideoTransformer3DModel(
        in_channels=_LATENTS,
        out_channels=_LATENTS,
        num_attention_heads=2,
        attention_head_dim=_WIDTH // 2,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=_TEXT_WIDTH,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 4, 4),
    )


def _vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=_LATENTS, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def write_tiny_hunyuan_video(folder: str | Path, *, seed: int = 0) -> Path:
    """A `HunyuanVideoPipeline` folder: a LLaMA and a CLIP, guidance as an input, causal VAE. Returns it.

    Args:
        folder: where to write; replaced when it exists.
        seed: decides the random weights.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTokenizer

    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        letters = _write_llama_tokenizer(partial / "tokenizer")
        words = write_clip_tokenizer(partial / "tokenizer_2", pad_token=END)
        parts: dict[str, tuple[str, Any]] = {
            "text_encoder": ("transformers", _llama(letters)),
            "text_encoder_2": ("transformers", clip_encoder(words, projected=False)),
            "tokenizer_2": ("transformers", CLIPTokenizer.from_pretrained(str(partial / "tokenizer_2"))),
            "transformer": ("diffusers", _transformer()),
            "vae": ("diffusers", _vae()),
            "scheduler": ("diffusers", FlowMatchEulerDiscreteScheduler(shift=7.0)),
        }
        for name, (_, part) in parts.items():
            part.save_pretrained(str(partial / name))
        index = {name: [library, type(part).__name__] for name, (library, part) in parts.items()}
        # As published; transformers 5 reads byte-level tokens by another class only.
        index["tokenizer"] = ["transformers", "LlamaTokenizerFast"]
        write_json(partial / "model_index.json", {"_class_name": "HunyuanVideoPipeline", **index})
    return Path(folder)

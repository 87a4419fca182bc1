"""A tiny ImageReward in its published layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["CHECKPOINTS", "drawn", "write_imagereward"]

_WORDS = ("a", "painting", "of", "an", "ocean", "with", "clouds", "and", "birds")


def drawn(shapes: dict[str, tuple[int, ...]], generator: torch.Generator, scale: float) -> dict[str, Tensor]:
    """Random tensors by name; scales of layer norms stand around 1."""
    state = {}
    for name, shape in shapes.items():
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        state[name] = centre + scale * torch.randn(shape, generator=generator)
    return state


def write_imagereward(folder: Path, seed: int = 0) -> Path:
    """`ImageReward.pt` and `med_config.json` with BLIP's names, and BERT's tokenizer. Returns the folder."""
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{c}" for c in letters),
        *_WORDS,
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained(str(folder))
    text = {
        "architectures": ["BertModel"],
        "vocab_size": len(vocabulary) + 2,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "encoder_width": 768,
        "add_cross_attention": True,
    }
    (folder / "med_config.json").write_text(json.dumps(text))
    generator = torch.Generator().manual_seed(seed)
    state = drawn(_blip_shapes(text, width=128, inner=96, depth=2, patch=8, side=4), generator, 0.15)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(state, folder / "ImageReward.pt")
    return folder


def _blip_shapes(
    text: dict[str, Any], *, width: int, inner: int, depth: int, patch: int, side: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, given: int, made: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (made, given), (made,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    vision = "blip.visual_encoder"
    shapes[f"{vision}.cls_token"] = (1, 1, width)
    shapes[f"{vision}.pos_embed"] = (1, side * side + 1, width)
    shapes[f"{vision}.patch_embed.proj.weight"] = (width, 3, patch, patch)
    shapes[f"{vision}.patch_embed.proj.bias"] = (width,)
    for block in range(depth):
        name = f"{vision}.blocks.{block}"
        norm(f"{name}.norm1", width)
        linear(f"{name}.attn.qkv", width, 3 * width)
        linear(f"{name}.attn.proj", width, width)
        norm(f"{name}.norm2", width)
        linear(f"{name}.mlp.fc1", width, inner)
        linear(f"{name}.mlp.fc2", inner, width)
    norm(f"{vision}.norm", width)
    hidden = text["hidden_size"]
    encoder = "blip.text_encoder"
    shapes[f"{encoder}.embeddings.word_embeddings.weight"] = (text["vocab_size"], hidden)
    shapes[f"{encoder}.embeddings.position_embeddings.weight"] = (text["max_position_embeddings"], hidden)
    norm(f"{encoder}.embeddings.LayerNorm", hidden)
    for layer in range(text["num_hidden_layers"]):
        name = f"{encoder}.encoder.layer.{layer}"
        for attention, given in (("attention", hidden), ("crossattention", width)):
            linear(f"{name}.{attention}.self.query", hidden, hidden)
            linear(f"{name}.{attention}.self.key", given, hidden)
            linear(f"{name}.{attention}.self.value", given, hidden)
            linear(f"{name}.{attention}.output.dense", hidden, hidden)
            norm(f"{name}.{attention}.output.LayerNorm", hidden)
        linear(f"{name}.intermediate.dense", hidden, text["intermediate_size"])
        linear(f"{name}.output.dense", text["intermediate_size"], hidden)
        norm(f"{name}.output.LayerNorm", hidden)
    linear("blip.vision_proj", width, 7)
    linear("blip.text_proj", hidden, 7)
    sizes = (hidden, 1024, 128, 64, 16, 1)
    for number, place in enumerate((0, 2, 4, 6, 7)):
        linear(f"mlp.layers.{place}", sizes[number], sizes[number + 1])
    return shapes


CHECKPOINTS: dict[str, Callable[[Path, int], Path]] = {"imagereward": write_imagereward}

"""Names of weights: OpenCLIP's text transformer, and `CLIPTextModel` of transformers.

Models that take the state before the last block need a block less here: its weights are left out, and stay
as they are where a checkpoint is written back.

Source: mlfoundations/open_clip src/open_clip/transformer.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["text_from_openclip", "text_settings", "text_to_openclip"]

_OUTER = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK, _LAYER = "transformer.resblocks.", "encoder.layers."
_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_JOINED = "attn.in_proj_"
_HEAD_WIDTH = 64


def text_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the `CLIPTextConfig` whose last state is that before the last block of OpenCLIP's.

    Args:
        state: names as in OpenCLIP's model.
    """
    words, width = state["token_embedding.weight"].shape
    blocks = {name.removeprefix(_BLOCK).split(".")[0] for name in state if name.startswith(_BLOCK)}
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": state[f"{_BLOCK}0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": len(blocks) - 1,
        "num_attention_heads": width // _HEAD_WIDTH,
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "hidden_act": "gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 0,
    }


def text_from_openclip(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Weights of `CLIPTextModel` of so many layers, further ones and OpenCLIP's projections left out."""
    found = {ours: state[name] for name, ours in _OUTER.items()}
    for number in range(num_layers):
        block, layer = f"{_BLOCK}{number}.", f"{_LAYER}{number}."
        for name, ours in _INNER.items():
            for kind in ("weight", "bias"):
                found[f"{layer}{ours}.{kind}"] = state[f"{block}{name}.{kind}"]
        for kind in ("weight", "bias"):
            parts = state[f"{block}{_JOINED}{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                found[f"{layer}self_attn.{letter}_proj.{kind}"] = part
    return found


def text_to_openclip(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Inverse of `text_from_openclip`, as far as it went."""
    found = {name: state[ours] for name, ours in _OUTER.items()}
    for number in range(num_layers):
        block, layer = f"{_BLOCK}{number}.", f"{_LAYER}{number}."
        for kind in ("weight", "bias"):
            for name, ours in _INNER.items():
                found[f"{block}{name}.{kind}"] = state[f"{layer}{ours}.{kind}"]
            parts = [state[f"{layer}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{block}{_JOINED}{kind}"] = torch.cat(parts)
    return found

"""Adapters of HunyuanVideo under the names of its own code, which joins layers that diffusers keeps apart.

There, queries, keys and values are one layer, and in single blocks the first half of the feed-forward part
with them. The LoRA of such a layer is that of its parts side by side: `A` below one another, `B` on the
diagonal.

Source: Tencent/HunyuanVideo hyvideo/modules/models.py; comfyanonymous/ComfyUI comfy/lora.py.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmalign.errors import CheckpointError, explain

__all__ = ["joined", "split"]

_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_LAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "img_attn_qkv": ("double", _ATTENTION),
    "txt_attn_qkv": ("double", _ADDED),
    "img_attn_proj": ("double", ("attn.to_out.0",)),
    "txt_attn_proj": ("double", ("attn.to_add_out",)),
    "img_mlp.fc1": ("double", ("ff.net.0.proj",)),
    "img_mlp.fc2": ("double", ("ff.net.2",)),
    "txt_mlp.fc1": ("double", ("ff_context.net.0.proj",)),
    "txt_mlp.fc2": ("double", ("ff_context.net.2",)),
    "linear1": ("single", (*_ATTENTION, "proj_mlp")),
    "linear2": ("single", ("proj_out",)),
}
"""A layer's name in the model's own code, its kind of block, and its parts in diffusers, in order."""

_BLOCKS = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
_PREFIX = "diffusion_model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


def _width(network: nn.Module, name: str) -> int:
    """Outputs of a layer, adapted or not."""
    layer = network.get_submodule(name)
    layer = getattr(layer, "base_layer", layer)
    return int(layer.out_features)  # type: ignore[arg-type]


def joined(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """`lora_A` and `lora_B` under the model's own names, as ComfyUI knows them.

    Args:
        tensors: under diffusers' names, strength multiplied in.
        network: whose layers they are.

    Raises:
        CheckpointError: a layer has no name in the model's own code.
    """
    rest, found = dict(tensors), dict[str, Tensor]()
    blocks = sorted({match[0] for name in tensors if (match := re.match(r"\w+_blocks\.\d+", name))})
    for block in blocks:
        kind, number = block.rsplit(".", 1)
        for own, (belongs, parts) in _LAYERS.items():
            names = [f"{block}.{part}" for part in parts]
            if _BLOCKS[belongs] != kind or not any(name + _A in tensors for name in names):
                continue
            first = next(tensors[name + _A] for name in names if name + _A in tensors)
            downs, ups = [], []
            for name in names:
                down = rest.pop(name + _A, first[:0])
                downs.append(down)
                ups.append(rest.pop(name + _B, first.new_zeros(_width(network, name), 0)))
            found[f"{_PREFIX}{belongs}_blocks.{number}.{own}{_A}"] = torch.cat(downs)
            found[f"{_PREFIX}{belongs}_blocks.{number}.{own}{_B}"] = torch.block_diag(*ups)
    if rest:
        layers = sorted({name.rsplit(".lora_", 1)[0] for name in rest})
        message = explain(
            "mmalign export --to comfyui",
            got=f"an adapter on {', '.join(layers[:3])}",
            expected="layers of the blocks",
            do="Use --to diffusers, or --to merged.",
        )
        raise CheckpointError(message)
    return found


def split(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor] | None:
    """What `joined` gave, under diffusers' names: parts share `lora_A`, each has its rows of `lora_B`.

    None where the names are not the model's own.
    """
    if not all(name.startswith(_PREFIX) for name in tensors):
        return None
    found: dict[str, Tensor] = {}
    for name, up in tensors.items():
        if not name.endswith(_B):
            continue
        belongs, number, own = name.removeprefix(_PREFIX).removesuffix(_B).split(".", 2)
        names = [f"{_BLOCKS[belongs.removesuffix('_blocks')]}.{number}.{part}" for part in _LAYERS[own][1]]
        rows = up.split([_width(network, part) for part in names])
        for part, row in zip(names, rows, strict=True):
            found[part + _A] = tensors[name.removesuffix(_B) + _A].clone()
            found[part + _B] = row.contiguous()
    return found

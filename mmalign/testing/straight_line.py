"""CLIP and BLIP written down once more, as functions of a state dict: what forwards are held against.

Nothing of `mmalign.rewards` and no model of a library is used; every line is one formula of the papers
(arXiv 2103.00020, 2201.12086, 2010.11929).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["blip_text", "blip_vision", "clip_text", "clip_vision", "heads_attend", "linear", "norm"]

State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """W x + b, without b where the state has none."""
    found = x @ state[f"{name}.weight"].T
    return found + state[f"{name}.bias"] if f"{name}.bias" in state else found


def norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def heads_attend(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Attention head by head: softmax(q k / sqrt(width) + bias) v, heads behind one another again."""
    width = query.shape[-1] // heads
    parts = []
    for head in range(heads):
        cut = slice(head * width, (head + 1) * width)
        scores = query[..., cut] @ key[..., cut].transpose(-1, -2) / width**0.5
        parts.append((scores if bias is None else scores + bias).softmax(-1) @ value[..., cut])
    return torch.cat(parts, dim=-1)


def _clip_attention(state: State, name: str, x: Tensor, heads: int, bias: Tensor | None) -> Tensor:
    query, key, value = (linear(state, f"{name}.{part}_proj", x) for part in "qkv")
    return linear(state, f"{name}.out_proj", heads_attend(query, key, value, heads, bias))


def _clip_mlp(state: State, name: str, x: Tensor) -> Tensor:
    return linear(state, f"{name}.fc2", F.gelu(linear(state, f"{name}.fc1", x)))


def clip_text(state: State, ids: Tensor, *, heads: int, layers: int) -> Tensor:
    """All tokens after the last layer norm, [sample token width]; causal, nothing masked."""
    prefix = "text_model"
    positions = state[f"{prefix}.embeddings.position_embedding.weight"][: ids.shape[1]]
    x = state[f"{prefix}.embeddings.token_embedding.weight"][ids] + positions
    length = ids.shape[1]
    later = torch.full((length, length), -torch.inf, dtype=x.dtype).triu(1)
    for layer in range(layers):
        name = f"{prefix}.encoder.layers.{layer}"
        x = x + _clip_attention(
            state, f"{name}.self_attn", norm(state, f"{name}.layer_norm1", x), heads, later
        )
        x = x + _clip_mlp(state, f"{name}.mlp", norm(state, f"{name}.layer_norm2", x))
    return norm(state, f"{prefix}.final_layer_norm", x)


def clip_vision(
    state: State, pixels: Tensor, *, heads: int, layers: int, patch: int, time: Tensor | None = None
) -> Tensor:
    """All tokens, [sample token width], before the last layer norm; modulated by `time` where it is given."""
    prefix = "vision_model"
    kernel = state[f"{prefix}.embeddings.patch_embedding.weight"]
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2) @ kernel.flatten(1).T
    first = state[f"{prefix}.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + state[f"{prefix}.embeddings.position_embedding.weight"]
    x = norm(state, f"{prefix}.pre_layrnorm", x)
    for layer in range(layers):
        name = f"{prefix}.encoder.layers.{layer}"
        before, after = norm(state, f"{name}.layer_norm1", x), torch.ones(())
        parts: list[Tensor] = []
        if time is not None:
            found = linear(state, f"{name}.adaLN_modulation.1", F.silu(time))
            parts = [part[:, None, :] for part in found.chunk(6, dim=-1)]
            before, after = before * (1 + parts[1]) + parts[0], parts[2]
        x = x + after * _clip_attention(state, f"{name}.self_attn", before, heads, None)
        before, after = norm(state, f"{name}.layer_norm2", x), torch.ones(())
        if time is not None:
            before, after = before * (1 + parts[4]) + parts[3], parts[5]
        x = x + after * _clip_mlp(state, f"{name}.mlp", before)
    return x


def blip_vision(state: State, pixels: Tensor, *, heads: int, layers: int, patch: int) -> Tensor:
    """All image tokens after the last layer norm, with BLIP's names of parameters."""
    kernel = state["patch_embed.proj.weight"]
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2) @ kernel.flatten(1).T
    patches = patches + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].expand(len(pixels), -1, -1), patches], dim=1) + state["pos_embed"]
    for layer in range(layers):
        name = f"blocks.{layer}"
        query, key, value = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, 1e-6)).chunk(
            3, -1
        )
        x = x + linear(state, f"{name}.attn.proj", heads_attend(query, key, value, heads))
        inner = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, 1e-6)))
        x = x + linear(state, f"{name}.mlp.fc2", inner)
    return norm(state, "norm", x, 1e-6)


def blip_text(state: State, ids: Tensor, mask: Tensor, image: Tensor, *, heads: int, layers: int) -> Tensor:
    """All prompt tokens after the last layer: BERT that looks at the image between its two halves."""
    eps = 1e-12
    positions = state["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(state, "embeddings.LayerNorm", state["embeddings.word_embeddings.weight"][ids] + positions, eps)
    hidden = torch.where(mask.bool(), 0.0, -torch.inf).to(x.dtype)[:, None, :]
    for layer in range(layers):
        for kind, source, bias in (("attention", x, hidden), ("crossattention", image, None)):
            name = f"encoder.layer.{layer}.{kind}"
            given = x if kind == "attention" else source
            query = linear(state, f"{name}.self.query", x)
            key, value = (linear(state, f"{name}.self.{part}", given) for part in ("key", "value"))
            out = linear(state, f"{name}.output.dense", heads_attend(query, key, value, heads, bias))
            x = norm(state, f"{name}.output.LayerNorm", out + x, eps)
        name = f"encoder.layer.{layer}"
        inner = F.gelu(linear(state, f"{name}.intermediate.dense", x))
        x = norm(state, f"{name}.output.LayerNorm", linear(state, f"{name}.output.dense", inner) + x, eps)
    return x

"""The attention of MPS: image tokens look at the prompt's tokens that matter under a condition.

Source: arXiv 2405.14705; Kwai-Kolors/MPS, trainer/models and eval_overall_mps_on_hpdv2.py.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CrossModel", "condition_mask", "relative_similarity", "similarity"]

_ROTARY_BASE = 10000.0


# ---------------------------------------------------------------------------------------------- the mask


def similarity(
    text: Float[Tensor, "sample token width"], condition: Float[Tensor, "condition width"]
) -> Float[Tensor, "sample token"]:
    """max_j <text_i, condition_j>: how near each prompt token is to its nearest token of the condition.

    Args:
        text: features of every token of the prompt, padding included, projected and not normalised.
        condition: features of every token of the condition, likewise.
    """
    return (text @ condition.T).amax(dim=-1)


def relative_similarity(
    text: Float[Tensor, "sample token width"],
    condition: Float[Tensor, "condition width"],
    *,
    maximum_over: Literal["sample", "batch"] = "sample",
) -> Float[Tensor, "sample token"]:
    """`similarity` divided by its largest value, so that the nearest prompt token has 1.

    As published, also where the largest value is negative: the order then turns round and all are kept.

    Args:
        text: see `similarity`.
        condition: see `similarity`.
        maximum_over: "sample" divides by the prompt's own maximum. "batch" is what the official training code
            does: a score then depends on its batch mates.

    Source: Kwai-Kolors/MPS, trainer/models/clip_model.py.
    """
    nearest = similarity(text, condition)
    return nearest / (nearest.amax(dim=-1, keepdim=True) if maximum_over == "sample" else nearest.amax())


def condition_mask(
    text: Float[Tensor, "sample token width"],
    condition: Float[Tensor, "condition width"],
    *,
    threshold: float = 0.3,
    maximum_over: Literal["sample", "batch"] = "sample",
) -> Bool[Tensor, "sample token"]:
    """Which prompt tokens the image attends to: `relative_similarity` above the threshold.

    Args:
        text: see `relative_similarity`.
        condition: see `relative_similarity`.
        threshold: 0.3 in the evaluation scripts that gave the published numbers, 0.01 in the model's own
            forward.
        maximum_over: see `relative_similarity`.
    """
    return relative_similarity(text, condition, maximum_over=maximum_over) > threshold


# ---------------------------------------------------------------------------------------------- the tower
# Names of modules and parameters are those of the released checkpoint.


class _ScaleNorm(nn.Module):
    """Layer norm with a weight and no bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight)


class _SwiGLU(nn.Module):
    """First half times SiLU of the second half."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x + self.fn(x, *others)  # type: ignore[no-any-return]


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, keep: Tensor | None = None) -> Tensor:
    """Many query heads over one key and value head: [sample token heads*width]."""
    query = query.unflatten(-1, (heads, -1)).transpose(1, 2)
    key, value = (entry.unsqueeze(1).expand(-1, heads, -1, -1) for entry in (key, value))
    mask = None if keep is None else keep[:, None, None, :]
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return found.transpose(1, 2).flatten(2)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: the two halves of the last axis turn as (first, second) pairs."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)


class _CrossAttention(nn.Module):
    """Image tokens attend to the kept prompt tokens; a feed-forward runs beside it on the same input."""

    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _ScaleNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        inner = ff_mult * dim
        self.ff = nn.Sequential(
            nn.Linear(dim, 2 * inner, bias=False), _SwiGLU(), nn.Linear(inner, dim, bias=False)
        )

    def forward(self, x: Tensor, context: Tensor, keep: Tensor) -> Tensor:
        x = self.norm(x)
        key, value = self.to_kv(context).chunk(2, dim=-1)
        out: Tensor = self.to_out(_attend(self.to_q(x), key, value, self.heads, keep)) + self.ff(x)
        return out


class _ParallelBlock(nn.Module):
    """Self-attention with rotary positions and a feed-forward, both from one fused projection."""

    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        inner = ff_mult * dim
        self.parts = (heads * dim_head, dim_head, dim_head, 2 * inner)
        self.norm = _ScaleNorm(dim)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff_out = nn.Sequential(_SwiGLU(), nn.Linear(inner, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, inner = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        angles = self.angles(x)
        key = _rotated(key, angles)
        query = _rotated(query.unflatten(-1, (self.heads, -1)), angles[:, None, :]).flatten(-2)
        out: Tensor = self.attn_out(_attend(query, key, value, self.heads)) + self.ff_out(inner)
        return out

    def angles(self, x: Tensor) -> Tensor:
        """Position times frequency, [token head_width]; the frequencies are float32 as published."""
        steps = torch.arange(0, self.dim_head, 2, device=x.device, dtype=torch.float32) / self.dim_head
        working = torch.promote_types(x.dtype, torch.float32)
        frequencies = (1.0 / _ROTARY_BASE**steps).to(working)
        angles = torch.arange(x.shape[1], device=x.device, dtype=working)[:, None] * frequencies
        return torch.cat((angles, angles), dim=-1)


class CrossModel(nn.Module):
    """Image tokens, informed by the prompt's kept tokens, [sample query dim].

    Every layer: residual cross-attention, then a residual block of self-attention beside a feed-forward. No
    biases, one key and value head.

    Args:
        dim: width of the tokens; 1024 as released.
        layers: 4 as released.
        heads: query heads; 16 as released.
        dim_head: width of a head; 64 as released, even.
        ff_mult: inner width of the feed-forwards in units of `dim`; 4 as released.

    Source: Kwai-Kolors/MPS, trainer/models/cross_modeling.py.
    """

    def __init__(
        self, *, dim: int = 1024, layers: int = 4, heads: int = 16, dim_head: int = 64, ff_mult: int = 4
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _Residual(_CrossAttention(dim, heads, dim_head, ff_mult)),
                    _Residual(_ParallelBlock(dim, heads, dim_head, ff_mult)),
                ]
            )
            for _ in range(layers)
        )

    def forward(
        self,
        image: Float[Tensor, "sample query dim"],
        text: Float[Tensor, "sample token dim"],
        keep: Bool[Tensor, "sample token"],
    ) -> Float[Tensor, "sample query dim"]:
        """The image tokens after all layers.

        Args:
            image: projected tokens of the image.
            text: projected tokens of the prompt.
            keep: prompt tokens that take part; at least one per sample.
        """
        for layer in self.layers:
            cross, parallel = layer.children()
            image = parallel(cross(image, text, keep))
        return image

"""Attention over rows `[prompt | answers]` that computes only what is seen.

Queries of the prompt see what comes before them, which fused kernels do without a mask and at half the cost
of a square. Only queries behind it need a mask: of a row of 8000 tokens with two answers of 100 it has 2 % of
the square's rows. The mask itself says where that begins: it has as many rows as there are queries behind.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SHARED_PROMPT", "attend", "share_prompts", "shares_prompts"]

SHARED_PROMPT = "mmalign_shared_prompt"
"""The name under which transformers finds it, as `config._attn_implementation`."""


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: states `[row, head, position, feature]` to `[row, position, ...]`.

    Args:
        module: the attention layer.
        query: of all positions.
        key: of all positions.
        value: of all positions.
        attention_mask: `[row, 1, query, key]` of the last queries; those before are causal. None, or a mask
            with a row for every query: as plain fused attention.
        kwargs: scaling, dropout and what else the layer hands on.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    masked = query.shape[2] if attention_mask is None else attention_mask.shape[-2]
    causal = query.shape[2] - masked
    if causal <= 0:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return found, None
    before, _ = sdpa_attention_forward(
        module,
        query[:, :, :causal],
        key[:, :, :causal],
        value[:, :, :causal],
        None,
        **{**kwargs, "is_causal": True},
    )
    behind, _ = sdpa_attention_forward(module, query[:, :, causal:], key, value, attention_mask, **kwargs)
    return torch.cat([before, behind], dim=1), None


def share_prompts(decoder: Any) -> bool:
    """Make a decoder attend this way where it uses torch's fused attention; returns whether it does now.

    Args:
        decoder: of transformers.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if decoder.config._attn_implementation == "sdpa":
        AttentionInterface.register(SHARED_PROMPT, attend)
        AttentionMaskInterface.register(SHARED_PROMPT, sdpa_mask)
        decoder.config._attn_implementation = SHARED_PROMPT
    return shares_prompts(decoder)


def shares_prompts(decoder: Any) -> bool:
    """Whether a decoder takes masks of the last queries alone."""
    return bool(decoder.config._attn_implementation == SHARED_PROMPT)

"""Rows `[prompt | answers]` through a decoder: nothing is computed that nobody sees.

Queries of the prompt see what comes before them, which fused kernels do without a mask and at half the cost
of a square. Only queries behind it need a mask: of a row of 8000 tokens with two answers of 100 it has 2 % of
the square's rows. The mask itself says where that begins: it has as many rows as there are queries behind.

Of the last layer, only what predicts answers is read: the prompt's keys and values, and nothing else of it.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "SHARED_PROMPT",
    "attend",
    "restore_last_layer",
    "share_prompts",
    "shares_prompts",
    "shorten_last_layer",
]

SHARED_PROMPT = "mmalign_shared_prompt"
"""The name under which transformers finds it, as `config._attn_implementation`."""


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: states `[row, head, position, feature]` to `[row, position, ...]`.

    Args:
        module: the attention layer.
        query: of all positions.
        key: of all positions.
        value: of all positions.
        attention_mask: `[row, 1, query, key]` of the last queries; those before are causal. None, or a mask
            with a row for every query: as plain fused attention. Or a BlockMask: through FlexAttention.
        kwargs: scaling, dropout and what else the layer hands on.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        from transformers.integrations.flex_attention import flex_attention_forward

        found, _ = flex_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return found, None
    masked = query.shape[2] if attention_mask is None else attention_mask.shape[-2]
    causal = query.shape[2] - masked
    if causal <= 0:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return found, None
    if getattr(module, "reads_answers_alone", False):
        row, head = query.shape[:2]
        before = value.new_zeros(row, causal, head, value.shape[-1])
    else:
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


_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def shorten_last_layer(decoder: Any) -> bool:
    """Let the last layer compute the queries of a narrow mask alone; returns whether it does.

    Layers of Llama's kind are understood: norm, attention, sum, norm, MLP, sum. Those of other kinds stay as
    they are. Without a narrow mask the layer does what it always does.

    Args:
        decoder: of transformers, with `layers`.
    """
    layer: Any = decoder.layers[-1]
    if {name for name, _ in layer.named_children()} != _PARTS:
        return False
    # A class, not a bound function: a deep copy must compute with its own weights.
    whole: Any = type(layer)
    layer.__class__ = _shortened(whole)
    return True


def restore_last_layer(decoder: Any) -> None:
    """Undo `shorten_last_layer`."""
    layer: Any = decoder.layers[-1]
    layer.__class__ = getattr(type(layer), "whole_class", type(layer))
    layer.self_attn.reads_answers_alone = False


@functools.cache
def _shortened(whole: type[nn.Module]) -> type[nn.Module]:
    """The class of a decoder layer that reads nothing of prompts but keys and values."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask: Any = kwargs.get("attention_mask")
        length = hidden_states.shape[1]
        is_narrow = isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-2] < length
        self.self_attn.reads_answers_alone = is_narrow
        if not is_narrow:
            return whole.forward(self, hidden_states, *args, **kwargs)
        first = length - mask.shape[-2]
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        behind = hidden_states[:, first:] + attended[:, first:]
        behind = behind + self.mlp(self.post_attention_layernorm(behind))
        return torch.cat([hidden_states[:, :first], behind], dim=1)

    return type(whole.__name__, (whole,), {"forward": forward, "whole_class": whole})

"""Packed rows through FlexAttention: blocks of the mask in which nothing is seen are never computed.

The narrow mask of attention.py computes no more of prompts than a causal kernel does. It computes all
products of answers with everything before them, other answers included. Blocks leave those out, which is
worth something where answers are long. For P tokens of prompt and A of two equal answers, of

    narrow  P^2 / 2 + A (P + A)
    blocks  P^2 / 2 + A P + A^2 / 4

products, blocks save 0.1 % at P 8000, A 200, 15 % at P 4000, A 2000, and 59 % at P 1000, A 4000: they are
for long answers, and used when they are asked for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.train.verified_attention import AttentionUse, Trial, try_kernel
from mmalign.vlm.inputs import VlmInputs

__all__ = ["block_mask", "require_flex", "saved_share", "try_flex"]


def block_mask(inputs: VlmInputs, *, window: int | None = None) -> Any:
    """The mask of packed rows as FlexAttention takes it; sees what `mmalign.vlm.packing.visible` sees.

    Args:
        inputs: rows.
        window: of sliding attention.
    """
    rule = _rule(inputs.segment, inputs.step, inputs.blocks, window)
    rows, length = inputs.segment.shape
    return _blocks(rule, rows, length, inputs.segment.device)


def saved_share(prompt: int, answers: int, *, count: int = 2) -> float:
    """Share of a row's attention that blocks leave out of what the narrow mask computes.

    Args:
        prompt: tokens that answers share.
        answers: tokens of all answers.
        count: of equally long answers.
    """
    narrow = prompt**2 / 2 + answers * (prompt + answers)
    blocks = prompt**2 / 2 + answers * prompt + answers**2 / (2 * count)
    return 1 - blocks / narrow


def require_flex(device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    """Run compiled FlexAttention once on a small packed row, forward and backward.

    Raises:
        ConfigError: it cannot be trained through here, or gives other numbers than float32 mathematics.
    """
    where = "model.attention flex"
    if device.type != "cuda":
        message = explain(
            where,
            got=f"device {device.type}",
            expected="a CUDA device: torch has no backward pass of FlexAttention elsewhere",
            do="Set model.attention: auto.",
        )
        raise ConfigError(message)
    trial = try_flex(device, dtype, head_size)
    if trial.refusal:
        message = explain(
            where,
            got=f"a kernel that {trial.refusal}",
            expected="one that runs",
            do="Set model.attention: auto.",
        )
        raise ConfigError(message)


def try_flex(device: torch.device, dtype: torch.dtype, head_size: int) -> Trial:
    """What came of compiled FlexAttention on small packed rows."""
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    segment = torch.tensor([0] * 128 + [1] * 64 + [2] * 64, device=device).expand(2, -1).contiguous()
    rule = _rule(segment, segment, None, None)
    rows, length = segment.shape
    blocks, compiled = _blocks(rule, rows, length, device), torch.compile(flex_attention)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        del mask
        attended: Tensor = compiled(query, key, value, block_mask=blocks)
        return attended

    seen = create_mask(rule, rows, 1, length, length, device=str(device))
    return try_kernel("flex", attend, AttentionUse(device, dtype, head_size), mask=seen)


_Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(row, head, query, key) to whether the query sees the key, as FlexAttention asks it."""


def _rule(segment: Tensor, step: Tensor, blocks: Tensor | None, window: int | None) -> _Rule:
    # FlexAttention counts a rule's arguments, which decorators of tests would hide on a function with a name.
    return lambda row, _, query, key: _sees(segment, step, blocks, window, row, query, key)


def _sees(
    segment: Tensor,
    step: Tensor,
    blocks: Tensor | None,
    window: int | None,
    row: Tensor,
    query: Tensor,
    key: Tensor,
) -> Tensor:
    of_query, of_key = segment[row, query], segment[row, key]
    seen = (query >= key) & ((of_key == 0) | ((of_key == of_query) & (of_key > 0)))
    if blocks is not None:
        seen = seen | ((blocks[row, query] == blocks[row, key]) & (blocks[row, key] >= 0))
    if window is not None:
        seen = seen & (step[row, query] - step[row, key] < window)
    return seen | (query == key)


def _blocks(rule: _Rule, rows: int, length: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    # Uncompiled it would hold the whole square; on the CPU, where tests run, that is small.
    return create_block_mask(
        rule, rows, None, length, length, device=str(device), _compile=device.type == "cuda"
    )

"""Recomputed activations for networks whose blocks diffusers has not prepared for it."""

from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint as recomputing

__all__ = ["recompute_blocks"]


class _Recomputing:
    """Put before a block's class: its forward is run again in the backward pass."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        run = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return run(*arguments, **keywords)
        return recomputing.checkpoint(run, *arguments, use_reentrant=False, **keywords)


def recompute_blocks(blocks: list[nn.Module]) -> int:
    """Run blocks again in the backward pass instead of keeping their activations. Returns how many.

    The blocks' classes are exchanged and nothing else: names of weights stay, and copies recompute, too.

    Args:
        blocks: changed in place.
    """
    for block in blocks:
        if not isinstance(block, _Recomputing):
            plain = type(block)
            block.__class__ = type(plain.__name__, (_Recomputing, plain), {})
    return len(blocks)

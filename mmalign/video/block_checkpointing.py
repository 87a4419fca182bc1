"""Recomputed activations for networks whose blocks diffusers has not prepared for it."""

from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from mmalign.train.recomputing import Recomputed, recomputed

__all__ = ["recompute_blocks"]


class _Recomputing:
    """Put before a block's class: its forward is run again in the backward pass."""

    recomputed_kind: ClassVar[Recomputed] = True

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        run = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return run(*arguments, **keywords)
        return recomputed(self.recomputed_kind, run, *arguments, **keywords)


@cache
def _recomputing(plain: type[nn.Module], kind: Recomputed) -> type[nn.Module]:
    return type(plain.__name__, (_Recomputing, plain), {"recomputed_kind": kind})


def recompute_blocks(blocks: list[nn.Module], kind: Recomputed = True) -> int:
    """Run blocks again in the backward pass instead of keeping their activations. Returns how many.

    The blocks' classes are exchanged and nothing else: names of weights stay, and copies recompute, too.

    Args:
        blocks: changed in place.
        kind: everything of them, or selectively.
    """
    for block in blocks:
        if not isinstance(block, _Recomputing):
            plain: Any = type(block)
            block.__class__ = _recomputing(plain, kind)
    return len(blocks)

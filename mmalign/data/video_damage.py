"""Clips made worse on purpose, as rejected sides of pairs whose chosen side is real (DF-DPO)."""

from typing import Literal, get_args

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.errors import ConfigError, unknown_name

__all__ = ["DAMAGES", "Damage", "damaged"]

Damage = Literal["reversed", "shuffled", "noised"]

DAMAGES: tuple[Damage, ...] = get_args(Damage)
"""Backwards; in a random order; with other noise in every frame."""

_NOISE = (0.05, 0.2)
"""Standard deviation of the noise, of 1 for black to white: drawn once per clip."""


def damaged(
    frames: UInt8[Tensor, "frame 3 height width"], kind: str, generator: torch.Generator
) -> UInt8[Tensor, "frame 3 height width"]:
    """The same clip, worse: as many frames, of the same size.

    Args:
        frames: of a real clip.
        kind: what is done to it.
        generator: draws the order, or the noise and how strong it is.

    Raises:
        UnknownNameError: no such kind.

    Source: arXiv 2504.08542 (reversed, shuffled and noised frames; the strengths are ours).
    """
    match kind:
        case "reversed":
            return frames.flip(0)
        case "shuffled":
            return frames[_other_order(len(frames), generator)]
        case "noised":
            strength = _NOISE[0] + (_NOISE[1] - _NOISE[0]) * torch.rand((), generator=generator)
            noise = 255.0 * strength * torch.randn(frames.shape, generator=generator)
            return (frames + noise).round().clamp(0, 255).to(torch.uint8)
    raise unknown_name("damage", kind, DAMAGES)


def _other_order(count: int, generator: torch.Generator) -> Tensor:
    """A random order of some frames that is neither theirs nor theirs backwards."""
    if count < 3:
        message = f"shuffled: got {count} frames, expected at least 3: fewer have no other order."
        raise ConfigError(message)
    forwards = torch.arange(count)
    while True:
        order = torch.randperm(count, generator=generator)
        if not torch.equal(order, forwards) and not torch.equal(order, forwards.flip(0)):
            return order

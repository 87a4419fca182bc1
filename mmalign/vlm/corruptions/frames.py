"""Operators that spoil a video as a sequence of frames: their number, and that of visual tokens, stays.

Groups are those of TEMPLE: of n frames and `strength` = m, a group is max(1, n // m) neighbouring frames, so
a large m spoils the order finely and a small one coarsely.
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image

from mmalign.errors import HyperparameterError, explain
from mmalign.vlm.corruptions.images import Record

__all__ = ["clip", "drop", "frame_mask", "groups_of", "kept_of", "reverse", "shuffle", "shuffled"]

Frames = tuple[Image.Image, ...]


def groups_of(count: int, num_groups: int) -> list[list[int]]:
    """Places 0 ... count - 1 in neighbouring groups of max(1, count // num_groups); the last may be shorter.

    Source: lscpku/TEMPLE 59f135d.

    Raises:
        HyperparameterError: num_groups below 1.
    """
    if num_groups < 1:
        message = explain("number of groups", got=num_groups, expected="a whole number >= 1")
        raise HyperparameterError(message)
    size = max(1, count // num_groups)
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def shuffled(count: int, generator: torch.Generator) -> list[int]:
    """A random order of 0 ... count - 1 that is not the given one, where there is another."""
    order = torch.randperm(count, generator=generator).tolist()
    while count > 1 and order == list(range(count)):
        order = torch.randperm(count, generator=generator).tolist()
    return order


def kept_of(count: int, num_groups: int, generator: torch.Generator) -> list[int]:
    """max(1, count // num_groups) random places, ascending: what is left after a drop.

    Source: lscpku/TEMPLE 59f135d.

    Raises:
        HyperparameterError: num_groups below 1.
    """
    number = len(groups_of(count, num_groups)[0])
    return sorted(torch.randperm(count, generator=generator)[:number].tolist())


def _shown(places: Sequence[int]) -> str:
    return " ".join(str(place) for place in places)


def shuffle(frames: Frames, strength: float, generator: torch.Generator) -> tuple[Frames, Record]:
    """Groups of frames in another order, frames within a group in theirs."""
    groups = groups_of(len(frames), int(strength))
    order = shuffled(len(groups), generator)
    return tuple(frames[place] for group in order for place in groups[group]), {"order": _shown(order)}


def reverse(frames: Frames, strength: float, generator: torch.Generator) -> tuple[Frames, Record]:
    """Groups of frames from last to first, frames within a group in their order."""
    del generator
    groups = groups_of(len(frames), int(strength))
    return tuple(frames[place] for group in reversed(groups) for place in group), {"groups": len(groups)}


def drop(frames: Frames, strength: float, generator: torch.Generator) -> tuple[Frames, Record]:
    """Only max(1, n // m) random frames are seen; each of the others shows the nearest kept one."""
    kept = kept_of(len(frames), int(strength), generator)
    nearest = [min(kept, key=lambda other: (abs(other - place), other)) for place in range(len(frames))]
    return tuple(frames[place] for place in nearest), {"kept": _shown(kept)}


def _share(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        message = explain(f"{name} strength", got=value, expected="a share above 0 and at most 1")
        raise HyperparameterError(message)


def clip(frames: Frames, strength: float, generator: torch.Generator) -> tuple[Frames, Record]:
    """A random stretch of `strength` of the frames, slowed down to the length of the whole.

    Raises:
        HyperparameterError: no share.
    """
    _share("clip", strength)
    length = max(1, math.floor(strength * len(frames)))
    start = int(torch.randint(len(frames) - length + 1, (), generator=generator))
    places = [start + place * length // len(frames) for place in range(len(frames))]
    return tuple(frames[place] for place in places), {"start": start, "length": length}


def frame_mask(frames: Frames, strength: float, generator: torch.Generator) -> tuple[Frames, Record]:
    """ceil(`strength` * n) random frames are black.

    Raises:
        HyperparameterError: no share.
    """
    _share("frame_mask", strength)
    hidden = set(
        torch.randperm(len(frames), generator=generator)[: math.ceil(strength * len(frames))].tolist()
    )
    made = tuple(
        Image.new("RGB", frame.size) if place in hidden else frame for place, frame in enumerate(frames)
    )
    return made, {"hidden": _shown(sorted(hidden))}

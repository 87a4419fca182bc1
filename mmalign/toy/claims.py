"""What tables of claims share: trials of several seeds, compared caption by caption."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.toy.comparison import Interval, bootstrap_mean

__all__ = ["Measured", "each_seed", "paired_difference", "said", "seeds_of"]


@runtime_checkable
class Measured(Protocol):
    """What a trial's model made of the held-out captions of a seed, as numbers."""

    def of(self, axis: str) -> Float[Tensor, " prompt"]:
        """One number per caption."""
        ...


MeasuredT = TypeVar("MeasuredT", bound=Measured)
Known = Mapping[tuple[str, int], MeasuredT]
"""What was measured, by trial and seed."""


def paired_difference(
    known: Known[MeasuredT],
    one: str,
    other: str,
    axis: str,
    seeds: Sequence[int],
    held_out: Callable[[int, int], Sequence[str]],
) -> Interval:
    """By how much more one trial gives than another, paired over the captions of all seeds.

    A caption may be drawn several times; its draws are resampled together.

    Args:
        known: what was measured.
        one: name of a trial.
        other: name of a trial.
        axis: of a measurement.
        seeds: whose captions count.
        held_out: the captions of (their number, seed).
    """
    gaps = [known[one, seed].of(axis) - known[other, seed].of(axis) for seed in seeds]
    drawn = zip(seeds, gaps, strict=True)
    prompts = [prompt for seed, gap in drawn for prompt in held_out(len(gap), seed)]
    return bootstrap_mean(torch.cat(gaps), prompts=prompts)


def seeds_of(known: Known[MeasuredT], names: Sequence[str], seeds: Sequence[int]) -> list[int]:
    """Seeds on which all of these trials were measured."""
    return [seed for seed in seeds if all((name, seed) in known for name in names)]


def said(found: Interval) -> str:
    """A difference with its interval, to three digits."""
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def each_seed(difference: Callable[[list[int]], Interval], seeds: Sequence[int]) -> str:
    """The difference of every seed on its own: how trainings differ."""
    return ", ".join(f"{difference([seed]).value:+.3f}" for seed in seeds)

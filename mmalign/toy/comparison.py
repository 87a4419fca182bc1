"""Base against aligned on the same prompts from the same noise: win rate and reward gains with intervals.

The unit is the prompt: both models paint it from the same noise, and the exact reward judges both pictures.
So every number here is paired, and an interval says how it would move with other prompts of the same kind.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.evals import statistics
from mmalign.seeding import generator_for
from mmalign.toy.image_reward import Score

__all__ = ["AXES", "Comparison", "Interval", "Paired", "bootstrap_mean", "with_ends"]

AXES: tuple[str, ...] = ("total", "faithfulness", "style")

_NUM_RESAMPLES = 10_000

MadeT = TypeVar("MadeT")
ScoreT = TypeVar("ScoreT")


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; both ends are there."""

    value: float
    low: float
    high: float


def with_ends(found: statistics.Interval) -> Interval:
    """The interval, whose ends must be known.

    Raises:
        ConfigError: one value alone has no interval.
    """
    if found.low is None or found.high is None:
        message = explain("comparison", got="[one prompt]", expected="two or more: one shows no spread")
        raise ConfigError(message)
    return Interval(found.value, found.low, found.high)


def bootstrap_mean(
    values: Float[Tensor, " prompt"], *, prompts: Sequence[Hashable] | None = None, seed: int = 0
) -> Interval:
    """The mean with its 95 % percentile interval over 10,000 resamples of the prompts.

    Values of one prompt are no independent evidence: they are drawn together, all or none.

    The resamples are drawn by `mmalign.seeding` and not by `statistics`, which would move the third digit of
    the intervals that the guides of losses have published.

    Args:
        values: one per prompt, or per draw of a prompt.
        prompts: which prompt each value belongs to; None: each to its own.
        seed: of the resamples.

    Raises:
        ConfigError: fewer than two values.
        ValueError: another number of prompts than of values.
    """
    wide = values.to(torch.float64).numpy()
    if prompts is None:
        prompts = range(len(wide))
    elif len(prompts) != len(wide):
        expected = f"prompts: got {len(prompts)}, expected one for each of {len(wide)} values"
        raise ValueError(expected)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    rows = [numbers[prompt] for prompt in prompts]
    table = np.zeros((len(numbers), 2))
    np.add.at(table, rows, np.stack([wide, np.ones_like(wide)], axis=1))
    generator = generator_for(seed, "bootstrap")
    picks = torch.randint(max(len(table), 1), (_NUM_RESAMPLES, len(table)), generator=generator)
    how = statistics.Resampling(picks=picks.numpy())
    return with_ends(statistics.bootstrap_of_means(table, lambda means: means[:, 0] / means[:, 1], how))


@dataclass(frozen=True)
class Paired(Generic[MadeT, ScoreT]):
    """What both models made of the same prompts and its exact scores, in the order of the prompts.

    Scores have a `total`; an axis is the name of a number among their attributes.
    """

    prompts: Sequence[str]
    base: Sequence[MadeT]
    aligned: Sequence[MadeT]
    base_scores: Sequence[ScoreT]
    aligned_scores: Sequence[ScoreT]

    def means(self, axis: str) -> tuple[float, float]:
        """Mean of an axis for base and aligned."""
        base, aligned = (_axis(scores, axis) for scores in (self.base_scores, self.aligned_scores))
        return float(base.mean()), float(aligned.mean())

    def differences(self, axis: str = "total") -> Float[Tensor, " prompt"]:
        """Aligned minus base on an axis, per prompt, float64."""
        return _axis(self.aligned_scores, axis) - _axis(self.base_scores, axis)

    def gain(self, axis: str = "total") -> Interval:
        """Mean of `differences` with its paired bootstrap interval; a prompt that recurs counts as one."""
        return bootstrap_mean(self.differences(axis), prompts=self.prompts)

    def outcomes(self) -> tuple[int, int, int]:
        """Prompts won, tied and lost by the aligned model on the total reward."""
        change = self.differences()
        won, lost = int((change > 0).sum()), int((change < 0).sum())
        return won, len(change) - won - lost, lost

    def win_rate(self) -> Interval:
        """Share of prompts won by the aligned model, ties counting half, with Wilson's interval."""
        won, tied, _ = self.outcomes()
        return with_ends(statistics.wilson_interval(won + 0.5 * tied, len(self.prompts)))

    def numbers(self, axes: Sequence[str]) -> dict[str, Any]:
        """Win rate, outcomes, and of every axis both means and the gain with its interval, as JSON values."""
        rate = self.win_rate()
        won, tied, lost = self.outcomes()
        reward = {}
        for axis in axes:
            (before, after), gain = self.means(axis), self.gain(axis)
            found = {"base": before, "aligned": after, "gain": gain.value}
            reward[axis] = found | {"low": gain.low, "high": gain.high}
        return {
            "prompts": len(self.prompts),
            "win_rate": {"value": rate.value, "low": rate.low, "high": rate.high},
            "won": won,
            "tied": tied,
            "lost": lost,
            "reward": reward,
        }

    def ranked(self) -> list[int]:
        """Numbers of the prompts from the largest gain in total reward to the largest loss."""
        change = self.differences().tolist()
        return sorted(range(len(change)), key=lambda index: (-change[index], index))


class Comparison(Paired[Image.Image, Score]):
    """Both models' pictures of the same prompts and their exact scores."""


def _axis(scores: Sequence[object], axis: str) -> Float[Tensor, " prompt"]:
    return torch.tensor([float(getattr(score, axis)) for score in scores], dtype=torch.float64)

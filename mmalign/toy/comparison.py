"""Base against aligned on the same prompts from the same noise: win rate and reward gains with intervals.

The unit is the prompt: both models paint it from the same noise, and the exact reward judges both pictures.
So every number here is paired, and an interval says how it would move with other prompts of the same kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.errors import MmalignError, explain
from mmalign.seeding import generator_for
from mmalign.toy.image_reward import Score

__all__ = ["AXES", "Comparison", "Interval", "bootstrap_mean", "wilson_interval"]

AXES: tuple[str, ...] = ("total", "faithfulness", "style")

_Z95 = 1.959963984540054  # the 97.5 % point of the standard normal
_NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: float | int, num: int) -> Interval:
    """Share of successes with Wilson's 95 % score interval.

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half width = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

    Unlike p +- z * sqrt(p (1 - p) / n) it stays in [0, 1] and keeps a width at 0 and 1.

    Args:
        successes: may end in a half, where ties count half (the interval is then a little too wide, since
            ties vary less than wins and losses do).
        num: trials, at least 1.

    Raises:
        MmalignError: no trials, or more successes than trials.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if num < 1 or not 0 <= successes <= num:
        message = explain("win rate", got=f"{successes} of {num}", expected="0 <= successes <= num, num >= 1")
        raise MmalignError(message)
    share = successes / num
    shrink = 1.0 / (1.0 + _Z95**2 / num)
    centre = shrink * (share + _Z95**2 / (2 * num))
    half = shrink * _Z95 * math.sqrt(share * (1.0 - share) / num + _Z95**2 / (4 * num**2))
    # The ends are exactly 0 and 1 there; rounding would leave 1e-17.
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == num else min(centre + half, 1.0)
    return Interval(share, low, high)


def bootstrap_mean(values: Float[Tensor, " prompt"], *, seed: int = 0) -> Interval:
    """The mean with its 95 % percentile interval over 10,000 resamples of the prompts.

    Raises:
        MmalignError: no values.
    """
    if len(values) == 0:
        message = explain("bootstrap", got="no values", expected="at least one prompt")
        raise MmalignError(message)
    wide = values.to(torch.float64)
    generator = generator_for(seed, "bootstrap")
    picked = torch.randint(len(wide), (_NUM_RESAMPLES, len(wide)), generator=generator)
    ends = wide[picked].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(float(wide.mean()), float(ends[0]), float(ends[1]))


@dataclass(frozen=True)
class Comparison:
    """Both models' pictures of the same prompts and their exact scores, in the order of the prompts."""

    prompts: Sequence[str]
    base: Sequence[Image.Image]
    aligned: Sequence[Image.Image]
    base_scores: Sequence[Score]
    aligned_scores: Sequence[Score]

    def means(self, axis: str) -> tuple[float, float]:
        """Mean of one of `AXES` for base and aligned."""
        base, aligned = (_axis(scores, axis) for scores in (self.base_scores, self.aligned_scores))
        return float(base.mean()), float(aligned.mean())

    def differences(self, axis: str = "total") -> Float[Tensor, " prompt"]:
        """Aligned minus base on one of `AXES`, per prompt, float64."""
        return _axis(self.aligned_scores, axis) - _axis(self.base_scores, axis)

    def gain(self, axis: str = "total") -> Interval:
        """Mean of `differences` with its paired bootstrap interval."""
        return bootstrap_mean(self.differences(axis))

    def outcomes(self) -> tuple[int, int, int]:
        """Prompts won, tied and lost by the aligned model on the total reward."""
        change = self.differences()
        won, lost = int((change > 0).sum()), int((change < 0).sum())
        return won, len(change) - won - lost, lost

    def win_rate(self) -> Interval:
        """Share of prompts won by the aligned model, ties counting half, with Wilson's interval."""
        won, tied, _ = self.outcomes()
        return wilson_interval(won + 0.5 * tied, len(self.prompts))

    def ranked(self) -> list[int]:
        """Numbers of the prompts from the largest gain in total reward to the largest loss."""
        change = self.differences().tolist()
        return sorted(range(len(change)), key=lambda index: (-change[index], index))


def _axis(scores: Sequence[Score], axis: str) -> Float[Tensor, " prompt"]:
    return torch.tensor([float(getattr(score, axis)) for score in scores], dtype=torch.float64)

"""How small a difference a number of prompts can show: power of paired comparisons."""

import math
from dataclasses import dataclass

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.inputs import Values, as_vector
from mmalign.evals.statistics.proportions import normal_quantile
from mmalign.evals.statistics.results import Result, shown

__all__ = [
    "Power",
    "detectable_difference",
    "detectable_win_rate",
    "power_of",
    "power_report",
    "required_prompts",
]


def _sum_of_quantiles(power: float, alpha: float) -> float:
    for name, share in (("power", power), ("alpha", alpha)):
        if not 0.0 < share < 1.0:
            raise ConfigError(explain(f"power analysis {name}", got=share, expected="a number in (0, 1)"))
    return normal_quantile(1.0 - alpha / 2.0) + normal_quantile(power)


def _require(where: str, std: float | int, num_prompts: int) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise ConfigError(explain(where, got=std, expected="a standard deviation >= 0"))
    if num_prompts < 1:
        raise ConfigError(explain(where, got=num_prompts, expected="at least one prompt"))


def detectable_difference(
    std: float | int, num_prompts: int, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest true mean difference that a two-sided test finds with probability `power`.

    difference = (z_(1 - alpha/2) + z_power) * std / sqrt(n)

    Args:
        std: standard deviation of the paired differences between prompts.
        num_prompts: n, independent prompts.
        power: chance of finding it.
        alpha: chance of finding a difference that is not there.

    Raises:
        ConfigError: a number outside its range.
    """
    _require("detectable_difference", std, num_prompts)
    return _sum_of_quantiles(power, alpha) * std / math.sqrt(num_prompts)


def detectable_win_rate(
    num_prompts: int, *, tie_share: float | int = 0.0, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest win rate above 1/2 (ties half) that is told from 1/2 with probability `power`.

    1/2 + (z_(1 - alpha/2) + z_power) * sqrt(1 - tie_share) / (2 sqrt(n)), at most 1. 500 prompts without ties
    tell 0.563 from 0.5.

    Args:
        num_prompts: n.
        tie_share: share of prompts that tie; they vary less.
        power: chance of finding it.
        alpha: chance of finding one that is not there.

    Raises:
        ConfigError: a number outside its range.
    """
    if not 0.0 <= tie_share <= 1.0:
        raise ConfigError(explain("detectable_win_rate tie_share", got=tie_share, expected="a share"))
    spread = 0.5 * math.sqrt(1.0 - tie_share)
    return min(1.0, 0.5 + detectable_difference(spread, num_prompts, power=power, alpha=alpha))


def required_prompts(
    difference: float | int, std: float | int, *, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Prompts needed to find a true mean difference: the inverse of `detectable_difference`.

    Raises:
        ConfigError: a difference of zero, or a number outside its range.
    """
    if not math.isfinite(difference) or difference == 0:
        message = explain("required_prompts", got=difference, expected="a difference other than 0")
        raise ConfigError(message)
    _require("required_prompts", std, 1)
    # Rounding must not ask for one prompt more than an exact square needs.
    exact = (_sum_of_quantiles(power, alpha) * std / difference) ** 2
    return max(1, math.ceil(exact * (1.0 - 1e-12)))


def power_of(difference: float | int, std: float | int, num_prompts: int, *, alpha: float = 0.05) -> float:
    """Probability that a two-sided test finds a true mean difference.

    Phi(|difference| sqrt(n) / std - z) + Phi(-|difference| sqrt(n) / std - z), z = z_(1 - alpha/2)

    Raises:
        ConfigError: a number outside its range.
    """
    _require("power_of", std, num_prompts)
    z = _sum_of_quantiles(0.5, alpha)
    if std == 0:
        return 1.0 if difference else alpha
    shift = abs(difference) * math.sqrt(num_prompts) / std
    return 0.5 * (math.erfc((z - shift) / math.sqrt(2.0)) + math.erfc((z + shift) / math.sqrt(2.0)))


@dataclass(frozen=True)
class Power(Result):
    """What the prompts of one comparison could have shown.

    Args:
        num_prompts: prompts compared.
        std: standard deviation of their paired differences.
        detectable_difference: smallest true mean difference found with the stated power.
        detectable_win_rate: smallest win rate above 1/2 found with the stated power.
        observed: the observed mean difference.
        prompts_for_observed: prompts that would find a true difference of that size; None where it is zero.
        power: the stated power.
        alpha: the stated level.
    """

    num_prompts: int
    std: float
    detectable_difference: float
    detectable_win_rate: float
    observed: float
    prompts_for_observed: int | None
    power: float
    alpha: float

    def describe(self) -> str:
        """In words, with the number of prompts that would be needed."""
        needed = self.prompts_for_observed
        more = f"; a true difference of {shown(self.observed, 4)} as observed needs {needed}"
        return (
            f"{self.num_prompts} prompts show a mean difference of {shown(self.detectable_difference, 4)} "
            f"or a win rate of {shown(self.detectable_win_rate)} with {self.power:.0%} power"
            + (more if needed is not None else "")
        )


def power_report(differences: Values, *, power: float = 0.8, alpha: float = 0.05) -> Power:
    """What one paired comparison could have shown, from its differences.

    Args:
        differences: one per prompt, first model minus second; at least two.
        power: chance of finding a difference.
        alpha: chance of finding one that is not there.

    Raises:
        ConfigError: fewer than two prompts, or NaN.
    """
    array = as_vector("power_report", differences)
    if len(array) < 2:
        message = explain("power_report", got="one prompt", expected="at least two: one has no spread")
        raise ConfigError(message)
    std, mean = float(array.std(ddof=1)), float(array.mean())
    settings = {"power": power, "alpha": alpha}
    return Power(
        num_prompts=len(array),
        std=std,
        detectable_difference=detectable_difference(std, len(array), **settings),
        detectable_win_rate=detectable_win_rate(len(array), tie_share=float((array == 0).mean()), **settings),
        observed=mean,
        prompts_for_observed=required_prompts(mean, std, **settings) if mean != 0 else None,
        **settings,
    )

"""Several rewards' values of the same samples as one number: by unit, then by mean, worst or penalised mean.

Scales of rewards differ a hundredfold, so raw values are never averaged. Either a value becomes its standing
among the candidates of its prompt (z, share of the range, rank, win probability), or the user says what each
reward's centre and spread are.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError, explain, unknown_name
from mmalign.rewards.sample import Sample

__all__ = [
    "HOWS",
    "Aggregated",
    "Rule",
    "Unit",
    "aggregate",
    "combine",
    "fractional_ranks",
    "group_numbers",
    "groups_of",
    "member_shares",
    "parse_how",
    "relative_values",
]

Unit = Literal["scaled", "z", "minmax", "rank", "win_probability"]
"""What a value becomes before members are combined; all but "scaled" look at the prompt's candidates."""

Rule = Literal["mean", "min", "penalised"]
"""How members become one number: weighted mean, worst member, mean less its variance over members."""

HOWS: Mapping[str, tuple[Rule, Unit]] = {
    rule if unit == "scaled" else f"{rule}_{unit}": (rule, unit)
    for rule in get_args(Rule)
    for unit in get_args(Unit)
}
"""Every way by its name: "mean", "min", "penalised", "mean_z", ..., "penalised_win_probability"."""


@dataclass(frozen=True)
class Aggregated:
    """One number per sample, and how far the members disagree.

    Args:
        score: NaN where a member's value is missing or nothing can be compared.
        spread: standard deviation over the members, in the unit of the score.
        alone: the sample is the only complete one of its group, and the unit needs others.
    """

    score: Float[Tensor, " sample"]
    spread: Float[Tensor, " sample"]
    alone: Bool[Tensor, " sample"]


def parse_how(how: str) -> tuple[Rule, Unit]:
    """Rule and unit of a name of `HOWS`.

    Raises:
        UnknownNameError: there is no such way.
    """
    if how not in HOWS:
        raise unknown_name("ensemble", how, HOWS)
    return HOWS[how]


def groups_of(samples: Sequence[Sample], by: str = "prompt") -> list[Hashable]:
    """What makes samples candidates of one group: their prompt, one of their extras, or nothing.

    Args:
        samples: in their order.
        by: "prompt"; "all" for one group; "extras.NAME" for that extra of every sample (text or a number).

    Raises:
        ConfigError: another `by`; a sample lacks the extra, or it is no text or number.
    """
    if by == "prompt":
        return [sample.prompt for sample in samples]
    if by == "all":
        return [0] * len(samples)
    kind, _, name = by.partition(".")
    if kind != "extras" or not name:
        raise ConfigError(explain("group", got=by, expected="prompt, all or extras.NAME"))
    return [_extra(sample, name, place) for place, sample in enumerate(samples)]


def _extra(sample: Sample, name: str, place: int) -> Hashable:
    value: Any = sample.extras.get(name)
    if not isinstance(value, (str, int, float)):
        got = f"[no {name!r}]" if value is None else type(value).__name__
        message = explain(f"samples[{place}].extras", got=got, expected=f"text or a number called {name!r}")
        raise ConfigError(message)
    return value


def group_numbers(keys: Sequence[Hashable]) -> Int[Tensor, " sample"]:
    """Equal keys as equal numbers, counted from 0 in order of appearance."""
    seen: dict[Hashable, int] = {}
    return torch.tensor([seen.setdefault(key, len(seen)) for key in keys], dtype=torch.int64)


def fractional_ranks(
    values: Float[Tensor, "sample member"], groups: Int[Tensor, " sample"]
) -> Float[Tensor, "sample member"]:
    """Rank of every value in its group: 1 is the highest, equal values share the mean of their places.

    Args:
        values: finite, higher is better.
        groups: number of each sample's group.

    Raises:
        ShapeError: other than one group number per sample.
    """
    _check(values, groups)
    group = groups.numpy()
    columns = [_column_ranks(column, group) for column in values.to(torch.float64).numpy().T]
    if not columns or not len(group):
        return torch.zeros(values.shape, dtype=torch.float64)
    return torch.from_numpy(np.stack(columns, axis=1))


def _column_ranks(column: np.ndarray, group: np.ndarray) -> np.ndarray:
    order = np.lexsort((-column, group))
    sorted_group, sorted_value = group[order], column[order]
    new_group = np.concatenate([[True], sorted_group[1:] != sorted_group[:-1]])
    new_run = new_group | np.concatenate([[True], sorted_value[1:] != sorted_value[:-1]])
    start = np.flatnonzero(new_run)
    stop = np.append(start[1:], len(column))
    run = np.cumsum(new_run) - 1
    group_start = np.flatnonzero(new_group)[np.cumsum(new_group) - 1]
    ranks = np.empty(len(column))
    ranks[order] = ((start + stop - 1) / 2)[run] - group_start + 1
    return ranks


def relative_values(
    values: Float[Tensor, "sample member"], groups: Int[Tensor, " sample"], unit: Unit
) -> Float[Tensor, "sample member"]:
    """Standing of every value among the samples of its group, one member at a time.

    z = (value - mean) / population standard deviation; 0 where all are equal
    minmax = (value - lowest) / (highest - lowest); 1/2 where all are equal
    rank = 1 for the highest, ties share the mean rank (lower is better)
    win_probability = (opponents it beats + half of those it ties with) / opponents

    Args:
        values: finite, higher is better, at least two samples in every group.
        groups: number of each sample's group.
        unit: which of the four.

    Raises:
        ShapeError: other than one group number per sample.
        ConfigError: unit "scaled" compares nothing.
    """
    _check(values, groups)
    values = values.to(torch.float64)
    if unit in ("rank", "win_probability"):
        ranks = fractional_ranks(values, groups)
        # A rank counts who is above, ties half: 1 + beaten by + ties / 2.
        return ranks if unit == "rank" else 1.0 - (ranks - 1.0) / (_sizes(groups) - 1.0).unsqueeze(1)
    place = groups.unsqueeze(1).expand_as(values)
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    empty = values.new_zeros(num_groups, values.shape[1])
    lowest = empty.scatter_reduce(0, place, values, "amin", include_self=False).gather(0, place)
    highest = empty.scatter_reduce(0, place, values, "amax", include_self=False).gather(0, place)
    equal = lowest == highest  # the mean of equal numbers may differ from them by rounding
    if unit == "minmax":
        return torch.where(equal, 0.5, (values - lowest) / torch.where(equal, 1.0, highest - lowest))
    if unit != "z":
        raise ConfigError(
            explain("relative_values unit", got=unit, expected="z, minmax, rank or win_probability")
        )
    centred = values - empty.scatter_reduce(0, place, values, "mean", include_self=False).gather(0, place)
    variance = empty.scatter_reduce(0, place, centred.square(), "mean", include_self=False).gather(0, place)
    return torch.where(equal, 0.0, centred / torch.where(equal, 1.0, variance).sqrt())


def _sizes(groups: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    return torch.bincount(groups)[groups].to(torch.float64)


def _check(values: Tensor, groups: Tensor) -> None:
    if groups.shape != values.shape[:1]:
        got = f"[{len(groups)} groups for {len(values)} samples]"
        raise ShapeError(explain("aggregation groups", got=got, expected="one group number per sample"))


def aggregate(
    values: Float[Tensor, "sample member"],
    groups: Int[Tensor, " sample"],
    *,
    how: str = "mean_win_probability",
    weights: Sequence[float] | None = None,
    penalty: float = 1.0,
) -> Aggregated:
    """One number per sample from the members' values, and their disagreement.

    mean = sum of w_m u_m; min = the worst u_m; penalised = mean - penalty * sum of w_m (u_m - mean)^2

    u are the values in the unit of `how`, w the weights divided by their sum. A sample with a missing value
    is left out: the others are compared as if it were not there.

    Args:
        values: higher is better, NaN where a member failed; already scaled when the unit is "scaled".
        groups: number of each sample's group, from `group_numbers`.
        how: a name of `HOWS`. With unit "rank" the score is a rank: lower is better, worst is largest.
        weights: one per member, not negative; None counts all alike. They do not enter "min" beyond leaving
            out members of weight 0.
        penalty: lambda of "penalised", >= 0.

    Raises:
        UnknownNameError: there is no such way.
        ConfigError: weights or penalty out of range.
        ShapeError: other than one group number per sample.

    Source: 2310.02743 (worst case, and mean less variance, over members of one scale); mean ranks, wins and
    z-scores over rewards as in the evaluation of candidate pools for preference pairs.
    """
    rule, unit = parse_how(how)
    _check(values, groups)
    share = member_shares(weights, values.shape[1])
    if not (math.isfinite(penalty) and penalty >= 0):
        raise ConfigError(explain("ensemble penalty", got=penalty, expected="a number >= 0"))
    score = torch.full((len(values),), torch.nan, dtype=torch.float64)
    spread, alone = score.clone(), torch.zeros(len(values), dtype=torch.bool)
    complete = torch.isfinite(values).all(dim=1)
    kept = complete.nonzero().squeeze(1)
    if unit != "scaled" and len(kept):
        lone = _sizes(groups[kept]) < 2
        alone[kept[lone]] = True
        kept = kept[~lone]
    if not len(kept):
        return Aggregated(score, spread, alone)
    units = values[kept].to(torch.float64)
    if unit != "scaled":
        units = relative_values(units, groups[kept], unit)
    score[kept], spread[kept] = combine(units, share, rule, penalty, sign=-1.0 if unit == "rank" else 1.0)
    return Aggregated(score, spread, alone)


def combine(
    units: Float[Tensor, "sample member"],
    share: Float[Tensor, " member"],
    rule: Rule,
    penalty: float,
    sign: float = 1.0,
) -> tuple[Float[Tensor, " sample"], Float[Tensor, " sample"]]:
    """(Score, spread) of values that share a unit; keeps gradients. `sign` is -1 where lower is better."""
    mean = (units * share).sum(dim=1)
    variance = ((units - mean.unsqueeze(1)).square() * share).sum(dim=1)
    spread = variance.detach().sqrt()
    if rule == "mean":
        return mean, spread
    if rule == "penalised":
        return mean - sign * penalty * variance, spread
    counted = units[:, share > 0]
    return sign * (sign * counted).amin(dim=1), spread


def member_shares(weights: Sequence[float] | None, members: int) -> Float[Tensor, " member"]:
    """Weights divided by their sum; all alike when there are none.

    Raises:
        ConfigError: another number of them, negative ones, or none above 0.
    """
    given = [1.0] * members if weights is None else [float(weight) for weight in weights]
    bad = [weight for weight in given if not (math.isfinite(weight) and weight >= 0)]
    if len(given) != members or bad or sum(given) <= 0:
        expected = f"{members} numbers >= 0, one per member, not all 0"
        raise ConfigError(explain("ensemble weights", got=f"{given}", expected=expected))
    share = torch.tensor(given, dtype=torch.float64)
    return share / share.sum()

"""What a preference pays for: how measurable factors of pictures and texts go with being preferred.

For every factor f, tau(f) says how often the preferred thing has more of it. Compared between people, a model
as a judge and the same model as a generator, the taus show which factors a model over- or underpays, and
whether it judges closer to people than it writes.

Source: PROFILE, "Uncovering Factor Level Preferences to Improve Human-Model Alignment" (arXiv 2410.06965).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.shares import clustered_mean, clustered_share
from mmalign.evals.statistics.results import Interval, Result, shown

__all__ = ["FactorTau", "Gap", "Profile", "agreement", "factor_differences", "generation_gap", "profile"]


@dataclass(frozen=True)
class FactorTau(Result):
    """How one factor goes with preference.

    Args:
        factor: its name.
        tau: in [-1, 1]; 1 = the preferred one always has more of it.
        num_concordant: pairs whose preferred one has more.
        num_discordant: pairs whose preferred one has less.
        num_tied: pairs with equal values.
        num_missing: pairs where a value is no number.
    """

    factor: str
    tau: Interval
    num_concordant: int
    num_discordant: int
    num_tied: int
    num_missing: int

    def describe(self) -> str:
        """One line."""
        pairs = self.num_concordant + self.num_discordant
        left = f"{self.num_tied} tied, {self.num_missing} missing"
        return f"{self.factor}: tau {self.tau}, {pairs} pairs, {left}"


@dataclass(frozen=True)
class Profile(Result):
    """The taus of one source of preferences.

    Args:
        name: whose preferences: "human", "pickscore", "llava as a judge".
        factors: one entry per factor, in the order given.
        num_pairs: pairs with a preference.
        num_undecided: pairs that were ties or had no preference; they are left out.
    """

    name: str
    factors: tuple[FactorTau, ...]
    num_pairs: int
    num_undecided: int

    def taus(self) -> dict[str, float]:
        """Factor to tau."""
        return {entry.factor: entry.tau.value for entry in self.factors}

    def ranked(self) -> list[FactorTau]:
        """Factors by the size of tau, greatest first; factors without a tau last."""
        return sorted(self.factors, key=lambda f: (math.isnan(f.tau.value), -abs(f.tau.value)))

    def describe(self) -> str:
        """A line per factor, greatest first."""
        lines = [f"{self.name}: {self.num_pairs} pairs, {self.num_undecided} undecided"]
        return "\n".join(lines + [f"  {entry.describe()}" for entry in self.ranked()])


def factor_differences(
    first: Sequence[Mapping[str, float | int]],
    second: Sequence[Mapping[str, float | int]],
    factors: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], Float[Tensor, "pair factor"]]:
    """Names of the factors and first less second for every pair, NaN where one of them lacks the factor.

    Args:
        first: factors of the first thing of each pair.
        second: factors of the second.
        factors: which, in order; None = all that occur, in the order they occur.

    Raises:
        ShapeError: different numbers of things.
    """
    if len(first) != len(second):
        got = f"{len(first)} and {len(second)}"
        raise ShapeError(explain("factor_differences", got=got, expected="as many of both"))
    occurring = dict.fromkeys(name for row in [*first, *second] for name in row)
    names = tuple(factors if factors is not None else occurring)
    rows = [
        [float(a.get(name, math.nan)) - float(b.get(name, math.nan)) for name in names]
        for a, b in zip(first, second, strict=True)
    ]
    return names, torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(names))


def profile(
    differences: Float[Tensor, "pair factor"],
    preference: Float[Tensor, " pair"],
    *,
    factors: Sequence[str],
    name: str = "",
    clusters: Sequence[Hashable] | None = None,
    ties: Literal["dropped", "counted"] = "dropped",
) -> Profile:
    """The tau of every factor.

    tau = (C - D) / (C + D), with ties counted (C - D) / (C + D + T); C, D, T = pairs in which the preferred
    thing has more of the factor, less, as much. Undecided pairs are left out.

    Args:
        differences: factor of the first thing less that of the second (`factor_differences`).
        preference: greater than 0 where the first is preferred, less where the second, 0 or NaN = undecided.
            Scores may be differences of rewards; `verdict_value(...) - 0.5` makes them from verdicts.
        factors: names of the columns.
        name: whose preferences.
        clusters: what is not independent (prompts), one per pair; None = every pair on its own.
        ties: whether pairs with equal values count in the denominator. A factor that rarely differs then has
            a small tau; with ties dropped it says how it goes where it does differ.

    Raises:
        ShapeError: names, preferences or clusters do not fit the differences.
    """
    count = differences.shape[0]
    groups = list(range(count)) if clusters is None else list(clusters)
    if differences.shape[1] != len(factors) or len(groups) != count:
        got = f"[{count}, {differences.shape[1]}] with {len(factors)} factors and {len(groups)} clusters"
        raise ShapeError(explain("profile differences", got=got, expected="[pair, factor]"))
    side = torch.nan_to_num(preference.detach().double().sign())
    values = differences.detach().double()
    # The sign of NaN is 0 in torch, which would count as a tie.
    agrees = values.sign() * side.unsqueeze(1) + torch.where(values.isnan(), values, 0.0)
    decided = [place for place in range(count) if side[place] != 0]
    columns = agrees[decided].T.tolist()
    kept = [groups[place] for place in decided]
    found = tuple(_tau(factor, column, kept, ties) for factor, column in zip(factors, columns, strict=True))
    return Profile(name, found, len(decided), count - len(decided))


def _tau(factor: str, agrees: Sequence[float], clusters: Sequence[Hashable], ties: str) -> FactorTau:
    """The tau from 1 (agrees), -1, 0 (tied) and NaN (missing)."""
    pairs = zip(agrees, clusters, strict=True)
    known = [(value, cluster) for value, cluster in pairs if not math.isnan(value)]
    used = [(value, cluster) for value, cluster in known if value != 0 or ties == "counted"]
    values, groups = [value for value, _ in used], [cluster for _, cluster in used]
    if ties == "dropped":  # tau is twice the share of agreeing pairs less one, and so are the ends
        share = clustered_share([(value + 1) / 2 for value in values], groups)
        low = None if share.low is None else 2 * share.low - 1
        high = None if share.high is None else 2 * share.high - 1
        tau = Interval(2 * share.value - 1, low, high, share.confidence, share.method)
    else:
        tau = clustered_mean(values, groups)
    return FactorTau(
        factor,
        tau,
        num_concordant=sum(value > 0 for value, _ in known),
        num_discordant=sum(value < 0 for value, _ in known),
        num_tied=sum(value == 0 for value, _ in known),
        num_missing=len(agrees) - len(known),
    )


# -------------------------------------------------------------------------------- profiles compared


@dataclass(frozen=True)
class Gap(Result):
    """How much closer to people a model judges than it generates.

    Args:
        generation: agreement of the generator's profile with people's.
        judgement: agreement of the judge's profile with people's.
        gap: judgement less generation; above 0 = it judges more like people than it writes.
        by_factor: factor to |tau_generator - tau_human| - |tau_judge - tau_human|, above 0 the same.
        measure: how profiles were compared.
    """

    generation: float
    judgement: float
    gap: float
    by_factor: Mapping[str, float]
    measure: str

    def describe(self) -> str:
        """The gap and the factors it comes from."""
        worst = sorted(self.by_factor.items(), key=lambda entry: -entry[1])[:3]
        named = ", ".join(f"{factor} {shown(value)}" for factor, value in worst)
        return (
            f"generation-discrimination gap {shown(self.gap)} ({self.measure} with people: judging "
            f"{shown(self.judgement)}, generating {shown(self.generation)}); widest in {named}"
        )


Measure = Literal["kendall", "pearson", "spearman"]


def agreement(one: Profile, other: Profile, *, measure: Measure = "kendall") -> float:
    """How alike two profiles are, in [-1, 1]; NaN with fewer than two common factors or one without spread.

    kendall: tau-b of the factors' order, pearson: correlation of the taus, spearman: of their ranks. Factors
    without a tau in one of the profiles are left out.

    Raises:
        ConfigError: the profiles have no factor in common.
    """
    mine, theirs = one.taus(), other.taus()
    common = [name for name in mine if name in theirs]
    if not common:
        message = explain("agreement", got=f"{list(mine)} and {list(theirs)}", expected="a common factor")
        raise ConfigError(message)
    kept = [name for name in common if not (math.isnan(mine[name]) or math.isnan(theirs[name]))]
    x = torch.tensor([mine[name] for name in kept], dtype=torch.float64)
    y = torch.tensor([theirs[name] for name in kept], dtype=torch.float64)
    if measure == "kendall":
        return _cosine(*(_signs(values) for values in (x, y)))
    if measure == "spearman":
        x, y = _ranks(x), _ranks(y)
    return _cosine(x - x.mean(), y - y.mean())


def _signs(values: Float[Tensor, " factor"]) -> Float[Tensor, " comparison"]:
    return (values.unsqueeze(0) - values.unsqueeze(1)).sign().flatten()


def _ranks(values: Float[Tensor, " factor"]) -> Float[Tensor, " factor"]:
    """Ranks from 0; equal values share their mean rank."""
    below = (values.unsqueeze(0) < values.unsqueeze(1)).double().sum(dim=1)
    equal = (values.unsqueeze(0) == values.unsqueeze(1)).double().sum(dim=1)
    return below + (equal - 1) / 2


def _cosine(x: Float[Tensor, " entry"], y: Float[Tensor, " entry"]) -> float:
    """The cosine of two vectors; NaN where one is zero."""
    sizes = float(x.norm() * y.norm())
    return float(x @ y) / sizes if len(x) > 1 and sizes > 0 else math.nan


def generation_gap(
    human: Profile, *, generator: Profile, judge: Profile, measure: Measure = "kendall"
) -> Gap:
    """The generation-discrimination gap of a model.

    Args:
        human: profile of people's preferences.
        generator: profile of the model's own graded answers: it writes one answer to be good and one to be
            bad, or several whose own likelihoods rank them, and what it meant to be better is preferred.
        judge: profile of the model's verdicts on the pairs people judged.
        measure: how profiles are compared.
    """
    generation = agreement(generator, human, measure=measure)
    judgement = agreement(judge, human, measure=measure)
    people, writes, judges = human.taus(), generator.taus(), judge.taus()
    by_factor = {
        name: abs(writes[name] - tau) - abs(judges[name] - tau)
        for name, tau in people.items()
        if name in writes and name in judges
    }
    return Gap(generation, judgement, judgement - generation, by_factor, measure)

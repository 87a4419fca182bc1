"""The rules by which published benchmarks count ties, and accuracy under each of them.

What has to be chosen (tie thresholds, the scale that turns differences into probabilities) is chosen on other
pairs: a validation set, or, without one, the other half of the prompts. The one exception is the rule
`videoalign`, whose published script chooses on the test pairs; it says so beside its number.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from mmalign.errors import unknown_name
from mmalign.evals.labelled_rows import LabelledRow, Pairs
from mmalign.evals.statistics import (
    RULES,
    Interval,
    Resampling,
    Result,
    bootstrap_mean,
    bootstrap_of_means,
    calibrated_thresholds,
    fit_beta,
    pair_credit,
    pair_probability,
    ranking_agreement,
    threshold_search,
    videoalign_accuracy_with_ties,
)
from mmalign.evals.statistics.bootstrap import DEFAULT

__all__ = [
    "DESCRIPTIONS",
    "RULE_NAMES",
    "Credit",
    "Labelled",
    "Learnt",
    "RuleAccuracy",
    "choices",
    "pair_credits",
    "prompt_sums",
    "ratio_of_means",
    "rule_accuracy",
]

DESCRIPTIONS: Mapping[str, str] = {
    "half": "human ties dropped, a predicted tie is half right (RewardBench style)",
    "pickapic": "human ties kept, threshold of |p1 - p0| from other pairs, a one-sided tie is half right",
    "imagereward": "human ties dropped, a predicted tie is wrong; also VideoGen-RewardBench without ties",
    "with_ties": "tie calibration: human ties kept, threshold chosen on other pairs (arXiv 2305.14324)",
    "videoalign": "with_ties, its threshold chosen on the test pairs as VideoGen-RewardBench does: too good",
    "hpdv2": "1 - inversions / (n choose 2) per row: human ties are right, predicted ones broken by position",
}
"""Tie rules and what they count."""

RULE_NAMES = tuple(DESCRIPTIONS)

_PICKAPIC_THRESHOLDS = tuple(step / 10 for step in range(11))

Credit = Float64[np.ndarray, " pair"]


@dataclass(frozen=True)
class Labelled:
    """Labelled pairs with a reward's scores.

    Args:
        pairs: labels and places.
        rows: the rows that the pairs come from.
        values: one number per candidate, higher is better; NaN = failed.
    """

    pairs: Pairs
    rows: Sequence[LabelledRow]
    values: Float64[np.ndarray, " candidate"]

    @property
    def difference(self) -> Credit:
        """The first candidate's score less the second's."""
        return self.pairs.difference(self.values)


@dataclass(frozen=True)
class RuleAccuracy(Result):
    """Accuracy under one tie rule.

    Args:
        rule: its name.
        pooled: over all pairs that count (for `hpdv2` over rows); the interval resamples prompts.
        by_prompt: mean of the prompts' accuracies.
        pairs: pairs (rows) that count.
        predicted_ties: pairs that the reward calls equal, among them.
        thresholds: of a tie, one per choice; empty where a tie is a difference of exactly 0.
        chosen_on: where thresholds come from.
    """

    rule: str
    pooled: Interval
    by_prompt: Interval
    pairs: int
    predicted_ties: int
    thresholds: tuple[float, ...] = ()
    chosen_on: str = ""

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.rule}: {self.pooled} over {self.pairs} pairs, {self.predicted_ties} predicted ties; "
            f"by prompt {self.by_prompt}"
        )


@dataclass(frozen=True)
class Learnt:
    """What other pairs decide.

    Args:
        used_on: pairs it is used on.
        beta: scale of differences in P(first preferred) = sigmoid(beta * difference).
        pickapic: threshold of a tie in |P(first) - P(second)|.
        with_ties: threshold of a tie in |difference|.
    """

    used_on: Bool[np.ndarray, " pair"]
    beta: float
    pickapic: float
    with_ties: float


def _learn(
    human: Credit, gap: Credit, used_on: Bool[np.ndarray, " test_pair"], scale: float | None
) -> Learnt | None:
    """Thresholds and scale from some pairs; None where they decide nothing."""
    known = ~np.isnan(gap)
    human, gap = human[known], gap[known]
    if len(gap) == 0 or not gap.any():
        return None
    beta = fit_beta(human, gap)
    found = threshold_search(
        human, _probability_gap(gap, scale or beta), _PICKAPIC_THRESHOLDS, RULES["pickapic"]
    )
    ties = threshold_search(human, gap, calibrated_thresholds(gap))
    return Learnt(used_on, beta, found.best_threshold, ties.best_threshold)


def _probability_gap(gap: Credit, scale: float) -> Credit:
    """P(first) - P(second), NaN where a score is missing."""
    known = ~np.isnan(gap)
    result = np.full(len(gap), np.nan)
    if known.any():
        shares = pair_probability(gap[known], np.zeros(int(known.sum())), scale=scale)
        result[known] = shares[:, 0] - shares[:, 1]
    return result


def _half(prompt: str) -> int:
    """Which half of the prompts one belongs to; the same on every machine and in every data set."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[0] & 1


def choices(
    test: Labelled, validation: Labelled | None, scale: float | None = None
) -> tuple[list[Learnt], str]:
    """What other pairs decide about `test`, and which pairs those are, in words.

    Args:
        test: pairs that are judged.
        validation: pairs that decide; None: each half of the prompts decides for the other.
        scale: inverse temperature of `pickapic`'s probabilities; None: the fitted beta.

    Returns:
        Nothing where no two scores differ.
    """
    if validation is not None:
        everywhere = np.ones(len(test.pairs), dtype=bool)
        found = _learn(validation.pairs.human, validation.difference, everywhere, scale)
        return ([] if found is None else [found]), "validation"
    half = np.array([_half(prompt) for prompt in test.pairs.prompts])
    learnt = [
        _learn(test.pairs.human[half != side], test.difference[half != side], half == side, scale)
        for side in (0, 1)
    ]
    complete = [choice for choice in learnt if choice is not None]
    return (complete if len(complete) == 2 else []), "the other half of the prompts"


# ---------------------------------------------------------------------------------------------- the rules


def ratio_of_means(means: Float64[np.ndarray, "resample column"]) -> Float64[np.ndarray, " resample"]:
    """First column over second; NaN where the second is 0."""
    share = np.full(len(means), np.nan)
    np.divide(means[:, 0], means[:, 1], out=share, where=means[:, 1] > 0)
    return share


def prompt_sums(columns: Sequence[np.ndarray], prompts: Sequence[Hashable]) -> np.ndarray:
    """Sums of every column over the rows of each prompt."""
    numbers: dict[Hashable, int] = {}
    places = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=np.int64)
    sums = [np.bincount(places, weights=column, minlength=len(numbers)) for column in columns]
    return np.stack(sums, axis=1)


def _rule(
    name: str,
    credit: Credit,
    prompts: Sequence[Hashable],
    how: Resampling,
    *,
    predicted_ties: int = 0,
    thresholds: tuple[float, ...] = (),
    chosen_on: str = "",
) -> RuleAccuracy | None:
    counts = ~np.isnan(credit)
    if not counts.any():
        return None
    sums = prompt_sums([np.where(counts, credit, 0.0), counts.astype(np.float64)], prompts)
    return RuleAccuracy(
        rule=name,
        pooled=bootstrap_of_means(sums[sums[:, 1] > 0], ratio_of_means, how),
        by_prompt=bootstrap_mean(credit, how, prompts=prompts),
        pairs=int(counts.sum()),
        predicted_ties=predicted_ties,
        thresholds=thresholds,
        chosen_on=chosen_on,
    )


def _chosen_credit(name: str, test: Labelled, learnt: Sequence[Learnt], scale: float | None) -> Credit:
    """Each pair's worth under thresholds from elsewhere, less the half-decided (NaN left out)."""
    human, gap = test.pairs.human, test.difference
    credit = np.full(len(human), np.nan)
    for choice in learnt:
        here = choice.used_on
        if name == "pickapic":
            read, threshold = _probability_gap(gap[here], scale or choice.beta), choice.pickapic
        else:
            read, threshold = gap[here], choice.with_ties
        credit[here] = pair_credit(human[here], read, RULES[name], threshold=threshold)
    return credit


def _predicted_ties(name: str, test: Labelled, learnt: Sequence[Learnt], scale: float | None) -> int:
    gap = test.difference
    count = 0
    for choice in learnt:
        read = gap[choice.used_on]
        if name == "pickapic":
            read = _probability_gap(read, scale or choice.beta)
        limit = choice.pickapic if name == "pickapic" else choice.with_ties
        count += int((np.abs(read) <= limit).sum())
    return count


def pair_credits(
    name: str,
    test: Labelled,
    validation: Labelled | None = None,
    *,
    scale: float | None = None,
) -> Credit:
    """Each pair's worth under a rule: 1 right, 0 wrong, NaN left out.

    Args:
        name: of the rule; `hpdv2` and `videoalign`, which give no worth to single pairs, count as `half`.
        test: pairs with scores.
        validation: as in `choices`.
        scale: as in `choices`.

    Raises:
        UnknownNameError: no such rule.
    """
    if name not in RULE_NAMES:
        raise unknown_name("tie rule", name, RULE_NAMES)
    if name in ("pickapic", "with_ties"):
        return _chosen_credit(name, test, choices(test, validation, scale)[0], scale)
    rule = RULES["imagereward" if name == "imagereward" else "half"]
    return pair_credit(test.pairs.human, test.difference, rule)


def rule_accuracy(
    name: str,
    test: Labelled,
    learnt: Sequence[Learnt],
    chosen_on: str,
    scale: float | None = None,
    how: Resampling = DEFAULT,
) -> RuleAccuracy | None:
    """Accuracy of a reward under one rule; None where nothing counts or nothing could be chosen.

    Args:
        name: of the rule, one of `RULE_NAMES`.
        test: pairs with scores.
        learnt: what `choices` found.
        chosen_on: where, in words.
        scale: as in `choices`.
        how: the bootstrap over prompts.
    """
    prompts, gap, human = test.pairs.prompts, test.difference, test.pairs.human
    if name == "hpdv2":
        return _inversions(test, how)
    if name in ("pickapic", "with_ties"):
        if not learnt:
            return None
        return _rule(
            name,
            _chosen_credit(name, test, learnt, scale),
            prompts,
            how,
            predicted_ties=_predicted_ties(name, test, learnt, scale),
            thresholds=tuple(getattr(choice, name) for choice in learnt),
            chosen_on=chosen_on,
        )
    if name == "videoalign":
        return _as_published(test, how)
    credit = pair_credit(human, gap, RULES[name])
    ties = int(((gap == 0) & ~np.isnan(credit)).sum())
    return _rule(name, credit, prompts, how, predicted_ties=ties)


def _as_published(test: Labelled, how: Resampling) -> RuleAccuracy | None:
    """VideoAlign's number; without an interval, since its threshold is chosen on the same pairs."""
    gap, human = test.difference, test.pairs.human
    known = ~np.isnan(gap)
    if not known.any():
        return None
    value = videoalign_accuracy_with_ties(human[known], gap[known])
    none = Interval(value, None, None, how.confidence, "")
    return RuleAccuracy("videoalign", none, none, int(known.sum()), 0, (), "the test pairs themselves")


def _inversions(test: Labelled, how: Resampling) -> RuleAccuracy | None:
    ranks, rewards, start = [], [], 0
    for row in test.rows:
        count = len(row.relevance)
        ranks.append([-value for value in row.relevance])
        rewards.append(test.values[start : start + count])
        start += count
    whole = [not np.isnan(values).any() for values in rewards]
    decided = [ok and len(set(rank)) > 1 for ok, rank in zip(whole, ranks, strict=True)]
    if not any(decided):
        return None
    found = ranking_agreement(ranks, rewards, Resampling(1, how.seed, how.confidence))
    kept = [row.prompt for row, ok in zip(test.rows, whole, strict=True) if ok]
    shares = np.array([share for share, ok in zip(found.per_prompt, whole, strict=True) if ok])
    ties = sum(len(values) - len(np.unique(values)) for values, ok in zip(rewards, whole, strict=True) if ok)
    return _rule("hpdv2", shares, kept, how, predicted_ties=ties)

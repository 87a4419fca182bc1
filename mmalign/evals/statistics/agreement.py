"""Does a reward rank pairs as people do? Accuracy with every rule for ties that published benchmarks use.

Two kinds of tie: people say "equal", or the reward's difference is (nearly) zero. A `TieRule` says what each
is worth; the named rules below are those of the benchmarks.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.evals.statistics.bootstrap import DEFAULT, Resampling, bootstrap_mean
from mmalign.evals.statistics.inputs import Values, as_vector, require_same_length
from mmalign.evals.statistics.results import Interval, Result, shown

__all__ = [
    "RULES",
    "Agreement",
    "TieRule",
    "agreement_by",
    "labelled_pairs",
    "pair_agreement",
    "pair_credit",
    "pair_probability",
    "quantile_buckets",
    "tie_rule",
]


@dataclass(frozen=True)
class TieRule:
    """What ties are worth.

    Args:
        keep_human_ties: whether pairs that people call equal count; a predicted tie is then right on them and
            a decision is worth `one_sided`.
        one_sided: credit where only one side, people or reward, says tie: 0 = wrong, 0.5 = half right.
        source: whose rule it is.
    """

    keep_human_ties: bool
    one_sided: float
    source: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.one_sided <= 1.0:
            expected = "a credit in [0, 1]"
            raise ConfigError(explain("TieRule one_sided", got=self.one_sided, expected=expected))


RULES: Mapping[str, TieRule] = {
    "half": TieRule(False, 0.5, "RewardBench style; the rule to use where nothing else is asked for"),
    "pickapic": TieRule(True, 0.5, "yuvalkirstain/PickScore, eval_preference_predictor.py"),
    "imagereward": TieRule(False, 0.0, "zai-org/ImageReward, test.py"),
    "without_ties": TieRule(False, 0.0, "KwaiVGI/VideoAlign, calc_accuracy.py, without ties"),
    "with_ties": TieRule(True, 0.0, "arXiv 2305.14324; VideoGen-RewardBench with ties, GenAI-Bench"),
}
"""Tie rules by name."""


def tie_rule(name: str) -> TieRule:
    """The rule called `name`.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in RULES:
        raise unknown_name("tie rule", name, RULES)
    return RULES[name]


def pair_probability(
    first: Values, second: Values, *, scale: float | int = 1.0
) -> Float64[np.ndarray, "pair side"]:
    """[P(first), P(second)] = softmax(scale * [first, second]) of every pair.

    Args:
        first: scores of the first of each pair.
        second: scores of the second.
        scale: inverse temperature, for example PickScore's exp(logit_scale) where scores are cosines.

    Raises:
        ShapeError: different numbers of scores.
        ConfigError: NaN or no scores.
    """
    one, other = as_vector("pair_probability first", first), as_vector("pair_probability second", second)
    require_same_length("pair_probability", one, second=other)
    gap = scale * (one - other)
    # 1 / (1 + e^-x) from e^-|x|, which cannot overflow.
    small = np.exp(-np.abs(gap))
    larger = 1.0 / (1.0 + small)
    smaller = small / (1.0 + small)
    return np.stack([np.where(gap >= 0, larger, smaller), np.where(gap >= 0, smaller, larger)], axis=1)


def labelled_pairs(where: str, human: Values, difference: Values) -> tuple[np.ndarray, np.ndarray]:
    """Checked labels (1, 0, -1) and differences (NaN = failed) of pairs.

    Raises:
        ShapeError: different numbers of labels and differences.
        ConfigError: other labels.
    """
    label = as_vector(f"{where} human", human)
    gap = as_vector(f"{where} difference", difference, missing_ok=True)
    require_same_length(where, label, difference=gap)
    odd = ~np.isin(label, (-1.0, 0.0, 1.0))
    if odd.any():
        message = explain(
            f"{where} human {int(odd.argmax())}",
            got=float(label[odd][0]),
            expected="1 (the first is preferred), 0 (tie) or -1 (the second)",
        )
        raise ConfigError(message)
    return label, gap


def pair_credit(
    human: Values, difference: Values, rule: TieRule, *, threshold: float | int = 0.0
) -> Float64[np.ndarray, " pair"]:
    """Each pair's worth: 1 right, 0 wrong, the rule's credit for a one-sided tie, NaN for a pair left out.

    Args:
        human: 1 where people prefer the first, -1 the second, 0 a tie.
        difference: score of the first minus that of the second; NaN = failed, does not count.
        rule: what ties are worth.
        threshold: |difference| <= threshold is a predicted tie. Below 0 nothing is: a difference of exactly 0
            is then wrong.

    Raises:
        ShapeError: different numbers of labels and differences.
        ConfigError: other labels.
    """
    label, gap = labelled_pairs("pair_credit", human, difference)
    tied = np.abs(gap) <= threshold
    predicted = np.where(tied, 0.0, np.sign(gap))
    value = np.where(predicted == label, 1.0, 0.0)
    one_sided = tied != (label == 0)
    value[one_sided] = rule.one_sided
    value[(gap == 0) & ~tied] = 0.0
    value[np.isnan(gap) | ((label == 0) & (not rule.keep_human_ties))] = np.nan
    return value


@dataclass(frozen=True)
class Agreement(Result):
    """How often a reward agrees with people.

    Args:
        accuracy: mean credit over prompts' means where prompts are given, over pairs otherwise, with a
            bootstrap interval.
        pooled: mean credit over all pairs.
        pairs: pairs that count.
        human_ties: pairs that people call equal, counted or not.
        predicted_ties: pairs whose difference is within the threshold, among those that count.
        failed: pairs without a score (NaN).
        kendall: (right - wrong) / (right + wrong) over pairs decided by both; NaN where there are none.
    """

    accuracy: Interval
    pooled: float
    pairs: int
    human_ties: int
    predicted_ties: int
    failed: int
    kendall: float

    def describe(self) -> str:
        """`accuracy 0.701 (0.662 to 0.739) over 500 pairs, 12 predicted ties, 30 human ties, 1 failed`."""
        return (
            f"accuracy {self.accuracy.describe()} over {self.pairs} pairs, "
            f"{self.predicted_ties} predicted ties, {self.human_ties} human ties, {self.failed} failed; "
            f"Kendall {shown(self.kendall)}"
        )


def pair_agreement(
    human: Values,
    difference: Values,
    rule: TieRule = RULES["half"],
    *,
    threshold: float | int = 0.0,
    prompts: Sequence[Hashable] | np.ndarray | None = None,
    how: Resampling = DEFAULT,
) -> Agreement:
    """Accuracy of a reward on labelled pairs under one tie rule.

    Args:
        human: 1 where people prefer the first, -1 the second, 0 a tie.
        difference: score of the first minus that of the second; NaN = failed.
        rule: what ties are worth; `RULES` has those of the benchmarks.
        threshold: |difference| up to this is a predicted tie. Choose it on other pairs (`threshold_search`).
        prompts: of each pair; pairs of one prompt are then averaged first and resampled together.
        how: the bootstrap.

    Raises:
        ShapeError: different numbers of labels and differences.
        ConfigError: other labels, or no pair that counts.
    """
    label, gap = labelled_pairs("agreement", human, difference)
    value = pair_credit(label, gap, rule, threshold=threshold)
    counts = ~np.isnan(value)
    if not counts.any():
        message = explain(
            "agreement", got="no pair that counts", expected="at least one decided pair with scores"
        )
        raise ConfigError(message)
    names = list(range(len(label))) if prompts is None else prompts
    both = (label != 0) & (np.abs(gap) > max(threshold, 0.0))
    product = label[both] * np.sign(gap[both])
    return Agreement(
        accuracy=bootstrap_mean(value, how, prompts=names),
        pooled=float(value[counts].mean()),
        pairs=int(counts.sum()),
        human_ties=int((label == 0).sum()),
        predicted_ties=int((np.abs(gap[counts]) <= threshold).sum()),
        failed=int(np.isnan(gap).sum()),
        kendall=float(product.mean()) if len(product) else float("nan"),
    )


def agreement_by(
    groups: Sequence[Hashable],
    human: Values,
    difference: Values,
    rule: TieRule = RULES["half"],
    *,
    threshold: float | int = 0.0,
    prompts: Sequence[Hashable] | None = None,
    how: Resampling = DEFAULT,
) -> dict[Hashable, Agreement | None]:
    """`pair_agreement` of every group of pairs: generator pairs, margin buckets, prompt lengths, subsets.

    Args:
        groups: the group of each pair.
        human: as in `pair_agreement`.
        difference: as in `pair_agreement`.
        rule: as in `pair_agreement`.
        threshold: as in `pair_agreement`.
        prompts: as in `pair_agreement`.
        how: as in `pair_agreement`.

    Returns:
        Groups in order of first appearance; None for one without a pair that counts. The mean of their
        `pooled` is the average over subsets that RewardBench reports.

    Raises:
        ShapeError: different numbers of groups, labels and differences.
        ConfigError: other labels.
    """
    label, gap = labelled_pairs("agreement_by", human, difference)
    require_same_length("agreement_by", label, groups=groups)
    found: dict[Hashable, Agreement | None] = {}
    for group in dict.fromkeys(groups):
        mine = np.array([other == group for other in groups])
        if np.isnan(pair_credit(label[mine], gap[mine], rule, threshold=threshold)).all():
            found[group] = None
            continue
        names = None
        if prompts is not None:
            names = [prompt for prompt, kept in zip(prompts, mine, strict=True) if kept]
        found[group] = pair_agreement(
            label[mine], gap[mine], rule, threshold=threshold, prompts=names, how=how
        )
    return found


def quantile_buckets(values: Values, num_buckets: int = 4) -> list[str]:
    """The name of the quantile bucket of each value, `[0.12, 0.5)`, for `agreement_by`.

    Args:
        values: |difference|, prompt length, ...
        num_buckets: >= 1; fewer come back where many values are equal.

    Raises:
        ConfigError: no buckets, no values, NaN.
    """
    array = as_vector("quantile_buckets", values)
    if num_buckets < 1:
        raise ConfigError(explain("quantile_buckets", got=num_buckets, expected="at least one bucket"))
    edges = np.unique(np.quantile(array, np.linspace(0.0, 1.0, num_buckets + 1)))
    places = np.clip(np.searchsorted(edges, array, side="right") - 1, 0, max(len(edges) - 2, 0))
    upper = edges[1:] if len(edges) > 1 else edges
    closing = ["]" if place == len(upper) - 1 else ")" for place in range(len(upper))]
    names = [f"[{edges[place]:.4g}, {upper[place]:.4g}{closing[place]}" for place in range(len(upper))]
    return [names[place] for place in places]

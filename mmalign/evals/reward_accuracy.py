"""How good is a reward? What labelled pairs say: accuracy by each tie rule, calibration, where it fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, unknown_name
from mmalign.evals.accuracy_groups import Breakdown, breakdowns
from mmalign.evals.statistics import (
    Interval,
    Resampling,
    Result,
    RewardCalibration,
    bootstrap_mean,
    bootstrap_of_means,
    kendall_tau_b,
    reward_calibration,
)
from mmalign.evals.statistics.bootstrap import DEFAULT
from mmalign.evals.tie_rules import (
    RULE_NAMES,
    Labelled,
    Learnt,
    RuleAccuracy,
    choices,
    pair_credits,
    prompt_sums,
    ratio_of_means,
    rule_accuracy,
)

__all__ = ["RewardAccuracy", "measure_accuracy"]


@dataclass(frozen=True)
class RewardAccuracy(Result):
    """Everything that labelled pairs say about one reward.

    Args:
        name: of the reward.
        rules: rule to accuracy; None where it could not be computed.
        tau_b: Kendall's, over pairs: (concordant - discordant) / sqrt(decided by people x by the reward).
        tau_b_of_rankings: mean over rankings of tau-b of scores and human order; None where rows are pairs.
        calibration: of sigmoid(beta x difference), beta from other pairs; None where it could not be fitted.
        betas: the fitted scales, one per choice.
        breakdowns: accuracy by groups, under the first rule that was asked for.
        failed_pairs: pairs without both scores.
        human_ties: pairs that people call equal.
        notes: what a reader must know, in words.
    """

    name: str
    rules: Mapping[str, RuleAccuracy | None]
    tau_b: Interval
    tau_b_of_rankings: Interval | None
    calibration: RewardCalibration | None
    betas: tuple[float, ...]
    breakdowns: tuple[Breakdown, ...]
    failed_pairs: int
    human_ties: int
    notes: tuple[str, ...]

    def describe(self) -> str:
        """A line per rule, then the rest."""
        lines = [f"{self.name}:"]
        lines += [f"  {found}" for found in self.rules.values() if found is not None]
        lines.append(f"  tau-b {self.tau_b}")
        lines += [f"  {self.calibration}"] if self.calibration is not None else []
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def measure_accuracy(
    name: str,
    test: Labelled,
    validation: Labelled | None = None,
    *,
    rules: Sequence[str] = RULE_NAMES,
    by: Sequence[str] = (),
    scale: float | None = None,
    how: Resampling = DEFAULT,
) -> RewardAccuracy:
    """Everything that labelled pairs say about one reward.

    Args:
        name: of the reward.
        test: pairs with its scores.
        validation: other pairs with its scores, for thresholds and beta; None: each half of the prompts is
            judged with what the other half chose.
        rules: the first is the one of breakdowns.
        by: columns to break accuracy down by, besides prompt length, margin, generators and users.
        scale: inverse temperature of `pickapic`'s probabilities; None: the fitted beta.
        how: the bootstrap over prompts.

    Raises:
        UnknownNameError: no such rule.
        ConfigError: no pair has both scores.
    """
    for rule in rules:
        if rule not in RULE_NAMES:
            raise unknown_name("tie rule", rule, RULE_NAMES)
    human, gap = test.pairs.human, test.difference
    failed = int(np.isnan(gap).sum())
    if failed == len(gap):
        message = f"{name}: none of {len(gap)} pairs has both scores. What went wrong stands in pairs.jsonl."
        raise ConfigError(message)
    learnt, chosen_on = choices(test, validation, scale)
    found = {rule: rule_accuracy(rule, test, learnt, chosen_on, scale, how) for rule in rules}
    return RewardAccuracy(
        name=name,
        rules=found,
        tau_b=_tau_b(test, how),
        tau_b_of_rankings=_tau_b_of_rankings(test, how),
        calibration=_calibration(test, learnt, how),
        betas=tuple(choice.beta for choice in learnt),
        breakdowns=tuple(breakdowns(test, pair_credits(rules[0], test, validation, scale=scale), by, how)),
        failed_pairs=failed,
        human_ties=int((human == 0).sum()),
        notes=tuple(_notes(test, found, learnt, chosen_on, failed)),
    )


def _notes(
    test: Labelled,
    found: Mapping[str, RuleAccuracy | None],
    learnt: Sequence[Learnt],
    chosen_on: str,
    failed: int,
) -> list[str]:
    told = []
    gap = test.difference
    if not learnt:
        told.append(f"No threshold and no beta: no two scores of {chosen_on} differ, or none is there.")
    # A file that always has the preferred one first tells the answer to a rule that goes by position.
    ordered = not (test.pairs.human < 0).any()
    ties = int((gap == 0).sum())
    if ordered and ties and found.get("hpdv2") is not None:
        told.append(
            f"hpdv2 breaks {ties} equal scores by position, and this file always has the preferred one "
            "first: its number is too good."
        )
    if failed:
        told.append(f"{failed} of {len(gap)} pairs lack a score and count nowhere.")
    return told


def _tau_b(test: Labelled, how: Resampling) -> Interval:
    gap, human = test.difference, test.pairs.human
    known = ~np.isnan(gap)
    sides = np.sign(np.where(known, gap, 0.0))
    columns = [sides * human, known & (human != 0), known & (sides != 0)]
    sums = prompt_sums([np.asarray(column, dtype=np.float64) for column in columns], test.pairs.prompts)

    def tau(means: Float64[np.ndarray, "resample column"]) -> Float64[np.ndarray, " resample"]:
        size = np.sqrt(means[:, 1] * means[:, 2])
        return ratio_of_means(np.stack([means[:, 0], size], axis=1))

    return bootstrap_of_means(sums, tau, how)


def _tau_b_of_rankings(test: Labelled, how: Resampling) -> Interval | None:
    taus, prompts, start = [], [], 0
    for row in test.rows:
        values = test.values[start : start + len(row.relevance)]
        start += len(row.relevance)
        if len(values) > 2 and not np.isnan(values).any():
            taus.append(kendall_tau_b(row.relevance, values))
            prompts.append(row.prompt)
    if not taus or np.isnan(taus).all():
        return None
    return bootstrap_mean(taus, how, prompts=prompts)


def _calibration(test: Labelled, learnt: Sequence[Learnt], how: Resampling) -> RewardCalibration | None:
    if not learnt:
        return None
    scaled = np.full(len(test.pairs), np.nan)
    for choice in learnt:
        scaled[choice.used_on] = choice.beta * test.difference[choice.used_on]
    if np.isnan(scaled).all():
        return None
    return reward_calibration(test.pairs.human, scaled, beta=1.0, prompts=test.pairs.prompts, how=how)

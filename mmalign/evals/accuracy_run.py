"""`mmalign accuracy`: score labelled pairs by several rewards, measure each, compare every two."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mmalign import __version__
from mmalign.data.config import DataConfig
from mmalign.errors import ConfigError, explain
from mmalign.evals.accuracy_groups import Comparison, compare_accuracies
from mmalign.evals.labelled_rows import LabelledRows, Pairs, Scores, score_rows, stored_scores
from mmalign.evals.reward_accuracy import RewardAccuracy, measure_accuracy
from mmalign.evals.statistics import Resampling
from mmalign.evals.tie_rules import DESCRIPTIONS, RULE_NAMES, Labelled, pair_credits
from mmalign.rewards.base import Reward

__all__ = [
    "STORED",
    "AccuracyReport",
    "Rated",
    "data_config",
    "measure_rewards",
    "pair_lines",
    "rate_rows",
    "titled",
]

STORED = "stored"
"""In place of a reward's name: the scores that stand in the rows."""

PUBLISHED_SCALES: Mapping[str, float] = {"pickscore_v1": 1.0}
"""Rewards whose own scores are the logits of the published probabilities (yuvalkirstain/PickScore)."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Rated:
    """One reward's scores of one or two data sets.

    Args:
        title: what tables call it.
        name: of the reward.
        scores: of the test rows.
        validation: of the validation rows.
        fingerprint: of the reward, "" for stored scores.
        provenance: what the fingerprint is made of.
    """

    title: str
    name: str
    scores: Scores
    validation: Scores | None = None
    fingerprint: str = ""
    provenance: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class AccuracyReport:
    """What `mmalign accuracy` found.

    Args:
        record: everything, in JSON types.
        pairs: one record per pair, with every reward's difference and worth.
        failed: candidates that some reward could not score.
    """

    record: dict[str, Any]
    pairs: list[dict[str, Any]]
    failed: int


def data_config(path: str, **settings: Any) -> DataConfig:
    """Settings of one data set.

    Args:
        path: file, folder or hub id.
        settings: of the source (`format`, `columns`, `media`, `split`, `root`, `allow_outside`, `limit`), and
            `max_bad_share`.

    Raises:
        ConfigError: a setting that is none.
    """
    from pydantic import ValidationError

    share = settings.pop("max_bad_share", 0.01)
    try:
        return DataConfig.model_validate({"source": {"path": path, **settings}, "max_bad_share": share})
    except ValidationError as error:
        entry = error.errors()[0]
        where = f"{path} {'.'.join(map(str, entry['loc']))}"
        raise ConfigError(explain(where, got=entry["input"], expected=entry["msg"])) from None


def titled(words: Sequence[str]) -> dict[str, str]:
    """`NAME` or `TITLE=NAME` words as title to name.

    Raises:
        ConfigError: none, or one title twice.
    """
    found: dict[str, str] = {}
    for word in words:
        title, equals, name = word.partition("=")
        # An address may hold "=": what stands before it is no title then.
        if not equals or ":" in title or "/" in title:
            title, name = word, word
        if title in found or not title or not name:
            expected = "NAME or TITLE=NAME, every title once"
            raise ConfigError(explain("--reward", got=word, expected=expected))
        found[title] = name
    if not found:
        do = "`mmalign rewards` lists them; `stored` stands for the scores in the rows."
        raise ConfigError(explain("--reward", got="none", expected="at least one reward", do=do))
    return found


def rate_rows(
    title: str,
    name: str,
    rows: LabelledRows,
    cache: Path,
    *,
    validation: LabelledRows | None = None,
    load: Callable[[str], Reward] | None = None,
    batch_size: int = 16,
    device: str = "",
    progress: Progress = lambda *_: None,
) -> Rated:
    """Scores of test and validation rows by one reward, loaded once.

    Args:
        title: what tables call it.
        name: of the reward, or `stored`.
        rows: test rows.
        cache: store of scores.
        validation: validation rows.
        load: how a reward is made of its name; `mmalign.rewards.load` by default.
        batch_size: candidates per call.
        device: recorded.
        progress: called with (title, candidates done, all of them).

    Raises:
        ConfigError: the reward compares two candidates; or `stored`, and there are no scores.
    """
    if name == STORED:
        held = None if validation is None else stored_scores(validation)
        return Rated(title, name, stored_scores(rows), held)
    if load is None:
        from mmalign.rewards.loading import load as load_reward

        load = load_reward
    reward = load(name)
    if {"in_order", "swapped"} <= set(reward.card.outputs):
        message = explain(
            f"--reward {name}",
            got="a judge of pairs, which scores no candidate alone",
            expected="a reward of single candidates",
            do="`mmalign judge bias` asks it in both orders and holds it against the labels.",
        )
        raise ConfigError(message)

    def scored(part: LabelledRows) -> Scores:
        done = 0

        def tell(step: int) -> None:
            nonlocal done
            done += step
            progress(title, done, part.num_candidates)

        return score_rows(reward, part, cache, batch_size=batch_size, device=device, progress=tell)

    held = None if validation is None else scored(validation)
    return Rated(title, name, scored(rows), held, reward.fingerprint(), reward.provenance())


# ---------------------------------------------------------------------------------------------- the report


def measure_rewards(
    rated: Sequence[Rated],
    rows: LabelledRows,
    validation: LabelledRows | None = None,
    *,
    rules: Sequence[str] = RULE_NAMES,
    by: Sequence[str] = (),
    how: Resampling | None = None,
) -> AccuracyReport:
    """Accuracy of every reward and output, and every two rewards compared by their first outputs.

    Args:
        rated: rewards with their scores.
        rows: test rows.
        validation: validation rows.
        rules: tie rules; comparisons and breakdowns use the first.
        by: columns to break accuracy down by.
        how: the bootstrap over prompts.

    Raises:
        UnknownNameError: no such rule.
        ConfigError: a reward scored no pair.
    """
    how = how or Resampling()
    pairs = rows.pairs()
    held = None if validation is None else validation.pairs()
    found: dict[str, RewardAccuracy] = {}
    credits: dict[str, np.ndarray] = {}
    gaps: dict[str, np.ndarray] = {}
    for reward in rated:
        scale = PUBLISHED_SCALES.get(reward.name)
        for number, (output, values) in enumerate(reward.scores.values.items()):
            title = reward.title if number == 0 else f"{reward.title}.{output}"
            test = Labelled(pairs, rows.rows, values)
            other = None
            if validation is not None and held is not None and reward.validation is not None:
                other = Labelled(held, validation.rows, reward.validation.values[output])
            found[title] = measure_accuracy(title, test, other, rules=rules, by=by, scale=scale, how=how)
            if number == 0:
                credits[title] = pair_credits(rules[0], test, other, scale=scale)
                gaps[title] = test.difference
    compared = compare_accuracies(credits, gaps, pairs.prompts, how)
    record = _record(rated, rows, validation, pairs, found, compared, rules, how)
    failed = sum(len(reward.scores.errors) for reward in rated)
    return AccuracyReport(record, _pair_records(rated, rows, pairs, credits, gaps), failed)


def _record(
    rated: Sequence[Rated],
    rows: LabelledRows,
    validation: LabelledRows | None,
    pairs: Pairs,
    found: Mapping[str, RewardAccuracy],
    compared: Sequence[Comparison],
    rules: Sequence[str],
    how: Resampling,
) -> dict[str, Any]:
    return {
        "kind": "reward accuracy",
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": _described(rows, pairs),
        "validation": None if validation is None else _described(validation, validation.pairs()),
        "rules": {rule: DESCRIPTIONS[rule] for rule in rules},
        "primary_rule": rules[0],
        "statistics": how.as_dict(),
        "rewards": {title: entry.as_dict() for title, entry in found.items()},
        "scoring": {
            reward.title: {
                "name": reward.name,
                "fingerprint": reward.fingerprint,
                "provenance": dict(reward.provenance or {}),
                "failed": len(reward.scores.errors),
                "truncated": reward.scores.truncated,
                "errors": dict(list(_counted(reward.scores.errors).items())[:5]),
            }
            for reward in rated
        },
        "comparisons": [entry.as_dict() for entry in compared],
        "warnings": _warnings(rated, rows, validation),
    }


def _described(rows: LabelledRows, pairs: Pairs) -> dict[str, Any]:
    return {
        "name": rows.name,
        "rows": len(rows.rows),
        "pairs": len(pairs),
        "prompts": len({row.prompt for row in rows.rows}),
        "candidates": rows.num_candidates,
        "human_ties": int((pairs.human == 0).sum()),
        "unusable": dict(rows.unusable),
    }


def _counted(errors: Mapping[int, str]) -> dict[str, int]:
    """Error texts with their number, most frequent first."""
    counts: dict[str, int] = {}
    for text in errors.values():
        counts[text] = counts.get(text, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1]))


def _warnings(rated: Sequence[Rated], rows: LabelledRows, validation: LabelledRows | None) -> list[str]:
    told = []
    if validation is None:
        told.append(
            "No validation pairs: thresholds and beta of each half of the prompts were chosen on the other "
            "half."
        )
    else:
        shared = {row.prompt for row in rows.rows} & {row.prompt for row in validation.rows}
        if shared:
            told.append(
                f"{len(shared)} prompts stand in the validation pairs too: what was chosen there saw them."
            )
    for reward in rated:
        cut, failed = reward.scores.truncated, len(reward.scores.errors)
        if cut:
            told.append(f"{reward.title} read only the beginning of the prompts of {cut} candidates.")
        if failed:
            first = next(iter(_counted(reward.scores.errors)))
            told.append(f"{reward.title} could not score {failed} candidates; most often: {first}")
    return told


def _pair_records(
    rated: Sequence[Rated],
    rows: LabelledRows,
    pairs: Pairs,
    credits: Mapping[str, np.ndarray],
    gaps: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """One record per pair; what failed is None with its error."""
    starts = np.cumsum([0, *(len(row.relevance) for row in rows.rows)])
    found = []
    for place in range(len(pairs)):
        row = rows.rows[int(pairs.row[place])]
        one, other = int(pairs.first[place]), int(pairs.second[place])
        start = int(starts[int(pairs.row[place])])
        errors = {
            reward.title: reward.scores.errors.get(one) or reward.scores.errors.get(other) for reward in rated
        }
        found.append(
            {
                "where": row.where,
                "candidates": [one - start, other - start],
                "prompt": row.prompt,
                "human": int(pairs.human[place]),
                "difference": {title: _number(gap[place]) for title, gap in gaps.items()},
                "credit": {title: _number(credit[place]) for title, credit in credits.items()},
                "errors": {title: text for title, text in errors.items() if text},
            }
        )
    return found


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def pair_lines(report: AccuracyReport) -> str:
    """The pairs as JSON lines."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in report.pairs)

"""`mmalign factors`: what people pay for in labelled pairs, what rewards pay for, and where they part.

Factors of pictures are measured once per file and stored, as scores are; those of texts are quick.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmalign import __version__
from mmalign.batch import Candidate
from mmalign.errors import ConfigError, RowError, explain, unknown_name
from mmalign.evals import factor_values
from mmalign.evals.accuracy_run import Rated
from mmalign.evals.factor_values import IMAGE_FACTORS, TEXT_FACTORS, image_factors, text_factors
from mmalign.evals.factors import Profile, agreement, factor_differences, profile
from mmalign.evals.labelled_rows import LabelledRows, Pairs
from mmalign.evals.shares import clustered_mean
from mmalign.evals.statistics import Interval, PairedTest, Result, adjust, sign_test
from mmalign.evals.store import PartTable
from mmalign.evals.tie_rules import prompt_sums
from mmalign.rewards.sample import media_hash

__all__ = ["FactorReport", "Overpaid", "candidate_factors", "overpaid", "report_factors", "stored_factors"]

PEOPLE = "people"
"""Name of the labels' profile."""


def _table(folder: Path) -> PartTable:
    columns = {"sha256": "string", "version": "string", "factor": "string", "value": "double"}
    return PartTable(folder / "factors", columns, key=("sha256", "version", "factor"))


def _version() -> str:
    """Changes whenever the definitions of the factors do: old values are then measured again."""
    return hashlib.sha256(inspect.getsource(factor_values).encode()).hexdigest()[:16]


def stored_factors(
    media: Mapping[str, Callable[[], Any]], cache: Path, progress: Callable[[int], None] = lambda _: None
) -> dict[str, dict[str, float]]:
    """Factors of pictures by the hash of their file; what is stored is not measured again.

    Args:
        media: hash of a file to what opens it.
        cache: store, the one of scores.
        progress: called with the number of pictures that are done.

    Returns:
        A picture that cannot be read has no entry.
    """
    table, version = _table(cache), _version()
    found: dict[str, dict[str, float]] = {}
    for row in table.read():
        if row["version"] == version and row["sha256"] in media:
            value = row["value"]
            found.setdefault(row["sha256"], {})[row["factor"]] = math.nan if value is None else value
    progress(len(found))
    with table.writer() as writer:
        for digest, opened in media.items():
            if digest in found:
                continue
            try:
                values = image_factors(opened())
            except RowError:
                progress(1)
                continue
            found[digest] = values
            writer.add(
                {"sha256": digest, "version": version, "factor": name, "value": value}
                for name, value in values.items()
            )
            progress(1)
    return found


def candidate_factors(
    rows: LabelledRows, cache: Path, progress: Callable[[int], None] = lambda _: None
) -> list[dict[str, float]]:
    """Factors of every candidate, in order; empty where it cannot be read.

    Raises:
        ConfigError: candidates are neither pictures nor texts.
    """
    hashes: list[str | None] = []
    texts: list[dict[str, float]] = []
    opened: dict[str, Callable[[], Any]] = {}
    for row, place, candidate in rows.candidates():
        if candidate.image is None and candidate.text is None:
            expected = "pictures or texts, which have factors"
            raise ConfigError(explain(row.where, got="other candidates", expected=expected))
        texts.append({} if candidate.text is None else text_factors(candidate.text))
        digest = _digest(candidate)
        hashes.append(digest)
        if digest is not None:
            opened.setdefault(digest, _opener(rows, row.index, place))
    measured = stored_factors(opened, cache, progress)
    return [
        {**text, **(measured.get(digest, {}) if digest is not None else {})}
        for text, digest in zip(texts, hashes, strict=True)
    ]


def _digest(candidate: Candidate) -> str | None:
    if candidate.image is None:
        return None
    try:
        return media_hash(candidate.image)
    except RowError:
        return None


def _opener(rows: LabelledRows, index: int, place: int) -> Callable[[], Any]:
    """Reads a candidate's picture when it is measured, so that they never lie in memory together."""
    return lambda: rows.candidate(index, place).image


# ------------------------------------------------------------------------------------------------ overpaid


@dataclass(frozen=True)
class Overpaid(Result):
    """One factor: what a reward pays for it beyond what people pay, on the pairs that both decide.

    Args:
        factor: its name.
        difference: tau of the reward less that of people, in [-2, 2]; the interval is clustered by prompt.
        test: sign test over prompts of "neither side wants more of it than the other".
        adjusted: its p-value after Holm's correction over factors and rewards.
        pairs: pairs both decide in which the factor differs.
    """

    factor: str
    difference: Interval
    test: PairedTest
    adjusted: float
    pairs: int

    def describe(self) -> str:
        """One line."""
        return f"{self.factor}: {self.difference} over {self.pairs} pairs, {self.test}"


def overpaid(
    differences: Float[Tensor, "pair factor"],
    human: Float[Tensor, " pair"],
    gap: Float[Tensor, " pair"],
    *,
    factors: Sequence[str],
    prompts: Sequence[str],
) -> list[Overpaid]:
    """Factors in their order; p-values are not corrected yet.

    Args:
        differences: factor of the first thing less that of the second.
        human: greater than 0 where people prefer the first, less where the second, 0 = tie.
        gap: score of the first less that of the second; NaN = failed.
        factors: names of the columns.
        prompts: of each pair.
    """
    apart = torch.nan_to_num(gap).sign() - human.sign()
    both = (torch.nan_to_num(gap) != 0) & (human != 0)
    found = []
    for column, factor in enumerate(factors):
        sides = torch.nan_to_num(differences[:, column]).sign()
        used = (both & (sides != 0)).nonzero().flatten().tolist()
        values = (apart * sides)[used].tolist()
        names = [prompts[place] for place in used]
        sums = prompt_sums([np.array(values)], names)[:, 0] if used else np.zeros(0)
        wins, losses = int((sums > 0).sum()), int((sums < 0).sum())
        test = sign_test(wins, losses, ties=len(sums) - wins - losses)
        found.append(Overpaid(factor, clustered_mean(values, names), test, math.nan, len(used)))
    return found


# ---------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class FactorReport:
    """What `mmalign factors` found.

    Args:
        record: everything, in JSON types.
        profiles: by labeller; the first is people's.
        overpaid: by reward, greatest difference first.
        notes: in words.
    """

    record: dict[str, Any]
    profiles: Mapping[str, Profile]
    overpaid: Mapping[str, Sequence[Overpaid]]
    notes: tuple[str, ...]


def report_factors(
    rows: LabelledRows,
    values: Sequence[Mapping[str, float]],
    rated: Sequence[Rated] = (),
    *,
    factors: Sequence[str] = (),
) -> FactorReport:
    """Profiles of people and rewards, and what every reward overpays.

    Args:
        rows: labelled rows.
        values: factors of every candidate.
        rated: rewards with their scores; each one's first output counts.
        factors: which; all that were measured and differ in some pair by default.

    Raises:
        UnknownNameError: no such factor.
        ConfigError: a reward is called `people`.
    """
    pairs = rows.pairs()
    for name in factors:
        if name not in {**IMAGE_FACTORS, **TEXT_FACTORS}:
            raise unknown_name("factor", name, {**IMAGE_FACTORS, **TEXT_FACTORS})
    if PEOPLE in {reward.title for reward in rated}:
        raise ConfigError(explain("--reward", got=PEOPLE, expected="another title; the labels have this one"))
    names, differences = factor_differences(
        [values[place] for place in pairs.first], [values[place] for place in pairs.second], factors or None
    )
    if not factors:  # the size of pictures that are all alike tells nothing
        kept = [
            place for place in range(len(names)) if bool((torch.nan_to_num(differences[:, place]) != 0).any())
        ]
        names, differences = tuple(names[place] for place in kept), differences[:, kept]
    human = torch.from_numpy(pairs.human)
    gaps = {reward.title: _gap(pairs, reward) for reward in rated}
    profiles = {PEOPLE: _profile(PEOPLE, differences, human, names, pairs)}
    for title, gap in gaps.items():
        profiles[title] = _profile(title, differences, gap, names, pairs)
    paid = {
        title: overpaid(differences, human, gap, factors=names, prompts=pairs.prompts)
        for title, gap in gaps.items()
    }
    corrected = _corrected(paid)
    missing = sum(not entry for entry in values)
    notes = [*_words(corrected, profiles), *([f"{missing} candidates could not be read."] if missing else [])]
    record = {
        "kind": "factors",
        "version": __version__,
        "data": {"name": rows.name, "rows": len(rows.rows), "pairs": len(pairs), "unreadable": missing},
        "factors": {name: {**IMAGE_FACTORS, **TEXT_FACTORS}.get(name, "") for name in names},
        "profiles": {name: entry.as_dict() for name, entry in profiles.items()},
        "agreement": {title: _agreement(profiles[title], profiles[PEOPLE]) for title in gaps},
        "overpaid": {title: [entry.as_dict() for entry in found] for title, found in corrected.items()},
        "fingerprints": {reward.title: reward.fingerprint for reward in rated},
        "notes": notes,
    }
    return FactorReport(record, profiles, corrected, tuple(notes))


def _gap(pairs: Pairs, reward: Rated) -> Tensor:
    return torch.from_numpy(pairs.difference(next(iter(reward.scores.values.values()))))


def _profile(name: str, differences: Tensor, side: Tensor, factors: Sequence[str], pairs: Pairs) -> Profile:
    return profile(differences, side, factors=factors, name=name, clusters=pairs.prompts)


def _agreement(one: Profile, other: Profile) -> float | None:
    found = agreement(one, other) if one.factors else math.nan
    return None if math.isnan(found) else found


def _corrected(paid: Mapping[str, Sequence[Overpaid]]) -> dict[str, list[Overpaid]]:
    """With Holm's correction over all rewards and factors, greatest difference first."""
    keyed = {
        f"{title}\0{entry.factor}": entry.test.p_value for title, found in paid.items() for entry in found
    }
    adjusted = adjust(keyed)
    result = {}
    for title, found in paid.items():
        entries = [
            Overpaid(
                entry.factor, entry.difference, entry.test, adjusted[f"{title}\0{entry.factor}"], entry.pairs
            )
            for entry in found
        ]
        key = lambda entry: (math.isnan(entry.difference.value), -abs(entry.difference.value))  # noqa: E731
        result[title] = sorted(entries, key=key)
    return result


def _words(paid: Mapping[str, Sequence[Overpaid]], profiles: Mapping[str, Profile]) -> list[str]:
    """What is beyond the noise of these pairs, in words."""
    told = []
    people = profiles[PEOPLE].taus()
    for title, found in paid.items():
        own = profiles[title].taus()
        sure = [entry for entry in found if entry.adjusted <= 0.05]
        for entry in sure:
            word = "more" if entry.difference.value > 0 else "less"
            told.append(
                f"{title} pays {word} for {entry.factor} than people do: tau {own[entry.factor]:+.2f} "
                f"against {people[entry.factor]:+.2f}."
            )
        if not sure:
            told.append(f"{title}: it pays for no factor otherwise than people, as far as these pairs show.")
    return told

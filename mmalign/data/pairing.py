"""From rankings to pairs: which two candidates of a list meet, and how many pairs a prompt may have.

`couples` decides on numbers alone, so that the reader expands a million lists without building a row; the
other functions work on rows and are used by `mmalign data derive`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, get_args

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.seeding import derive_seed

__all__ = ["Pairing", "cap_per_prompt", "couples", "follow", "make_pairs", "score_gap", "turned"]

Pairing = Literal["all_pairs", "best_worst", "adjacent", "best_vs_rest"]
"""Which candidates of a ranking meet: every two, its ends, neighbours, or the best and each other one."""

Numbers = Sequence[float]


def couples(relevance: Numbers, how: Pairing) -> list[tuple[int, int]]:
    """Positions (better, worse) of the candidates that meet; equal ones keep their order.

    Args:
        relevance: one number per candidate, higher is better.
        how: the rule. `best_worst` of candidates that are all equal gives the first two.

    Raises:
        UnknownNameError: another rule.
    """
    count = len(relevance)
    if how == "all_pairs":
        found = [(i, j) for i in range(count) for j in range(i + 1, count)]
    else:
        # Stable: of equal candidates the first in the file is the best, whatever the rule.
        order = sorted(range(count), key=lambda place: -relevance[place])
        if how == "best_worst":
            worst = min(range(count), key=lambda place: relevance[place])
            found = [(order[0], worst if worst != order[0] else order[1])]
        elif how == "adjacent":
            found = list(pairwise(order))
        elif how == "best_vs_rest":
            found = [(order[0], place) for place in order[1:]]
        else:
            raise unknown_name("rule for pairs", how, get_args(Pairing))
    return [(i, j) if relevance[i] >= relevance[j] else (j, i) for i, j in found]


def follow(extras: Mapping[str, Any], places: Sequence[int], count: int) -> dict[str, Any]:
    """Extra columns after candidates were chosen: lists with one entry per candidate follow them.

    Args:
        extras: extra columns of a row.
        places: the candidates that stay, in their new order.
        count: candidates the row had.
    """
    return {
        name: [value[place] for place in places] if isinstance(value, list) and len(value) == count else value
        for name, value in extras.items()
    }


_SIDES = (("_chosen", "_rejected"), ("_a", "_b"), ("_0", "_1"))


def turned(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Extra columns of a pair whose candidates change places: lists of two turn, and so do named sides.

    `features_chosen` and `features_rejected` (also `_a` and `_b`, `_0` and `_1`) exchange their values as
    they are: a vector of width two is not turned inside.
    """
    found = follow(extras, (1, 0), 2)
    for first, second in _SIDES:
        for name in extras:
            other = name.removesuffix(first) + second
            if name.endswith(first) and other in extras:
                found[name], found[other] = extras[other], extras[name]
    return found


def make_pairs(row: PreferenceRow, *, how: Pairing, min_gap: float = 0.0) -> list[PreferenceRow]:
    """Pairs of one ranked row, in the order of `couples`.

    Candidates without a reward get their relevance as reward, so that gaps and goals can be computed. Extra
    columns with one entry per candidate follow the candidates. The pair's id is `ROW/i-j` with the positions
    in the list.

    Args:
        row: a row of kind lists.
        how: which candidates meet.
        min_gap: >= 0; pairs whose relevance differs by less are left out, and ties always are.

    Returns:
        Pairs of kind pairs with preference 1; may be empty.

    Raises:
        RowError: the row is no list.
        ConfigError: a negative gap.
        UnknownNameError: another rule.
    """
    if not min_gap >= 0:
        raise ConfigError(explain("min_gap", got=min_gap, expected="a number >= 0"))
    if row.kind != "lists" or row.relevance is None:
        message = explain(
            f"{row.source or row.id} kind",
            got=row.kind,
            expected="lists",
            do="Only rankings can be made into pairs; give candidates with ranks or scores.",
        )
        raise FieldError(message, "not_a_list")
    pairs = []
    for better, worse in couples(row.relevance, how):
        gap = row.relevance[better] - row.relevance[worse]
        if gap <= 0 or gap < min_gap:
            continue
        candidates = (_scored(row, better), _scored(row, worse))
        pairs.append(
            replace(
                row,
                candidates=candidates,
                kind="pairs",
                relevance=None,
                preference=1.0,
                extras=follow(row.extras, (better, worse), len(row.candidates)),
                id=f"{row.id}/{better}-{worse}",
            )
        )
    return pairs


def _scored(row: PreferenceRow, place: int) -> Candidate:
    candidate = row.candidates[place]
    if candidate.reward is not None or row.relevance is None:
        return candidate
    return replace(candidate, reward=row.relevance[place])


def score_gap(row: PreferenceRow) -> float:
    """Reward of the chosen minus reward of the rejected candidate of a pair.

    Raises:
        RowError: reason `missing_score`; a candidate has no reward.
    """
    rewards = [candidate.reward for candidate in row.candidates]
    chosen, rejected = (rewards[0], rewards[1]) if len(rewards) == 2 else (None, None)
    if chosen is None or rejected is None:
        message = explain(
            f"{row.source or row.id} scores",
            got=str(rewards),
            expected="a score for each of two candidates",
            do="Give columns score_chosen and score_rejected (or score_a and score_b), or derive the pairs "
            "from a ranking.",
        )
        raise FieldError(message, "missing_score", "score_chosen")
    return chosen - rejected


def cap_per_prompt(
    rows: Iterable[PreferenceRow], limit: int, *, keep: Literal["widest", "random"] = "widest", seed: int = 0
) -> list[PreferenceRow]:
    """At most `limit` pairs of each prompt, in their given order.

    Without a cap, a prompt with 9 candidates counts 36 times as much as one with 2.

    Args:
        rows: pairs.
        limit: >= 1.
        keep: `widest` keeps the largest score gaps; `random` a seeded choice, which depends on the pair's id
            and not on what else is in the data set.
        seed: of the random choice.

    Raises:
        ConfigError: a limit below 1.
        RowError: `widest`, and a pair without scores.
        UnknownNameError: another choice.
    """
    if limit < 1:
        raise ConfigError(explain("max_per_prompt", got=limit, expected="at least 1"))
    if keep not in ("widest", "random"):
        raise unknown_name("choice of pairs", keep, ("widest", "random"))
    rows = list(rows)
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.prompt].append(number)
    kept: set[int] = set()
    for members in groups.values():
        if len(members) > limit:
            if keep == "widest":
                ranked = sorted(members, key=lambda number: -score_gap(rows[number]))
            else:
                ranked = sorted(members, key=lambda number: derive_seed(seed, "cap", rows[number].id))
            kept.update(ranked[:limit])
        else:
            kept.update(members)
    return [row for number, row in enumerate(rows) if number in kept]

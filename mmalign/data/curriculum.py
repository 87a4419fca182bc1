"""Easy pairs first: stages by how far apart the two candidates are (Curry-DPO).

A pair is easy when its scores are far apart. Each stage is trained on its own, in order; in the published
recipe the model after a stage is the reference of the next.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from mmalign.batch import PreferenceRow
from mmalign.data.pairing import score_gap
from mmalign.errors import ConfigError, explain, unknown_name

__all__ = ["curriculum_stages"]


def curriculum_stages(
    rows: Sequence[PreferenceRow],
    *,
    num_stages: int,
    scope: Literal["prompt", "dataset"],
    gap: Callable[[PreferenceRow], float] = score_gap,
) -> list[list[PreferenceRow]]:
    """Pairs in stages from easy (wide gap) to hard (narrow gap); every pair is in exactly one stage.

    Args:
        rows: pairs; several per prompt for the scope `prompt`.
        num_stages: >= 1; the paper uses 3, from four candidates per prompt.
        scope: `prompt`: the pairs of each prompt are ordered among themselves and dealt out evenly, so that
            every stage sees every prompt that has enough pairs (the paper's way). `dataset`: all pairs are
            ordered together and cut into equal parts, for data with one pair per prompt.
        gap: how easy a pair is; the difference of the scores by default. Anything comparable works, for
            example the difference of reference log-likelihoods.

    Returns:
        One list of pairs per stage. Within a stage the pairs keep their given order (scope `prompt`) or run
        from wide to narrow (scope `dataset`).

    Raises:
        ConfigError: fewer than one stage, a gap that is no number, or a stage without pairs.
        RowError: a pair without scores.
        UnknownNameError: another scope.

    Source: arXiv 2403.07230, figure 1 (pairs of one prompt, ordered by difference of ratings, easiest first).
    """
    if num_stages < 1:
        raise ConfigError(explain("curriculum stages", got=num_stages, expected="at least 1"))
    if scope not in ("prompt", "dataset"):
        raise unknown_name("scope of a curriculum", scope, ("prompt", "dataset"))
    gaps = [gap(row) for row in rows]
    for row, value in zip(rows, gaps, strict=True):
        if value != value:
            raise ConfigError(
                explain(f"curriculum: gap of {row.source or row.id}", got=value, expected="a number")
            )
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.prompt if scope == "prompt" else ""].append(number)
    stage_of: dict[int, int] = {}
    ordered: list[int] = []
    for members in groups.values():
        ranked = sorted(members, key=lambda number: -gaps[number])
        ordered += ranked
        for place, number in enumerate(ranked):
            # Even shares: of 4 pairs in 3 stages the easiest gets two; of 2 pairs the hardest gets none.
            stage_of[number] = place * num_stages // max(len(ranked), num_stages)
    counts = Counter(stage_of.values())
    if len(counts) < num_stages:
        most = max((len(members) for members in groups.values()), default=0)
        message = (
            f"curriculum: got {len(rows)} pairs, at most {most} of one prompt, expected enough for "
            f"{num_stages} stages. Ask for fewer stages, or order all pairs together (scope dataset)."
        )
        raise ConfigError(message)
    numbers = range(len(rows)) if scope == "prompt" else ordered
    return [[rows[number] for number in numbers if stage_of[number] == stage] for stage in range(num_stages)]

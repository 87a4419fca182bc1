"""The tables of the variance page, from its records: schemes by world, and trainings of equal cost.

Errors are two standard errors of the jackknife over batches: a batch is left out at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mmalign.toy.guide_tables import table
from mmalign.toy.method_tables import two_level_interval
from mmalign.toy.variance_schemes import SCHEMES, STANDARD
from mmalign.toy.variance_worlds import WORLDS

__all__ = ["agreement", "page_parts", "per_cost", "per_cost_with_rows"]

Record = Mapping[str, Any]

MOMENTS: Mapping[str, str] = {"reference": "at the reference", "trained": "after some steps"}
"""As records and as tables call them."""

NOT_YET = "*Not measured yet: the records hold nothing of this world. The command above measures it.*"


def _sum(record: Record, name: str, kept: Sequence[int]) -> float:
    return float(sum(record[name][batch] for batch in kept))


def per_cost(one: Record, standard: Record, kept: Sequence[int]) -> float:
    """Variance times FLOPs over that of the standard scheme, over some batches."""
    ratio = _sum(one, "variance", kept) / _sum(standard, "variance", kept)
    return ratio * float(one["flops"]) / float(standard["flops"])


def rows_variance(standard: Record, kept: Sequence[int]) -> float:
    """What the choice of rows adds to a batch's gradient: between batches, less what draws leave in means."""
    means = torch.tensor(standard["means"], dtype=torch.float64)[list(kept)][:, list(kept)]
    count = len(kept)
    between = (means.trace() - means.sum() / count) / (count - 1)
    return float(between) - _sum(standard, "variance", kept) / count / float(standard["repeats"])


def per_cost_with_rows(one: Record, standard: Record, kept: Sequence[int]) -> float:
    """As `per_cost`, of gradients over fresh rows: a scheme of twice the cost sees half of the rows."""
    rows, count = rows_variance(standard, kept), len(kept)
    own, other = (rows + _sum(record, "variance", kept) / count for record in (one, standard))
    return own / other * float(one["flops"]) / float(standard["flops"])


def agreement(one: Record, standard: Record) -> float:
    """Squared distance of the mean gradients over what draws alone would give.

    1 for independent draws of one expectation, less where two schemes share draws, more where the expectation
    is another.
    """
    scatter = sum(sum(record["variance"]) / record["repeats"] for record in (one, standard))
    return float(sum(one["distance"]) / scatter)


def _with_error(value: Callable[[Sequence[int]], float], count: int) -> str:
    every = list(range(count))
    left = [value([batch for batch in every if batch != out]) for out in every]
    mean = sum(left) / count
    error = ((count - 1) / count * sum((each - mean) ** 2 for each in left)) ** 0.5
    return f"{value(every):.2f} ± {2 * error:.2f}"


_HEADINGS = (
    ("scheme", "---"),
    ("`likelihood.`", "---"),
    ("FLOPs of a step", "---:"),
    *((f"variance x FLOPs, {moment}", "---:") for moment in MOMENTS.values()),
    *((f"with fresh rows, {moment}", "---:") for moment in MOMENTS.values()),
    *((f"distance of means, {moment}", "---:") for moment in MOMENTS.values()),
)


def _cell(value: Callable[[Record, Record, Sequence[int]], float], pair: tuple[Record, Record] | None) -> str:
    if pair is None:
        return "-"
    one, standard = pair
    return _with_error(lambda kept: value(one, standard, kept), len(one["variance"]))


def _schemes(records: Sequence[Record], world: str) -> str:
    known = {(record["moment"], record["scheme"]): record for record in records if record["world"] == world}
    rows = []
    for name, scheme in SCHEMES.items():
        found = [(known.get((moment, name)), known.get((moment, STANDARD))) for moment in MOMENTS]
        pairs = [(one, base) if one and base else None for one, base in found]
        costs = [pair[0]["flops"] / pair[1]["flops"] for pair in pairs if pair]
        if not costs:
            continue
        cells = [_cell(value, pair) for value in (per_cost, per_cost_with_rows) for pair in pairs]
        means = ["-" if pair is None or name == STANDARD else f"{agreement(*pair):.2f}" for pair in pairs]
        setting = " ".join(f"`{part}`" for part in scheme.setting.split())
        rows.append([scheme.title, setting, f"{costs[0]:.2f}", *cells, *means])
    return table(_HEADINGS, rows) if rows else NOT_YET


_SHARES = (("world", "---"), ("moment", "---"), ("batches of 4 pairs", "---:"), ("share of rows", "---:"))


def _shares(records: Sequence[Record]) -> str:
    """How much of a step's variance the choice of rows is, which no drawing changes."""
    rows = []
    for record in records:
        if record["scheme"] == STANDARD:

            def share(kept: Sequence[int], record: Record = record) -> float:
                chosen = rows_variance(record, kept)
                return chosen / (chosen + _sum(record, "variance", kept) / len(kept))

            count = len(record["variance"])
            rows.append([record["world"], MOMENTS[record["moment"]], str(count), _with_error(share, count)])
    return table(_SHARES, rows)


_TRAININGS = (
    ("a step", "---"),
    ("seeds", "---:"),
    ("gain in held-out reward", "---:"),
    ("each seed", "---:"),
    ("more than the first", "---:"),
)


def _trainings(gains: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    first = next(iter(gains.values()), {})
    rows = []
    for number, (arm, by_seed) in enumerate(gains.items()):
        if not by_seed:
            continue
        shared = [seed for seed in by_seed if seed in first]
        apart = [
            [one - other for one, other in zip(by_seed[seed], first[seed], strict=True)] for seed in shared
        ]
        rows.append(
            [
                arm,
                " ".join(map(str, by_seed)),
                _span(list(by_seed.values())),
                ", ".join(f"{sum(values) / len(values):+.3f}" for values in by_seed.values()),
                _span(apart) if number and apart else "",
            ]
        )
    return table(_TRAININGS, rows)


def _span(gains: Sequence[Sequence[float]]) -> str:
    found = two_level_interval(gains)
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def page_parts(
    records: Sequence[Record], gains: Mapping[str, Mapping[int, Sequence[float]]]
) -> dict[str, str]:
    """Markdown by marker.

    Args:
        records: of schemes.
        gains: of trainings, by arm and seed, one number per held-out prompt.
    """
    found = {f"variance_{world}": _schemes(records, world) for world in WORLDS}
    return {**found, "variance_rows": _shares(records), "variance_trainings": _trainings(gains)}

"""Statistics that run over batches and ranks: how they are kept, and the gap of a pair under them.

A statistic stands in `ObjectiveState.values` as `<name>.<field>`, that of a second term as
`term2.<name>.<field>`. It is updated once per call, unless the
state says that it is not updating (evaluation), and then only read.
"""

import torch
from torch import Tensor

from mmalign.objectives.base import CHOSEN, REJECTED, Computed, Context, require

__all__ = [
    "recall",
    "remember",
    "running_gap",
    "standardised_gap",
]


def recall(context: Context, name: str, like: Tensor, fields: tuple[str, ...]) -> list[Tensor]:
    """Statistics from the state, 0 at the start."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    if context.state is None:
        return [zero for _ in fields]
    key, values = f"{context.state.scope}{name}", context.state.values
    return [values.get(f"{key}.{field}", zero).to(like) for field in fields]


def remember(context: Context, name: str, values: dict[str, Tensor]) -> None:
    """Keep statistics in the state; one that is not finite is not kept: the loop drops that update, too."""
    if context.state is None or not context.state.updating:
        return
    finite = torch.stack([torch.isfinite(value).all() for value in values.values()]).all()
    for field, value in values.items():
        key = f"{context.state.scope}{name}.{field}"
        old = context.state.values.get(key, torch.zeros_like(value))
        context.state.values[key] = torch.where(finite, value.detach(), old.to(value))


def running_gap(context: Context, name: str, decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """(gap of u per pair, its running mean, its running deviation), over all ranks, this batch included.

    The gap is chosen minus rejected. Where a label is uncertain, both orders of the pair enter the statistics
    with their probability, so that exchanging candidates and mirroring the label changes nothing. Both start
    at 0; a batch of one pair, whose deviation is undefined, leaves the deviation as it was.

    Args:
        context: of the batch; its state keeps `<name>.mean` and `<name>.deviation`.
        name: of the statistic.
        decay: weight of the past, in [0, 1).
    """
    reference = torch.zeros_like(context.policy) if context.reference is None else context.reference
    u = (context.policy - reference).detach()
    gap, rows = u[:, CHOSEN] - u[:, REJECTED], context.real().all(1)
    mean, deviation = recall(context, name, gap, ("mean", "deviation"))
    if context.state is not None and not context.state.updating:
        return gap, mean, deviation
    kept, given = rows.to(gap.dtype), context.labels.probability
    right = torch.ones_like(gap) if given is None else given.to(gap.dtype)
    first = context.sum_across(torch.stack([((2.0 * right - 1.0) * gap * kept).sum(), kept.sum()]))
    batch_mean = first[0] / first[1].clamp(min=1.0)
    spread = right * (gap - batch_mean).square() + (1.0 - right) * (gap + batch_mean).square()
    squares = context.sum_across((spread * kept).sum())
    batch_deviation = (squares / (first[1] - 1.0).clamp(min=1.0)).sqrt()
    mean = torch.where(first[1] > 0, decay * mean + (1.0 - decay) * batch_mean, mean)
    deviation = torch.where(first[1] > 1, decay * deviation + (1.0 - decay) * batch_deviation, deviation)
    remember(context, name, {"mean": mean, "deviation": deviation})
    return gap, mean, deviation


def standardised_gap(factor: float, name: str = "gap", decay: float = 0.9) -> Computed:
    """Factor * z-score of (u of chosen - u of rejected) under running mean and deviation (alpha-DPO).

    See `running_gap`. A deviation of 0 (nothing seen yet but one pair) gives a z-score of 0.

    Args:
        factor: in units of z.
        name: of the statistic in the state.
        decay: of the running statistics, in [0, 1).
    """
    require("standardised_gap decay", decay, 0 <= decay < 1, "a number in [0, 1)")

    def compute(context: Context) -> Tensor:
        gap, mean, deviation = running_gap(context, name, decay)
        tiny = torch.finfo(gap.dtype).tiny
        return torch.where(deviation > 0, factor * (gap - mean) / deviation.clamp(min=tiny), 0.0)

    return Computed(compute, f"{factor:g} * zscore(gap of u)", frozenset({"reference"}), couples_rows=True)

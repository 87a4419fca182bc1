"""Numbers of a run that follow from its data and its model: steps of so many epochs, rates of parts."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

from torch import nn

from mmalign.train.adapters import Trainables
from mmalign.train.config import ResolvedRun, RunConfig
from mmalign.train.token_sections import tokens_of

__all__ = ["learning_rates", "with_steps"]


class _Parted(Protocol):
    """A language model: it knows what belongs to its vision tower and its projector."""

    def parameter_groups(self, named: Mapping[str, nn.Parameter]) -> dict[str, list[nn.Parameter]]: ...


def with_steps(run: ResolvedRun, *, num_rows: int, effective_batch: int) -> ResolvedRun:
    """The run with `train.steps` and `train.warmup_steps` decided.

    Args:
        run: resolved; its epochs are passes over the rows, its warm-up ratio a share of the steps.
        num_rows: of the data.
        effective_batch: rows of an optimiser step over all devices.
    """
    train = run.config.train
    steps, warmup = train.steps, train.warmup_steps
    if steps is None:
        steps = max(1, math.ceil((train.epochs or 1.0) * num_rows / effective_batch))
    if warmup is None:
        warmup = round((train.warmup_ratio or 0.0) * steps)
    if (steps, warmup) == (train.steps, train.warmup_steps):
        return run
    decided = train.model_copy(
        update={"steps": steps, "epochs": None, "warmup_steps": warmup, "warmup_ratio": None}
    )
    return replace(run, config=run.config.model_copy(update={"train": decided}))


def learning_rates(
    config: RunConfig, model: object, trainables: Trainables
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """What the optimiser gets: the trained weights, in groups where parts of the model have own rates.

    Args:
        config: of the run.
        model: of a language run, one that knows its parts (`parameter_groups`).
        trainables: the trained weights.
    """
    tokens, parameters = tokens_of(config), trainables.parameters
    if tokens is None:
        return list(parameters.values())
    own = {"vision": tokens.vision_learning_rate, "projector": tokens.projector_learning_rate}
    if not any(own.values()):
        return list(parameters.values())
    groups = cast("_Parted", model).parameter_groups(parameters)
    return [
        {"params": members, "lr": own.get(part) or config.train.learning_rate}
        for part, members in groups.items()
        if members
    ]

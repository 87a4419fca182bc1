"""The plan of a run that trains a language model: shapes from its configs, lengths from its data."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmalign import objectives, registry
from mmalign.batch import PreferenceRow
from mmalign.data.readers import RowTable, open_rows
from mmalign.errors import MmalignError, RowError
from mmalign.train.adapters import Trainables, attach
from mmalign.train.config import ResolvedRun
from mmalign.train.parts import DTYPES, reference_kind
from mmalign.train.plan import (
    MemoryItem,
    Plan,
    derived_values,
    layout_of,
    memory_estimate,
    saved_activation_bytes,
)
from mmalign.train.planning.launches import Launch
from mmalign.train.rollouts import is_online
from mmalign.train.steps import with_steps
from mmalign.train.token_sections import AnswerRolloutConfig, tokens_of
from mmalign.train.token_supply import OF_THE_ROW

__all__ = ["OutlinedRun", "opened_rows", "outline_dialogues", "plan_dialogues"]

_LOOKED_AT = 24
"""Rows of the data, evenly spread, whose longest are counted."""


@dataclass(frozen=True)
class OutlinedRun:
    """A run of a language model as shapes.

    Args:
        run: with the steps that follow from its data, where those are at hand.
        outline: of the model.
        trainables: of its network.
        batch: a micro-batch of its longest rows.
        frozen_bytes: of the weights as they are loaded; None where all train.
        notes: what was assumed.
    """

    run: ResolvedRun
    outline: Any
    trainables: Trainables
    batch: Any
    frozen_bytes: int | None
    notes: list[str]

    def forward(self, network: nn.Module) -> torch.Tensor:
        """Hidden states of the scored tokens."""
        dtype = DTYPES[self.run.config.train.mixed_precision]
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
            states: torch.Tensor = network(self.batch.inputs)
        return states

    def read_apart(self) -> list[Tensor]:
        """Frozen towers and projectors: rows are encoded outside of the network's pass."""
        part_of = self.outline.traits.part_of
        named = self.outline.network.named_parameters()
        return [value for name, value in named if not value.requires_grad and part_of(name) != "language"]

    def held(self) -> list[MemoryItem]:
        """What a pass holds besides activations."""
        return [
            MemoryItem("attention masks", self.outline.mask_bytes(self.batch), "packed rows"),
            MemoryItem(
                "logits, one tile", self.outline.tile_bytes(self.batch), "however long the answers are"
            ),
        ]


def outline_dialogues(run: ResolvedRun) -> OutlinedRun:
    """A run as shapes, without loading its weights.

    Lengths are those of rows of its data where they can be opened, else of a made-up dialogue.

    Raises:
        ConfigError: the model's configs cannot be read, or an adapter fits nothing.
    """
    train, layout = run.config.train, layout_of(run)
    outline = _outline(run)
    table, notes = opened_rows(run)
    if table is not None:
        run = with_steps(run, num_rows=len(table), effective_batch=layout.effective_batch)
        notes.append(f"{run.config.train.steps} optimiser steps over {len(table)} rows")
    rows = [] if table is None else _spread(table)
    if table is not None and not rows:
        notes.append("none of the rows looked at can be read: `mmalign data check` says why")
    written = run.config.rollout
    if is_online(run) and isinstance(written, AnswerRolloutConfig):
        rows = [outline.answered(row, written.max_new_tokens or 1) for row in rows]
        notes.append(
            f"answers of {written.max_new_tokens} tokens are written while training; keys and values of the "
            f"{written.written_together} that are written together are not counted, nor is who judges them"
        )
    # Before the adapter, whose layers hide the linear ones.
    frozen = outline.frozen_bytes() if run.config.adapter.kind == "lora" else None
    trainables = attach(
        outline.network,
        run.config.adapter,
        default_targets=outline.adapter_targets,
        seed=train.seed,
        trains=outline.trains,
    )
    batch = outline.batch(rows or [outline.example_row()], train.batch_size, made_up=not rows)
    where = f"the longest of {len(rows)} rows of the data" if rows else "a made-up dialogue"
    told = [f"counted for {where}: {batch}", *outline.notes, *notes, *_assumptions(run, outline)]
    return OutlinedRun(run, outline, trainables, batch, frozen, told)


def plan_dialogues(run: ResolvedRun) -> Plan:
    """What a run would train and need, without loading its weights.

    Raises:
        ConfigError: as `outline_dialogues`.
    """
    launch, outlined = Launch.here(), outline_dialogues(run)
    run = outlined.run
    memory = memory_estimate(
        run,
        outlined.trainables,
        encoders={},
        activation_bytes=saved_activation_bytes(outlined.trainables.network, outlined.forward),
        reference_kind=reference_kind(run),
        frozen_bytes=outlined.frozen_bytes,
        launch=launch,
        held_whole=outlined.read_apart(),
    )
    return Plan(
        run=run,
        trainables=outlined.trainables,
        derived=derived_values(run, layout_of(run), None),
        memory=[item for item in [*memory, *outlined.held()] if item.num_bytes],
        notes=outlined.notes,
    )


def _outline(run: ResolvedRun) -> Any:
    """The family's model as shapes, told what the method wants of every row."""
    precision = DTYPES[run.config.train.mixed_precision]
    return registry.find("families", run.config.model.family).outline(
        run.config.model,
        tokens_of(run.config),
        dtype=torch.float32 if run.config.adapter.kind == "none" else precision,
        views=run.method.views,
        record=objectives.build(run.method.objective, **run.objective_arguments).needs & OF_THE_ROW,
    )


def opened_rows(run: ResolvedRun) -> tuple[RowTable | None, list[str]]:
    """The run's rows and no note; None, and why, where they cannot be opened here."""
    try:
        return open_rows(run.config.data, kind=run.method.data), []
    except MmalignError as error:
        reason = next(iter(str(error).splitlines()), "")
        return None, [f"the data cannot be opened here, so steps are open: {reason}"]


def _spread(table: RowTable) -> list[PreferenceRow]:
    """Readable rows from all over the table."""
    count = min(len(table), _LOOKED_AT)
    rows = []
    for number in range(count):
        try:
            rows.append(table[number * len(table) // count])
        except RowError:  # counted and listed by the run, and by `mmalign data check`
            continue
    return rows


def _assumptions(run: ResolvedRun, outline: Any) -> list[str]:
    tokens = outline.tokens
    layout = "answers packed behind their prompt" if outline.packed else "a row per answer"
    notes = [f"layout: {layout}; a run tests it against the model's own forward before it trains"]
    if run.config.model.quantization is not None:
        notes.append(f"{run.config.model.quantization}: the language model's linear layers, nothing else")
    if tokens.train_vision or tokens.train_projector:
        notes.append("activations of the trained tower or projector are not counted")
    return notes

"""The exact gradient of a micro-batch from backward passes over a few candidates at a time.

A loss is a function of scores, and its gradient a sum over candidates:

    d loss / d weights = sum over candidates c of (d loss / d score_c) * (d score_c / d weights)

The factors in front need the scores alone. So all candidates are scored without gradients, the objective is
differentiated with respect to the scores, and then every part of the batch is scored again, with gradients,
and gets its backward pass with those factors. Only one part's activations exist at a time: for a pair, half.
The part scored last keeps its activations, so that a pair costs one forward pass of one side more.

The draw is the same in both passes, and so is the state of the generators that dropout draws from. Nothing is
approximated, whatever the objective: pairs, lists, losses per latent frame, statistics of the batch.

A network whose rows see each other (batch normalisation) has no such sum; those of the families have none.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Batch, Conditioning, Labels
from mmalign.errors import ConfigError, explain
from mmalign.likelihood import AnyDraw, AnyPolicy, Draw, Evaluation, Likelihood
from mmalign.likelihood.schedules import Schedule
from mmalign.methods.row import LikelihoodKind

__all__ = ["SPLITTABLE", "Cell", "InParts", "PartLosses", "SplitBackward", "SplitEvaluation", "cells_of"]

PartLosses = tuple[Callable[[], Float[Tensor, ""]], ...]
"""Functions that each run a part of the network's work; the gradients of what they return add up."""


SPLITTABLE: frozenset[str] = frozenset({"elbo", "inversion", "on_policy", "transition"})
"""Likelihoods that score every candidate by itself, at a noised sample that is there before."""


class Cell(NamedTuple):
    """A part of a batch.

    Args:
        prompts: its prompts.
        candidates: their candidates.
    """

    prompts: slice
    candidates: slice


def cells_of(num_prompts: int, num_candidates: int, size: int) -> list[Cell]:
    """The parts of a batch: whole columns of candidates as long as they fit, else pieces of one column.

    Args:
        num_prompts: of the batch.
        num_candidates: of every prompt.
        size: candidates of a part, at most; at least one.
    """
    wide = max(1, min(size // max(num_prompts, 1), num_candidates))
    tall = max(1, min(size, num_prompts))
    return [
        Cell(slice(row, row + tall), slice(column, column + wide))
        for column in range(0, num_candidates, wide)
        for row in range(0, num_prompts, tall)
    ]


@dataclass(frozen=True)
class SplitEvaluation:
    """The scores of a batch cut off from the network, and the way back to its weights.

    Args:
        evaluation: what the objective works on; a leaf of its graph.
        parts: evaluate one part each, with gradients; in the order of `cells`.
        cells: the parts.
    """

    evaluation: Evaluation
    parts: Sequence[Callable[[], Evaluation]]
    cells: Sequence[Cell]

    def losses(self, loss: Float[Tensor, ""]) -> PartLosses:
        """What stands for `loss` in the backward passes: the same gradient, a part at a time.

        Args:
            loss: a function of `evaluation`.
        """
        leaves = {
            name: value
            for name in _LEAVES
            if (value := getattr(self.evaluation, name)) is not None and value.requires_grad
        }
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        factors = {name: value for name, value in zip(leaves, gradients, strict=True) if value is not None}

        def of(cell: Cell, evaluate: Callable[[], Evaluation]) -> Callable[[], Tensor]:
            def run() -> Tensor:
                found = evaluate()
                # A part that the loss does not read still has its backward pass: ranks count them.
                total = 0.0 * found.score.sum()
                for name, factor in factors.items():
                    total = total + (factor[cell] * getattr(found, name)).sum()
                return total

            return run

        return tuple(of(cell, part) for cell, part in zip(self.cells, self.parts, strict=True))


_LEAVES = ("score", "inner", "prediction")
"""Fields of an evaluation that objectives differentiate, each a function of the network by itself."""


@dataclass(frozen=True)
class SplitBackward:
    """Cuts the backward pass of a micro-batch into parts.

    Args:
        size: candidates of a part, at most; None is one candidate of every prompt.
        unsynced: a context in which devices do not exchange gradients: all parts but the last run there.
    """

    size: int | None = None
    unsynced: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)

    def evaluate(
        self,
        likelihood: Likelihood,
        policy: AnyPolicy,
        batch: Batch,
        draw: AnyDraw,
        *,
        autocast: Callable[[], AbstractContextManager[None]],
        keep_prediction: bool = False,
    ) -> SplitEvaluation | None:
        """Score a batch without the activations of more than one part; None where it is one part.

        Args:
            likelihood: scores candidates one by one.
            policy: the network.
            batch: on the device.
            draw: of the whole batch.
            autocast: what each pass runs in, anew: casts of weights that were made without gradients are kept
                until it ends.
            keep_prediction: as of `Likelihood.evaluate`.

        Raises:
            ConfigError: the likelihood does not score candidates one by one.
        """
        if not isinstance(draw, Draw) or likelihood.kind not in SPLITTABLE:
            message = explain(
                "train.split_backward",
                got=f"likelihood {likelihood.kind}",
                expected=f"candidates that are scored one by one: {', '.join(sorted(SPLITTABLE))}",
            )
            raise ConfigError(message)
        num_prompts, num_candidates = draw.noised.shape[:2]
        cells = cells_of(num_prompts, num_candidates, self.size or num_prompts)
        if len(cells) == 1:
            return None

        def score(cell: Cell) -> Evaluation:
            with autocast():
                return _score(likelihood, policy, batch, draw, cell, keep_prediction=keep_prediction)

        # The last one is scored with gradients at once, and is first in the backward passes: its activations
        # are there already, and nothing else's are.
        kept, others = cells[-1], cells[:-1]
        parts: list[Callable[[], Evaluation]] = []
        found: list[Evaluation] = []
        for cell in others:
            state = _Randomness.now(draw.noised.device)
            with torch.no_grad():
                found.append(score(cell))
            parts.append(_again(score, cell, state))
        with self.unsynced():
            last = score(kept)
        whole = _joined([*found, last], num_prompts, num_candidates, cells, are_leaves=True)
        return SplitEvaluation(whole, [lambda: last, *parts], [kept, *others])


@dataclass(frozen=True)
class InParts:
    """A likelihood that scores the parts of a batch one after the other, as the policy's are; no gradients.

    So that a reference's sums are taken over matrices of the same size, and a policy that equals it scores
    the same to the last bit.

    Args:
        whole: scores candidates one by one.
        size: as of `SplitBackward`.
    """

    whole: Likelihood
    size: int | None = None

    @property
    def kind(self) -> LikelihoodKind:
        """Of the likelihood."""
        return self.whole.kind

    @property
    def schedule(self) -> Schedule | None:
        """Of the likelihood."""
        return self.whole.schedule

    def draw(self, batch: Batch, policy: AnyPolicy | None = None) -> AnyDraw:
        """Of the likelihood."""
        drawn: AnyDraw = self.whole.draw(batch, policy)
        return drawn

    def evaluate(
        self, policy: AnyPolicy, batch: Batch, draw: Draw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Scores of every candidate, without gradients."""
        num_prompts, num_candidates = draw.noised.shape[:2]
        cells = cells_of(num_prompts, num_candidates, self.size or num_prompts)
        with torch.no_grad():
            found = [
                _score(self.whole, policy, batch, draw, cell, keep_prediction=keep_prediction)
                for cell in cells
            ]
        return _joined(found, num_prompts, num_candidates, cells, are_leaves=False)

    def describe(self) -> dict[str, str]:
        """Of the likelihood."""
        return self.whole.describe()


def _score(
    likelihood: Likelihood, policy: AnyPolicy, batch: Batch, draw: Draw, cell: Cell, *, keep_prediction: bool
) -> Evaluation:
    """The scores of a part."""
    return likelihood.evaluate(
        policy, _batch_of(batch, cell), _draw_of(draw, cell), keep_prediction=keep_prediction
    )


def _again(score: Callable[[Cell], Evaluation], cell: Cell, state: "_Randomness") -> Callable[[], Evaluation]:
    """The same evaluation with the same dropout."""

    def run() -> Evaluation:
        with state.restored():
            return score(cell)

    return run


@dataclass(frozen=True)
class _Randomness:
    """The state of the generators that dropout draws from.

    Args:
        device: of the network.
        host: of the CPU's.
        own: of the device's, where it has one.
    """

    device: torch.device
    host: Tensor
    own: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "_Randomness":
        own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), own)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draw again what was drawn then; afterwards the generators stand where they stood."""
        with torch.random.fork_rng(devices=[] if self.own is None else [self.device]):
            torch.set_rng_state(self.host)
            if self.own is not None:
                torch.cuda.set_rng_state(self.own, self.device)
            yield


def _batch_of(batch: Batch, cell: Cell) -> Batch:
    """What a likelihood reads of a part to score it: conditioning, masks and records of its candidates.

    Labels and rewards belong to the objective. States that an on-policy likelihood adds behind the data's
    candidates are in the draw alone: their part has no clean data.
    """
    rows = batch.rows(cell.prompts)
    conditioning = Conditioning(
        rows.conditioning.shared,
        {name: value[:, cell.candidates] for name, value in rows.conditioning.per_candidate.items()},
    )
    mask = rows.element_mask
    return replace(
        rows,
        clean=rows.clean[:, cell.candidates],
        conditioning=conditioning,
        labels=Labels(),
        reward=None,
        element_mask=None if mask is None else mask[:, cell.candidates],
        recorded={name: value[:, cell.candidates] for name, value in rows.recorded.items()},
    )


def _draw_of(draw: Draw, cell: Cell) -> Draw:
    return Draw(*(getattr(draw, name)[cell] for name in ("timestep", "noise", "noised", "target")))


def _joined(
    found: Sequence[Evaluation],
    num_prompts: int,
    num_candidates: int,
    cells: Sequence[Cell],
    *,
    are_leaves: bool,
) -> Evaluation:
    """The evaluations of all parts as one, cut off from the network; its scores may be leaves of a graph."""

    def join(name: str, *, is_leaf: bool) -> Tensor | None:
        first = getattr(found[0], name)
        if first is None:
            return None
        whole: Tensor = first.new_empty((num_prompts, num_candidates, *first.shape[2:]))
        for cell, part in zip(cells, found, strict=True):
            whole[cell] = getattr(part, name).detach()
        return whole.requires_grad_(is_leaf)

    return Evaluation(
        score=cast("Tensor", join("score", is_leaf=are_leaves)),
        error=cast("Tensor", join("error", is_leaf=False)),
        prediction=join("prediction", is_leaf=are_leaves),
        inner=join("inner", is_leaf=are_leaves),
    )

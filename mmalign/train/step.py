"""One training step as a function of its parts: scores under policy and reference, objective, summed loss."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Batch
from mmalign.likelihood import (
    AnyDraw,
    AnyPolicy,
    Denoiser,
    Draws,
    Evaluation,
    Likelihood,
    Reference,
    TokenDraw,
)
from mmalign.objectives import Objective, ObjectiveState
from mmalign.train.metrics import Quantity, panel_values
from mmalign.train.split_backward import InParts, PartLosses, SplitBackward
from mmalign.train.supply import StepFacts, Supply
from mmalign.train.token_metrics import token_panel_values
from mmalign.train.token_supply import TokenSupply
from mmalign.train.trajectories import holds_steps, trajectory_batch, trajectory_evaluation

__all__ = ["StepOutput", "StepParts", "preference_step"]


@dataclass(frozen=True)
class StepParts:
    """Everything a step reads; nothing here changes during a step.

    Args:
        denoise: the policy.
        likelihood: how candidates are scored.
        reference: scores of the reference; its own object decides how.
        objective: the loss.
        state: running statistics of objectives that need them.
        autocast: context both forwards run in, so that policy and reference use the same arithmetic.
        base: what the panel compares with, on the steps that are logged, when the objective has no reference
            of its own; None where that would need a second network.
        supply: what the objective reads besides the scores.
        split: cuts the backward pass into parts; None is one pass over all candidates.
        draws: how often every row of a batch is drawn.
    """

    denoise: AnyPolicy
    likelihood: Likelihood
    reference: Reference
    objective: Objective
    state: ObjectiveState
    autocast: Callable[[], AbstractContextManager[None]]
    base: Reference | None = None
    supply: Supply | TokenSupply = field(default_factory=Supply)
    split: SplitBackward | None = None
    draws: Draws = field(default_factory=Draws)

    @property
    def denoiser(self) -> Denoiser:
        """The policy of an image model, which samples, too."""
        return cast("Denoiser", self.denoise)


@dataclass(frozen=True)
class StepOutput:
    """Result of one micro-step.

    Args:
        loss: sum over valid prompts of weight times loss, a prompt being there once per draw. The loop
            divides by the global number of valid prompts. Gradients flow to the weights unless the backward
            pass is split: see `backward`.
        num_valid: valid prompts, on the device.
        values: panel values per prompt, detached.
        weights: their weights.
        parts: of a split backward pass: losses whose gradients add up to that of `loss`, each with its own
            forward pass; () is `loss` itself.
        unsynced: what all of them but the last run in.
    """

    loss: Float[Tensor, ""]
    num_valid: Float[Tensor, ""]
    values: dict[str, Tensor]
    weights: dict[str, Tensor]
    parts: PartLosses = ()
    unsynced: Callable[[], AbstractContextManager[None]] = nullcontext

    def backward(self, apply: Callable[[Tensor], object] = torch.Tensor.backward) -> None:
        """The gradient of `loss`, in as many backward passes as there are parts.

        Args:
            apply: runs the backward pass of a scalar; it may scale it.
        """
        parts = self.parts or (lambda: self.loss,)
        for part in parts[:-1]:
            with self.unsynced():
                apply(part())
        apply(parts[-1]())


def preference_step(parts: StepParts, batch: Batch, *, is_record: bool = False) -> StepOutput:
    """Score a batch under policy and reference and evaluate the objective.

    Args:
        parts: the model, the reference, the objective.
        batch: on the device.
        is_record: the numbers of this step are logged: also measure the drift of the predictions, and compare
            with the base model where the objective has no reference.
    """
    batch = parts.draws.over(batch)
    with parts.autocast():
        draw = parts.likelihood.draw(batch, parts.denoise)
    keep = is_record or parts.supply.needs_prediction
    scoring = parts.likelihood if parts.split is None else InParts(parts.likelihood, parts.split.size)
    # The reference goes first: the policy's graph is then not alive while the reference runs.
    # Each in an autocast of its own: casts of weights are cached by parameter until the outermost one ends,
    # and a reference that swaps other weights into the same parameters would hand its casts to the policy.
    with parts.autocast():
        reference = parts.reference.evaluate(scoring, batch, draw, keep_prediction=keep)
    split = None
    if parts.split is not None:
        split = parts.split.evaluate(
            parts.likelihood, parts.denoise, batch, draw, autocast=parts.autocast, keep_prediction=keep
        )
    if split is not None:
        policy = split.evaluation
    else:
        with parts.autocast():
            policy = parts.likelihood.evaluate(parts.denoise, batch, draw, keep_prediction=keep)
    with parts.autocast():
        compared = reference
        if reference is None and parts.base is not None and is_record:
            compared = parts.base.evaluate(scoring, batch, draw, keep_prediction=True)
    if holds_steps(batch):
        policy = trajectory_evaluation(policy, batch)
        reference = None if reference is None else trajectory_evaluation(reference, batch)
        compared = None if compared is None else trajectory_evaluation(compared, batch)
        batch = trajectory_batch(batch)
    level = _level(parts.likelihood, draw)
    facts = StepFacts(batch, draw, policy, reference, level)
    scores, labels = parts.supply.scores(facts, parts.likelihood.kind), parts.supply.labels(batch)
    output = parts.objective(scores, labels, parts.state)
    valid = batch.valid
    weighted = torch.where(valid, output.loss * batch.weight, torch.zeros_like(output.loss))
    if level is None:
        values, weights = token_panel_values(output, scores, labels, valid=valid, compared=compared)
    else:
        values, weights = panel_values(
            metrics=output.metrics,
            applies=output.applies,
            loss=output.loss.detach(),
            logit=output.logit.detach(),
            error_policy=policy.error.detach(),
            error_reference=_error_or_nan(
                compared, policy, known=reference is not None or parts.base is not None
            ),
            drift=_drift(policy, compared),
            level=level,
            valid=valid,
            labels=labels,
            quantity=_QUANTITIES.get(parts.likelihood.kind, "error"),
        )
    loss, num_valid = weighted.sum(), valid.sum().to(torch.float32)
    if parts.split is None or split is None:
        return StepOutput(loss, num_valid, values, weights)
    return StepOutput(
        loss.detach(), num_valid, values, weights, split.losses(loss), unsynced=parts.split.unsynced
    )


_QUANTITIES: Mapping[str, Quantity] = {"transition": "distance", "reward": "reward"}
"""What is no denoising error, by likelihood."""


def _level(likelihood: Likelihood, draw: AnyDraw) -> Tensor | None:
    """Where each prompt's timestep lies in the schedule, 0 (clean) to 1 (noise); None without timesteps."""
    schedule = likelihood.schedule
    if schedule is None or isinstance(draw, TokenDraw):
        return None
    return schedule.network_time(draw.timestep).to(torch.float32).mean(1) / schedule.num_timesteps


def _error_or_nan(compared: Evaluation | None, policy: Evaluation, *, known: bool) -> Tensor | None:
    """Errors to compare with; NaN on steps where they were not computed: the panel's names never change."""
    if compared is not None:
        return compared.error
    return torch.full_like(policy.error.detach(), torch.nan) if known else None


@torch.no_grad()
def _drift(policy: Evaluation, compared: Evaluation | None) -> Tensor:
    """Mean squared distance of the two predictions per prompt; NaN (counted nowhere) if not kept."""
    if compared is None or compared.prediction is None or policy.prediction is None:
        return torch.full_like(policy.error.detach()[:, 0], torch.nan)
    difference = policy.prediction.detach().to(torch.float32) - compared.prediction.to(torch.float32)
    return difference.square().flatten(1).mean(1)

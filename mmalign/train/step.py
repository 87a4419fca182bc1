"""One training step as a function of its parts: scores under policy and reference, objective, summed loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Batch
from mmalign.likelihood import Denoiser, Elbo, Evaluation, Reference
from mmalign.objectives import Objective, ObjectiveState, Scores
from mmalign.train.metrics import panel_values

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
    """

    denoise: Denoiser
    likelihood: Elbo
    reference: Reference
    objective: Objective
    state: ObjectiveState
    autocast: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class StepOutput:
    """Result of one micro-step.

    Args:
        loss: sum over valid prompts of weight times loss; gradients flow. The loop divides by the global
            number of valid prompts.
        num_valid: valid prompts, on the device.
        values: panel values per prompt, detached.
        weights: their weights.
    """

    loss: Float[Tensor, ""]
    num_valid: Float[Tensor, ""]
    values: dict[str, Tensor]
    weights: dict[str, Tensor]


def preference_step(parts: StepParts, batch: Batch, *, with_drift: bool = False) -> StepOutput:
    """Score a batch under policy and reference and evaluate the objective.

    Args:
        parts: the model, the reference, the objective.
        batch: on the device.
        with_drift: also measure the mean squared distance of policy and reference predictions (a logging
            step).
    """
    draw = parts.likelihood.draw(batch)
    # The reference goes first: the policy's graph is then not alive while the reference runs.
    with parts.autocast():
        reference = parts.reference.evaluate(parts.likelihood, batch, draw, keep_prediction=with_drift)
        policy = parts.likelihood.evaluate(parts.denoise, batch, draw, keep_prediction=with_drift)
    scores = Scores(policy=policy.score, reference=None if reference is None else reference.score)
    output = parts.objective(scores, batch.labels, parts.state)
    valid = batch.valid
    weighted = torch.where(valid, output.loss * batch.weight, torch.zeros_like(output.loss))
    values, weights = panel_values(
        metrics=output.metrics,
        loss=output.loss.detach(),
        logit=output.logit.detach(),
        error_policy=policy.error.detach(),
        error_reference=None if reference is None else reference.error,
        drift=None if reference is None else _drift(policy, reference),
        level=_level(parts.likelihood, draw.timestep),
        valid=valid,
        num_candidates_named=batch.labels.probability is not None,
    )
    return StepOutput(weighted.sum(), valid.sum().to(torch.float32), values, weights)


def _level(likelihood: Elbo, timestep: Tensor) -> Tensor:
    """Where each prompt's timestep lies in the schedule, 0 (clean) to 1 (noise)."""
    schedule = likelihood.schedule
    return schedule.network_time(timestep).to(torch.float32).mean(1) / schedule.num_timesteps


@torch.no_grad()
def _drift(policy: Evaluation, reference: Evaluation) -> Tensor:
    """Mean squared distance of the two predictions per prompt; NaN (counted nowhere) if not kept."""
    if reference.prediction is None or policy.prediction is None:
        return torch.full_like(policy.error.detach()[:, 0], torch.nan)
    difference = policy.prediction.detach().to(torch.float32) - reference.prediction.to(torch.float32)
    return difference.square().flatten(1).mean(1)

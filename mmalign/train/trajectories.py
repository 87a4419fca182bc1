"""Steps of two trajectories, scored one by one, as the pair that an objective compares.

The network sees every step as an answer of its own. Here the scores of a trajectory's steps become the inner
axis of one candidate: what sums tokens of an answer then sums steps of a trajectory.

    score[row, side, step] = sum over the step's tokens of log p(token | instruction, pictures, tokens before)

Source: aiming-lab/GRAPE, TPO-Train/finetune.py; arXiv 2411.19309.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Batch
from mmalign.data.dialogues.steps import OF_WORSE
from mmalign.errors import ShapeError, explain
from mmalign.likelihood import Evaluation

__all__ = ["holds_steps", "trajectory_batch", "trajectory_evaluation"]


def holds_steps(batch: Batch) -> bool:
    """Whether the candidates of a batch are steps of two trajectories."""
    return OF_WORSE in batch.recorded


def _is_of(batch: Batch) -> Float[Tensor, "prompt 2 step"]:
    """1 where a step belongs to the better (0) or worse (1) trajectory; steps that only pad belong to none.

    Raises:
        ShapeError: the batch has no mask that tells steps from padding.
    """
    if batch.element_mask is None:
        message = explain("trajectories", got="a batch without element_mask", expected="one of tokens")
        raise ShapeError(message)
    is_real = (batch.element_mask != 0).any(-1)
    worse = batch.recorded[OF_WORSE] != 0
    return torch.stack([is_real & ~worse, is_real & worse], dim=1).to(torch.float32)


def trajectory_batch(batch: Batch) -> Batch:
    """The batch as one of pairs: candidates are trajectories, places of the event axis are steps.

    What the data record of steps is left out, and so is what the network reads: an objective that wants
    divergences of tokens is told that there are none.

    Raises:
        ShapeError: no mask of tokens.
    """
    mask = _is_of(batch)
    labels = batch.labels
    valid = None if labels.valid is None else labels.valid[:, :1].expand(-1, 2)
    folded = replace(labels, valid=valid)
    return replace(
        batch,
        clean=mask.to(torch.int64),
        element_mask=mask,
        labels=folded.known_certain() if labels.certain else folded,
        reward=None if batch.reward is None else batch.reward[:, :2],
        recorded={},
        context=None,
    )


def trajectory_evaluation(evaluation: Evaluation, batch: Batch) -> Evaluation:
    """Scores of steps as those of trajectories; gradients flow.

    Args:
        evaluation: `score` is `[prompt, step]`.
        batch: the batch of steps.

    Raises:
        ShapeError: as `trajectory_batch`.
    """
    mask = _is_of(batch)
    inner = evaluation.score.unsqueeze(1) * mask
    score = inner.sum(-1)
    return Evaluation(score=score, error=-score, inner=inner, mask=mask)

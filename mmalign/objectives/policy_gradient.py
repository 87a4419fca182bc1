"""Score-function losses: the gradient multiplies detached statistics by log-probabilities.

They have no link of a score difference, so they are no rows of the algebra but functions of their own. The
value of such a loss means nothing by itself; its gradient is the estimate.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives.base import require
from mmalign.shapes import require_same_shape

__all__ = ["NashMD", "PenaltyCredit", "nash_md_loss"]

PenaltyCredit = Literal["token", "sequence"]
"""Which log-ratio multiplies a token's log-probability in the KL part of a score-function loss.

token: its own (TRL). The gradient then ignores that a token also changes the later log-ratios.
sequence: the sum of the whole answer (arXiv 2312.00886), an unbiased estimate of the KL's gradient.
"""


@dataclass(frozen=True)
class NashMD:
    """What `nash_md_loss` gives.

    Args:
        loss: `penalty - score`, with gradient.
        score: `(win_probability - 1/2) * sum of log-probabilities`, detached.
        penalty: the KL part, detached.
    """

    loss: Float[Tensor, " prompt"]
    score: Float[Tensor, " prompt"]
    penalty: Float[Tensor, " prompt"]


def nash_md_loss(
    policy: Float[Tensor, "prompt inner"],
    reference: Float[Tensor, "prompt inner"],
    win_probability: Float[Tensor, " prompt"],
    mask: Float[Tensor, "prompt inner"] | None = None,
    *,
    beta: int | float,
    penalty_credit: PenaltyCredit,
) -> NashMD:
    """Nash-MD: `beta * sum_t stop(log_ratio) * log p_t - (P(y > y') - 1/2) * sum_t log p_t`, per prompt.

    One answer y per prompt comes from the policy; the one it competes with, y', from the geometric mixture of
    policy and reference (`mmalign.likelihood.reference_rules.geometric_mixture`).

    Args:
        policy: log-probability of each token of y under the policy, with gradient.
        reference: the same under the reference; never carries gradient.
        win_probability: how likely y is preferred over y', in [0, 1], from a judge or a preference model.
        mask: which positions belong to the answer (1) or not (0); whatever stands elsewhere is ignored.
        beta: >= 0, strength of the KL part (TRL 0.1).
        penalty_credit: see `PenaltyCredit`; libraries differ.

    Returns:
        Everything per prompt; minimise the mean of `.loss`.

    Raises:
        HyperparameterError: `beta` is negative, or there is no such credit.
        ShapeError: policy, reference and mask differ in shape.

    Source: arXiv 2312.00886, section 7; huggingface/trl f2cd5771 NashMDTrainer._compute_losses (token).
    """
    require("nash_md_loss beta", beta, beta >= 0, "a number >= 0")
    require_same_shape("nash_md_loss", policy, reference, ("policy", "reference"))
    if mask is not None:
        require_same_shape("nash_md_loss", policy, mask, ("policy", "mask"))
        counts = mask > 0
        policy = torch.where(counts, policy, torch.zeros_like(policy))
        reference = torch.where(counts, reference, torch.zeros_like(reference))
    wide = torch.promote_types(policy.dtype, torch.float32)
    policy = policy.to(wide)
    log_ratio = (policy - reference.to(wide)).detach()
    if penalty_credit == "token":
        penalty = beta * (log_ratio * policy).sum(-1)
    elif penalty_credit == "sequence":
        penalty = beta * log_ratio.sum(-1) * policy.sum(-1)
    else:
        message = explain("nash_md_loss penalty_credit", got=penalty_credit, expected="token or sequence")
        raise HyperparameterError(message)
    score = (win_probability.detach().to(wide) - 0.5) * policy.sum(-1)
    return NashMD(loss=penalty - score, score=score.detach(), penalty=penalty.detach())

"""The panel of a language model: log-probabilities and log-ratios of both sides, lengths, displacement."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.batch import Labels
from mmalign.likelihood import Evaluation
from mmalign.objectives import ObjectiveOutput, Scores
from mmalign.train.metrics import SATURATION_LOGIT

__all__ = ["token_panel_values"]


@torch.no_grad()
def token_panel_values(
    output: ObjectiveOutput,
    scores: Scores,
    labels: Labels,
    *,
    valid: Bool[Tensor, " prompt"],
    compared: Evaluation | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Per-prompt values and weights of the panel.

    What the objective reports itself (score_chosen: summed log-probability, log_ratio_chosen: minus the
    reference's, reward_chosen: times beta) is not repeated. logps_per_token/SIDE and length/SIDE are means
    over rows; chosen_fell is the share of rows whose chosen answer became less likely than under the
    reference: when it grows with the margin, the model learns to avoid both answers (displacement).

    Args:
        output: of the objective.
        scores: what the objective saw, per token.
        labels: say which side an answer is on.
        valid: False for rows that count nowhere.
        compared: the base model's evaluation, where the objective has no reference.
    """
    weight = valid.to(torch.float32)
    values: dict[str, Tensor] = {
        "loss": output.loss.detach(),
        "logit": output.logit.detach(),
        **output.metrics,
        "saturated": (output.logit.detach().abs() > SATURATION_LOGIT).to(torch.float32),
    }
    weights: dict[str, Tensor] = {"": weight}
    weights |= {name: weight * where for name, where in output.applies.items()}
    mask = torch.ones_like(scores.policy) if scores.mask is None else scores.mask
    policy = (scores.policy.detach() * mask).sum(-1)
    base = scores.reference
    if base is None and compared is not None and compared.inner is not None:
        base = compared.inner[:, : policy.shape[1]]
    reference = None if base is None else (base * mask).sum(-1)
    ratio = torch.full_like(policy, torch.nan) if reference is None else policy - reference
    length = mask.sum(-1)
    for side, (column, share) in _sides(labels, policy.shape[1], weight).items():
        found: Mapping[str, Float[Tensor, " prompt"]] = {
            f"logps_per_token/{side}": (policy / length.clamp(min=1.0))[:, column].mean(1),
            **({} if f"log_ratio_{side}" in values else {f"log_ratio/{side}": ratio[:, column].mean(1)}),
            f"length/{side}": length[:, column].mean(1),
        }
        values |= found
        weights |= dict.fromkeys(found, share)
    if labels.probability is not None and policy.shape[1] > 1:
        difference = ratio[:, 0] - ratio[:, 1]
        # A sign is -1, 0 or 1: ties count half. NaN (no reference) stays NaN and counts nowhere.
        values["implicit_accuracy"] = 0.5 * (difference.sign() + 1.0) + 0.0 * difference
        fell = (ratio[:, 0] < 0).to(torch.float32) + 0.0 * ratio[:, 0]
        values["chosen_fell"] = fell
    return values, weights


def _sides(
    labels: Labels, num_candidates: int, weight: Float[Tensor, " prompt"]
) -> dict[str, tuple[slice, Float[Tensor, " prompt"]]]:
    """Name of a side to (its candidates, the weight of each prompt in its mean)."""
    if labels.probability is not None and num_candidates > 1:
        return {"chosen": (slice(0, 1), weight), "rejected": (slice(1, 2), weight)}
    if labels.desirable is not None and num_candidates == 1:
        liked = labels.desirable[:, 0].to(weight.dtype)
        return {"chosen": (slice(0, 1), weight * liked), "rejected": (slice(0, 1), weight * (1.0 - liked))}
    return {"answers": (slice(None), weight)}

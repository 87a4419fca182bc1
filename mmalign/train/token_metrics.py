"""The panel of a language model: log-probabilities and log-ratios of both sides, lengths, displacement."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.batch import Labels
from mmalign.likelihood import Evaluation
from mmalign.objectives import ObjectiveOutput, Scores
from mmalign.train.metrics import SATURATION_LOGIT, verdict

__all__ = ["token_panel_values", "token_verdict"]


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

    nll/relative_SIDE is the negative log-likelihood over the reference's, less 1, both summed over rows
    of the record; the guard watches it. log_ratio/SIDE is the summed log-probability minus the base model's,
    whatever the objective compares (its own log_ratio_SIDE is that of its reduced scores, and the score
    itself where it has no reference). logps_per_token/SIDE and length/SIDE are means over rows. chosen_fell
    is the share of rows whose chosen answer became less likely than under the reference: when it grows with
    the margin, the model learns to avoid both answers (displacement).

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
            f"log_ratio/{side}": ratio[:, column].mean(1),
            f"length/{side}": length[:, column].mean(1),
        }
        values |= found
        weights |= dict.fromkeys(found, share)
        # Weighted by the reference's: the mean over rows is then the quotient of the sums. An answer that is
        # nearly certain from the start would outweigh all others otherwise.
        start = -(policy - ratio)[:, column].mean(1)
        values[f"nll/relative_{side}"] = -ratio[:, column].mean(1) / start
        weights[f"nll/relative_{side}"] = share * start.nan_to_num(0.0).clamp(min=0.0)
    if labels.probability is not None and policy.shape[1] > 1:
        difference = ratio[:, 0] - ratio[:, 1]
        # A sign is -1, 0 or 1: ties count half. NaN (no reference) stays NaN and counts nowhere.
        values["implicit_accuracy"] = 0.5 * (difference.sign() + 1.0) + 0.0 * difference
    if "logps_per_token/chosen" in values:
        values["chosen_fell"] = (ratio[:, 0] < 0).to(torch.float32) + 0.0 * ratio[:, 0]
        weights["chosen_fell"] = weights["logps_per_token/chosen"]
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


_FELL = 0.5
_LONGER = 1.2


def token_verdict(records: Sequence[Mapping[str, Any]], *, num_dropped: int = 0) -> list[str]:
    """What the records of a language model's run say, in plain words: one sentence per finding.

    As `mmalign.train.metrics.verdict`, and besides: whether chosen answers became less likely than they were
    under the reference (displacement), and whether length alone could explain the preference.

    Args:
        records: logged metrics in order.
        num_dropped: updates dropped because they were not finite.
    """
    findings = verdict(records, num_dropped=num_dropped)
    tail = list(records[-max(len(records) // 4, 1) :])
    return [*findings, *_likelihood_findings(tail), *_length_findings(tail)]


def _likelihood_findings(tail: Sequence[Mapping[str, Any]]) -> list[str]:
    """How both sides' log-likelihoods moved against the reference; silent without a comparison."""
    fell, accuracy = _mean(tail, "chosen_fell"), _mean(tail, "implicit_accuracy")
    chosen = _mean(tail, "log_ratio/chosen")
    rejected = _mean(tail, "log_ratio/rejected")
    if math.isnan(fell):
        return []
    moved = f"mean log-ratio of chosen answers {chosen:+.2f}"
    if not math.isnan(rejected):
        moved += f", of rejected ones {rejected:+.2f}"
    if fell > _FELL and chosen < 0:
        why = "."
        if accuracy > _FELL:
            why = ": the margin grows by making rejected answers unlikely, not chosen ones likely."
        return [
            f"Displacement: {fell:.0%} of the chosen answers are less likely than under the reference "
            f"({moved}){why} Lower the learning rate, raise beta, or take a method that holds the chosen "
            "answer (dpop, rpo_sft)."
        ]
    if chosen > 0:
        return [f"Chosen answers became likelier than under the reference ({moved})."]
    return [f"Chosen answers are about as likely as under the reference ({moved})."]


def _length_findings(tail: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether one side's answers are longer by a fifth: length can then be learned in place of quality."""
    chosen, rejected = _mean(tail, "length/chosen"), _mean(tail, "length/rejected")
    if math.isnan(chosen) or math.isnan(rejected) or min(chosen, rejected) <= 0:
        return []
    if max(chosen, rejected) < _LONGER * min(chosen, rejected):
        return []
    side = "Chosen" if chosen > rejected else "Rejected"
    return [
        f"{side} answers are the longer ones (chosen {chosen:.0f} tokens, rejected {rejected:.0f}): look "
        "whether written answers change their length (section answers), or take a method that takes length "
        "out (simpo, ld_dpo)."
    ]


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean over the records that have it; NaN without one."""
    found = [float(record[name]) for record in records if name in record]
    return statistics.fmean(found) if found else math.nan

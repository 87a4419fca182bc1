"""How the golden cases of one-stage methods call the public interface: from logits to losses.

No formula stands here. Every hyperparameter is read from the case.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.likelihood import token_log_probs
from mmalign.objectives import Objective, Scores
from mmalign.testing.parity import Case

Results = dict[str, Tensor]
Build = Callable[[Case], Objective]


def stacked(values: Tensor, candidates: int) -> Tensor:
    """Rows in blocks of one role, as [prompt, candidate, ...]."""
    return torch.stack(values.chunk(candidates), dim=1)


def given(case: Case, name: str, default: float | None = None) -> float:
    return case.hyperparameters[name] if default is None else case.hyperparameters.get(name, default)


def smoothing(case: Case) -> float:
    return given(case, "label_smoothing", 0.0)


def cpo_family(build: Build) -> Callable[[Case], Results]:
    """TRL's CPO trainer: chosen rows, then rejected rows."""

    def adapter(case: Case) -> Results:
        values, mask = token_log_probs(case["policy_logits"], case["labels"].long())
        scores = Scores(policy=stacked(values, 2), mask=stacked(mask, 2))
        labels = Labels.pairs(scores.policy.shape[0])
        out = build(case)(scores, labels)
        supervised = objectives.sft(normaliser="batch_mean")(scores, labels).loss.mean()
        return {
            "loss": out.loss.mean(),
            # The library reports 0 for a term that it leaves out.
            "nll_loss": supervised if given(case, "cpo_alpha") else torch.zeros_like(supervised),
            "logps_chosen_mean": out.metrics["score_chosen"].mean(),
            "logps_rejected_mean": out.metrics["score_rejected"].mean(),
        }

    return adapter


def cpo(case: Case) -> Objective:
    return objectives.cpo(
        beta=given(case, "beta"),
        coefficient=given(case, "cpo_alpha"),
        normaliser="batch_mean",
        label_smoothing=smoothing(case),
    )


def cpo_hinge(case: Case) -> Objective:
    return objectives.cpo_hinge(
        beta=given(case, "beta"), coefficient=given(case, "cpo_alpha"), normaliser="batch_mean"
    )


def cpo_ipo(case: Case) -> Objective:
    return objectives.cpo_ipo(
        tau=given(case, "beta"), coefficient=given(case, "cpo_alpha"), normaliser="batch_mean"
    )


def cpo_simpo(case: Case) -> Objective:
    return objectives.cpo_simpo(
        beta=given(case, "beta"),
        gamma=given(case, "simpo_gamma"),
        coefficient=given(case, "cpo_alpha"),
        normaliser="batch_mean",
        label_smoothing=smoothing(case),
    )


def alphapo(case: Case) -> Objective:
    """The trainer adds a supervised term to any of its losses."""
    loss = objectives.alphapo(
        beta=given(case, "beta"),
        alpha=given(case, "alpha"),
        gamma=given(case, "simpo_gamma"),
        label_smoothing=smoothing(case),
    )
    return loss + given(case, "cpo_alpha") * objectives.sft(normaliser="batch_mean")


def triple(build: Build) -> Callable[[Case], Results]:
    """TRL's TPO trainer: chosen rows, rejected rows, gold rows."""

    def adapter(case: Case) -> Results:
        completion = torch.where(case["completion_mask"] != 0, case["input_ids"].long(), -100)
        values, mask = token_log_probs(case["policy_logits"], completion)
        rows, kept = stacked(values, 3), stacked(mask, 3)
        scores = Scores(
            policy=rows[:, :2],
            mask=kept[:, :2],
            extras={"gold_score": rows[:, 2].sum(-1), "gold_length": kept[:, 2].sum(-1)},
        )
        return {"loss": build(case)(scores, Labels.pairs(len(rows))).loss.mean()}

    return adapter


def triple_po(case: Case) -> Objective:
    return objectives.triple_po(
        beta=given(case, "beta"),
        coefficient=given(case, "tpo_alpha"),
        normaliser="batch_mean",
        label_smoothing=smoothing(case),
    )


def triple_po_l(case: Case) -> Objective:
    return objectives.triple_po_l(
        beta=given(case, "beta"),
        gamma=given(case, "tpo_l_gamma"),
        coefficient=given(case, "tpo_alpha"),
        normaliser="batch_mean",
        label_smoothing=smoothing(case),
    )


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "text_cpo": cpo_family(cpo),
    "text_cpo_hinge": cpo_family(cpo_hinge),
    "text_cpo_ipo": cpo_family(cpo_ipo),
    "text_cpo_simpo": cpo_family(cpo_simpo),
    "text_alphapo": cpo_family(alphapo),
    "text_triple_po": triple(triple_po),
    "text_triple_po_l": triple(triple_po_l),
}

LEFT_OUT: dict[str, dict[str, str]] = {}

"""Losses on whole next-token distributions of teacher and student, and between several scorings of one thing.

They need more than a number per candidate, so they are no rows of the algebra but functions of their own:
tensors in, one loss per prompt out. Add them to an objective's `loss`, or use them alone.

Logits need not be normalised and are not shifted here: entry t is the distribution of token t of the answer,
and `mask` says which positions belong to it. Everything is summed in float32 or wider; teachers and
references never carry gradient. Values at masked positions are ignored, whatever they are.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mmalign.errors import ShapeError
from mmalign.objectives.base import require, wide
from mmalign.shapes import require_same_shape

__all__ = [
    "FastSlow",
    "adpa_loss",
    "advantage",
    "aligndistil_loss",
    "are_consistent",
    "dckd_loss",
    "fast_slow_loss",
    "sami_loss",
    "scir_penalty",
]


def _log_probabilities(logits: Tensor, mask: Tensor) -> Tensor:
    """Normalised, with a harmless row at masked positions: padding may hold anything, NaN included."""
    kept = torch.where((mask > 0).unsqueeze(-1), logits, torch.zeros_like(logits))
    return wide(kept).log_softmax(-1)


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis where `mask` is not 0; 0 for an empty answer."""
    weight = mask.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp_min(1.0)


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) per position from log-probabilities; tokens that `first` excludes count 0."""
    gap = torch.where(first > -math.inf, first - second, torch.zeros_like(first))
    return (first.exp() * gap).sum(-1)


def _require_strength(where: str, value: float) -> None:
    require(where, value, 0.0 <= value < math.inf, "a finite number >= 0")


def _require_logits(where: str, student: Tensor, others: dict[str, Tensor], mask: Tensor) -> None:
    for name, logits in others.items():
        require_same_shape(where, student, logits, ("student", name))
    if student.shape[:-1] != mask.shape:
        message = (
            f"{where}: got logits {list(student.shape)} and a mask {list(mask.shape)}, "
            "expected the mask of the logits' positions, without the vocabulary."
        )
        raise ShapeError(message)


# --- teacher and student ------------------------------------------------------------------------------------


def dckd_loss(
    student_logits: Float[Tensor, "prompt candidate inner vocabulary"],
    teacher_logits: Float[Tensor, "prompt candidate inner vocabulary"],
    mask: Float[Tensor, "prompt candidate inner"],
    chosen_nll: Float[Tensor, " prompt"],
    *,
    strength: int | float,
) -> Float[Tensor, " prompt"]:
    """DCKD: `chosen_nll + strength * (KL on the chosen + KL on the rejected answer)`, per prompt.

    KL is KL(teacher || student) of the next token, averaged over the tokens of an answer. The teacher was
    aligned with preferences; the student also learns how it continues the answers it would not give.

    Args:
        student_logits: of the trained model.
        teacher_logits: of the aligned teacher, over the same vocabulary.
        mask: which positions belong to the answers.
        chosen_nll: mean negative log-likelihood of the chosen answer's tokens under the student; zeros leave
            the supervised part out.
        strength: >= 0.

    Raises:
        HyperparameterError: `strength` out of range.
        ShapeError: shapes differ.

    Source: arXiv 2502.17927, dual-constrained knowledge distillation, as its trainer computes it
    (SLIT-AI/ADPA run_distill_dpo.py). There the mean is over the tokens of the whole micro-batch and student
    probabilities stop at 1e-7, where their gradient vanishes; here it is per answer and without a floor.
    """
    _require_strength("dckd_loss strength", strength)
    _require_logits("dckd_loss", student_logits, {"teacher": teacher_logits}, mask)
    student = _log_probabilities(student_logits, mask)
    teacher = _log_probabilities(teacher_logits.detach(), mask)
    return wide(chosen_nll) + strength * _token_mean(_divergence(teacher, student), mask).sum(-1)


def advantage(
    teacher_logits: Float[Tensor, "*batch vocabulary"],
    teacher_reference_logits: Float[Tensor, "*batch vocabulary"],
    *,
    floor: float,
) -> Float[Tensor, "*batch vocabulary"]:
    """How much the alignment of a teacher favours each next token: `log p_aligned - log p_unaligned`.

    It is the aligned teacher's implicit reward per token up to its beta.

    Args:
        teacher_logits: of the aligned teacher.
        teacher_reference_logits: of the same teacher before alignment.
        floor: in (0, 1), smallest probability of either side (1e-7 in the official code); bounds the ratio of
            tokens that neither would write.

    Returns:
        Detached, in float32 or wider, at most `-log floor` in size.

    Raises:
        HyperparameterError: `floor` out of range.
    """
    require("advantage floor", floor, 0.0 < floor < 1.0, "a number in (0, 1)")
    low = math.log(floor)
    aligned = wide(teacher_logits.detach()).log_softmax(-1).clamp_min(low)
    return aligned - wide(teacher_reference_logits.detach()).log_softmax(-1).clamp_min(low)


def adpa_loss(
    student_logits: Float[Tensor, "prompt inner vocabulary"],
    teacher_logits: Float[Tensor, "prompt inner vocabulary"],
    teacher_reference_logits: Float[Tensor, "prompt inner vocabulary"],
    mask: Float[Tensor, "prompt inner"],
    chosen_nll: Float[Tensor, " prompt"],
    *,
    strength: int | float,
    floor: float,
) -> Float[Tensor, " prompt"]:
    """ADPA: `chosen_nll - strength * mean_t sum_v p_student(v) * advantage(v)`, per prompt.

    A policy gradient with the exact expectation over the next token instead of a sample. All logits are of
    one answer per prompt, sampled from the student before training (official: it stands where the rejected
    answer stood).

    Args:
        student_logits: of the trained model.
        teacher_logits: of the aligned teacher.
        teacher_reference_logits: of the teacher before alignment.
        mask: which positions belong to the answer.
        chosen_nll: mean negative log-likelihood of the chosen answer's tokens under the student.
        strength: >= 0; the teacher's beta is in it.
        floor: see `advantage`.

    Raises:
        HyperparameterError: a number out of range.
        ShapeError: shapes differ.

    Source: arXiv 2502.17927, advantage-guided distillation, as its trainer computes it (SLIT-AI/ADPA
    run_distill_dpo.py, merge_logits_adpa_dataset.py). There the advantage is kept for the teacher's most
    likely tokens only, and the mean is over the tokens of the micro-batch.
    """
    _require_strength("adpa_loss strength", strength)
    others = {"teacher": teacher_logits, "teacher_reference": teacher_reference_logits}
    _require_logits("adpa_loss", student_logits, others, mask)
    kept = (mask > 0).unsqueeze(-1)
    favour = advantage(
        torch.where(kept, teacher_logits, torch.zeros_like(teacher_logits)),
        torch.where(kept, teacher_reference_logits, torch.zeros_like(teacher_reference_logits)),
        floor=floor,
    )
    expected = (_log_probabilities(student_logits, mask).exp() * favour).sum(-1)
    return wide(chosen_nll) - strength * _token_mean(expected, mask)


def aligndistil_loss(
    student_logits: Float[Tensor, "prompt inner vocabulary"],
    base_logits: Float[Tensor, "prompt inner vocabulary"],
    aligned_logits: Float[Tensor, "prompt inner vocabulary"],
    contrast_logits: Float[Tensor, "prompt inner vocabulary"],
    mask: Float[Tensor, "prompt inner"],
    *,
    extrapolation: int | float | Float[Tensor, "prompt inner"],
) -> Float[Tensor, " prompt"]:
    """Distilling a DPO reward over the vocabulary: mean over t of KL(student || teacher), per prompt.

    The teacher is `softmax(base + extrapolation * (aligned - contrast))`. With the base model as contrast
    this is the optimum of "DPO's implicit reward minus KL to the base", token by token: extrapolation is then
    the ratio of DPO's beta to the KL's. A model trained with swapped labels as contrast doubles the signal.

    Args:
        student_logits: of the trained model, on answers sampled from it. All logits are finite.
        base_logits: where the teacher starts from.
        aligned_logits: of a model trained with DPO.
        contrast_logits: of the base model, or of one trained with chosen and rejected swapped.
        mask: which positions belong to the answer.
        extrapolation: >= 0, or one number per token. 1 with the base as contrast imitates the DPO model.

    Raises:
        HyperparameterError: `extrapolation` is a number out of range.
        ShapeError: shapes differ.

    Source: arXiv 2503.02832 (equivalence as its abstract states it; derived here). Its rule for a number per
    token is not verified: give the numbers.
    """
    if not isinstance(extrapolation, Tensor):
        _require_strength("aligndistil_loss extrapolation", extrapolation)
    others = {"base": base_logits, "aligned": aligned_logits, "contrast": contrast_logits}
    _require_logits("aligndistil_loss", student_logits, others, mask)
    factor = extrapolation.detach().unsqueeze(-1) if isinstance(extrapolation, Tensor) else extrapolation
    aligned = _log_probabilities(aligned_logits.detach(), mask)
    direction = aligned - _log_probabilities(contrast_logits.detach(), mask)
    teacher = (_log_probabilities(base_logits.detach(), mask) + factor * direction).log_softmax(-1)
    return _token_mean(_divergence(_log_probabilities(student_logits, mask), teacher), mask)


# --- several scorings ---------------------------------------------------------------------------------------


def sami_loss(
    log_probability: Float[Tensor, "prompt constitution response"],
) -> Float[Tensor, " prompt"]:
    """SAMI: raises the mutual information of constitutions and answers, per prompt.

    Entry (i, j) scores answer j, which was written under constitution j, under constitution i. The loss is
    the mean cross-entropy of the diagonal over rows (which answer belongs to this constitution) and columns
    (which constitution belongs to this answer), averaged over both. Equal scores give log(constitutions).

    Args:
        log_probability: mean log-probability of the answer's tokens given prompt and constitution; as many
            answers as constitutions, at least two.

    Raises:
        ShapeError: not square, or a single constitution.

    Source: arXiv 2404.14313; janphilippfranken/sami 1208371 sami_trainer.sami_loss. The official trainer can
    add beta * KL to the reference over all tokens; its released run has beta 0.
    """
    _, constitutions, responses = log_probability.shape
    if constitutions != responses or constitutions < 2:
        message = (
            f"sami_loss: got {constitutions} constitutions and {responses} answers, expected as many answers "
            "as constitutions, at least two. Score every answer under every constitution."
        )
        raise ShapeError(message)
    scores = wide(log_probability)
    rows = scores.log_softmax(2).diagonal(dim1=1, dim2=2)
    columns = scores.log_softmax(1).diagonal(dim1=1, dim2=2)
    return -(rows.mean(1) + columns.mean(1)) / 2


def scir_penalty(
    preference_logits: Float[Tensor, "prompt judge"], *, confidence: int | float
) -> Float[Tensor, " prompt"]:
    """SCIR: disagreement of a model's own judges plus `confidence` times their mean entropy, per prompt.

    Judge k prefers the first of two answers with probability `sigmoid(preference_logits[k])`: the implicit
    reward (beta times the log-ratio margin), or a judging prompt's odds. Disagreement is the mean over pairs
    of judges of `(KL(p || q) + KL(q || p)) / 2`.

    Args:
        preference_logits: log-odds of every judge, with gradient; at least two judges.
        confidence: >= 0, weight of the entropy; without it all judges may agree on one half.

    Raises:
        HyperparameterError: `confidence` out of range.
        ShapeError: a single judge.

    Source: arXiv 2502.08922. Summaries of the paper name a symmetric KL and an entropy term; the equation
    and its weights are not verified.
    """
    _require_strength("scir_penalty confidence", confidence)
    logits = wide(preference_logits)
    judges = logits.shape[1]
    if judges < 2:
        message = f"scir_penalty: got {judges} judge, expected at least two to compare."
        raise ShapeError(message)
    chance = logits.sigmoid()
    # For two coins KL(p||q) + KL(q||p) = (p - q) * (logit p - logit q): no logarithm of a probability.
    gap = (chance.unsqueeze(2) - chance.unsqueeze(1)) * (logits.unsqueeze(2) - logits.unsqueeze(1))
    disagreement = gap.sum((1, 2)) / (2 * judges * (judges - 1))
    size = logits.abs()
    entropy = functional.softplus(-size) + size * torch.sigmoid(-size)
    return disagreement + confidence * entropy.mean(1)


def are_consistent(preference_logits: Float[Tensor, "prompt judge"]) -> Bool[Tensor, " prompt"]:
    """Whether all judges prefer the same answer: the pairs that SCIR trains on. A tie is no preference."""
    return (preference_logits > 0).all(1) | (preference_logits < 0).all(1)


@dataclass(frozen=True)
class FastSlow:
    """What `fast_slow_loss` gives, per prompt.

    Args:
        fast: loss of the module in front; its gradient reaches that module only.
        slow: loss of the module that chases it; likewise.
        gap: how far the fast one is ahead, `beta * (margin of fast - margin of slow)`, detached.
    """

    fast: Float[Tensor, " prompt"]
    slow: Float[Tensor, " prompt"]
    gap: Float[Tensor, " prompt"]


def fast_slow_loss(
    fast: Float[Tensor, "prompt candidate"],
    slow: Float[Tensor, "prompt candidate"],
    reference: Float[Tensor, "prompt candidate"],
    *,
    beta: int | float,
    strength: int | float,
) -> FastSlow:
    """OFS-DPO: two modules with the DPO loss each, one that runs ahead and one that chases it.

        chase = -log sigmoid(beta * (margin of fast - margin of slow))
        fast  = DPO(fast) + strength * chase
        slow  = DPO(slow) - strength * chase

    Each side sees the other one detached. The slow loss has no lower bound once the slow module is ahead:
    exchange the roles then, the module with the smaller DPO loss being the fast one.

    Args:
        fast: score of each candidate under the fast module (candidate 0 is chosen), with gradient.
        slow: the same under the slow module.
        reference: the same under the reference.
        beta: > 0, as DPO's.
        strength: >= 0, of the chase; 0 leaves two independent DPO losses.

    Raises:
        HyperparameterError: a number out of range.
        ShapeError: shapes differ, or there are not two candidates.

    Source: arXiv 2406.05534, equations 3 to 6 as an independent implementation cites them; not read in the
    paper itself.
    """
    require("fast_slow_loss beta", beta, 0.0 < beta < math.inf, "a finite number > 0")
    _require_strength("fast_slow_loss strength", strength)
    require_same_shape("fast_slow_loss", fast, slow, ("fast", "slow"))
    require_same_shape("fast_slow_loss", fast, reference, ("fast", "reference"))
    if fast.shape[1] != 2:
        message = f"fast_slow_loss: got {fast.shape[1]} candidates, expected 2: chosen and rejected."
        raise ShapeError(message)

    def margin(scores: Tensor) -> Tensor:
        chosen, rejected = wide(scores).unbind(1)
        return chosen - rejected

    ahead, behind, base = margin(fast), margin(slow), margin(reference.detach())

    def link(logit: Tensor) -> Tensor:
        return functional.softplus(-beta * logit)

    return FastSlow(
        fast=link(ahead - base) + strength * link(ahead - behind.detach()),
        slow=link(behind - base) - strength * link(ahead.detach() - behind),
        gap=beta * (ahead - behind).detach(),
    )

"""The catalogue of pairs about images: severities, temperatures from rewards, lengths, trajectories.

u is the log-ratio, the score under the policy minus the score under the reference.
"""

from typing import Literal

import torch
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, modifiers
from mmalign.objectives.base import CHOSEN, REJECTED, Computed, Context, require, wide
from mmalign.objectives.extras import nll
from mmalign.objectives.grounded import not_negative
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = ["grape_tpo", "hsa_dpo", "lc_dpo_chexalign", "mm_dpo", "mm_dpo_released"]

Sides = Literal["rejected", "chosen", "both"]


def _severity(sides: Sides) -> Computed:
    """`extras["severity"]` on the named sides, 1 on the other."""

    def compute(context: Context) -> Tensor:
        value = wide(context.scores.extra("severity", "hsa_dpo"))
        scored = torch.zeros(value.shape[1], dtype=torch.bool, device=value.device)
        scored[CHOSEN], scored[REJECTED] = sides != "rejected", sides != "chosen"
        return torch.where(scored, value, 1.0)

    text = {"rejected": "(rejected: severity)", "chosen": "(chosen: severity)", "both": "severity"}
    return Computed(compute, text[sides], frozenset({"severity"}))


@objective(
    "hsa_dpo",
    fixes="strength",
    title="Detecting and Mitigating Hallucination in Large Vision Language Models via Fine-Grained AI "
    "Feedback",
    paper="2404.14233",
    year=2024,
    sample={"beta": 0.1},
    parity=("hsa_dpo",),
    official_code="Mr-Loevan/HSA-DPO dbb76cd",
    status="parity",
    published={
        "beta": (0.1, "code"),
        "sides": ("rejected", "code", "a score of the chosen side is optional"),
    },
)
def hsa_dpo(*, beta: float, sides: Sides = "rejected") -> Objective:
    """DPO whose rejected answer counts by the severity of its hallucinations.

    z = beta * (u of chosen - severity * u of rejected), severity = `extras["severity"]` [prompt, candidate],
    1 to 3 released. The factor takes the partition function out of balance, as every unequal weight does.

    Args:
        beta: > 0, per nat; 0.1 released.
        sides: whose severities count: "rejected" (released), "chosen" or "both"; the other side counts 1.

    Raises:
        HyperparameterError: out of range, or unknown sides.

    Source: Mr-Loevan/HSA-DPO, base_dpo_trainer.py; arXiv 2404.14233.
    """
    positive_beta("hsa_dpo", beta)
    if sides not in ("rejected", "chosen", "both"):
        message = explain("hsa_dpo sides", got=sides, expected="'rejected', 'chosen' or 'both'")
        raise HyperparameterError(message)
    return Objective("hsa_dpo", (Term(Pair(), Score(scale=_severity(sides)), beta=beta),))


def _gap_temperature(beta: float, strength: float, rate: float) -> Computed:
    """Beta * (1 + strength * (1 - e^(-rate * reward gap))), in [beta, (1 + strength) beta]."""
    gap = modifiers.reward_gap(rate)

    def compute(context: Context) -> Tensor:
        grown = -torch.expm1(-gap.compute(context).clamp(min=0.0))
        return beta * (1.0 + strength * grown)

    text = f"{beta:g} * (1 + {strength:g} * (1 - exp(-{rate:g} * reward gap)))"
    return Computed(compute, text, gap.needs)


_FLOOR = 1e-3  # the released lower bound of a temperature


def _given_temperature(beta: float, strength: float) -> Computed:
    """Beta * (1 + strength * `extras["temperature_factor"]`), at least 1e-3."""
    factor = modifiers.given("temperature_factor")

    def compute(context: Context) -> Tensor:
        return (beta * (1.0 + strength * factor.compute(context))).clamp(min=_FLOOR)

    text = f"max({_FLOOR:g}, {beta:g} * (1 + {strength:g} * temperature_factor))"
    return Computed(compute, text, factor.needs)


_MM_RLHF = "MM-RLHF: The Next Step Forward in Multimodal LLM Alignment"
_MM_RLHF_CODE = "yfzhang114/MM-RLHF 7c8af1d"


@objective(
    "mm_dpo",
    fixes="temperature",
    title=_MM_RLHF,
    paper="2502.10391",
    year=2025,
    sample={"beta": 0.1, "strength": 0.5, "rate": 0.5},
    official_code=_MM_RLHF_CODE,
    published={
        "beta": (0.1, "code"),
        "strength": (0.5, "paper", "the released script has 0.1"),
        "rate": (0.5, "paper"),
        "nll_coefficient": (0.25, "paper"),
    },
    departures=(
        "the temperature is the paper's function of the reward gap (the code reads a factor stored in the "
        "row: mm_dpo_released; its default implicit_beta replaces both by a random number of the batch, "
        "which is NaN for a single row)",
        "label_smoothing is the share of wrong labels (released: of right ones)",
    ),
)
def mm_dpo(
    *,
    beta: float,
    strength: float,
    rate: float,
    label_smoothing: float = 0.0,
    nll_coefficient: float = 0.0,
) -> Objective:
    """DPO whose temperature grows with the reward gap of the pair.

    z = b * (u of chosen - u of rejected), b = beta * (1 + strength * (1 - exp(-rate * reward gap)))
    loss = -log sigmoid(z) + nll_coefficient * mean negative log-likelihood of the chosen answer
    A gap that is not positive leaves b = beta.

    Args:
        beta: > 0, per nat; 0.1 released.
        strength: >= 0; 0.5 in the paper: b lies in [beta, 1.5 beta].
        rate: >= 0, per unit of reward; 0.5 in the paper.
        label_smoothing: in [0, 0.5].
        nll_coefficient: >= 0, per position; 0.25 in the paper.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2502.10391; yfzhang114/MM-RLHF, trl/trainer/dpo_trainer.py with implicit_beta=False.
    """
    positive_beta("mm_dpo", beta)
    not_negative("mm_dpo strength", strength)
    not_negative("mm_dpo rate", rate)
    not_negative("mm_dpo nll_coefficient", nll_coefficient)
    temperature = _gap_temperature(beta, strength, rate)
    term = Term(Pair(), beta=temperature, labels=labels.smoothed(label_smoothing))
    supervised = (nll("sequence_mean", nll_coefficient),) if nll_coefficient else ()
    return Objective("mm_dpo", (term,), supervised)


@objective(
    "mm_dpo_released",
    fixes="temperature",
    title=_MM_RLHF,
    paper="2502.10391",
    year=2025,
    sample={"beta": 0.1, "strength": 0.5},
    parity=("mm_dpo",),
    official_code=_MM_RLHF_CODE,
    status="parity",
    published={"beta": (0.1, "code"), "strength": (0.1, "code", "0.5 in the paper")},
    departures=("label_smoothing is the share of wrong labels (released: of right ones)",),
)
def mm_dpo_released(*, beta: float, strength: float, label_smoothing: float = 0.0) -> Objective:
    """MM-DPO with a factor stored in every row, as the released code reads it.

    z = b * (u of chosen - u of rejected), b = max(0.001, beta * (1 + strength * f))
    f = `extras["temperature_factor"]` [prompt]; 1 - exp(-rate * reward gap) makes it mm_dpo

    Args:
        beta: > 0, per nat; 0.1 released.
        strength: >= 0; 0.1 in the released script.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: yfzhang114/MM-RLHF, trl/trainer/dpo_trainer.py with implicit_beta=False, row field ls_factor.
    """
    positive_beta("mm_dpo_released", beta)
    not_negative("mm_dpo_released strength", strength)
    smooth = labels.smoothed(label_smoothing)
    return Objective(
        "mm_dpo_released", (Term(Pair(), beta=_given_temperature(beta, strength), labels=smooth),)
    )


# ----------------------------------------------------------------------------------- lengths and trajectories


@objective(
    "lc_dpo_chexalign",
    fixes="length",
    on_errors="axis",
    title="CheXalign: Preference fine-tuning in chest X-ray interpretation models without human feedback",
    paper="2410.07025",
    year=2024,
    sample={"beta": 0.05, "alpha": 0.05},
    parity=("lc_dpo_chexalign",),
    official_code="StanfordMIMI/CheXalign 7a1b22a",
    status="parity",
    published={"beta": (0.05, "code", "0.01 to 0.1 were tried"), "alpha": (0.05, "code")},
    departures=(
        "without smoothing it is length_dpo; the smoothed part keeps the sign of the length, as released",
    ),
    allows={"logit": "the length term is a margin"},
)
def lc_dpo_chexalign(*, beta: float, alpha: float, label_smoothing: float = 0.0) -> Objective:
    """Length-controlled DPO: the length difference is added inside the log-sigmoid.

    h = u of chosen - u of rejected, d = length of chosen - length of rejected, e = label_smoothing
    loss = -(1 - e) * log sigmoid(beta h + alpha d) - e * log sigmoid(-beta h + alpha d)

    Args:
        beta: > 0, per nat; 0.01 to 0.1 released.
        alpha: finite, per token; 0.05 released: a longer chosen answer is credited inside the loss.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: StanfordMIMI/CheXalign, scripts/rdpo_trainer.py; arXiv 2410.07025.
    """
    positive_beta("lc_dpo_chexalign", beta)
    require("lc_dpo_chexalign alpha", alpha, abs(alpha) < float("inf"), "a finite number")
    require("lc_dpo_chexalign label_smoothing", label_smoothing, 0 <= label_smoothing <= 0.5, "in [0, 0.5]")
    length = modifiers.length_bonus(-alpha)

    def gap(context: Context) -> Tensor:
        value = length.compute(context)
        return value[:, CHOSEN] - value[:, REJECTED]

    margin = Computed(gap, f"{-alpha:g} * (length[chosen] - length[rejected])", length.needs)
    kept = Term(Pair(), beta=beta, margin=margin, coefficient=1.0 - label_smoothing)
    flipped = Term(Pair(), beta=-beta, margin=margin, coefficient=label_smoothing, name="smoothed")
    return Objective("lc_dpo_chexalign", (kept, flipped) if label_smoothing else (kept,))


@objective(
    "grape_tpo",
    fixes="baseline",
    title="GRAPE: Generalizing Robot Policy via Preference Alignment",
    paper="2411.19309",
    year=2024,
    sample={"beta": 0.1},
    parity=("grape_tpo",),
    official_code="aiming-lab/GRAPE 89986c7",
    status="parity",
    published={"beta": (0.1, "code", "windows of 8 steps")},
)
def grape_tpo(*, beta: float) -> Objective:
    """DPO on windows of two trajectories: one log-sigmoid over the sum of the steps' log-ratios.

    z = beta * sum over steps of (u of the better trajectory - u of the worse one); the inner axis is steps

    Args:
        beta: > 0, per nat of the action tokens of one step; 0.1 released with windows of 8 steps.

    Raises:
        HyperparameterError: beta <= 0.

    Source: aiming-lab/GRAPE, TPO-Train/finetune.py; arXiv 2411.19309.
    """
    positive_beta("grape_tpo", beta)
    return Objective("grape_tpo", (Term(Pair(), Score(Reduction("sum")), beta=beta),))

"""The catalogue of methods that look at the parts of a response that changed: corrected segments, phrases.

u is the log-ratio of a response, u_t that of a position.
"""

from typing import Literal

import torch
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import extras
from mmalign.objectives.base import Context
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.positions import WEIGHTED, position_weights, require_finite, weighted_dpo
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "dense_dpo",
    "rrpo",
]


@objective(
    "dense_dpo",
    fixes="credit",
    on_errors="axis",
    title="RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human "
    "Feedback",
    paper="2312.00849",
    year=2023,
    sample={"beta": 0.5, "weight": 5.0},
    parity=("rlaifv_ddpo",),
    official_code="RLHF-V/RLAIF-V 83d917b",
    status="parity",
    published={
        "beta": (0.5, "paper", "0.1 in the repository's script"),
        "weight": (5.0, "paper", "3 as the code's default, 1.1 in the repository's script"),
        "normaliser": ("weight", "paper", "the code's default is sum"),
    },
    departures=(
        "the paper divides by the sum of the weights, the code only with dpo_use_average: an argument here",
        "which positions changed is the caller's input, see mmalign.data.changed_tokens; the released "
        "difference runs over padded prompts",
        "the supervised term of the code (weight 0 by default) is added as an objective: + sft(...)",
        "the name DDPO is shared with a policy-gradient method for diffusion, hence the name here",
    ),
    allows={"inner axis": WEIGHTED},
)
def dense_dpo(*, beta: float, weight: float, normaliser: Literal["sum", "weight"] = "sum") -> Objective:
    """DPO that counts corrected segments more: dense DPO of RLHF-V.

    weight of a position = `weight` where `extras["changed"]` is 1, 1 where it is 0
    s = sum over positions of weight_t * u_t, divided by the sum of the weights for normaliser "weight"

    Fractions in `changed` weigh in between.

    Scores without an inner axis are taken as summed with their weights already: only beta is applied then,
    and `changed` is not read.

    Args:
        beta: > 0, per unit of s (0.5 released).
        weight: >= 0, of changed positions (5 in the paper); 1 is DPO.
        normaliser: "sum" (the code's default) or "weight" (the paper's: a mean, so that beta is per token).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2312.00849; RLHF-V/RLAIF-V `compute_weighted_logp`.
    """
    require_finite("dense_dpo weight", weight, 0.0)
    if normaliser not in ("sum", "weight"):
        message = explain("dense_dpo normaliser", got=normaliser, expected="'sum' or 'weight'")
        raise HyperparameterError(message)

    def weigh(changed: Tensor, context: Context) -> Tensor:
        weights = 1.0 + (weight - 1.0) * changed
        if normaliser == "sum":
            return weights
        mask = context.scores.mask
        kept = weights if mask is None else torch.where(mask != 0, weights, 0.0)
        total = kept.sum(-1, keepdim=True)
        return weights / torch.where(total == 0, 1.0, total)

    formula = f"(changed: {weight:g}, others: 1)" + (" / their sum" if normaliser == "weight" else "")
    weights = position_weights("changed", "dense DPO", weigh, formula=formula)
    return weighted_dpo("dense_dpo", beta, Reduction(weights=weights))


@objective(
    "rrpo",
    fixes="credit",
    on_errors="axis",
    title="Self-alignment of Large Video Language Models with Refined Regularized Preference Optimization",
    paper="2504.12083",
    year=2025,
    sample={"beta": 0.1, "alpha": 0.01},
    parity=("rrpo",),
    official_code="pritamqu/RRPO a905573",
    status="parity",
    published={
        "beta": (0.1, "code", "LLaVA-Video; 0.5 LongVU, 0.9 VideoChat2"),
        "alpha": (0.01, "code", "LLaVA-Video and VideoChat2; 0.05 LongVU"),
    },
    departures=(
        "the divergence is added, as in the code; the project page's formula has it inside the minus sign",
        "phrases are only summed, so that their split changes nothing: one mask says which tokens are in any",
        "computed from two log-softmaxes (official: log of a softmax, NaN where a probability underflows)",
        "RRPO is the refined, regularised one: not rpo_sft, nor NeMo's reward-aware RPO (nemo_rpo_*)",
    ),
    allows={"inner axis": WEIGHTED},
)
def rrpo(*, beta: float, alpha: float) -> Objective:
    """DPO on the phrases in which two responses differ, plus a divergence over the whole chosen response.

    z = beta * (sum of u_t over the phrases of chosen - the same of rejected)
    loss = -log sigmoid(z) + alpha * sum over the chosen response of KL(reference || policy)

    `extras["phrase"]` is 1 at positions of differing phrases; `Scores.kl` holds the divergence of every
    position, with gradient; `Scores.mask` covers the whole response.

    Scores without an inner axis are taken as sums over the phrases already.

    Args:
        beta: > 0, per unit of the summed log-ratio (0.1 to 0.9 released).
        alpha: >= 0, weight of the divergence (0.01 to 0.05 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2504.12083; pritamqu/RRPO `losses.py`. Parity: rrpo.
    """
    positive_beta("rrpo", beta)
    require_finite("rrpo alpha", alpha, 0.0)
    weights = position_weights("phrase", "RRPO")
    term = Term(Pair(), Score(Reduction(weights=weights)), beta=beta, name="preference")
    return Objective("rrpo", (term,), (extras.divergence(alpha),) if alpha else ())

"""The catalogue for images and clips as context: several conditions per pair, anchors, severities, guidance.

A row may hold more candidates than the pair (m, y_c), (m, y_r): the same answer beside a corrupted image m-,
the model's own answer, a revised one. Each docstring says which candidate is which; scores of all of them are
stacked on axis 1. r_k is the log-ratio of candidate k.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.objectives.base import CHOSEN, REJECTED, Computed, Context, require, wide
from mmalign.objectives.labels import PointLabels
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import reduce_inner
from mmalign.objectives.structures import Contrast, Pair, Point
from mmalign.objectives.terms import Score, Term

__all__ = [
    "chip",
    "guided_log_probs",
    "guided_score",
    "mdpo",
    "povid",
    "vdpo_guided",
]

ALONE = PointLabels((1.0, 0.0), (1.0, 0.0))
"""A candidate that stands alone is wanted, whatever its number."""

CONDITIONS = {
    "swapping": "a label probability speaks of the two answers; comparisons with other conditions are certain"
}


def not_negative(where: str, value: float) -> None:
    """Raise `HyperparameterError` unless 0 <= value < inf."""
    require(where, value, 0 <= value < float("inf"), "a number >= 0")


def _summed(values: Tensor, context: Context) -> Float[Tensor, "prompt candidate"]:
    """An extra input summed over the inner axis the way the scores are."""
    return wide(values) if values.ndim == 2 else reduce_inner(wide(values), context.scores.mask, "sum")


# ------------------------------------------------------------------------------ corrupted images and anchors


@objective(
    "mdpo",
    fixes="grounding",
    title="mDPO: Conditional Preference Optimization for Multimodal Large Language Models",
    paper="2406.11839",
    year=2024,
    sample={"beta": 0.1},
    parity=("mdpo",),
    official_code="luka-group/mDPO 2221bb3",
    status="parity",
    published={
        "beta": (0.1, "code"),
        "anchor": (0.0, "code"),
        "image_coefficient": (1.0, "code"),
        "anchor_coefficient": (1.0, "code"),
    },
    departures=(
        "the corrupted image is an input, one for policy and reference (official: a fresh random crop, 1 to "
        "20 percent of the area, in every forward pass: the two models see different ones)",
        "a label probability speaks of the response pair only: comparisons with other conditions are certain",
    ),
    allows=CONDITIONS,
)
def mdpo(
    *, beta: float, anchor: float = 0.0, image_coefficient: float = 1.0, anchor_coefficient: float = 1.0
) -> Objective:
    """DPO on the answers, DPO on the images, and an anchor that keeps the chosen answer likely.

    candidates: 0 = (m, y_c), 1 = (m, y_r), 2 = (m-, y_c), m- a corrupted image
    loss = -log sigmoid(beta (r_0 - r_1)) - image_coefficient * log sigmoid(beta (r_0 - r_2))
           - anchor_coefficient * log sigmoid(beta r_0 - anchor)

    Args:
        beta: > 0, per nat of summed log-probability; 0.1 released.
        anchor: finite, in units of beta * r; 0 released: the chosen answer may not become less likely.
        image_coefficient: >= 0; 1 released.
        anchor_coefficient: >= 0; 1 released.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.11839, equations 3 to 5; luka-group/mDPO, mdpo_trainer.py.
    """
    positive_beta("mdpo", beta)
    require("mdpo anchor", anchor, abs(anchor) < float("inf"), "a finite number")
    not_negative("mdpo image_coefficient", image_coefficient)
    not_negative("mdpo anchor_coefficient", anchor_coefficient)
    terms = (
        Term(Pair(), beta=beta, candidates=(0, 1), name="response"),
        Term(Pair(), beta=beta, candidates=(0, 2), coefficient=image_coefficient, name="image"),
        Term(
            Point(),
            beta=beta,
            margin=anchor,
            labels=ALONE,
            candidates=(0,),
            coefficient=anchor_coefficient,
            name="anchor",
        ),
    )
    return Objective("mdpo", terms)


def _divergence_gap(factor: float) -> Computed:
    """Factor * (kl of the rejected answer - kl of the chosen one), gradient through the rejected one only."""

    def compute(context: Context) -> Tensor:
        kl = context.scores.kl
        if kl is None:
            message = explain(
                "Scores.kl, needed by chip",
                got=None,
                expected="KL(reference || policy) summed along each candidate, or per position",
                do="See mmalign.likelihood.token_statistics.vocabulary_kl.",
            )
            raise ConfigError(message)
        total = _summed(kl, context)
        return factor * (total[:, REJECTED] - total[:, CHOSEN].detach())

    return Computed(
        compute,
        f"{factor:g} * (kl[1] - sg(kl[0]))",
        frozenset({"kl"}),
        attached=True,
        tokens_only="a divergence over a vocabulary; for denoisers pass the squared distance of "
        "the predictions as a linear term",
    )


@objective(
    "chip",
    fixes="grounding",
    on_errors="axis",
    title="CHiP: Cross-modal Hierarchical Direct Preference Optimization for Multimodal LLMs",
    paper="2501.16629",
    year=2025,
    sample={"beta": 0.1, "token_coefficient": 0.1},
    parity=("chip",),
    official_code="LVUGAI/CHiP e7f5193",
    status="parity",
    published={"beta": (0.1, "code"), "token_coefficient": (0.1, "code"), "image_coefficient": (1.0, "code")},
    departures=(
        "one log-sigmoid over the sum of the levels, as released (the paper adds separate losses)",
        "segment weights (4 on changed tokens, released) belong into the scores: weigh the tokens before",
        "any number of pairs (the released log-probability routine is right for one pair per device)",
        "a label probability is not read: every label counts as certain",
    ),
    allows=CONDITIONS,
)
def chip(*, beta: float, token_coefficient: float, image_coefficient: float = 1.0) -> Objective:
    """Answer, image and token preference inside one log-sigmoid.

    candidates: 0 = (m, y_c), 1 = (m, y_r), 2 = (m-, y_c), m- a noised image
    z = beta * ((r_0 - r_1) + image_coefficient * (r_0 - r_2) - token_coefficient * (kl_1 - sg(kl_0)))
    loss = -log sigmoid(z), kl_k = sum over positions of KL(reference || policy) over the vocabulary

    Args:
        beta: > 0, per nat; 0.1 released.
        token_coefficient: >= 0; 0.1 released, 0 leaves the tokens out.
        image_coefficient: >= 0; 1 released, 0 leaves the image out (then it is TDPO2, candidate 2 unused).

    Raises:
        HyperparameterError: out of range.

    Source: LVUGAI/CHiP, llava_trainer.py, chip_loss; arXiv 2501.16629.
    """
    positive_beta("chip", beta)
    not_negative("chip token_coefficient", token_coefficient)
    not_negative("chip image_coefficient", image_coefficient)
    structure = Contrast((1.0 + image_coefficient, -1.0, -image_coefficient))
    margin = _divergence_gap(beta * token_coefficient)
    return Objective("chip", (Term(structure, beta=beta, margin=margin),))


@objective(
    "povid",
    fixes="grounding",
    title="Aligning Modalities in Vision Large Language Models via Preference Fine-tuning",
    paper="2402.11411",
    year=2024,
    sample={"beta": 0.1, "own_share": 0.5},
    parity=("povid",),
    official_code="YiyangZhou/POVID 92c7c67",
    status="parity",
    published={"beta": (0.1, "code"), "own_share": (0.5, "code")},
    departures=(
        "the mean of two losses, as released (the paper mixes log-probabilities)",
        "a label probability speaks of the response pair only: comparisons with other conditions are certain",
    ),
    allows=CONDITIONS,
)
def povid(*, beta: float, own_share: float) -> Objective:
    """DPO against a written hallucination and against what the model says under a noised image.

    candidates: 0 = y_c, 1 = y_r, 2 = own answer: at every position of y_c the most likely token under the
    noised image, scored with the clean image; policy and reference each score their own
    loss = -(1 - own_share) * log sigmoid(beta (r_0 - r_1)) - own_share * log sigmoid(beta (r_0 - r_2))

    Args:
        beta: > 0, per nat; 0.1 released.
        own_share: in [0, 1]; 0.5 released, 0 is its first stage.

    Raises:
        HyperparameterError: out of range.

    Source: YiyangZhou/POVID, tool/dpo_trainer_inherent.py; arXiv 2402.11411.
    """
    positive_beta("povid", beta)
    require("povid own_share", own_share, 0 <= own_share <= 1, "a number in [0, 1]")
    terms = (
        Term(Pair(), beta=beta, candidates=(0, 1), coefficient=1.0 - own_share, name="written"),
        Term(Pair(), beta=beta, candidates=(0, 2), coefficient=own_share, name="own"),
    )
    return Objective("povid", terms)


# ------------------------------------------------------------------------------------------------- guidance


def guided_score(
    policy: Float[Tensor, "*batch"], imageless: Float[Tensor, "*batch"], *, guidance: float
) -> Float[Tensor, "*batch"]:
    """Log-probabilities pushed away from those without the image, guidance * p - (guidance - 1) * p0.

    Args:
        policy: log-probabilities with the image, with gradient.
        imageless: of the same tokens without it (a zero or noise image); their gradient is stopped.
        guidance: finite; 1 is the policy itself, 0 what it says blind (and no gradient: the released script).

    Raises:
        HyperparameterError: guidance is not finite.
        ShapeError: the two differ in shape.

    Source: YuxiXie/V-DPO, llava_dpo/utils.py; arXiv 2411.02712.
    """
    require("guided_score guidance", guidance, abs(guidance) < float("inf"), "a finite number")
    if policy.shape != imageless.shape:
        message = explain(
            "guided_score", got=list(imageless.shape), expected=f"{list(policy.shape)}, the policy's"
        )
        raise ShapeError(message)
    return guidance * policy - (guidance - 1.0) * imageless.detach()


def guided_log_probs(
    logits: Float[Tensor, "row position vocabulary"],
    imageless_logits: Float[Tensor, "row position vocabulary"],
    tokens: Int[Tensor, "row position"],
    mask: Bool[Tensor, "row position"],
    *,
    guidance: float,
) -> Float[Tensor, "row position"]:
    """Log-probabilities of tokens under guided logits, 0 where the mask is off.

    log softmax(guidance * logits - (guidance - 1) * sg(imageless_logits))[token]

    Args:
        logits: with the image, aligned with the tokens (not shifted).
        imageless_logits: without it; their gradient is stopped.
        tokens: ids.
        mask: which positions count.
        guidance: finite; 1 is the policy itself.

    Raises:
        HyperparameterError: guidance is not finite.
        ShapeError: the two logits differ in shape.

    Source: YuxiXie/V-DPO, llava_dpo/model/utils.py, gather_log_probabilities_for_cfg.
    """
    mixed = guided_score(wide(logits), wide(imageless_logits), guidance=guidance)
    chosen = torch.where(mask, tokens, 0).unsqueeze(-1)
    selected = F.log_softmax(mixed, dim=-1).gather(-1, chosen).squeeze(-1)
    return torch.where(mask, selected, 0.0)


@objective(
    "vdpo_guided",
    fixes="grounding",
    on_errors="axis",
    title="V-DPO: Mitigating Hallucination in Large Vision Language Models via Vision-Guided Direct "
    "Preference Optimization",
    paper="2411.02712",
    year=2024,
    sample={"beta": 0.1, "guidance": 1.5},
    official_code="YuxiXie/V-DPO ed27c32",
    published={
        "beta": (0.1, "code"),
        "guidance": (0.0, "code", "as released the policy's own term vanishes: a gradient of zero"),
    },
    departures=(
        "the reference is not guided, as released",
        "mask the tokens before the first that differs, as released",
    ),
    allows={"logit": "a guided policy differs from an unguided reference at the start"},
)
def vdpo_guided(*, beta: float, guidance: float) -> Objective:
    """DPO on log-probabilities guided away from what the policy says without the image.

    s = guidance * p - (guidance - 1) * sg(p0) - r, z = beta * (s of chosen - s of rejected), p0 =
    `extras["imageless_score"]`: the policy's log-probabilities of the same tokens without the image

    Args:
        beta: > 0, per nat; 0.1 released.
        guidance: > 0; 1 is DPO.

    Raises:
        HyperparameterError: out of range.

    Source: YuxiXie/V-DPO, llava_dpo/utils.py; arXiv 2411.02712. Pinned to `guided_score` by a test, and that
    to official numbers by the case vdpo_guided_logps.
    """
    positive_beta("vdpo_guided", beta)
    require("vdpo_guided guidance", guidance, 0 < guidance < float("inf"), "a number > 0")

    def added(context: Context) -> Tensor:
        blind = _summed(context.scores.extra("imageless_score", "vdpo_guided"), context)
        return guided_score(context.policy, blind, guidance=guidance) - context.policy

    text = f"{guidance - 1.0:g} * (policy - imageless_score)"
    bonus = Computed(added, text, frozenset({"imageless_score"}), attached=True)
    return Objective("vdpo_guided", (Term(Pair(), Score(bonus=bonus), beta=beta),))

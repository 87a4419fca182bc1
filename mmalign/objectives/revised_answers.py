"""The catalogue of answers that were revised: true, revised and own answers, with and without their image.

r_k is the log-ratio of candidate k.
"""

from typing import Literal

import torch
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.base import Computed, Context, require, wide
from mmalign.objectives.grounded import ALONE, CONDITIONS, not_negative
from mmalign.objectives.labels import PointLabels
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair, Point
from mmalign.objectives.terms import Score, Term

__all__ = ["opa_dpo", "opa_dpo_released"]

AnchorKind = Literal["logistic", "square"]

_UNWANTED = PointLabels((0.0, 1.0), (0.0, 1.0))
"""A candidate that stands alone is not wanted, whatever its number."""


def _of_positions(name: str) -> Computed:
    """Weights of positions from `extras[name]`: [prompt, candidate, inner], or one per candidate."""

    def compute(context: Context) -> Tensor:
        value = wide(context.scores.extra(name, "weights of positions"))
        return value.unsqueeze(2) if value.ndim == 2 else value

    return Computed(compute, name, frozenset({name}))


def _of_reduced(name: str) -> Computed:
    """`extras[name]` where scores come without positions, 1 where their positions are weighted already."""

    def compute(context: Context) -> Tensor:
        value = wide(context.scores.extra(name, "weights of candidates"))
        return value if context.scores.policy.ndim == 2 else torch.ones_like(context.policy)

    return Computed(compute, f"({name} of a reduced score)", frozenset({name}))


def _weighted(name: str) -> Score:
    return Score(Reduction("sum", weights=_of_positions(name)), scale=_of_reduced(name))


_OPA = "Mitigating Hallucinations in Large Vision-Language Models via DPO: On-Policy Data Hold the Key"
_OPA_CODE = "zhyang2226/OPA-DPO db90180"


def _check_opa(where: str, beta: float, image: float, anchors: float, anchor: float) -> None:
    positive_beta(where, beta)
    not_negative(f"{where} image_coefficient", image)
    not_negative(f"{where} anchor_coefficient", anchors)
    require(f"{where} anchor", anchor, abs(anchor) < float("inf"), "a finite number")


@objective(
    "opa_dpo",
    fixes="grounding",
    title=_OPA,
    paper="2501.09695",
    year=2025,
    sample={"beta": 0.1},
    official_code=_OPA_CODE,
    published={
        "beta": (0.1, "code"),
        "image_coefficient": (0.2, "code"),
        "anchor_coefficient": (1.0, "code"),
        "anchor": (0.0, "code"),
    },
    departures=(
        "answers are compared by the sums of their weighted log-ratios (released: token t of one answer with "
        "token t of the other, padding included; that is opa_dpo_released)",
        "both anchors keep their answer likely, as in the paper's figure (released: the one on the revised "
        "answer pushes it down)",
        "a label probability speaks of the response pair only: comparisons with other conditions are certain",
    ),
    allows=CONDITIONS,
)
def opa_dpo(
    *, beta: float, image_coefficient: float = 0.2, anchor_coefficient: float = 1.0, anchor: float = 0.0
) -> Objective:
    """Six preferences over the true, the revised and the model's own answer, with and without the image.

    candidates: 0 = (m, true), 1 = (m, own), 2 = (m, revised), 3 = (m-, true), 4 = (m-, revised)
    loss = DPO(0, 1) + DPO(2, 1; token_severity) + image_coefficient * [DPO(0, 3) + DPO(2, 4; image_relation)]
           + anchor_coefficient * [A(0) + A(2)]
    DPO(i, j; w) = -log sigmoid(beta * (sum of w r_i - sum of w r_j)), A(i) = -log sigmoid(beta r_i - anchor)

    Args:
        beta: > 0, per nat; 0.1 released.
        image_coefficient: >= 0; 0.2 released.
        anchor_coefficient: >= 0; 1 released.
        anchor: finite, in units of beta * r; 0 released.

    `extras["token_severity"]` and `extras["image_relation"]` weigh the tokens, [prompt, candidate, position]
    (or whole answers, [prompt, candidate]). Of the severity candidates 1 and 2 are read, of image_relation 2
    and 4, which share their tokens' weights.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2501.09695, figure of the losses; zhyang2226/OPA-DPO.
    """
    _check_opa("opa_dpo", beta, image_coefficient, anchor_coefficient, anchor)

    def keep(number: int, name: str) -> Term:
        return Term(
            Point(),
            beta=beta,
            margin=anchor,
            labels=ALONE,
            candidates=(number,),
            coefficient=anchor_coefficient,
            name=name,
        )

    seen, hidden = 1.0, image_coefficient
    terms = (
        Term(Pair(), beta=beta, candidates=(0, 1), coefficient=seen, name="true"),
        Term(Pair(), _weighted("token_severity"), beta=beta, candidates=(2, 1), name="revised"),
        Term(Pair(), beta=beta, candidates=(0, 3), coefficient=hidden, name="true_image"),
        Term(
            Pair(),
            _weighted("image_relation"),
            beta=beta,
            candidates=(2, 4),
            coefficient=hidden,
            name="revised_image",
        ),
        keep(0, "anchor_true"),
        keep(2, "anchor_revised"),
    )
    return Objective("opa_dpo", terms)


@objective(
    "opa_dpo_released",
    fixes="grounding",
    title=_OPA,
    paper="2501.09695",
    year=2025,
    sample={"beta": 0.1},
    parity=("opa_dpo",),
    official_code=_OPA_CODE,
    status="parity",
    published={
        "beta": (0.1, "code"),
        "image_coefficient": (0.2, "code"),
        "anchor_coefficient": (1.0, "code"),
        "anchor": (0.0, "code"),
        "anchor_kind": ("logistic", "code"),
        "label_smoothing": (0.0, "code"),
    },
    departures=(
        "the mean is over the positions of a row that at least one of the compared answers has; without a "
        "mask and with zeros at padding it is the released mean over all positions",
        "kept for comparison: the anchor on the revised answer pushes it down, opposite to the paper's "
        "figure; opa_dpo has the figure's",
        "a label probability speaks of the response pair only: comparisons with other conditions are certain",
    ),
    allows=CONDITIONS,
)
def opa_dpo_released(
    *,
    beta: float,
    image_coefficient: float = 0.2,
    anchor_coefficient: float = 1.0,
    anchor: float = 0.0,
    true_coefficient: float = 1.0,
    revised_coefficient: float = 1.0,
    anchor_kind: AnchorKind = "logistic",
    label_smoothing: float = 0.0,
) -> Objective:
    """The released OPA-DPO: answers compared token by token, at equal positions.

    candidates: 0 = (m, true), 1 = (m, own), 2 = (m, revised), 3 = (m-, true), 4 = (m-, revised)
    DPO(i, j; w) = mean over positions t of -log sigmoid(beta * (w_i,t r_i,t - w_j,t r_j,t))
    loss = true_coefficient * [DPO(0, 1) + image_coefficient * DPO(0, 3)]
           + revised_coefficient * [DPO(2, 1; token_severity) + image_coefficient * DPO(2, 4; image_relation)]
           + 2 * anchor_coefficient * mean over positions of [-log sigmoid(beta r_0,t - anchor)
           - log sigmoid(anchor - beta r_2,t)]

    Args:
        beta: > 0, per nat; 0.1 released.
        image_coefficient: >= 0; 0.2 released.
        anchor_coefficient: >= 0; 1 released.
        anchor: finite, in units of beta * r; 0 released.
        true_coefficient: >= 0; 1 released.
        revised_coefficient: >= 0; 1 released.
        anchor_kind: "logistic", or "square" for 2 * [(beta r_0,t - anchor)^2 + (beta r_2,t - anchor)^2].
        label_smoothing: in [0, 0.5], of the four comparisons.

    Raises:
        HyperparameterError: out of range.

    Source: zhyang2226/OPA-DPO, opadpo/dpo_models/dpo_trainer.py, dpo_loss and compute_policy_loss.
    """
    _check_opa("opa_dpo_released", beta, image_coefficient, anchor_coefficient, anchor)
    not_negative("opa_dpo_released true_coefficient", true_coefficient)
    not_negative("opa_dpo_released revised_coefficient", revised_coefficient)
    if anchor_kind not in ("logistic", "square"):
        message = explain("opa_dpo_released anchor_kind", got=anchor_kind, expected="'logistic' or 'square'")
        raise HyperparameterError(message)
    smooth = labels.smoothed(label_smoothing)

    def versus(first: int, second: int, weight: str, coefficient: float, name: str) -> Term:
        return Term(
            Pair(),
            Score(scale=modifiers.given(weight)) if weight else Score(),
            beta=beta,
            labels=smooth,
            candidates=(first, second),
            positions="apart",
            coefficient=coefficient,
            name=name,
        )

    def anchored(number: int, wanted: PointLabels, name: str) -> Term:
        return Term(
            Point(),
            beta=beta,
            margin=anchor,
            link=links.logistic() if anchor_kind == "logistic" else links.square(0.0),
            labels=wanted if anchor_kind == "logistic" else ALONE,
            candidates=(number,),
            positions="apart",
            coefficient=2.0 * anchor_coefficient,
            name=name,
        )

    shown = image_coefficient
    terms = (
        versus(0, 1, "", true_coefficient, "true"),
        versus(2, 1, "token_severity", revised_coefficient, "revised"),
        versus(0, 3, "", true_coefficient * shown, "true_image"),
        versus(2, 4, "image_relation", revised_coefficient * shown, "revised_image"),
        anchored(0, ALONE, "anchor_true"),
        anchored(2, _UNWANTED, "anchor_revised"),
    )
    return Objective("opa_dpo_released", terms)

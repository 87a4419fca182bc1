"""The catalogue of candidates that stand alone: thumbs up or down, or each side of a pair on its own.

The absolute level of a score matters here, so that one-sample diffusion scores need a zero point.
"""

from typing import Literal

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.base import Computed
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Point
from mmalign.objectives.terms import Term

__all__ = ["kto"]

Utility = Literal["sigmoid", "loss_averse", "risk_seeking_1", "risk_seeking_2", "risk_seeking_3"]
ZeroPoint = Literal["batch", "class_balanced", "mismatched"]


def _utility_links(utility: str) -> tuple[Link, Link | None]:
    """1 - utility(z) of liked rows and, if it differs, of the others."""
    if utility == "risk_seeking_1":
        return links.risk_seeking_signed(True), links.risk_seeking_signed(False)
    if utility == "risk_seeking_2":
        return links.risk_seeking_exponential(True), links.risk_seeking_exponential(False)
    same = {
        "sigmoid": links.flat,
        "loss_averse": links.loss_averse,
        "risk_seeking_3": links.risk_seeking_logistic,
    }
    if utility not in same:
        known = "one of sigmoid, loss_averse, risk_seeking_1, risk_seeking_2, risk_seeking_3"
        raise HyperparameterError(explain("kto utility", got=utility, expected=known))
    return same[utility](), None


def _zero_point(kind: str, beta: float) -> Computed:
    makers = {
        "batch": modifiers.batch_zero_point,
        "class_balanced": modifiers.class_balanced_zero_point,
        "mismatched": modifiers.mismatched_zero_point,
    }
    if kind not in makers:
        raise HyperparameterError(explain("kto zero_point", got=kind, expected="one of " + ", ".join(makers)))
    return makers[kind](beta)


@objective(
    "kto",
    title="KTO: Model Alignment as Prospect Theoretic Optimization",
    paper="2402.01306",
    year=2024,
    equation="8",
    sample={"beta": 0.1},
    data="unpaired",
    parity=("text_kto", "diffusion_kto"),
    official_code="trl 1.16.0; jacklishufan/diffusion-kto 226bbd0",
    status="parity",
)
def kto(
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    utility: Utility = "sigmoid",
    zero_point: ZeroPoint = "batch",
) -> Objective:
    """Human utility of liked and disliked rows against a zero point, without pairs.

    z = beta * u - zero point, negated for disliked rows
    loss = weight * (1 - utility(z))

    Utilities (Diffusion-KTO): sigmoid sigma(z); loss_averse log sigma(z); risk_seeking_1 -+log sigma(-+z);
    risk_seeking_2 +-exp(+-z / 100) - 1; risk_seeking_3 -log sigma(-z), unbounded for large z.

    Zero points, detached, in units of z: batch beta * max(0, mean of u); class_balanced beta * mean of the
    two class means; mismatched beta * max(0, mean of u of answers to other prompts), from
    `extras["mismatched_log_ratio"]` (text). They are means over all ranks and couple the rows of a
    micro-batch.

    Args:
        beta: > 0, per unit of score. Text 0.1; diffusion 2000 (1000 in the official code, whose score lacks
            the 1/2).
        desirable_weight: >= 0, weight of liked rows.
        undesirable_weight: >= 0, weight of the others. Text: keep the ratio of weights times counts in [1,
            4/3].
        utility: shape of the utility.
        zero_point: what u is measured against.

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2402.01306, equation 8; arXiv 2404.04465 (Diffusion-KTO). Parity: text_kto, diffusion_kto.
    """
    positive_beta("kto", beta)
    liked, other = _utility_links(utility)
    term = Term(
        Point(),
        beta=beta,
        margin=_zero_point(zero_point, beta),
        link=liked,
        labels=labels.likes(desirable_weight, undesirable_weight),
        link_rejected=other,
        name="kto",
    )
    return Objective("kto", (term,))

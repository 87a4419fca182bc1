"""The discovered links that follow a quantile of the batch: AQL, AQFL and DBAQL.

z = beta * (u of chosen - u of rejected), as in `discovered`. Their gates are weights of two terms, so that
padding and other ranks are counted: with a state the statistics are those of all ranks, while gradients
through them stay on their own rank. The released code takes them over one micro-batch.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.objectives import links
from mmalign.objectives.base import CHOSEN, REJECTED, Computed, Context, require
from mmalign.objectives.discovered import BETA, CODE, PAPER, STEP, TITLE, warn_of_a_wrong_start
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Term

__all__ = [
    "discovered_aqfl",
    "discovered_aql",
    "discovered_dbaql",
]


_BATCH = "a batch of one row has no deviation: it counts as 0 (official: NaN)"


def _across(context: Context, sums: Tensor) -> Tensor:
    """Sums over all ranks by value, with the gradient of this rank's part."""
    return sums + (context.sum_across(sums.detach()) - sums.detach())


def _rows(context: Context) -> tuple[Tensor, Tensor]:
    """(Margin of u, 1 for real pairs and 0 for padding)."""
    margin = context.log_ratio[:, CHOSEN] - context.log_ratio[:, REJECTED]
    return margin, context.real().all(1).to(margin.dtype)


def _batch_mean(context: Context, value: Tensor, kept: Tensor) -> Tensor:
    total = _across(context, torch.stack([(value * kept).sum(), kept.sum()]))
    return total[0] / total[1].clamp(min=1.0)


def _batch_variance(context: Context, value: Tensor, kept: Tensor) -> Tensor:
    """Unbiased; 0 for fewer than two pairs."""
    gap = value - _batch_mean(context, value, kept)
    total = _across(context, torch.stack([(gap.square() * kept).sum(), kept.sum()]))
    return total[0] / (total[1] - 1.0).clamp(min=1.0)


def _root(variance: Tensor) -> Tensor:
    """Square root with gradient 0 at 0."""
    some = variance > 0
    return torch.where(some, torch.where(some, variance, 1.0).sqrt(), 0.0)


def _blended(
    name: str,
    beta: float,
    gate: Callable[[Context], Float[Tensor, " prompt"]],
    formula: str,
    first: Link,
    second: Link,
    couples_rows: bool,
) -> Objective:
    """Gate * first(z) + (1 - gate) * second(z), with gradient through the gate."""
    opened = Computed(gate, formula, couples_rows=couples_rows, attached=True)
    closed = Computed(
        lambda context: 1.0 - gate(context), f"(1 - {formula})", couples_rows=couples_rows, attached=True
    )
    terms = (
        Term(Pair(), beta=beta, link=first, weight=opened, name=first.name),
        Term(Pair(), beta=beta, link=second, weight=closed, name=second.name),
    )
    return Objective(name, terms)


@objective(
    "discovered_aql",
    fixes="overfitting",
    title=TITLE,
    paper=PAPER,
    year=2024,
    equation="11",
    sample={"beta": 0.05, "temperature": 0.2, "quantile": 0.5, "rate": 0.01},
    parity=("text_discovered_aql",),
    official_code=CODE,
    status="parity",
    published={
        "beta": BETA,
        "temperature": (0.05, "code", "points the wrong way at z = 0; a warning says so"),
        "quantile": (0.5, "code"),
        "rate": (0.01, "code"),
    },
    departures=(
        "wrong-signed start, as DiscoPOP's: with the released 0.05 the slope at z = 0 is +0.75. The builder "
        "warns",
        "the gate is sigmoid(quantile - z / temperature), the released code; the paper's equation has "
        "sigmoid(temperature * quantile - z)",
    ),
)
def discovered_aql(
    *, beta: float, temperature: float, quantile: float = 0.5, rate: float = 0.01
) -> Objective:
    """AQL: a gate between logistic and hinge that opens below a moving quantile.

    loss = g * softplus(-z) + (1 - g) * max(0, 1 - z), g = sigmoid(m - z / temperature)
    m = quantile + rate * (sigmoid(mean of z / temperature over the batch) - quantile)

    Args:
        beta: > 0, per unit of score (0.05 released).
        temperature: > 0, of the gate (0.05 released). Up to 0.1047, at the released quantile, the gradient at
            z = 0 makes the rejected candidate more likely: the builder then warns (`UserWarning`).
        quantile: finite (0.5 released).
        rate: in [0, 1] (0.01 released); 0 makes rows independent.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.08414, equations 11 to 14; SakanaAI/DiscoPOP, `adaptive_quantile_loss`.
    """
    positive_beta("discovered_aql", beta)
    require("discovered_aql temperature", temperature, 0 < temperature < math.inf, "a number > 0")
    require("discovered_aql quantile", quantile, abs(quantile) < math.inf, "a finite number")
    require("discovered_aql rate", rate, 0 <= rate <= 1, "a number in [0, 1]")
    opened = 1.0 / (1.0 + math.exp(-min(max(quantile + rate * (0.5 - quantile), -50.0), 50.0)))
    turned, straight = opened * (1.0 - opened) * STEP, 1.0 - 0.5 * opened
    warn_of_a_wrong_start("discovered_aql", temperature, turned / temperature - straight, turned / straight)

    def gate(context: Context) -> Tensor:
        margin, kept = _rows(context)
        hot = beta * margin / temperature
        moving = quantile + rate * (torch.sigmoid(_batch_mean(context, hot, kept)) - quantile)
        return torch.sigmoid(moving - hot)

    formula = f"sigmoid(m - z / {temperature:g})"
    return _blended("discovered_aql", beta, gate, formula, links.logistic(), links.hinge(), rate > 0)


@objective(
    "discovered_aqfl",
    fixes="overfitting",
    title=TITLE,
    paper=PAPER,
    year=2024,
    equation="20",
    sample={"beta": 0.05, "temperature": 0.05, "rate": 0.05, "scale": 0.1},
    parity=("text_discovered_aqfl",),
    official_code=CODE,
    status="parity",
    published={
        "beta": BETA,
        "temperature": (0.05, "code"),
        "rate": (0.05, "code"),
        "scale": (0.1, "code"),
    },
    departures=(
        "the deviation and the sigmoid of the mean as in the released code; the paper's equations have the "
        "variance and the sigmoid of a difference",
        _BATCH,
    ),
)
def discovered_aqfl(
    *, beta: float, temperature: float = 0.05, rate: float = 0.05, scale: float = 0.1
) -> Objective:
    """AQFL: a gate between logistic and hinge that opens with the distance from a quantile of the batch.

    loss = g * softplus(-z) + (1 - g) * max(0, 1 - z), g = sigmoid(scale * |x - m|), x = z / temperature
    m = (1 - rate) * deviation of x * mean of sigmoid(-x) + rate * sigmoid(mean of x)

    Args:
        beta: > 0, per unit of score (0.05 released).
        temperature: > 0 (0.05 released).
        rate: in [0, 1] (0.05 released).
        scale: >= 0 (0.1 released); 0 is half logistic, half hinge.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.08414, equations 20 to 25; SakanaAI/DiscoPOP, `adaptive_quantile_feedback_loss`.
    """
    positive_beta("discovered_aqfl", beta)
    require("discovered_aqfl temperature", temperature, 0 < temperature < math.inf, "a number > 0")
    require("discovered_aqfl rate", rate, 0 <= rate <= 1, "a number in [0, 1]")
    require("discovered_aqfl scale", scale, 0 <= scale < math.inf, "a number >= 0")

    def gate(context: Context) -> Tensor:
        margin, kept = _rows(context)
        hot = beta * margin / temperature
        spread = _root(_batch_variance(context, hot, kept))
        start = spread * _batch_mean(context, torch.sigmoid(-hot), kept)
        moving = start + rate * (torch.sigmoid(_batch_mean(context, hot, kept)) - start)
        return torch.sigmoid(scale * (hot - moving).abs())

    formula = f"sigmoid({scale:g} * |z / {temperature:g} - m|)"
    return _blended("discovered_aqfl", beta, gate, formula, links.logistic(), links.hinge(), True)


def _tempered(link: Link, factor: float) -> Link:
    """The link of factor * z."""
    return Link(
        link.name,
        lambda z: link.function(factor * z),
        lambda z: factor * link.slope(factor * z),
        link.formula.replace("{z}", f"{factor:g} {{z}}"),
    )


@objective(
    "discovered_dbaql",
    fixes="overfitting",
    on_errors="exponential",
    title=TITLE,
    paper=PAPER,
    year=2024,
    equation="9",
    sample={"beta": 0.05, "temperature": 0.05, "sharpness": 0.9},
    parity=("text_discovered_dbaql",),
    official_code=CODE,
    status="parity",
    published={"beta": BETA, "temperature": (0.05, "code"), "sharpness": (0.9, "code")},
    departures=(
        "the exponential is continued by its tangent beyond 20 (official code overflows, and 0 * inf is NaN)",
        _BATCH,
        "the moving quantile of the search's code is computed and never used; it is left out here, too",
    ),
)
def discovered_dbaql(*, beta: float, temperature: float = 0.05, sharpness: float = 0.9) -> Objective:
    """DBAQL: logistic where margins vary, exponential where they agree.

    loss = g * softplus(-z / sharpness) + (1 - g) * exp(-sharpness * z)
    g = sigmoid(variance of z / temperature over the batch), at least 1/2

    Args:
        beta: > 0, per unit of score (0.05 released).
        temperature: > 0 (0.05 released).
        sharpness: > 0 (0.9 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.08414, equation 9; SakanaAI/DiscoPOP, `dynamic_blended_adaptive_quantile_loss`.
    """
    positive_beta("discovered_dbaql", beta)
    require("discovered_dbaql temperature", temperature, 0 < temperature < math.inf, "a number > 0")
    require("discovered_dbaql sharpness", sharpness, 0 < sharpness < math.inf, "a number > 0")

    def gate(context: Context) -> Tensor:
        margin, kept = _rows(context)
        variance = _batch_variance(context, beta * margin / temperature, kept)
        return torch.sigmoid(variance).expand_as(margin)

    formula = f"sigmoid(variance of z / {temperature:g})"
    logistic = _tempered(links.logistic(), 1.0 / sharpness)
    exponential = _tempered(links.exponential(), sharpness)
    return _blended("discovered_dbaql", beta, gate, formula, logistic, exponential, True)

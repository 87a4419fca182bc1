"""The catalogue of links that a language model proposed: DiscoPOP and the six others of its paper.

z = beta * (u of chosen - u of rejected), as in DPO. The search ran at beta = 0.05 on the margin of u; the
released code therefore divides z by 0.05 wherever a constant was found on that scale (`temperature` here).
Three that follow a quantile of the batch stand in `discovered_quantiles`.
"""

import math
import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives import links
from mmalign.objectives.base import CHOSEN, REJECTED, Computed, Context, require
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective, Published, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Term

__all__ = [
    "discopop",
    "discovered_cell",
    "discovered_padll",
    "discovered_pfl",
]

TITLE = "Discovering Preference Optimization Algorithms with and for Large Language Models"
PAPER = "2406.08414"
CODE = "SakanaAI/DiscoPOP 3307865"
BETA: Published = (0.05, "code", "the value of the search")
STEP = 1.0 - math.log(2.0)  # how much more the second link costs than the first at z = 0


def warn_of_a_wrong_start(name: str, temperature: float, slope: float, bound: float) -> None:
    """Say once that the loss rises with z where training starts: it makes rejected candidates more likely."""
    if slope < 0:
        return
    warnings.warn(
        f"{name} temperature: got {temperature:g}. Up to {bound:.4f} the loss falls when the rejected "
        f"candidate gains (slope {slope:+.2f} at z = 0, where training starts) and has a local minimum at a "
        f"negative margin: pairs that start there can stay wrong. Choose a temperature above {bound:.4f}; "
        "0.05 reproduces the released runs.",
        UserWarning,
        stacklevel=1,  # one place for all callers, so that Python's default shows it once
    )


@objective(
    "discopop",
    fixes="overfitting",
    title=TITLE,
    paper=PAPER,
    year=2024,
    equation="27",
    sample={"beta": 0.05, "temperature": 0.2},
    parity=("text_discopop", "text_discovered_lrml"),
    official_code=f"{CODE}; trl 1.16.0",
    status="parity",
    published={
        "beta": BETA,
        "temperature": (0.05, "code", "points the wrong way at z = 0; a warning says so"),
    },
    departures=(
        "wrong-signed start at temperatures up to 0.1023: with the released 0.05 the slope at z = 0 is "
        "+0.78, with a local minimum at z = -0.119 and a barrier at z = +0.072. The builder warns",
        "the gated exponential is computed in logarithms (official code, TRL and Liger: NaN below z = -88)",
    ),
    symbolic="W & RL vs L & RW",
)
def discopop(*, beta: float, temperature: float) -> Objective:
    """Log-ratio modulated loss (LRML): a gate between a logistic and an exponential link.

    loss = (1 - g) * softplus(-z) + g * exp(-z), g = sigmoid(z / temperature)

    Args:
        beta: > 0, per unit of score (0.05 released).
        temperature: in (0, 1) (0.05 released). Up to (1 - log 2) / 3 = 0.1023 the gradient at z = 0 makes the
            rejected candidate more likely: the builder then warns (`UserWarning`).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.08414, equation 27; SakanaAI/DiscoPOP, `log_ratio_modulated_loss`.
    """
    positive_beta("discopop", beta)
    link = links.discovered_gate(temperature)
    warn_of_a_wrong_start("discopop", temperature, STEP / (4.0 * temperature) - 0.75, STEP / 3.0)
    return Objective("discopop", (Term(Pair(), beta=beta, link=link),))


@objective(
    "discovered_cell",
    fixes="overfitting",
    on_errors="exponential",
    title=TITLE,
    paper=PAPER,
    year=2024,
    equation="26",
    sample={"beta": 0.05, "share": 0.5},
    parity=("text_discovered_cell",),
    official_code=CODE,
    status="parity",
    published={"beta": BETA, "share": (0.5, "code")},
    departures=("the exponential is continued by its tangent beyond 20 (official code overflows)",),
    symbolic="W & RL vs L & RW",
)
def discovered_cell(*, beta: float, share: float = 0.5) -> Objective:
    """CELL: share * exp(-z) + (1 - share) * softplus(-z).

    Args:
        beta: > 0, per unit of score (0.05 released).
        share: of the exponential, in [0, 1] (0.5 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.08414, equation 26; SakanaAI/DiscoPOP, `combined_exp_logistic_loss`.
    """
    positive_beta("discovered_cell", beta)
    require("discovered_cell share", share, 0 <= share <= 1, "a number in [0, 1]")
    link = links.mixture((share, links.exponential()), (1.0 - share, links.logistic()))
    return Objective("discovered_cell", (Term(Pair(), beta=beta, link=link, name="cell"),))


def _damped_logistic(decay: float, penalty: float) -> Link:
    """Decay * softplus(-z), times 1 - penalty where z < 0; it jumps at 0."""

    def factor(z: Tensor) -> Tensor:
        return decay * (1.0 - penalty * (z < 0).to(z.dtype))

    low = decay * (1.0 - penalty)
    return Link(
        "damped_logistic",
        lambda z: factor(z) * -F.logsigmoid(z),
        lambda z: -factor(z) * torch.sigmoid(-z),
        f"({decay:g}, or {low:g} where {{z}} < 0) * -log sigmoid({{z}})",
    )


@objective(
    "discovered_padll",
    fixes="overfitting",
    title=TITLE,
    paper=PAPER,
    year=2024,
    equation="18",
    sample={"beta": 0.05, "decay": 0.9, "penalty": 0.5},
    parity=("text_discovered_padll",),
    official_code=CODE,
    status="parity",
    published={"beta": BETA, "decay": (0.9, "code"), "penalty": (0.5, "code")},
    departures=("the released code multiplies its 0.9 in float32, which differs by 3e-8",),
    symbolic="W & RL vs L & RW",
)
def discovered_padll(*, beta: float, decay: float = 0.9, penalty: float = 0.5) -> Objective:
    """PADLL: a logistic loss that counts wrongly ordered pairs less: 0.9 * softplus(-z), 0.45 where z < 0.

    It jumps at z = 0 from 0.31 to 0.62: crossing to the right side costs, though the gradient never says so.

    Args:
        beta: > 0, per unit of score (0.05 released).
        decay: > 0, factor of every pair (0.9 released).
        penalty: in [0, 1), by how much wrongly ordered pairs count less (0.5 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.08414, equations 15 to 19; SakanaAI/DiscoPOP,
    `performance_adaptive_decay_logistic_loss`.
    """
    positive_beta("discovered_padll", beta)
    require("discovered_padll decay", decay, 0 < decay < math.inf, "a number > 0")
    require("discovered_padll penalty", penalty, 0 <= penalty < 1, "a number in [0, 1)")
    term = Term(Pair(), beta=beta, link=_damped_logistic(decay, penalty), name="padll")
    return Objective("discovered_padll", (term,))


@objective(
    "discovered_pfl",
    fixes="overfitting",
    title=TITLE,
    paper=PAPER,
    year=2024,
    equation="29",
    sample={"beta": 0.05, "focus": 2.0},
    parity=("text_discovered_pfl",),
    official_code=CODE,
    status="parity",
    published={"beta": BETA, "focus": (2.0, "code")},
    departures=(
        "z is used as it is, as in the released code; the paper's equation divides it by 0.05, and the loss "
        "of the search knew no beta at all",
    ),
)
def discovered_pfl(*, beta: float, focus: float = 2.0) -> Objective:
    """PFL: softplus(-z) / focus where the policy itself prefers the chosen candidate, else focus * hinge(z).

    The choice looks at the policy's scores p, not at the log-ratios: p of chosen > p of rejected. On
    denoising errors that says which image is easier.

    Args:
        beta: > 0, per unit of score (0.05 released).
        focus: > 0 (2 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.08414, equation 29; SakanaAI/DiscoPOP, `policy_focused_loss`.
    """
    positive_beta("discovered_pfl", beta)
    require("discovered_pfl focus", focus, 0 < focus < math.inf, "a number > 0")

    def right(context: Context) -> Tensor:
        return context.policy[:, CHOSEN] > context.policy[:, REJECTED]

    def easy(context: Context) -> Tensor:
        return right(context).to(context.policy.dtype) / focus

    def hard(context: Context) -> Tensor:
        return (~right(context)).to(context.policy.dtype) * focus

    terms = (
        Term(Pair(), beta=beta, weight=Computed(easy, f"[p[chosen] > p[rejected]] / {focus:g}")),
        Term(
            Pair(),
            beta=beta,
            link=links.hinge(),
            weight=Computed(hard, f"{focus:g} * [p[chosen] <= p[rejected]]"),
        ),
    )
    return Objective("discovered_pfl", terms)

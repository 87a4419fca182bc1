"""The catalogue of generalised preference optimisation (GPO): DPO's z through other convex or bounded links.

u is the log-ratio, z = beta * (u of chosen - u of rejected). Logistic is `dpo`, hinge is `hinge`, the square
(z - 1)^2 is IPO with 2 tau = beta, times beta^2.
"""

from mmalign.objectives import links
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Term

__all__ = ["gpo_exponential", "gpo_savage", "gpo_truncated_quadratic"]

_GPO = "Generalized Preference Optimization: A Unified Approach to Offline Alignment"
_SYMBOLIC = "W & RL vs L & RW"


def _linked(name: str, beta: float, link: Link) -> Objective:
    positive_beta(name, beta)
    return Objective(name, (Term(Pair(), beta=beta, link=link),))


@objective(
    "gpo_exponential",
    fixes="overfitting",
    on_errors="exponential",
    title=_GPO,
    paper="2402.05749",
    year=2024,
    equation="table 1",
    sample={"beta": 0.1},
    status="formula",
    departures=("the exponential is continued by its tangent below z = -20, where it would overflow",),
    symbolic=_SYMBOLIC,
)
def gpo_exponential(*, beta: float) -> Objective:
    """Exponential loss: e^(-z). Wrong pairs pull exponentially hard.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2402.05749, table 1.
    """
    return _linked("gpo_exponential", beta, links.exponential())


@objective(
    "gpo_truncated_quadratic",
    fixes="overfitting",
    title=_GPO,
    paper="2402.05749",
    year=2024,
    equation="table 1",
    sample={"beta": 0.1},
    status="formula",
    symbolic=_SYMBOLIC,
)
def gpo_truncated_quadratic(*, beta: float) -> Objective:
    """Squared hinge: max(0, 1 - z)^2. Pairs beyond z = 1 are left alone, unlike under IPO.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2402.05749, table 1.
    """
    return _linked("gpo_truncated_quadratic", beta, links.truncated_square())


@objective(
    "gpo_savage",
    fixes="label_noise",
    title=_GPO,
    paper="2402.05749",
    year=2024,
    equation="table 1",
    sample={"beta": 0.1},
    status="formula",
    symbolic=_SYMBOLIC,
)
def gpo_savage(*, beta: float) -> Objective:
    """Savage loss: 1 / (1 + e^z)^2. Bounded: pairs that are very wrong, as mislabelled ones are, hardly pull.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2402.05749, table 1.
    """
    return _linked("gpo_savage", beta, links.savage())

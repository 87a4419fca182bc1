"""The catalogue of noise contrastive alignment: InfoNCA and NCA on several rewarded candidates per prompt.

u is the log-ratio of a candidate.
"""

from mmalign.objectives import labels, links
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import ListForward, Point
from mmalign.objectives.terms import Term

__all__ = [
    "infonca",
    "nca",
]


_NCA = "Noise Contrastive Alignment of Language Models with Explicit Rewards"
_NCA_CODE = "thu-ml/Noise-Contrastive-Alignment cbb9248"
_NCA_LIFT = (
    "the released lists of four add 0.01 to the reward of candidate 0, so that it stays the best: do that "
    "in the data"
)


@objective(
    "infonca",
    fixes="lists",
    title=_NCA,
    paper="2402.05369",
    year=2024,
    sample={"beta": 0.01, "temperature": 0.5},
    data="lists",
    parity=("text_infonca_listwise",),
    official_code=_NCA_CODE,
    status="parity",
    published={"temperature": (0.0001, "code", "almost the best answer alone"), "beta": (0.01, "code")},
    departures=(_NCA_LIFT, "temperature is the code's temperature_alpha, 1 / alpha of the paper"),
)
def infonca(*, beta: float, temperature: float) -> Objective:
    """Cross-entropy of softmax(reward / temperature) under softmax(beta u).

    Args:
        beta: > 0, per unit of score (0.01 released).
        temperature: > 0, in units of the reward.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.05369; thu-ml/Noise-Contrastive-Alignment.
    """
    positive_beta("infonca", beta)
    target = labels.softmax_of("reward", temperature)
    return Objective("infonca", (Term(ListForward(), beta=beta, labels=target, name="infonca"),))


@objective(
    "nca",
    fixes="lists",
    on_errors="pointwise",
    title=_NCA,
    paper="2402.05369",
    year=2024,
    sample={"beta": 0.01, "temperature": 0.5},
    data="lists",
    parity=("text_nca_listwise",),
    official_code=_NCA_CODE,
    status="parity",
    published={"temperature": (0.0001, "code", "almost the best answer alone"), "beta": (0.01, "code")},
    departures=(_NCA_LIFT, "temperature is the code's temperature_alpha, 1 / alpha of the paper"),
)
def nca(*, beta: float, temperature: float) -> Objective:
    """Every candidate told from noise: sum of -q log sigmoid(beta u) - log sigmoid(-beta u) / candidates.

    Args:
        beta: > 0, per unit of score (0.01 released).
        temperature: > 0, of q = softmax(reward / temperature).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.05369; thu-ml/Noise-Contrastive-Alignment.
    """
    positive_beta("nca", beta)
    roles = labels.noise_contrastive(labels.softmax_of("reward", temperature))
    return Objective("nca", (Term(Point(), beta=beta, link=links.logistic(), labels=roles, name="nca"),))

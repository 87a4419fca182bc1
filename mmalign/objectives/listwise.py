"""The catalogue of several ranked candidates per prompt, and of target distributions over them."""

from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.base import require
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import AllPairs, ListForward, ListReverse, Plackett, Point
from mmalign.objectives.terms import Term

__all__ = ["exo_pair", "infonca", "lipo_lambda", "nca", "plackett_luce_dpo"]


@objective(
    "exo_pair",
    fixes="baseline",
    title="Towards Efficient Exact Optimization of Language Model Alignment",
    paper="2402.00856",
    year=2024,
    sample={"beta": 0.1, "label_smoothing": 0.001},
    parity=("text_exo_pair",),
    official_code="trl 1.16.0",
    status="parity",
)
def exo_pair(*, beta: float, label_smoothing: float) -> Objective:
    """Reverse KL of the softmax over the pair from [1 - e, e]: seeks the mode where DPO covers.

    loss = sum of P (log P - log q), P = softmax(beta u), q = [1 - e, e], e = label_smoothing

    Args:
        beta: > 0, per unit of score.
        label_smoothing: in (0, 0.5); its logarithm is in the loss (0.001 in TRL).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.00856; trl 1.16.0, loss type "exo_pair".
    """
    positive_beta("exo_pair", beta)
    require("exo_pair label_smoothing", label_smoothing, 0 < label_smoothing < 0.5, "a number in (0, 0.5)")
    target = labels.best_first(label_smoothing)
    return Objective("exo_pair", (Term(ListReverse(), beta=beta, labels=target, name="exo"),))


@objective(
    "plackett_luce_dpo",
    fixes="lists",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    paper="2305.18290",
    year=2023,
    equation="20",
    sample={"beta": 0.1},
    data="lists",
    parity=("text_plackett_luce_dpo",),
    status="parity",
)
def plackett_luce_dpo(*, beta: float) -> Objective:
    """Plackett-Luce likelihood of the whole ranking, best first.

    loss = sum over stages i of logsumexp over j >= i of beta u_j, minus beta u_i

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2305.18290, appendix A.3.
    """
    positive_beta("plackett_luce_dpo", beta)
    return Objective("plackett_luce_dpo", (Term(Plackett(), beta=beta, name="plackett"),))


@objective(
    "infonca",
    fixes="lists",
    title="Noise Contrastive Alignment of Language Models with Explicit Rewards",
    paper="2402.05369",
    year=2024,
    sample={"beta": 0.01, "temperature": 0.5},
    data="lists",
    parity=("text_infonca_listwise",),
    official_code="thu-ml/Noise-Contrastive-Alignment cbb9248",
    status="parity",
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
    title="Noise Contrastive Alignment of Language Models with Explicit Rewards",
    paper="2402.05369",
    year=2024,
    sample={"beta": 0.01, "temperature": 0.5},
    data="lists",
    parity=("text_nca_listwise",),
    official_code="thu-ml/Noise-Contrastive-Alignment cbb9248",
    status="parity",
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


@objective(
    "lipo_lambda",
    fixes="lists",
    title="LiPO: Listwise Preference Optimization through Learning-to-Rank",
    paper="2402.01878",
    year=2024,
    sample={"beta": 0.05},
    data="lists",
    parity=("text_lipo_lambda",),
    status="parity",
)
def lipo_lambda(*, beta: float) -> Objective:
    """Logistic loss over all ordered pairs of a list, weighted by what their exchange would cost in DCG.

    weight = |2^y_i - 2^y_j| * |1 / ln(1 + rank_i) - 1 / ln(1 + rank_j)|, rank by the current scores, no
    gradient

    Args:
        beta: > 0, per unit of score. Keep relevance y in [0, 1].

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2402.01878, equation 8, through a public module.
    """
    positive_beta("lipo_lambda", beta)
    return Objective(
        "lipo_lambda", (Term(AllPairs(weight=modifiers.lambda_weights()), beta=beta, name="lambda"),)
    )

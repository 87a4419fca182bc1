"""The catalogue of ranked or graded candidates per prompt, with a reference: learning to rank.

u is the log-ratio of a candidate and s = beta u. Candidates stand best first, or `Labels.relevance` grades
them; ties are no preference, except where a ranking needs an order (there they keep the given one).
"""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, HyperparameterError, explain
from mmalign.objectives import links, modifiers
from mmalign.objectives.base import Computed, Context, wide
from mmalign.objectives.curricula import Curriculum, curriculum, curry_dpo
from mmalign.objectives.labels import Distribution, PointLabels, Targets
from mmalign.objectives.objective import Objective, Published, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import AllPairs, ListForward, Plackett, Point, Target
from mmalign.objectives.terms import Term

__all__ = [
    "Curriculum",
    "curriculum",
    "curry_dpo",
    "graded",
    "lipo_lambda",
    "lipo_pair_hinge",
    "lipo_pair_logistic",
    "lipo_point_mse",
    "lipo_point_sigmoid",
    "lipo_softmax",
    "plackett_luce_dpo",
    "rankdpo",
]

_LIPO = "LiPO: Listwise Preference Optimization through Learning-to-Rank"
_LIPO_BETA: dict[str, Published] = {
    "beta": (0.05, "ours", "recalled as the paper's for lists of 8, not checked")
}
_SUMS = 'the paper sums over the pairs of a list ("sum"), public modules also divide by their number ("mean")'
Aggregate: TypeAlias = Literal["sum", "mean"]


def _require_aggregate(where: str, aggregate: str) -> None:
    if aggregate not in ("sum", "mean"):
        raise HyperparameterError(explain(f"{where} aggregate", got=aggregate, expected="'sum' or 'mean'"))


def graded(context: Context, wanted_by: str) -> Float[Tensor, "prompt candidate"]:
    """Relevance of every candidate in the scores' type; says who needs it where there is none."""
    relevance = context.labels.relevance
    if relevance is None:
        message = explain(
            f"Labels.relevance, needed by {wanted_by}",
            got=None,
            expected="one grade per candidate, higher is better",
        )
        raise ConfigError(message)
    return wide(relevance).to(context.policy.dtype)


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
    published={"beta": (0.05, "paper", "the list-MLE row of LiPO, arXiv 2402.01878")},
    departures=(
        'the paper sums over the stages ("sum"), a public module also divides by their number ("mean")',
        "tied candidates keep their given order: a ranking likelihood has no ties",
    ),
)
def plackett_luce_dpo(*, beta: float, aggregate: Aggregate = "sum") -> Objective:
    """Plackett-Luce likelihood of the whole ranking, best first; LiPO calls it list-mle.

    loss = sum over stages i of logsumexp over j >= i of beta u_j, minus beta u_i

    Args:
        beta: > 0, per unit of score.
        aggregate: "sum" over the stages of a list (the paper) or their "mean".

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2305.18290, appendix A.3; arXiv 2402.01878, equation 7.
    """
    positive_beta("plackett_luce_dpo", beta)
    _require_aggregate("plackett_luce_dpo", aggregate)
    return Objective("plackett_luce_dpo", (Term(Plackett(aggregate=aggregate), beta=beta, name="plackett"),))


@objective(
    "lipo_lambda",
    fixes="lists",
    title=_LIPO,
    paper="2402.01878",
    year=2024,
    equation="8",
    sample={"beta": 0.05},
    data="lists",
    parity=("text_lipo_lambda",),
    status="parity",
    published=_LIPO_BETA,
    departures=(
        _SUMS,
        "the gain is 2^y - 1; a public baseline has 2 y - 1 and a sign that makes the loss unbounded below",
    ),
)
def lipo_lambda(*, beta: float, aggregate: Aggregate = "sum") -> Objective:
    """Logistic loss over all ordered pairs of a list, weighted by what their exchange would cost in DCG.

    weight = |2^y_i - 2^y_j| * |1 / ln(1 + rank_i) - 1 / ln(1 + rank_j)|, rank by the current scores, no
    gradient

    Args:
        beta: > 0, per unit of score (0.05 released). Keep relevance y in [0, 1].
        aggregate: "sum" over the ordered pairs of a list (the paper) or their "mean".

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.01878, equation 8.
    """
    positive_beta("lipo_lambda", beta)
    _require_aggregate("lipo_lambda", aggregate)
    term = Term(AllPairs(modifiers.lambda_weights(), aggregate), beta=beta, name="lambda")
    return Objective("lipo_lambda", (term,))


@objective(
    "lipo_pair_logistic",
    fixes="lists",
    title=_LIPO,
    paper="2402.01878",
    year=2024,
    equation="5",
    sample={"beta": 0.05},
    data="lists",
    published=_LIPO_BETA,
    departures=(_SUMS,),
)
def lipo_pair_logistic(*, beta: float, aggregate: Aggregate = "sum") -> Objective:
    """RankNet on log-ratios: sum over pairs i better than j of -log sigmoid(s_i - s_j); DPO for two.

    Args:
        beta: > 0, per unit of score (0.05 released).
        aggregate: "sum" over the ordered pairs of a list (the paper) or their "mean".

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.01878, equation 5.
    """
    positive_beta("lipo_pair_logistic", beta)
    _require_aggregate("lipo_pair_logistic", aggregate)
    return Objective(
        "lipo_pair_logistic", (Term(AllPairs(aggregate=aggregate), beta=beta, name="pair_logistic"),)
    )


@objective(
    "lipo_pair_hinge",
    fixes="lists",
    title=_LIPO,
    paper="2402.01878",
    year=2024,
    equation="6",
    sample={"beta": 0.05},
    data="lists",
    published=_LIPO_BETA,
    departures=(_SUMS,),
)
def lipo_pair_hinge(*, beta: float, aggregate: Aggregate = "sum") -> Objective:
    """RankSVM on log-ratios: sum over pairs i better than j of max(0, 1 - (s_i - s_j)); SLiC-norm for two.

    Args:
        beta: > 0, per unit of score (0.05 released).
        aggregate: "sum" over the ordered pairs of a list (the paper) or their "mean".

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.01878, equation 6.
    """
    positive_beta("lipo_pair_hinge", beta)
    _require_aggregate("lipo_pair_hinge", aggregate)
    term = Term(AllPairs(aggregate=aggregate), beta=beta, link=links.hinge(), name="pair_hinge")
    return Objective("lipo_pair_hinge", (term,))


@objective(
    "lipo_point_mse",
    fixes="lists",
    on_errors="pointwise",
    title=_LIPO,
    paper="2402.01878",
    year=2024,
    equation="9",
    sample={"beta": 0.05},
    data="lists",
    published=_LIPO_BETA,
    allows={"gradient signs": "every candidate is pulled to its own relevance, which is above 0 for all"},
)
def lipo_point_mse(*, beta: float) -> Objective:
    """Regression of each scaled log-ratio on its relevance: sum over candidates of (y - s)^2.

    The paper's weakest row, kept as its baseline: it says nothing about order.

    Args:
        beta: > 0, per unit of score (0.05 released); beta u is in units of the relevance.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2402.01878, equation 9.
    """
    positive_beta("lipo_point_mse", beta)
    grade = Computed(lambda context: graded(context, "lipo_point_mse"), "relevance")
    term = Term(Target(), beta=beta, link=links.square(0.0), labels=Targets(grade, grade), name="point_mse")
    return Objective("lipo_point_mse", (term,))


@objective(
    "lipo_point_sigmoid",
    fixes="lists",
    on_errors="pointwise",
    title=_LIPO,
    paper="2402.01878",
    year=2024,
    equation="10",
    sample={"beta": 0.05},
    data="lists",
    published=_LIPO_BETA,
)
def lipo_point_sigmoid(*, beta: float) -> Objective:
    """Cross-entropy per candidate: sum of -y log sigmoid(s) - (1 - y) log sigmoid(-s).

    Args:
        beta: > 0, per unit of score (0.05 released). Relevance y is a probability of winning, in [0, 1].

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2402.01878, equation 10.
    """
    positive_beta("lipo_point_sigmoid", beta)
    wins = Computed(lambda context: graded(context, "lipo_point_sigmoid"), "y")
    loses = Computed(lambda context: 1.0 - graded(context, "lipo_point_sigmoid"), "(1 - y)")
    roles = PointLabels((wins, loses), (wins, loses))
    return Objective("lipo_point_sigmoid", (Term(Point(), beta=beta, labels=roles, name="point_sigmoid"),))


def _share_of_relevance() -> Distribution:
    """Relevance / its sum over the real candidates; all shares 0 where every relevance is 0."""

    def log_weights(context: Context) -> Tensor:
        grade = torch.where(context.real(), graded(context, "lipo_softmax").clamp(min=0.0), 0.0)
        total = grade.sum(1, keepdim=True)
        share = grade / torch.where(total > 0, total, 1.0)
        return share.clamp(min=torch.finfo(share.dtype).tiny).log()

    return Distribution(log_weights, "relevance / sum of relevance")


@objective(
    "lipo_softmax",
    fixes="lists",
    title=_LIPO,
    paper="2402.01878",
    year=2024,
    equation="11",
    sample={"beta": 0.05},
    data="lists",
    published=_LIPO_BETA,
    departures=(
        "the target is relevance divided by its sum, as the paper has it; ListNet itself takes a softmax, "
        "which is infonca",
    ),
)
def lipo_softmax(*, beta: float) -> Objective:
    """Softmax cross-entropy with shares of the relevance as target.

    loss = -sum over candidates of y / (sum of y) * log softmax(s)

    Args:
        beta: > 0, per unit of score (0.05 released). Relevance y >= 0; below 0 counts as 0.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2402.01878, equation 11.
    """
    positive_beta("lipo_softmax", beta)
    term = Term(ListForward(), beta=beta, labels=_share_of_relevance(), name="softmax")
    return Objective("lipo_softmax", (term,))


@objective(
    "rankdpo",
    fixes="lists",
    title="Scalable Ranked Preference Optimization for Text-to-Image Generation",
    paper="2410.18013",
    year=2024,
    equation="6-7",
    sample={"beta": 5000.0, "ranks": "scores"},
    data="lists",
    status="experimental",
    unverified="whether ranks follow the labels (the paper's algorithm 2) or the model's scores (its figure "
    "2), and the reciprocal of the discount, which the copy of the algorithm that could be read has lost",
    departures=(
        "the paper's score is the whole error difference, ours half of it: its beta is half of ours",
        "no training code is public",
    ),
)
def rankdpo(*, beta: float, ranks: Literal["scores", "labels"]) -> Objective:
    """Diffusion-DPO over all pairs of a ranked list, weighted by what their exchange would cost in DCG.

    loss = sum over pairs i better than j of weight * -log sigmoid(beta (u_i - u_j))
    weight = |2^y_i - 2^y_j| * |1 / ln(1 + rank_i) - 1 / ln(1 + rank_j)|, no gradient

    Args:
        beta: > 0, per unit of score; diffusion with mean errors 2000 to 5000.
        ranks: of the weights: by the current "scores" (LambdaLoss) or by the "labels" (fixed weights). y is
            the share of comparisons a candidate wins under the reward models, in [0, 1].

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2410.18013, equations 5 to 7 and algorithm 2.
    """
    positive_beta("rankdpo", beta)
    if ranks not in ("scores", "labels"):
        raise HyperparameterError(explain("rankdpo ranks", got=ranks, expected="'scores' or 'labels'"))
    term = Term(AllPairs(weight=modifiers.lambda_weights(ranks)), beta=beta, name="rankdpo")
    return Objective("rankdpo", (term,))

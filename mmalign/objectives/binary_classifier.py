"""The catalogue of binary classifiers of single answers: BCO, its reward shift and its reweighting."""

from typing import Literal

from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, modifiers
from mmalign.objectives.base import Computed, Context, Number, require, wide
from mmalign.objectives.labels import PointLabels
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Point
from mmalign.objectives.terms import Term

__all__ = ["DeltaRule", "bco", "bco_udm", "reward_shift"]

DeltaRule = Literal["none", "running_samples", "running_batches"]
"""BCO's reward shift: no shift, the mean over all samples so far, or the mean over all batch means so far."""

_BCO = "Binary Classifier Optimization for Large Language Model Alignment"
_BCO_RULES = (
    "delta_rule is explicit: TRL's BCO trainer averages over samples, LLaMA-Factory and ms-swift over the "
    "means of batches, TRL's bco_pair and Liger have none",
    "sums and counts run over all ranks (TRL's running moments do, too); a state in float64 stays so (TRL: "
    "float32)",
)


def reward_shift(rule: str, beta: float) -> Number:
    """BCO's delta under one of the rules of `DeltaRule`, in units of z.

    Raises:
        HyperparameterError: unknown rule.
    """
    makers = {
        "running_samples": modifiers.running_zero_point,
        "running_batches": modifiers.running_batch_zero_point,
    }
    if rule == "none":
        return 0.0
    if rule not in makers:
        known = "one of none, " + ", ".join(makers)
        raise HyperparameterError(explain("bco delta_rule", got=rule, expected=known))
    return makers[rule](beta)


def _shifted(name: str, beta: float, rule: str, roles: PointLabels) -> Objective:
    positive_beta(name, beta)
    margin = reward_shift(rule, beta)
    return Objective(name, (Term(Point(), beta=beta, margin=margin, labels=roles, name="bco"),))


@objective(
    "bco",
    fixes="unpaired",
    on_errors="pointwise",
    title=_BCO,
    paper="2404.04656",
    year=2024,
    sample={"beta": 0.1, "delta_rule": "running_samples"},
    data="unpaired",
    parity=("text_bco_running_delta",),
    departures=_BCO_RULES,
    official_code="huggingface/trl f2cd577, trl/experimental/bco",
    status="parity",
    published={"beta": (0.1, "code"), "delta_rule": ("running_samples", "code", "TRL's BCO trainer")},
)
def bco(
    *,
    beta: float,
    delta_rule: DeltaRule,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Objective:
    """A binary classifier whose logit is the reward, shifted by what rewards are on average.

    z = beta * u - delta
    loss of liked rows = -log sigmoid(z), of the others -log sigmoid(-z)

    delta, detached, is updated with the batch before it is used: none 0; running_samples the mean of beta * u
    over all rows so far; running_batches the mean over all batches so far of their means. It is kept in the
    `ObjectiveState` (`zero_point.mean`, `zero_point.count`), over all ranks.

    Args:
        beta: > 0, per unit of score (0.1 for summed log-probabilities).
        delta_rule: "none", "running_samples" or "running_batches".
        desirable_weight: >= 0, of liked rows.
        undesirable_weight: >= 0, of the others.

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2404.04656; huggingface/trl `BCOTrainer.bco_loss`. Parity: text_bco_running_delta.
    """
    return _shifted("bco", beta, delta_rule, labels.likes(desirable_weight, undesirable_weight))


@objective(
    "bco_udm",
    fixes="unpaired",
    on_errors="pointwise",
    title=_BCO,
    paper="2404.04656",
    year=2024,
    sample={"beta": 0.1, "delta_rule": "running_samples"},
    data="unpaired",
    departures=(
        *_BCO_RULES,
        "the classifier's probability comes in with the scores: fitting it is the user's (TRL fits a "
        "logistic regression on prompt embeddings)",
    ),
    official_code="huggingface/trl f2cd577, trl/experimental/bco",
    published={
        "beta": (0.1, "code"),
        "delta_rule": ("running_samples", "code"),
        "lowest": (0.5, "code"),
        "highest": (10.0, "code"),
    },
)
def bco_udm(*, beta: float, delta_rule: DeltaRule, lowest: float = 0.5, highest: float = 10.0) -> Objective:
    """BCO for likes and dislikes of different prompts: underlying distribution matching.

    weight of disliked rows = clip(p / (1 - p), lowest, highest); that of liked rows is 1; else as `bco`

    p is the probability that the row's prompt is one of those with likes, by a classifier of prompts,
    `extras["desirable_prompt_probability"]`, [prompt, 1]: disliked rows count as if their prompts came from
    the liked rows' distribution.

    Args:
        beta: > 0, per unit of score.
        delta_rule: "none", "running_samples" or "running_batches".
        lowest: > 0, lower bound of the weight (0.5 released).
        highest: >= lowest, upper bound of the weight (10 released).

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2404.04656; huggingface/trl `BCOTrainer._get_udm_weight`, 1e-8 in the divisor as there.
    """
    require("bco_udm lowest", lowest, lowest > 0, "a number > 0")
    require("bco_udm highest", highest, highest >= lowest, f"a number >= lowest = {lowest:g}")

    def compute(context: Context) -> Tensor:
        p = wide(context.scores.extra("desirable_prompt_probability", "bco_udm"))
        return (p / (1.0 - p + 1e-8)).clamp(lowest, highest)

    ratio = Computed(
        compute, f"clip(p / (1 - p), {lowest:g}, {highest:g})", frozenset({"desirable_prompt_probability"})
    )
    return _shifted("bco_udm", beta, delta_rule, PointLabels(rejected=(0.0, ratio)))

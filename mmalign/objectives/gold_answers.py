"""The catalogue of one-stage methods whose answers are not a plain pair.

A third, gold answer beside the pair (`triple_po`), every answer on its own (`asft`), several rejected answers
(`logo`). As in `one_stage` there is no reference, and a supervised term holds the good answer in place.
"""

import math

import torch
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, links, score_shapes
from mmalign.objectives.base import Context, require, wide
from mmalign.objectives.extras import Extra, Normaliser
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.one_stage import MEAN, NORMALISER, SUM, require_coefficient, require_gamma, supervised
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import BestVsRest, Pair, Point
from mmalign.objectives.terms import Score, Term

__all__ = [
    "asft",
    "logo",
    "triple_po",
    "triple_po_hinge",
    "triple_po_ipo",
    "triple_po_l",
]


_TPO = "Triple Preference Optimization: Achieving Better Alignment using a Single Step Optimization"
_GOLD_NORMALISERS = ("sequence_mean", "sequence_sum", "batch_mean")


def _gold_nll(coefficient: float, normaliser: Normaliser) -> tuple[Extra, ...]:
    """Negative log-likelihood of a third answer, `extras["gold_score"]` (summed) over `["gold_length"]`."""
    if normaliser not in _GOLD_NORMALISERS:
        message = explain(
            "normaliser of the gold answer", got=normaliser, expected="one of " + ", ".join(_GOLD_NORMALISERS)
        )
        raise HyperparameterError(message)

    def value(context: Context) -> Tensor:
        kept = context.real().any(1)
        total = wide(context.scores.extra("gold_score", "the supervised term on the gold answer"))
        total = torch.where(kept, total, 0.0)
        if normaliser == "sequence_sum":
            return -total
        length = context.scores.extra("gold_length", "the supervised term on the gold answer")
        count = torch.where(kept, length.to(total.dtype), 0.0)
        if normaliser == "sequence_mean":
            return -total / torch.where(count == 0, 1.0, count)
        sums = context.sum_across(torch.stack([count.sum(), kept.to(total.dtype).sum()])).detach()
        # A batch with no gold token at all has nothing to divide by, and nothing to add.
        return -total * sums[1] / torch.where(sums[0] == 0, 1.0, sums[0])

    formula = {
        "sequence_mean": "-gold_score / gold_length",
        "sequence_sum": "-gold_score",
        "batch_mean": "-gold_score / mean gold_length of the batch",
    }[normaliser]
    needs = {"gold_score"} if normaliser == "sequence_sum" else {"gold_score", "gold_length"}
    couples = normaliser == "batch_mean"
    term = Extra("gold_nll", value, formula, coefficient, needs=frozenset(needs), couples_rows=couples)
    return (term,) if coefficient else ()


@objective(
    "triple_po",
    fixes="displacement",
    on_errors="reference_free",
    title=_TPO,
    paper="2405.16681",
    year=2024,
    sample={"beta": 0.1, "coefficient": 1.0},
    parity=("text_triple_po",),
    official_code="sahsaeedi/triple-preference-optimization; trl 1.16.0, experimental tpo_trainer",
    status="parity",
    published={
        "beta": (0.01, "code", "TRL; 0.1 to 0.2 in the authors' repository"),
        "coefficient": (1.0, "code", "TRL; 0.5 to 0.9 in the authors' repository"),
    },
    departures=(
        NORMALISER,
        "the name tpo is used by four papers (triple, tree, task, trajectory-wise), hence the qualified name",
    ),
)
def triple_po(
    *,
    beta: float,
    coefficient: float,
    normaliser: Normaliser = "sequence_mean",
    label_smoothing: float = 0.0,
) -> Objective:
    """CPO whose supervised term is on a third, gold answer, better than the chosen one.

    z = beta * (p of chosen - p of rejected)
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z) + coefficient * nll of gold, e = label_smoothing

    `extras["gold_score"]` holds the summed log-probabilities of the gold answer, [prompt] with gradient,
    `extras["gold_length"]` its tokens, [prompt].

    Args:
        beta: > 0, per unit of the summed log-probabilities (0.01 to 0.2 released).
        coefficient: >= 0, of the supervised term (0.5 to 1 released).
        normaliser: of the supervised term: "sequence_mean", "sequence_sum" or TRL's "batch_mean".
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2405.16681; trl 1.16.0 TPOTrainer, loss type "sigmoid". Parity: text_triple_po.
    """
    positive_beta("triple_po", beta)
    require_coefficient("triple_po", coefficient)
    term = Term(Pair(), SUM, beta=beta, labels=labels.smoothed(label_smoothing), name="preference")
    return Objective("triple_po", (term,), _gold_nll(coefficient, normaliser))


@objective(
    "triple_po_hinge",
    fixes="displacement",
    on_errors="reference_free",
    title=_TPO,
    paper="2405.16681",
    year=2024,
    sample={"beta": 0.1, "coefficient": 1.0},
    official_code="trl 1.16.0, experimental tpo_trainer",
    status="formula",
    published={"beta": (0.01, "code", "TRL"), "coefficient": (1.0, "code", "TRL's tpo_alpha")},
    departures=(NORMALISER, "TRL scales the gap by beta and keeps the hinge at 1, as in cpo_hinge"),
)
def triple_po_hinge(
    *, beta: float, coefficient: float, normaliser: Normaliser = "sequence_mean"
) -> Objective:
    """Triple PO with a hinge.

    loss = max(0, 1 - beta * (p of chosen - p of rejected)) + coefficient * nll of gold

    Inputs as `triple_po`.

    Args:
        beta: > 0, per unit of the summed log-probabilities (0.01 released).
        coefficient: >= 0, of the supervised term (1 released).
        normaliser: of the supervised term: "sequence_mean", "sequence_sum" or TRL's "batch_mean".

    Raises:
        HyperparameterError: out of range.

    Source: trl 1.16.0 TPOTrainer, loss type "hinge".
    """
    positive_beta("triple_po_hinge", beta)
    require_coefficient("triple_po_hinge", coefficient)
    term = Term(Pair(), SUM, beta=beta, link=links.hinge(), name="preference")
    return Objective("triple_po_hinge", (term,), _gold_nll(coefficient, normaliser))


@objective(
    "triple_po_ipo",
    fixes="overfitting",
    on_errors="reference_free",
    title=_TPO,
    paper="2405.16681",
    year=2024,
    sample={"tau": 0.1, "coefficient": 1.0},
    official_code="trl 1.16.0, experimental tpo_trainer",
    status="formula",
    published={"tau": (0.01, "code", "TRL's beta"), "coefficient": (1.0, "code", "TRL's tpo_alpha")},
    departures=(
        NORMALISER,
        "TRL's CPO and TPO trainers call this ipo: token means and no reference, unlike any other ipo",
    ),
)
def triple_po_ipo(*, tau: float, coefficient: float, normaliser: Normaliser = "sequence_mean") -> Objective:
    """IPO's square on token means without a reference, plus a supervised term on a third, gold answer.

    loss = (mean of p of chosen - mean of p of rejected - 1 / (2 tau))^2 + coefficient * nll of gold

    Inputs as `triple_po`; scores without an inner axis must already be means.

    Args:
        tau: > 0; the target margin is 1 / (2 tau) nats per token.
        coefficient: >= 0, of the supervised term (1 released).
        normaliser: of the supervised term: "sequence_mean", "sequence_sum" or TRL's "batch_mean".

    Raises:
        HyperparameterError: out of range.

    Source: trl 1.16.0 TPOTrainer, loss type "ipo".
    """
    require("triple_po_ipo tau", tau, 0 < tau < math.inf, "a number > 0")
    require_coefficient("triple_po_ipo", coefficient)
    term = Term(Pair(), MEAN, link=links.square(1.0 / (2.0 * tau)), name="preference")
    return Objective("triple_po_ipo", (term,), _gold_nll(coefficient, normaliser))


@objective(
    "triple_po_l",
    fixes="length",
    on_errors="reference_free",
    title=_TPO,
    paper="2405.16681",
    year=2024,
    sample={"beta": 2.0, "gamma": 0.5, "coefficient": 1.0},
    parity=("text_triple_po_l",),
    official_code="sahsaeedi/triple-preference-optimization; trl 1.16.0, experimental tpo_trainer",
    status="parity",
    published={
        "beta": (10.0, "code", "TRL's example"),
        "gamma": (0.5, "code", "TRL's tpo_l_gamma"),
        "coefficient": (1.0, "code", "TRL's tpo_alpha"),
    },
    departures=(NORMALISER, "gamma is in units of z, as TRL's tpo_l_gamma"),
)
def triple_po_l(
    *,
    beta: float,
    gamma: float,
    coefficient: float,
    normaliser: Normaliser = "sequence_mean",
    label_smoothing: float = 0.0,
) -> Objective:
    """Triple PO on token means with a margin: SimPO plus a supervised term on a third, gold answer.

    z = beta * (mean of p of chosen - mean of p of rejected) - gamma
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z) + coefficient * nll of gold, e = label_smoothing

    Inputs as `triple_po`.

    Scores without an inner axis must already be means.

    Args:
        beta: > 0, per unit of mean score.
        gamma: >= 0, in units of z (0.5 released).
        coefficient: >= 0, of the supervised term (1 released).
        normaliser: of the supervised term: "sequence_mean", "sequence_sum" or TRL's "batch_mean".
        label_smoothing: in [0, 0.5]; flips the whole of z with its margin.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2405.16681; trl 1.16.0 TPOTrainer, loss type "tpo-l". Parity: text_triple_po_l.
    """
    positive_beta("triple_po_l", beta)
    require_gamma("triple_po_l", gamma)
    require_coefficient("triple_po_l", coefficient)
    smooth = labels.smoothed(label_smoothing)
    term = Term(Pair(), MEAN, beta=beta, margin=gamma, labels=smooth, name="preference")
    return Objective("triple_po_l", (term,), _gold_nll(coefficient, normaliser))


@objective(
    "asft",
    fixes="displacement",
    on_errors="reference_free",
    title="ASFT: Aligned Supervised Fine-Tuning through Absolute Likelihood",
    paper="2409.10571",
    year=2024,
    sample={"beta": 0.1},
    status="experimental",
    unverified="the weight of the alignment term, the normaliser of the supervised one, and where the "
    "temperature of the later comparison stands: only abstracts and second-hand formulas could be read",
    departures=(
        "temperature and coefficient are for the two-stage form of arXiv 2502.01237 (supervised first, then "
        "coefficient 0 and a tuned temperature), which its abstract reports to do better",
        "log(1 - e^p) by two safe branches",
        "another ASFT (anchored supervised fine-tuning, arXiv 2509.23753) is no preference method",
    ),
)
def asft(
    *,
    beta: float,
    temperature: float = 1.0,
    coefficient: float = 1.0,
    normaliser: Normaliser = "sequence_mean",
) -> Objective:
    """Supervised loss plus the odds of each answer on its own: chosen odds up, rejected odds down.

    odds(p) = p - log(1 - exp(p)), p the token mean of log-probabilities
    z = temperature * odds(p)
    loss = coefficient * nll of chosen - beta * [log sigmoid(z of chosen) + log sigmoid(-z of rejected)]

    At temperature 1 the odds collapse: -log sigmoid(odds(p)) = -p and -log sigmoid(-odds(p)) = -log(1 -
    exp(p)), so this is supervised learning of the chosen answer plus unlikelihood of the rejected one.
    Throughout p is held below -1e-6.

    Args:
        beta: >= 0, weight of the alignment term (ORPO's 0.1 is a start; no released value is known).
        temperature: > 0, of the odds; 1 is the original.
        coefficient: >= 0, of the supervised term; 1 is the original, 0 trains the odds alone.
        normaliser: of the supervised term.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2409.10571.
    """
    require("asft beta", beta, 0 <= beta < math.inf, "a number >= 0")
    require("asft temperature", temperature, 0 < temperature < math.inf, "a number > 0")
    require_coefficient("asft", coefficient)
    score = Score(Reduction("mean"), anchor=0.0, shape=score_shapes.odds())
    term = Term(Point(), score, beta=temperature, labels=labels.likes(), coefficient=beta, name="alignment")
    return Objective("asft", (term,), supervised(coefficient, normaliser))


@objective(
    "logo",
    data="lists",
    fixes="lists",
    on_errors="reference_free",
    title="LOGO: Long cOntext aliGnment via efficient preference Optimization",
    paper="2410.18533",
    year=2024,
    sample={"beta": 10.0, "gamma": 3.0, "coefficient": 0.1},
    official_code="ZetangForward/LCM_Stack 7e44604",
    status="formula",
    published={
        "beta": (10.0, "code"),
        "gamma": (3.0, "code", "gamma / beta 0.3 for Llama 3, 0.2 for Llama 2, 0.1 for Mistral"),
        "coefficient": (0.1, "code", "batch_mean"),
    },
    departures=(
        "any number of rejected answers weigh alike; the release has two and slices the second one wrongly, "
        "so that the first is counted in its place on half of the rows",
        "the supervised term predicts the following token; the release compares logits and labels without "
        "the shift",
        "the choice of positions that the release scores (those where the three answers differ) is the "
        "caller's mask",
    ),
)
def logo(
    *, beta: float, gamma: float, coefficient: float, normaliser: Normaliser = "sequence_mean"
) -> Objective:
    """SimPO against the average of several rejected answers, plus a supervised term, for long contexts.

    z = beta * (mean of p of chosen - average over the rejected answers of their mean of p) - gamma
    loss = -log sigmoid(z) + coefficient * nll of chosen

    The chosen answer is candidate 0, or the one with the highest relevance. With one rejected answer it is
    `cpo_simpo`.

    Args:
        beta: > 0, per unit of mean score (10 released).
        gamma: >= 0, in units of z (1 to 3 released).
        coefficient: >= 0, of the supervised term (0.1 released).
        normaliser: of the supervised term; "batch_mean" is the official one.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2410.18533; ZetangForward/LCM_Stack `logo_train.py`.
    """
    positive_beta("logo", beta)
    require_gamma("logo", gamma)
    require_coefficient("logo", coefficient)
    term = Term(BestVsRest(rest="mean"), MEAN, beta=beta, margin=gamma, name="preference")
    return Objective("logo", (term,), supervised(coefficient, normaliser))

"""The catalogue of methods that train from the base in one stage, without a reference: CPO and its kin.

All of them compare the policy's own scores and hold the good answer in place with a supervised term, whose
normaliser is part of the method: a coefficient cannot be carried from one normaliser to another (see
`extras.py`). p is the policy's score: the sum of log-probabilities where a row does not say mean.
"""

import math

import torch
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, links, score_shapes
from mmalign.objectives.base import Context, require, wide
from mmalign.objectives.extras import Extra, Normaliser, nll
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import BestVsRest, Pair, Point
from mmalign.objectives.terms import Score, Term

__all__ = [
    "alphapo",
    "asft",
    "cpo",
    "cpo_hinge",
    "cpo_ipo",
    "cpo_simpo",
    "logo",
    "triple_po",
    "triple_po_l",
]

_SUM = Score(anchor=0.0)
_MEAN = Score(Reduction("mean"), anchor=0.0)
_CPO = "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation"
_TPO = "Triple Preference Optimization: Achieving Better Alignment using a Single Step Optimization"
_NORMALISER = (
    "the normaliser of the supervised term is explicit and by default the mean per pair; TRL and ms-swift "
    "take the mean over all tokens of the micro-batch (batch_mean), the other coefficients of the literature "
    "belong to that"
)


def _coefficient(where: str, value: float) -> None:
    require(f"{where} coefficient", value, 0 <= value < math.inf, "a number >= 0 (1 in TRL)")


def _gamma(where: str, value: float) -> None:
    require(f"{where} gamma", value, 0 <= value < math.inf, "a number >= 0, in units of z")


def _supervised(coefficient: float, normaliser: Normaliser) -> tuple[Extra, ...]:
    """The supervised term on the chosen answer; none for coefficient 0, as in the libraries."""
    term = nll(normaliser, coefficient)  # checks the normaliser, also where the term is left out
    return (term,) if coefficient else ()


@objective(
    "cpo",
    fixes="reference_cost",
    on_errors="reference_free",
    title=_CPO,
    paper="2401.08417",
    year=2024,
    sample={"beta": 0.1, "coefficient": 1.0},
    parity=("text_cpo",),
    official_code="fe1ixxu/ALMA; trl 1.16.0, experimental cpo_trainer",
    status="parity",
    published={"beta": (0.1, "code", "TRL and ALMA"), "coefficient": (1.0, "code", "TRL's cpo_alpha")},
    symbolic="W vs L",
    departures=(_NORMALISER,),
)
def cpo(
    *,
    beta: float,
    coefficient: float,
    normaliser: Normaliser = "sequence_mean",
    label_smoothing: float = 0.0,
) -> Objective:
    """DPO under a uniform reference plus a supervised term on the chosen answer.

    z = beta * (p of chosen - p of rejected)
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z) + coefficient * nll of chosen, e = label_smoothing

    Args:
        beta: > 0, per unit of the summed log-probabilities (0.1 released).
        coefficient: >= 0, of the supervised term (1 released); with 0 nothing holds the chosen answer.
        normaliser: of the supervised term; "batch_mean" is TRL's.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2401.08417; trl 1.16.0 CPOTrainer, loss type "sigmoid". Parity: text_cpo.
    """
    positive_beta("cpo", beta)
    _coefficient("cpo", coefficient)
    term = Term(Pair(), _SUM, beta=beta, labels=labels.smoothed(label_smoothing), name="preference")
    return Objective("cpo", (term,), _supervised(coefficient, normaliser))


@objective(
    "cpo_hinge",
    fixes="reference_cost",
    on_errors="reference_free",
    title=_CPO,
    paper="2401.08417",
    year=2024,
    sample={"beta": 0.1, "coefficient": 1.0},
    parity=("text_cpo_hinge",),
    official_code="trl 1.16.0, experimental cpo_trainer",
    status="parity",
    published={"beta": (0.1, "code", "TRL"), "coefficient": (1.0, "code", "TRL's cpo_alpha")},
    symbolic="W vs L",
    departures=(
        _NORMALISER,
        "TRL scales the gap by beta and keeps the hinge at 1; slic puts the margin in nats instead",
    ),
)
def cpo_hinge(*, beta: float, coefficient: float, normaliser: Normaliser = "sequence_mean") -> Objective:
    """CPO with a hinge.

    loss = max(0, 1 - beta * (p of chosen - p of rejected)) + coefficient * nll of chosen

    Args:
        beta: > 0, per unit of the summed log-probabilities (0.1 released).
        coefficient: >= 0, of the supervised term (1 released).
        normaliser: of the supervised term; "batch_mean" is TRL's.

    Raises:
        HyperparameterError: out of range.

    Source: trl 1.16.0 CPOTrainer, loss type "hinge". Parity: text_cpo_hinge.
    """
    positive_beta("cpo_hinge", beta)
    _coefficient("cpo_hinge", coefficient)
    term = Term(Pair(), _SUM, beta=beta, link=links.hinge(), name="preference")
    return Objective("cpo_hinge", (term,), _supervised(coefficient, normaliser))


@objective(
    "cpo_ipo",
    fixes="overfitting",
    on_errors="reference_free",
    title=_CPO,
    paper="2401.08417",
    year=2024,
    sample={"tau": 0.1, "coefficient": 1.0},
    parity=("text_cpo_ipo",),
    official_code="trl 1.16.0, experimental cpo_trainer",
    status="parity",
    published={"tau": (0.1, "code", "TRL's beta"), "coefficient": (1.0, "code", "TRL's cpo_alpha")},
    symbolic="W vs L",
    departures=(
        _NORMALISER,
        "TRL's CPO and TPO trainers call this ipo: token means and no reference, unlike any other ipo",
    ),
)
def cpo_ipo(*, tau: float, coefficient: float, normaliser: Normaliser = "sequence_mean") -> Objective:
    """IPO's square on token means without a reference, plus a supervised term.

    loss = (mean of p of chosen - mean of p of rejected - 1 / (2 tau))^2 + coefficient * nll of chosen

    Args:
        tau: > 0; the target margin is 1 / (2 tau) nats per token (0.1 released: 5).
        coefficient: >= 0, of the supervised term (1 released).
        normaliser: of the supervised term; "batch_mean" is TRL's.

    Raises:
        HyperparameterError: out of range.

    Source: trl 1.16.0 CPOTrainer, loss type "ipo". Parity: text_cpo_ipo.
    """
    require("cpo_ipo tau", tau, 0 < tau < math.inf, "a number > 0")
    _coefficient("cpo_ipo", coefficient)
    term = Term(Pair(), _MEAN, link=links.square(1.0 / (2.0 * tau)), name="preference")
    return Objective("cpo_ipo", (term,), _supervised(coefficient, normaliser))


@objective(
    "cpo_simpo",
    fixes="length",
    on_errors="reference_free",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    paper="2405.14734",
    year=2024,
    sample={"beta": 2.0, "gamma": 0.5, "coefficient": 1.0},
    parity=("text_cpo_simpo",),
    official_code="fe1ixxu/CPO_SIMPO; trl 1.16.0, experimental cpo_trainer",
    status="parity",
    published={
        "beta": (2.0, "code", "SimPO's; TRL leaves CPO's 0.1 in place"),
        "gamma": (0.5, "code", "TRL's simpo_gamma"),
        "coefficient": (1.0, "code", "TRL's cpo_alpha"),
    },
    symbolic="W vs L",
    departures=(
        _NORMALISER,
        "asking TRL or ms-swift for loss type simpo trains this row, not simpo: their cpo_alpha is 1 unless "
        "set to 0",
    ),
)
def cpo_simpo(
    *,
    beta: float,
    gamma: float,
    coefficient: float,
    normaliser: Normaliser = "sequence_mean",
    label_smoothing: float = 0.0,
) -> Objective:
    """SimPO plus a supervised term on the chosen answer.

    z = beta * (mean of p of chosen - mean of p of rejected) - gamma
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z) + coefficient * nll of chosen, e = label_smoothing

    Args:
        beta: > 0, per unit of mean score (2 to 10).
        gamma: >= 0, in units of z (0.5 in TRL).
        coefficient: >= 0, of the supervised term (1 in TRL); 0 is SimPO.
        normaliser: of the supervised term; "batch_mean" is TRL's.
        label_smoothing: in [0, 0.5]; flips the whole of z with its margin.

    Raises:
        HyperparameterError: out of range.

    Source: trl 1.16.0 CPOTrainer, loss type "simpo". Parity: text_cpo_simpo.
    """
    positive_beta("cpo_simpo", beta)
    _gamma("cpo_simpo", gamma)
    _coefficient("cpo_simpo", coefficient)
    smooth = labels.smoothed(label_smoothing)
    term = Term(Pair(), _MEAN, beta=beta, margin=gamma, labels=smooth, name="preference")
    return Objective("cpo_simpo", (term,), _supervised(coefficient, normaliser))


@objective(
    "alphapo",
    fixes="displacement",
    on_errors="reference_free",
    title="AlphaPO: Reward Shape Matters for LLM Alignment",
    paper="2501.03884",
    year=2025,
    sample={"beta": 2.5, "alpha": 0.25, "gamma": 0.3},
    parity=("text_alphapo",),
    official_code="trl 1.16.0, experimental cpo_trainer",
    status="parity",
    published={"alpha": (0.0, "code", "TRL: off; the usual range is -0.25 to 0.25")},
    departures=(
        "p^-alpha is continued by its tangent beyond e^20 (TRL takes the power of an exponential: infinite "
        "gradient for mean log-probabilities near -80)",
        "no supervised term: TRL adds one with weight 1 unless cpo_alpha is set to 0",
        "gamma is in units of z, as in TRL; the authors give gamma / beta as SimPO does",
    ),
)
def alphapo(*, beta: float, alpha: float, gamma: float, label_smoothing: float = 0.0) -> Objective:
    """SimPO with another shape of the reward: a power of the mean token probability.

    s = (1 - p^-alpha) / alpha, p = exp(mean of log-probabilities)
    z = beta * (s of chosen - s of rejected) - gamma

    Token means only: a power of a summed log-probability overflows.

    Args:
        beta: > 0, per unit of the shaped score.
        alpha: any number, usually -0.25 to 0.25; 0 is SimPO, positive values punish unlikely answers more.
        gamma: >= 0, in units of z.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2501.03884; trl 1.16.0 CPOTrainer with alpha. Parity: text_alphapo.
    """
    positive_beta("alphapo", beta)
    _gamma("alphapo", gamma)
    score = Score(Reduction("mean"), anchor=0.0, shape=score_shapes.power(alpha))
    term = Term(Pair(), score, beta=beta, margin=gamma, labels=labels.smoothed(label_smoothing))
    return Objective("alphapo", (term,))


# ------------------------------------------------------------------------------------------- a gold answer

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
        _NORMALISER,
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
    _coefficient("triple_po", coefficient)
    term = Term(Pair(), _SUM, beta=beta, labels=labels.smoothed(label_smoothing), name="preference")
    return Objective("triple_po", (term,), _gold_nll(coefficient, normaliser))


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
    departures=(_NORMALISER, "gamma is in units of z, as TRL's tpo_l_gamma"),
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
    _gamma("triple_po_l", gamma)
    _coefficient("triple_po_l", coefficient)
    smooth = labels.smoothed(label_smoothing)
    term = Term(Pair(), _MEAN, beta=beta, margin=gamma, labels=smooth, name="preference")
    return Objective("triple_po_l", (term,), _gold_nll(coefficient, normaliser))


# ------------------------------------------------------------------------------------- points and several


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
    _coefficient("asft", coefficient)
    score = Score(Reduction("mean"), anchor=0.0, shape=score_shapes.odds())
    term = Term(Point(), score, beta=temperature, labels=labels.likes(), coefficient=beta, name="alignment")
    return Objective("asft", (term,), _supervised(coefficient, normaliser))


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
    _gamma("logo", gamma)
    _coefficient("logo", coefficient)
    term = Term(BestVsRest(rest="mean"), _MEAN, beta=beta, margin=gamma, name="preference")
    return Objective("logo", (term,), _supervised(coefficient, normaliser))

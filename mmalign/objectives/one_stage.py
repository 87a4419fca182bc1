"""The catalogue of methods that train from the base in one stage, without a reference: CPO and its kin.

All of them compare the policy's own scores and hold the good answer in place with a supervised term, whose
normaliser is part of the method: a coefficient cannot be carried from one normaliser to another (see
`extras.py`). p is the policy's score: the sum of log-probabilities where a row does not say mean.
"""

import math

from mmalign.objectives import labels, links, score_shapes
from mmalign.objectives.base import require
from mmalign.objectives.extras import Extra, Normaliser, nll
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "alphapo",
    "cpo",
    "cpo_hinge",
    "cpo_ipo",
    "cpo_simpo",
]

SUM = Score(anchor=0.0)
MEAN = Score(Reduction("mean"), anchor=0.0)
_CPO = "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation"
NORMALISER = (
    "the normaliser of the supervised term is explicit and by default the mean per pair; TRL and ms-swift "
    "take the mean over all tokens of the micro-batch (batch_mean), the other coefficients of the literature "
    "belong to that"
)


def require_coefficient(where: str, value: float) -> None:
    """Raise `HyperparameterError` unless it is a finite number >= 0."""
    require(f"{where} coefficient", value, 0 <= value < math.inf, "a number >= 0 (1 in TRL)")


def require_gamma(where: str, value: float) -> None:
    """Raise `HyperparameterError` unless it is a finite number >= 0."""
    require(f"{where} gamma", value, 0 <= value < math.inf, "a number >= 0, in units of z")


def supervised(coefficient: float, normaliser: Normaliser) -> tuple[Extra, ...]:
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
    departures=(NORMALISER,),
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
    require_coefficient("cpo", coefficient)
    term = Term(Pair(), SUM, beta=beta, labels=labels.smoothed(label_smoothing), name="preference")
    return Objective("cpo", (term,), supervised(coefficient, normaliser))


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
        NORMALISER,
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
    require_coefficient("cpo_hinge", coefficient)
    term = Term(Pair(), SUM, beta=beta, link=links.hinge(), name="preference")
    return Objective("cpo_hinge", (term,), supervised(coefficient, normaliser))


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
        NORMALISER,
        "TRL's CPO and TPO trainers call this ipo: token means and no reference, unlike any other ipo",
    ),
)
def cpo_ipo(*, tau: float, coefficient: float, normaliser: Normaliser = "sequence_mean") -> Objective:
    """IPO's square on token means without a reference, plus a supervised term.

    loss = (mean of p of chosen - mean of p of rejected - 1 / (2 tau))^2 + coefficient * nll of chosen

    Scores without an inner axis must already be means.

    Args:
        tau: > 0; the target margin is 1 / (2 tau) nats per token (0.1 released: 5).
        coefficient: >= 0, of the supervised term (1 released).
        normaliser: of the supervised term; "batch_mean" is TRL's.

    Raises:
        HyperparameterError: out of range.

    Source: trl 1.16.0 CPOTrainer, loss type "ipo". Parity: text_cpo_ipo.
    """
    require("cpo_ipo tau", tau, 0 < tau < math.inf, "a number > 0")
    require_coefficient("cpo_ipo", coefficient)
    term = Term(Pair(), MEAN, link=links.square(1.0 / (2.0 * tau)), name="preference")
    return Objective("cpo_ipo", (term,), supervised(coefficient, normaliser))


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
        NORMALISER,
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

    Scores without an inner axis must already be means.

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
    require_gamma("cpo_simpo", gamma)
    require_coefficient("cpo_simpo", coefficient)
    smooth = labels.smoothed(label_smoothing)
    term = Term(Pair(), MEAN, beta=beta, margin=gamma, labels=smooth, name="preference")
    return Objective("cpo_simpo", (term,), supervised(coefficient, normaliser))


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
    published={
        "beta": (0.1, "code", "TRL: CPO's, left in place"),
        "gamma": (0.5, "code", "TRL's simpo_gamma"),
        "alpha": (0.0, "code", "TRL: off; the usual range is -0.25 to 0.25"),
    },
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

    Scores without an inner axis must already be means.

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
    require_gamma("alphapo", gamma)
    score = Score(Reduction("mean"), anchor=0.0, shape=score_shapes.power(alpha))
    term = Term(Pair(), score, beta=beta, margin=gamma, labels=labels.smoothed(label_smoothing))
    return Objective("alphapo", (term,))

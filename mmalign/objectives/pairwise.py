"""The catalogue of one chosen and one rejected candidate, compared by the difference of their scores.

Scores are log-likelihoods (text) or -error / 2 (diffusion and flow models: then beta has the unit of the
official Diffusion-DPO code). u is the log-ratio, the score under the policy minus the score under the
reference.
"""

from mmalign.objectives import labels, links
from mmalign.objectives.base import require
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.reductions import Reduction, ReductionName
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "cdpo",
    "diffusion_ipo",
    "dpo",
    "dpo_reference_free",
    "hinge",
    "ipo",
    "ipo_reference_free",
    "robust_dpo",
]

_BETA = (
    "a number > 0; text with summed log-probabilities 0.05 to 0.5, diffusion with mean errors 2000 to 5000"
)


def positive_beta(where: str, beta: float) -> None:
    """Raise `HyperparameterError` unless beta > 0."""
    require(f"{where} beta", beta, beta > 0, _BETA)


def require_share(where: str, share: float) -> None:
    """Raise `HyperparameterError` unless 0 <= share <= 1/2: a label with more noise says the opposite."""
    require(where, share, 0 <= share <= 0.5, "a number in [0, 0.5]")


@objective(
    "dpo",
    fixes="baseline",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    paper="2305.18290",
    year=2023,
    equation="7",
    sample={"beta": 0.1},
    parity=("text_dpo", "text_dpo_sigmoid_norm", "diffusion_dpo", "diffusion_dpo_diffusers"),
    official_code="eric-mitchell/direct-preference-optimization; trl 1.16.0",
    status="parity",
    published={
        "beta": (
            0.1,
            "code",
            "TRL and the authors; 0.01 in Zephyr-style recipes; 5 with token means (open-instruct)",
        )
    },
    symbolic="W & RL vs L & RW",
    departures=(
        "label smoothing is the row cdpo: TRL 1.16 ignores it for its plain sigmoid, the authors, "
        "ms-swift and LLaMA-Factory apply it",
    ),
)
def dpo(*, beta: float, reduction: ReductionName = "sum") -> Objective:
    """Logistic loss on the scaled margin.

    z = beta * (u of chosen - u of rejected)
    loss = -log sigmoid(z)

    Scores without an inner axis must already be what `reduction` says: sums, or means.

    Args:
        beta: > 0, per unit of score. Text with summed log-probabilities: 0.05 to 0.5; with token means 2 to
            10. Diffusion with mean squared errors: 2000 to 5000 (see the method rows).
        reduction: "sum" or "mean" over the inner axis, if the scores have one; "mean" is length-normalised
            DPO.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2305.18290, equation 7. Parity: text_dpo, text_dpo_sigmoid_norm, diffusion_dpo.
    """
    positive_beta("dpo", beta)
    return Objective("dpo", (Term(Pair(), Score(Reduction(reduction)), beta=beta),))


@objective(
    "dpo_reference_free",
    fixes="reference_cost",
    on_errors="reference_free",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    paper="2305.18290",
    year=2023,
    sample={"beta": 0.1},
    parity=("text_dpo_reference_free",),
    official_code="eric-mitchell/direct-preference-optimization f8b8c0f",
    status="parity",
    published={"beta": (0.1, "code")},
    symbolic="W vs L",
    departures=(
        "the reference is left out, as the authors' reference_free option does; CPO adds a supervised term",
    ),
)
def dpo_reference_free(*, beta: float, reduction: ReductionName = "sum") -> Objective:
    """DPO against a uniform reference: z = beta * (p of chosen - p of rejected).

    Scores without an inner axis must already be what `reduction` says: sums, or means.

    Args:
        beta: > 0, per unit of score.
        reduction: over the inner axis.

    Raises:
        HyperparameterError: beta <= 0.

    Source: eric-mitchell/direct-preference-optimization, `reference_free`.
    """
    positive_beta("dpo_reference_free", beta)
    return Objective(
        "dpo_reference_free", (Term(Pair(), Score(Reduction(reduction), anchor=0.0), beta=beta),)
    )


@objective(
    "cdpo",
    fixes="label_noise",
    title="A note on DPO with noisy preferences and relationship to IPO",
    year=2023,
    link="https://ericmitchell.ai/cdpo.pdf",
    equation="3",
    sample={"beta": 0.1, "label_smoothing": 0.1},
    parity=("text_cdpo_label_smoothing",),
    official_code="eric-mitchell/direct-preference-optimization f8b8c0f",
    status="parity",
    published={"beta": (0.1, "code"), "label_smoothing": (0.2, "code", "HALOs; 0 elsewhere")},
    symbolic="W & RL vs L & RW",
    departures=(
        "TRL 1.16 has label smoothing only under robust, exo_pair and aot; asking it for sigmoid with "
        "smoothing trains plain DPO",
    ),
)
def cdpo(*, beta: float, label_smoothing: float) -> Objective:
    """DPO whose labels are believed to be flipped with a known share.

    z = beta * (u of chosen - u of rejected)
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z), e = label_smoothing; stationary at z = log((1 - e)
    / e)

    Args:
        beta: > 0, per unit of score.
        label_smoothing: in [0, 0.5]; at 0.5 the label carries no information.

    Raises:
        HyperparameterError: out of range.

    Source: E. Mitchell, A note on DPO with noisy preferences, equation 3.
    """
    positive_beta("cdpo", beta)
    require_share("cdpo label_smoothing", label_smoothing)
    return Objective("cdpo", (Term(Pair(), beta=beta, labels=labels.smoothed(label_smoothing)),))


@objective(
    "robust_dpo",
    fixes="label_noise",
    title="Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    paper="2403.00409",
    year=2024,
    sample={"beta": 0.1, "label_smoothing": 0.1},
    parity=("text_rdpo_robust",),
    official_code="trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code"), "label_smoothing": (0.1, "code")},
    symbolic="W & RL vs L & RW",
    departures=(
        "unbounded below, as published: on a clear pair the loss falls without end as z grows",
        "the coefficient of the right order starts larger than DPO's by (1 - e) / (1 - 2 e), and the "
        "gradient by 1 / (1 - 2 e)",
    ),
)
def robust_dpo(*, beta: float, label_smoothing: float) -> Objective:
    """DPO that stays unbiased when labels are flipped at random with a known rate.

    z = beta * (u of chosen - u of rejected)
    loss = (-(1 - e) * log sigmoid(z) + e * log sigmoid(-z)) / (1 - 2 e), e = label_smoothing

    Unbounded below: it falls as -e / (1 - 2 e) * z for large z, so its value is no measure of progress.

    Args:
        beta: > 0, per unit of score.
        label_smoothing: in [0, 0.5), the rate of flipped labels.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2403.00409; trl 1.16.0, loss type "robust".
    """
    positive_beta("robust_dpo", beta)
    require("robust_dpo label_smoothing", label_smoothing, 0 <= label_smoothing < 0.5, "a number in [0, 0.5)")
    return Objective("robust_dpo", (Term(Pair(), beta=beta, labels=labels.robust(label_smoothing)),))


@objective(
    "hinge",
    fixes="overfitting",
    title="Statistical Rejection Sampling Improves Preference Optimization",
    paper="2309.06657",
    year=2023,
    sample={"beta": 0.1},
    parity=("text_dpo_hinge", "diffusion_dpo_diffusers"),
    official_code="trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code")},
    symbolic="W & RL vs L & RW",
    departures=("with a reference, as TRL and torchtune; the original SLiC without one is the row slic",),
)
def hinge(*, beta: float) -> Objective:
    """Hinge loss on the scaled margin: no gradient once z exceeds 1.

    z = beta * (u of chosen - u of rejected)
    loss = max(0, 1 - z)

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2309.06657 (RSO); trl 1.16.0, loss type "hinge".
    """
    positive_beta("hinge", beta)
    return Objective("hinge", (Term(Pair(), beta=beta, link=links.hinge()),))


@objective(
    "ipo",
    fixes="overfitting",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    paper="2310.12036",
    year=2023,
    equation="17",
    sample={"tau": 0.1},
    parity=("text_ipo", "text_ipo_sum", "diffusion_dpo_diffusers"),
    official_code="trl 1.16.0; eric-mitchell/direct-preference-optimization f8b8c0f",
    status="parity",
    published={"tau": (0.1, "code", "token means; 0.01 to 0.1 with sums")},
    symbolic="W & RL vs L & RW",
    departures=(
        "reduction is explicit: mean in TRL, HALOs and LLaMA-Factory; sum in the authors of DPO, "
        "OpenRLHF and TRL's online trainers; TRL's CPO trainer has no reference (ipo_reference_free)",
        "ms-swift's division by tokens for ipo also normalises the losses mixed with it",
    ),
)
def ipo(*, tau: float, reduction: ReductionName = "mean") -> Objective:
    """Squared distance of the margin from a bounded target.

    loss = (u of chosen - u of rejected - 1 / (2 tau))^2

    Scores without an inner axis must already be what `reduction` says: sums, or means.

    Args:
        tau: > 0; the target margin is 1 / (2 tau) in the unit of the score: text 0.01 to 0.1; diffusion with
            mean errors as large as DPO's beta, because errors differ by thousandths.
        reduction: "mean" over the inner axis (TRL, HALOs, LLaMA-Factory) or "sum" (the authors of DPO, online
            trainers); the same tau then means targets that differ by the length.

    Raises:
        HyperparameterError: tau <= 0.

    Source: arXiv 2310.12036, equation 17. Parity: text_ipo (mean), text_ipo_sum (sum).
    """
    require("ipo tau", tau, tau > 0, "a number > 0")
    link = links.square(1.0 / (2.0 * tau))
    return Objective("ipo", (Term(Pair(), Score(Reduction(reduction)), link=link),))


@objective(
    "diffusion_ipo",
    fixes="overfitting",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    paper="2310.12036",
    year=2023,
    equation="17",
    sample={"beta": 0.1},
    departures=(
        "times beta^2: with mean errors the plain square is about 1e-8 and vanishes in Adam's epsilon",
    ),
    official_code="huggingface/diffusers 58eb52c",
)
def diffusion_ipo(*, beta: float) -> Objective:
    """IPO in units of the logit: the square whose minimum is the same and whose size does not depend on beta.

    z = beta * (u of chosen - u of rejected)
    loss = (z - 1/2)^2, which is beta^2 times ipo(tau=beta)

    Args:
        beta: > 0, per unit of score; diffusion with mean errors as DPO's, 2000 to 5000.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2310.12036, equation 17, scaled. Pinned to `ipo` by a test.
    """
    positive_beta("diffusion_ipo", beta)
    return Objective("diffusion_ipo", (Term(Pair(), beta=beta, link=links.square(0.5)),))


@objective(
    "ipo_reference_free",
    fixes="overfitting",
    on_errors="reference_free",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    paper="2310.12036",
    year=2023,
    sample={"tau": 0.1},
    official_code="trl 1.16.0, cpo_trainer loss type ipo",
    published={"tau": (0.1, "code", "TRL cpo")},
    symbolic="W vs L",
    departures=(
        "no supervised term: TRL's CPO trainer adds one with weight 1 unless cpo_alpha is set to 0 "
        "(that is cpo_ipo)",
    ),
)
def ipo_reference_free(*, tau: float, reduction: ReductionName = "mean") -> Objective:
    """IPO's square on the policy's own margin: loss = (p of chosen - p of rejected - 1 / (2 tau))^2.

    Scores without an inner axis must already be what `reduction` says: sums, or means.

    Args:
        tau: > 0; the target margin is 1 / (2 tau) in the unit of the score.
        reduction: over the inner axis.

    Raises:
        HyperparameterError: tau <= 0.

    Source: trl 1.16.0, CPO and TPO trainers, loss type "ipo".
    """
    require("ipo_reference_free tau", tau, tau > 0, "a number > 0")
    link = links.square(1.0 / (2.0 * tau))
    return Objective(
        "ipo_reference_free", (Term(Pair(), Score(Reduction(reduction), anchor=0.0), link=link),)
    )

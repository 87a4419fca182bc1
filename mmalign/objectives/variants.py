"""The catalogue of methods that change one part of DPO: shape, scale, margin, link, matching, or a bonus.

u is the log-ratio, p the policy's own score; z and s as everywhere.
"""

from typing import Literal

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.base import require
from mmalign.objectives.extras import nll
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Matched, Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "aot",
    "aot_unpaired",
    "dpo_cauchy",
    "dpo_shift",
    "dpop",
    "length_dpo",
    "odpo",
    "rainbow_mixed_reference",
    "shift_at",
    "slic",
]


@objective(
    "dpo_cauchy",
    fixes="overfitting",
    title="RainbowPO: A Unified Framework for Combining Improvements in Preference Optimization",
    paper="2410.04203",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_dpo_cauchy",),
    official_code="CapitalOne-Research/RainbowPO 6dccae3",
    status="parity",
    symbolic="W & RL vs L & RW",
    departures=("atan(z) + pi / 2 is computed as atan2(1, -z), which keeps its digits for very negative z",),
)
def dpo_cauchy(*, beta: float) -> Objective:
    """DPO with a Cauchy link: loss = -log(atan(z) / pi + 1/2).

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: CapitalOne-Research/RainbowPO, loss type "cauchy".
    """
    positive_beta("dpo_cauchy", beta)
    return Objective("dpo_cauchy", (Term(Pair(), beta=beta, link=links.cauchy()),))


@objective(
    "odpo",
    fixes="strength",
    title="Direct Preference Optimization with an Offset",
    paper="2402.10571",
    year=2024,
    sample={"beta": 0.1, "alpha": 1.0},
    parity=("text_odpo",),
    official_code="rycolab/odpo 6152f67",
    status="parity",
    allows={"logit": "the offset is a margin"},
    published={"alpha": (1.0, "code"), "offset": ("difference", "code")},
    departures=(
        "a gap or ratio that is not positive has no offset (official: NaN); gaps below 1 make the offset a "
        "bonus, as in the official code",
    ),
)
def odpo(*, beta: float, alpha: float, offset: Literal["difference", "ratio"] = "difference") -> Objective:
    """DPO with an offset from rewards: z = beta * (u of chosen - u of rejected) - alpha * log(gap).

    gap = reward of chosen - reward of rejected, or reward of chosen / reward of rejected

    Args:
        beta: > 0, per unit of score.
        alpha: >= 0. Gaps below 1 make the offset a bonus; a gap that is not positive has none.
        offset: "difference" of the rewards, or their "ratio", for rewards that are positive.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.10571; rycolab/odpo.
    """
    positive_beta("odpo", beta)
    require("odpo alpha", alpha, alpha >= 0, "a number >= 0")
    if offset not in ("difference", "ratio"):
        raise HyperparameterError(explain("odpo offset", got=offset, expected="'difference' or 'ratio'"))
    gap = modifiers.log_reward_gap if offset == "difference" else modifiers.log_reward_ratio
    return Objective("odpo", (Term(Pair(), beta=beta, margin=gap(alpha)),))


@objective(
    "dpo_shift",
    fixes="displacement",
    title="DPO-Shift: Shifting the Distribution of Direct Preference Optimization",
    paper="2502.07599",
    year=2025,
    sample={"beta": 0.1, "shift": 0.75},
    parity=("text_dpo_shift",),
    official_code="Meaquadddd/DPO-Shift 52eebac",
    status="parity",
    published={"beta": (0.01, "code"), "shift": (0.75, "code", "0.55 to 0.95, also as a linear schedule")},
    departures=(
        "the official linear schedules of shift are a builder called anew with shift_at(step, ...): an "
        "objective does not know the step",
    ),
)
def dpo_shift(*, beta: float, shift: float) -> Objective:
    """DPO that counts the rejected side less: z = beta * (u of chosen - shift * u of rejected).

    Args:
        beta: > 0, per unit of score.
        shift: in [0, 1]; 0.55 to 0.95 released. Below 1 the partition function no longer cancels.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2502.07599; Meaquadddd/DPO-Shift.
    """
    positive_beta("dpo_shift", beta)
    require("dpo_shift shift", shift, 0 <= shift <= 1, "a number in [0, 1]")
    return Objective("dpo_shift", (Term(Pair(), Score(scale=modifiers.roles(1.0, shift)), beta=beta),))


def shift_at(step: int, steps: int, *, start: float, end: float) -> float:
    """The shift of `dpo_shift` at a step of a linear schedule: `dpo_shift(beta=b, shift=shift_at(...))`.

    start + (end - start) * step / steps, and `end` from the last step on. Build the objective anew with it.

    Args:
        step: >= 0, optimiser steps done.
        steps: > 0, of the whole run.
        start: in [0, 1], the shift at step 0.
        end: in [0, 1], the shift at the end.

    Raises:
        HyperparameterError: out of range.

    Source: Meaquadddd/DPO-Shift, its linear strategies.
    """
    require("shift_at step", step, step >= 0, "a number >= 0")
    require("shift_at steps", steps, steps > 0, "a number > 0")
    require("shift_at start", start, 0 <= start <= 1, "a number in [0, 1]")
    require("shift_at end", end, 0 <= end <= 1, "a number in [0, 1]")
    return start + (end - start) * min(step / steps, 1.0)


@objective(
    "dpop",
    fixes="displacement",
    title="Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
    paper="2402.13228",
    year=2024,
    sample={"beta": 0.1, "penalty": 5.0},
    parity=("text_dpop",),
    official_code="LuJunru/SamPO 25e9631",
    status="parity",
    published={"beta": (0.3, "paper"), "penalty": (50.0, "paper")},
    departures=(
        "the penalty is inside the sigmoid, as in the paper; early public re-implementations put it outside",
    ),
)
def dpop(*, beta: float, penalty: float) -> Objective:
    """DPO that forbids the chosen answer to become less likely.

    z = beta * (u of chosen - penalty * max(0, -u of chosen) - u of rejected)

    Args:
        beta: > 0, per unit of score.
        penalty: >= 0 (50 in the paper: the slope on the chosen side jumps by that factor).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2402.13228; LuJunru/SamPO, loss type "dpop".
    """
    positive_beta("dpop", beta)
    require("dpop penalty", penalty, penalty >= 0, "a number >= 0")
    score = Score(bonus=modifiers.displacement_penalty(penalty))
    return Objective("dpop", (Term(Pair(), score, beta=beta),))


@objective(
    "length_dpo",
    fixes="length",
    on_errors="axis",
    title="Disentangling Length from Quality in Direct Preference Optimization",
    paper="2403.19159",
    year=2024,
    sample={"beta": 0.1, "alpha": 0.1},
    parity=("text_length_dpo", "text_length_rdpo_minus"),
    official_code="LuJunru/SamPO 25e9631; junkangwu/alpha-DPO fab3209 (the other sign)",
    status="parity",
    allows={"logit": "the length term is a margin"},
    published={"alpha": (0.1, "code", "0.01 to 0.05 typical")},
    departures=(
        "one signed alpha: SamPO adds the length gap, alpha-DPO's rdpo subtracts beta times a ratio times it",
    ),
)
def length_dpo(*, beta: float, alpha: float) -> Objective:
    """DPO with a length term.

    z = beta * (u of chosen - u of rejected) + alpha * (length of chosen - length of rejected)

    Args:
        beta: > 0, per unit of score.
        alpha: per token, any sign; both are released. Positive: length is credited inside the loss, so that
            the policy need not produce it.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2403.19159; LuJunru/SamPO, loss type "lenN".
    """
    positive_beta("length_dpo", beta)
    require("length_dpo alpha", alpha, abs(alpha) < float("inf"), "a finite number")
    score = Score(bonus=modifiers.length_bonus(alpha / beta))
    return Objective("length_dpo", (Term(Pair(), score, beta=beta),))


@objective(
    "rainbow_mixed_reference",
    fixes="reference_cost",
    on_errors="reference_free",
    title="RainbowPO: A Unified Framework for Combining Improvements in Preference Optimization",
    paper="2410.04203",
    year=2024,
    sample={"beta": 10.0, "mixing": 0.25, "margin": 0.1},
    parity=("text_rainbow_mixed_reference",),
    official_code="CapitalOne-Research/RainbowPO 6dccae3",
    status="parity",
    allows={"logit": "a part of the reference and a margin"},
    published={"mixing": (0.25, "code"), "margin": (0.1, "code"), "beta": (10.0, "code")},
    departures=(
        "the margin is in units of the mean score and times (1 - mixing), as released; simpo's gamma is "
        "in units of z",
    ),
)
def rainbow_mixed_reference(*, beta: float, mixing: float, margin: float) -> Objective:
    """Between DPO and SimPO: a part of the reference, and a margin for the rest, on token means.

    z = beta * (gap of p - mixing * gap of r - (1 - mixing) * margin)

    Scores without an inner axis must already be means.

    Args:
        beta: > 0, per unit of mean score.
        mixing: in [0, 1]; 0.25 released. 1 is length-normalised DPO, 0 SimPO.
        margin: >= 0, per unit of mean score.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2410.04203; CapitalOne-Research/RainbowPO.
    """
    positive_beta("rainbow_mixed_reference", beta)
    require("rainbow_mixed_reference mixing", mixing, 0 <= mixing <= 1, "a number in [0, 1]")
    require("rainbow_mixed_reference margin", margin, margin >= 0, "a number >= 0")
    score = Score(Reduction("mean"), anchor=mixing)
    term = Term(Pair(), score, beta=beta, margin=beta * (1.0 - mixing) * margin)
    return Objective("rainbow_mixed_reference", (term,))


@objective(
    "slic",
    fixes="reference_cost",
    on_errors="reference_free",
    title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    paper="2305.10425",
    year=2023,
    sample={"margin": 1.0, "coefficient": 0.1},
    parity=("text_slic",),
    official_code="reds-lab/preference-learning-with-rationales 16111a1",
    status="parity",
    published={"margin": (1.0, "code"), "coefficient": (0.1, "code")},
    departures=(
        "HALOs adds a regulariser per token to a loss per pair, an error unless the batch equals the "
        "length; here both are per pair",
    ),
)
def slic(*, margin: float, coefficient: float) -> Objective:
    """Hinge on the policy's own margin plus a supervised term.

    loss = max(0, margin - (p of chosen - p of rejected)) - coefficient * p of chosen

    Args:
        margin: > 0, in nats of the summed log-probabilities (1 released).
        coefficient: >= 0, of the supervised term (0.1 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2305.10425.
    """
    require("slic margin", margin, margin > 0, "a number > 0")
    require("slic coefficient", coefficient, coefficient >= 0, "a number >= 0")
    calibration = Term(Pair(), Score(anchor=0.0), margin=margin - 1.0, link=links.hinge())
    return Objective("slic", (calibration,), (nll("sequence_sum", coefficient),))


_AOT = "Distributional Preference Alignment of LLMs via Optimal Transport"


@objective(
    "aot",
    fixes="baseline",
    title=_AOT,
    paper="2406.05882",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_aot",),
    official_code="trl 1.16.0",
    status="parity",
    allows={"sharding": "sorting stays within the micro-batch of a rank, as in TRL"},
    published={"beta": (0.1, "code")},
    departures=(
        "sorting is local to the micro-batch of one device, as in TRL: another micro-batch is another "
        "loss, and a batch of one pair is DPO",
        "after sorting a comparison belongs to no one pair: weights per pair lose their meaning",
    ),
)
def aot(*, beta: float, label_smoothing: float = 0.0) -> Objective:
    """The policy's gaps, sorted, against the reference's gaps, sorted.

    Sorting stays within the micro-batch of one rank; with one pair it is DPO.

    Args:
        beta: > 0, per unit of score.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.05882; trl 1.16.0, loss type "aot".
    """
    positive_beta("aot", beta)
    smooth = labels.smoothed(label_smoothing)
    return Objective("aot", (Term(Matched("models"), beta=beta, labels=smooth),))


@objective(
    "aot_unpaired",
    fixes="unpaired",
    title=_AOT,
    paper="2406.05882",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_aot_unpaired",),
    official_code="trl 1.16.0",
    status="parity",
    allows={
        "swapping": "each comparison is reported at the row of its chosen candidate",
        "sharding": "sorting stays within the micro-batch of a rank, as in TRL",
    },
    published={"beta": (0.1, "code")},
    departures=(
        "sorting is local to the micro-batch of one device, as in TRL: another micro-batch is another "
        "loss, and a batch of one pair is DPO",
        "after sorting a comparison belongs to no one pair: weights per pair lose their meaning",
    ),
)
def aot_unpaired(*, beta: float, label_smoothing: float = 0.0) -> Objective:
    """Log-ratios of chosen answers, sorted, against those of rejected answers, sorted.

    Args:
        beta: > 0, per unit of score.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.05882; trl 1.16.0, loss type "aot_unpaired".
    """
    positive_beta("aot_unpaired", beta)
    smooth = labels.smoothed(label_smoothing)
    return Objective("aot_unpaired", (Term(Matched("candidates"), beta=beta, labels=smooth),))

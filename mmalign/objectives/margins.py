"""The catalogue of margins and temperatures that follow the data: how far a pair goes depends on the pair.

u is the log-ratio, p the policy's own score; z and s as everywhere. What follows running statistics stands in
`adaptive`, rewards of other objectives in `multi_objective`; all are names of this module, too.
"""

import torch
from torch import Tensor

from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.adaptive import alpha_dpo, beta_dpo, draw_selection, selection_weights
from mmalign.objectives.base import Computed, Context, require
from mmalign.objectives.extras import Normaliser, nll
from mmalign.objectives.multi_objective import modpo, modpo_hinge
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta, require_share
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "alpha_dpo",
    "arpo",
    "beta_dpo",
    "draw_selection",
    "flex_dpo",
    "gapo_semantic",
    "mallows_dpo",
    "mallows_ipo",
    "modpo",
    "modpo_hinge",
    "selection_weights",
]


# ---------------------------------------------------------------------------------------------- temperatures


def _dispersion(factor: float) -> Computed:
    """-factor * log(normalised entropy of the reference)."""

    def compute(context: Context) -> Tensor:
        entropy = modifiers.of_pairs(context, "reference_entropy", "mallows_dpo", 1.0)
        return -factor * entropy.clamp(min=torch.finfo(entropy.dtype).tiny, max=1.0).log()

    return Computed(
        compute,
        f"-{factor:g} * log(reference_entropy)",
        frozenset({"reference_entropy"}),
        tokens_only="needs the entropy of the next token over a finite vocabulary: an error or a density "
        "has none",
    )


@objective(
    "mallows_dpo",
    fixes="temperature",
    title="Mallows-DPO: Fine-Tune Your LLM with Preference Dispersions",
    paper="2405.14953",
    year=2024,
    sample={"beta": 0.1, "dispersion": 1.0},
    parity=("text_mallows_dpo",),
    official_code="CapitalOne-Research/RainbowPO 6dccae3",
    status="parity",
    published={
        "beta": (10.0, "code", "with token means; 0.1 with sums"),
        "dispersion": (0.29, "code", "called neg_log_dispersion_mean"),
    },
    departures=(
        "entropies above 1, which only rounding makes, count as 1: the temperature is never negative",
    ),
)
def mallows_dpo(*, beta: float, dispersion: float, label_smoothing: float = 0.0) -> Objective:
    """DPO with a temperature per prompt: where the reference is unsure, preferences are dispersed.

    z = -beta * dispersion * log(H) * (u of chosen - u of rejected), H = extras["reference_entropy"]
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z), e = label_smoothing

    H is the mean over tokens of the reference's entropy, divided by log(vocabulary size), one per pair
    (`mmalign.likelihood.token_statistics.normalised_entropy`). A pair with H = 1 is not learnt from.

    Args:
        beta: > 0, per unit of score.
        dispersion: > 0, divides by the typical -log H; 0.29 and 1 released.
        label_smoothing: in [0, 0.5].

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2405.14953; CapitalOne-Research/RainbowPO, loss type "mallows_dpo".
    """
    positive_beta("mallows_dpo", beta)
    require("mallows_dpo dispersion", dispersion, 0 < dispersion < float("inf"), "a number > 0")
    require_share("mallows_dpo label_smoothing", label_smoothing)
    smooth = labels.smoothed(label_smoothing)
    return Objective("mallows_dpo", (Term(Pair(), beta=_dispersion(beta * dispersion), labels=smooth),))


@objective(
    "mallows_ipo",
    fixes="temperature",
    title="Mallows-DPO: Fine-Tune Your LLM with Preference Dispersions",
    paper="2405.14953",
    year=2024,
    sample={"beta": 0.1, "dispersion": 1.0},
    official_code="CapitalOne-Research/RainbowPO 6dccae3",
    status="formula",
    published={"dispersion": (0.29, "code", "called neg_log_dispersion_mean")},
    departures=(
        "scores are summed or averaged as the run says; the code's variant with max(0, 1/2 - z)^2 "
        "(mallows_ipo_modified) is left out",
    ),
)
def mallows_ipo(*, beta: float, dispersion: float) -> Objective:
    """IPO with a temperature per prompt: loss = (z - 1/2)^2, z as in `mallows_dpo`.

    Args:
        beta: > 0, per unit of score.
        dispersion: > 0, divides by the typical -log H.

    Raises:
        HyperparameterError: out of range.

    Source: CapitalOne-Research/RainbowPO, loss type "mallows_ipo".
    """
    positive_beta("mallows_ipo", beta)
    require("mallows_ipo dispersion", dispersion, 0 < dispersion < float("inf"), "a number > 0")
    term = Term(Pair(), beta=_dispersion(beta * dispersion), link=links.square(0.5))
    return Objective("mallows_ipo", (term,))


@objective(
    "flex_dpo",
    fixes="displacement",
    title="3D-Properties: Identifying Challenges in DPO and Charting a Path Forward",
    paper="2406.07327",
    year=2024,
    sample={"beta_chosen": 0.1, "beta_rejected": 0.05},
    status="experimental",
    unverified="the released values, and whether the paper changes the temperatures during training: its "
    "text was read only in summaries, which agree on two temperatures by role",
)
def flex_dpo(*, beta_chosen: float, beta_rejected: float) -> Objective:
    """DPO with a temperature for each side: z = beta_chosen * u of chosen - beta_rejected * u of rejected.

    A smaller temperature on the rejected side slows the fall of its likelihood. The paper's other remedy is
    `flex_dpo(...) + weight * sft(...)`. Unless both are equal the partition function does not cancel.

    Args:
        beta_chosen: > 0, per unit of score.
        beta_rejected: >= 0, per unit of score, usually below beta_chosen.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.07327 (Flex-DPO).
    """
    positive_beta("flex_dpo beta_chosen", beta_chosen)
    require("flex_dpo beta_rejected", beta_rejected, 0 <= beta_rejected < float("inf"), "a number >= 0")
    score = Score(scale=modifiers.roles(beta_chosen, beta_rejected))
    return Objective("flex_dpo", (Term(Pair(), score),))


# ---------------------------------------------------------------------------------------- given margins


def _semantic_gap(gamma: float) -> Computed:
    def compute(context: Context) -> Tensor:
        return gamma * modifiers.of_pairs(context, "semantic_gap", "gapo_semantic")

    return Computed(compute, f"{gamma:g} * semantic_gap", frozenset({"semantic_gap"}))


@objective(
    "gapo_semantic",
    fixes="strength",
    on_errors="reference_free",
    title="Gap-Aware Preference Optimization: Enhancing Model Alignment with Perception Margin",
    year=2024,
    link="https://openreview.net/forum?id=N2sN3LESoW",
    sample={"beta": 10.0, "gamma": 5.0},
    status="experimental",
    unverified="the scale of the gap and how it enters: abstract and reviews (OpenReview N2sN3LESoW) say "
    "SimPO whose margin is replaced by an estimated gap",
)
def gapo_semantic(*, beta: float, gamma: float) -> Objective:
    """SimPO whose margin is how different the two answers are in meaning (not the video method GAPO).

    z = beta * (p of chosen - p of rejected) - gamma * gap, p the mean over the inner axis
    loss = -log sigmoid(z)

    gap is extras["semantic_gap"], one per pair in [0, 1], for instance 1 - ROUGE-L of the two answers.

    Scores without an inner axis must already be means.

    Args:
        beta: > 0, per unit of mean score.
        gamma: >= 0, margin in units of z of a pair with gap 1.

    Raises:
        HyperparameterError: out of range.

    Source: OpenReview N2sN3LESoW, abstract.
    """
    positive_beta("gapo_semantic", beta)
    require("gapo_semantic gamma", gamma, 0 <= gamma < float("inf"), "a number >= 0")
    score = Score(Reduction("mean"), anchor=0.0)
    return Objective("gapo_semantic", (Term(Pair(), score, beta=beta, margin=_semantic_gap(gamma)),))


@objective(
    "arpo",
    fixes="reference_cost",
    on_errors="reference_free",
    title="X-ALMA: Plug & Play Modules and Adaptive Rejection for Quality Translation at Scale",
    paper="2410.03115",
    year=2024,
    sample={"beta": 0.1, "level": 0.9, "growth": 0.4, "coefficient": 1.0},
    parity=("text_arpo",),
    official_code="fe1ixxu/ALMA 10360c3",
    status="parity",
    published={
        "beta": (0.1, "code"),
        "level": (0.9, "code", "called relax_cofficient_1"),
        "growth": (0.4, "code", "called relax_cofficient_2"),
        "coefficient": (1.0, "code", "called cpo_alpha"),
    },
    departures=(
        "gradient flows through the scale of the rejected score, as in the official code",
        "pairs with equal token means reward the rejected answer (scale level - 1 < 0), as in the official "
        "code",
        "exponents above 20 are held at 20: the scale is 1 there anyway",
        "the supervised term is by default the mean per pair (official: over all tokens of the micro-batch, "
        "batch_mean)",
    ),
    allows={"gradient signs": "at equal token means the scale of the rejected score is level - 1, below 0"},
)
def arpo(
    *,
    beta: float,
    level: float,
    growth: float,
    coefficient: float,
    label_smoothing: float = 0.0,
    normaliser: Normaliser = "sequence_mean",
) -> Objective:
    """CPO that rejects less where the two answers are almost as good: adaptive rejection.

    t = min(1, level * e^(growth * |token mean of chosen - token mean of rejected|) - 1), with gradient
    z = beta * (p of chosen - t * p of rejected)
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z) + coefficient * nll of chosen, e = label_smoothing

    Args:
        beta: > 0, per unit of score.
        level: >= 0; level - 1 is the scale at equal means (0.9 released).
        growth: >= 0, per nat and token (0.4 released).
        coefficient: >= 0, of the supervised term; 0 leaves it out.
        label_smoothing: in [0, 0.5].
        normaliser: of the supervised term; "batch_mean" is the official one.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2410.03115; fe1ixxu/ALMA `cpo_loss`.
    """
    positive_beta("arpo", beta)
    require("arpo level", level, 0 <= level < float("inf"), "a number >= 0")
    require("arpo growth", growth, 0 <= growth < float("inf"), "a number >= 0")
    require("arpo coefficient", coefficient, 0 <= coefficient < float("inf"), "a number >= 0")
    require_share("arpo label_smoothing", label_smoothing)
    score = Score(anchor=0.0, scale=modifiers.adaptive_rejection(level, growth))
    term = Term(Pair(), score, beta=beta, labels=labels.smoothed(label_smoothing))
    supervised = (nll(normaliser, coefficient),) if coefficient else ()
    return Objective("arpo", (term,), supervised)

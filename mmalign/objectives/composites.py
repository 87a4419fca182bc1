"""The catalogue of sums: a comparison plus supervised, anchor or rationale terms, with their coefficients.

Sums without a name are as easy: `0.8 * dpo(beta=0.1) + 0.2 * bco_pair(beta=0.1) + sft()`.
"""

from dataclasses import replace
from functools import reduce
from operator import add

from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives import modifiers
from mmalign.objectives.base import Context, require, wide
from mmalign.objectives.binary_classifier import DeltaRule, reward_shift
from mmalign.objectives.extras import Extra, Normaliser, nll
from mmalign.objectives.labels import likes
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import dpo, positive_beta
from mmalign.objectives.structures import Pair, Point
from mmalign.objectives.terms import Score, Term

__all__ = [
    "bco_pair_delta_mix",
    "irpo_reasoning",
    "mapl",
    "mpo",
    "rationale_dpo",
    "rpo_sft",
    "summed",
    "three_properties",
]

_NORMALISERS = (
    "the normaliser is explicit: all chosen tokens of the micro-batch in TRL and ms-swift, per pair in "
    "LLaMA-Factory and SamPO, sums in RainbowPO and HALOs; coefficients cannot be carried over"
)


def summed(name: str, *parts: Objective) -> Objective:
    """The sum of `parts` under one name."""
    return replace(reduce(add, parts), name=name)


def _not_negative(where: str, value: float) -> None:
    require(where, value, 0 <= value < float("inf"), "a finite number >= 0")


def _supervised(coefficient: float, normaliser: Normaliser) -> Objective:
    return Objective("sft", extras=(nll(normaliser, coefficient),))


def _classifier(beta: float, rule: str) -> Objective:
    """BCO on both sides of a pair, with its reward shift."""
    term = Term(Point(), beta=beta, margin=reward_shift(rule, beta), labels=likes(), name="bco")
    return Objective("bco", (term,))


@objective(
    "rpo_sft",
    fixes="displacement",
    title="Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial "
    "Regularizer",
    paper="2405.16436",
    year=2024,
    sample={"beta": 0.1, "coefficient": 0.5, "normaliser": "sequence_mean"},
    parity=("text_dpo_plus_sft_seqavg",),
    departures=(
        _NORMALISERS,
        "not NeMo's reward-aware RPO (nemo_rpo_*), nor the refined, regularised RRPO (rrpo)",
    ),
    official_code="LuJunru/SamPO 25e9631; trl 1.16.0 (loss_type sigmoid and sft)",
    status="parity",
    published={
        "beta": (0.1, "code"),
        "coefficient": (1.0, "code", "TRL's mix of sigmoid and sft; 0.2 in the Llama 3 report"),
    },
    symbolic="W & RL vs L & RW",
)
def rpo_sft(*, beta: float, coefficient: float, normaliser: Normaliser) -> Objective:
    """DPO plus the chosen answer's negative log-likelihood: SFT-regularised preference optimisation.

    loss = -log sigmoid(beta * (u of chosen - u of rejected)) + coefficient * NLL of chosen

    On denoising errors the supervised term is half the chosen candidate's error.

    Args:
        beta: > 0, per unit of score.
        coefficient: >= 0, weight of the supervised term; its size depends on the normaliser (1 for means per
            token).
        normaliser: "sequence_mean", "sequence_sum", "batch_mean" or "whole_mean"; see `extras`.

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2405.16436, the objective of RPO; LuJunru/SamPO, loss type "mix". Parity:
    text_dpo_plus_sft_seqavg.
    """
    _not_negative("rpo_sft coefficient", coefficient)
    return summed("rpo_sft", dpo(beta=beta), _supervised(coefficient, normaliser))


@objective(
    "irpo_reasoning",
    fixes="displacement",
    title="Iterative Reasoning Preference Optimization",
    paper="2404.19733",
    year=2024,
    equation="1",
    sample={"beta": 0.1, "alpha": 1.0},
    published={"beta": (0.1, "paper"), "alpha": (1.0, "paper")},
    departures=(
        "the revised paper's form; its first version is said to weigh DPO instead",
        "TRL's sigmoid + sft takes the mean over all chosen tokens of the micro-batch instead",
        "IRPO is also in-context ranking preference optimisation, the row irpo_incontext_ranking",
    ),
    rollout="several chains of thought of the current policy per question, chosen those that end right",
    symbolic="W & RL vs L & RW",
)
def irpo_reasoning(*, beta: float, alpha: float) -> Objective:
    """DPO plus the chosen chain's negative log-likelihood per token (not the in-context ranking IRPO).

    loss = -log sigmoid(beta * (u of chosen - u of rejected)) - alpha * p of chosen / length of chosen

    Pass scores per token, so that both sums and means exist; the reference is the previous iterate.

    Args:
        beta: > 0, per unit of summed score (0.1 in the paper).
        alpha: >= 0 (1 in the paper).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2404.19733, equation 1 of the revised version.
    """
    _not_negative("irpo_reasoning alpha", alpha)
    return summed("irpo_reasoning", dpo(beta=beta), _supervised(alpha, "sequence_mean"))


@objective(
    "mpo",
    fixes="displacement",
    on_errors="pointwise",
    title="Enhancing the Reasoning Ability of Multimodal LLMs via Mixed Preference Optimization",
    paper="2411.10442",
    year=2024,
    sample={"beta": 0.1, "delta_rule": "none", "normaliser": "sequence_mean"},
    parity=("text_mpo_mix",),
    departures=(
        "delta_rule and normaliser are explicit: TRL's mix has no reward shift and the mean over the "
        "micro-batch's tokens; the paper shifts the reward by its running mean",
    ),
    official_code="trl 1.16.0 (loss_type sigmoid, bco_pair, sft)",
    status="parity",
    published={
        "beta": (0.1, "code"),
        "preference": (0.8, "code", "TRL documentation, after the paper"),
        "quality": (0.2, "code"),
        "generation": (1.0, "code"),
    },
)
def mpo(
    *,
    beta: float,
    delta_rule: DeltaRule,
    normaliser: Normaliser,
    preference: float = 0.8,
    quality: float = 0.2,
    generation: float = 1.0,
) -> Objective:
    """A mix of three: which answer is better, how good each is, how to write the chosen one.

    loss = preference * DPO + quality * BCO on both sides + generation * NLL of chosen

    Args:
        beta: > 0, of DPO and BCO, per unit of score.
        delta_rule: BCO's reward shift: "none" (TRL), "running_samples" or "running_batches".
        normaliser: of the supervised term; see `extras`.
        preference: >= 0 (0.8 released).
        quality: >= 0 (0.2 released).
        generation: >= 0 (1 released).

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2411.10442, mixed preference optimisation; trl 1.16.0, a list of loss types with weights.
    Parity: text_mpo_mix.
    """
    positive_beta("mpo", beta)
    for name, value in (("preference", preference), ("quality", quality), ("generation", generation)):
        _not_negative(f"mpo {name}", value)
    return summed(
        "mpo",
        preference * dpo(beta=beta),
        quality * _classifier(beta, delta_rule),
        _supervised(generation, normaliser),
    )


@objective(
    "bco_pair_delta_mix",
    fixes="displacement",
    on_errors="pointwise",
    title="Binary Classifier Optimization for Large Language Model Alignment",
    paper="2404.04656",
    year=2024,
    sample={"beta": 0.1, "weight": 0.5, "delta_rule": "running_batches"},
    parity=("text_bco_pair_delta_mix",),
    departures=(
        "delta_rule is explicit: LLaMA-Factory and ms-swift average over the means of batches",
        "the supervised term is the mean per pair, as LLaMA-Factory's pref_ftx (ms-swift: over all tokens)",
    ),
    official_code="hiyouga/LLaMA-Factory ff6d4d1",
    status="parity",
    published={
        "beta": (0.1, "code"),
        "weight": (0.0, "code", "pref_bco_weight"),
        "coefficient": (0.0, "code", "pref_ftx"),
        "delta_rule": ("running_batches", "code"),
    },
)
def bco_pair_delta_mix(
    *, beta: float, weight: float, delta_rule: DeltaRule, coefficient: float = 0.0
) -> Objective:
    """LLaMA-Factory's mix: the weighted mean of DPO and BCO, plus a supervised term.

    loss = (DPO + weight * BCO on both sides) / (1 + weight) + coefficient * NLL of chosen

    Args:
        beta: > 0, per unit of score.
        weight: >= 0, of BCO (`pref_bco_weight`; 0 is DPO).
        delta_rule: BCO's reward shift: "none", "running_samples" or "running_batches" (the released one).
        coefficient: >= 0, of the supervised term per token (`pref_ftx`).

    Raises:
        HyperparameterError: out of range or unknown.

    Source: hiyouga/LLaMA-Factory, `compute_preference_loss`. Parity: text_bco_pair_delta_mix.
    """
    positive_beta("bco_pair_delta_mix", beta)
    _not_negative("bco_pair_delta_mix weight", weight)
    _not_negative("bco_pair_delta_mix coefficient", coefficient)
    share = 1.0 / (1.0 + weight)
    parts = [share * dpo(beta=beta), (share * weight) * _classifier(beta, delta_rule)]
    if coefficient:
        parts.append(_supervised(coefficient, "sequence_mean"))
    return summed("bco_pair_delta_mix", *parts)


def _logistic_of(extra: str, factor: float, coefficient: float, tokens_only: str = "") -> Extra:
    """A term coefficient * -log sigmoid(factor * extras[extra]), with gradient, per prompt."""

    def value(context: Context) -> Tensor:
        return -F.logsigmoid(factor * wide(context.scores.extra(extra, f"the term of {extra!r}")))

    formula = f"-log sigmoid({factor:g} * {extra})"
    return Extra(extra, value, formula, coefficient, needs=frozenset({extra}), tokens_only=tokens_only)


@objective(
    "rationale_dpo",
    fixes="credit",
    title="Data-Centric Human Preference Optimization with Rationales",
    paper="2407.14477",
    year=2024,
    sample={"beta": 0.1, "gamma": 0.1},
    parity=("text_rationale_dpo",),
    official_code="reds-lab/preference-learning-with-rationales 16111a1",
    status="parity",
    published={"beta": (0.1, "code"), "gamma": (0.1, "code")},
)
def rationale_dpo(*, beta: float, gamma: float) -> Objective:
    """DPO plus the likelihood of a written reason why the chosen answer is better.

    loss = -log sigmoid(beta * (u of chosen - u of rejected)) - log sigmoid(gamma * p of rationale)

    The rationale's summed log-probability under the policy is `extras["rationale_score"]`, [prompt], with
    gradient; it has no reference. Log-probabilities are far below 0: the term is close to gamma * NLL.

    Args:
        beta: > 0, per unit of score.
        gamma: >= 0, weight of the rationale (0.1 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2407.14477; reds-lab/preference-learning-with-rationales, `RDPOTrainer.loss`. Parity:
    text_rationale_dpo.
    """
    _not_negative("rationale_dpo gamma", gamma)
    rationale = _logistic_of("rationale_score", gamma, 1.0, "a rationale is written in tokens")
    return summed("rationale_dpo", dpo(beta=beta), Objective("rationale", extras=(rationale,)))


@objective(
    "three_properties",
    fixes="displacement",
    title="3D-Properties: Identifying Challenges in DPO and Charting a Path Forward",
    paper="2406.07327",
    year=2024,
    sample={"beta_chosen": 0.1, "beta_rejected": 0.05, "coefficient": 0.5, "normaliser": "sequence_mean"},
    status="experimental",
    unverified="both remedies (separate betas, a supervised term) are the paper's; their use in one loss, "
    "the coefficient and the normaliser are not checked",
    departures=(
        "the paper tries its remedies one at a time: coefficient 0 is Flex-DPO, equal betas SFT-DPO",
    ),
)
def three_properties(
    *, beta_chosen: float, beta_rejected: float, coefficient: float, normaliser: Normaliser
) -> Objective:
    """DPO that presses the rejected answer less, plus a supervised term: the 3D-properties remedies.

    loss = -log sigmoid(beta_chosen * u of chosen - beta_rejected * u of rejected) + coefficient * NLL

    Against the drop of the rejected likelihood, the degradation into unlearning, the dispersion on unseen
    answers. With unequal betas the partition function does not cancel.

    Args:
        beta_chosen: > 0, per unit of score.
        beta_rejected: > 0, per unit of score; below beta_chosen.
        coefficient: >= 0, of the supervised term.
        normaliser: of the supervised term; see `extras`.

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2406.07327, Flex-DPO and SFT-DPO.
    """
    positive_beta("three_properties chosen", beta_chosen)
    positive_beta("three_properties rejected", beta_rejected)
    _not_negative("three_properties coefficient", coefficient)
    flexible = Term(Pair(), Score(scale=modifiers.roles(beta_chosen, beta_rejected)))
    return summed(
        "three_properties", Objective("flexible", (flexible,)), _supervised(coefficient, normaliser)
    )


@objective(
    "mapl",
    fixes="objectives",
    title="Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks",
    paper="2505.12845",
    year=2025,
    sample={"beta": 0.1, "intra": 1.0, "inter": 1.0},
    status="experimental",
    unverified="the intra-sample term is a response-conditioned Bradley-Terry loss in the paper; the form of "
    "the inter-sample term, the weights and whether the plain pair is kept are not checked",
    departures=(
        "prompts differ within the added comparisons: their partition functions are taken as equal",
        "the gap of the inter-sample comparison is given as it is: it does not turn with an uncertain label",
    ),
)
def mapl(*, beta: float, intra: float, inter: float) -> Objective:
    """DPO plus comparisons of prompts: one answer under two prompts, one pair under two sets of instructions.

    loss = DPO + intra * -log sigmoid(beta * a) + inter * -log sigmoid(beta * b)

    a = u of the answer under the prompt it obeys - u under the one it does not,
    `extras["intra_log_ratio_gap"]`; b = (u of chosen - u of rejected) where added instructions widen the
    preference, minus the original pair's, `extras["inter_log_ratio_gap"]`; both [prompt], with gradient.

    Args:
        beta: > 0, per unit of score.
        intra: >= 0, weight of the comparison within a sample.
        inter: >= 0, weight of the comparison between samples.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2505.12845 (abstract and summary).
    """
    _not_negative("mapl intra", intra)
    _not_negative("mapl inter", inter)
    prompts = Objective(
        "prompts",
        extras=(
            _logistic_of("intra_log_ratio_gap", beta, intra),
            _logistic_of("inter_log_ratio_gap", beta, inter),
        ),
    )
    return summed("mapl", dpo(beta=beta), prompts)

"""The catalogue of margins and temperatures that follow the data: how far a pair goes depends on the pair.

u is the log-ratio, p the policy's own score; z and s as everywhere. "Gap" is chosen minus rejected.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import HyperparameterError, ShapeError, explain
from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.base import Computed, Context, require
from mmalign.objectives.extras import Normaliser, nll
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
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

Selection = Literal["given", "all"]


def _require_share(where: str, share: float) -> None:
    require(where, share, 0 <= share <= 0.5, "a number in [0, 0.5]")


# ---------------------------------------------------------------------------------------- running statistics


def _raised(gamma: float, factor: float, decay: float) -> Computed:
    """Gamma + factor * z-score of the gap."""
    adaptive = modifiers.standardised_gap(factor, "alpha_dpo", decay)
    return Computed(
        lambda context: gamma + adaptive.compute(context),
        f"({gamma:g} + {adaptive.formula})",
        adaptive.needs,
        adaptive.couples_rows,
    )


@objective(
    "alpha_dpo",
    fixes="strength",
    on_errors="reference_free",
    title="alpha-DPO: Adaptive Reward Margin is What Direct Preference Optimization Needs",
    paper="2410.10148",
    year=2024,
    sample={"beta": 2.5, "gamma": 0.75, "alpha": 0.2},
    parity=("text_alpha_dpo",),
    official_code="junkangwu/alpha-DPO fab3209",
    status="parity",
    published={
        "beta": (2.5, "code", "10 for Gemma 2"),
        "gamma": (1.5, "code", "0.6 beta for Llama 3, 0.15 beta for Mistral, 0.4 beta for Gemma 2"),
        "alpha": (0.2, "code", "0.05 for Mistral and Gemma 2"),
    },
    departures=(
        "a batch of one pair leaves the running deviation as it was, and a deviation of 0 gives no margin "
        "(official: NaN)",
        "uncertain labels enter the statistics with both orders of the pair (official: hard labels only)",
        "as in the official code both statistics start at 0: first z-scores are about ten times too large",
    ),
    allows={"logit": "gamma is a margin, and the reference only moves it"},
)
def alpha_dpo(
    *, beta: float, gamma: float, alpha: float, label_smoothing: float = 0.0, decay: float = 0.9
) -> Objective:
    """SimPO whose margin grows with how far the policy already separates the pair from the reference's view.

    z = beta * (p of chosen - p of rejected) - gamma - beta * alpha * zscore(gap of u), p and u token means
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z), e = label_smoothing

    The z-score is detached; its mean and deviation run over batches and ranks (`alpha_dpo.mean`,
    `alpha_dpo.deviation` in the state), this batch included. alpha = 0 is SimPO.

    Args:
        beta: > 0, per unit of mean score. Text 2.5 to 10.
        gamma: >= 0, in units of z (released as gamma / beta, 0.15 to 0.6).
        alpha: >= 0, per unit of mean score; 0.05 to 0.2 released.
        label_smoothing: in [0, 0.5]; flips the whole of z with its margin.
        decay: of the running statistics, in [0, 1); 0.9 released.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2410.10148; junkangwu/alpha-DPO `dpo_loss`, loss type "alpha-dpo".
    """
    positive_beta("alpha_dpo", beta)
    require("alpha_dpo gamma", gamma, gamma >= 0, "a number >= 0")
    require("alpha_dpo alpha", alpha, alpha >= 0, "a number >= 0")
    _require_share("alpha_dpo label_smoothing", label_smoothing)
    margin = _raised(gamma, beta * alpha, decay)
    smooth = labels.smoothed(label_smoothing)
    term = Term(Pair(), Score(Reduction("mean"), anchor=0.0), beta=beta, margin=margin, labels=smooth)
    return Objective("alpha_dpo", (term,))


def _log_density(gap: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """-((gap - mean) / deviation)^2 / 2; 0 where the deviation is 0."""
    known = deviation > 0
    score = (gap - mean) / torch.where(known, deviation, 1.0)
    return torch.where(known, -0.5 * score.square(), 0.0)


def selection_weights(
    gap: Float[Tensor, " prompt"], *, mean: Float[Tensor, ""], deviation: Float[Tensor, ""]
) -> Float[Tensor, " prompt"]:
    """e^(-((gap - mean) / deviation)^2 / 2): how likely beta-DPO keeps a pair, up to a factor.

    Args:
        gap: u of chosen minus u of rejected of every pair.
        mean: running mean of gaps, `beta_dpo.mean` in the state.
        deviation: running deviation, `beta_dpo.deviation`; 0 weighs all pairs alike.

    Source: arXiv 2407.08639, section 4.2.
    """
    return _log_density(gap, mean, deviation).exp()


def draw_selection(
    gap: Float[Tensor, " prompt"],
    *,
    mean: Float[Tensor, ""],
    deviation: Float[Tensor, ""],
    drop: float,
    generator: torch.Generator,
) -> Float[Tensor, " prompt"]:
    """1 for the pairs beta-DPO learns from, else 0: drawn without replacement by `selection_weights`.

    floor((1 - drop) * pairs) are kept. Drawn as the largest of log weight + Gumbel noise, which is the same
    distribution as drawing one after the other and needs no positive weights. Every rank that passes the
    same gaps and a generator in the same state gets the same answer: gather the gaps of all ranks first,
    then give each rank its part as `extras["selected"]`.

    Args:
        gap: as in `selection_weights`, of the whole batch.
        mean: as there.
        deviation: as there.
        drop: share of pairs left out, in [0, 1); 0.2 released.
        generator: where the noise comes from; on the device of `gap`.

    Raises:
        HyperparameterError: drop out of range.

    Source: junkangwu/beta-DPO `preference_loss`.
    """
    require("draw_selection drop", drop, 0 <= drop < 1, "a number in [0, 1)")
    count = int(gap.numel() * (1.0 - drop))
    uniform = torch.rand(gap.shape, generator=generator, dtype=torch.float64, device=gap.device)
    gumbel = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(torch.float64).tiny)))
    keys = _log_density(gap.detach().to(torch.float64), mean, deviation) + gumbel
    kept = torch.zeros_like(gap)
    kept[keys.topk(count).indices] = 1.0
    return kept


def _kept(context: Context, selection: Selection) -> Float[Tensor, " prompt"]:
    """Share of every pair that is learnt from; 0 for incomplete pairs."""
    if selection == "given":
        return modifiers.of_pairs(context, "selected", "beta_dpo")
    return context.real().all(1).to(context.policy.dtype)


def _batch_temperature(beta: float, scale: float, floor: float, decay: float, kept: Selection) -> Computed:
    """max(floor, beta * (1 + scale * (mean gap of the selected pairs - running mean)))."""

    def compute(context: Context) -> Tensor:
        gap, mean, _ = modifiers.running_gap(context, "beta_dpo", decay)
        share, given = _kept(context, kept), context.labels.probability
        right = torch.ones_like(gap) if given is None else given.to(gap.dtype)
        total = context.sum_across(torch.stack([(share * (2.0 * right - 1.0) * gap).sum(), share.sum()]))
        some = total[1] > 0
        selected = torch.where(some, total[0] / torch.where(some, total[1], 1.0), mean)
        return (beta * (1.0 + scale * (selected - mean))).clamp(min=floor)

    formula = f"max({floor:g}, {beta:g} * (1 + {scale:g} * (mean gap of selected u - running mean)))"
    return Computed(compute, formula, frozenset({"reference"}), couples_rows=True)


def _selected_only() -> Computed:
    """Weights whose mean over pairs and ranks makes the loss a mean over the selected pairs."""

    def compute(context: Context) -> Tensor:
        share = _kept(context, "given")
        pairs = context.real().all(1).to(share.dtype)
        total = context.sum_across(torch.stack([pairs.sum(), share.sum()]))
        some = total[1] > 0
        return torch.where(some, share * total[0] / torch.where(some, total[1], 1.0), 0.0)

    return Computed(compute, "selected / mean of selected", frozenset({"selected"}), couples_rows=True)


@objective(
    "beta_dpo",
    fixes="temperature",
    title="beta-DPO: Direct Preference Optimization with Dynamic beta",
    paper="2407.08639",
    year=2024,
    sample={"beta": 0.1, "scale": 0.6},
    parity=("text_beta_dpo",),
    official_code="junkangwu/beta-DPO 1629047",
    status="parity",
    published={
        "beta": (0.1, "code"),
        "scale": (0.6, "code", "called a"),
        "decay": (0.9, "code"),
        "floor": (0.001, "code"),
    },
    departures=(
        "which pairs are kept is an input, extras['selected'], made by draw_selection from the statistics "
        "before this batch (official: drawn inside the loss, after the statistics saw the batch)",
        "the running deviation is that of all ranks together (official: the mean over ranks of each one's)",
        "the loss is a mean over the selected pairs of all ranks (official: of each rank)",
        "one micro-batch of one pair leaves the running deviation as it was (official: NaN)",
    ),
)
def beta_dpo(
    *, beta: float, scale: float, selection: Selection = "given", decay: float = 0.9, floor: float = 1e-3
) -> Objective:
    """DPO whose temperature follows how far the batch is separated already, on pairs that are no outliers.

    beta of the batch = max(floor, beta * (1 + scale * (mean gap of the selected pairs - running mean)))
    z = beta of the batch * (u of chosen - u of rejected)
    loss = -log sigmoid(z), averaged over the selected pairs

    The gap is not multiplied by beta. The temperature is detached; the running mean and deviation of gaps are
    `beta_dpo.mean` and `beta_dpo.deviation` in the state, updated with the whole batch before use.

    Args:
        beta: > 0, per unit of score; 0.1 released.
        scale: >= 0, per unit of score; 0.6 released.
        selection: "given" reads extras["selected"] (see `draw_selection`), "all" learns from every pair.
        decay: of the running statistics, in [0, 1).
        floor: > 0, least temperature.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2407.08639; junkangwu/beta-DPO `preference_loss`.
    """
    positive_beta("beta_dpo", beta)
    require("beta_dpo scale", scale, 0 <= scale < float("inf"), "a number >= 0")
    require("beta_dpo decay", decay, 0 <= decay < 1, "a number in [0, 1)")
    require("beta_dpo floor", floor, 0 < floor < float("inf"), "a number > 0")
    if selection not in ("given", "all"):
        raise HyperparameterError(explain("beta_dpo selection", got=selection, expected="'given' or 'all'"))
    temperature = _batch_temperature(beta, scale, floor, decay, selection)
    weight = _selected_only() if selection == "given" else 1.0
    return Objective("beta_dpo", (Term(Pair(), beta=temperature, weight=weight),))


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
        tokens_only="the entropy of the next token: an error has none",
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
    _require_share("mallows_dpo label_smoothing", label_smoothing)
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


def _other_objectives(beta: float, weights: tuple[float, ...]) -> Computed:
    """-(weights . margin_rewards) / beta for every candidate."""

    def compute(context: Context) -> Tensor:
        rewards = modifiers.of_pairs(context, "margin_rewards", "modpo")
        rewards = rewards.unsqueeze(2) if rewards.ndim == 2 else rewards
        if rewards.ndim != 3 or rewards.shape[2] != len(weights):
            message = explain(
                "extras['margin_rewards'] of modpo",
                got=f"shape {list(rewards.shape)}",
                expected=f"[prompt, candidate, {len(weights)}], one reward per other objective",
            )
            raise ShapeError(message)
        # Python numbers, not a tensor of weights: nothing is copied to the device in the step.
        total = torch.zeros_like(rewards[..., 0])
        for number, weight in enumerate(weights):
            total = total + weight * rewards[..., number]
        return -total / beta

    shown = ", -".join(f"{weight:g}" for weight in weights)
    return Computed(compute, f"(-{shown}) . margin_rewards / {beta:g}", frozenset({"margin_rewards"}))


def _modpo(
    name: str, beta: float, weight: float, other_weights: Sequence[float] | None, link: Link
) -> Objective:
    positive_beta(name, beta)
    require(f"{name} weight", weight, 0 < weight < float("inf"), "a number > 0, usually at most 1")
    if other_weights is None:
        require(f"{name} weight", weight, weight <= 1, "a number in (0, 1], or other_weights")
        other_weights = (1.0 - weight,)
    require(
        f"{name} number of other_weights", float(len(other_weights)), len(other_weights) > 0, "at least 1"
    )
    for other in other_weights:
        require(f"{name} other_weights", other, 0 <= other < float("inf"), "numbers >= 0")
    score = Score(bonus=_other_objectives(beta, tuple(float(other) for other in other_weights)))
    return Objective(name, (Term(Pair(), score, beta=beta / weight, link=link),))


_MODPO = "Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization"


@objective(
    "modpo",
    fixes="objectives",
    title=_MODPO,
    paper="2310.03708",
    year=2023,
    sample={"beta": 0.1, "weight": 0.5},
    parity=("text_modpo",),
    official_code="ZHZisZZ/modpo 2e2df20",
    status="parity",
    published={"beta": (0.1, "code"), "weight": (0.5, "code", "0.1 to 0.9 make the front")},
    departures=("weights need not add up to 1 when all are given (nor does the official code ask for it)",),
    allows={"logit": "the rewards of the other objectives are a margin"},
)
def modpo(*, beta: float, weight: float, other_weights: Sequence[float] | None = None) -> Objective:
    """DPO on one objective's pairs, with the rewards of the other objectives as a margin.

    z = (beta * (u of chosen - u of rejected) - other_weights . (R of chosen - R of rejected)) / weight
    loss = -log sigmoid(z)

    R is extras["margin_rewards"], [prompt, candidate, objective], or [prompt, candidate] for one other
    objective. The metrics' rewards are beta / weight * u, without R (the official code logs them with R).

    Args:
        beta: > 0, per unit of score.
        weight: > 0, of the objective whose pairs these are; 1 is DPO.
        other_weights: >= 0, one per other objective; None means 1 - weight on a single one.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2310.03708; ZHZisZZ/modpo `modpo_loss`.
    """
    return _modpo("modpo", beta, weight, other_weights, links.logistic())


@objective(
    "modpo_hinge",
    fixes="objectives",
    title=_MODPO,
    paper="2310.03708",
    year=2023,
    sample={"beta": 0.1, "weight": 0.5},
    parity=("text_modpo_hinge",),
    official_code="ZHZisZZ/modpo 2e2df20",
    status="parity",
    published={"beta": (0.1, "code"), "weight": (0.5, "code")},
    allows={"logit": "the rewards of the other objectives are a margin"},
)
def modpo_hinge(*, beta: float, weight: float, other_weights: Sequence[float] | None = None) -> Objective:
    """MODPO with a hinge: loss = max(0, 1 - z), z as in `modpo`.

    Args:
        beta: > 0, per unit of score.
        weight: > 0, of the objective whose pairs these are.
        other_weights: >= 0, one per other objective; None means 1 - weight on a single one.

    Raises:
        HyperparameterError: out of range.

    Source: ZHZisZZ/modpo `modpo_loss`, loss type "hinge".
    """
    return _modpo("modpo_hinge", beta, weight, other_weights, links.hinge())


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
    _require_share("arpo label_smoothing", label_smoothing)
    score = Score(anchor=0.0, scale=modifiers.adaptive_rejection(level, growth))
    term = Term(Pair(), score, beta=beta, labels=labels.smoothed(label_smoothing))
    supervised = (nll(normaliser, coefficient),) if coefficient else ()
    return Objective("arpo", (term,), supervised)

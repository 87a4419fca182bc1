"""The catalogue of margins and temperatures that follow running statistics: alpha-DPO and beta-DPO.

u is the log-ratio, p the policy's own score; z and s as everywhere. "Gap" is chosen minus rejected.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, modifiers
from mmalign.objectives.base import Computed, Context, require
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta, require_share
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "alpha_dpo",
    "beta_dpo",
    "draw_selection",
    "selection_weights",
]


Selection = Literal["given", "all"]


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
    require_share("alpha_dpo label_smoothing", label_smoothing)
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

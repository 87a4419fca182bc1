"""The catalogue of methods that look inside a response: tokens, segments, tails, masks, divergences.

Most of them are DPO on a weighted sum over the positions of a response: what differs is the weight, and
whether the divergence of every position enters, too. Positions are tokens, or the segments, frames or
timesteps of another modality where a weight makes sense there. Scores without an inner axis come with the
weights already in them and are taken as they are.

Inputs per position are entries of `Scores.extras` of the shape of the scores, [prompt, candidate, inner].
u is the log-ratio of a response, u_t that of a position.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmalign.errors import ConfigError, HyperparameterError, ShapeError, explain
from mmalign.methods.row import Taxonomy
from mmalign.objectives import extras, links, modifiers, score_shapes
from mmalign.objectives.base import CHOSEN, Computed, Context, require, wide
from mmalign.objectives.extras import Extra
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction, ReductionName
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "d2po_temporal_decay",
    "dense_dpo",
    "fdpo_js_ipo",
    "ld_dpo",
    "ld_dpo_policy_only",
    "mapo_masked",
    "oreo",
    "rrpo",
    "sampo",
    "shared_subset",
    "sparsepo",
    "tdpo1",
    "tdpo2",
    "tgdpo",
]

_WEIGHTED = "a reduced score has its weights in it already"


def _finite(where: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    bounds = "a finite number" if low == -math.inf else f"a number in [{low:g}, {high:g}]"
    if high == math.inf and low > -math.inf:
        bounds = f"a number >= {low:g}"
    require(where, value, math.isfinite(value) and low <= value <= high, bounds)


def _given(context: Context, name: str, wanted_by: str) -> Float[Tensor, "prompt candidate inner"]:
    """`extras[name]` of the shape of the scores, 0 where a position or a candidate does not count.

    Raises:
        ShapeError: another shape: nothing broadcasts over tokens by accident.
    """
    value, policy = wide(context.scores.extra(name, wanted_by)), context.scores.policy
    if value.shape != policy.shape:
        message = explain(
            f"Scores.extras[{name!r}], needed by {wanted_by}",
            got=f"shape {list(value.shape)}",
            expected=f"one number per position like the scores, {list(policy.shape)}",
        )
        raise ShapeError(message)
    kept = (
        torch.ones_like(value, dtype=torch.bool) if context.scores.mask is None else context.scores.mask != 0
    )
    if context.valid is not None:
        kept = kept & context.valid.unsqueeze(2)
    return torch.where(kept, value, 0.0)


def _position_weights(
    name: str,
    wanted_by: str,
    weight: Callable[[Tensor, Context], Tensor] | None = None,
    *,
    formula: str = "",
    needs: frozenset[str] = frozenset(),
    attached: bool = False,
) -> Computed:
    """Weights of positions from one input per position."""

    def compute(context: Context) -> Tensor:
        value = _given(context, name, wanted_by)
        return value if weight is None else weight(value, context)

    return Computed(compute, formula or name, frozenset({name}) | needs, attached=attached)


def _weighted_dpo(name: str, beta: float, reduction: Reduction) -> Objective:
    positive_beta(name, beta)
    return Objective(name, (Term(Pair(), Score(reduction), beta=beta),))


# --------------------------------------------------------------------------------------- divergences

_TDPO = "Token-level Direct Preference Optimization"
_TDPO_CODE = "Vance0124/Token-level-Direct-Preference-Optimization 2a736ec"
_TDPO_DEPARTURE = (
    "logged rewards are beta * u; the official code adds the divergence to the rewards it logs, in both "
    "variants"
)


@objective(
    "tdpo1",
    fixes="diversity",
    on_errors="axis",
    title=_TDPO,
    paper="2404.11999",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_tdpo1",),
    official_code=_TDPO_CODE,
    status="parity",
    published={"beta": (0.1, "code")},
    departures=(_TDPO_DEPARTURE,),
)
def tdpo1(*, beta: float) -> Objective:
    """DPO with the sequential divergence of each response in its score.

    s = u + KL, KL = sum over positions of KL(reference || policy) over the vocabulary, with gradient
    z = beta * (s of chosen - s of rejected)

    `Scores.kl` holds the divergence of every position (`likelihood.vocabulary_kl`), or its sum.

    Args:
        beta: > 0, per unit of the summed log-ratio (0.1 released).

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2404.11999; official code, `tdpo_loss`. Parity: text_tdpo1.
    """
    positive_beta("tdpo1", beta)
    score = Score(bonus=modifiers.kl_bonus(1.0, 1.0, detach_chosen=False))
    return Objective("tdpo1", (Term(Pair(), score, beta=beta),))


@objective(
    "tdpo2",
    fixes="diversity",
    on_errors="axis",
    title=_TDPO,
    paper="2404.11999",
    year=2024,
    sample={"beta": 0.1, "alpha": 0.5},
    parity=("text_tdpo2",),
    official_code=_TDPO_CODE,
    status="parity",
    published={"beta": (0.1, "code"), "alpha": (0.5, "code")},
    departures=(_TDPO_DEPARTURE,),
)
def tdpo2(*, beta: float, alpha: float) -> Objective:
    """TDPO whose divergence is weighed, and held constant on the chosen side.

    z = beta * (u of chosen - u of rejected - alpha * (KL of rejected - stop-gradient(KL of chosen)))

    `Scores.kl` as for `tdpo1`. The gradient lowers the divergence of the rejected response only.

    Args:
        beta: > 0, per unit of the summed log-ratio (0.1 released).
        alpha: >= 0, weight of the divergence (0.5 released); 0 is DPO.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2404.11999; official code, `tdpo_loss` with `if_tdpo2`. Parity: text_tdpo2.
    """
    positive_beta("tdpo2", beta)
    _finite("tdpo2 alpha", alpha, 0.0)
    score = Score(bonus=modifiers.kl_bonus(alpha, alpha, detach_chosen=True))
    return Objective("tdpo2", (Term(Pair(), score, beta=beta),))


_SPARSEPO = "SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks"
_SPARSEPO_CODE = "huawei-noah/HEBO ee6112d, SparsePO"
_SPARSEPO_DEPARTURE = (
    "Scores.kl is the divergence itself; the official variables hold its negative",
    "the mask of the completion is Scores.mask; the official code multiplies it into both masks as well",
)


def _masked_divergence(name: str, wanted_by: str, *, attached: bool) -> Computed:
    """Sum over positions of mask * KL, with gradient through KL, and on request through the mask."""

    def compute(context: Context) -> Tensor:
        kl, scores = context.scores.kl, context.scores
        if kl is None:
            message = explain(
                f"Scores.kl, needed by {wanted_by}", got=None, expected="one divergence per position"
            )
            raise ConfigError(message)
        if kl.ndim == 2:
            return wide(kl)  # already masked and summed
        weights = _given(context, name, wanted_by)
        known = wide(kl) if scores.mask is None else torch.where(scores.mask != 0, wide(kl), 0.0)
        return (known * (weights if attached else weights.detach())).sum(-1)

    return Computed(
        compute,
        f"sum over positions of {name} * kl",
        frozenset({"kl", name}),
        attached=True,
        tokens_only="a divergence over a vocabulary",
    )


def _mask_norm(name: str, coefficient: float) -> tuple[Extra, ...]:
    """Coefficient * sum of |mask| over the positions of all candidates; 0 on reduced scores."""

    def value(context: Context) -> Tensor:
        scores = context.scores
        if scores.policy.ndim == 2:
            return torch.zeros_like(context.policy[:, 0])
        return _given(context, name, "the norm of a mask").abs().sum((1, 2))

    term = Extra(f"{name}_norm", value, f"sum of |{name}|", coefficient, needs=frozenset({name}))
    return (term,) if coefficient else ()


@objective(
    "sparsepo",
    fixes="credit",
    on_errors="axis",
    title=_SPARSEPO,
    paper="2410.05102",
    year=2024,
    sample={"beta": 0.1, "reward_norm": 0.001, "kl_norm": 0.001},
    parity=("text_sparsepo_mask",),
    official_code=_SPARSEPO_CODE,
    status="parity",
    published={
        "beta": (0.1, "code", "0.8 in one of the released runs"),
        "reward_norm": (0.0, "code", "0.001 in the helpfulness runs; halved there when both masks are one"),
        "kl_norm": (0.0, "code", "as reward_norm"),
    },
    departures=_SPARSEPO_DEPARTURE,
    allows={"inner axis": _WEIGHTED},
)
def sparsepo(*, beta: float, reward_norm: float = 0.0, kl_norm: float = 0.0) -> Objective:
    """DPO whose log-ratios and divergences are weighed token by token with learned masks.

    s = sum over positions of reward_mask * u_t + sum over positions of kl_mask * KL_t
    z = beta * (s of chosen - s of rejected)
    loss = -log sigmoid(z) + reward_norm * |reward_mask| + kl_norm * |kl_mask|, |.| summed over both responses

    `extras["reward_mask"]` and `extras["kl_mask"]` are >= 0 and carry gradient to whatever makes them;
    `Scores.kl` holds KL(reference || policy) of every position.

    Args:
        beta: > 0, per unit of the weighted log-ratio (0.1 released).
        reward_norm: >= 0, pull of reward_mask towards 0 (0 to 0.001 released).
        kl_norm: >= 0, pull of kl_mask towards 0.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2410.05102; huawei-noah/HEBO SparsePO `sparse_trainer.py`. Parity: text_sparsepo_mask.
    """
    positive_beta("sparsepo", beta)
    _finite("sparsepo reward_norm", reward_norm, 0.0)
    _finite("sparsepo kl_norm", kl_norm, 0.0)
    weights = _position_weights("reward_mask", "SparsePO", attached=True)
    score = Score(Reduction(weights=weights), bonus=_masked_divergence("kl_mask", "SparsePO", attached=True))
    norms = _mask_norm("reward_mask", reward_norm) + _mask_norm("kl_mask", kl_norm)
    return Objective("sparsepo", (Term(Pair(), score, beta=beta, name="preference"),), norms)


@objective(
    "mapo_masked",
    fixes="credit",
    on_errors="axis",
    title=_SPARSEPO,
    paper="2410.05102",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_sparsepo_mask",),
    official_code=_SPARSEPO_CODE,
    status="parity",
    published={"beta": (0.1, "code")},
    departures=(
        *_SPARSEPO_DEPARTURE,
        "the name mapo belongs to a diffusion method, hence the qualified name",
    ),
    allows={"inner axis": _WEIGHTED},
)
def mapo_masked(*, beta: float) -> Objective:
    """SparsePO with one mask that is not learned: made of the reference's activations (MaPO in its paper).

    s = sum over positions of token_mask * (u_t + KL_t)
    z = beta * (s of chosen - s of rejected)

    `extras["token_mask"]` gets no gradient; `Scores.kl` holds KL(reference || policy) of every position.

    Args:
        beta: > 0, per unit of the weighted log-ratio (0.1 released).

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2410.05102; huawei-noah/HEBO SparsePO `mapo_trainer.py`. Parity: text_sparsepo_mask.
    """
    positive_beta("mapo_masked", beta)
    weights = _position_weights("token_mask", "mask-based MaPO")
    bonus = _masked_divergence("token_mask", "mask-based MaPO", attached=False)
    return Objective(
        "mapo_masked", (Term(Pair(), Score(Reduction(weights=weights), bonus=bonus), beta=beta),)
    )


# --------------------------------------------------------------------------------------- length


def shared_subset(
    mask: Shaped[Tensor, "prompt candidate inner"], *, generator: torch.Generator
) -> Bool[Tensor, "prompt candidate inner"]:
    """For every prompt as many random positions of each candidate as its shortest candidate has.

    Candidates without any position are left out of the minimum. Drawn uniformly without replacement.

    Args:
        mask: which positions count.
        generator: on the mask's device.

    Returns:
        The positions that are kept: `extras["kept_positions"]` of `sampo`.

    Source: arXiv 2406.10957.
    """
    counts = mask != 0
    noise = torch.rand(mask.shape, generator=generator, device=mask.device)
    # Positions that do not count come last, whatever their number.
    place = torch.where(counts, noise, 2.0).argsort(dim=-1).argsort(dim=-1)
    length = counts.sum(-1)
    most = torch.iinfo(length.dtype).max
    shortest = torch.where(length > 0, length, most).amin(1).reshape(-1, 1, 1)
    return counts & (place < shortest)


@objective(
    "sampo",
    fixes="length",
    on_errors="axis",
    title="Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL "
    "Divergence",
    paper="2406.10957",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_sampo",),
    official_code="LuJunru/SamPO 25e9631",
    status="parity",
    published={"beta": (0.1, "code")},
    departures=(
        "policy and reference share one draw; the released trainer draws for each forward pass, so that its "
        "log-ratio subtracts different tokens (draws='independent')",
    ),
    allows={"inner axis": _WEIGHTED},
)
def sampo(*, beta: float, draws: Literal["shared", "independent"] = "shared") -> Objective:
    """DPO on equally many tokens of both responses: a random subset of the longer one.

    z = beta * (sum of u_t over kept positions of chosen - the same of rejected)

    `extras["kept_positions"]` says which positions are kept: draw them with `shared_subset`, outside the
    loss.

    Args:
        beta: > 0, per unit of the summed log-ratio (0.1 released).
        draws: "shared": policy and reference look at the same positions. "independent": the reference looks
            at `extras["kept_reference_positions"]`, as in the released trainer; policy = reference then gives
            no logit of 0.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2406.10957; LuJunru/SamPO `get_batch_logps` with `len_norm`. Parity: text_sampo.
    """
    if draws not in ("shared", "independent"):
        raise HyperparameterError(explain("sampo draws", got=draws, expected="'shared' or 'independent'"))
    own = draws == "independent"
    reference: bool | Computed = _position_weights("kept_reference_positions", "SamPO") if own else True
    kept = _position_weights("kept_positions", "SamPO")
    return _weighted_dpo("sampo", beta, Reduction(weights=kept, weighs_reference=reference))


_LD_DPO = "Length Desensitization in Direct Preference Optimization"


@objective(
    "ld_dpo",
    fixes="length",
    on_errors="axis",
    title=_LD_DPO,
    paper="2409.06411",
    year=2024,
    sample={"beta": 0.1, "alpha": 0.5},
    parity=("text_ld_dpo",),
    official_code="trl 1.16.0",
    status="parity",
    published={"alpha": (1.0, "code", "off in TRL and LLaMA-Factory unless set")},
    departures=(
        "the tail of policy and reference is weighed, as in TRL since 2026; LLaMA-Factory, ms-swift and "
        "earlier TRL weigh the policy's only (ld_dpo_policy_only)",
    ),
)
def ld_dpo(*, beta: float, alpha: float) -> Objective:
    """DPO that counts tokens beyond the shorter response's length only in part.

    weight of a position = 1 up to the length of the shorter response, alpha after it

    Args:
        beta: > 0, per unit of the summed log-ratio.
        alpha: in [0, 1]; 1 is DPO, 0 cuts the longer response.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2409.06411; trl 1.16.0, `ld_alpha`. Parity: text_ld_dpo.
    """
    return _weighted_dpo("ld_dpo", beta, Reduction(weights=modifiers.tail_weights(alpha)))


@objective(
    "ld_dpo_policy_only",
    fixes="length",
    on_errors="axis",
    title=_LD_DPO,
    paper="2409.06411",
    year=2024,
    sample={"beta": 0.1, "alpha": 0.5},
    parity=("text_ld_dpo_policy_only",),
    official_code="hiyouga/LLaMA-Factory ff6d4d1",
    status="parity",
    published={"alpha": (1.0, "code", "off unless set")},
    departures=("kept for comparison: ld_dpo weighs both models, so that its logit starts at 0",),
)
def ld_dpo_policy_only(*, beta: float, alpha: float) -> Objective:
    """LD-DPO with the tail of the policy weighed and that of the reference not.

    s = sum of weight_t * policy_t - sum of reference_t, weights as in `ld_dpo`

    At the start s is (alpha - 1) times the tail's log-likelihood, not 0: the longer response begins with an
    advantage.

    Args:
        beta: > 0, per unit of the summed log-ratio.
        alpha: in [0, 1]; 1 is DPO.

    Raises:
        HyperparameterError: out of range.

    Source: hiyouga/LLaMA-Factory `get_batch_logps` with `ld_alpha`. Parity: text_ld_dpo_policy_only.
    """
    weights = modifiers.tail_weights(alpha)
    return _weighted_dpo("ld_dpo_policy_only", beta, Reduction(weights=weights, weighs_reference=False))


@objective(
    "fdpo_js_ipo",
    fixes="diversity",
    on_errors="exponential",
    title="Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence "
    "Constraints",
    paper="2309.16240",
    year=2023,
    sample={"tau": 0.1},
    parity=("text_fdpo_js_ipo",),
    official_code="trl 1.16.0",
    status="parity",
    published={"tau": (0.1, "code", "TRL's beta")},
    departures=(
        "the shape's constant log 2 is kept, as in TRL 1.16: divided by two lengths it does not cancel (TRL "
        "1.10 dropped it)",
    ),
)
def fdpo_js_ipo(*, tau: float) -> Objective:
    """IPO per token on the Jensen-Shannon score of the whole response.

    s = (log 2 + log sigmoid(u)) / length, u summed over the response
    loss = (s of chosen - s of rejected - 1 / (2 tau))^2

    Args:
        tau: > 0; the target gap is 1 / (2 tau) per token. s of the chosen side is at most log 2 / length, so
            small tau asks for a gap that only a falling rejected side can give.

    Raises:
        HyperparameterError: tau <= 0.

    Source: trl 1.16.0, loss type "ipo" with `f_divergence_type` "js_divergence". Parity: text_fdpo_js_ipo.
    """
    require("fdpo_js_ipo tau", tau, 0 < tau < math.inf, "a number > 0")
    score = Score(shape=score_shapes.js(), scale=modifiers.inverse_length())
    return Objective("fdpo_js_ipo", (Term(Pair(), score, link=links.square(1.0 / (2.0 * tau))),))


# --------------------------------------------------------------------------------------- which tokens count


@objective(
    "d2po_temporal_decay",
    fixes="credit",
    on_errors="axis",
    title="Earlier Tokens Contribute More: Learning Direct Preference Optimization From Temporal Decay "
    "Perspective",
    paper="2502.14340",
    year=2025,
    sample={"beta": 0.1, "gamma": 0.98},
    parity=("text_d2po_temporal_decay",),
    official_code="LotuSrc/D2PO ec6c9db",
    status="parity",
    published={"gamma": (0.98, "code"), "beta": (0.1, "code")},
    departures=(
        "the first token already weighs gamma, as released, so that beta is effectively gamma * beta",
        "the name D2PO is shared with discriminator-guided DPO (arXiv 2405.01511), hence the qualified name",
    ),
    allows={
        "inner axis": "the first position weighs gamma, and a reduced score has its weights in it already"
    },
)
def d2po_temporal_decay(*, beta: float, gamma: float, reduction: ReductionName = "sum") -> Objective:
    """DPO whose tokens count less the later they come.

    weight of the k-th token of a response = gamma^k, k from 1, for policy and reference

    Args:
        beta: > 0, per unit of the weighted log-ratio.
        gamma: in (0, 1] (0.98 released); 1 is DPO.
        reduction: "sum" (released for DPO), or "mean": divided by the number of tokens, not of weights, as
            the code does for losses that normalise by length; beta is then per token.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2502.14340; LotuSrc/D2PO `get_batch_logps`. Parity: text_d2po_temporal_decay.
    """
    weights = modifiers.position_decay(gamma)
    return _weighted_dpo("d2po_temporal_decay", beta, Reduction(reduction, weights=weights))


@objective(
    "dense_dpo",
    fixes="credit",
    on_errors="axis",
    title="RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human "
    "Feedback",
    paper="2312.00849",
    year=2023,
    sample={"beta": 0.5, "weight": 5.0},
    parity=("rlaifv_ddpo",),
    official_code="RLHF-V/RLAIF-V 83d917b",
    status="parity",
    published={
        "beta": (0.5, "paper", "0.1 in the repository's script"),
        "weight": (5.0, "paper", "3 as the code's default, 1.1 in the repository's script"),
        "normaliser": ("weight", "paper", "the code's default is sum"),
    },
    departures=(
        "the paper divides by the sum of the weights, the code only with dpo_use_average: an argument here",
        "which positions changed is the caller's input, see mmalign.data.changed_tokens; the released "
        "difference runs over padded prompts",
        "the supervised term of the code (weight 0 by default) is added as an objective: + sft(...)",
        "the name DDPO is shared with a policy-gradient method for diffusion, hence the name here",
    ),
    allows={"inner axis": _WEIGHTED},
)
def dense_dpo(*, beta: float, weight: float, normaliser: Literal["sum", "weight"] = "sum") -> Objective:
    """DPO that counts corrected segments more: dense DPO of RLHF-V.

    weight of a position = `weight` where `extras["changed"]` is 1, 1 where it is 0
    s = sum over positions of weight_t * u_t, divided by the sum of the weights for normaliser "weight"

    Fractions in `changed` weigh in between.

    Args:
        beta: > 0, per unit of s (0.5 released).
        weight: >= 0, of changed positions (5 in the paper); 1 is DPO.
        normaliser: "sum" (the code's default) or "weight" (the paper's: a mean, so that beta is per token).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2312.00849; RLHF-V/RLAIF-V `compute_weighted_logp`.
    """
    _finite("dense_dpo weight", weight, 0.0)
    if normaliser not in ("sum", "weight"):
        message = explain("dense_dpo normaliser", got=normaliser, expected="'sum' or 'weight'")
        raise HyperparameterError(message)

    def weigh(changed: Tensor, context: Context) -> Tensor:
        weights = 1.0 + (weight - 1.0) * changed
        if normaliser == "sum":
            return weights
        mask = context.scores.mask
        kept = weights if mask is None else torch.where(mask != 0, weights, 0.0)
        total = kept.sum(-1, keepdim=True)
        return weights / torch.where(total == 0, 1.0, total)

    formula = f"(changed: {weight:g}, others: 1)" + (" / their sum" if normaliser == "weight" else "")
    weights = _position_weights("changed", "dense DPO", weigh, formula=formula)
    return _weighted_dpo("dense_dpo", beta, Reduction(weights=weights))


@objective(
    "rrpo",
    fixes="credit",
    on_errors="axis",
    title="Self-alignment of Large Video Language Models with Refined Regularized Preference Optimization",
    paper="2504.12083",
    year=2025,
    sample={"beta": 0.1, "alpha": 0.01},
    parity=("rrpo",),
    official_code="pritamqu/RRPO a905573",
    status="parity",
    published={
        "beta": (0.1, "code", "LLaVA-Video; 0.5 LongVU, 0.9 VideoChat2"),
        "alpha": (0.01, "code", "LLaVA-Video and VideoChat2; 0.05 LongVU"),
    },
    departures=(
        "the divergence is added, as in the code; the project page's formula has it inside the minus sign",
        "phrases are only summed, so that their split changes nothing: one mask says which tokens are in any",
        "computed from two log-softmaxes (official: log of a softmax, NaN where a probability underflows)",
    ),
    allows={"inner axis": _WEIGHTED},
)
def rrpo(*, beta: float, alpha: float) -> Objective:
    """DPO on the phrases in which two responses differ, plus a divergence over the whole chosen response.

    z = beta * (sum of u_t over the phrases of chosen - the same of rejected)
    loss = -log sigmoid(z) + alpha * sum over the chosen response of KL(reference || policy)

    `extras["phrase"]` is 1 at positions of differing phrases; `Scores.kl` holds the divergence of every
    position, with gradient; `Scores.mask` covers the whole response.

    Args:
        beta: > 0, per unit of the summed log-ratio (0.1 to 0.9 released).
        alpha: >= 0, weight of the divergence (0.01 to 0.05 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2504.12083; pritamqu/RRPO `losses.py`. Parity: rrpo.
    """
    positive_beta("rrpo", beta)
    _finite("rrpo alpha", alpha, 0.0)
    weights = _position_weights("phrase", "RRPO")
    term = Term(Pair(), Score(Reduction(weights=weights)), beta=beta, name="preference")
    return Objective("rrpo", (term,), (extras.divergence(alpha),) if alpha else ())


@objective(
    "tgdpo",
    fixes="credit",
    on_errors="axis",
    title="TGDPO: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization",
    paper="2506.14574",
    year=2025,
    sample={"beta": 0.1, "alpha": 0.5},
    parity=("text_tgdpo",),
    official_code="dvlab-research/TGDPO dd88982",
    status="parity",
    published={"beta": (0.1, "code"), "alpha": (0.5, "code")},
    departures=(
        "weights below 0 are kept, as released: a token the reward model rates low enough turns its sign",
    ),
    allows={"inner axis": _WEIGHTED},
)
def tgdpo(*, beta: float, alpha: float) -> Objective:
    """DPO whose tokens are weighed by a token-level reward, which a DPO-trained model gives.

    reward_t = beta * (reward_model_t - reference_t)
    weight of a position = 1 + alpha * reward_t in the chosen response, 1 - alpha * reward_t in the rejected

    `extras["reward_model_score"]` holds the log-probabilities under the model that serves as reward.

    Args:
        beta: > 0, per unit of the weighted log-ratio, and of the token reward.
        alpha: >= 0 (0.5 released); 0 is DPO.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2506.14574; dvlab-research/TGDPO `dpo_loss`. Parity: text_tgdpo.
    """
    positive_beta("tgdpo", beta)
    _finite("tgdpo alpha", alpha, 0.0)

    def weigh(reward_model: Tensor, context: Context) -> Tensor:
        reference = context.scores.reference
        if reference is None:
            raise ConfigError(explain("Scores.reference, needed by TGDPO", got=None, expected="a reference"))
        reward = beta * (reward_model - wide(reference))
        sign = -torch.ones_like(context.policy)
        sign[:, CHOSEN] = 1.0
        return 1.0 + alpha * sign.unsqueeze(2) * reward

    formula = f"1 +- {alpha:g} * {beta:g} * (reward_model_score - reference)"
    weights = _position_weights(
        "reward_model_score", "TGDPO", weigh, formula=formula, needs=frozenset({"reference"})
    )
    return _weighted_dpo("tgdpo", beta, Reduction(weights=weights))


# --------------------------------------------------------------------------------------- a value per state


def _per_state(value: Tensor) -> Float[Tensor, "prompt candidate inner"]:
    """With an inner axis: a reduced score is one state whose action is the whole response."""
    return value if value.ndim == 3 else value.unsqueeze(2)


def _bellman(context: Context, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Value of every state minus the reward, beta * u of its action, of all later ones, states that count).

    Raises:
        ConfigError: an input is missing.
    """
    scores = context.scores
    if scores.reference is None or scores.reward is None:
        missing = "reference" if scores.reference is None else "reward"
        raise ConfigError(
            explain(f"Scores.{missing}, needed by OREO", got=None, expected="one value per response")
        )
    counts = torch.ones_like(_per_state(scores.policy), dtype=torch.bool)
    if scores.mask is not None and scores.policy.ndim == 3:
        counts = scores.mask != 0
    if context.valid is not None:
        counts = counts & context.valid.unsqueeze(2)
    action = _per_state(wide(scores.policy)) - _per_state(wide(scores.reference.detach()))
    action = beta * torch.where(counts, action, 0.0)
    later = action.flip(-1).cumsum(-1).flip(-1) - action
    value = _per_state(_given(context, "value", "OREO") if scores.policy.ndim == 3 else _value(context))
    surplus = torch.where(counts, value - wide(scores.reward).detach().unsqueeze(2), 0.0)
    return surplus, action, later, counts


def _value(context: Context) -> Tensor:
    return wide(context.scores.extra("value", "OREO"))


def _mean_over_states(values: Tensor, counts: Tensor) -> Float[Tensor, " prompt"]:
    share = counts.to(values.dtype)
    return (values * share).sum((1, 2)) / share.sum((1, 2)).clamp(min=1.0)


@objective(
    "oreo",
    data="unpaired",
    fixes="credit",
    on_errors="axis",
    title="Offline Reinforcement Learning for LLM Multi-Step Reasoning",
    paper="2412.16145",
    year=2024,
    sample={"beta": 0.03, "alpha": 0.01},
    official_code="jwhj/OREO 6f7403b",
    status="formula",
    published={"beta": (0.03, "code", "the released scripts; 0.01 as default"), "alpha": (0.01, "code")},
    taxonomy=Taxonomy(
        data="pointwise, token", framework="offline", constraint="reverse KL", model_property="alignment"
    ),
    departures=(
        "one loss for both models: the gradients of policy and value function do not meet, so that one "
        "optimiser with two parameter groups stands for the official two",
        "the value loss reads the log-probabilities of this step's policy, detached; the release computes "
        "them in a pass of their own, on request under an average of past weights",
        "positions that count are those of actions; the release masks states and actions apart",
    ),
    allows={
        "gradient signs": "each response is regressed on its reward, whatever the label says",
    },
)
def oreo(*, beta: float, alpha: float) -> Objective:
    """Offline reasoning optimisation: policy and value function solve the soft Bellman equation together.

    a_t = beta * u_t, A_t = sum over later positions of a
    policy loss = mean over t of (stop-gradient(V_t) - R + a_t + stop-gradient(A_t))^2
    value loss = mean over t of (V_t - R + stop-gradient(a_t + A_t))^2
    loss = policy loss + value loss + alpha * mean over t of KL(policy || reference)

    V_t is `extras["value"]`, with gradient, the value of the state before position t; R is `Scores.reward`,
    the outcome of the response (1 or 0). Positions are tokens or steps; with one position it is the
    response-level variant. `Scores.kl` holds `vocabulary_kl(..., direction="policy_from_reference")` of
    `likelihood`; it is read for alpha > 0 only.

    Args:
        beta: > 0, temperature per nat (0.03 released).
        alpha: >= 0, weight of the divergence (0.01 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2412.16145; jwhj/OREO `pcl_trainer.py`, `loss` and `dro_loss`.
    """
    positive_beta("oreo", beta)
    _finite("oreo alpha", alpha, 0.0)

    def policy(context: Context) -> Tensor:
        surplus, action, later, counts = _bellman(context, beta)
        return _mean_over_states((surplus.detach() + action + later.detach()).square(), counts)

    def value(context: Context) -> Tensor:
        surplus, action, later, counts = _bellman(context, beta)
        return _mean_over_states((surplus + (action + later).detach()).square(), counts)

    def divergence(context: Context) -> Tensor:
        kl, counts = context.scores.kl, _bellman(context, beta)[3]
        if kl is None:
            raise ConfigError(explain("Scores.kl, needed by OREO", got=None, expected="one per position"))
        if kl.ndim == 2:
            return wide(kl).sum(1)
        return _mean_over_states(torch.where(counts, wide(kl), 0.0), counts)

    needs = frozenset({"reference", "reward", "value"})
    terms = (
        Extra(
            "policy", policy, f"mean of (sg(value) - reward + {beta:g} * (u + sg(later u)))^2", needs=needs
        ),
        Extra("value", value, f"mean of (value - reward + sg({beta:g} * (u + later u)))^2", needs=needs),
    )
    penalty = Extra(
        "divergence",
        divergence,
        "mean of kl",
        alpha,
        needs=frozenset({"kl"}),
        tokens_only="a divergence over a vocabulary",
    )
    return Objective("oreo", extras=(*terms, penalty) if alpha else terms)

"""The catalogue of methods that weigh the positions of a response: lengths, tails, decay, token rewards.

They are DPO (or its kin) on a weighted sum over positions: what differs is the weight. Positions are tokens,
or the segments, frames or timesteps of another modality where a weight makes sense there. Scores without an
inner axis come with the weights already in them and are taken as they are. Divergences of tokens stand in
`token_divergences`, changed parts in `segments`, a value per state in `state_values`.

u is the log-ratio of a response, u_t that of a position.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from mmalign.errors import ConfigError, HyperparameterError, explain
from mmalign.objectives import links, modifiers, score_shapes
from mmalign.objectives.base import CHOSEN, Computed, Context, require, wide
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.positions import WEIGHTED, position_weights, require_finite, weighted_dpo
from mmalign.objectives.reductions import Reduction, ReductionName
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "d2po_temporal_decay",
    "fdpo_js_ipo",
    "ld_dpo",
    "ld_dpo_policy_only",
    "sampo",
    "shared_subset",
    "tgdpo",
]


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
    allows={"inner axis": WEIGHTED},
)
def sampo(*, beta: float, draws: Literal["shared", "independent"] = "shared") -> Objective:
    """DPO on equally many tokens of both responses: a random subset of the longer one.

    z = beta * (sum of u_t over kept positions of chosen - the same of rejected)

    `extras["kept_positions"]` says which positions are kept: draw them with `shared_subset`, outside the
    loss.

    Scores without an inner axis are taken as summed with their weights already: the sums over the kept
    positions, and which positions those are is not read.

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
    reference: bool | Computed = position_weights("kept_reference_positions", "SamPO") if own else True
    kept = position_weights("kept_positions", "SamPO")
    return weighted_dpo("sampo", beta, Reduction(weights=kept, weighs_reference=reference))


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
    published={
        "beta": (0.1, "code", "TRL's default"),
        "alpha": (1.0, "code", "off in TRL and LLaMA-Factory unless set"),
    },
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
    return weighted_dpo("ld_dpo", beta, Reduction(weights=modifiers.tail_weights(alpha)))


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
    published={"beta": (0.1, "code", "LLaMA-Factory's pref_beta"), "alpha": (1.0, "code", "off unless set")},
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
    return weighted_dpo("ld_dpo_policy_only", beta, Reduction(weights=weights, weighs_reference=False))


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
    return weighted_dpo("d2po_temporal_decay", beta, Reduction(reduction, weights=weights))


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
    allows={"inner axis": WEIGHTED},
)
def tgdpo(*, beta: float, alpha: float) -> Objective:
    """DPO whose tokens are weighed by a token-level reward, which a DPO-trained model gives.

    reward_t = beta * (reward_model_t - reference_t)
    weight of a position = 1 + alpha * reward_t in the chosen response, 1 - alpha * reward_t in the rejected

    `extras["reward_model_score"]` holds the log-probabilities under the model that serves as reward.

    Scores without an inner axis are taken as summed with their weights already: token rewards are not read.

    Args:
        beta: > 0, per unit of the weighted log-ratio, and of the token reward.
        alpha: >= 0 (0.5 released); 0 is DPO.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2506.14574; dvlab-research/TGDPO `dpo_loss`. Parity: text_tgdpo.
    """
    positive_beta("tgdpo", beta)
    require_finite("tgdpo alpha", alpha, 0.0)

    def weigh(reward_model: Tensor, context: Context) -> Tensor:
        reference = context.scores.reference
        if reference is None:
            raise ConfigError(explain("Scores.reference, needed by TGDPO", got=None, expected="a reference"))
        reward = beta * (reward_model - wide(reference))
        sign = -torch.ones_like(context.policy)
        sign[:, CHOSEN] = 1.0
        return 1.0 + alpha * sign.unsqueeze(2) * reward

    formula = f"1 +- {alpha:g} * {beta:g} * (reward_model_score - reference)"
    weights = position_weights(
        "reward_model_score", "TGDPO", weigh, formula=formula, needs=frozenset({"reference"})
    )
    return weighted_dpo("tgdpo", beta, Reduction(weights=weights))

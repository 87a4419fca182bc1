"""The catalogue of methods that add the divergence of every token, whole or masked: TDPO, SparsePO, MaPO.

u is the log-ratio of a response, u_t that of a position; `Scores.kl` holds the divergences.
"""

import torch
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.objectives import modifiers
from mmalign.objectives.base import Computed, Context, wide
from mmalign.objectives.extras import Extra
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.positions import WEIGHTED, given_positions, position_weights, require_finite
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "mapo_masked",
    "sparsepo",
    "tdpo1",
    "tdpo2",
]


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
    require_finite("tdpo2 alpha", alpha, 0.0)
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
        weights = given_positions(context, name, wanted_by)
        known = wide(kl) if scores.mask is None else torch.where(scores.mask != 0, wide(kl), 0.0)
        return (known * (weights if attached else weights.detach())).sum(-1)

    return Computed(
        compute,
        f"sum over positions of {name} * kl",
        frozenset({"kl", name}),
        attached=True,
        tokens_only="a divergence over a vocabulary; for denoisers pass the squared distance of "
        "the predictions as a linear term",
    )


def _mask_norm(name: str, coefficient: float) -> tuple[Extra, ...]:
    """Coefficient * sum of |mask| over the positions of all candidates; 0 on reduced scores."""

    def value(context: Context) -> Tensor:
        scores = context.scores
        if scores.policy.ndim == 2:
            return torch.zeros_like(context.policy[:, 0])
        return given_positions(context, name, "the norm of a mask").abs().sum((1, 2))

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
    allows={"inner axis": WEIGHTED},
)
def sparsepo(*, beta: float, reward_norm: float = 0.0, kl_norm: float = 0.0) -> Objective:
    """DPO whose log-ratios and divergences are weighed token by token with learned masks.

    s = sum over positions of reward_mask * u_t + sum over positions of kl_mask * KL_t
    z = beta * (s of chosen - s of rejected)
    loss = -log sigmoid(z) + reward_norm * |reward_mask| + kl_norm * |kl_mask|, |.| summed over both responses

    `extras["reward_mask"]` and `extras["kl_mask"]` are >= 0 and carry gradient to whatever makes them;
    `Scores.kl` holds KL(reference || policy) of every position.

    Scores without an inner axis are taken as sums with the reward mask in them already.

    Args:
        beta: > 0, per unit of the weighted log-ratio (0.1 released).
        reward_norm: >= 0, pull of reward_mask towards 0 (0 to 0.001 released).
        kl_norm: >= 0, pull of kl_mask towards 0.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2410.05102; huawei-noah/HEBO SparsePO `sparse_trainer.py`. Parity: text_sparsepo_mask.
    """
    positive_beta("sparsepo", beta)
    require_finite("sparsepo reward_norm", reward_norm, 0.0)
    require_finite("sparsepo kl_norm", kl_norm, 0.0)
    weights = position_weights("reward_mask", "SparsePO", attached=True)
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
    allows={"inner axis": WEIGHTED},
)
def mapo_masked(*, beta: float) -> Objective:
    """SparsePO with one mask that is not learned: made of the reference's activations (MaPO in its paper).

    s = sum over positions of token_mask * (u_t + KL_t)
    z = beta * (s of chosen - s of rejected)

    `extras["token_mask"]` gets no gradient; `Scores.kl` holds KL(reference || policy) of every position.

    Scores without an inner axis are taken as sums with the mask in them already.

    Args:
        beta: > 0, per unit of the weighted log-ratio (0.1 released).

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2410.05102; huawei-noah/HEBO SparsePO `mapo_trainer.py`. Parity: text_sparsepo_mask.
    """
    positive_beta("mapo_masked", beta)
    weights = position_weights("token_mask", "mask-based MaPO")
    bonus = _masked_divergence("token_mask", "mask-based MaPO", attached=False)
    return Objective(
        "mapo_masked", (Term(Pair(), Score(Reduction(weights=weights), bonus=bonus), beta=beta),)
    )

"""The catalogue of DPO under other divergences than the reverse KL: another shape of the ratio.

u is the log-ratio; z and s as everywhere.
"""

from mmalign.objectives import score_shapes
from mmalign.objectives.base import require
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.score_shapes import Shape
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "fdpo_alpha",
    "fdpo_forward_kl",
    "fdpo_js",
]


_FDPO = "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints"


def _shaped(name: str, beta: float, shape: Shape) -> Objective:
    positive_beta(name, beta)
    return Objective(name, (Term(Pair(), Score(shape=shape), beta=beta),))


@objective(
    "fdpo_forward_kl",
    fixes="diversity",
    on_errors="exponential",
    title=_FDPO,
    paper="2309.16240",
    year=2023,
    sample={"beta": 0.1},
    parity=("text_fdpo_forward_kl", "text_fdpo_forward_kl_official"),
    departures=("the exponential is continued by its tangent beyond 20 (official code overflows)",),
    official_code="alecwangcq/f-divergence-dpo 07d9369; trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code")},
)
def fdpo_forward_kl(*, beta: float) -> Objective:
    """DPO under forward KL: s = 1 - exp(-u), z = beta * (s of chosen - s of rejected).

    Args:
        beta: > 0. Use it with summed log-probabilities; on denoising errors the exponential amplifies noise.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2309.16240, table 1.
    """
    return _shaped("fdpo_forward_kl", beta, score_shapes.power(1.0))


@objective(
    "fdpo_js",
    fixes="diversity",
    on_errors="exponential",
    title=_FDPO,
    paper="2309.16240",
    year=2023,
    sample={"beta": 0.1},
    parity=("text_fdpo_js", "text_fdpo_js_official"),
    official_code="alecwangcq/f-divergence-dpo 07d9369; trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code")},
    departures=(
        "RainbowPO's branch for it uses a variable before its assignment; TRL 1.10 feeds shaped scores "
        "to pointwise losses too, here they are refused",
    ),
)
def fdpo_js(*, beta: float) -> Objective:
    """DPO under the Jensen-Shannon divergence: s = log 2 + log sigmoid(u).

    Args:
        beta: > 0; the gradient at the start is half of DPO's.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2309.16240, table 1.
    """
    return _shaped("fdpo_js", beta, score_shapes.js())


@objective(
    "fdpo_alpha",
    fixes="diversity",
    on_errors="exponential",
    title=_FDPO,
    paper="2309.16240",
    year=2023,
    sample={"beta": 0.1, "alpha": 0.5},
    parity=("text_fdpo_alpha", "text_fdpo_alpha_official"),
    departures=(
        "alpha is the paper's exponent (TRL's coefficient is 1 - alpha)",
        "exponents above 20 are continued by the tangent; TRL clamps at 80 in float32, beyond which the "
        "gradient is 0, and raises KeyError in float64",
        "earlier TRL and ms-swift take the paper's exponent, with 1.0 where none is set",
    ),
    official_code="alecwangcq/f-divergence-dpo 07d9369; trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code"), "alpha": (0.5, "code", "where both conventions agree")},
)
def fdpo_alpha(*, beta: float, alpha: float) -> Objective:
    """DPO under an alpha-divergence: s = (1 - exp(-alpha u)) / alpha.

    Args:
        beta: > 0.
        alpha: in (0, 1), the paper's exponent; 0 would be DPO, 1 forward KL. TRL's coefficient is 1 - alpha.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2309.16240, table 1.
    """
    require("fdpo_alpha alpha", alpha, 0 < alpha < 1, "a number in (0, 1)", "TRL's coefficient is 1 - alpha.")
    return _shaped("fdpo_alpha", beta, score_shapes.power(alpha))

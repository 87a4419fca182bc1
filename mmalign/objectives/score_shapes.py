"""Part C: functions of the anchored score, each a name, a formula and a function of a tensor.

The power family covers f-divergences (with a reference) and AlphaPO (without one, on token means): a -> 0 is
the identity (reverse KL), a = 1 forward KL, between them the alpha-divergences.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives.base import require

__all__ = ["Shape", "identity", "js", "log1mexp", "mapo", "odds", "power"]

_EXPONENT_LIMIT = 20.0


@dataclass(frozen=True)
class Shape:
    """A function of the anchored score.

    Args:
        name: short name.
        function: elementwise, finite for every finite input.
        formula: plain text with `u` for the argument.
        only_differences: it is legitimate only in structures that compare candidates of one prompt, because
            the partition function no longer cancels in a point.
        tokens_only: why it is meaningless on denoising errors, "" if it is not.
        tokens_only_bare: the same, for scores without a reference.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    formula: str
    only_differences: bool = False
    tokens_only: str = ""
    tokens_only_bare: str = ""


def identity() -> Shape:
    """U itself."""
    return Shape("identity", lambda u: u, "u")


def _bounded_expm1(x: Tensor) -> Tensor:
    """e^x - 1, continued beyond 20 by its tangent, so that badly displaced pairs keep a finite gradient."""
    inner = torch.expm1(x.clamp(max=_EXPONENT_LIMIT))
    edge = math.exp(_EXPONENT_LIMIT)
    return torch.where(x > _EXPONENT_LIMIT, edge - 1.0 + edge * (x - _EXPONENT_LIMIT), inner)


def power(a: float) -> Shape:
    """(1 - e^(-a u)) / a; the identity for a = 0.

    Departure: e^x is continued by its tangent beyond x = 20 (official code overflows at 88 or clamps, which
    stops the gradient).

    Args:
        a: any real number. With a reference: 1 is forward KL, 0 < a < 1 the alpha-divergence with exponent a.
            TRL counts the other way (its coefficient is 1 - a).

    Source: arXiv 2309.16240, table 1 (f-DPO); arXiv 2501.03884 (AlphaPO).
    """
    require("power shape a", a, math.isfinite(a), "a finite number")
    if a == 0.0:
        return identity()
    return Shape(
        "power",
        lambda u: -_bounded_expm1(-a * u) / a,
        "1 - exp(-u)" if a == 1.0 else f"(1 - exp({-a:g} u)) / {a:g}",
        only_differences=True,
        tokens_only_bare="a power of a probability of a finite vocabulary: an error or a density is none",
    )


def js() -> Shape:
    """Log 2 + log sigmoid(u): the Jensen-Shannon divergence.

    Source: arXiv 2309.16240, table 1.
    """
    return Shape(
        "js", lambda u: math.log(2.0) + F.logsigmoid(u), "log 2 + log sigmoid(u)", only_differences=True
    )


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact near 0 and far from it, with finite gradients on both branches."""
    near = x > -math.log(2.0)
    # Each branch sees a harmless argument where the other one is used: no NaN can leak through torch.where.
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, close, far)


def odds() -> Shape:
    """Log-odds of a probability whose logarithm is u: u - log(1 - e^u).

    u is held at or below -1e-6: a probability of 1 has infinite odds.

    Source: arXiv 2403.07691, equation 4.
    """

    def function(u: Tensor) -> Tensor:
        # A clamp stops the gradient at the bound: beyond it the odds say nothing.
        below = u.clamp(max=-1e-6)
        return below - log1mexp(below)

    return Shape(
        "odds",
        function,
        "u - log(1 - exp(u))",
        tokens_only="odds need a probability of a finite vocabulary: an error or a density is none",
    )


def mapo(kappa: float) -> Shape:
    """Kappa L / (e^(kappa L) - 1) of the error L = -2 u: falls from 1 at error 0 towards 0.

    Args:
        kappa: > 0, per unit of error (0.5 in the official code, there called `snr_value`).

    Source: mapo-t2i/mapo `utils.py` compute_loss. Departure: computed by expm1 and 1 at error 0 (official:
    0/0).
    """
    require("mapo kappa", kappa, kappa > 0, "a number > 0")

    def function(u: Tensor) -> Tensor:
        x = -2.0 * kappa * u
        # Below 1e-4 the series 1 - x/2 + x^2/12 is exact to rounding in float32 and float64 alike; above 60
        # e^x - 1 equals e^x, and x e^-x has no overflow.
        small, large = x.abs() < 1e-4, x > 60.0
        middle = torch.where(small | large, 1.0, x)
        series = 1.0 - x / 2.0 + x * x / 12.0
        tail = torch.where(large, x, 60.0)
        value = torch.where(large, tail * torch.exp(-tail), middle / torch.expm1(middle))
        return torch.where(small, series, value)

    return Shape("mapo", function, f"k / (exp(k) - 1) with k = {kappa:g} * error = -{2 * kappa:g} u")

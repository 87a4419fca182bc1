"""Part H: links. A link is the loss as a function of z, small where z is large, with its slope.

Written so that every finite z gives a finite loss and a finite gradient in float32: log(sigmoid(z)) is never
composed, exponentials are continued by their tangent. The slope is the closed derivative; metrics read it
without a backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.objectives.base import require

__all__ = [
    "Link",
    "cauchy",
    "discovered_gate",
    "exponential",
    "flat",
    "hinge",
    "logistic",
    "loss_averse",
    "mixture",
    "risk_seeking_exponential",
    "risk_seeking_logistic",
    "risk_seeking_signed",
    "savage",
    "square",
    "truncated_square",
]


@dataclass(frozen=True)
class Link:
    """A loss as a function of z.

    Args:
        name: short name.
        function: elementwise loss.
        slope: elementwise derivative.
        formula: plain text with `{z}` where z stands.
        couples_rows: it looks at the whole batch of z.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    formula: str
    couples_rows: bool = False


def logistic() -> Link:
    """-log sigmoid(z)."""
    return Link("logistic", lambda z: -F.logsigmoid(z), lambda z: -torch.sigmoid(-z), "-log sigmoid({z})")


def hinge() -> Link:
    """max(0, 1 - z): no gradient once z exceeds 1."""
    return Link("hinge", lambda z: F.relu(1.0 - z), lambda z: -(z < 1.0).to(z.dtype), "max(0, 1 - {z})")


def square(target: float) -> Link:
    """(z - target)^2.

    Args:
        target: in units of z.
    """
    require("square link target", target, math.isfinite(target), "a finite number")
    formula = f"({{z}} - {target:g})^2" if target else "{z}^2"
    return Link("square", lambda z: (z - target).square(), lambda z: 2.0 * (z - target), formula)


def truncated_square() -> Link:
    """max(0, 1 - z)^2: a hinge whose slope falls to 0 before it ends."""
    return Link(
        "truncated_square",
        lambda z: F.relu(1.0 - z).square(),
        lambda z: -2.0 * F.relu(1.0 - z),
        "max(0, 1 - {z})^2",
    )


def savage() -> Link:
    """(1 - sigmoid(z))^2: bounded, and flat where the model is very wrong."""
    return Link(
        "savage",
        lambda z: torch.sigmoid(-z).square(),
        lambda z: -2.0 * torch.sigmoid(-z).square() * torch.sigmoid(z),
        "(1 - sigmoid({z}))^2",
    )


def flat() -> Link:
    """1 - sigmoid(z): gradient vanishes for very right and very wrong rows alike."""
    return Link(
        "flat",
        lambda z: torch.sigmoid(-z),
        lambda z: -torch.sigmoid(z) * torch.sigmoid(-z),
        "(1 - sigmoid({z}))",
    )


def _bounded_exp(x: Tensor, limit: float) -> Tensor:
    edge = math.exp(limit)
    return torch.where(x > limit, edge * (1.0 + x - limit), torch.exp(x.clamp(max=limit)))


def exponential(scale: float = 1.0, limit: float = 20.0) -> Link:
    """e^(-z / scale), continued by its tangent where -z / scale exceeds `limit`.

    Departure: the continuation (official code overflows, or clamps and loses the gradient).
    """
    require("exponential link scale", scale, scale > 0, "a number > 0")
    require("exponential link limit", limit, 0 < limit <= 80, "a number in (0, 80]")
    return Link(
        "exponential",
        lambda z: _bounded_exp(-z / scale, limit),
        lambda z: -torch.exp((-z / scale).clamp(max=limit)) / scale,
        "exp(-{z})" if scale == 1.0 else f"exp(-{{z}} / {scale:g})",
    )


def cauchy() -> Link:
    """-log(atan(z) / pi + 1/2): heavy tails on both sides.

    atan(z) + pi/2 is computed as atan2(1, -z), which keeps its digits for very negative z.

    Source: CapitalOne RainbowPO, loss type "cauchy".
    """

    def angle(z: Tensor) -> Tensor:
        return torch.atan2(torch.ones_like(z), -z)

    return Link(
        "cauchy",
        lambda z: -torch.log(angle(z) / math.pi),
        lambda z: -1.0 / ((1.0 + z.square()) * angle(z)),
        "-log(atan({z}) / pi + 1/2)",
    )


def discovered_gate(temperature: float) -> Link:
    """(1 - g) softplus(-z) + g e^(-z) with the gate g = sigmoid(z / temperature): DiscoPOP.

    With the released temperature 0.05 the slope at z = 0 is +0.78: the loss first pulls the pair the wrong
    way, and has a local minimum at z = -0.12. Above (1 - log 2) / 3 = 0.1023 the slope at 0 is negative.

    Args:
        temperature: in (0, 1).

    Source: SakanaAI/DiscoPOP, log ratio modulated loss. g e^(-z) is computed as exp(log sigmoid(z /
    temperature) - z), which is finite everywhere (official: inf * 0 below z = -88).
    """
    require("discovered_gate temperature", temperature, 0 < temperature < 1, "a number in (0, 1)")

    def function(z: Tensor) -> Tensor:
        closed = torch.sigmoid(-z / temperature)
        return closed * -F.logsigmoid(z) + torch.exp(F.logsigmoid(z / temperature) - z)

    def slope(z: Tensor) -> Tensor:
        gate, closed = torch.sigmoid(z / temperature), torch.sigmoid(-z / temperature)
        opened = torch.exp(F.logsigmoid(z / temperature) - z)
        return (
            gate * closed / temperature * F.logsigmoid(z)
            - closed * torch.sigmoid(-z)
            + opened * (closed / temperature - 1.0)
        )

    formula = f"((1 - g) softplus(-{{z}}) + g exp(-{{z}}), g = sigmoid({{z}} / {temperature:g}))"
    return Link("discovered_gate", function, slope, formula)


def mixture(*parts: tuple[float, Link]) -> Link:
    """A weighted sum of links (CELL is half exponential, half logistic)."""

    def function(z: Tensor) -> Tensor:
        return torch.stack([share * link.function(z) for share, link in parts]).sum(0)

    def slope(z: Tensor) -> Tensor:
        return torch.stack([share * link.slope(z) for share, link in parts]).sum(0)

    formula = " + ".join(f"{share:g} * {link.formula}" for share, link in parts)
    return Link("mixture", function, slope, f"({formula})", any(link.couples_rows for _, link in parts))


def loss_averse() -> Link:
    """1 - log sigmoid(z): a utility that values losses more than gains (Diffusion-KTO)."""
    return Link(
        "loss_averse", lambda z: 1.0 - F.logsigmoid(z), lambda z: -torch.sigmoid(-z), "(1 - log sigmoid({z}))"
    )


def risk_seeking_logistic() -> Link:
    """1 + log sigmoid(-z): a utility that values gains more than losses (Diffusion-KTO).

    Unbounded below: the loss falls as -z for large z.
    """
    return Link(
        "risk_seeking_logistic",
        lambda z: 1.0 + F.logsigmoid(-z),
        lambda z: -torch.sigmoid(z),
        "(1 + log sigmoid(-{z}))",
    )


def risk_seeking_signed(desirable: bool) -> Link:
    """1 + log sigmoid(-z) for liked rows, 1 - log sigmoid(z) for the others (`risk_seeking_1`)."""
    return risk_seeking_logistic() if desirable else loss_averse()


def risk_seeking_exponential(desirable: bool, scale: float = 100.0, limit: float = 20.0) -> Link:
    """2 - e^(z / scale) for liked rows, 2 + e^(-z / scale) for the others (Diffusion-KTO `risk_seeking_2`).

    The exponential is continued by its tangent beyond `limit`.
    """
    fall = exponential(scale, limit)
    if not desirable:
        return Link(
            "risk_seeking_exponential",
            lambda z: 2.0 + fall.function(z),
            fall.slope,
            f"(2 + exp(-{{z}} / {scale:g}))",
        )
    return Link(
        "risk_seeking_exponential",
        lambda z: 2.0 - fall.function(-z),
        lambda z: fall.slope(-z),
        f"(2 - exp({{z}} / {scale:g}))",
    )

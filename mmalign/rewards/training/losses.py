"""Losses that train a reward on pairs: objectives of the catalogue wherever one fits, and what has none.

Rewards of pairs are `Scores.policy` [pair, candidate]; a label is the probability that candidate 0 is better.
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, HyperparameterError, explain
from mmalign.objectives import links
from mmalign.objectives.base import require
from mmalign.objectives.objective import Objective
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "bradley_terry",
    "entropy_shortfall",
    "gaussian_losses",
    "gaussian_probability",
    "ideal_point_hinge",
    "smallest_norm_weights",
]

_NODES = 64

_ROUNDS = 1000


def bradley_terry(*, margin: float = 0.0) -> Objective:
    """Bradley-Terry loss of rewards: -log sigmoid(r_chosen - r_rejected - margin).

    Soft labels mix both orders: a tie (probability 0.5) pulls both rewards together. An objective without
    reference: `Scores.policy` holds the rewards.

    Args:
        margin: how much better the preferred one must be, in logits; 0 keeps probabilities calibrated.

    Raises:
        HyperparameterError: a margin below 0.

    Source: Bradley and Terry 1952; yuvalkirstain/PickScore `trainer/`, whose
        constant for ties, which has no gradient, is left out.
    """
    require("bradley_terry margin", margin, 0 <= margin < float("inf"), "a number >= 0")
    return Objective("bradley_terry", (Term(Pair(), Score(anchor=0.0), margin=margin, name="pairs"),))


def ideal_point_hinge(*, margin: float = 1.0) -> Objective:
    """PAL's loss of model A: max(0, margin - (r_chosen - r_rejected)) of distances to the ideal point.

    Args:
        margin: > 0, in the unit of the distances.

    Raises:
        HyperparameterError: a margin that is not above 0.

    Source: RamyaLab/pluralistic-alignment, src/loss_function.py.
    """
    require("ideal_point_hinge margin", margin, 0 < margin < float("inf"), "a number > 0")
    # links.hinge ends at 1: scale by 1 / margin inside and by margin outside.
    term = Term(
        Pair(),
        Score(anchor=0.0),
        beta=1.0 / margin,
        link=links.hinge(),
        coefficient=margin,
        name="hinge",
    )
    return Objective("ideal_point_hinge", (term,))


# ---------------------------------------------------------------------------------------- normal rewards


@lru_cache(maxsize=4)
def _quadrature(nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Places and weights with sum weight f(place) = E f(e) of a standard normal e."""
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return tuple(places.tolist()), tuple((weights / math.sqrt(2.0 * math.pi)).tolist())


def _expected(values: Tensor, like: Tensor) -> Tensor:
    _, weights = _quadrature(_NODES)
    return (values * torch.tensor(weights, dtype=like.dtype, device=like.device)).sum(dim=-1)


def _differences(first: Tensor, second: Tensor) -> Tensor:
    """mu_1 - mu_2 + sqrt(s_1^2 + s_2^2) e at every node, [pair, node]."""
    places, _ = _quadrature(_NODES)
    spread = (first[:, 1].exp().square() + second[:, 1].exp().square()).sqrt()
    nodes = torch.tensor(places, dtype=first.dtype, device=first.device)
    return (first[:, 0] - second[:, 0])[:, None] + spread[:, None] * nodes


def gaussian_probability(
    first: Float[Tensor, "pair two"], second: Float[Tensor, "pair two"]
) -> Float[Tensor, " pair"]:
    """P(the first is better) = E sigmoid(z), z = mu_1 - mu_2 + sqrt(s_1^2 + s_2^2) e, by Gauss and Hermite.

    Args:
        first: (mu, log sigma).
        second: the same of the others.
    """
    return _expected(_differences(first, second).sigmoid(), first).clamp(0.0, 1.0)


def gaussian_losses(
    first: Float[Tensor, "pair two"],
    second: Float[Tensor, "pair two"],
    probability: Float[Tensor, " pair"],
    *,
    expectation: Literal["loss", "likelihood"] = "likelihood",
) -> Float[Tensor, " pair"]:
    """Losses of rewards that are independent normal variables, in nats, one per pair.

    likelihood: -log E sigmoid(z): the label is drawn once the rewards are; deviations grow where labels
    contradict each other. loss: E -log sigmoid(z), as PEARL and HPSv3 train: by Jensen's inequality a
    deviation always costs, so it needs `entropy_shortfall` to stay above 0.

    Args:
        first: (mu, log sigma).
        second: the same of the others.
        probability: that the first is better.
        expectation: of what.

    Raises:
        HyperparameterError: no such expectation.

    Source: arXiv 2306.03615 (robust reward learning); arXiv 2508.03789; hpsv3 1.0.0
        `model/qwen2vl_trainer.py`, which averages 1000 draws where this takes a quadrature.
    """
    z = _differences(first, second)
    if expectation == "loss":
        won, lost = (_expected(-F.logsigmoid(sign * z), first) for sign in (1.0, -1.0))
    elif expectation == "likelihood":
        places = torch.tensor(_quadrature(_NODES)[1], dtype=z.dtype, device=z.device).log()
        won, lost = (-torch.logsumexp(places + F.logsigmoid(sign * z), dim=-1) for sign in (1.0, -1.0))
    else:
        expected = "'loss' or 'likelihood'"
        raise HyperparameterError(explain("gaussian_losses expectation", got=expectation, expected=expected))
    # A label of 0 or 1 has to leave no trace of the other order, which may be infinite.
    return torch.where(probability > 0, probability * won, 0.0) + torch.where(
        probability < 1, (1.0 - probability) * lost, 0.0
    )


def entropy_shortfall(rewards: Float[Tensor, "sample two"], floor: float) -> Float[Tensor, " sample"]:
    """max(0, floor - entropy of the reward), entropy = log sigma + log(2 pi e) / 2, in nats.

    Args:
        rewards: (mu, log sigma).
        floor: entropy below which a reward is too sure; 1.4189 is that of a deviation of 1.
    """
    entropy = rewards[:, 1] + 0.5 * math.log(2.0 * math.pi * math.e)
    return (floor - entropy).clamp(min=0.0)


# ----------------------------------------------------------------------------------------- several tasks


def smallest_norm_weights(
    gradients: Float[Tensor, "task weight"], *, tolerance: float = 1e-9
) -> Float[Tensor, " task"]:
    """Weights >= 0 with sum 1 whose mixture of the tasks' gradients is the shortest, float64.

    Going against that mixture lowers every task's loss, or none can be lowered without raising another
    (multiple gradient descent). Frank and Wolfe's method with away steps and exact line search.

    Args:
        gradients: one row per task.
        tolerance: gap to the optimum, relative to the longest gradient's square.

    Raises:
        ConfigError: a gradient that is not finite.

    Source: Desideri 2012; arXiv 1810.04650, algorithm 2; arXiv 2312.07401, which weighs tasks by it.
    """
    wide = gradients.detach().double()
    if not bool(torch.isfinite(wide).all()):
        raise ConfigError(
            explain("smallest_norm_weights", got="[a gradient that is not finite]", expected="numbers")
        )
    products = wide @ wide.T
    count = len(products)
    weights = torch.zeros(count, dtype=torch.float64, device=wide.device)
    weights[products.diagonal().argmin()] = 1.0
    for _ in range(_ROUNDS):
        slope = products @ weights
        toward = int(slope.argmin())
        away = int(torch.where(weights > 0, slope, -torch.inf).argmax())
        value = float(weights @ slope)
        if value - float(slope[toward]) <= tolerance * float(products.diagonal().max()):
            break
        direction = -weights.clone()
        direction[toward] += 1.0
        longest = 1.0
        if float(slope[away]) - value > value - float(slope[toward]):
            direction = weights.clone()
            direction[away] -= 1.0
            longest = float(weights[away]) / max(1.0 - float(weights[away]), 1e-300)
        curvature = float(direction @ products @ direction)
        step = -float(direction @ slope) / curvature if curvature > 0 else longest
        weights = (weights + min(max(step, 0.0), longest) * direction).clamp(min=0.0)
        weights = weights / weights.sum()
    return weights

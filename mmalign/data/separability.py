"""Can a linear model tell chosen from rejected by features alone? With held-out prompts and a control.

If the features of a reward model, an image encoder or the policy itself separate chosen from rejected, a
preference loss has an easy job, or a shortcut. The control swaps chosen and rejected at random: it shows what
the same procedure reports when there is nothing to find, which on few rows and many features is not one half.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.statistics import Estimate, share_of
from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.seeding import derive_seed, generator_for
from mmalign.shapes import require_same_shape, require_shape

__all__ = ["Separability", "fit_logistic", "linear_separability"]


@dataclass(frozen=True)
class Separability:
    """How well held-out pairs are told apart.

    Args:
        accuracy: share of held-out decisions that are right; 0.5 = not at all.
        control: the same with chosen and rejected swapped at random, in training and test.
        training_accuracy: share of right decisions on what was fitted, averaged over folds; far above
            `accuracy` = more features than the rows can carry.
        num_features: width of a feature vector.
        num_folds: held-out parts.
        on: what was classified.
    """

    accuracy: Estimate
    control: Estimate
    training_accuracy: float
    num_features: int
    num_folds: int
    on: str

    @property
    def separable(self) -> bool:
        """Whether the accuracy lies above its control and above one half, both by whole intervals."""
        low, high = self.accuracy.low, self.control.high
        return low is not None and high is not None and low > max(high, 0.5)


def fit_logistic(
    features: Float[Tensor, "row feature"], target: Float[Tensor, " row"], *, l2: float, intercept: bool
) -> tuple[Float[Tensor, " feature"], Float[Tensor, ""]]:
    """Weights and intercept of L2-regularised logistic regression, in float64.

    minimise  sum_i log(1 + exp(-s_i (w . x_i + b))) + l2 / 2 |w|^2,  s_i = 2 target_i - 1

    Args:
        features: inputs, on comparable scales.
        target: 1 or 0.
        l2: > 0, so that separable data have a finite answer.
        intercept: whether b is fitted (never regularised) or 0.

    Raises:
        ConfigError: l2 is not positive.
    """
    if not 0 < l2 < math.inf:
        raise ConfigError(explain("separability l2", got=l2, expected="a number > 0"))
    inputs, sign = features.detach().double(), 2.0 * target.detach().double() - 1.0
    weight = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=intercept)
    fitted = [weight, bias] if intercept else [weight]
    optimiser = torch.optim.LBFGS(
        fitted,
        max_iter=500,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        logit = sign * (inputs @ weight + bias)
        loss = torch.nn.functional.softplus(-logit).sum() + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call, arg-type, unused-ignore]
    return weight.detach(), bias.detach()


def linear_separability(
    chosen: Float[Tensor, "pair feature"],
    rejected: Float[Tensor, "pair feature"],
    *,
    groups: Sequence[Hashable] | None = None,
    on: Literal["candidates", "differences"] = "candidates",
    num_folds: int = 5,
    l2: float = 1.0,
    seed: int = 0,
) -> Separability:
    """Accuracy of logistic regression on held-out prompts, with an interval and a shuffled control.

    Features are standardised by the training folds. All pairs of a prompt are in one fold: otherwise the test
    would ask about prompts, and often candidates, that the fit has seen.

    Args:
        chosen: features of the chosen candidates.
        rejected: features of the rejected ones.
        groups: the prompt of each pair; None: every pair is its own.
        on: `candidates` classifies one candidate at a time (is "chosen" visible in a response alone?);
            `differences` compares the two of a pair (would a linear reward model rank them?).
        num_folds: >= 2.
        l2: strength of the regularisation on standardised features, > 0.
        seed: of the folds and of the control.

    Raises:
        ConfigError: fewer prompts than folds, fewer than two folds, features that are not finite.
        ShapeError: features of another shape on the rejected side.
        UnknownNameError: another `on`.
    """
    if on not in ("candidates", "differences"):
        raise unknown_name("separability of", on, ("candidates", "differences"))
    require_shape("separability chosen", chosen, (None, None), "pair, feature")
    require_same_shape("separability", chosen, rejected, ("chosen", "rejected"))
    groups = list(range(len(chosen))) if groups is None else list(groups)
    if len(groups) != len(chosen):
        raise ConfigError(
            explain("separability groups", got=len(groups), expected=f"one per pair ({len(chosen)})")
        )
    fold = _folds(groups, num_folds, seed)
    first, second = chosen.detach().double(), rejected.detach().double()
    finite = bool(torch.isfinite(first).all() & torch.isfinite(second).all())
    if not finite:
        message = explain("separability features", got="inf or NaN", expected="finite numbers")
        raise ConfigError(message)
    found, training = _held_out(first, second, fold, on=on, l2=l2)
    generator = generator_for(seed, "separability_control")
    swapped = torch.rand(len(first), generator=generator).lt(0.5).unsqueeze(1)
    control, _ = _held_out(
        torch.where(swapped, second, first), torch.where(swapped, first, second), fold, on=on, l2=l2
    )
    return Separability(
        accuracy=share_of(found, groups),
        control=share_of(control, groups),
        training_accuracy=training,
        num_features=chosen.shape[1],
        num_folds=num_folds,
        on=on,
    )


def _folds(groups: Sequence[Hashable], num_folds: int, seed: int) -> Tensor:
    """The fold of each pair: prompts in a seeded order, dealt out in turn."""
    if num_folds < 2:
        raise ConfigError(explain("separability folds", got=num_folds, expected="at least 2"))
    numbers: dict[Hashable, int] = {}
    places = [numbers.setdefault(group, len(numbers)) for group in groups]
    if len(numbers) < 2 * num_folds:
        message = explain(
            "separability",
            got=f"{len(numbers)} prompts",
            expected=f"at least {2 * num_folds} for {num_folds} folds",
            do="Held-out accuracy of so few rows would say nothing.",
        )
        raise ConfigError(message)
    order = np.random.default_rng(derive_seed(seed, "separability_folds")).permutation(len(numbers))
    return torch.from_numpy(order[places] % num_folds)


def _held_out(
    first: Tensor, second: Tensor, fold: Tensor, *, on: str, l2: float
) -> tuple[list[float], float]:
    """Per pair, the share of right decisions with its fold held out; and the accuracy on training folds."""
    right = torch.zeros(len(first), dtype=torch.float64)
    training = []
    for held in range(int(fold.max()) + 1):
        test = fold == held
        weight, bias = _fit(first[~test], second[~test], on=on, l2=l2)
        right[test] = _decide(first[test], second[test], weight, bias, on=on)
        training.append(_decide(first[~test], second[~test], weight, bias, on=on).mean().item())
    return right.tolist(), float(np.mean(training))


def _fit(first: Tensor, second: Tensor, *, on: str, l2: float) -> tuple[Tensor, Tensor]:
    """Weights in the units of the features (standardisation folded in)."""
    both = torch.cat([first, second])
    center, width = both.mean(dim=0), both.std(dim=0)
    # A constant feature carries nothing; dividing by its rounding error would invent something.
    width = torch.where(width > 1e-12 * both.abs().amax(dim=0).clamp(min=1e-300), width, math.inf)
    if on == "candidates":
        target = torch.cat([torch.ones(len(first)), torch.zeros(len(second))]).double()
        weight, bias = fit_logistic((both - center) / width, target, l2=l2, intercept=True)
        weight = weight / width
        return weight, bias - weight @ center
    # Both orders of every pair: no intercept, and nothing to learn from which one stands first.
    change = (first - second) / width
    target = torch.cat([torch.ones(len(first)), torch.zeros(len(second))]).double()
    weight, bias = fit_logistic(torch.cat([change, -change]), target, l2=l2, intercept=False)
    return weight / width, bias


def _decide(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor, *, on: str) -> Tensor:
    """1, 0.5 or 0 per pair: its share of right decisions; an undecided one is half right."""
    if on == "differences":
        return 0.5 * (torch.sign((first - second) @ weight) + 1.0)
    winner, loser = torch.sign(first @ weight + bias), torch.sign(second @ weight + bias)
    return 0.25 * (winner - loser + 2.0)

"""Training PAL's heads on users' choices, and fitting a new user from a few of them.

Source: arXiv 2406.08469; RamyaLab/pluralistic-alignment (main_pal_b_t2i.py, config/).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.errors import ConfigError, HyperparameterError, ShapeError, explain
from mmalign.rewards.ideal_point_models import PalHead
from mmalign.rewards.ideal_points import (
    angle_rewards,
    choice_losses,
    distance_rewards,
    hinge_losses,
    ideal_norm_penalty,
    mix_of_prompt,
)

__all__ = ["Choices", "UserFit", "accuracy", "choice_loss", "fit_head", "fit_user", "parameter_groups"]

Reward = Callable[[Float[Tensor, "1 prototype"]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Choices:
    """Pairs of pictures and what a user said of each.

    Args:
        left: embeddings of the left pictures.
        right: embeddings of the right pictures.
        y: +1 where the right one is preferred, -1 where the left one is.
        prompts: embeddings, where the head reads them.
        users: names, one per pair; may be empty where one user is fitted.

    Raises:
        ShapeError: not as many of one as of the others, or no pair.
        ConfigError: a label that is neither +1 nor -1.
    """

    left: Float[Tensor, "pair input"]
    right: Float[Tensor, "pair input"]
    y: Float[Tensor, " pair"] | Int[Tensor, " pair"]
    prompts: Float[Tensor, "pair input"] | None = None
    users: Sequence[str] = ()

    def __post_init__(self) -> None:
        count = len(self.left)
        others = [len(self.right), len(self.y), *([] if self.prompts is None else [len(self.prompts)])]
        others += [len(self.users)] if self.users else []
        if count == 0 or any(other != count for other in others):
            got = f"[{count} left items with {', '.join(map(str, others))} of the rest]"
            raise ShapeError(explain("PAL choices", got=got, expected="one or more pairs, as many of each"))
        if not bool(((self.y == 1) | (self.y == -1)).all()):
            wrong = self.y[(self.y != 1) & (self.y != -1)][0].item()
            expected = "+1 (right preferred) or -1 (left preferred)"
            raise ConfigError(
                explain("PAL choices label", got=wrong, expected=expected, do="Leave ties out.")
            )

    def part(self, places: Int[Tensor, " some"]) -> "Choices":
        """The pairs at some places."""
        prompts = None if self.prompts is None else self.prompts[places]
        users = [self.users[place] for place in places.tolist()] if self.users else ()
        return Choices(self.left[places], self.right[places], self.y[places], prompts, users)


@dataclass(frozen=True)
class UserFit:
    """A new user.

    Args:
        logits: K numbers with mean 0, for `PalHead.set_user`.
        weights: the mixture they stand for.
        loss: mean loss of the user's choices, without the pull to the uniform mixture.
        accuracy: share of the choices that the fitted rewards agree with.
        converged: the last step changed the objective by less than its tolerance.
        pairs: how many choices there were.
    """

    logits: Float[Tensor, " prototype"]
    weights: Float[Tensor, " prototype"]
    loss: float
    accuracy: float
    converged: bool
    pairs: int


# ---------------------------------------------------------------------------------------------- losses


def _losses(head: PalHead, left: Tensor, right: Tensor, y: Tensor, margin: float) -> Tensor:
    if head.settings.form == "a":
        return hinge_losses(left, right, y, margin=margin)
    return choice_losses(left, right, y)


def _rewards(head: PalHead, choices: Choices) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of left and right for the choices' users, and the users' mixtures."""
    if not choices.users:
        raise ConfigError(explain("PAL choices", got="[no users]", expected="the user of each pair"))
    rows = torch.tensor([head.row(user) for user in choices.users], device=head.logits.device)
    weights = head.weights_of(head.logits)[rows]
    left, right = (head(items, weights, choices.prompts) for items in (choices.left, choices.right))
    return left, right, weights


def choice_loss(
    head: PalHead, choices: Choices, *, margin: float = 1.0, norm_bound: float | None = None
) -> Float[Tensor, ""]:
    """Mean loss of users' choices: hinge in form a, cross-entropy in form b.

    Args:
        head: with a row of logits for each user.
        choices: with users.
        margin: of the hinge.
        norm_bound: adds `ideal_norm_penalty` of the users' ideal points, divided by the number of pairs (form
            a). None as in the published heads, whose configuration says 4 and whose code leaves it out.

    Raises:
        UnknownNameError: a user the head does not know.
    """
    left, right, weights = _rewards(head, choices)
    loss = _losses(head, left, right, choices.y, margin).mean()
    if norm_bound is not None and head.settings.form == "a":
        loss = loss + ideal_norm_penalty(head.ideal(weights), norm_bound) / len(choices.left)
    return loss


@torch.no_grad()
def accuracy(head: PalHead, choices: Choices) -> float:
    """Share of the choices that the head's rewards agree with; an equal reward counts as the left item's."""
    left, right, _ = _rewards(head, choices)
    return float(((right > left) == (choices.y > 0)).double().mean())


# ---------------------------------------------------------------------------------------------- training


def parameter_groups(
    head: PalHead,
    *,
    projector_lr: float = 1e-4,
    point_lr: float = 5e-3,
    user_lr: float = 5e-3,
    scale_lr: float = 0.1,
    weight_decay: float = 0.01,
) -> list[dict[str, Any]]:
    """Groups for AdamW with the published learning rates; only projections decay.

    Source: RamyaLab/pluralistic-alignment, config/prefLearner_config/t2i-b-dim1024-k1-*.yaml.
    """
    rates = {"points": point_lr, "logits": user_lr, "log_scale": scale_lr}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in head.named_parameters():
        kind = name if name in rates else "projector"
        decay = weight_decay if kind == "projector" else 0.0
        group = groups.setdefault(
            kind, {"name": kind, "params": [], "lr": rates.get(kind, projector_lr), "weight_decay": decay}
        )
        group["params"].append(parameter)
    return list(groups.values())


def fit_head(
    head: PalHead,
    choices: Choices,
    *,
    epochs: int = 10,
    batch_size: int = 1024,
    generator: torch.Generator,
    margin: float = 1.0,
    norm_bound: float | None = None,
    groups: list[dict[str, Any]] | None = None,
) -> list[float]:
    """Train projections, prototypes and users together. Returns the mean loss of each epoch.

    The head is left in evaluation mode.

    Args:
        head: changed in place.
        choices: with users the head knows.
        epochs: passes.
        batch_size: pairs.
        generator: orders the pairs. Dropout, if the head has any, uses torch's own generator.
        margin: see `choice_loss`.
        norm_bound: see `choice_loss`.
        groups: of AdamW; None = `parameter_groups`.
    """
    optimiser = torch.optim.AdamW(groups if groups is not None else parameter_groups(head))
    history = []
    head.train()
    count = len(choices.left)
    for _ in range(epochs):
        total = 0.0
        for places in torch.randperm(count, generator=generator).split(batch_size):
            optimiser.zero_grad()
            loss = choice_loss(head, choices.part(places), margin=margin, norm_bound=norm_bound)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(places)
        history.append(total / count)
    head.eval()
    return history


# ---------------------------------------------------------------------------------------------- a new user


def fit_user(
    head: PalHead,
    choices: Choices,
    *,
    ridge: float = 1e-2,
    loss: str = "own",
    margin: float = 1.0,
    rounds: int = 50,
    tolerance: float = 1e-7,
) -> UserFit:
    """The mixture of one user from a few choices: K logits are fitted, nothing in the head changes.

    Minimises mean loss + ridge / pairs * |logits - their mean|^2 by L-BFGS, from the uniform mixture and from
    near each prototype, and takes the best; the pull keeps the logits finite where the choices are separable
    and fades as choices come. Deterministic. `head.set_user(name, fit.logits)` adds the user.

    Args:
        head: trained.
        choices: of this user; their `users` are not read.
        ridge: pull to the uniform mixture, in units of one choice's loss; above 0.
        loss: "own" = what the head is trained with, "choice" = cross-entropy, which is calibrated (a user who
            chooses with probability sigmoid of the gap is recovered), "hinge".
        margin: of the hinge.
        rounds: of L-BFGS, of 20 steps each.
        tolerance: change of the objective in a round below which it has converged.

    Raises:
        HyperparameterError: ridge is not above 0, or no such loss.
    """
    if not ridge > 0:
        raise HyperparameterError(explain("fit_user ridge", got=ridge, expected="above 0"))
    if loss not in ("own", "choice", "hinge"):
        expected = "'own', 'choice' or 'hinge'"
        raise HyperparameterError(explain("fit_user loss", got=loss, expected=expected))
    kind = ("hinge" if head.settings.form == "a" else "choice") if loss == "own" else loss
    rewards = _frozen_rewards(head, choices)
    y = choices.y.to(torch.float64)

    def mean_loss(logits: Tensor) -> Tensor:
        left, right = rewards((logits / head.settings.temperature).softmax(dim=-1)[None])
        if kind == "hinge":
            return hinge_losses(left, right, y, margin=margin).mean()
        return choice_losses(left, right, y).mean()

    def objective(logits: Tensor) -> Tensor:
        return mean_loss(logits) + ridge / len(y) * (logits - logits.mean()).square().sum()

    count = head.settings.prototypes
    starts = [torch.zeros(count, dtype=torch.float64), *2.0 * torch.eye(count, dtype=torch.float64)]
    ends = [_minimise(objective, start, rounds, tolerance) for start in (starts if count > 1 else starts[:1])]
    best, _, converged = min(ends, key=lambda end: end[1])
    with torch.no_grad():
        best = best - best.mean()
        left, right = rewards((best / head.settings.temperature).softmax(dim=-1)[None])
        agreement = float(((right > left) == (y > 0)).double().mean())
        weights = (best / head.settings.temperature).softmax(dim=-1)
        return UserFit(best, weights, float(mean_loss(best)), agreement, converged, len(y))


@torch.no_grad()
def _frozen_rewards(head: PalHead, choices: Choices) -> Reward:
    """Rewards of the choices' items as a function of one mixture; items are projected once, in float64."""
    if head.training:
        message = explain("fit_user head", got="[a head in training mode]", expected="head.eval()")
        raise ConfigError(message)
    items = [head.project_items(x, choices.prompts).double() for x in (choices.left, choices.right)]
    if head.settings.form == "b":
        points, scale = head.project_prompts(choices.prompts).double(), head.log_scale.detach().double()

        def by_angle(weights: Tensor) -> tuple[Tensor, Tensor]:
            ideal = mix_of_prompt(weights.expand(len(points), -1), points)
            left, right = (angle_rewards(item, ideal, scale) for item in items)
            return left, right

        return by_angle

    def by_distance(weights: Tensor) -> tuple[Tensor, Tensor]:
        ideal = head.ideal(weights.to(head.points.dtype)).double()
        left, right = (distance_rewards(item, ideal.expand_as(item)) for item in items)
        return left, right

    return by_distance


def _minimise(
    objective: Callable[[Tensor], Tensor], start: Tensor, rounds: int, tolerance: float
) -> tuple[Tensor, float, bool]:
    """Where L-BFGS from `start` ends, the objective there, and whether it had stopped falling."""
    logits = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = objective(logits)
        (logits.grad,) = torch.autograd.grad(found, [logits])
        return found

    before = float(objective(logits).detach())
    for _ in range(rounds):
        optimiser.step(closure)
        after = float(objective(logits).detach())
        if before - after < tolerance:
            return logits.detach(), after, True
        before = after
    return logits.detach(), before, False

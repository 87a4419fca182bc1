"""PAL: users as mixtures of a few prototypes, rewards by nearness to a user's ideal point.

Source: arXiv 2406.08469; RamyaLab/pluralistic-alignment (src/pal_rm_a, src/pal_rm_b, src/loss_function.py).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import HyperparameterError, explain

__all__ = [
    "angle_rewards",
    "choice_losses",
    "distance_rewards",
    "hinge_losses",
    "ideal_norm_penalty",
    "mix",
    "mix_of_prompt",
    "pair_accuracy",
    "span_loss",
    "span_weights",
    "user_weights",
]

Weighting = Literal["mean", "cumulative", "only_last"]


def user_weights(
    logits: Float[Tensor, "user prototype"], *, temperature: float = 1.0, hard: bool = False
) -> Float[Tensor, "user prototype"]:
    """How much of each prototype a user is: softmax(logits / temperature), rows that sum to 1.

    Args:
        logits: K numbers per user.
        temperature: above 0.
        hard: each user is one prototype, the largest (the official code's partition evaluation).

    Raises:
        HyperparameterError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise HyperparameterError(explain("user_weights temperature", got=temperature, expected="above 0"))
    if hard:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    return (logits / temperature).softmax(dim=-1)


def mix(
    weights: Float[Tensor, "user prototype"], points: Float[Tensor, "prototype width"]
) -> Float[Tensor, "user width"]:
    """Ideal points of model A: u = w @ P, the same for every prompt."""
    return weights @ points


def mix_of_prompt(
    weights: Float[Tensor, "sample prototype"], points: Float[Tensor, "sample prototype *token width"]
) -> Float[Tensor, "sample *token width"]:
    """Ideal points of model B: u = sum_k w_k G_k(prompt), another one for each prompt."""
    return torch.einsum("sk,sk...->s...", weights, points)


def distance_rewards(
    items: Float[Tensor, "*sample width"], ideal: Float[Tensor, "*sample width"]
) -> Float[Tensor, "*sample"]:
    """Rewards of model A, -|item - ideal|: 0 at the ideal point, negative elsewhere.

    The official option that makes class logits of distances has the sign turned round; rewards have not.
    """
    distance: Tensor = torch.linalg.vector_norm(items - ideal, dim=-1)
    return -distance


def angle_rewards(
    items: Float[Tensor, "*sample width"],
    ideal: Float[Tensor, "*sample width"],
    log_scale: Float[Tensor, ""],
    *,
    cap: float = 100.0,
) -> Float[Tensor, "*sample"]:
    """Rewards of model B, min(exp(log_scale), cap) * cos(item, ideal)."""
    return log_scale.exp().clamp(max=cap) * F.cosine_similarity(items, ideal, dim=-1)


# ---------------------------------------------------------------------------------------------- losses


def hinge_losses(
    left: Float[Tensor, "*shape"],
    right: Float[Tensor, "*shape"],
    y: Float[Tensor, " pair"] | Int[Tensor, " pair"],
    *,
    margin: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Losses of model A: max(0, margin - y (r_right - r_left)), in the unit of the distances.

    Args:
        left: rewards of the left items.
        right: rewards of the right items.
        y: +1 where the right item is preferred, -1 where the left one is.
        margin: distance beyond which a pair costs nothing.
    """
    return (margin - _signs(y, left) * (right - left)).clamp(min=0.0)


def choice_losses(
    left: Float[Tensor, "*shape"],
    right: Float[Tensor, "*shape"],
    y: Float[Tensor, " pair"] | Int[Tensor, " pair"],
) -> Float[Tensor, "*shape"]:
    """Losses of model B: cross-entropy over (left, right), -log sigmoid(y (r_right - r_left)), in nats.

    Args:
        left: rewards of the left items.
        right: rewards of the right items.
        y: see `hinge_losses`.
    """
    return -F.logsigmoid(_signs(y, left) * (right - left))


def _signs(y: Tensor, like: Tensor) -> Tensor:
    """+1 and -1, one per pair, that broadcast over tokens."""
    return y.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def span_weights(
    start: Int[Tensor, " pair"], end: Int[Tensor, " pair"], length: int, weighting: Weighting = "mean"
) -> Float[Tensor, "pair {length}"]:
    """What each token of a pair counts for: rows that sum to 1, 0 outside start .. end - 1.

    Answers of a language model agree up to a token and are padded after their end; a picture is one token.

    Args:
        start: first token that differs.
        end: one behind the last token.
        length: of the padded rows.
        weighting: "mean" counts tokens alike, "cumulative" by 1, 2, ..., "only_last" the last one.
    """
    place = torch.arange(length, device=start.device)[None]
    inside = (place >= start[:, None]) & (place < end[:, None])
    if weighting == "only_last":
        found = (place == end[:, None] - 1).double()
    elif weighting == "cumulative":
        found = (place - start[:, None] + 1).double()
    elif weighting == "mean":
        found = torch.ones(inside.shape, dtype=torch.float64, device=start.device)
    else:
        expected = "'mean', 'cumulative' or 'only_last'"
        raise HyperparameterError(explain("span_weights weighting", got=weighting, expected=expected))
    found = found * inside
    return found / found.sum(dim=1, keepdim=True)


def span_loss(
    losses: Float[Tensor, "pair token"],
    start: Int[Tensor, " pair"],
    end: Int[Tensor, " pair"],
    weighting: Weighting = "mean",
) -> Float[Tensor, ""]:
    """Mean over pairs of the weighted mean over their tokens (`span_weights`)."""
    weights = span_weights(start, end, losses.shape[1], weighting).to(losses.dtype)
    return torch.where(weights > 0, losses * weights, 0.0).sum(dim=1).mean()


def pair_accuracy(
    left: Float[Tensor, "pair token"],
    right: Float[Tensor, "pair token"],
    y: Float[Tensor, " pair"] | Int[Tensor, " pair"],
    weights: Float[Tensor, "pair token"],
) -> Float[Tensor, ""]:
    """Share of pairs whose preferred item has the higher reward; an equal reward counts as the left item's.

    Args:
        left: rewards of the left items.
        right: rewards of the right items.
        y: see `hinge_losses`.
        weights: of tokens, rows that sum to 1 (`span_weights`).
    """
    agrees: Bool[Tensor, "pair token"] = (right > left) == (_signs(y, left) > 0)
    return (agrees * weights.to(left.dtype)).sum(dim=1).mean()


def ideal_norm_penalty(
    ideal: Float[Tensor, "user width"], bound: float, *, weight: float = 1.0
) -> Float[Tensor, ""]:
    """The penalty weight * sum_i max(0, |u_i| - bound), which keeps users' ideal points within a ball.

    The official code computes this and never adds it to its loss, so published heads are trained without.
    """
    norms: Tensor = torch.linalg.vector_norm(ideal, dim=-1)
    return weight * (norms - bound).clamp(min=0.0).sum()

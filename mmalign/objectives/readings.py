"""What modifiers read of a batch: rewards, lengths and extra inputs, each explained where it is missing."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.objectives.base import Computed, Context, wide

__all__ = [
    "given",
    "length_of",
    "needs_length",
    "of_pairs",
    "reward_of",
]


def reward_of(context: Context, wanted_by: str) -> Float[Tensor, "prompt candidate"]:
    """`Scores.reward` in float32 or wider.

    Raises:
        ConfigError: there is none.
    """
    reward = context.scores.reward
    if reward is None:
        message = explain(
            f"Scores.reward, needed by {wanted_by}",
            got=None,
            expected="one external reward per candidate",
            do="Pass it with the scores.",
        )
        raise ConfigError(message)
    return wide(reward)


def length_of(context: Context, wanted_by: str) -> Float[Tensor, "prompt candidate"]:
    """Positions of each candidate: `Scores.length`, or what the mask counts.

    Raises:
        ConfigError: there is neither a length nor an inner axis.
    """
    scores = context.scores
    if scores.length is not None:
        return scores.length.to(context.policy.dtype)
    if scores.policy.ndim == 3:
        if scores.mask is None:
            return torch.full_like(context.policy, scores.policy.shape[2])
        return scores.mask.to(context.policy.dtype).sum(-1)
    message = explain(
        f"Scores.length, needed by {wanted_by}",
        got=None,
        expected="one length per candidate, or scores with an inner axis",
        do="Pass it with the scores.",
    )
    raise ConfigError(message)


def needs_length(*more: str) -> frozenset[str]:
    """The needs of a number that reads lengths, and `more` of them."""
    return frozenset({"length", *more})


def given(name: str, *, attached: bool = False) -> Computed:
    """`Scores.extras[name]`: [prompt] or [prompt, candidate], whatever its place asks for.

    Args:
        name: of the extra input.
        attached: keep its gradient.
    """

    def compute(context: Context) -> Tensor:
        return wide(context.scores.extra(name, "a given number"))

    return Computed(compute, name, frozenset({name}), attached=attached)


def of_pairs(context: Context, name: str, wanted_by: str, neutral: float = 0.0) -> Tensor:
    """`Scores.extras[name]` of every pair or candidate, and `neutral` where a pair is incomplete.

    Whatever padding holds there, even NaN, then reaches no loss and no gradient.

    Args:
        context: of the batch.
        name: of the extra input, [prompt] or [prompt, candidate, ...].
        wanted_by: who needs it, for the message.
        neutral: harmless number.
    """
    value = wide(context.scores.extra(name, wanted_by)).to(context.policy.dtype)
    complete = context.real().all(1)
    return torch.where(complete.reshape(-1, *(1,) * (value.ndim - 1)), value, neutral)

"""Part K: terms outside the comparison: supervised, linear, divergence.

The normaliser of a supervised term is part of its meaning; its coefficient cannot be carried from one to
another:

    sequence_mean   per prompt the mean over positions
    sequence_sum    per prompt the sum over positions
    batch_mean      mean over all positions of the batch: long answers weigh more; couples rows
    whole_mean      as batch_mean, prompt positions included, from `extras["whole_score"]` and
    `extras["whole_length"]`
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, HyperparameterError, explain
from mmalign.objectives.base import CHOSEN, Context, wide
from mmalign.objectives.structures import best_candidate

__all__ = ["Extra", "Normaliser", "denoising_error", "divergence", "linear", "nll"]

Normaliser = Literal["sequence_mean", "sequence_sum", "batch_mean", "whole_mean"]
_NORMALISERS = ("sequence_mean", "sequence_sum", "batch_mean", "whole_mean")


@dataclass(frozen=True)
class Extra:
    """A term outside the comparison.

    Args:
        name: short name for logs.
        value: from the context to a loss per prompt. The context's scores are summed over the inner axis.
        formula: plain text.
        coefficient: factor.
        needs: fields of `Scores` it reads.
        couples_rows: it mixes the rows of a batch.
        swaps: it looks at the chosen candidate, so an uncertain pair gets the average over its two orders.
        tokens_only: why it is meaningless on anything but probabilities of tokens, "" if it is not.
    """

    name: str
    value: Callable[[Context], Float[Tensor, " prompt"]]
    formula: str
    coefficient: float = 1.0
    needs: frozenset[str] = frozenset()
    couples_rows: bool = False
    swaps: bool = False
    tokens_only: str = ""

    def scaled(self, factor: float) -> "Extra":
        """The same with its coefficient multiplied."""
        return replace(self, coefficient=self.coefficient * factor)


def _of_best(values: Tensor, context: Context) -> Float[Tensor, " prompt"]:
    if context.labels.relevance is None:
        return values[:, CHOSEN]
    return values.gather(1, best_candidate(context).unsqueeze(1)).squeeze(1)


def _positions(context: Context) -> Float[Tensor, "prompt candidate"]:
    """How many positions each score was summed over: the mask's, the whole inner axis, or `length`.

    Raises:
        ConfigError: the scores have no inner axis and no length was given.
    """
    scores = context.scores
    if scores.policy.ndim == 3:
        if scores.mask is None:
            return torch.full_like(context.policy, scores.policy.shape[2])
        return scores.mask.to(context.policy.dtype).sum(-1)
    if scores.length is None:
        message = explain(
            "supervised term over batch_mean",
            got="scores without inner axis and without length",
            expected="Scores.length, one number per candidate",
            do="Pass it, or use normaliser='sequence_mean'.",
        )
        raise ConfigError(message)
    return scores.length.to(context.policy.dtype)


def _is_wanted(context: Context) -> Tensor:
    """1 for prompts whose best candidate is real and, in unpaired data, liked."""
    wanted = context.real() if context.labels.desirable is None else context.real() & context.labels.desirable
    return _of_best(wanted.to(context.policy.dtype), context)


def _batch_mean(total: Tensor, count: Tensor, context: Context) -> Tensor:
    """Shares whose mean over prompts is the sum of `total` over the batch divided by the sum of `count`."""
    wanted = _is_wanted(context)
    sums = context.sum_across(
        torch.stack([(count * wanted).sum(), context.real().any(1).to(count.dtype).sum()])
    )
    return -total * (sums[1] / sums[0].clamp(min=1.0)).detach()


def _negative_log_likelihood(context: Context, normaliser: Normaliser) -> Tensor:
    if normaliser == "whole_mean":
        total = wide(context.scores.extra("whole_score", "the supervised term"))
        count = context.scores.extra("whole_length", "the supervised term").to(total.dtype)
        return _batch_mean(total, count, context)
    total = _of_best(context.policy, context)
    if normaliser == "sequence_sum":
        return -total
    if normaliser == "batch_mean":
        return _batch_mean(total, _of_best(_positions(context), context), context)
    if context.scores.policy.ndim == 2:
        if context.summed and context.scores.length is not None:
            return -total / _of_best(context.scores.length.to(total.dtype), context).clamp(min=1.0)
        return -total  # already reduced, in the unit its owner chose
    count = _of_best(_positions(context), context)
    return -total / torch.where(count == 0, 1.0, count)


def nll(normaliser: Normaliser, coefficient: float = 1.0) -> Extra:
    """Negative log-likelihood of the chosen candidate, of the best of a list, of liked unpaired rows.

    Args:
        normaliser: see the module's docstring. On scores without an inner axis "sequence_mean" divides by
            `Scores.length` where that is given and the objective's comparison takes sums; otherwise it takes
            the score as it is, like "sequence_sum".
        coefficient: factor.
    """
    if normaliser not in _NORMALISERS:
        message = explain("normaliser", got=normaliser, expected="one of " + ", ".join(_NORMALISERS))
        raise HyperparameterError(message)
    formula = {
        "sequence_mean": "-mean over positions of policy[chosen]",
        "sequence_sum": "-policy[chosen]",
        "batch_mean": "-policy[chosen] / mean positions per row of the batch",
        "whole_mean": "-whole_score[chosen] / mean whole_length of the batch",
    }[normaliser]

    def value(context: Context) -> Tensor:
        loss = _negative_log_likelihood(context, normaliser)
        return torch.where(_is_wanted(context) > 0, loss, 0.0)

    return Extra(
        "nll",
        value,
        formula,
        coefficient,
        needs=frozenset({"whole_score", "whole_length"}) if normaliser == "whole_mean" else frozenset(),
        couples_rows=normaliser in ("batch_mean", "whole_mean"),
        swaps=normaliser != "whole_mean",
    )


def denoising_error(coefficient: float = 1.0) -> Extra:
    """The chosen candidate's error itself, -2 * its score: the denoising loss of supervised fine-tuning."""
    return replace(
        nll("sequence_mean", 2.0 * coefficient),
        name="denoising_error",
        formula="-policy[chosen] (half its error)",
    )


def linear(name: str, coefficient: float) -> Extra:
    """`extras[name]`, one number per prompt: a third response's log-ratio, a penalty computed elsewhere."""

    def value(context: Context) -> Tensor:
        return wide(context.scores.extra(name, f"the linear term {name!r}"))

    return Extra(name, value, name, coefficient, needs=frozenset({name}))


def divergence(coefficient: float) -> Extra:
    """`Scores.kl` of the chosen candidate, summed along it (RRPO)."""

    def value(context: Context) -> Tensor:
        kl = context.scores.kl
        if kl is None:
            message = explain(
                "Scores.kl, needed by the divergence term", got=None, expected="[prompt, candidate]"
            )
            raise ConfigError(message)
        total = wide(kl)
        if total.ndim == 3:
            mask = context.scores.mask
            total = (total if mask is None else torch.where(mask != 0, total, 0.0)).sum(-1)
        return _of_best(total, context)

    return Extra(
        "divergence",
        value,
        "kl[chosen]",
        coefficient,
        needs=frozenset({"kl"}),
        swaps=True,
        tokens_only="a divergence over a vocabulary; for denoisers pass the squared distance of "
        "the predictions as a linear term",
    )

"""What an objective sees and returns: scores, context, state, output, and numbers computed from the batch.

Symbols used in the docstrings of this package, one value per prompt and candidate unless said otherwise:

    p, r    reduced score of the policy and of the reference; higher is better (log-likelihood, or -error / 2)
    u       anchored score, usually p - r (the log-ratio)
    s       score after shape, role scale and bonus
    z       what the link sees: beta * (s of chosen - s of rejected) - margin for pairs, beta * s - zero point
    for points

Nothing here knows a modality, and nothing reduces over prompts: the loop does that, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmalign.batch import Labels
from mmalign.errors import ConfigError, HyperparameterError, ShapeError, explain
from mmalign.methods.row import LikelihoodKind
from mmalign.shapes import require_same_shape

__all__ = [
    "CHOSEN",
    "REJECTED",
    "Computed",
    "Context",
    "Number",
    "ObjectiveOutput",
    "ObjectiveState",
    "Scores",
    "couples_rows",
    "exchanged",
    "needs_of",
    "per_candidate",
    "per_prompt",
    "require",
    "resolve",
    "shown",
    "tokens_only",
    "wide",
]

CHOSEN, REJECTED = 0, 1
"""Candidate numbers of a pair."""


def wide(value: Tensor) -> Tensor:
    """`value` in float32, or in float64 if it comes so: nothing is computed in half precision."""
    return value if value.dtype == torch.float64 else value.to(torch.float32)


def require(where: str, value: object, holds: bool, expected: str, do: str = "") -> None:
    """Raise `HyperparameterError` unless `holds`; a NaN never holds.

    Args:
        where: builder and argument, for the message.
        value: what was given.
        holds: whether it is in its range.
        expected: the range in words.
        do: what to do instead.
    """
    if not holds:
        raise HyperparameterError(explain(where, got=value, expected=expected, do=do))


def exchanged(value: Tensor) -> Tensor:
    """Candidates 0 and 1 exchanged, further ones where they are."""
    return value.flip(1) if value.shape[1] <= 2 else torch.cat([value[:, :2].flip(1), value[:, 2:]], dim=1)


@dataclass(frozen=True)
class Scores:
    """The numbers an objective works on: how likely each candidate is under each model.

    Args:
        policy: score of each candidate under the trained model, with gradient. With a third axis (tokens,
            segments, timesteps) the objective reduces it the way the method says; without one it is taken as
            already reduced that way: sums for DPO, means for SimPO. Half precision is widened inside, but
            gradients come back in it and may overflow: hand in float32.
        reference: the same under the reference, None for methods without one. Never carries gradient.
        mask: which inner positions count (1) or not (0); fractions weigh. Values at masked positions are
            ignored.
        length: tokens or frames of each candidate, for methods that look at length.
        kl: divergence between reference and policy along each candidate.
        reward: score of an external reward, higher is better.
        extras: other inputs of particular methods by name. Tensors with two or more axes are
            `[prompt, candidate, ...]`, those with one are `[prompt]` unless the method says otherwise.
        likelihood: where the scores come from, if known: an objective that needs probabilities of tokens then
            refuses denoising errors instead of computing a meaningless number.

    Raises:
        ShapeError: policy and reference differ in shape, or policy has another number of axes.
    """

    policy: Float[Tensor, "prompt candidate *inner"]
    reference: Float[Tensor, "prompt candidate *inner"] | None = None
    mask: Shaped[Tensor, "prompt candidate inner"] | None = None
    length: Shaped[Tensor, "prompt candidate"] | None = None
    kl: Float[Tensor, "prompt candidate ..."] | None = None
    reward: Float[Tensor, "prompt candidate"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    likelihood: LikelihoodKind | None = None

    def __post_init__(self) -> None:
        """The one shape comparison that also runs in production: nothing broadcasts by accident."""
        if not isinstance(self.policy, Tensor) or not self.policy.is_floating_point():
            got = str(self.policy.dtype) if isinstance(self.policy, Tensor) else type(self.policy).__name__
            message = f"Scores.policy: got {got}, expected a floating tensor [prompt, candidate] of scores."
            raise ShapeError(message)
        if self.policy.ndim not in (2, 3):
            message = (
                f"Scores.policy: got shape {list(self.policy.shape)}, expected [prompt, candidate] or "
                "[prompt, candidate, inner]. Stack chosen and rejected on axis 1; unpaired rows have one "
                "candidate."
            )
            raise ShapeError(message)
        if self.reference is not None:
            require_same_shape("Scores", self.policy, self.reference, ("policy", "reference"))
        if self.mask is not None:
            if self.policy.ndim == 2:
                message = (
                    "Scores.mask: got one beside scores without an inner axis, expected none. Pass them per "
                    "position, [prompt, candidate, inner], or reduce them yourself and leave the mask out."
                )
                raise ShapeError(message)
            require_same_shape("Scores", self.policy, self.mask, ("policy", "mask"))

    @property
    def num_candidates(self) -> int:
        """Candidates per prompt."""
        return self.policy.shape[1]

    def extra(self, name: str, wanted_by: str) -> Tensor:
        """The extra input called `name`.

        Raises:
            ConfigError: it is missing; the message says who needs it.
        """
        if name not in self.extras:
            message = explain(
                f"Scores.extras[{name!r}], needed by {wanted_by}",
                got=sorted(self.extras),
                expected=f"an entry {name!r}",
                do="Pass it with the scores.",
            )
            raise ConfigError(message)
        return self.extras[name]

    def swapped(self) -> "Scores":
        """The same pairs with chosen and rejected exchanged; further candidates stay."""

        def flip(value: Tensor | None) -> Tensor | None:
            return None if value is None else exchanged(value)

        return replace(
            self,
            policy=exchanged(self.policy),
            reference=flip(self.reference),
            mask=flip(self.mask),
            length=flip(self.length),
            kl=flip(self.kl),
            reward=flip(self.reward),
            extras={
                name: exchanged(value) if value.ndim > 1 else value for name, value in self.extras.items()
            },
        )


def _identity(value: Tensor) -> Tensor:
    return value


@dataclass
class ObjectiveState:
    """What an objective remembers between calls, and how it sees the other ranks.

    Args:
        sum_across: sums a tensor over all ranks (an all-reduce); the identity in one process. Every rank
            calls it the same number of times, also with an empty micro-batch.
        values: running statistics by name.
        updating: False while evaluating: statistics are read and not changed.
        scope: in front of the names of a term's statistics, so that two terms do not share one.
    """

    sum_across: Callable[[Tensor], Tensor] = _identity
    values: dict[str, Tensor] = field(default_factory=dict)
    updating: bool = True
    scope: str = ""

    def state_dict(self) -> dict[str, Tensor]:
        """The running statistics, flat, for a checkpoint."""
        return {name: value.detach().clone() for name, value in self.values.items()}

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Continue from the statistics of a checkpoint."""
        self.values = {name: value.detach().clone() for name, value in values.items()}


@dataclass(frozen=True)
class Context:
    """What computed numbers (margins, weights, adaptive temperatures) may look at.

    Args:
        scores: the batch, unreduced.
        labels: what the data say.
        state: running statistics and the other ranks; None in a plain call.
        policy: reduced score of the policy.
        reference: reduced score of the reference.
        log_ratio: anchored score u.
        valid: candidates that are real.
        summed: the objective compares scores summed over the inner axis, so that reduced ones are sums, too.
    """

    scores: Scores
    labels: Labels
    state: ObjectiveState | None
    policy: Float[Tensor, "prompt candidate"]
    reference: Float[Tensor, "prompt candidate"] | None
    log_ratio: Float[Tensor, "prompt candidate"]
    valid: Bool[Tensor, "prompt candidate"] | None
    summed: bool = False

    def sum_across(self, value: Tensor) -> Tensor:
        """`value` summed over ranks."""
        return value if self.state is None else self.state.sum_across(value)

    def mean_over(self, value: Tensor, where: Tensor) -> Tensor:
        """Mean of `value` where `where` holds, over prompts, candidates and ranks; 0 without any."""
        kept = where.to(value.dtype)
        total = self.sum_across(torch.stack([torch.where(where, value, 0.0).sum(), kept.sum()]))
        return total[0] / total[1].clamp(min=1.0)

    def real(self) -> Bool[Tensor, "prompt candidate"]:
        """Which candidates are real."""
        return torch.ones_like(self.policy, dtype=torch.bool) if self.valid is None else self.valid


@dataclass(frozen=True)
class Computed:
    """A number of the loss that depends on the batch: an adaptive temperature, a margin, a weight.

    Args:
        compute: from the context to a tensor: [], [prompt], [prompt, candidate] or what its place asks for.
        formula: plain text for printing.
        needs: fields of `Scores` it reads ("reference", "reward", "length", "kl", or a name in extras).
        couples_rows: it mixes the rows of a batch.
        attached: gradient flows through it. The default detaches it, as almost every method wants.
        tokens_only: why it is meaningless on anything but probabilities of tokens, "" if it is not.
    """

    compute: Callable[[Context], Tensor]
    formula: str
    needs: frozenset[str] = frozenset()
    couples_rows: bool = False
    attached: bool = False
    tokens_only: str = ""


Number: TypeAlias = float | Computed
"""A hyperparameter, or something computed from the batch."""


def resolve(value: Number, context: Context) -> float | Tensor:
    """The number itself, or what it computes, detached unless it says otherwise."""
    if not isinstance(value, Computed):
        return value
    result = value.compute(context)
    return result if value.attached else result.detach()


def per_prompt(value: float | Tensor) -> float | Tensor:
    """A scalar or [prompt] value, ready to meet [prompt]."""
    if isinstance(value, Tensor) and value.ndim > 1:
        message = f"got a value of shape {list(value.shape)} where one number per prompt is expected"
        raise ShapeError(message)
    return value


def per_candidate(value: float | Tensor) -> float | Tensor:
    """A scalar, [prompt] or [prompt, candidate] value, ready to meet [prompt, candidate]."""
    return value.unsqueeze(1) if isinstance(value, Tensor) and value.ndim == 1 else value


def shown(value: Number) -> str:
    """The number as it stands in a printed formula."""
    return value.formula if isinstance(value, Computed) else f"{value:g}"


def needs_of(*values: object) -> frozenset[str]:
    """What the computed ones among `values` read."""
    return frozenset().union(*(value.needs for value in values if isinstance(value, Computed)))


def couples_rows(*values: object) -> bool:
    """Whether one of the computed ones among `values` mixes the rows of a batch."""
    return any(value.couples_rows for value in values if isinstance(value, Computed))


def tokens_only(*values: object) -> tuple[str, ...]:
    """Why the computed ones among `values` make sense on tokens only."""
    return tuple(value.tokens_only for value in values if isinstance(value, Computed) and value.tokens_only)


@dataclass(frozen=True)
class ObjectiveOutput:
    """Loss of every prompt, never reduced, with what is worth logging.

    Args:
        loss: to be minimised; 0 for prompts without valid candidates.
        logit: z of the first term: positive means the policy agrees with the label more than its starting
            point does. Unpaired rows: the sign follows the label.
        terms: weighted loss of every term by name; they add up to `loss`.
        metrics: detached numbers per prompt, 0 where they do not apply.
        applies: rows on which a metric means something; a metric that is not named applies to every valid
            row.
        valid: prompts that count.
    """

    loss: Float[Tensor, " prompt"]
    logit: Float[Tensor, " prompt"]
    terms: Mapping[str, Float[Tensor, " prompt"]]
    metrics: Mapping[str, Float[Tensor, " prompt"]]
    applies: Mapping[str, Bool[Tensor, " prompt"]]
    valid: Bool[Tensor, " prompt"]

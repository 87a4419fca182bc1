"""What every likelihood shares: what is drawn, what comes back, and how a network looks from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.batch import Batch
from mmalign.likelihood.schedules import Schedule
from mmalign.likelihood.token_head import TokenStates
from mmalign.methods.row import LikelihoodKind

__all__ = [
    "AnyDraw",
    "AnyPolicy",
    "Denoiser",
    "Draw",
    "Evaluation",
    "Likelihood",
    "Reference",
    "TokenDraw",
    "TokenPolicy",
]


@runtime_checkable
class Denoiser(Protocol):
    """A network as a likelihood sees it: prompts and candidates are one flat axis of rows, prompt-major.

    A model's `denoise` method is one; so is any function with this signature.
    """

    def __call__(
        self,
        noised: Float[Tensor, " row *event"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, " row *event"]:
        """The network's prediction, in its own parametrisation.

        Args:
            noised: noised samples, in the wider of the clean data's dtype and float32; the network casts.
            timestep: the schedule's `network_time`.
            conditioning: the network's other inputs, one entry per row.
        """


@runtime_checkable
class TokenPolicy(Protocol):
    """A language model as a likelihood sees it: from a batch to hidden states at the scored positions.

    Where denoisers get noised samples and conditioning, a language model gets the batch: how prompts, media
    and answers are laid out in rows is its own affair, prepared in `Batch.context`.
    """

    def __call__(self, batch: Batch) -> TokenStates:
        """The state before every scored token, in the order of `Batch.context.place`, and the head."""


AnyPolicy: TypeAlias = Denoiser | TokenPolicy
"""A network as one of the likelihoods sees it."""


@dataclass(frozen=True)
class Draw:
    """The randomness of one evaluation; policy and reference see the same.

    Args:
        timestep: index (variance preserving) or sigma (rectified flow) of every candidate.
        noise: standard normal noise.
        noised: what the network sees.
        target: what a perfect network would answer, in the network's own parametrisation; carries no
            gradient.
    """

    timestep: Shaped[Tensor, "prompt candidate"]
    noise: Float[Tensor, "prompt candidate *event"]
    noised: Float[Tensor, "prompt candidate *event"]
    target: Float[Tensor, "prompt candidate *event"]


@dataclass(frozen=True)
class TokenDraw:
    """The draw of a likelihood that draws nothing."""


AnyDraw: TypeAlias = Draw | TokenDraw
"""What a likelihood drew for one evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """How likely the candidates are under one network.

    Args:
        score: `-error / 2`, so that beta has the unit of the published code; of language models, the
            log-likelihood. Higher is likelier.
        error: squared error per candidate, float32 or wider; of language models, minus the log-likelihood.
        prediction: a denoiser's raw output, where the caller asked to keep it.
        inner: of language models, the log-probability of every token, 0 behind an answer; of denoisers, the
            score of every position of an inner axis, where the likelihood keeps one.
        mask: of language models, 1 at the tokens of answers.
        states: of language models, hidden states and head, where the caller asked to keep the prediction.
    """

    score: Float[Tensor, "prompt candidate"]
    error: Float[Tensor, "prompt candidate"]
    prediction: Float[Tensor, "prompt candidate *event"] | None = None
    inner: Float[Tensor, "prompt candidate token"] | None = None
    mask: Float[Tensor, "prompt candidate token"] | None = None
    states: TokenStates | None = None

    @classmethod
    def from_error(
        cls,
        error: Float[Tensor, "prompt candidate"],
        prediction: Float[Tensor, "prompt candidate *event"] | None = None,
    ) -> "Evaluation":
        """The evaluation an error implies: `score = -error / 2`."""
        return cls(score=-0.5 * error, error=error, prediction=prediction)


@runtime_checkable
class Likelihood(Protocol):
    """Turns a network into a score per candidate.

    Which networks and draws it understands is its own: denoisers and `Draw`, or language models and
    `TokenDraw`. Whoever pairs them (the run's config) makes them fit; the other kind fails at its first call.

    Attributes:
        kind: name in the method rows.
        schedule: how noise and data mix; None of likelihoods without noise.
    """

    @property
    def kind(self) -> LikelihoodKind:
        """Name in the method rows."""

    @property
    def schedule(self) -> Schedule | None:
        """How noise and data mix; None of likelihoods without noise."""

    def draw(self, batch: Batch, policy: Any = None, /) -> Any:
        """The randomness for one evaluation of `batch`, decided by its row keys.

        Args:
            batch: clean data, conditioning, keys.
            policy: the current policy, for likelihoods whose noised samples the policy itself makes
                (inversion); others do not look at it. Never called with gradients.
        """

    def evaluate(
        self, policy: Any, batch: Batch, draw: Any, /, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Scores of every candidate; gradients flow when they are enabled."""

    def describe(self) -> dict[str, str]:
        """What the scores depend on, for fingerprints of stored ones."""


@runtime_checkable
class Reference(Protocol):
    """Supplies the reference's scores of a batch.

    Attributes:
        kind: name in the run config.
    """

    kind: str

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation | None:
        """Scores on the policy's own draw, without gradients; None when there is no reference."""

    def update(self, step: int) -> None:
        """Called after optimiser step `step` (from 1); moving references follow the policy here."""

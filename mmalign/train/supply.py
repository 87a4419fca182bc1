"""What a training step hands to an objective besides the two scores: noise level, safeguard, drift, records.

Every entry is computed from what the step has anyway; an objective says by name what it reads (`needs`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Batch, Labels
from mmalign.errors import ShapeError
from mmalign.likelihood import Draw, Evaluation, Likelihood, TokenDraw, Transition
from mmalign.methods.row import LikelihoodKind
from mmalign.objectives import Scores
from mmalign.objectives.predictions import prediction_drift, safeguard_factor

__all__ = [
    "IN_TIME",
    "OF_THE_PAIR",
    "RECORDED",
    "SUPPLIED",
    "Safeguard",
    "StepFacts",
    "Supply",
    "recorded_entry",
]


@dataclass(frozen=True)
class Safeguard:
    """How strongly the chosen sample is protected; see `objectives.predictions.safeguard_factor`.

    Args:
        mu: in [0, 1], share of the chosen sample's progress that is kept.
        scope: every pair for itself, or one factor for the micro-batch (the released code).
        epsilon: added to the inner product; 1e-9 released.
    """

    mu: float
    scope: Literal["pair", "batch"] = "pair"
    epsilon: float = 0.0


@dataclass(frozen=True)
class StepFacts:
    """What one step knows when it asks the objective.

    Args:
        batch: the micro-batch.
        draw: its randomness.
        policy: the policy's evaluation, with its prediction where an entry needs it.
        reference: the reference's, or None.
        level: noise level of each prompt, 0 (clean) to 1 (noise); None without timesteps.
    """

    batch: Batch
    draw: Draw | TokenDraw
    policy: Evaluation
    reference: Evaluation | None
    level: Float[Tensor, " prompt"] | None

    @property
    def drawn(self) -> Draw:
        """The noise and its target.

        Raises:
            ShapeError: nothing is drawn for language models.
        """
        if not isinstance(self.draw, Draw):
            message = "the step drew nothing; expected a likelihood with timesteps and noise."
            raise ShapeError(message)
        return self.draw


_FROM_PREDICTIONS = frozenset({"safeguard", "drift", "mean_drift"})
RECORDED: frozenset[str] = frozenset({"advantage", "old_log_probability", "anchor"})
"""Entries that a rollout keeps with its samples."""

OF_THE_PAIR: frozenset[str] = frozenset({"pair_weight"})
"""Entries that are columns of the data, one number per row."""

SUPPLIED: frozenset[str] = (
    frozenset({"reference", "reward", "noise_level"}) | _FROM_PREDICTIONS | RECORDED | OF_THE_PAIR
)
"""Everything a step of a denoiser can hand to an objective besides the policy's scores."""

IN_TIME: frozenset[str] = frozenset({"preference"})
"""What it can hand over besides, where the medium has a time axis: labels of latent frames."""


@dataclass(frozen=True)
class Supply:
    """The entries of `Scores.extras` that one run's objective reads.

    Args:
        names: of the entries.
        safeguard: settings of the entry "safeguard", which has none by itself.
        likelihood: makes the entry "mean_drift", of transitions.
    """

    names: frozenset[str] = frozenset()
    safeguard: Safeguard | None = None
    likelihood: Likelihood | None = None

    @property
    def needs_prediction(self) -> bool:
        """Whether the raw predictions have to be kept."""
        return bool(self.names & _FROM_PREDICTIONS)

    def scores(self, facts: StepFacts, kind: LikelihoodKind) -> Scores:
        """What the objective works on.

        Raises:
            ShapeError: as `extras`.
        """
        if self.names & IN_TIME:
            return self._scores_in_time(facts, kind)
        return Scores(
            policy=facts.policy.score,
            reference=None if facts.reference is None else facts.reference.score,
            reward=facts.batch.reward,
            extras=self.extras(facts),
            likelihood=kind,
        )

    def _scores_in_time(self, facts: StepFacts, kind: LikelihoodKind) -> Scores:
        """Scores of latent frames, undecided ones masked out, with their labels."""
        label = recorded_entry(facts.batch, "preference")
        return Scores(
            policy=_inner(facts.policy),
            reference=None if facts.reference is None else _inner(facts.reference),
            mask=(label != 0).to(label.dtype),
            reward=facts.batch.reward,
            extras=self.extras(facts),
            likelihood=kind,
        )

    def labels(self, batch: Batch) -> Labels:
        """The batch's labels."""
        return batch.labels

    def extras(self, facts: StepFacts) -> Mapping[str, Tensor]:
        """The entries, as `Scores.extras` takes them.

        Raises:
            ShapeError: the batch or the evaluations lack what an entry is made of.
        """
        makers: Mapping[str, Callable[[StepFacts], Tensor]] = {
            "noise_level": _noise_level,
            "safeguard": self._safeguard,
            "drift": _drift,
            "mean_drift": self._mean_drift,
            **{name: _recorded(name) for name in RECORDED | IN_TIME},
            **{name: _of_the_pair(name) for name in OF_THE_PAIR},
        }
        return MappingProxyType({name: makers[name](facts) for name in sorted(self.names & makers.keys())})

    def _mean_drift(self, facts: StepFacts) -> Tensor:
        if not isinstance(self.likelihood, Transition):
            message = "extras 'mean_drift': got a likelihood of errors, expected transitions."
            raise ShapeError(message)
        policy, reference = (
            _prediction(facts.policy, "mean_drift"),
            _prediction(facts.reference, "mean_drift"),
        )
        return self.likelihood.mean_drift(facts.batch, facts.drawn, policy, reference)

    def _safeguard(self, facts: StepFacts) -> Tensor:
        if self.safeguard is None:
            message = (
                "extras 'safeguard': got no settings, expected Supply(safeguard=Safeguard(mu=...)): the "
                "share of the chosen sample's progress that is kept decides the loss, so none is assumed."
            )
            raise ShapeError(message)
        settings = self.safeguard
        prediction = _prediction(facts.policy, "safeguard")
        return safeguard_factor(
            prediction.detach(),
            facts.drawn.target,
            mu=settings.mu,
            scope=settings.scope,
            epsilon=settings.epsilon,
        )


def _inner(evaluation: Evaluation) -> Tensor:
    if evaluation.inner is None:
        message = "extras 'preference': got scores of whole clips, expected a likelihood with inner_axis."
        raise ShapeError(message)
    return evaluation.inner


def _prediction(evaluation: Evaluation | None, name: str) -> Tensor:
    if evaluation is None or evaluation.prediction is None:
        message = f"extras {name!r}: got an evaluation without its prediction, expected keep_prediction=True."
        raise ShapeError(message)
    return evaluation.prediction


def _noise_level(facts: StepFacts) -> Tensor:
    if facts.level is None:
        message = "extras 'noise_level': got a likelihood without timesteps, expected one with."
        raise ShapeError(message)
    return facts.level


def _drift(facts: StepFacts) -> Tensor:
    return prediction_drift(_prediction(facts.policy, "drift"), _prediction(facts.reference, "drift"))


def recorded_entry(batch: Batch, name: str) -> Tensor:
    """What the rollout, or the data, recorded beside every sample.

    Raises:
        ShapeError: it did not.
    """
    if name not in batch.recorded:
        message = (
            f"extras {name!r}: got records {sorted(batch.recorded)}, expected {name!r} too. "
            "The rollout or the data have to give it; see `mmalign methods` for what it is."
        )
        raise ShapeError(message)
    return batch.recorded[name]


def _recorded(name: str) -> Callable[[StepFacts], Tensor]:
    return lambda facts: recorded_entry(facts.batch, name)


def _of_the_pair(name: str) -> Callable[[StepFacts], Tensor]:
    return lambda facts: recorded_entry(facts.batch, name)[:, 0]

"""What a step of a language model hands to an objective besides the scores.

Numbers that come with the data (severities, spans, gaps) arrive in the batch; divergences and entropies are
computed from the hidden states of both models, chunk by chunk, so that no logits are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Batch, Labels
from mmalign.errors import ShapeError
from mmalign.likelihood import Evaluation
from mmalign.likelihood.tokens import HeadStatistic, TokenStates, head_statistics, scatter_scored
from mmalign.methods.row import OWN, LikelihoodKind, View
from mmalign.objectives import Scores
from mmalign.train.supply import StepFacts, recorded_entry

__all__ = ["OF_THE_ROW", "SUPPLIED_TOKENS", "TokenSupply"]

OF_THE_ROW: frozenset[str] = frozenset(
    {
        *("changed", "phrase", "token_mask", "token_severity", "image_relation", "preference"),
        *("severity", "rank", "margin_rewards", "semantic_distance", "win_probability", "visits"),
        *("temperature_factor", "semantic_gap", "task_weight", "pair_weight", "reward_model_score"),
    }
)
"""Numbers that the data give, per token, per answer or per row."""

_KL: tuple[HeadStatistic, ...] = ("kl",)
_SQUARES: tuple[HeadStatistic, ...] = ("log_sum_squares",)
_ENTROPY: tuple[HeadStatistic, ...] = ("normalised_entropy",)
_OF_STATES = frozenset({"kl", "log_sum_squares", "reference_entropy"})

SUPPLIED_TOKENS: frozenset[str] = (
    frozenset({"reference", "reward", "length", "candidate"}) | _OF_STATES | OF_THE_ROW
)
"""Everything a step of a language model can hand to an objective besides the policy's scores."""


@dataclass(frozen=True)
class TokenSupply:
    """The entries of `Scores` that one run's objective reads.

    Args:
        names: of the entries.
        views: candidates that training made; those that become no candidate of the objective are taken out.
        chunk: positions whose logits exist together.
    """

    names: frozenset[str] = frozenset()
    views: tuple[View, ...] = ()
    chunk: int | None = None

    @property
    def needs_prediction(self) -> bool:
        """Whether the hidden states have to be kept."""
        return bool(self.names & _OF_STATES)

    def scores(self, facts: StepFacts, kind: LikelihoodKind) -> Scores:
        """What the objective works on: log-probabilities of every token of the candidates it compares.

        Raises:
            ShapeError: the likelihood gave no log-probabilities of tokens, or lacks what an entry is made of.
        """
        batch, policy, reference = facts.batch, facts.policy, facts.reference
        if policy.inner is None:
            message = "the likelihood gave no log-probabilities of tokens; expected that of a language model."
            raise ShapeError(message)
        compared, behind = self._candidates(batch.num_candidates)
        mask = _mask(batch)
        extras = dict(self._extras(batch, policy, reference))
        for name, numbers in behind.items():
            extras[name] = _chosen(policy.inner.detach(), numbers)

        def kept(value: Tensor | None) -> Tensor | None:
            return None if value is None else _chosen(value, compared)

        return Scores(
            policy=_chosen(policy.inner, compared),
            reference=None if reference is None else kept(reference.inner),
            mask=kept(mask),
            length=kept(mask.sum(-1)) if "length" in self.names else None,
            kl=kept(self._kl(batch, policy, reference)),
            reward=kept(batch.reward) if "reward" in self.names else None,
            extras={
                name: value if name in behind else self._fitting(value, batch, compared)
                for name, value in extras.items()
            },
            likelihood=kind,
        )

    def labels(self, batch: Batch) -> Labels:
        """The batch's labels, of the candidates that the objective compares."""
        compared, _ = self._candidates(batch.num_candidates)
        labels, valid = batch.labels, batch.labels.valid
        if valid is None or valid.shape[1] == len(compared):
            return labels
        kept = replace(labels, valid=_chosen(valid, compared))
        return kept.known_certain() if labels.certain else kept

    @staticmethod
    def _fitting(value: Tensor, batch: Batch, compared: list[int]) -> Tensor:
        """A number of every candidate cut to those that are compared; others as they are."""
        is_whole = value.ndim > 1 and value.shape[1] == batch.num_candidates
        return _chosen(value, compared) if is_whole else value

    def _candidates(self, num_candidates: int) -> tuple[list[int], dict[str, list[int]]]:
        """Candidates that the objective compares, and those behind each extra input, by number."""
        first = num_candidates - len(self.views)
        compared, behind = list(range(first)), dict[str, list[int]]()
        for number, view in enumerate(self.views, start=first):
            if view.becomes in ("candidate", OWN):
                compared.append(number)
            else:
                behind.setdefault(view.becomes, []).append(number)
        return compared, behind

    def _kl(
        self, batch: Batch, policy: Evaluation, reference: Evaluation | None
    ) -> Float[Tensor, "prompt candidate inner"] | None:
        """KL(reference || policy) of the next token, [prompt, candidate, token]; None where nobody reads it.

        Raises:
            ShapeError: the hidden states of a model were not kept.
        """
        if "kl" not in self.names:
            return None
        found = head_statistics(
            _states(policy, "kl"),
            reference=_states(reference, "kl"),
            wants=_KL,
            chunk=self.chunk,
        )
        return scatter_scored(batch, found["kl"])

    def _extras(
        self, batch: Batch, policy: Evaluation, reference: Evaluation | None
    ) -> Mapping[str, Float[Tensor, "prompt ..."]]:
        """The other entries, as `Scores.extras` takes them.

        Raises:
            ShapeError: the batch or the evaluations lack what an entry is made of.
        """
        made: dict[str, Tensor] = {}
        if "log_sum_squares" in self.names:
            states = _states(policy, "log_sum_squares")
            found = head_statistics(states, wants=_SQUARES, chunk=self.chunk)
            made["log_sum_squares"] = scatter_scored(batch, found["log_sum_squares"])
        if "reference_entropy" in self.names:
            made["reference_entropy"] = self._reference_entropy(batch, reference)
        for name in sorted(self.names & OF_THE_ROW):
            value = recorded_entry(batch, name)
            made[name] = value[:, 0] if name in _PER_ROW and value.ndim > 1 else value
        return MappingProxyType(made)

    def _reference_entropy(self, batch: Batch, reference: Evaluation | None) -> Float[Tensor, " prompt"]:
        """Mean normalised entropy of the reference over the tokens of the row's answers."""
        states = _states(reference, "reference_entropy")
        with torch.no_grad():
            measured = head_statistics(states, wants=_ENTROPY, chunk=self.chunk)
            found = measured["normalised_entropy"]
            spread, mask = scatter_scored(batch, found), _mask(batch)
            return (spread * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1.0)


_PER_ROW = frozenset({"temperature_factor", "semantic_gap", "task_weight", "pair_weight"})


def _chosen(value: Tensor, numbers: list[int]) -> Tensor:
    """Candidates by number. A list as an index would be copied to the device, and the host would wait."""
    first, number = numbers[0], len(numbers)
    if numbers == list(range(first, first + number)):
        return value if number == value.shape[1] else value[:, first : first + number]
    return torch.stack([value[:, place] for place in numbers], dim=1)


def _states(evaluation: Evaluation | None, name: str) -> TokenStates:
    if evaluation is None or evaluation.states is None:
        message = f"{name!r}: got an evaluation without its hidden states, expected keep_prediction=True."
        raise ShapeError(message)
    return evaluation.states


def _mask(batch: Batch) -> Tensor:
    if batch.element_mask is None:
        message = "Batch.element_mask: got none, expected 1 at the tokens of answers."
        raise ShapeError(message)
    return batch.element_mask

"""Checks of the conformance suite that run an objective on changed inputs: levels, parts, ranks, resuming.

`mmalign.testing.objectives.CHECKS` lists them with the others.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmalign.batch import Labels
from mmalign.objectives.base import Computed, ObjectiveState, Scores
from mmalign.objectives.objective import Objective, Registered
from mmalign.testing.objective_examples import PROMPTS, built_of, equal, example, policy_gradient

__all__ = [
    "common_level",
    "resuming",
    "sharding",
    "splitting",
]


def _only_differences(built: Objective) -> bool:
    """Whether the loss looks at scores through plain differences of candidates only."""
    return not built.extras and all(
        not term.structure.points
        and term.score.shape.name == "identity"
        and term.score.scale == 1.0
        and term.score.bonus == 0.0
        for term in built.terms
    )


def _sees_levels(built: Objective) -> bool:
    """Whether something in the loss must look at the level of a score: a point, a shape, a likelihood.

    A zero point that follows the scores takes a common level away again.
    """
    of_terms = any(
        (term.structure.points and not isinstance(term.margin, Computed))
        or term.score.shape.name != "identity"
        for term in built.terms
    )
    return of_terms or any(extra.name in ("nll", "denoising_error") for extra in built.extras)


def common_level(objective: Registered) -> list[str]:
    """A constant in all candidates of a prompt changes nothing for differences, and something elsewhere."""
    built = built_of(objective)
    scores, labels = example(objective)
    higher = replace(scores, policy=(scores.policy.detach() - 0.07).requires_grad_())
    same = equal(built(scores, labels).loss, built(higher, labels).loss)
    if _only_differences(built):
        found = [] if same else ["a constant in all candidates of a prompt changes a loss of differences"]
        gradient = policy_gradient(built(scores, labels), scores)
        balance = gradient.sum() if built.couples_rows else gradient.sum(1)
        if not torch.allclose(balance, torch.zeros_like(balance), atol=1e-9):
            found.append("the gradients of the candidates of a prompt do not cancel")
        return found
    if same and _sees_levels(built):
        return ["a constant in all candidates changes nothing, though the level of a score counts"]
    return []


def splitting(objective: Registered) -> list[str]:
    """Micro-batches give the losses of the whole batch, unless rows are coupled."""
    built = built_of(objective)
    if built.couples_rows:
        return []
    scores, labels = example(objective)
    parts = [
        built(_rows(scores, slice(*cut)), _label_rows(labels, slice(*cut))).loss
        for cut in ((0, 2), (2, PROMPTS))
    ]
    if equal(torch.cat(parts), built(scores, labels).loss):
        return []
    return ["the losses of two micro-batches are not those of the batch"]


def _rows(scores: Scores, rows: slice) -> Scores:
    def cut(value: Tensor | None) -> Tensor | None:
        return value if value is None or value.shape[0] != PROMPTS else value[rows]

    return replace(
        scores,
        policy=scores.policy[rows],
        reference=cut(scores.reference),
        mask=cut(scores.mask),
        length=cut(scores.length),
        kl=cut(scores.kl),
        reward=cut(scores.reward),
        extras={
            name: value[rows] if value.shape[0] == PROMPTS else value for name, value in scores.extras.items()
        },
    )


def _label_rows(labels: Labels, rows: slice) -> Labels:
    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    return Labels(cut(labels.probability), cut(labels.desirable), cut(labels.relevance), cut(labels.valid))


class _Ranks:
    """Sums over two ranks that run one after the other: totals of the last round, in the order of calls."""

    def __init__(self) -> None:
        self.given: list[list[Tensor]] = [[], []]
        self.totals: list[Tensor] = []

    def of(self, rank: int) -> Callable[[Tensor], Tensor]:
        self.given[rank] = []

        def sum_across(value: Tensor) -> Tensor:
            place = len(self.given[rank])
            self.given[rank].append(value.detach())
            return self.totals[place] if place < len(self.totals) else value

        return sum_across

    def settle(self) -> None:
        self.totals = [first + second for first, second in zip(*self.given, strict=True)]


def sharding(objective: Registered) -> list[str]:
    """Two ranks give the losses and the running statistics of one process."""
    built = built_of(objective)
    if not built.couples_rows:
        return []
    return [line for seed in (0, 1, 2) for line in _sharded(objective, built, seed)]


def _sharded(objective: Registered, built: Objective, seed: int) -> list[str]:
    scores, labels = example(objective, seed=seed)
    alone = ObjectiveState()
    expected = [built(scores, labels, alone).loss for _ in range(2)]
    ranks, cuts = _Ranks(), (slice(0, 2), slice(2, PROMPTS))
    before: list[dict[str, Tensor]] = [{}, {}]
    found = []
    for step in range(2):
        ranks.totals = []
        # A sum may depend on an earlier one of the same call, so that the totals settle one after the other.
        for _ in range(4):
            states = [ObjectiveState(ranks.of(rank), dict(before[rank])) for rank in (0, 1)]
            losses = [
                built(_rows(scores, cut), _label_rows(labels, cut), state).loss
                for cut, state in zip(cuts, states, strict=True)
            ]
            ranks.settle()
        before = [state.values for state in states]
        if not equal(torch.cat(losses), expected[step]):
            found.append(f"step {step + 1}: two ranks do not give the losses of one process")
    found += [
        f"rank {rank}: the running statistic {name} differs from one process's"
        for name, value in alone.values.items()
        for rank in (0, 1)
        if not equal(before[rank][name], value)
    ]
    return found


def resuming(objective: Registered) -> list[str]:
    """Running statistics saved and loaded continue as if nothing had happened."""
    built = built_of(objective)
    scores, labels = example(objective)
    state = ObjectiveState()
    built(scores, labels, state)
    saved = state.state_dict()
    later, _ = example(objective, seed=1)
    resumed = ObjectiveState()
    resumed.load_state_dict(saved)
    if not equal(built(later, labels, state).loss, built(later, labels, resumed).loss):
        return ["a state saved and loaded gives other losses"]
    return []

"""Objectives broken on purpose: what a suite must notice to be worth anything.

`mutants(objective)` yields copies of an objective with one part wrong: a sign flipped, the reference dropped,
the candidates exchanged, a mean turned into a sum, a margin, weight or extra term forgotten, a gradient
stopped or let through. A suite that passes on one of them does not hold that part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mmalign.batch import Labels
from mmalign.objectives.base import Computed, Context, Number, ObjectiveOutput, ObjectiveState, Scores
from mmalign.objectives.extras import Extra
from mmalign.objectives.labels import PairLabels, PointLabels
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective
from mmalign.objectives.structures import ListForward, ListReverse, Plackett, Target
from mmalign.objectives.terms import Term

__all__ = ["NoMutantError", "mutants"]

# Their loss is no function of a link, or of an even one.
_WITHOUT_LINK = (ListForward, ListReverse, Plackett, Target)


class NoMutantError(Exception):
    """What was broken does nothing here: a gradient was to be let through where none comes."""


@dataclass(frozen=True, repr=False)
class _Swapped(Objective):
    """Sees the scores of the candidates in reverse order, and everything else as it is."""

    def __call__(
        self, scores: Scores, labels: Labels, state: ObjectiveState | None = None
    ) -> ObjectiveOutput:
        swapped = scores.swapped()
        mixed = replace(
            scores, policy=swapped.policy, reference=swapped.reference, mask=swapped.mask, kl=swapped.kl
        )
        return super().__call__(mixed, labels, state)


def _negated(link: Link) -> Link:
    def function(z: Tensor) -> Tensor:
        return link.function(-z)

    def slope(z: Tensor) -> Tensor:
        return -link.slope(-z)

    return replace(link, function=function, slope=slope)


def _score(term: Term, **changes: Any) -> Term:
    return replace(term, score=replace(term.score, **changes))


def _reduction(term: Term, **changes: Any) -> Term:
    return _score(term, reduction=replace(term.score.reduction, **changes))


def _term(term: Term, **changes: Any) -> Term:
    return replace(term, **changes)


def _of_term(term: Term) -> Iterator[tuple[str, Term]]:
    score, reduction = term.score, term.score.reduction
    if not isinstance(term.structure, _WITHOUT_LINK):
        yield "z negated", replace(term, link=_negated(term.link), link_rejected=None)
    yield "scores negated", _score(term, scale=_scaled(score.scale, -1.0))
    yield "z doubled", _score(term, scale=_scaled(score.scale, 2.0))
    yield "coefficient negated", term.scaled(-1.0)
    other = "mean" if reduction.how == "sum" else "sum"
    yield f"{reduction.how} to {other}", _reduction(term, how=other)
    yield (
        ("reference dropped", _score(term, anchor=0.0))
        if score.anchor
        else ("reference added", _score(term, anchor=1.0))
    )
    if reduction.weights is not None:
        yield "inner weights dropped", _reduction(term, weights=None)
        toggled = not reduction.weighs_reference
        yield "inner weights on other models", _reduction(term, weighs_reference=toggled)
    if reduction.clamp is not None:
        yield "clamp dropped", _reduction(term, clamp=None)
    yield from _of_numbers(term, term.score, (("scale", 1.0), ("bonus", 0.0)), _score)
    yield from _of_numbers(term, term, (("beta", 1.0), ("margin", 0.0), ("weight", 1.0)), _term)
    if term.margin != 0.0:
        yield "margin negated", replace(term, margin=_scaled(term.margin, -1.0))
    yield from _of_labels(term)


def _of_numbers(
    term: Term, owner: object, idle: tuple[tuple[str, float], ...], edit: Callable[..., Term]
) -> Iterator[tuple[str, Term]]:
    for name, nothing in idle:
        value = getattr(owner, name)
        if value == nothing:
            continue
        yield f"{name} dropped", edit(term, **{name: nothing})
        if isinstance(value, Computed):
            yield f"gradient through {name} toggled", edit(term, **{name: _toggled(value)})


def _toggled(value: Computed) -> Computed:
    def compute(context: Context) -> Tensor:
        result = value.compute(context)
        if not result.requires_grad:
            raise NoMutantError
        return result

    return replace(value, compute=compute, attached=not value.attached)


def _of_labels(term: Term) -> Iterator[tuple[str, Term]]:
    labels = term.labels
    if isinstance(labels, PairLabels) and not isinstance(term.structure, Plackett):
        yield "labels exchanged", replace(term, labels=PairLabels(labels.disagree, labels.agree))
        if labels.disagree != 0.0:
            yield "smoothing dropped", replace(term, labels=PairLabels())
    if isinstance(labels, PointLabels) and labels.chosen != labels.rejected:
        yield "roles exchanged", replace(term, labels=PointLabels(labels.rejected, labels.chosen))


def _scaled(value: Number, factor: float) -> Number:
    if not isinstance(value, Computed):
        return factor * value
    return replace(value, compute=lambda context: factor * value.compute(context))


def mutants(objective: Objective) -> Iterator[tuple[str, Objective]]:
    """(What is wrong, the objective with that wrong) for every part that can be broken.

    Args:
        objective: a sound one; it is not changed.
    """
    yield "candidates exchanged", _Swapped(objective.name, objective.terms, objective.extras)
    for number, term in enumerate(objective.terms):
        place = f" in term {number + 1}" if len(objective.terms) > 1 else ""
        for what, broken in _of_term(term):
            changed = (*objective.terms[:number], broken, *objective.terms[number + 1 :])
            yield what + place, replace(objective, terms=changed)
        if len(objective.terms) + len(objective.extras) > 1:
            rest = (*objective.terms[:number], *objective.terms[number + 1 :])
            yield f"term {number + 1} dropped", replace(objective, terms=rest)
    for number, extra in enumerate(objective.extras):
        for what, edit in _EXTRA_EDITS.items():
            changed_extras = (*objective.extras[:number], edit(extra), *objective.extras[number + 1 :])
            yield f"extra {extra.name} {what}", replace(objective, extras=changed_extras)
        if len(objective.terms) + len(objective.extras) > 1:
            left = (*objective.extras[:number], *objective.extras[number + 1 :])
            yield f"extra {extra.name} dropped", replace(objective, extras=left)


_EXTRA_EDITS: dict[str, Callable[[Extra], Extra]] = {
    "negated": lambda extra: extra.scaled(-1.0),
    "doubled": lambda extra: extra.scaled(2.0),
}

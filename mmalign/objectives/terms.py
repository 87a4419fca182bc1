"""Terms: one choice per part of the algebra, as frozen data that checks itself when it is built."""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import links, score_shapes
from mmalign.objectives.base import (
    CHOSEN,
    Computed,
    Number,
    couples_rows,
    needs_of,
    require,
    shown,
    tokens_only,
)
from mmalign.objectives.labels import Distribution, PairLabels, PointLabels, Targets
from mmalign.objectives.links import Link
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.score_shapes import Shape
from mmalign.objectives.structures import Contrast, Pair, Structure, Words

__all__ = ["Score", "Term"]

_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Score:
    """Parts A to D: from the scores of two models to s.

    s = scale * shape(policy - anchor * reference) + bonus

    Args:
        reduction: how the inner axis is reduced (part A).
        anchor: weight of the reference (part B): 1 for the log-ratio, 0 for methods without reference.
        shape: function of the anchored score (part C).
        scale: factor of the shaped score (part D), a number, [prompt] or [prompt, candidate].
        bonus: added to it (part D); the default detaches what is computed, `attached` keeps its gradient.

    Raises:
        HyperparameterError: anchor is not finite.
    """

    reduction: Reduction = field(default_factory=Reduction)
    anchor: float = 1.0
    shape: Shape = field(default_factory=score_shapes.identity)
    scale: Number = 1.0
    bonus: Number = 0.0

    def __post_init__(self) -> None:
        require(
            "Score anchor", self.anchor, abs(self.anchor) < float("inf"), "a finite number, usually 1 or 0"
        )

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Scores` it reads."""
        anchored = frozenset({"reference"}) if self.anchor else _NOTHING
        return anchored | self.reduction.needs | needs_of(self.scale, self.bonus)

    @property
    def couples_rows(self) -> bool:
        """It mixes the rows of a batch."""
        return couples_rows(self.scale, self.bonus, self.reduction.weights)

    @property
    def tokens_only(self) -> tuple[str, ...]:
        """Why it makes sense on probabilities of tokens only; empty if it does not say so."""
        bare = "" if self.anchor else self.shape.tokens_only_bare
        of_shape = tuple(reason for reason in (self.shape.tokens_only, bare) if reason)
        return of_shape + tokens_only(self.scale, self.bonus, self.reduction.weights)

    @property
    def formula(self) -> str:
        """Plain text, one or two lines' worth."""
        reference = {0.0: "", 1.0: " - reference"}.get(self.anchor, f" - {self.anchor:g} * reference")
        anchored = f"policy{reference}"
        text = anchored if self.shape.name == "identity" else f"{self.shape.formula} with u = {anchored}"
        if self.scale != 1.0:
            text = f"{shown(self.scale)} * ({text})"
        if self.bonus != 0.0:
            text = f"{text} + {shown(self.bonus)}"
        weights = self.reduction.weights
        how = "the mean" if self.reduction.how == "mean" else "the sum"
        weighted = "" if weights is None else f", weighted by {weights.formula}"
        apart = self.reduction.weighs_reference
        if isinstance(apart, Computed):
            weighted += f", the reference by {apart.formula}"
        elif weights is not None and self.anchor and not apart:
            weighted += " in the policy only"
        clamp = self.reduction.clamp
        clamped = "" if clamp is None else f", log-ratios clamped to [{clamp[0]:g}, {clamp[1]:g}]"
        return f"{text} ({how} over an inner axis{weighted}{clamped})"

    @property
    def formula_of_position(self) -> str:
        """Plain text for terms that do not reduce the inner axis."""
        return self.formula.rsplit(" (the ", 1)[0]


@dataclass(frozen=True)
class Term:
    """One term of a loss: a structure over scores, with temperature, margin, link, labels and weight.

    Args:
        structure: how candidates are compared (part E).
        score: parts A to D.
        beta: temperature (part F).
        margin: subtracted from z (part G); the zero point of points.
        link: the loss as a function of z (part H).
        labels: of the type the structure takes (part I).
        weight: >= 0, one per prompt (part J).
        coefficient: factor of the whole term.
        link_rejected: another link for candidates that are not liked (points only).
        name: for logs; the default is the link's.
        candidates: which candidates it compares, in its order of (chosen, rejected); None is all of them. A
            label probability turns only terms that look at candidates 0 and 1.
        positions: "reduced" compares candidates by their reduced scores; "apart" compares them position by
            position and takes the mean of the losses over the positions that count.

    Raises:
        HyperparameterError: parts that do not go together.
    """

    structure: Structure = field(default_factory=Pair)
    score: Score = field(default_factory=Score)
    beta: Number = 1.0
    margin: Number = 0.0
    link: Link = field(default_factory=links.logistic)
    labels: PairLabels | PointLabels | Targets | Distribution = field(default_factory=PairLabels)
    weight: Number = 1.0
    coefficient: float = 1.0
    link_rejected: Link | None = None
    name: str = ""
    candidates: tuple[int, ...] | None = None
    positions: Literal["reduced", "apart"] = "reduced"

    def __post_init__(self) -> None:
        structure = type(self.structure).__name__
        if not isinstance(self.labels, self.structure.labels):
            message = explain(
                f"labels of {structure}",
                got=type(self.labels).__name__,
                expected=self.structure.labels.__name__,
            )
            raise HyperparameterError(message)
        if self.structure.points and self.score.shape.only_differences:
            message = explain(
                f"shape of {structure}",
                got=self.score.shape.name,
                expected="a shape that keeps its meaning for single candidates",
                do="Such shapes need a structure that compares candidates: elsewhere the partition function "
                "does not cancel.",
            )
            raise HyperparameterError(message)
        if self.link_rejected is not None and not self.structure.points:
            message = explain(f"link_rejected of {structure}", got=self.link_rejected.name, expected="None")
            raise HyperparameterError(message)
        if self.candidates is not None and not _distinct(self.candidates):
            message = explain(
                f"candidates of {structure}", got=self.candidates, expected="distinct numbers >= 0"
            )
            raise HyperparameterError(message)
        if self.positions not in ("reduced", "apart"):
            message = explain(
                f"positions of {structure}", got=self.positions, expected="'reduced' or 'apart'"
            )
            raise HyperparameterError(message)

    @property
    def at_least(self) -> int:
        """Real candidates that a prompt needs to count."""
        own: int | None = getattr(self.structure, "at_least", None)
        return own or (1 if self.structure.points else 2)

    @property
    def width(self) -> int:
        """Candidates that the scores must have, as far as the term names them; 0 if it names none."""
        if self.candidates is not None:
            return max(self.candidates) + 1
        return len(self.structure.coefficients) if isinstance(self.structure, Contrast) else 0

    def _computed(self) -> tuple[object, ...]:
        labels: tuple[object, ...] = ()
        if isinstance(self.labels, PairLabels):
            labels = (self.labels.agree, self.labels.disagree)
        elif isinstance(self.labels, PointLabels):
            labels = (*self.labels.chosen, *self.labels.rejected)
        elif isinstance(self.labels, Targets):
            labels = (self.labels.chosen, self.labels.rejected)
        return (self.beta, self.margin, self.weight, *labels)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Scores` it reads."""
        own = self.labels.needs if isinstance(self.labels, Distribution) else _NOTHING
        return self.score.needs | self.structure.needs | needs_of(*self._computed()) | own

    @property
    def couples_rows(self) -> bool:
        """The loss of a row depends on its batch mates."""
        return (
            self.structure.couples_rows
            or self.score.couples_rows
            or self.link.couples_rows
            or couples_rows(*self._computed())
        )

    @property
    def tokens_only(self) -> tuple[str, ...]:
        """Why it makes sense on probabilities of tokens only; empty if it does not say so."""
        return self.score.tokens_only + tokens_only(*self._computed())

    def scaled(self, factor: float) -> "Term":
        """The same with its coefficient multiplied."""
        return replace(self, coefficient=self.coefficient * factor)

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """(Part of the algebra, what was chosen) in plain text; parts that do nothing are left out."""
        score, reduction = self.score, self.score.reduction
        anchor = {0.0: "none", 1.0: "reference"}.get(score.anchor, f"{score.anchor:g} * reference")
        link = (
            self.link.name if self.link_rejected is None else f"{self.link.name}, {self.link_rejected.name}"
        )
        labels = self.labels.formula if isinstance(self.labels, Distribution) else ""
        if isinstance(self.labels, Targets):
            labels = self.labels.formula()
        elif isinstance(self.labels, PairLabels):
            labels = self.labels.formula("link({z})")
        elif isinstance(self.labels, PointLabels):
            labels = self.labels.formula("link({z})", "link({z})")
        rows = (
            ("structure", type(self.structure).__name__, ""),
            ("reduction", reduction.formula, ""),
            ("anchor", anchor, ""),
            ("shape", score.shape.name, "identity"),
            ("scale", shown(score.scale), "1"),
            ("bonus", shown(score.bonus), "0"),
            ("beta", shown(self.beta), "1"),
            ("margin", shown(self.margin), "0"),
            ("link", "" if isinstance(self.labels, Distribution) else link, ""),
            ("labels", labels, ""),
            ("weight", shown(self.weight), "1"),
            ("coefficient", f"{self.coefficient:g}", "1"),
        )
        return tuple((name, value) for name, value, idle in rows if value and value != idle)

    def formula(self) -> tuple[str, tuple[str, ...]]:
        """(The term's loss, lines that define z and s) in plain text."""
        rejected = self.link if self.link_rejected is None else self.link_rejected
        loss, z = self.structure.formula(
            Words(self.link.formula, rejected.formula, self.labels, shown(self.beta), shown(self.margin))
        )
        reduced = self.positions == "reduced"
        s = self.score.formula if reduced else self.score.formula_of_position
        if self.candidates is not None:
            loss, z = self._named(loss, z)
        if self.positions == "apart":
            loss = f"mean over positions of {loss}"
        factors = [f"{self.coefficient:g}"] if self.coefficient != 1.0 else []
        if isinstance(self.weight, Computed) or self.weight != 1.0:
            factors.append(shown(self.weight))
        return " * ".join([*factors, f"[{loss}]" if factors else loss]), (
            f"z = {z}",
            f"s = {s}",
        )

    def _named(self, loss: str, z: str) -> tuple[str, str]:
        """Loss and z with the candidates' numbers in place of their roles."""
        numbers = self.candidates or ()
        if len(numbers) == 1 and isinstance(self.labels, PointLabels):
            liked = numbers[0] == CHOSEN
            link = self.link if liked or self.link_rejected is None else self.link_rejected
            coefficients = self.labels.chosen if liked else self.labels.rejected
            return PairLabels(*coefficients).formula(link.formula), re.sub(r"\bs\b", f"s[{numbers[0]}]", z)
        for role, number in zip(("chosen", "rejected"), numbers, strict=False):
            z = z.replace(f"s[{role}]", f"s[{number}]")
        return loss, z


def _distinct(candidates: tuple[int, ...]) -> bool:
    return bool(candidates) and min(candidates) >= 0 and len(set(candidates)) == len(candidates)

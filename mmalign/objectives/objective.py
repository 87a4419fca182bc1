"""The objective as data, and the registry of builders that make the published ones.

An `Objective` is what a builder returns: terms and extra terms. It adds, scales, prints its formula, and is
called with scores and labels. A builder is a function with keyword-only hyperparameters under the decorator
`objective`, which makes its method row.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ParamSpec, TypeAlias

from mmalign.batch import DataKind, Labels
from mmalign.errors import ConfigError, HyperparameterError, UnknownNameError, explain, unknown_name
from mmalign.methods.row import Default, Fixes, LikelihoodKind, Mark, Method, OnErrors, Status, Taxonomy
from mmalign.objectives.base import ObjectiveOutput, ObjectiveState, Scores
from mmalign.objectives.checks import check_call, check_inputs
from mmalign.objectives.evaluate import evaluate
from mmalign.objectives.extras import Extra
from mmalign.objectives.terms import Term

__all__ = ["Objective", "Registered", "build", "names", "objective", "registered", "row", "signature"]

P = ParamSpec("P")


@dataclass(frozen=True, repr=False)
class Objective:
    """A preference loss as data: terms (comparisons) plus extra terms.

    `a + b` has the terms of both, `0.2 * a` scales every term, `print(a)` shows the formula. The first term
    gives the logit and the metrics.

    Args:
        name: for messages and logs.
        terms: comparisons of candidates.
        extras: other terms.
        data: the kind of rows it is for, which decides how many candidates it takes; None for unnamed ones.

    Raises:
        ConfigError: there is no term at all.
    """

    name: str
    terms: tuple[Term, ...] = ()
    extras: tuple[Extra, ...] = ()
    data: DataKind | None = None

    def __post_init__(self) -> None:
        if not self.terms and not self.extras:
            raise ConfigError(explain(f"objective {self.name}", got="no term", expected="at least one"))

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Scores` it reads besides the policy's, names in extras included."""
        of_terms = (term.needs for term in self.terms)
        return frozenset().union(*of_terms, *(extra.needs for extra in self.extras))

    @property
    def couples_rows(self) -> bool:
        """The loss of a row depends on its batch mates, so micro-batch, ranks and accumulation matter."""
        of_terms = any(term.couples_rows for term in self.terms)
        return of_terms or any(extra.couples_rows for extra in self.extras)

    @property
    def tokens_only(self) -> tuple[str, ...]:
        """Why it makes sense on probabilities of tokens only; empty for what also takes denoising errors."""
        of_terms = tuple(reason for term in self.terms for reason in term.tokens_only)
        return of_terms + tuple(extra.tokens_only for extra in self.extras if extra.tokens_only)

    def require_suits(self, likelihood: LikelihoodKind | None) -> None:
        """Refuse scores it would turn into a meaningless number.

        Args:
            likelihood: where the scores come from; None is not checked.

        Raises:
            ConfigError: the objective needs probabilities of tokens, and the scores are none.
        """
        reasons = self.tokens_only
        if reasons and likelihood not in (None, "tokens"):
            message = explain(
                f"objective {self.name} on the likelihood {likelihood!r}",
                got="; ".join(dict.fromkeys(reasons)),
                expected="log-probabilities of tokens",
                do="Choose an objective that compares scores only, for example dpo, ipo or simpo.",
            )
            raise ConfigError(message)

    @property
    def formula(self) -> str:
        """The loss in plain text, one line per definition; terms share the line of what is the same."""
        several = len(self.terms) > 1
        sums: list[str] = []
        defined: dict[tuple[object, ...], list[str]] = {}
        for number, term in enumerate(self.terms, start=1):
            loss, (z, s) = term.formula()
            loss = loss.replace("((-z))", "(-z)")
            sums.append(_numbered(loss, number) if several else loss)
            # z names s, and may leave its candidates to the term: only where both agree are two z the same.
            for key, text in (((z, s, term.candidates), z), ((s,), s)):
                name, _, value = (_numbered(text, number) if several else text).partition(" = ")
                *names, kept = defined.get(key, [value])
                defined[key] = [*names, name, kept]
        lines = [" = ".join(parts) for parts in defined.values()]
        sums += [
            extra.formula if extra.coefficient == 1.0 else f"{extra.coefficient:g} * [{extra.formula}]"
            for extra in self.extras
        ]
        written_out = " + ".join(sums).replace("+ -", "- ")
        return "\n".join([f"loss = {written_out}", *lines])

    def __call__(
        self, scores: Scores, labels: Labels, state: ObjectiveState | None = None
    ) -> ObjectiveOutput:
        """Loss of every prompt, not reduced.

        Args:
            scores: what the candidates score under policy and reference.
            labels: what the data say about them.
            state: running statistics and the other ranks; without one, statistics are those of this call.

        Raises:
            ConfigError: an input is missing, or of a kind the objective cannot read.
            ShapeError: shapes disagree.
        """
        check_call(self.name, scores, labels, state)
        self.require_suits(scores.likelihood)
        check_inputs(self.name, self.data, self.terms, self.needs, scores, labels)
        return evaluate(self.terms, self.extras, scores, labels, state)

    def __add__(self, other: "Objective") -> "Objective":
        """An objective with the terms of both."""
        if not isinstance(other, Objective):
            return NotImplemented
        data = self.data if self.data == other.data else None
        name = f"{self.name}+{other.name}"
        return Objective(name, self.terms + other.terms, self.extras + other.extras, data)

    def __radd__(self, other: object) -> "Objective":
        """So that `sum` of objectives works, which starts at 0."""
        return self if other == 0 else NotImplemented

    def __mul__(self, factor: int | float) -> "Objective":
        """Every term multiplied by `factor`."""
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        return replace(
            self,
            terms=tuple(term.scaled(float(factor)) for term in self.terms),
            extras=tuple(extra.scaled(float(factor)) for extra in self.extras),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: int | float) -> "Objective":
        """Every term divided by `divisor`."""
        if isinstance(divisor, bool) or not isinstance(divisor, int | float):
            return NotImplemented
        return self * (1.0 / divisor)

    def __str__(self) -> str:
        """Name and formula."""
        return "\n  ".join([f"{self.name}:", *self.formula.splitlines()])

    __repr__ = __str__


def _numbered(text: str, number: int) -> str:
    """`z` and `s` of one of several terms as `z1`, `s1`."""
    words = {"z": f"z{number}", "s": f"s{number}"}
    pieces: list[str] = []
    word = ""
    for letter in text + "\0":
        if letter.isalnum() or letter == "_":
            word += letter
            continue
        pieces.append(words.get(word, word))
        pieces.append(letter)
        word = ""
    return "".join(pieces)[:-1]


@dataclass(frozen=True)
class Registered:
    """A builder of the catalogue with its row.

    Args:
        builder: keyword-only hyperparameters to an `Objective`.
        row: the method row.
        sample: hyperparameters the conformance suite builds it with.
        equation: where in the paper the formula stands.
        allows: properties of the conformance suite it is known not to have, each with the reason.
    """

    builder: Callable[..., Objective]
    row: Method
    sample: Mapping[str, float | int | str | bool]
    equation: str = ""
    allows: Mapping[str, str] = field(default_factory=dict)


_REGISTRY: dict[str, Registered] = {}

# Loss types of other libraries whose name here differs.
_ELSEWHERE: Mapping[str, str] = {
    "sigmoid": "dpo(beta=...)",
    "sigmoid_norm": "dpo(beta=..., reduction='mean')",
    "robust": "robust_dpo(beta=..., label_smoothing=...)",
    "kto_pair": "kto_pair_legacy(beta=...)",
    "tpo-l": "triple_po_l(...)",
    "rpo": "rpo_sft(...) (supervised term), nemo_rpo_sq and kin (rewards), or rrpo",
    "diffusion_dpo": "dpo(beta=...): `diffusion_dpo` is the method of a run",
    "diffusion_kto": "kto(beta=...): `diffusion_kto` is the method of a run",
    "diffusion_simpo": "simpo(...): `diffusion_simpo` is the method of a run",
    "DPO": "dpo(beta=...)",
}


def _checked(name: str, data: DataKind, function: Callable[P, Objective]) -> Callable[P, Objective]:
    """The builder, with 5000 as good as 5000.0 for a float, what is no number refused, and its data noted."""
    floats = {
        key for key, given in inspect.signature(function).parameters.items() if given.annotation is float
    }

    @functools.wraps(function)
    def builder(*args: P.args, **kwargs: P.kwargs) -> Objective:
        for key in floats & kwargs.keys():
            value = kwargs[key]
            if isinstance(value, bool) or not isinstance(value, int | float):
                message = explain(f"{name} {key}", got=repr(value), expected="a number")
                raise HyperparameterError(message)
            kwargs[key] = float(value)
        built = function(*args, **kwargs)  # says more about its ranges than the next line
        for key in floats & kwargs.keys():
            if math.isinf(kwargs[key]):  # type: ignore[arg-type]
                raise HyperparameterError(
                    explain(f"{name} {key}", got=kwargs[key], expected="a finite number")
                )
        return replace(built, data=data)

    return builder


Published: TypeAlias = tuple[float | int | str | bool, Mark] | tuple[float | int | str | bool, Mark, str]
"""(value, where it is from) or (value, where it is from, note)."""

_PROPERTY: Mapping[Fixes, str] = {
    "label_noise": "robustness",
    "overfitting": "robustness",
    "displacement": "likelihood",
    "length": "length",
    "diversity": "diversity",
    "stability": "likelihood",
    "temperature": "calibration",
    "grounding": "grounding",
}
_FRAMEWORK: Mapping[Fixes, str] = {"exploration": "online", "objectives": "multi-objective"}
_DIVERGENCES = {"power": "forward KL or alpha-divergence", "js": "Jensen-Shannon divergence"}


def _taxonomy(built: Objective, data: DataKind, fixes: Fixes) -> Taxonomy:
    """Where an objective stands on the survey's axes, read off its parts."""
    feedback = {"pairs": "pairwise", "lists": "listwise", "unpaired": "pointwise"}[data]
    points = bool(built.terms) and all(term.structure.points for term in built.terms)
    inner = any(term.score.reduction.weights is not None for term in built.terms)
    shape = built.terms[0].score.shape.name if built.terms else "identity"
    constraint = _DIVERGENCES.get(shape, "reverse KL") if "reference" in built.needs else "none"
    return Taxonomy(
        data=("pointwise" if points else feedback) + (", token" if inner else ""),
        framework="supervised" if not built.terms else _FRAMEWORK.get(fixes, "offline"),
        constraint=constraint,
        model_property=_PROPERTY.get(fixes, "alignment"),
    )


def _refuses(built: Objective) -> dict[str, str]:
    reason = "; ".join(dict.fromkeys(built.tokens_only))
    return {"elbo": reason, "inversion": reason, "transition": reason} if reason else {}


def objective(
    name: str,
    *,
    title: str,
    year: int,
    sample: Mapping[str, float | int | str | bool],
    paper: str = "",
    equation: str = "",
    data: DataKind = "pairs",
    parity: tuple[str, ...] = (),
    fixes: Fixes,
    on_errors: OnErrors = "direct",
    status: Status = "formula",
    unverified: str = "",
    published: Mapping[str, Published] | None = None,
    symbolic: str = "",
    departures: tuple[str, ...] = (),
    official_code: str = "",
    taxonomy: Taxonomy | None = None,
    allows: Mapping[str, str] | None = None,
    rollout: str = "",
    link: str = "",
) -> Callable[[Callable[P, Objective]], Callable[P, Objective]]:
    """Register a builder under `name` and make its method row; returns the builder as it is.

    What the row says about needs, coupling and formula is read off the objective that `sample` builds.

    Args:
        name: unique, qualified where the literature collides.
        title: of the paper.
        year: of the first version.
        sample: typical hyperparameters, for the conformance suite and the printed formula.
        paper: arXiv id.
        equation: where in the paper the formula stands.
        data: pairs, lists or unpaired.
        parity: golden cases that pin it.
        fixes: what it mends, a key of `mmalign.methods.FIXES`.
        on_errors: how it takes to denoising errors, a key of `mmalign.methods.ON_ERRORS`.
        status: how far it is proven.
        unverified: for status "experimental": which part nobody could check.
        published: released values of hyperparameters, each (value, "paper" | "code" | "ours", note).
        symbolic: the preference as a formula of logic, where the literature gives one.
        departures: what we do differently from the official code, and why.
        official_code: repository and commit.
        taxonomy: the survey's axes.
        allows: conformance properties it does not have, with the reason.
        rollout: where candidates come from, "" for offline data.
        link: address of a source that is not on arXiv.
    """

    def register(function: Callable[P, Objective]) -> Callable[P, Objective]:
        builder = _checked(name, data, function)
        if name in _REGISTRY:
            raise ConfigError(explain(f"objective {name}", got="a second builder", expected="one per name"))
        built = builder(**sample)  # type: ignore[arg-type,call-arg]
        needs = built.needs
        row = Method(
            name=name,
            title=title,
            paper=paper,
            year=year,
            objective=name,
            reference="frozen" if "reference" in needs else "none",
            data=data,
            rollout=rollout,
            formula=built.formula,
            departures=departures,
            couples_rows=built.couples_rows,
            needs=needs,
            parity=parity,
            official_code=official_code,
            status=status,
            taxonomy=taxonomy or _taxonomy(built, data, fixes),
            fixes=fixes,
            on_errors=on_errors,
            refuses=_refuses(built),
            unverified=unverified,
            published={key: Default(*value) for key, value in (published or {}).items()},
            symbolic=symbolic,
            link=link,
        )
        _REGISTRY[name] = Registered(
            builder, row, MappingProxyType(dict(sample)), equation, MappingProxyType(dict(allows or {}))
        )
        return builder

    return register


def names() -> list[str]:
    """All registered objectives, sorted."""
    return sorted(_REGISTRY)


def registered(name: str) -> Registered:
    """Builder, row and sample of one objective.

    Raises:
        UnknownNameError: lists near and all names.
    """
    if name not in _REGISTRY:
        if name in _ELSEWHERE:
            message = explain("objective", got=name, expected=f"its name here: {_ELSEWHERE[name]}")
            raise UnknownNameError(message)
        raise unknown_name("objective", name, _REGISTRY)
    return _REGISTRY[name]


def row(name: str) -> Method:
    """The method row of one objective."""
    return registered(name).row


def signature(name: str) -> inspect.Signature:
    """The builder's signature: which hyperparameters there are and which have defaults."""
    return inspect.signature(registered(name).builder)


def build(name: str, **arguments: Any) -> Objective:
    """The objective called `name` with these hyperparameters.

    Raises:
        UnknownNameError: no such objective.
        HyperparameterError: an argument is unknown, missing or out of range.
    """
    builder, known = registered(name).builder, signature(name).parameters
    unknown = sorted(set(arguments) - set(known))
    missing = [
        key
        for key, given in known.items()
        if given.default is inspect.Parameter.empty and key not in arguments
    ]
    if unknown or missing:
        wanted = signature(name).replace(return_annotation=inspect.Signature.empty)
        wrong = [*(f"unknown {key}" for key in unknown), *(f"missing {key}" for key in missing)]
        raise HyperparameterError(
            explain(f"objective {name}", got=", ".join(wrong), expected=f"{name}{wanted}")
        )
    return builder(**arguments)

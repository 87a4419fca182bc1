"""The catalogue of objectives as text: what `mmalign methods NAME` adds to a row, and the generated page."""

import inspect
import re
from collections.abc import Iterable, Sequence

from mmalign import methods, objectives
from mmalign.cli.inputs import inputs, needs_cell
from mmalign.methods import FIXES, ON_ERRORS, Default, Method
from mmalign.methods import paper_link as link

__all__ = ["SYMBOLS", "hyperparameters", "likelihoods", "objective_row", "page", "parts"]

MARKS = {"paper": "paper", "code": "official code", "ours": "ours"}
SYMBOLS = (
    "W and L: the policy gives the chosen and the rejected answer; RW and RL the same for the reference; the "
    "loss sees the log-odds of the weighted models of the first formula against the second"
)
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*)$")
_LIKELIHOODS = ("tokens", "elbo", "inversion", "transition")


def objective_row(method: Method) -> Method | None:
    """The catalogue's row of the objective a method uses; None when it is no objective of scores."""
    return objectives.row(method.objective) if method.objective in objectives.names() else None


def _documented(name: str) -> dict[str, str]:
    """Argument -> what the builder's docstring says about it, on one line."""
    text = inspect.getdoc(objectives.registered(name).builder) or ""
    section = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    last = ""
    for line in section.splitlines():
        match = _ARGUMENT.match(line)
        if match:
            last = match[1]
            found[last] = match[2]
        elif last:
            found[last] = f"{found[last]} {line.strip()}"
    return found


def hyperparameters(method: Method) -> list[tuple[str, str, str, str]]:
    """(Name, default, released value with its source, meaning) of the objective's hyperparameters."""
    row = objective_row(method)
    if row is None:
        return []
    documented = _documented(row.name)
    return [
        (
            name,
            "required" if given.default is given.empty else f"default {_number(given.default)}",
            _released(row.published.get(name), documented.get(name, "")),
            documented.get(name, ""),
        )
        for name, given in objectives.signature(row.name).parameters.items()
    ]


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _released(default: Default | None, meaning: str) -> str:
    """The released value with its source; the source alone where the meaning names the value."""
    if default is None:
        return ""
    note = f" ({default.note})" if default.note else ""
    if re.search(rf"(?<![\w.]){re.escape(_number(default.value))} released", meaning):
        return f"{MARKS[default.mark]}{note}"
    return f"released: {_number(default.value)}, {MARKS[default.mark]}{note}"


def parts(method: Method) -> list[tuple[str, str, str]]:
    """(Term, part of the algebra, what was chosen), with the row's sample hyperparameters."""
    row = objective_row(method)
    if row is None:
        return []
    registered = objectives.registered(row.name)
    built = registered.builder(**registered.sample)
    lines: list[tuple[str, str, str]] = []
    for number, term in enumerate(built.terms, start=1):
        name = term.name or term.link.name
        lines += [
            (f"{number} {name}" if first else "", part, value)
            for first, (part, value) in zip([True] + [False] * 20, term.parts, strict=False)
        ]
    lines += [
        (f"{number} {extra.name}", "extra", f"{extra.coefficient:g} * [{extra.formula}]")
        for number, extra in enumerate(built.extras, start=len(built.terms) + 1)
    ]
    return lines


def likelihoods(method: Method) -> list[tuple[str, str]]:
    """(Likelihood, whether and how the objective makes sense on it)."""
    row = objective_row(method)
    if row is None:
        return []
    fine = {"tokens": "yes", "transition": "yes, on the log-density of a step"}
    return [
        (
            kind,
            f"refused: {row.refuses[kind]}"
            if kind in row.refuses
            else fine.get(kind, ON_ERRORS[row.on_errors]),
        )
        for kind in _LIKELIHOODS
    ]


_OUTSIDE = "Outside the loss: a rule beside an objective"
_PAGE_HEADINGS = ("method", "paper", "data", "needs", "denoising errors", "evidence")


def _evidence(row: Method) -> str:
    """How far the row is proven, then the golden cases that pin it or a part of it."""
    status = f"experimental: {row.unverified}" if row.status == "experimental" else row.status
    if not row.parity:
        return status
    cases = f"case{'s' if len(row.parity) > 1 else ''}"
    number = len(row.parity)
    return f"parity, {number} {cases}" if row.status == "parity" else f"{status}; {number} parity {cases}"


def _table(rows: Iterable[Method]) -> list[str]:
    lines = ["| " + " | ".join(_PAGE_HEADINGS) + " |", "|" + "---|" * len(_PAGE_HEADINGS)]
    lines += [
        "| "
        + " | ".join(
            (
                f"[`{row.name}`](#{row.name})",
                link(row),
                row.data,
                needs_cell(row),
                "refused" if "elbo" in row.refuses else row.on_errors.replace("_", " "),
                _evidence(row),
            )
        )
        + " |"
        for row in rows
    ]
    return lines


def _refusals(row: Method) -> dict[str, list[str]]:
    """Reason -> the likelihoods it holds for."""
    found: dict[str, list[str]] = {}
    for kind, reason in row.refuses.items():
        found.setdefault(reason, []).append(kind)
    return found


def _section(row: Method) -> list[str]:
    """One row whole, as Markdown."""
    lines = [
        f"### {row.name}",
        "",
        f"{row.title} ({link(row)})",
        "",
        "```text",
        *row.formula.splitlines(),
        "```",
        "",
    ]
    if row.function:
        lines.append(f"- function: `{row.function}`")
    for what, shape, meaning in inputs(row):
        lines.append(f"- input `{what}`{f' {shape}' if shape else ''}: {meaning}")
    for name, default, released, meaning in hyperparameters(row):
        facts = "; ".join(fact for fact in (default, released) if fact)
        lines.append(f"- `{name}` ({facts}): {meaning}")
    if row.symbolic:
        lines.append(f"- in logic: `{row.symbolic}`")
    lines += [f"- departure: {departure}" for departure in row.departures]
    lines += [f"- refused on {', '.join(kinds)}: {reason}" for reason, kinds in _refusals(row).items()]
    if row.unverified:
        lines.append(f"- unverified: {row.unverified}")
    if row.couples_rows:
        lines.append("- the loss of a row depends on its batch mates")
    evidence = [f"parity: {', '.join(row.parity)}"] if row.parity else []
    code = [f"code: {row.official_code}"] if row.official_code else []
    survey = row.taxonomy
    axes = f"{survey.data}; {survey.framework}; {survey.constraint}; {survey.model_property}"
    lines.append("- " + "; ".join([f"status {row.status}", *evidence, *code]))
    lines += [f"- survey's axes: {axes}", ""]
    return lines


def page(rows: Sequence[Method] | None = None) -> str:
    """The catalogue as Markdown: tables sorted by what a method fixes, then every row whole.

    Args:
        rows: of the objective registry; None takes all.
    """
    shown = [objectives.row(name) for name in objectives.names()] if rows is None else list(rows)
    others = [
        row
        for row in methods.rows()
        if rows is None and not row.likelihood and row.name not in objectives.names()
    ]
    functions = [row for row in others if not row.objective]
    outside = [row for row in others if row.objective]
    lines: list[str] = []
    for fixes, meaning in FIXES.items():
        group = [row for row in [*shown, *functions] if row.fixes == fixes]
        if group:
            lines += [f"## {meaning[0].upper()}{meaning[1:]}", "", *_table(group), ""]
    if outside:
        lines += [f"## {_OUTSIDE}", "", *_table(outside), ""]
    lines += ["## The denoising column", "", "| word | meaning |", "|---|---|"]
    lines += [f"| {kind.replace('_', ' ')} | {meaning} |" for kind, meaning in ON_ERRORS.items()]
    lines += ["| refused | needs probabilities of tokens: an error is none |", "", "## Every row whole", ""]
    for row in [*shown, *functions, *outside]:
        lines += _section(row)
    return "\n".join(lines).rstrip()

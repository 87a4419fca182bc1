"""The method table: every published method as one row, found by name.

Rows that combine an objective with a likelihood and a modality's numbers lie in this package, one file per
modality. A single formula of the objective catalogue carries its row in its decorator. The catalogue stands
on a higher floor, so it is found by name when the table is first read (torch, nothing above).
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.methods import audio, video
from mmalign.methods.row import FIXES, ON_ERRORS, Default, Mark, Method, Status, Taxonomy, View

__all__ = [
    "FIXES",
    "ON_ERRORS",
    "Default",
    "Mark",
    "Method",
    "Status",
    "Taxonomy",
    "View",
    "find",
    "markdown",
    "merge",
    "names",
    "paper_link",
    "rows",
    "runs",
]

_TABLES = (
    "mmalign.methods.image",
    "mmalign.methods.audio",
    "mmalign.methods.video",
    "mmalign.methods.segments",
    "mmalign.methods.vlm",
    "mmalign.methods.imitation",
    "mmalign.methods.text",
    "mmalign.methods.rewards",
)
_CATALOGUE = "mmalign.objectives"


@cache
def _table() -> Mapping[str, Method]:
    tables = [importlib.import_module(module).ROWS for module in _TABLES]
    catalogue = importlib.import_module(_CATALOGUE)
    rows = video.with_strengths(audio.with_strengths(row for table in tables for row in table))
    return merge(rows, [catalogue.row(name) for name in catalogue.names()])


def merge(of_modalities: Iterable[Method], of_catalogue: Iterable[Method]) -> Mapping[str, Method]:
    """One table by name. A modality's row stands for the bare objective of the same name: it says more.

    What such a row leaves open (formula, evidence, departures) it takes from the objective's own.

    Raises:
        ConfigError: two different rows share a name.
    """
    table: dict[str, Method] = {}
    for row in of_modalities:
        if row.name in table:
            raise _taken(row, table[row.name])
        table[row.name] = row
    for row in of_catalogue:
        known = table.setdefault(row.name, row)
        if known is row:
            continue
        if known.objective != row.name:
            raise _taken(row, known)
        table[row.name] = _completed(known, row)
    return MappingProxyType(table)


_OF_THE_OBJECTIVE = (
    *("formula", "departures", "needs", "parity", "official_code", "published", "symbolic"),
    *("refuses", "couples_rows"),
)


def _completed(row: Method, objective: Method) -> Method:
    """The row of a modality with what it leaves open from the row of its objective."""
    fields = Method.__dataclass_fields__
    names = [name for name in _OF_THE_OBJECTIVE if not getattr(row, name)]
    names += [name for name in ("fixes", "on_errors") if getattr(row, name) == fields[name].default]
    if row.taxonomy == Taxonomy():
        names.append("taxonomy")
    if row.status == fields["status"].default:
        names += ["status", "unverified"]
    missing = {name: getattr(objective, name) for name in names}
    changed = {name: value for name, value in missing.items() if value != getattr(row, name)}
    return replace(row, **changed) if changed else row


def _taken(row: Method, by: Method) -> ConfigError:
    message = explain(
        f"method {row.name}",
        got="a second row",
        expected="one row per name",
        do=f"It is taken by {by.title!r} (objective {by.objective or by.function}); choose a qualified name.",
    )
    return ConfigError(message)


def names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(_table())


def rows() -> Iterator[Method]:
    """All rows: what has defaults for a family first, then the bare objectives; by name inside each."""
    return iter(sorted(_table().values(), key=lambda row: (not row.likelihood, row.name)))


def runs() -> list[Method]:
    """The rows a training run names: an objective on a modality's likelihood, with defaults per family."""
    return [row for row in rows() if row.likelihood]


def find(name: str) -> Method:
    """The row called `name`.

    Raises:
        UnknownNameError: lists near and all names.
    """
    table = _table()
    if name not in table:
        raise unknown_name("method", name, table)
    return table[name]


_HEADINGS = ("method", "paper", "data", "reference", "objective", "likelihood", "families", "status")


def paper_link(method: Method) -> str:
    """`[2311.12908](https://arxiv.org/abs/2311.12908)`, or the year, linked where a row says to what."""
    if method.paper:
        return f"[{method.paper}](https://arxiv.org/abs/{method.paper})"
    return f"[{method.year}]({method.link})" if method.link else str(method.year)


def cells(method: Method) -> tuple[str, ...]:
    """The table's cells of one row, as plain text, in the order of `_HEADINGS`."""
    families = ", ".join(sorted(family for family in method.defaults if family != "*"))
    return (
        method.name,
        method.paper or str(method.year),
        method.data,
        method.reference,
        method.objective or method.function.rpartition(".")[2],
        method.likelihood or "any",
        families or "any",
        method.status,
    )


def headings() -> tuple[str, ...]:
    """The table's column names."""
    return _HEADINGS


def markdown(methods: Iterable[Method] | None = None) -> str:
    """The table as Markdown, no newline at the end; what the README embeds between its `methods` markers.

    Args:
        methods: rows to print (default: all).
    """
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
    for method in rows() if methods is None else methods:
        name, _, *rest = cells(method)
        lines.append("| " + " | ".join([f"`{name}`", paper_link(method), *rest]) + " |")
    return "\n".join(lines)

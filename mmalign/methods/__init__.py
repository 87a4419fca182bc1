"""The method table: every published method as one row, found by name.

Rows that combine an objective with a likelihood and a modality's defaults lie in this package, one file per
modality. A single formula of the objective catalogue carries its row in its decorator, which hands it to
`register`. Reading the table therefore loads the catalogue (torch, nothing above).
"""

import importlib
from collections.abc import Iterable, Iterator

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.methods.row import Default, Mark, Method, Status, Taxonomy

__all__ = [
    "Default",
    "Mark",
    "Method",
    "Status",
    "Taxonomy",
    "find",
    "markdown",
    "names",
    "register",
    "rows",
]

_ROWS: dict[str, Method] = {}

# Modules whose import registers rows. They are named, not imported: the catalogue stands on a higher floor.
_SOURCES = ("mmalign.methods.image", "mmalign.objectives")


def register(*methods: Method) -> None:
    """Add rows to the table; the same row may come twice, another one under a taken name may not.

    Raises:
        ConfigError: two different rows share a name.
    """
    for method in methods:
        known = _ROWS.setdefault(method.name, method)
        if known != method:
            message = explain(
                f"method {method.name}",
                got="a second row",
                expected="one row per name",
                do=f"It is taken by {known.title!r}; choose a qualified name.",
            )
            raise ConfigError(message)


def _load() -> dict[str, Method]:
    for module in _SOURCES:
        importlib.import_module(module)
    return _ROWS


def names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(_load())


def rows() -> Iterator[Method]:
    """All rows: what has defaults for a family first, then the bare objectives; by name inside each."""
    return iter(sorted(_load().values(), key=lambda row: (not row.likelihood, row.name)))


def find(name: str) -> Method:
    """The row called `name`.

    Raises:
        UnknownNameError: lists near and all names.
    """
    table = _load()
    if name not in table:
        raise unknown_name("method", name, table)
    return table[name]


_HEADINGS = ("method", "paper", "data", "reference", "objective", "likelihood", "families", "status")


def paper_link(method: Method) -> str:
    """`[2311.12908](https://arxiv.org/abs/2311.12908)`, or the year when there is no arXiv id."""
    return f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper else str(method.year)


def cells(method: Method) -> tuple[str, ...]:
    """The table's cells of one row, as plain text, in the order of `_HEADINGS`."""
    families = ", ".join(sorted(family for family in method.defaults if family != "*"))
    return (
        method.name,
        method.paper or str(method.year),
        method.data,
        method.reference,
        method.objective,
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

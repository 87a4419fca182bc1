"""Method and family tables for the terminal."""

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign import methods, registry
from mmalign.methods import Default, Method

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["print_families", "print_methods"]

_MARKS = {
    "paper": "stated in the paper",
    "code": "taken from the official code",
    "ours": "chosen by us",
}


def print_methods(name: str | None = None, markdown: bool = False) -> None:
    """Print the method table, or one row whole.

    Args:
        name: method to print whole; None prints the table.
        markdown: print the table as the README embeds it.

    Raises:
        UnknownNameError: no method is called `name`.
    """
    if markdown:
        print(methods.markdown(None if name is None else [methods.find(name)]))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if name is None:
        console.print(_method_table(methods.rows()))
        console.print("\nOne of them whole: mmalign methods NAME", style="dim")
    else:
        _print_method(console, methods.find(name))


def _method_table(rows: Iterable[Method]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in methods.headings():
        table.add_column(heading, no_wrap=heading == "method", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in methods.cells(row)))
    return table


def _print_method(console: "Console", method: Method) -> None:
    """One row whole: what it is, where it comes from, what we changed, what numbers to use."""
    from rich.padding import Padding
    from rich.text import Text

    def section(title: str, lines: Iterable[str]) -> None:
        shown = [line for line in lines if line]
        if shown:
            console.print(Text(f"\n{title}", style="bold"))
            for line in shown:
                console.print(Padding(Text(line), (0, 0, 0, 2)))

    console.print(Text(method.name, style="bold"), Text(method.title))
    section(
        "parts",
        [
            f"data        {method.data}{f', from {method.rollout}' if method.rollout else ''}",
            f"likelihood  {method.likelihood or 'any'}",
            f"reference   {method.reference}",
            f"objective   {_call(method)}",
            f"family      {', '.join(sorted(set(method.defaults) - {'*'})) or 'any'}",
        ],
    )
    section("formula", method.formula.splitlines())
    section("source", _source(method))
    section("departures", [f"- {departure}" for departure in method.departures] or ["none"])
    for family in [*sorted(set(method.defaults) - {"*"})] or (["*"] if method.defaults else []):
        section(
            f"defaults for {'every family' if family == '*' else family}",
            _defaults(method.defaults_for(family)),
        )
    section("status", [_status(method)])
    if method.couples_rows:
        section(
            "note",
            ["The loss of a row depends on the rows beside it: the batch is part of the method."],
        )
    taxonomy = method.taxonomy
    section(
        "taxonomy",
        [
            f"data {taxonomy.data}, framework {taxonomy.framework}, constraint {taxonomy.constraint}, "
            f"model property {taxonomy.model_property}"
        ],
    )


def _call(method: Method) -> str:
    """`dpo(beta=...)`: the objective with the arguments that define the method."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in method.objective_arguments.items())
    return f"{method.objective}({arguments})"


def _source(method: Method) -> list[str]:
    paper = (
        f"https://arxiv.org/abs/{method.paper} ({method.year})"
        if method.paper
        else f"{method.year}, not on arXiv"
    )
    return [f"paper  {paper}", f"code   {method.official_code}" if method.official_code else ""]


def _defaults(values: dict[str, Default]) -> list[str]:
    """One line per setting: name, value, evidence."""
    if not values:
        return []
    names = max(map(len, values))
    numbers = max(len(str(default.value)) for default in values.values())
    return [
        f"{name:<{names}}  {default.value!s:<{numbers}}  {_MARKS[default.mark]}"
        f"{f': {default.note}' if default.note else ''}"
        for name, default in values.items()
    ]


def _status(method: Method) -> str:
    meaning = {
        "parity": "equals official numbers",
        "world": "equals official numbers where there are any, and improves its toy world",
        "trained": "also trained on a real model",
        "experimental": "some formula or constant could not be verified",
    }[method.status]
    cases = f"; parity cases: {', '.join(method.parity)}" if method.parity else ""
    return f"{method.status}: {meaning}{cases}"


def print_families(name: str | None = None) -> None:
    """Print the model families with what each says in one line, or one family's documentation whole.

    Reads the modules' source; imports none of them.

    Raises:
        UnknownNameError: no family is called `name`.
    """
    if name is not None:
        print(_documentation("families", name) or f"{name}: {registry.location('families', name)}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("family", no_wrap=True)
    table.add_column("models")
    for family in registry.names("families"):
        first = _documentation("families", family).partition("\n")[0]
        table.add_row(Text(family), Text(first or registry.location("families", family)))
    console = Console(highlight=False)
    console.print(table)
    console.print("\nOne of them whole: mmalign families NAME", style="dim")


def _documentation(kind: str, name: str) -> str:
    """The docstring of the module that provides a name, read without importing it; empty when it has none."""
    module = registry.location(kind, name).partition(":")[0]
    package = importlib.util.find_spec(module.partition(".")[0])
    if package is None or not package.submodule_search_locations:
        return ""
    path = Path(package.submodule_search_locations[0], *module.split(".")[1:])
    for source in (path.with_suffix(".py"), path / "__init__.py"):
        if source.is_file():
            return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return ""

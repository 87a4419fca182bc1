"""Method and family tables for the terminal."""

import ast
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign import methods, registry
from mmalign.cli.card_sections import print_section
from mmalign.errors import ConfigError, explain
from mmalign.files import atomic_write
from mmalign.methods import Default, Method

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["print_families", "print_methods"]

_MARKS = {"paper": "paper", "code": "official code", "ours": "ours"}

# Columns that fit a terminal of 80; `mmalign methods NAME` shows the rest.
_TERMINAL = ("method", "paper", "data", "reference", "status")

_FIRST = ("beta", "learning_rate", "effective_batch", "steps", "warmup_steps", "optimizer", "resolution")


def _page() -> str:
    from mmalign.cli.catalogue import page

    return page()


# What stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` of a document.
_GENERATED: Mapping[str, Callable[[], str]] = {
    "methods": lambda: methods.markdown(methods.runs()),
    "catalogue": _page,
}


def print_methods(name: str | None = None, markdown: bool = False, update: Path | None = None) -> None:
    """Print the method table, or one row whole.

    Args:
        name: method to print whole; None prints the table.
        markdown: print the table as the README embeds it.
        update: file whose table is renewed instead of printing one.

    Raises:
        UnknownNameError: no method is called `name`.
        ConfigError: the file has no markers, or cannot be read.
    """
    if update is not None:
        update_markdown(update)
        return
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


def update_markdown(path: Path) -> None:
    """Renew what stands between the markers of a Markdown file: the `methods` table, the `catalogue`.

    Raises:
        ConfigError: the file has no markers, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"methods --update: {path} cannot be read ({error.strerror})."
        raise ConfigError(message) from error
    renewed = []
    for name, make in _GENERATED.items():
        before, begin, rest = text.partition(f"<!-- {name}:begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}:end -->")
        if begin and end:
            text = f"{before}{begin}{make()}\n{end}{after}"
            renewed.append(name)
    if not renewed:
        expected = " or ".join(
            f"the lines <!-- {name}:begin --> and <!-- {name}:end -->" for name in _GENERATED
        )
        message = explain(
            f"methods --update: {path}",
            got="a file without markers",
            expected=expected,
            do="Write them where the table belongs.",
        )
        raise ConfigError(message)
    atomic_write(path, text)
    print(f"{path}: {', '.join(renewed)} renewed")


def _method_table(rows: Iterable[Method]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    listed = list(rows)
    for heading in _TERMINAL:
        width = max(len(row.name) for row in listed) if heading == "method" else None
        table.add_column(heading, no_wrap=True, min_width=width)
    for row in listed:
        shown = dict(zip(methods.headings(), methods.cells(row), strict=True))
        table.add_row(*(Text(shown[heading]) for heading in _TERMINAL))
    return table


def _print_method(console: "Console", method: Method) -> None:
    """One row whole: what it is, where it comes from, what we changed, what numbers to use."""
    from rich.text import Text

    from mmalign.cli.catalogue import SYMBOLS, hyperparameters, likelihoods, objective_row, parts
    from mmalign.cli.inputs import inputs

    section = partial(print_section, console)
    families = sorted(set(method.defaults) - {"*"})
    row = objective_row(method)
    taxonomy = method.taxonomy
    console.print(Text(method.name, style="bold"))
    console.print(Text(method.title))
    section(
        "parts",
        [
            ("data", f"{method.data}, from {method.rollout}" if method.rollout else method.data),
            ("likelihood", method.likelihood or "any"),
            ("reference", method.reference),
            ("objective", _call(method)),
            *([("outside it", method.function)] if method.objective and method.function else []),
            ("families", ", ".join(families) or "any"),
        ],
    )
    section("formula", [(line,) for line in method.formula.splitlines()])
    section("inputs", [(what, f"{shape}: {text}" if shape else text) for what, shape, text in inputs(method)])
    section("terms, with sample values", parts(method))
    facts = [
        (name, "; ".join(fact for fact in (default, released) if fact), meaning)
        for name, default, released, meaning in hyperparameters(method)
    ]
    section("hyperparameters", [(name, f"{meaning} [{fact}]") for name, fact, meaning in facts])
    section("likelihoods", likelihoods(method))
    section("source", _source(method))
    section("departures", [("-", departure) for departure in method.departures] or [("none",)])
    for family in families or (["*"] if method.defaults else []):
        section(
            "defaults for every family" if family == "*" else f"defaults for {family}",
            _defaults(method.defaults_for(family)),
        )
    fixes = (method if method.function or row is None else row).fixes
    section("fixes", [(methods.FIXES[fixes],)])
    if row is not None and row.symbolic:
        section("in logic", [(row.symbolic,), (SYMBOLS,)])
    section("status", [(_status(method),)])
    if method.couples_rows:
        section(
            "note", [("The loss of a row depends on the rows beside it: the batch is part of the method.",)]
        )
    section(
        "taxonomy",
        [
            ("data", taxonomy.data),
            ("framework", taxonomy.framework),
            ("constraint", taxonomy.constraint),
            ("model property", taxonomy.model_property),
        ],
    )


def _call(method: Method) -> str:
    """`dpo(label_smoothing=0.1)`: the objective with the arguments that define the method."""
    if not method.objective:
        return f"{method.function}, no objective of scores"
    arguments = ", ".join(f"{name}={value!r}" for name, value in method.objective_arguments.items())
    return f"{method.objective}({arguments})"


def _source(method: Method) -> list[tuple[str, ...]]:
    paper = (
        f"https://arxiv.org/abs/{method.paper} ({method.year})"
        if method.paper
        else f"{method.link or 'not on arXiv'} ({method.year})"
    )
    code = [("code", method.official_code)] if method.official_code else []
    return [("paper", paper), *code]


def _defaults(values: dict[str, Default]) -> list[tuple[str, ...]]:
    """Setting, value, where the value comes from, remark; what decides a run comes first."""

    def place(name: str) -> tuple[int, str]:
        return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)

    return [
        (name, _number(values[name].value), _MARKS[values[name].mark], values[name].note)
        for name in sorted(values, key=place)
    ]


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and value < 1 else str(value)


def _status(method: Method) -> str:
    meaning = {
        "parity": "equals official numbers",
        "world": "equals official numbers where there are any, and improves its toy world",
        "trained": "also trained on a real model",
        "formula": "the formula as published, held by a plain re-statement; no official numbers",
        "experimental": f"not verified: {method.unverified}",
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

"""What `mmalign benchmarks` prints: the table of all benchmarks, or one of them whole."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from mmalign import registry
from mmalign.cli.card_sections import print_section
from mmalign.errors import MmalignError
from mmalign.evals.base import Benchmark

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_benchmarks", "readable_benchmarks"]

_KINDS = {"text": "answers", "image": "pictures", "video": "clips", "audio": "sounds"}
_GIVEN = ("judge", "reward")
"""Tools without a default: the choice moves every number."""


def readable_benchmarks(names: Iterable[str]) -> tuple[dict[str, Benchmark], dict[str, str]]:
    """(Benchmarks by name, why the others cannot be read): one broken plug-in does not hide the rest."""
    found: dict[str, Benchmark] = {}
    broken: dict[str, str] = {}
    for name in names:
        try:
            found[name] = registry.find("benchmarks", name)
        except (ImportError, AttributeError, MmalignError) as error:
            broken[name] = f"{type(error).__name__}: {error}"
    return found, broken


def print_benchmarks(name: str | None = None) -> None:
    """Print the table of benchmarks, or one of them whole.

    Args:
        name: the one; None prints the table.

    Raises:
        UnknownNameError: no benchmark has this name.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if name is not None:
        _print_one(console, name, registry.find("benchmarks", name))
        return
    found, broken = readable_benchmarks(registry.names("benchmarks"))
    _print_table(console, found)
    for one, reason in broken.items():
        console.print(f"{one}: cannot be imported ({reason})", style="red", markup=False)
    console.print(
        "\nOne of them whole: mmalign benchmarks NAME. To run it: mmalign benchmark NAME.", style="dim"
    )


def _print_table(console: "Console", found: dict[str, Benchmark]) -> None:
    """A line per benchmark, and below it what it measures."""
    from rich.padding import Padding
    from rich.text import Text

    width = max((len(name) for name in found), default=9)
    console.print(Text(f"{'benchmark':<{width}}  {'paper':<12}  tools", style="bold"))
    previous = ""
    for name, one in sorted(found.items(), key=lambda pair: (list(_KINDS).index(pair[1].produces), pair[0])):
        if one.produces != previous:
            console.print(Text(f"\nof {_KINDS[one.produces]}", style="bold"))
            previous = one.produces
        console.print(Text(f"{name:<{width}}  {one.paper or '-':<12}  {', '.join(one.tools) or '-'}"))
        console.print(Padding(Text(one.title), (0, 0, 0, 4)))


def _print_one(console: "Console", name: str, one: Benchmark) -> None:
    """One benchmark: what it needs, how it is run, and how far its numbers are the official ones."""
    from rich.padding import Padding
    from rich.text import Text

    section = partial(print_section, console)
    console.print(Text(name, style="bold"))
    console.print(Text(one.title))
    section("models make", [(_KINDS[one.produces], "")])
    # Names of files may be as long as a line: they stand above where they come from.
    if one.files:
        console.print(Text("\nfiles (none are shipped)", style="bold"))
        for file, source in one.files.items():
            console.print(Padding(Text(file), (0, 0, 0, 2)))
            console.print(Padding(Text(source, style="dim"), (0, 0, 0, 6)))
    section(
        "tools",
        [
            (tool, f"--tool {tool}=..., your choice" if tool in _GIVEN else "loaded by default")
            for tool in one.tools
        ],
    )
    section("options", list(one.options.items()))
    section("protocol", [(key, str(value)) for key, value in one.protocol.items()])
    section("departures", [("-", text) for text in one.departures])
    section("licence of the data", [(one.licence, "")])
    section(
        "source",
        [
            *([("paper", f"https://arxiv.org/abs/{one.paper}")] if one.paper else []),
            *([("code", one.official_code)] if one.official_code else []),
        ],
    )
    console.print(Text("\nrun", style="bold"))
    console.print(f"  {_example(name, one)}", soft_wrap=True, markup=False)


def _example(name: str, one: Benchmark) -> str:
    """A command line that fits the benchmark."""
    tools = "".join(f" --tool {tool}=..." for tool in one.tools if tool in _GIVEN)
    if one.produces == "text":
        return f"mmalign benchmark {name} --data DIR --answers base=FILE --answers tuned=FILE{tools}"
    if "results" in one.options:
        return f"mmalign benchmark {name} --data DIR --answers base=RESULTS --answers tuned=RESULTS"
    return f"mmalign benchmark {name} --data DIR --model base=HUB_ID --model tuned=RUN{tools}"

"""The sections of which the cards of methods, rewards and benchmarks are made, in a terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_section"]


def print_section(console: "Console", title: str, lines: Iterable[tuple[str, ...]]) -> None:
    """Print lines of equally many cells under a title; nothing at all where there are none.

    Args:
        console: where to.
        title: in bold.
        lines: cells; the last one of a line is folded.
    """
    from rich.table import Table
    from rich.text import Text

    shown = list(lines)
    if not shown:
        return
    console.print(Text(f"\n{title}", style="bold"))
    grid = Table.grid(padding=(0, 2))
    for column in range(len(shown[0]) + 1):
        grid.add_column(no_wrap=column < len(shown[0]), overflow="fold")
    for line in shown:
        grid.add_row("", *(Text(cell) for cell in line))
    console.print(grid)

"""Bars of the stages of a pair maker, on standard error."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

__all__ = ["print_made", "stage_bars"]


@contextlib.contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A function of (stage, done, total) that draws a bar per stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield told


def print_made(rows: Path, counts: Mapping[str, int]) -> None:
    """Say what was written, what was left out, and how to look at it."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()) if reason != "rows")
    print(f"{rows}: {counts['rows']} rows ({left_out or 'nothing left out'}), card.yaml")
    if counts.get("unanswered"):
        print(
            f"{counts['unanswered']} got no answer this time (why: card.yaml): run the same command again, "
            "which asks for these alone"
        )
    print(f"check them: mmalign data check {rows}")

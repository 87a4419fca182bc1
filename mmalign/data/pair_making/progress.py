"""Bars of the stages of a pair maker, on standard error."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

__all__ = ["print_made", "stage_bars"]

_MADE = ("clips", "stretches")
_NOTED = (
    "sides_changed",
    "majority_tie",
    "opposite_stretches",
    "stretches_without_verdict",
    "tie_for_best",
    "tie_for_worst",
)
"""Counts of what stands in the rows, or decided between them."""


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
    """Say what was written, what was left out, and how to look at it.

    Args:
        rows: the file.
        counts: of rows, of what they were made of (`clips`, `stretches`), of what happened, and of what was
            left out by reason. What is 0 is not said.
    """
    there = {name: count for name, count in sorted(counts.items()) if count}
    made = "".join(f", {there[name]} {name}" for name in _MADE if name in there)
    noted = "".join(f", {there[name]} {name}" for name in _NOTED if name in there)
    kept = {"rows", *_MADE, *_NOTED}
    left_out = ", ".join(f"{count} {reason}" for reason, count in there.items() if reason not in kept)
    said = f"left out: {left_out}" if left_out else "nothing left out"
    print(f"{rows}: {counts['rows']} rows{made}{noted} ({said}), card.yaml")
    if counts.get("unanswered"):
        print(
            f"{counts['unanswered']} got no answer this time (why: card.yaml): run the same command again, "
            "which asks for these again"
        )
    print(f"check them: mmalign data check {rows}")

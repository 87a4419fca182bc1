"""`mmalign demo`: align a toy world, compare with the base, write report.html. What all worlds share.

Every stage is the real one: a file of pairs, the data readers, a recipe, the training loop, and both models'
answers to what neither has seen. A world brings its own content as a `Demo`. Nothing heavy is imported before
the first line is printed.
"""

import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.table import Table

from mmalign.errors import ConfigError, explain

if TYPE_CHECKING:
    from mmalign.toy.comparison import Interval
    from mmalign.toy.report import Report
    from mmalign.train.config import ResolvedRun
    from mmalign.train.run import RunResult

__all__ = [
    "WORLDS",
    "Clock",
    "Demo",
    "fixed_threads",
    "free_folder",
    "main",
    "recipe_path",
    "run_demo",
    "versions",
    "where_time_went",
]

WORLDS: Mapping[str, str] = {
    "images": "mmalign.toy.image_demo",
    "vlm": "mmalign.toy.vlm_demo",
    "audio": "mmalign.toy.audio_demo",
    "video": "mmalign.toy.video_demo",
}
"""Name of a world on the command line, and the module whose `main` demonstrates it."""


@runtime_checkable
class Judged(Protocol):
    """Base and aligned compared on the same things."""

    def outcomes(self) -> tuple[int, int, int]: ...

    def win_rate(self) -> "Interval": ...


JudgedT = TypeVar("JudgedT", bound=Judged)


@dataclass
class Clock:
    """Seconds per stage, in order.

    Args:
        console: where a stage says what it does while it lasts; None keeps quiet.
        seconds: so far.
    """

    console: Console | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, status: str = "") -> Iterator[None]:
        """Add the time inside to a stage.

        Args:
            name: of the stage, in the report.
            status: what the console says meanwhile.
        """
        started = time.perf_counter()
        shown: AbstractContextManager[Any] = nullcontext()
        if status and self.console is not None:
            shown = self.console.status(status)
        try:
            with shown:
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Demo(ABC, Generic[JudgedT]):
    """What a world brings to its demo; `run_demo` does the rest.

    Attributes:
        command: that runs it.
        promise: what it does, in half a sentence.
        duration: how long that takes, and what it needs.
        num_threads: of torch; another number changes the rounding of sums, and with it the report.
        libraries: modules whose loading is a stage of its own.
        packages: whose versions the report names.
    """

    command: ClassVar[str]
    promise: ClassVar[str]
    duration: ClassVar[str]
    num_threads: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]]

    recipe: str
    num_pairs: int
    overrides: tuple[str, ...]

    @abstractmethod
    def stages(self, report: Path) -> Sequence[str]:
        """What will be done, a line each; the last one writes `report`."""

    @abstractmethod
    def base(self) -> Path:
        """Folder of the base model."""

    @abstractmethod
    def align(self, run: "ResolvedRun", home: Path, seed: int, clock: Clock) -> "RunResult":
        """Write `home`/pairs.parquet and train."""

    @abstractmethod
    def compare(self, result: "RunResult", seed: int, clock: Clock) -> JudgedT:
        """Both models on what neither has seen."""

    @abstractmethod
    def settings(self) -> Mapping[str, str]:
        """Settings of the report that no other world has."""

    @abstractmethod
    def results(self, comparison: JudgedT) -> Sequence[tuple[str, tuple[float, float], "Interval | None"]]:
        """Rows of the closing table: name, base and aligned, the change where it has an interval."""

    @abstractmethod
    def numbers(self, comparison: JudgedT) -> dict[str, Any]:
        """The report's numbers for programs."""

    @abstractmethod
    def render(self, report: "Report[JudgedT]") -> str:
        """The page as HTML text."""

    @abstractmethod
    def commands(self) -> Sequence[tuple[str, str]]:
        """What to run next: explanation and command."""

    @abstractmethod
    def next_step(self) -> tuple[str, str]:
        """The one of them that the console names."""

    def write_more(self, comparison: JudgedT, home: Path) -> None:
        """Write what the folder holds besides page and numbers."""


def main(world: str = "images", output: Path = Path("runs/demo"), seed: int = 0) -> int:
    """Run a world's demo and print what came of it. Returns 0.

    Args:
        world: one of `WORLDS`.
        output: folder to write; where it holds something already, the next free name is taken.
        seed: of everything that is drawn.

    Raises:
        ConfigError: another world, the recipe is not installed, or `output` is a file.
    """
    if world not in WORLDS:
        raise ConfigError(explain("demo", got=world, expected=" or ".join(WORLDS)))
    done: int = importlib.import_module(WORLDS[world]).main(output, seed)
    return done


def run_demo(demo: Demo[JudgedT], output: Path, seed: int) -> int:
    """Align, compare, write report.html and result.json, print what came of it. Returns 0.

    Args:
        demo: what is done.
        output: folder to write; where it holds something already, the next free name is taken.
        seed: of everything that is drawn.

    Raises:
        ConfigError: the recipe is not installed, or `output` is a file.
    """
    home = free_folder(Path(output))
    console = Console(highlight=False, soft_wrap=True)
    _announce(console, demo, home)
    clock = Clock(console)
    with clock.stage("loading libraries"):
        for name in demo.libraries:
            importlib.import_module(name)
    with fixed_threads(demo.num_threads):
        run = _resolve(demo, home, seed)
        result = demo.align(run, home, seed, clock)
        comparison = demo.compare(result, seed, clock)
    with clock.stage("writing the report"):
        _write_report(demo, run, result, comparison, home, clock.seconds)
    _conclude(console, demo, comparison, home, clock.seconds)
    return 0


def _announce(console: Console, demo: Demo[Any], home: Path) -> None:
    console.print(f"[bold]{demo.command}[/]: {demo.promise}\n")
    for number, line in enumerate(demo.stages(home / "report.html"), start=1):
        console.print(f"  {number}. {line}", markup=False)
    console.print(f"\n{demo.duration}\n")


def _resolve(demo: Demo[Any], home: Path, seed: int) -> "ResolvedRun":
    """The recipe with this demo's model, data, folder and seed."""
    from mmalign.train.config import load_run

    extra = {
        "model": {"source": str(demo.base())},
        "data": {"source": str(home / "pairs.parquet")},
        "train": {"output": str(home / "run"), "seed": seed},
    }
    return load_run(recipe_path(demo.recipe), demo.overrides, extra=extra)


def _write_report(
    demo: Demo[JudgedT],
    run: "ResolvedRun",
    result: "RunResult",
    comparison: JudgedT,
    home: Path,
    seconds: Mapping[str, float],
) -> None:
    from mmalign.files import atomic_write, write_json
    from mmalign.toy.report import Report

    report = Report(
        comparison=comparison,
        records=result.records,
        verdict=result.verdict,
        settings=_settings(demo, run, result),
        seconds=dict(seconds),
        commands=demo.commands(),
        versions=versions("torch", *demo.packages),
    )
    atomic_write(home / "report.html", demo.render(report))
    demo.write_more(comparison, home)
    write_json(home / "result.json", demo.numbers(comparison))


def _settings(demo: Demo[Any], run: "ResolvedRun", result: "RunResult") -> dict[str, str]:
    config = run.config
    arguments = ", ".join(
        f"{name} {value if isinstance(value, str) else format(value, 'g')}"
        for name, value in run.objective_arguments.items()
    )
    return {
        "method": f"{run.method.name} ({arguments})",
        "reference": "the same network with its adapters off",
        "preference pairs": str(demo.num_pairs),
        "adapter": f"LoRA rank {config.adapter.rank}, {result.trainables.count:,} trained weights",
        "learning rate": f"{config.train.learning_rate:g}, {config.train.schedule}",
        "optimiser steps": str(result.steps),
        "pairs per step": str(config.train.batch_size * config.train.accumulation),
        **demo.settings(),
        "seed": str(config.train.seed),
        "threads": str(demo.num_threads),
        "recipe": demo.recipe,
    }


def _conclude(
    console: Console, demo: Demo[JudgedT], comparison: JudgedT, home: Path, seconds: Mapping[str, float]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "base", "aligned", "change", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for title, (before, after), gain in demo.results(comparison):
        change = after - before if gain is None else gain.value
        spread = "" if gain is None else f"{gain.low:+.3f} to {gain.high:+.3f}"
        table.add_row(title, f"{before:.3f}", f"{after:.3f}", f"{change:+.3f}", spread)
    rate = comparison.win_rate()
    won, tied, lost = comparison.outcomes()
    console.print()
    console.print(
        f"[bold]win rate {rate.value:.1%}[/]  (95 % interval {rate.low:.1%} to {rate.high:.1%}; "
        f"won {won}, tied {tied}, lost {lost} of {won + tied + lost})\n"
    )
    console.print(table)
    console.print("\n" + where_time_went(seconds), markup=False)
    console.print(f"report: {home / 'report.html'}", markup=False)
    explanation, command = demo.next_step()
    console.print(f"\n{explanation}\n  {command}", markup=False)


# --- parts for other programs -------------------------------------------------------------------------------


def recipe_path(name: str) -> Path:
    """The file of a recipe, in the wheel's data or in the checkout.

    Raises:
        ConfigError: it is in neither.
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / "_recipes", package.parent):
        if (root / name).is_file():
            return root / name
    message = explain(
        "demo",
        got=f"an mmalign package at {package} without {name}",
        expected="an installed wheel or a checkout",
        do="Install again: pip install mmalign.",
    )
    raise ConfigError(message)


def free_folder(wanted: Path) -> Path:
    """`wanted` if it is empty or not there, else the first free of `wanted`-2, `wanted`-3, ...

    So that a demo run again overwrites nothing.

    Raises:
        ConfigError: it is a file.
    """
    number, folder = 1, wanted
    while folder.exists():
        if not folder.is_dir():
            message = explain(f"demo --output {folder}", got="a file", expected="a folder, or a new path")
            raise ConfigError(message)
        if not any(folder.iterdir()):
            break
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


@contextmanager
def fixed_threads(num: int) -> Iterator[None]:
    """A fixed number of threads inside, so that the same seed gives the same report on one machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(num, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def versions(*packages: str) -> dict[str, str]:
    """Versions of mmalign and of packages."""
    from importlib.metadata import version

    from mmalign import __version__

    return {"mmalign": __version__} | {name: version(name) for name in packages}


def where_time_went(seconds: Mapping[str, float]) -> str:
    """Seconds per stage in one line."""
    parts: Sequence[str] = [f"{name} {value:.0f}" for name, value in seconds.items() if value >= 0.5]
    return f"{sum(seconds.values()):.0f} s: {', '.join(parts)}"

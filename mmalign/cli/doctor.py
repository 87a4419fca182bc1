"""`mmalign doctor`: prints what `doctor_checks` finds, and ends with 1 where something has to be mended."""

import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign import __version__, rewards
from mmalign.cli.doctor_checks import (
    Device,
    Library,
    ReferenceCheck,
    RewardState,
    devices,
    libraries,
    offline,
    reward_state,
    verify,
)
from mmalign.cli.reward_cards import readable_bytes, readable_cards
from mmalign.errors import unknown_name

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Report", "examine", "main"]


@dataclass(frozen=True)
class Report:
    """Everything doctor found.

    Args:
        libraries: dependencies, required ones first.
        devices: accelerators, then the processor.
        rewards: state of those asked about.
        checks: published scores, where --verify was given.
        faults: what has to be mended, one line each; optional things are none.
    """

    libraries: Sequence[Library]
    devices: Sequence[Device]
    rewards: Sequence[RewardState]
    checks: Sequence[ReferenceCheck]
    faults: Sequence[str]


def _chosen(words: str) -> tuple[list[str], bool]:
    """(Names of rewards, whether they were named one by one)."""
    known = rewards.names()
    if words in ("all", "none"):
        return (known if words == "all" else []), False
    chosen = [word.strip() for word in words.split(",") if word.strip()]
    for name in chosen:
        if name not in known:
            raise unknown_name("reward", name, known)
    return chosen, True


def examine(
    *,
    names: str = "all",
    verifying: bool = False,
    weights: Path | None = None,
    references: Path | None = None,
    device: str | None = None,
) -> Report:
    """Look at libraries, devices and rewards.

    Args:
        names: "all", "none", or names with commas between; a reward that is named has to be ready.
        verifying: hash the files and reproduce published scores.
        weights: folder in which weights are looked for first.
        references: folder with the media of the published scores.
        device: for verifying.

    Raises:
        UnknownNameError: no such reward.
        ConfigError: no such device.
    """
    chosen, named = _chosen(names)
    found = libraries()
    faults = [
        f"{one.name}: {one.installed or 'not installed'}, expected {one.wanted}. {one.command}"
        for one in found
        if one.status != "ok" and not one.extra
    ]
    checks: list[ReferenceCheck] = []
    place = _device(device) if verifying else "cpu"
    with offline():
        cards, broken = readable_cards(chosen)
        states = [
            reward_state(cards[name], folder=weights, with_hashes=verifying)
            if name in cards
            else RewardState(name, "broken", 0, {}, (), {}, (), broken[name])
            for name in chosen
        ]
        for state in states:
            if verifying and state.status == "ready" and not state.differing:
                checks += verify(
                    cards[state.name], folder=weights, references=references, device=place, must_load=named
                )
    faults += [fault for state in states for fault in _faults(state, named=named)]
    faults += [f"{one.reward} {one.media}: {_compared(one)}" for one in checks if one.verdict in _BAD]
    return Report(found, devices(), states, checks, faults)


def _device(name: str | None) -> str:
    from mmalign.devices import best_device  # torch: only where a model is loaded

    return str(best_device(name))


_BAD = ("differs", "failed")


def _faults(state: RewardState, *, named: bool) -> list[str]:
    found = [f"{file}: not the published file; fetch it again" for file in state.differing]
    if state.status == "broken":
        found.append(f"{state.name}: {state.problem}")
    if state.status == "missing" and named:
        found.append(f"{state.name}: not ready. {' && '.join(state.commands)}")
    return found


def _compared(one: ReferenceCheck) -> str:
    if one.verdict in ("failed", "no file", "nothing published"):
        return f"{one.verdict}{f': {one.note}' if one.note else ''}"
    published, found = one.published or 0.0, one.found if one.found is not None else math.nan
    return (
        f"{one.verdict}: published {published:.6g}, here {found:.6g}, difference {found - published:+.2g}, "
        f"tolerance {one.tolerance:g}"
    )


def main(
    rewards: str = "all",
    verify: bool = False,
    weights: Path | None = None,
    references: Path | None = None,
    device: str | None = None,
    as_json: bool = False,
) -> int:
    """Print what was found; 0 where all is well, 1 where something has to be mended.

    Args:
        rewards: "all", "none", or names with commas between.
        verify: hash files and reproduce published scores.
        weights: folder in which weights are looked for first.
        references: folder with the media of the published scores.
        device: for `verify`.
        as_json: print JSON.

    Raises:
        UnknownNameError: no such reward.
        ConfigError: no such device.
    """
    report = examine(names=rewards, verifying=verify, weights=weights, references=references, device=device)
    if as_json:
        print(
            json.dumps(
                {"python": platform.python_version(), "mmalign": __version__, **asdict(report)}, indent=2
            )
        )
    else:
        _print(report)
    return 1 if report.faults else 0


def _print(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"mmalign {__version__}, Python {platform.python_version()}, {sys.platform}")
    _print_libraries(console, report.libraries)
    _print_devices(console, report.devices)
    _print_rewards(console, report.rewards)
    _print_checks(console, report.checks)
    console.print()
    if not report.faults:
        console.print("nothing to mend", style="green")
    for fault in report.faults:
        console.print(f"mend: {fault}", style="red", markup=False, soft_wrap=True)


def _grid(console: "Console", title: str, lines: Sequence[tuple[tuple[str, str], ...]]) -> None:
    """Lines of (text, style) cells under a title."""
    from rich.table import Table
    from rich.text import Text

    if not lines:
        return
    console.print(Text(f"\n{title}", style="bold"))
    grid = Table.grid(padding=(0, 2))
    for column in range(len(lines[0])):
        last = column == len(lines[0]) - 1
        grid.add_column(no_wrap=not last, overflow="fold")
    for line in lines:
        grid.add_row(*(Text(text, style=style) for text, style in line))
    console.print(grid)


_STYLES = {
    "ok": "green",
    "ready": "green",
    "equal": "green",
    "too old": "red",
    "broken": "red",
    "differs": "red",
}
_STYLES |= {"failed": "red", "too new": "yellow"}


def _print_libraries(console: "Console", found: Sequence[Library]) -> None:
    lines = []
    for one in found:
        optional = f"optional ({one.extra}); " if one.extra else ""
        style = _STYLES.get(one.status, "" if one.extra else "red")
        status = "" if one.status == "missing" and one.extra else one.status
        what = f"{optional}wants {one.wanted or 'any'}" + (f"; {one.command}" if one.command else "")
        lines.append(((one.name, ""), (one.installed or "-", ""), (status, style), (what, "dim")))
    _grid(console, "libraries", lines)


def _print_devices(console: "Console", found: Sequence[Device]) -> None:
    lines = []
    for one in found:
        memory = readable_bytes(one.memory) if one.memory else ""
        lines.append(((one.name, ""), (memory, ""), ("bfloat16" if one.bfloat16 else "", ""), (one.what, "")))
    _grid(console, "devices", lines)


def _print_rewards(console: "Console", states: Sequence[RewardState]) -> None:
    lines = []
    for one in states:
        what = {
            "ready": ", ".join(dict.fromkeys(one.places.values())),
            "missing": f"{readable_bytes(one.size)} to fetch" if one.size else "to fetch",
            "own": "no published weights: you name the model",
            "broken": one.problem,
        }[one.status]
        lines.append(((one.name, ""), (one.status, _STYLES.get(one.status, "dim")), (what, "dim")))
    _grid(console, "rewards", lines)
    lacking: dict[str, list[str]] = {}
    for one in states:
        for command in one.commands:
            lacking.setdefault(command, []).append(one.name)
    if lacking:
        console.print("\nto fetch what is missing", style="bold")
    for command, names in lacking.items():  # outside a table: a command that is cut cannot be copied
        console.print(f"# {', '.join(names)}", style="dim", markup=False)
        console.print(command, soft_wrap=True, markup=False)
    hashed = [(file, digest, one) for one in states for file, digest in one.hashes.items()]
    if hashed:
        console.print("\nSHA-256", style="bold")
    for file, digest, one in hashed:
        note = "  not the published file" if file in one.differing else ""
        style = "red" if note else ""
        console.print(f"{digest}  {file}{note}", style=style, soft_wrap=True, markup=False)


def _print_checks(console: "Console", checks: Sequence[ReferenceCheck]) -> None:
    lines = [
        ((one.reward, ""), (one.media, ""), (_compared(one), _STYLES.get(one.verdict, "dim")))
        for one in checks
    ]
    _grid(console, "published scores", lines)

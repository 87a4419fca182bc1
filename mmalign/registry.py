"""Names to objects: built-ins found by file name, third parties by entry point.

`find("families", "sdxl")` imports `mmalign.diffusion.families.sdxl` and returns its `FAMILY`. Listing names
imports nothing. A plug-in package declares entry points in the group `mmalign.<kind>`; a name that is both a
built-in and a plug-in is an error that names the plug-in, so that nobody trains another model than the one
they read about.
"""

import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, explain, unknown_name

__all__ = ["KINDS", "Kind", "find", "location", "modality", "names", "own_function"]


@dataclass(frozen=True)
class Kind:
    """Where one kind of plug-in lives.

    Args:
        packages: packages whose module names are the built-in names.
        attribute: the object each module defines; "" for the module itself.
    """

    packages: tuple[str, ...]
    attribute: str


KINDS: dict[str, Kind] = {
    "families": Kind(
        packages=(
            "mmalign.diffusion.families",
            "mmalign.vlm.families",
            "mmalign.audio.families",
            "mmalign.video.families",
        ),
        attribute="FAMILY",
    ),
    "rewards": Kind(packages=("mmalign.rewards.catalogue", "mmalign.evals.video.scorers"), attribute=""),
    "benchmarks": Kind(packages=("mmalign.evals.benchmarks",), attribute="BENCHMARK"),
}


def _package_folder(package: str) -> Path | None:
    """The folder of a package of ours, without importing it (its parents may be heavy)."""
    root = Path(__file__).parent
    folder = root.joinpath(*package.split(".")[1:])
    return folder if folder.is_dir() else None


@cache
def _builtins(kind: str) -> dict[str, str]:
    """Name to `module:attribute` of the built-ins of one kind."""
    described = KINDS[kind]
    found: dict[str, str] = {}
    for package in described.packages:
        folder = _package_folder(package)
        if folder is None:
            continue
        for module in pkgutil.iter_modules([str(folder)]):
            if not module.name.startswith("_") and module.name != "base":
                place = f"{package}.{module.name}"
                found[module.name] = f"{place}:{described.attribute}" if described.attribute else place
    return found


def _plugins(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=f"mmalign.{kind}")}


def location(kind: str, name: str) -> str:
    """`module:attribute` of a name, without importing it.

    Raises:
        UnknownNameError: nobody provides it.
        ConfigError: a plug-in and a built-in both do.
    """
    if kind not in KINDS:
        raise unknown_name("kind of plug-in", kind, KINDS)
    builtins, plugins = _builtins(kind), _plugins(kind)
    if name in builtins and name in plugins:
        message = (
            f"{kind} {name!r} is built in and also provided by the installed plug-in "
            f"{plugins[name].value!r}; uninstall the plug-in or rename its entry point."
        )
        raise ConfigError(message)
    if name in builtins:
        return builtins[name]
    if name in plugins:
        return plugins[name].value
    raise unknown_name(kind.rstrip("s") if kind != "families" else "family", name, [*builtins, *plugins])


def names(kind: str) -> list[str]:
    """All names of one kind, sorted, built-in and third-party; imports none of them."""
    if kind not in KINDS:
        raise unknown_name("kind of plug-in", kind, KINDS)
    return sorted({*_builtins(kind), *_plugins(kind)})


def modality(family: str) -> str:
    """What a family makes: "image", "audio", "video" or "language"; no built-in family is imported for it.

    Raises:
        UnknownNameError: no such family.
    """
    place = location("families", family)
    if place.startswith("mmalign.vlm."):
        return "language"
    if place.startswith("mmalign.audio."):
        return "audio"
    if place.startswith("mmalign.video."):
        return "video"
    if place.startswith("mmalign."):
        return "image"
    return str(getattr(find("families", family), "modality", "image"))


def find(kind: str, name: str) -> Any:
    """The object registered under `name`; its module is imported now, not before.

    Raises:
        UnknownNameError: lists near and all names.
    """
    module_name, _, attribute = location(kind, name).partition(":")
    module = importlib.import_module(module_name)
    value: Any = module
    for part in attribute.split(".") if attribute else ():
        value = getattr(value, part)
    return value


def own_function(name: str, *, what: str) -> tuple[Callable[..., Any], str]:
    """A function of the user's own by `module:function`, and the text of its module's file.

    Args:
        name: `module:function`; modules of the current folder are found, too.
        what: what it stands for ("reward", "painter"), for messages.

    Returns:
        The function, and the text; "" where nobody can tell (built in a shell, or in C).

    Raises:
        ConfigError: no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # the `mmalign` command, other than `python -m`, does not look there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        do = "Run from its folder, or put it on PYTHONPATH."
        message = explain(f"{what} {name}", got=module_name, expected="a module Python can import", do=do)
        raise ConfigError(message) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        callables = (n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        expected = f"a function of {module_name} ({', '.join(callables)})"
        raise ConfigError(explain(f"{what} {name}", got=function_name, expected=expected))
    try:
        return function, inspect.getsource(module)
    except (OSError, TypeError):
        return function, ""

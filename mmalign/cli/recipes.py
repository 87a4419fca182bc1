"""Recipes: where the scripts and configs lie, what there is, and copying them out.

In a checkout they are the folders beside the package; in a wheel they travel as data under
`mmalign/_recipes`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from mmalign.errors import ConfigError, explain, unknown_name

__all__ = ["RECIPE_FOLDERS", "copy_recipe", "find_recipe", "print_recipes", "recipe_names", "recipes_root"]

RECIPE_FOLDERS = ("diffusion", "vlm", "video", "audio", "evals")

_SUFFIXES = frozenset({".py", ".yaml", ".md", ".json", ".sh", ".txt"})


def recipes_root() -> Path:
    """The folder that holds `diffusion/`, `vlm/`, ...: the wheel's data, or the checkout.

    Raises:
        ConfigError: neither is there (the package was copied about by hand).
    """
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_recipes"
    if shipped.is_dir():
        return shipped
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and any((checkout / name).is_dir() for name in RECIPE_FOLDERS):
        return checkout
    message = explain(
        "recipes",
        got=f"an mmalign package at {package} without its recipes",
        expected="an installed wheel or a checkout",
        do="Install again: pip install mmalign.",
    )
    raise ConfigError(message)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
        if path.is_file() and path.suffix in _SUFFIXES and not hidden:
            yield path


def recipe_names() -> list[str]:
    """Every recipe file as `diffusion/configs/sdxl/dpo_lora.yaml`, sorted, folders in modality order."""
    root = recipes_root()
    return [path.relative_to(root).as_posix() for name in RECIPE_FOLDERS for path in _files(root / name)]


def find_recipe(name: str) -> Path:
    """The file or folder of a recipe; `sdxl/dpo` and `dpo.yaml` work when they name exactly one.

    Raises:
        UnknownNameError: no recipe is called that.
        ConfigError: several are.
    """
    root, known = recipes_root(), recipe_names()
    wanted = name.strip("/").removeprefix("./")
    folders = {parent.as_posix() for path in known for parent in Path(path).parents} - {"."}
    if wanted in known or wanted in folders:
        return root / wanted
    ending = [path for path in known if f"/{path}".endswith((f"/{wanted}", f"/{wanted}.yaml"))]
    if len(ending) == 1:
        return root / ending[0]
    if ending:
        message = explain(
            "recipes", got=name, expected="a name that fits one recipe", do=f"It fits {', '.join(ending)}."
        )
        raise ConfigError(message)
    raise unknown_name("recipe", name, [*known, *folders])


def describe(path: Path) -> str:
    """The first line a recipe says about itself: docstring, heading or comment; empty if it has none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[:40]
    for line in lines:
        text = line.strip().strip('#"').strip()
        if text and not line.startswith("#!"):
            return text
    return ""


def print_recipes() -> None:
    """Print every recipe with the first line it says about itself."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it says", overflow="ellipsis", no_wrap=True)
    root = recipes_root()
    for name in recipe_names():
        table.add_row(Text(name), Text(describe(root / name)))
    console = Console()
    console.print(table)
    console.print("\nCopy one: mmalign recipes cp NAME DEST", style="dim")


def copy_recipe(name: str, destination: Path, force: bool = False) -> None:
    """Copy a recipe file or folder and print where it went.

    Args:
        name: as `recipe_names` spells it, or an ending that fits one.
        destination: a folder that exists, to copy into; otherwise the new path.
        force: overwrite what is there.

    Raises:
        UnknownNameError: no such recipe.
        ConfigError: the destination exists and `force` is off.
    """
    source = find_recipe(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists() and not force:
        message = explain(
            f"recipes cp: {target}",
            got="a path that exists",
            expected="a new one",
            do="Choose another, or add --force to overwrite.",
        )
        raise ConfigError(message)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(source, target, dirs_exist_ok=force, ignore=ignored)
    else:
        shutil.copyfile(source, target)
    print(f"copied {name} to {target}")

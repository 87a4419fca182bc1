"""The house as a contract: floors, light imports, names, generated tables, habits a reader may rely on."""

import ast
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest

import mmalign
from mmalign import methods, registry
from mmalign.cli import recipes
from mmalign.cli.catalogue import page
from mmalign.errors import ConfigError, UnknownNameError
from mmalign.methods import Method
from mmalign.methods.row import LikelihoodKind

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmalign"
CASES = ROOT / "tests" / "parity" / "cases"

# Above torch: none of them may come along with the mathematics.
HEAVY = (
    "numpy",
    "PIL",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "pyarrow",
    "rich",
    "pydantic",
)


def loaded_after(statement: str, *names: str) -> set[str]:
    """Which of `names` a fresh interpreter has loaded after `statement`."""
    code = (
        f"import sys, json\n{statement}\nprint(json.dumps([n for n in {list(names)!r} if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules() -> list[str]:
    """Every module of the package, found without importing any; running `__main__` is what it is for."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources()]
    return sorted(name.removesuffix(".__init__") for name in names if name != "mmalign.__main__")


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_recipes" not in path.parts)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# ------------------------------------------------------------------------------------------------ directions


def test_imports_go_down_the_floors_and_the_mathematics_is_pure_torch() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_mmalign_loads_neither_torch_nor_anything_above_it() -> None:
    assert loaded_after("import mmalign", "torch", *HEAVY) == set()


def test_the_mathematics_loads_torch_and_nothing_heavy_of_ours() -> None:
    above = [f"mmalign.{name}" for name in ("data", "train", "diffusion", "toy", "cli")]
    libraries = [name for name in HEAVY if name not in {"numpy", "PIL"}]  # torch itself looks for numpy
    statement = "from mmalign import batch, likelihood, methods, objectives\nmethods.find('diffusion_dpo')"
    assert loaded_after(statement, "torch", *libraries, *above) == {"torch"}


def test_public_names_are_found_on_first_use() -> None:
    assert mmalign.objectives is importlib.import_module("mmalign.objectives")
    assert "objectives" in dir(mmalign)
    with pytest.raises(AttributeError, match="has no attribute 'objective_s'"):
        _ = mmalign.objective_s


@pytest.mark.parametrize("name", modules())
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_the_version_is_written_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", mmalign.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "mmalign/__init__.py"


def test_every_constraint_is_one_version_and_covers_every_dependency() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {_normal(line.partition("==")[0]) for line in lines if line}
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line) for line in lines if line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"], *extras["dev"]]
    names = {_normal(re.split(r"[<>=!~\[ ]", requirement)[0]) for requirement in wanted} - {"mmalign"}
    assert names - pinned == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------------------------------------ recipes


def test_recipe_scripts_shadow_no_module() -> None:
    """Python puts a script's folder first on the path: diffusion/datasets.py would hide that library."""
    installed = set(importlib.metadata.packages_distributions())
    taken = set(sys.stdlib_module_names) | installed
    scripts = [Path(name) for name in recipes.recipe_names() if name.endswith(".py")]
    assert scripts, "no recipe script was found"
    assert [path.as_posix() for path in scripts if path.stem in taken] == []


def test_recipe_folders_are_no_packages() -> None:
    assert [str(path) for name in recipes.RECIPE_FOLDERS for path in (ROOT / name).rglob("__init__.py")] == []


def test_every_recipe_folder_travels_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert shipped == {
        name: f"mmalign/_recipes/{name}" for name in recipes.RECIPE_FOLDERS if (ROOT / name).is_dir()
    }


# ------------------------------------------------------------------------------------------------ methods


def all_rows() -> list[Method]:
    return list(methods.rows())


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: row.name)
def test_every_row_names_things_that_exist(row: Method) -> None:
    from mmalign import objectives

    assert row.objective in objectives.names() or (row.function and not row.objective)
    if row.function:
        module, _, name = row.function.rpartition(".")
        assert name in importlib.import_module(module).__all__
    assert row.likelihood in {"", *get_args(LikelihoodKind)}
    assert set(row.defaults) <= {"*", "image", "audio", "video", "language", *registry.names("families")}
    assert row.formula
    assert row.title
    assert [case for case in row.parity if not (CASES / f"{case}.json").is_file()] == []


def modality_of(layer: str, row: Method) -> str:
    """What a layer of defaults is laid over; layers are named for families or for what they make."""
    if row.likelihood == "tokens":
        return "language"
    return registry.modality(layer) if layer in registry.names("families") else layer


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: row.name)
def test_every_row_builds_its_objective(row: Method) -> None:
    """The row's arguments and numbers fit the builder: no hyperparameter is named that does not exist."""
    from mmalign import objectives

    if not row.objective:
        assert not row.objective_arguments, "there is nobody to give them to"
        return
    parameters = objectives.signature(row.objective).parameters
    assert set(row.objective_arguments) <= set(parameters)
    if not row.likelihood:
        return  # a bare objective: its arguments are the user's to choose
    for family in set(row.defaults) - {"*"}:
        found = row.defaults_for(family, modality_of(family, row))
        numbers = {name: default.value for name, default in found.items() if name in parameters}
        built = objectives.build(row.objective, **numbers, **row.objective_arguments)
        assert ("reference" in built.needs) == ("reference" in row.needs) == (row.reference != "none")
        assert built.couples_rows == row.couples_rows


def test_settings_of_rows_are_settings_of_configs_or_arguments() -> None:
    """A misspelled setting would recommend nothing to nobody."""
    from mmalign import objectives
    from mmalign.train.config import ROW_SETTINGS, AdapterConfig, ImageConfig, ReferenceConfig, TrainConfig

    known = {
        "effective_batch",
        *ROW_SETTINGS,
        *AdapterConfig.model_fields,
        *ImageConfig.model_fields,
        *ReferenceConfig.model_fields,
        *TrainConfig.model_fields,
    }
    unknown = [
        f"{row.name}.{setting}"
        for row in all_rows()
        for values in row.defaults.values()
        for setting in values
        if setting not in known
        and not (row.objective and setting in objectives.signature(row.objective).parameters)
    ]
    assert unknown == []


def test_rows_with_numbers_mark_where_each_comes_from() -> None:
    """A number called ours or differing between paper and code says why."""
    unexplained = [
        f"{row.name}.{family}.{setting}"
        for row in all_rows()
        for family, values in row.defaults.items()
        for setting, default in values.items()
        if default.mark == "ours" and not default.note
    ]
    assert unexplained == []


def test_an_unknown_method_lists_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown method 'diffusion_dop'\. Did you mean .*diffusion_dpo"
    ):
        methods.find("diffusion_dop")


def test_a_modality_s_row_stands_for_the_bare_objective_of_its_name() -> None:
    bare = Method(name="mapo", title="bare", paper="", year=2024, objective="mapo")
    full = Method(name="mapo", title="full", paper="", year=2024, objective="mapo", likelihood="elbo")
    assert methods.merge([full], [bare])["mapo"] is full


@pytest.mark.parametrize("function", ["", "nash_md_loss", "mmalign objectives.nash"])
def test_a_row_without_an_objective_names_its_function(function: str) -> None:
    with pytest.raises(ConfigError, match=r"method game function: got .*, expected package\.module\.name"):
        Method(name="game", title="Games", paper="", year=2024, objective="", function=function)


def test_two_rows_of_one_name_are_refused() -> None:
    row = Method(name="mapo", title="Masks", paper="", year=2024, objective="dpo")
    with pytest.raises(
        ConfigError, match=r"method mapo: got 'a second row'.* taken by 'Masks' \(objective dpo\)"
    ):
        methods.merge([row], [Method(name="mapo", title="Margins", paper="", year=2024, objective="mapo")])
    with pytest.raises(ConfigError, match="method mapo"):
        methods.merge([row, row], [])


@pytest.mark.parametrize(("document", "name"), [("README.md", "methods"), ("docs/catalogue.md", "catalogue")])
def test_generated_tables_are_fresh(document: str, name: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, flags=re.DOTALL)
    assert found, f"{document} has no <!-- {name}:begin --> ... <!-- {name}:end -->"
    expected = methods.markdown(methods.runs()) if name == "methods" else page()
    assert found.group(1).strip() == expected, "stale: run `make docs`"


def documents() -> list[Path]:
    """Pages of the repository, those of runs and of hidden folders aside."""
    folders = [
        path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name != "runs"
    ]
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))])


def anchors(document: Path) -> set[str]:
    """What headings of a page can be linked by, as GitHub makes it of them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#+ +(.*?) *$", text, flags=re.MULTILINE):
        base = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(
            " ", "-"
        )
        place, name = 0, base
        while name in found:
            place += 1
            name = f"{base}-{place}"
        found.add(name)
    return found


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    links = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"", text)
    astray = []
    for link in (first or second for first, second in links):
        if re.match(r"[a-z][a-z+.-]*:|//", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (document.parent / place).resolve() if place else document
        lost = not target.exists() or ROOT not in (target, *target.parents)
        if lost or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            astray.append(link)
    assert astray == []


# ------------------------------------------------------------------------------------------------ habits


def test_no_module_is_named_for_nothing() -> None:
    assert [path.name for path in sources() if path.stem in {"utils", "helpers", "common", "misc"}] == []


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_runs_what_it_reads_or_seeds_the_world(path: Path) -> None:
    """No pickle, eval, remote code or shell; the global generator is seeded only where it is restored."""
    tree = parsed(path)
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        (node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert imported.isdisjoint({"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"})
    forbidden = {
        "eval",
        "exec",
        "os.system",
        "torch.manual_seed",
        "random.seed",
        "np.random.seed",
        "set_seed",
        "yaml.load",
    }
    kept_apart = {
        id(call) for block in ast.walk(tree) if _restores_randomness(block) for _, call in calls(block)
    }
    for name, call in calls(tree):
        if name == "torch.manual_seed" and id(call) in kept_apart:
            continue
        assert name not in forbidden, f"line {call.lineno}: {name}"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code", "False") == "False", f"line {call.lineno}: remote code"
        assert given.get("shell", "False") == "False", f"line {call.lineno}: a shell"
        if name == "torch.load":
            assert given.get("weights_only") == "True", (
                f"line {call.lineno}: torch.load without weights_only=True"
            )


def _restores_randomness(node: ast.AST) -> bool:
    """A `with torch.random.fork_rng(...)`: the way to seed constructors that take no generator."""
    return isinstance(node, ast.With) and any(
        "fork_rng(" in ast.unparse(item.context_expr) for item in node.items
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_swallows_every_exception(path: Path) -> None:
    """`except Exception` may add to a message and raise; it may not go on."""
    tree = parsed(path)
    swallowing = [
        handler.lineno
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler)
        and (handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"})
        and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))
    ]
    assert swallowing == []


def test_no_future_annotations() -> None:
    """They turn shape annotations into strings that the test hook and ruff's fixes trip over."""
    offending = [
        path for path in sources() if "from __future__ import annotations" in path.read_text(encoding="utf-8")
    ]
    assert offending == []
